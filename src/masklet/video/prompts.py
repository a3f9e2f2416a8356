"""Prompts for one object in one frame, as people give them -> tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.mask_prompts import check_frame_mask
from masklet.video.frame_prompts import check_clicks
from masklet.video.tracker import FramePrompt


def read_frame_prompt(
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    mask: Any = None,
    *,
    size_hw: SizeHW,
    input_hw: SizeHW,
    device: torch.device,
) -> FramePrompt:
    """Check a prompt, and move it to pixels of the network's input.

    Args:
        points: [(x, y), …] or [(x, y, label), …] in pixels of the video.
        labels: 1 on the object, 0 beside it.
        box: (x0, y0, x1, y1) in pixels of the video.
        mask: (height, width) of the video; alone it is taken as it is, with points or a box it is refined. A soft mask,
            see ``masklet.mask_prompts.mask_shares``, is cut at one half, and logits at 0.
        size_hw: Size of the video.
        input_hw: Size of the network's input.
        device: Where the tensors go.

    Raises:
        PromptError: The prompt makes no sense.
    """
    resized = None if mask is None else _resized_mask(mask, size_hw, input_hw).to(device)
    if resized is not None and points is None and labels is None and box is None:
        return FramePrompt(mask=resized)
    clicks = check_clicks(points, labels, box, size_hw=size_hw, input_hw=input_hw)
    points, labels = (torch.from_numpy(values).to(device) for values in clicks)
    return FramePrompt(points, labels, resized)


def _resized_mask(mask: Any, size_hw: SizeHW, input_hw: SizeHW) -> Tensor:
    """(height, width) bool at the network's input, on the CPU: not every device has antialiasing."""
    inside = torch.from_numpy(check_frame_mask(mask, size_hw))
    share = F.interpolate(inside[None, None].float(), size=input_hw, mode="bilinear", antialias=True)
    return share[0, 0] >= 0.5
