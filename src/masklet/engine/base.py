"""The interface of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from masklet.checkpoints.preprocessor import PreprocessorConfig
from masklet.config import Sam2Config, SizeHW
from masklet.engine.resizing import resize_frame
from masklet.model.hiera import Hiera, window_positions
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model

ABSENT_LOGIT = -1024.0
"""Mask logits of an object that is not in the frame."""
PATCH_STRIDE = 4
"""Pixels for each cell of the map that positions are added to."""


def version_of(weight: Tensor) -> tuple[int, torch.dtype]:
    """Changes when a weight changes in place or is converted to another precision.

    PyTorch does not count changes through ``.data``, or of weights made under ``torch.inference_mode()``.
    """
    return (0 if weight.is_inference() else weight._version), weight.dtype


def normalised(pixels: Tensor, normalisation: PreprocessorConfig) -> Tensor:
    """Pixels (..., 3, height, width) of 0 to 255, float32, as the network takes them."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        for values in (normalisation.image_mean, normalisation.image_std)
    )
    return (pixels / (1 / normalisation.rescale_factor) - mean) / std  # 1 / (1 / 255) is exactly 255


def stored_maps(maps: Tensor, config: Sam2Config) -> Tensor:
    """Memory maps in the type that they are kept in."""
    # Meta's reference stores memories in bfloat16, and the rounding is part of its results. transformers' EdgeTAM
    # stores its few tokens as they are.
    return maps if config.is_edgetam else maps.bfloat16()


class TrackedObjects(NamedTuple):
    """The results of many objects in a frame: of each, the candidate of the highest predicted IoU."""

    logits: Tensor  # (objects, 4h, 4w), ABSENT_LOGIT everywhere where an object is absent
    iou_scores: Tensor  # (objects,) predicted IoU, 0 to 1
    object_scores: Tensor  # (objects,) logits: above 0 the object is in the frame
    pointers: Tensor  # (objects, dim)

    @classmethod
    def best_of(cls, decoded: DecodedMasks) -> TrackedObjects:
        """Keeps the best candidate of each object of (objects, 1, candidates, ...)."""
        assert decoded.object_pointers is not None
        best = decoded.iou_scores[:, 0].argmax(-1)  # (objects,)
        each = torch.arange(len(best), device=best.device)
        scores = decoded.object_scores[:, 0]  # (objects, 1)
        logits = torch.where(scores[..., None] > 0, decoded.logits[each, 0, best], ABSENT_LOGIT)
        return cls(logits, decoded.iou_scores[each, 0, best], scores[:, 0], decoded.object_pointers[each, 0, best])


@dataclass(frozen=True)
class ConfidentMasks:
    """The candidate masks of one image whose predicted IoU is above a threshold."""

    logits: Tensor  # (masks, 4h, 4w)
    iou_scores: Tensor  # (masks,), 0 to 1
    objects: Tensor  # (masks,) int64: index of the object each mask belongs to


class Engine(ABC):
    """Four functions with static shapes, which never read back from the device, and one for automatic masks.

    They are for inference; call them under ``torch.inference_mode()``. Engines are thread-safe.
    """

    name: str
    is_asynchronous = False
    """Whether to launch work before it is asked for, and to fetch results in the background."""
    batches_memory = False
    """Whether the memories of all objects are encoded in one batch: faster on accelerators, but not the same to the
    bit as one by one."""

    def __init__(self, model: Sam2Model) -> None:
        self.model = model
        self._positions: tuple[object, Tensor] | None = None

    def __reduce__(self) -> tuple[type[Engine], tuple[object, ...]]:
        """Copies and pickles create a new engine, since cached values belong to one network."""
        return type(self), (self.model,)

    @property
    def config(self) -> Sam2Config:
        """The network's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device of the results; inputs may be on any device."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, the features and the logits."""
        return self.model.dtype

    @property
    def products(self) -> torch.dtype:
        """Type of matrix products: that of the weights, or a narrower one."""
        return self.dtype

    @property
    def pads_memory(self) -> bool:
        """Whether to pad memory to a few fixed shapes, which accelerators prefer."""
        return self.device.type != "cpu"

    def stage(self, values: np.ndarray) -> Tensor:
        """Host values where a copy to the device need not wait for them: in pinned memory, if there is a GPU."""
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))  # torch warns of read-only arrays

    @abstractmethod
    def encode(self, pixel_values: Tensor) -> Features:
        """Encode images (batch, 3, height, width), normalised. See ``Sam2Model.encode``."""

    def encode_frame(self, frame: Tensor, preprocessor: PreprocessorConfig) -> Features:
        """Encode a frame (height, width, 3) uint8 of any size: resize it, normalise it, encode it."""
        resized = resize_frame(frame.to(self.device, non_blocking=True), preprocessor.input_hw)
        return self.encode(normalised(resized.permute(2, 0, 1)[None].float(), preprocessor))

    @abstractmethod
    def decode(
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        """Decode prompts to masks. See ``Sam2Model.decode``."""

    @abstractmethod
    def read_memory(self, features: Features, memory: Memory) -> Tensor:
        """Condition a frame on memory: (objects, dim, h, w). See ``Sam2Model.read_memory``."""

    @abstractmethod
    def write_memory(self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool) -> Tensor:
        """Encode masks as spatial memories: (objects, tokens, memory_dim). See ``Sam2Model.write_memory``."""

    def track(self, features: Features, memory: Memory) -> tuple[TrackedObjects, Tensor]:
        """Track objects into a frame that shows none of their prompts.

        Args:
            features: Features of the frame, shared by all objects.
            memory: What is read of each object.

        Returns:
            The results, and the memory map of each, (objects, tokens, memory_dim), see ``stored_maps``.
        """
        decoded = self.decode(features, multimask=True, conditioned=self.read_memory(features, memory))
        tracked = TrackedObjects.best_of(decoded)
        maps = self.write_memory(features, tracked.logits, tracked.object_scores[:, None], binarize=False)
        return tracked, stored_maps(maps, self.config)

    def decode_confident(self, features: Features, prompts: Prompts, *, iou_threshold: float) -> ConfidentMasks:
        """Decode prompts on one image and keep the candidates whose predicted IoU is above a threshold.

        Only the device knows how many there are, so this function, unlike the others, reads back from it.

        Args:
            features: Features of one image.
            prompts: (1, objects, ...).
            iou_threshold: From 0 to 1.
        """
        decoded = self.decode(features, prompts, multimask=True)
        is_confident = decoded.iou_scores[0] > iou_threshold  # (objects, masks)
        return ConfidentMasks(
            decoded.logits[0][is_confident], decoded.iou_scores[0][is_confident], is_confident.nonzero()[:, 0]
        )

    def downsample_mask(self, mask: Tensor) -> Tensor:
        """(masks, 1, height, width), 1 inside and 0 outside, to a mask prompt of a quarter of its size."""
        return self.model.mask_downsample(mask)

    def _position_table(self, input_hw: SizeHW) -> Tensor | None:
        """Positions for the trunk, cached for the last size of its input; None if the trunk has none.

        Computed on the CPU, since some devices lack bicubic interpolation.
        """
        trunk = self.model.vision_encoder.backbone
        if not isinstance(trunk, Hiera):
            return None
        size_hw = (input_hw[0] // PATCH_STRIDE, input_hw[1] // PATCH_STRIDE)
        weights = (trunk.pos_embed, trunk.pos_embed_window)
        key = (size_hw, self.device, *((id(weight), version_of(weight)) for weight in weights))
        kept = self._positions
        if kept is None or kept[0] != key:
            grid, window = (weight.detach().cpu() for weight in weights)
            kept = self._positions = (key, window_positions(grid, window, size_hw).to(self.device))
        return kept[1]
