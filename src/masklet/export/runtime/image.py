"""An encoded image without torch: see ``masklet.image.EncodedImage``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from masklet.config import STRIDES, SizeHW
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.mask_prompts import MASK_PROMPT_LOGIT, CheckedMasks
from masklet.masks import masks_per_chunk
from masklet.masks.resizing import reduced, upscaled
from masklet.prompts import CheckedPrompts, check_prompts, one_or_more_boxes
from masklet.results.predictions import PredictedBatch, PredictionOptions
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
        options = PredictionOptions(
            multimask=multimask,
            candidates=candidates,
            packed=packed,
            fill_holes=fill_holes,
            remove_islands=remove_islands,
        )
        boxes = one_or_more_boxes(box, boxes)
        prompts = check_prompts(points, labels, boxes, mask, size_hw=self.size_hw, input_hw=self.input_hw)
        return options.collect(
            self._decode(prompts, options),
            len(prompts),
            size_hw=self.size_hw,
            logits_hw=self._logits_hw,
            image=self.image,
        )

    @property
    def _logits_hw(self) -> SizeHW:
        return self.input_hw[0] // STRIDES[0], self.input_hw[1] // STRIDES[0]

    def _decode(self, prompts: CheckedPrompts, options: PredictionOptions) -> Iterator[PredictedBatch]:
        """The best candidate of each object, or all candidates, object by object, in batches of objects."""
        multimask = options.proposes_three(is_single_click=prompts.labels.shape[1] == 1 and prompts.masks is None)
        # The graph takes one mask prompt at a time.
        length = 1 if prompts.masks is not None else OBJECTS_PER_BATCH
        for start in range(0, len(prompts), length):
            place = slice(start, start + length)
            decoded = self.network.decode(
                self.features,
                prompts.points[None, place],
                prompts.labels[None, place],
                multimask=multimask,
                mask_input=None if prompts.masks is None else mask_logits(prompts.masks, start, self._logits_hw),
            )
            logits, iou_scores = decoded.logits[0], decoded.iou_scores[0]
            if options.candidates:
                logits, iou_scores = logits.reshape(-1, *self._logits_hw), iou_scores.reshape(-1)
            else:
                best = np.arange(len(iou_scores)), iou_scores.argmax(1)
                logits, iou_scores = logits[best], iou_scores[best]
            yield PredictedBatch(None if options.packed else logits, iou_scores, masks_of(logits, self.size_hw))


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
