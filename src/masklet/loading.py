"""``masklet.load``: models that torch runs, and exported ones that need no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, overload

from masklet.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from masklet.export.runtime.segmenter import OnnxSegmenter
    from masklet.segmenter import Segmenter


@overload
def load(  # type: ignore[overload-overlap]
    name: str | os.PathLike[str],
    *,
    engine: Literal["onnx"],
    provider: str = ...,
    provider_options: Mapping[str, Any] | None = ...,
    threads: int | None = ...,
) -> OnnxSegmenter: ...


@overload
def load(
    name: str | os.PathLike[str] | None = ...,
    device: str | torch.device = ...,
    dtype: str | torch.dtype = ...,
    *,
    engine: str = ...,
    resolution: int | None = ...,
    revision: str | None = ...,
    token: str | None = ...,
) -> Segmenter: ...


def load(name: Any = None, *args: Any, engine: str = "auto", **options: Any) -> Any:
    """Loads a model, which torch runs, or with ``engine="onnx"`` an exported folder, which needs no torch.

    Args:
        name: None for the embedded model; a name of ``masklet models``, a Hub repository, a model folder, or one of
            Meta's ``.pt`` files. For ``engine="onnx"`` a folder that ``masklet export`` wrote.
        args: ``device`` (``"auto"`` is CUDA, then MPS, then the CPU) and ``dtype`` (``"auto"``, ``"float32"``,
            ``"bfloat16"``, ``"float16"`` or a ``torch.dtype``), which may also be given by name. ``"auto"`` keeps
            weights in float32 and multiplies matrices in bfloat16 where the device has instructions for it.
        engine: How the network runs: ``"eager"`` on any device, ``"cpu"`` with float32 weights on a CPU, faster there,
            ``"cuda"`` on a CUDA device; ``"auto"`` is the fastest one that can run the model. Or ``"onnx"``.
        options: ``resolution``, the side of the square input instead of the one the model was saved with, a multiple of
            32, for ``.pt`` files that were fine-tuned at another size; ``revision`` and ``token`` of a Hub repository.
            For ``engine="onnx"`` ``provider`` (``"cpu"``, ``"cuda"``, ``"tensorrt"``, ``"coreml"``, ``"openvino"``,
            ``"directml"``), ``provider_options`` and ``threads``.

    Raises:
        CheckpointError: The model cannot be found, is damaged, or is of another kind.
        ConfigError: An option is invalid, or the engine cannot run the model.
        DeviceError: The device or the execution provider is not available.
        ModuleNotFoundError: torch, or for ``engine="onnx"`` onnxruntime, is not installed.
    """
    if engine == "onnx":
        from masklet.export.runtime.segmenter import load_onnx

        known = {"provider", "provider_options", "threads"}
        if args or (unknown := options.keys() - known):
            raise ConfigError(
                f"engine 'onnx' was given {', '.join(sorted(unknown)) if not args else 'a device'}: expected a folder "
                f"and {', '.join(sorted(known))}. Size and precision were chosen when the folder was exported"
            )
        return load_onnx(name, **options)
    if find_spec("torch") is None:
        raise ModuleNotFoundError(
            "PyTorch is not installed: pip install torch. Without it, load an exported folder with engine='onnx'",
            name="torch",
        )
    from masklet.segmenter import load as load_with_torch

    return load_with_torch(name, *args, engine=engine, **options)
