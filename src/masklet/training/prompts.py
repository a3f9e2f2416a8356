"""The simulated user: a first click or box, then clicks where the mask is wrong.

Source: SAM (arXiv 2304.02643), appendix A, "training algorithm".

Points are (x, y) in pixels of the network's input. The network's masks have a stride of 4 (one value for each cell of
4×4 pixels), so a click falls anywhere in a cell; boxes are exact to the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDES
from masklet.errors import ConfigError

MASK_STRIDE = STRIDES[0]
BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT, PADDING = 0, 1, 2, 3, -10
BOX_NOISE = 0.1
"""Standard deviation of a noisy box's edges, as a share of the box's sides."""
MAX_BOX_NOISE = 20 / 1024
"""Limit of that noise, as a share of the image's sides."""
NOISY_BOXES = 0.5
"""Share of boxes with noise; the others are exact."""
CENTRED_CLICKS = 0.5
"""Share of first clicks at the point farthest from the object's border, as people aim. The others fall anywhere in the
object, as in the papers."""


@dataclass(frozen=True, kw_only=True)
class PromptRates:
    """How often the first prompt of an object is a click, a box or a mask: shares of their sum.

    The defaults are those of SAM, and of SAM 2's pre-training. On clips, SAM 2 prompts every second object by its mask.
    """

    click: float = 0.5
    box: float = 0.5
    mask: float = 0.0

    def __post_init__(self) -> None:
        if min(self.click, self.box, self.mask) < 0 or self.sum <= 0:
            raise ConfigError(f"prompts are {self}: expected shares >= 0, at least one of them above 0")

    @property
    def sum(self) -> float:
        """The sum of the three rates."""
        return self.click + self.box + self.mask

    @property
    def box_share(self) -> float:
        """Share of boxes among clicks and boxes."""
        return self.box / (self.click + self.box) if self.click + self.box else 1.0

    def draws_mask(self, generator: torch.Generator) -> bool:
        """Draws at random whether to prompt by a mask."""
        return float(uniform((), generator)) * self.sum < self.mask


@dataclass(frozen=True)
class Clicks:
    """The prompts so far. A box is two points with labels 2 and 3, before any clicks."""

    points: Tensor  # (batch, objects, points, 2)
    labels: Tensor  # (batch, objects, points)

    @property
    def is_single_click(self) -> Tensor:
        """(batch, objects) bool: one foreground click and nothing else, a prompt that is ambiguous."""
        return (self.labels == FOREGROUND).any(-1) & ((self.labels != PADDING).sum(-1) == 1)

    def extended(self, other: Clicks) -> Clicks:
        """These prompts, then ``other``."""
        return Clicks(torch.cat([self.points, other.points], 2), torch.cat([self.labels, other.labels], 2))


def coverage(targets: Tensor) -> Tensor:
    """The share of each cell that an object covers: (..., height, width) bool to (..., h, w), 0 to 1."""
    return F.avg_pool2d(targets.flatten(0, -3).float(), MASK_STRIDE).unflatten(0, targets.shape[:-2])


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers from 0 to 1 in float32 on the generator's device, whatever torch's defaults are."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)


def covered_cells(targets: Tensor) -> Tensor:
    """The cells that an object covers by half or more: (..., height, width) bool to (..., h, w) bool."""
    return coverage(targets) >= 0.5


def first_prompt(targets: Tensor, generator: torch.Generator, *, box_share: float = 0.5) -> Clicks:
    """A click inside each object, or a box around it, with noise in half of the cases.

    Args:
        targets: (batch, objects, height, width) bool; each mask covers a cell.
        generator: Source of randomness. It is on the CPU whatever the device of ``targets``, so prompts do not depend
            on the device.
        box_share: Share of boxes.
    """
    first, box = first_clicks(targets, generator), noisy_boxes(targets, generator)
    click = torch.stack([first, torch.zeros_like(first)], 2)
    is_box = (uniform(targets.shape[:2], generator) < box_share).to(targets.device)
    box_labels, click_labels = (
        torch.tensor(pair, device=targets.device) for pair in ((TOP_LEFT, BOTTOM_RIGHT), (FOREGROUND, PADDING))
    )
    labels = torch.where(is_box[..., None], box_labels, click_labels)
    return Clicks(torch.where(is_box[..., None, None], box.unflatten(-1, (2, 2)), click), labels)


def first_clicks(targets: Tensor, generator: torch.Generator) -> Tensor:
    """A point in each object: the innermost in half of the cases, otherwise any. (batch, objects, 2); see above."""
    cells = covered_cells(targets)
    is_centred = (uniform(targets.shape[:2], generator) < CENTRED_CLICKS).to(targets.device)
    anywhere = _random_points(cells, uniform((*targets.shape[:2], 3), generator).to(targets.device))
    return torch.where(is_centred[..., None], innermost_points(cells), anywhere)


def correction_click(predicted: Tensor, targets: Tensor, draws: Tensor) -> Clicks:
    """A click at a random place where the prediction is wrong: foreground where the object was missed.

    If the prediction is right everywhere, the click falls inside the object.

    Args:
        predicted: (batch, objects, h, w) bool.
        targets: (batch, objects, h, w) bool. Where both are empty, the click is meaningless.
        draws: (batch, objects, 3) random numbers from 0 to 1: which cell, and where in it.
    """
    errors = predicted ^ targets
    errors = torch.where(errors.any(-1).any(-1)[..., None, None], errors, targets)
    points = _random_points(errors, draws.to(errors.device))
    cells = (points / MASK_STRIDE).long()
    flat = cells[..., 1] * targets.shape[-1] + cells[..., 0]
    is_object = targets.flatten(2).gather(2, flat[..., None])
    return Clicks(points[:, :, None], torch.where(is_object, FOREGROUND, BACKGROUND))


def box_prompts(targets: Tensor) -> Clicks:
    """Exact boxes around (batch, objects, height, width) masks, none empty."""
    points = boxes_around(targets).unflatten(-1, (2, 2))
    corners = torch.tensor((TOP_LEFT, BOTTOM_RIGHT), device=targets.device)
    return Clicks(points, corners.expand(points.shape[:3]))


def boxes_around(masks: Tensor) -> Tensor:
    """Boxes around (..., height, width) bool masks, none empty: (..., 4) as x0 y0 x1 y1, in pixels."""
    sides = []
    for is_filled in (masks.any(-2), masks.any(-1)):  # columns, then rows
        first = is_filled.float().argmax(-1)
        last = is_filled.shape[-1] - is_filled.flip(-1).float().argmax(-1)
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], -1).float()


def noisy_boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Boxes around (batch, objects, height, width) masks, half of them with noise: (batch, objects, 4)."""
    boxes = boxes_around(masks)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1).reshape(*boxes.shape[:-1], 2, 2)
    is_noisy = uniform(boxes.shape[:-1], generator) < NOISY_BOXES
    noise = torch.randn(boxes.shape, generator=generator, dtype=torch.float32, device=generator.device)
    noise = (noise * is_noisy[..., None] * BOX_NOISE).to(boxes.device) * sides.transpose(-1, -2).flatten(-2)
    height, width = masks.shape[-2:]
    image_xyxy = torch.tensor([width, height, width, height], device=boxes.device)
    limit = MAX_BOX_NOISE * image_xyxy
    return (boxes + noise.clamp(-limit, limit)).clamp(min=0).minimum(image_xyxy)


def innermost_points(masks: Tensor) -> Tensor:
    """The point of each mask that is farthest from its border: (batch, objects, h, w) to (batch, objects, 2).

    The distance is the number of times that the mask can be eroded by a 3×3 square before nothing is left there. That
    many erosions are one by a larger square, so the largest number is found in its binary digits, without asking the
    device after each erosion whether anything is left.
    """
    left = masks.flatten(0, 1)[:, None].float()
    reach = 1 << max(min(masks.shape[-2:]) // 2, 1).bit_length()
    while reach := reach // 2:
        eroded = _eroded(left, reach)
        left = torch.where(eroded.flatten(1).any(1)[:, None, None, None], eroded, left)
    cell, width = left.flatten(1).argmax(1), masks.shape[-1]
    return ((torch.stack([cell % width, cell // width], -1) + 0.5) * MASK_STRIDE).unflatten(0, masks.shape[:2])


def _eroded(masks: Tensor, reach: int) -> Tensor:
    """(masks, 1, h, w) without the cells within ``reach`` cells of the background, or of the image's border."""
    padded = F.pad(-masks, (reach,) * 4)  # outside the image is background
    rows = F.max_pool2d(padded, (1, 2 * reach + 1), stride=1)
    return -F.max_pool2d(rows, (2 * reach + 1, 1), stride=1)


def _random_points(masks: Tensor, draws: Tensor) -> Tensor:
    """A uniformly random point inside each mask: (batch, objects, h, w) to (batch, objects, 2).

    Args:
        masks: bool.
        draws: (batch, objects, 3) random numbers from 0 to 1, on the same device.
    """
    width = masks.shape[-1]
    counts = masks.flatten(2).cumsum(-1)  # (batch, objects, h*w): number of mask cells up to each cell
    rank = ((draws[..., 0] * counts[..., -1]).long() + 1).minimum(counts[..., -1])
    cell = torch.searchsorted(counts, rank[..., None])  # the first cell with that count
    return (torch.cat([cell % width, cell // width], -1) + draws[..., 1:] * 0.999) * MASK_STRIDE
