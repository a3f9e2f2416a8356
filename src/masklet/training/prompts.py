"""The user of the training: a first click or box, then clicks where the mask is wrong.

Source: SAM (arXiv 2304.02643), appendix A, "training algorithm".

Points are (x, y) in pixels of the network's input. Its masks are at a stride of 4, so a click falls anywhere in a cell;
boxes are told to the pixel.
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
BOX_NOISE, MAX_BOX_NOISE = 0.1, 20 / 1024
"""Standard deviation of a careless box's edges, as a share of its own sides, and its limit, as one of the image's."""
CARELESS_BOXES = 0.5
"""The others are exact."""

MIDDLE_CLICKS = 0.5
"""First clicks as far inside the object as one can; the others fall anywhere in it, as in the papers. People aim."""


@dataclass(frozen=True, kw_only=True)
class PromptRates:
    """How often objects are shown by a click, a box or a mask first; they are shares of their sum.

    The defaults are those of SAM, and of SAM 2's pre-training; on clips SAM 2 shows every second object by its mask.
    """

    click: float = 0.5
    box: float = 0.5
    mask: float = 0.0

    def __post_init__(self) -> None:
        if min(self.click, self.box, self.mask) < 0 or self.sum <= 0:
            raise ConfigError(f"prompts are {self}: expected shares >= 0, one of them above")

    @property
    def sum(self) -> float:
        """What they are shares of."""
        return self.click + self.box + self.mask

    @property
    def box_among_points(self) -> float:
        """Share of boxes among those that are shown by a click or a box."""
        return self.box / (self.click + self.box) if self.click + self.box else 1.0

    def is_mask(self, generator: torch.Generator) -> bool:
        """Draw whether to show a mask."""
        return float(torch.rand((), generator=generator)) * self.sum < self.mask


@dataclass(frozen=True)
class Clicks:
    """Prompts so far: boxes are two points with labels 2 and 3 that come first."""

    points: Tensor  # (batch, objects, points, 2)
    labels: Tensor  # (batch, objects, points)

    @property
    def is_one_click(self) -> Tensor:
        """(batch, objects) bool: a click and nothing else, which may mean a part of what it lies on."""
        return (self.labels == FOREGROUND).any(-1) & ((self.labels != PADDING).sum(-1) == 1)

    def and_then(self, other: Clicks) -> Clicks:
        """These, then the others."""
        return Clicks(torch.cat([self.points, other.points], 2), torch.cat([self.labels, other.labels], 2))


def coverage(targets: Tensor) -> Tensor:
    """(..., height, width) bool to (..., h, w): how much of each cell of the network's masks is object, 0 to 1."""
    return F.avg_pool2d(targets.flatten(0, -3).float(), MASK_STRIDE).unflatten(0, targets.shape[:-2])


def cells_of(targets: Tensor) -> Tensor:
    """(..., height, width) bool to (..., h, w) bool: the cells that are object by half or more."""
    return coverage(targets) >= 0.5


def first_prompt(targets: Tensor, generator: torch.Generator, *, boxes: float = 0.5) -> Clicks:
    """A click inside each object, or a box drawn carelessly around it.

    Args:
        targets: (batch, objects, height, width) bool, each fills a cell.
        generator: Decides; a CPU's, whatever the device of the targets, so that prompts do not depend on it.
        boxes: Share of boxes.
    """
    place, cells = targets.device, cells_of(targets)
    is_aimed = (torch.rand(targets.shape[:2], generator=generator) < MIDDLE_CLICKS).to(place)
    first = torch.where(is_aimed[..., None], _middles(cells), _random_points(cells, generator))
    click = torch.stack([first, torch.zeros_like(first)], 2)
    box = _noisy_boxes(targets, generator).unflatten(-1, (2, 2))
    is_box = (torch.rand(targets.shape[:2], generator=generator) < boxes).to(place)
    of_boxes, of_clicks = (torch.tensor(two, device=place) for two in ((TOP_LEFT, BOTTOM_RIGHT), (FOREGROUND, PADDING)))
    labels = torch.where(is_box[..., None], of_boxes, of_clicks)
    return Clicks(torch.where(is_box[..., None, None], box, click), labels)


def correction_click(predicted: Tensor, targets: Tensor, generator: torch.Generator) -> Clicks:
    """A click somewhere in the error region, foreground where the object was missed; in the object if nothing is wrong.

    Args:
        predicted: (batch, objects, h, w) bool.
        targets: (batch, objects, h, w) bool, none empty.
        generator: Decides.
    """
    errors = predicted ^ targets
    errors = torch.where(errors.any(-1).any(-1)[..., None, None], errors, targets)
    points = _random_points(errors, generator)
    cells = (points / MASK_STRIDE).long()
    flat = cells[..., 1] * targets.shape[-1] + cells[..., 0]
    is_object = targets.flatten(2).gather(2, flat[..., None])
    return Clicks(points[:, :, None], torch.where(is_object, FOREGROUND, BACKGROUND))


def boxes_as_clicks(targets: Tensor) -> Clicks:
    """Exact boxes around (batch, objects, height, width) masks, none empty."""
    points = boxes_of(targets).unflatten(-1, (2, 2))
    corners = torch.tensor((TOP_LEFT, BOTTOM_RIGHT), device=targets.device)
    return Clicks(points, corners.expand(points.shape[:3]))


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes around masks, (..., height, width) bool, none empty: (..., 4) as x0 y0 x1 y1, in pixels."""
    sides = []
    for is_filled in (masks.any(-2), masks.any(-1)):  # columns, then rows
        first = is_filled.float().argmax(-1)
        last = is_filled.shape[-1] - is_filled.flip(-1).float().argmax(-1)
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], -1).float()


def _noisy_boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    boxes = boxes_of(masks)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1).reshape(*boxes.shape[:-1], 2, 2)
    is_careless = torch.rand(boxes.shape[:-1], generator=generator) < CARELESS_BOXES
    noise = torch.randn(boxes.shape, generator=generator) * is_careless[..., None] * BOX_NOISE
    noise = noise.to(boxes.device) * sides.transpose(-1, -2).flatten(-2)
    height, width = masks.shape[-2:]
    image = torch.tensor([width, height, width, height], device=boxes.device)
    limit = MAX_BOX_NOISE * image
    return (boxes + noise.clamp(-limit, limit)).clamp(min=0).minimum(image)


def _middles(masks: Tensor) -> Tensor:
    """The places farthest from the border of each mask, (batch, objects, h, w) to (batch, objects, 2).

    Distances are counted in king's moves: as often as the mask can be eroded until nothing is left.
    """
    left, depth = masks.flatten(0, 1)[:, None].float(), torch.zeros((), device=masks.device)
    while left.any():
        depth = depth + left
        left = -F.max_pool2d(F.pad(-left, (1, 1, 1, 1)), 3, stride=1)  # beyond the image is outside
    cell, width = depth.flatten(1).argmax(1), masks.shape[-1]
    return ((torch.stack([cell % width, cell // width], -1) + 0.5) * MASK_STRIDE).unflatten(0, masks.shape[:2])


def _random_points(masks: Tensor, generator: torch.Generator) -> Tensor:
    """A uniformly random place inside each mask: (batch, objects, h, w) to (batch, objects, 2)."""
    width = masks.shape[-1]
    counts = masks.flatten(2).cumsum(-1)  # (batch, objects, h*w): cells of the mask up to each
    chosen = torch.rand(masks.shape[:2], generator=generator).to(masks.device) * counts[..., -1]
    rank = (chosen.long() + 1).minimum(counts[..., -1])
    cell = torch.searchsorted(counts, rank[..., None])  # the first that has so many
    within = torch.rand((*masks.shape[:2], 2), generator=generator).to(masks.device) * 0.999
    return (torch.cat([cell % width, cell // width], -1) + within) * MASK_STRIDE
