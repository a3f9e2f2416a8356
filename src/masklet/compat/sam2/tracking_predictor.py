"""What predictors for videos and for cameras have in common: their options, and what they return for a frame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.tracked_objects import video_logits
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.video.object_frame import ObjectFrame
from masklet.video.tracks import Tracks

FrameOutput = tuple[int, list[Any], Tensor]
"""A frame's number, the ids of all objects, and their logits (objects, 1, height, width)."""


class TrackingPredictor(SAM2Base):
    """A network that tracks objects.

    Args:
        network: A network with memory.
        image_processor: How frames are prepared.
        fill_hole_area: Holes of low-resolution masks of up to so many pixels are filled.
        max_prompted: Prompted frames that a frame reads at most. None: all of a video, and the usual number of a
            camera, whose memory is bounded.
        corrections_are_kept: See ``SAM2VideoPredictor``. A camera does not go back, and keeps them.
        non_overlap_masks: Whether each pixel belongs to one object at most.
    """

    def __init__(
        self,
        network: Sam2Model,
        image_processor: ImageProcessor | None = None,
        *,
        fill_hole_area: int = 0,
        max_prompted: int | None = None,
        corrections_are_kept: bool = True,
        non_overlap_masks: bool = False,
    ) -> None:
        super().__init__(network, image_processor)
        self.fill_hole_area = fill_hole_area
        self.max_prompted = max_prompted
        self.corrections_are_kept = corrections_are_kept
        self.non_overlap_masks = non_overlap_masks

    def frame_output(
        self, tracks: Tracks, frame: int, results: Mapping[Hashable, ObjectFrame] | None = None
    ) -> FrameOutput:
        """What the methods return for a frame.

        Args:
            tracks: The objects.
            frame: The frame's number.
            results: Results of the frame; None for those that ``tracks`` holds.
        """
        object_ids: list[Any] = list(tracks.objects)
        logits = video_logits(
            tracks.results_in(frame) if results is None else results,
            object_ids,
            tracks.size_hw,
            fill_hole_area=self.fill_hole_area,
            non_overlap_masks=self.non_overlap_masks,
            device=self.device,
        )
        return frame, object_ids, logits
