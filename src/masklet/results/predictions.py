"""What ``predict`` is asked for, and its results from batches of logits. Runs without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from masklet.config import NUM_MULTIMASK_OUTPUTS, SizeHW
from masklet.errors import PromptError
from masklet.masks import clean_masks, join_chunks
from masklet.numbers import whole_number
from masklet.results.candidates import CandidateMasks
from masklet.results.masks import Masks


@dataclass(frozen=True)
class PredictedBatch:
    """Masks of a few objects."""

    logits: np.ndarray | None  # (masks, h, w) float32; None if they are not kept
    iou_scores: np.ndarray  # (masks,) float32
    masks: Iterator[np.ndarray]  # chunks of (masks, height, width) bool


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Arguments of ``EncodedImage.predict`` that say what it returns.

    Raises:
        PromptError: They do not fit together.
    """

    multimask: bool | None
    candidates: bool
    packed: bool
    fill_holes: int
    remove_islands: int

    def __post_init__(self) -> None:
        for name in ("fill_holes", "remove_islands"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), PromptError, least=0))
        if self.candidates and self.multimask is False:
            raise PromptError("candidates=True returns three masks for each object: multimask=False allows only one")
        if self.candidates and self.packed:
            raise PromptError(
                "candidates=True and packed=True were both given: packed masks hold one mask for each object"
            )

    def proposes_three(self, *, is_single_click: bool) -> bool:
        """Whether the network proposes three masks for each object."""
        return self.candidates or is_single_click if self.multimask is None else self.multimask

    def collect(
        self,
        batches: Iterable[PredictedBatch],
        objects: int,
        *,
        size_hw: SizeHW,
        logits_hw: SizeHW,
        image: np.ndarray | None,
        names: np.ndarray | None = None,
    ) -> Masks | CandidateMasks:
        """The results, each written once. Masks are in memory a second time for one chunk only.

        Args:
            batches: The best mask of each object, or all candidates, object by object.
            objects: Objects of all batches.
            size_hw: Size of the image.
            logits_hw: Size of the logits.
            image: The image.
            names: Label of each object.
        """
        count = objects * (NUM_MULTIMASK_OUTPUTS if self.candidates else 1)
        logits = np.empty((count, *((0, 0) if self.packed else logits_hw)), np.float32)
        iou_scores = np.empty(count, np.float32)

        def chunks() -> Iterator[np.ndarray]:
            start = 0
            for batch in batches:
                place = slice(start, start := start + len(batch.iou_scores))
                iou_scores[place] = batch.iou_scores
                if batch.logits is not None:
                    logits[place] = batch.logits
                yield from batch.masks

        cleaned = chunks() if self._clean is None else map(self._clean, chunks())
        masks: Any = join_chunks(cleaned, count, size_hw, packed=self.packed)
        if not self.candidates:
            return Masks(masks, logits, iou_scores, np.arange(objects), image, names)
        masks, logits, iou_scores = (
            values.reshape(objects, NUM_MULTIMASK_OUTPUTS, *values.shape[1:]) for values in (masks, logits, iou_scores)
        )
        return CandidateMasks(masks, logits, iou_scores, image)

    @property
    def _clean(self) -> Callable[[np.ndarray], np.ndarray] | None:
        if not self.fill_holes and not self.remove_islands:
            return None
        return partial(clean_masks, fill_holes=self.fill_holes, remove_islands=self.remove_islands)
