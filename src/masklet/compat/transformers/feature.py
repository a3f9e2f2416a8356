"""Inputs of the drop-in models, as processors return them."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BatchFeature(UserDict):
    """Values by name, for ``model(**inputs)``; also by attribute. ``data`` is the plain dict.

    Args:
        data: Values by name.
        tensor_type: ``"pt"`` or ``"np"`` converts them; None leaves them as they are.
    """

    data: dict[str, Any]

    def __init__(self, data: dict[str, Any] | None = None, tensor_type: Any = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        if name == "data":  # while it is unpickled
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"no input {name!r}: expected one of {', '.join(self.data)}") from None

    def __getitem__(self, key: str) -> Any:
        """A value by its name."""
        return self.data[key]

    def convert_to_tensors(self, tensor_type: Any = None) -> BatchFeature:
        """Converts every value, in place: ``"pt"`` or ``"np"``, or transformers' enumeration of them.

        Raises:
            ValueError: It is another type, or the values have different shapes and do not make one tensor.
        """
        if tensor_type is None:
            return self
        kind = getattr(tensor_type, "value", tensor_type)
        if kind not in ("pt", "np"):
            raise ValueError(f"return_tensors is {tensor_type!r}: expected 'pt' (PyTorch), 'np' (NumPy) or None")
        convert = _to_tensor if kind == "pt" else _to_array
        for name, value in self.data.items():
            try:
                self.data[name] = convert(value)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(
                    f"{name} does not make one {'tensor' if kind == 'pt' else 'array'}: expected values of equal "
                    f"shapes, or return_tensors=None ({error})"
                ) from error
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Moves every tensor, in place, as ``Tensor.to``; a dtype applies to floating-point tensors only."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        for name, value in self.data.items():
            if isinstance(value, Tensor):
                narrowed = dtype if value.is_floating_point() else None
                self.data[name] = value.to(device, narrowed, non_blocking=non_blocking)
        return self


def as_tensor(values: Any) -> Tensor:
    """A tensor as it is; anything else on the CPU, whatever the default device."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return torch.stack(list(value))
    if isinstance(value, list | tuple) and value and isinstance(value[0], np.ndarray):
        value = np.array(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else as_tensor(value)


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack(list(value))
    return value.numpy(force=True) if isinstance(value, Tensor) else np.array(value)
