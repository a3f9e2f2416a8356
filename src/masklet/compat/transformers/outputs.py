"""Outputs of the drop-in classes: dataclasses that are dicts and tuples as well, as in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from torch import Tensor


class ModelOutput(dict[str, Any]):
    """Named values, by attribute, key or index. A field that is None is an attribute only: no key, no place in tuples.

    Iteration, ``keys()`` and ``**output`` are those of a dict; ``to_tuple()`` is for unpacking. Subclasses are
    dataclasses whose order of fields is the order of the tuple.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        """A value by its name, or by its index or slice in ``to_tuple()``."""
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[..., ModelOutput], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in the order of the fields."""
        return tuple(self.values())

    def _refuse(self, method: str) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no {method}(): its fields are fixed; assign to one instead")

    def __delitem__(self, key: object) -> NoReturn:
        self._refuse("__delitem__")

    def pop(self, *_: object, **__: object) -> NoReturn:
        """Refused, as in transformers."""
        self._refuse("pop")

    def setdefault(self, *_: object, **__: object) -> NoReturn:
        """Refused, as in transformers."""
        self._refuse("setdefault")

    def update(self, *_: object, **__: object) -> NoReturn:
        """Refused, as in transformers."""
        self._refuse("update")


@dataclass(eq=False)
class Sam2HieraDetModelOutput(ModelOutput):
    """The output of ``Sam2HieraDetModel``."""

    last_hidden_state: Tensor | None = None
    """(batch, height / 32, width / 32, dim)."""
    intermediate_hidden_states: tuple[Tensor, ...] | None = None
    """The map after each of the four stages, (batch, h, w, dim), finest first."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The input of the first block and the output of every block."""
    attentions: tuple[Tensor, ...] | None = None
    """The output of the attention of every block, (windows, h, w, dim)."""


@dataclass(eq=False)
class Sam2VisionEncoderOutput(ModelOutput):
    """The output of ``Sam2VisionModel`` and of ``Sam2Model.get_image_features``."""

    last_hidden_state: Tensor | None = None
    """(batch, height / 32, width / 32, dim), before the feature pyramid."""
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    fpn_hidden_states: Any = None
    """Three maps, finest first: (batch, dim, h, w), or (h * w, batch, dim) from ``get_image_features``."""
    fpn_position_encoding: Any = None
    """Positions of the cells of each map, in the same layout."""


@dataclass(eq=False)
class Sam2ImageSegmentationOutput(ModelOutput):
    """The output of ``Sam2Model``."""

    iou_scores: Tensor | None = None
    """(batch, objects, masks), predicted IoU, 0 to 1."""
    pred_masks: Tensor | None = None
    """(batch, objects, masks, height / 4, width / 4) logits."""
    object_score_logits: Tensor | None = None
    """(batch, objects, 1), above 0: the object is in the image."""
    image_embeddings: list[Tensor] | None = None
    """Three maps, finest first, for ``image_embeddings=``."""
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None
    """What the image reads from the tokens in each layer of the decoder, (batch * objects, 1, h * w, dim)."""
