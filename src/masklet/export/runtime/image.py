"""An encoded image without torch: see ``masklet.image.EncodedImage``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from masklet.config import NUM_MULTIMASK_OUTPUTS, STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.mask_prompts import MASK_PROMPT_LOGIT, CheckedMasks
from masklet.masks import clean_masks, join_chunks, masks_per_chunk
from masklet.masks.resizing import reduced, upscaled
from masklet.numbers import whole_number
from masklet.prompts import CheckedPrompts, check_prompts, one_box
from masklet.results import CandidateMasks, Masks
from masklet.results.visualisation import notebook_png

OBJECTS_PER_BATCH = 32


@dataclass(frozen=True, eq=False)
class OnnxImage:
    """An encoded image. It is immutable and thread-safe."""

    network: OnnxNetwork
    features: ImageFeatures
    image: np.ndarray  # (height, width, 3) uint8

    @property
    def size_hw(self) -> SizeHW:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        return self.network.manifest.input_hw

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"OnnxImage({width}×{height}, encoded at {self.input_hw[1]}×{self.input_hw[0]})"

    def _repr_png_(self) -> bytes:
        return notebook_png(Image.fromarray(self.image))

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        *,
        box: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool | None = None,
        candidates: bool = False,
        packed: bool = False,
        fill_holes: int = 0,
        remove_islands: int = 0,
    ) -> Any:
        """Predicts one mask for each prompted object: arguments, results and errors of ``EncodedImage.predict``."""
        fill_holes = whole_number("fill_holes", fill_holes, PromptError, least=0)
        remove_islands = whole_number("remove_islands", remove_islands, PromptError, least=0)
        if candidates and (packed or multimask is False):
            raise PromptError("candidates=True returns three masks for each object: not with multimask=False or packed")
        if box is not None and boxes is not None:
            raise PromptError("box and boxes were both given: expected box for one object, or boxes for several")
        boxes = boxes if box is None else one_box(box)
        prompts = check_prompts(points, labels, boxes, mask, size_hw=self.size_hw, input_hw=self.input_hw)
        if multimask is None:
            multimask = candidates or (prompts.labels.shape[1] == 1 and prompts.masks is None)
        logits, scores = self._decode(prompts, multimask)
        if not candidates:
            best = np.arange(len(scores)), scores.argmax(1)
            logits, scores = logits[best], scores[best]
        flat = logits.reshape(-1, *logits.shape[-2:])
        clean = partial(clean_masks, fill_holes=fill_holes, remove_islands=remove_islands)
        chunks = masks_of(flat, self.size_hw)
        masks: Any = join_chunks(
            map(clean, chunks) if fill_holes or remove_islands else chunks, len(flat), self.size_hw, packed=packed
        )
        if candidates:
            return CandidateMasks(masks.reshape(*scores.shape, *self.size_hw), logits, scores, self.image)
        kept = np.zeros((len(flat), 0, 0), np.float32) if packed else logits
        return Masks(masks, kept, scores, np.arange(len(scores)), self.image)

    def _decode(self, prompts: CheckedPrompts, multimask: bool) -> tuple[np.ndarray, np.ndarray]:
        """(objects, masks, h, w) logits and (objects, masks) predicted IoU."""
        count = NUM_MULTIMASK_OUTPUTS if multimask else 1
        logits_hw = (self.input_hw[0] // STRIDES[0], self.input_hw[1] // STRIDES[0])
        parts = [(np.zeros((0, count, *logits_hw), np.float32), np.zeros((0, count), np.float32))]
        # The graph takes one mask prompt at a time.
        length = 1 if prompts.masks is not None else OBJECTS_PER_BATCH
        for start in range(0, len(prompts), length):
            place = slice(start, start + length)
            masks = None if prompts.masks is None else mask_logits(prompts.masks, start, logits_hw)
            decoded = self.network.decode(
                self.features,
                prompts.points[None, place],
                prompts.labels[None, place],
                multimask=multimask,
                mask_input=masks,
            )
            parts.append((decoded.logits[0], decoded.iou_scores[0]))
        logits, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        return logits, scores


def mask_logits(masks: CheckedMasks, index: int, logits_hw: SizeHW) -> np.ndarray:
    """(h, w) float32: the logits of one mask prompt."""
    if masks.boxes is None:
        return masks.values[index]
    return MASK_PROMPT_LOGIT * (2 * reduced(masks.values[index].astype(np.float32), logits_hw) - 1)


def masks_of(logits: np.ndarray, size_hw: SizeHW) -> Iterator[np.ndarray]:
    """(masks, h, w) logits to (masks, height, width) bool, in chunks that fit in memory."""
    length = masks_per_chunk(size_hw)
    for start in range(0, len(logits), length):
        yield np.stack([upscaled(one, size_hw) > 0 for one in logits[start : start + length]])
