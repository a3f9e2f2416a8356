"""Frames and holes as Meta's ``sam2.utils.misc`` offers them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masklet.compat.sam2.sam2_video_predictor import FrameTensors
from masklet.compat.sam2.tracked_objects import HOLE_MARGIN
from masklet.compat.sam2.utils.amg import batched_mask_to_box
from masklet.compat.sam2.utils.transforms import clean_logits
from masklet.processing import ImageProcessor
from masklet.video.frames import open_video


def load_video_frames(
    video_path: Any,
    image_size: int,
    offload_video_to_cpu: bool = True,
    *,
    async_loading_frames: bool = False,
    compute_device: Any = None,
) -> tuple[FrameTensors, int, int]:
    """Opens a video.

    Args:
        video_path: As in ``SAM2VideoPredictor.init_state``.
        image_size: Side of the frames.
        offload_video_to_cpu: No difference: frames are read when they are indexed, and are on the CPU.
        async_loading_frames: No difference.
        compute_device: No difference.

    Returns:
        Frames, each (3, side, side) normalised; and the height and width of the video.
    """
    video = open_video(video_path)
    return FrameTensors(video, ImageProcessor(image_size)), *video.size_hw


def fill_holes_in_mask_scores(mask: Tensor, max_area: float) -> Tensor:
    """Fills holes of up to ``max_area`` pixels of logits (objects, 1, height, width)."""
    return clean_logits(mask, max_area, margin=HOLE_MARGIN)


def mask_to_box(masks: Tensor) -> Tensor:
    """(batch, 1, height, width) bool to (batch, 1, 4): first and last pixels."""
    return batched_mask_to_box(masks)


def concat_points(
    old_point_inputs: dict[str, Tensor] | None, new_points: Tensor, new_labels: Tensor
) -> dict[str, Tensor]:
    """Adds points (batch, points, 2) and labels (batch, points) to earlier ones."""
    if old_point_inputs is None:
        return {"point_coords": new_points, "point_labels": new_labels}
    return {
        "point_coords": torch.cat([old_point_inputs["point_coords"], new_points], dim=1),
        "point_labels": torch.cat([old_point_inputs["point_labels"], new_labels], dim=1),
    }
