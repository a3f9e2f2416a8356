"""All masks of an image: a grid of clicks, and of what they give the sure, the stable and the distinct.

Source: SAM (arXiv 2304.02643), section 5 and appendix B, "automatic mask generation details".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from masklet.config import SizeHW
from masklet.engine import Engine
from masklet.errors import ConfigError, ImageError
from masklet.masks import box_nms, clean_masks, encode_rle, profile_boxes, stability_scores, upscale_logits
from masklet.model.neck import Features
from masklet.model.prompt_encoder import FOREGROUND, Prompts
from masklet.processing import Sam2ImageProcessor
from masklet.prompts import MASK_PROMPT_LOGIT, to_model_pixels
from masklet.results import Masks

POINTS_AT_ONCE = 64
"""Clicks decoded together."""
CPU_PIXELS, PIXELS = 2**21, 2**26
"""Logits upscaled together: on a CPU about as many as its caches hold, elsewhere as many as keep it busy."""
ROUGH_MARGIN, ROUGH_CELLS = 0.1, 200
"""By how much stability may differ between low-resolution logits and the image's size, for masks of so many cells.
On images it was 0.05 at most."""
EDGE_PX = 20
"""A box is cut by its crop if it comes this near to the crop's edge."""
REFINE_LOGIT = 32.0
"""Logits that are fed back are clamped to this, as the network was trained."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look for. The knobs of the reference's generator, with its meanings and defaults."""

    points_per_side: int = 32
    """Clicks along each side of the image; every click gives three candidates."""
    crops: int = 0
    """Layers of crops that are looked at beside the whole image: layer n has 2**n by 2**n of them."""
    crop_overlap: float = 512 / 1500
    """Share of the image's shorter side by which the crops of the first layer overlap; half of it in the next …"""
    crop_points_divisor: int = 1
    """Layer n has ``points_per_side / divisor**n`` clicks along each side of a crop."""
    iou_threshold: float = 0.8
    """What the predicted IoU of a mask must be above."""
    stability_threshold: float = 0.95
    """What a mask's stability score must reach, see ``masklet.masks.stability_scores``."""
    stability_offset: float = 1.0
    """In logits, for the stability score."""
    box_nms: float = 0.7
    """Of masks of one crop whose boxes have a higher IoU the best stays; from 1 on, all stay."""
    crop_nms: float = 0.7
    """The same between crops, where that of the smaller crop stays."""
    min_area: int = 0
    """Holes and islands of fewer pixels are removed, and what becomes a duplicate by that."""
    refine: bool = False
    """Every candidate is fed back to the network once, with its click, before any is judged. Four times the work."""

    def __post_init__(self) -> None:
        for name, least in (("points_per_side", 1), ("crops", 0), ("crop_points_divisor", 1), ("min_area", 0)):
            check_whole(name, getattr(self, name), least)
        for name, most in (
            ("crop_overlap", 1),
            ("iou_threshold", 1),
            ("stability_threshold", 1),
            ("stability_offset", math.inf),
            ("box_nms", math.inf),
            ("crop_nms", math.inf),
        ):
            check_number(name, getattr(self, name), most)
        if not isinstance(self.refine, bool | np.bool_):  # text that says false would be true
            raise ConfigError(f"refine is {self.refine!r}: expected True or False")
        if not self.points_in(self.crops):
            raise ConfigError(
                f"points_per_side {self.points_per_side} leaves no click for a crop of layer {self.crops}, which has "
                f"{self.points_per_side} / {self.crop_points_divisor}**{self.crops}: expected more, or fewer crops"
            )

    def points_in(self, layer: int) -> int:
        """Clicks along each side of a crop."""
        return self.points_per_side // self.crop_points_divisor**layer


def read_options(given: Mapping[str, Any], *others: str) -> Options:
    """Options by name; ``others`` are what else the caller takes.

    Raises:
        ConfigError: There is no such option, or it makes no sense.
    """
    known = [field.name for field in fields(Options)]
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"there is no option {unknown[0]}: expected {', '.join([*others, *known])}")
    return Options(**given)


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse anything but a whole number that is at least so large."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}: expected a whole number, {least} or more")


def check_number(name: str, value: Any, most: float) -> None:
    """Refuse anything but a number from 0 to ``most``, which is 1 or infinite."""
    if not isinstance(value, int | float | np.number) or not 0 <= value <= most:
        raise ConfigError(f"{name} is {value!r}: expected a number, 0 {'or more' if most > 1 else 'to 1'}")


@dataclass(frozen=True)
class Crop:
    """A window of the image that is looked at by itself."""

    layer: int
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size_hw(self) -> SizeHW:
        """In pixels of the image."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Masks that may stay, before they are drawn at the image's size."""

    logits: Tensor  # (masks, h, w) float32, of the crop
    iou_scores: np.ndarray  # (masks,) float32
    boxes: np.ndarray  # (masks, 4) float32: x0 y0 x1 y1, edges in pixels of the image
    crops: np.ndarray  # (masks,) int: which crop

    def __len__(self) -> int:
        return len(self.iou_scores)

    def __getitem__(self, chosen: np.ndarray) -> Candidates:
        """Those with these numbers."""
        logits = self.logits[torch.from_numpy(chosen).to(self.logits.device)]
        return Candidates(logits, self.iou_scores[chosen], self.boxes[chosen], self.crops[chosen])

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """All of several."""
        return cls(
            torch.cat([part.logits for part in parts]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("iou_scores", "boxes", "crops")),
        )


def everything(engine: Engine, image_processor: Sam2ImageProcessor, image: np.ndarray, options: Options) -> Masks:
    """All masks of an image, from high to low scores; an object of its own each.

    Args:
        engine: Runs the network.
        image_processor: Makes the network's input of each crop.
        image: (height, width, 3) uint8 RGB.
        options: What to look for.

    Returns:
        Masks, maybe none.

    Raises:
        ImageError: The image is too small for so many crops.

    Source: SAM, appendix B.
    """
    crops = make_crops((image.shape[0], image.shape[1]), options)
    found = find(engine, image_processor, image, crops, options)
    masks, is_as_found = np.empty((len(found), *image.shape[:2]), bool), np.empty(len(found), bool)
    for i, (mask, untouched) in enumerate(draw(found, crops, image.shape[:2], options)):
        masks[i], is_as_found[i] = mask, untouched
    logits = in_image(found, crops, image.shape[:2])
    drawn = Masks(masks, logits, found.iou_scores, np.arange(len(found)), image)
    if is_as_found.all():
        return drawn
    distinct = drawn[still_distinct(drawn.boxes, is_as_found, options)]
    return replace(distinct, object_ids=np.arange(len(distinct)))


def everything_packed(
    engine: Engine,
    image_processor: Sam2ImageProcessor,
    image: np.ndarray,
    options: Options,
    features: Features | None = None,
) -> Masks:
    """As ``everything``, but packed, with one mask at a time in memory, and without the image.

    Args:
        engine: Runs the network.
        image_processor: Makes the network's input of each crop.
        image: (height, width, 3) uint8 RGB.
        options: What to look for.
        features: Of the whole image, if it is encoded.
    """
    size_hw = (image.shape[0], image.shape[1])
    crops = make_crops(size_hw, options)
    found = find(engine, image_processor, image, crops, options, features)
    runs, is_as_found = [], np.empty(len(found), bool)
    for i, (mask, untouched) in enumerate(draw(found, crops, size_hw, options)):
        runs += encode_rle(mask[None])
        is_as_found[i] = untouched
    drawn = Masks.from_rle(runs, size_hw, found.iou_scores, np.arange(len(runs)))
    if is_as_found.all():
        return drawn
    distinct = drawn[still_distinct(drawn.boxes, is_as_found, options)]
    return replace(distinct, object_ids=np.arange(len(distinct)))


def make_crops(size_hw: SizeHW, options: Options) -> list[Crop]:
    """The image itself, then layer by layer the crops, which overlap.

    Raises:
        ImageError: The image has too few pixels for them.
    """
    height, width = size_hw
    crops = [Crop(0, 0, 0, width, height)]
    for layer in range(1, options.crops + 1):
        count = 2**layer
        overlap = int(options.crop_overlap * min(size_hw) * 2 / count)
        crop_h, crop_w = (math.ceil((overlap * (count - 1) + side) / count) for side in size_hw)
        for column, row in product(range(count), range(count)):
            x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
            crops.append(Crop(layer, x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)))
    if any(min(crop.size_hw) < 1 for crop in crops):
        raise ImageError(
            f"an image of {width}×{height} pixels cannot be cut into {2**options.crops} by {2**options.crops} crops: "
            f"expected fewer layers than crops={options.crops}, or a larger image"
        )
    return crops


@torch.inference_mode()
def find(
    engine: Engine,
    image_processor: Sam2ImageProcessor,
    image: np.ndarray,
    crops: list[Crop],
    options: Options,
    features: Features | None = None,
) -> Candidates:
    """What stays of all crops, from high to low scores; ``features`` are those of the whole image, if it is encoded."""
    found = Candidates.joined(
        [
            find_in_crop(engine, image_processor, image, crops, index, options, None if index else features)
            for index in range(len(crops))
        ]
    )
    if len(crops) > 1:
        areas = np.array([math.prod(crop.size_hw) for crop in crops])
        found = found[box_nms(_pixel_boxes(found.boxes), -areas[found.crops], options.crop_nms)]
    return found[np.argsort(-found.iou_scores, kind="stable")]


def find_in_crop(
    engine: Engine,
    image_processor: Sam2ImageProcessor,
    image: np.ndarray,
    crops: list[Crop],
    index: int,
    options: Options,
    features: Features | None,
) -> Candidates:
    """The sure, stable, uncut and distinct masks of one crop."""
    crop = crops[index]
    if features is None:
        pixels = np.ascontiguousarray(image[crop.y0 : crop.y1, crop.x0 : crop.x1])
        features = engine.encode(image_processor.pixel_values(pixels))
    grid_xy = make_grid(options.points_in(crop.layer)) * torch.tensor(crop.size_hw[::-1])
    points = to_model_pixels(grid_xy, size_hw=crop.size_hw, input_hw=image_processor.input_hw).to(engine.device)
    parts = []
    for some in points.split(POINTS_AT_ONCE):
        logits, scores = decode(engine, features, some, options)
        stable, boxes = judge(logits, crop.size_hw, options)
        boxes = boxes + np.array([crop.x0, crop.y0, crop.x0, crop.y0], np.float32)
        is_whole = ~is_cut(boxes, crop, (image.shape[0], image.shape[1]))
        kept = stable[torch.from_numpy(is_whole)]
        scores_here = scores.cpu()[kept].numpy()
        crops_here = np.full(len(kept), index)
        parts.append(Candidates(logits[kept.to(logits.device)], scores_here, boxes[is_whole], crops_here))
    found = Candidates.joined(parts)
    return found[box_nms(_pixel_boxes(found.boxes), found.iou_scores, options.box_nms)]


def make_grid(per_side: int) -> Tensor:
    """(per_side**2, 2), x then y, 0 to 1: the middles of equal cells, row by row."""
    middles = (torch.arange(per_side) + 0.5) / per_side
    return torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1).flatten(0, 1)


def decode(engine: Engine, features: Features, points: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Candidates for clicks (points, 2) on the network's input: (masks, h, w) logits and (masks,) predicted IoU."""
    clicks = points[None, :, None]  # (1, objects, points, 2)
    labels = torch.full(clicks.shape[:3], FOREGROUND, device=points.device)
    threshold = options.iou_threshold
    if not options.refine:
        found = engine.decode_confident(features, Prompts(clicks, labels), iou_threshold=threshold)
        return found.logits.float(), found.iou_scores.float()
    rough = engine.decode(features, Prompts(clicks, labels), multimask=True)
    logits, ious = [], []
    for candidate in rough.logits.clamp(-REFINE_LOGIT, REFINE_LOGIT).unbind(2):  # (1, objects, h, w)
        refined = engine.decode(features, Prompts(clicks, labels, masks=candidate), multimask=False)
        is_confident = refined.iou_scores > threshold  # (1, objects, 1)
        logits.append(refined.logits[is_confident].float())
        ious.append(refined.iou_scores[is_confident].float())
    return torch.cat(logits), torch.cat(ious)


def judge(logits: Tensor, size_hw: SizeHW, options: Options) -> tuple[Tensor, np.ndarray]:
    """The masks that are stable and not empty.

    The reference counts pixels of the crop's own size, and low-resolution logits cannot replace that: of a mask of a
    few hundred cells the border is a tenth, and its score moves by several hundredths; boxes that are a pixel off
    decide otherwise, too. So low-resolution logits drop what is far from stable, most of all, and only the rest
    is upscaled and decided to the pixel.

    Args:
        logits: (masks, h, w).
        size_hw: Of the crop.
        options: For the stability score.

    Returns:
        (kept,) int64 numbers of masks, and (kept, 4) float32: x0 y0 x1 y1, edges in pixels of the crop.
    """
    offset, threshold = options.stability_offset, options.stability_threshold
    left = torch.arange(len(logits), device=logits.device)
    if size_hw[0] >= logits.shape[-2] and size_hw[1] >= logits.shape[-1]:
        cells = (logits > -offset).sum(-1, dtype=torch.int32).sum(-1)
        is_hopeless = stability_scores(logits, offset=offset) < threshold - ROUGH_MARGIN
        left = left[~is_hopeless | (cells < ROUGH_CELLS)]
    scores, columns, rows = [], [], []
    budget = CPU_PIXELS if logits.device.type == "cpu" else PIXELS
    for some in left.split(max(1, budget // math.prod(size_hw))):
        upscaled = upscale_logits(logits[some], size_hw)
        scores.append(stability_scores(upscaled, offset=offset))
        columns.append(upscaled.amax(-2) > 0)
        rows.append(upscaled.amax(-1) > 0)
    boxes = profile_boxes(torch.cat(columns).cpu().numpy(), torch.cat(rows).cpu().numpy())
    is_kept = (torch.cat(scores) >= threshold).cpu() & torch.from_numpy(boxes[:, 2] > 0)
    return left.cpu()[is_kept], boxes[is_kept.numpy()]


def is_cut(boxes: np.ndarray, crop: Crop, size_hw: SizeHW) -> np.ndarray:
    """(masks,) bool: boxes (masks, 4) that come near to an edge of the crop which is none of the image's."""
    boxes = _pixel_boxes(boxes)
    near_crop = np.abs(boxes - np.array([crop.x0, crop.y0, crop.x1, crop.y1])) <= EDGE_PX
    near_image = np.abs(boxes - np.array([0, 0, size_hw[1], size_hw[0]])) <= EDGE_PX
    return (near_crop & ~near_image).any(1)


def _pixel_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes from their first to their last pixel, as the reference counts them where it compares boxes."""
    return boxes - np.array([0, 0, 1, 1], np.float32)


def draw(
    found: Candidates, crops: list[Crop], size_hw: tuple[int, ...], options: Options
) -> Iterator[tuple[np.ndarray, bool]]:
    """Each mask as (height, width) bool of the image, cleaned, and whether it is as it was before that."""
    for logits, index in zip(found.logits, found.crops, strict=True):
        crop = crops[index]
        mask = np.zeros(size_hw, bool)
        mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = (upscale_logits(logits, crop.size_hw) > 0).cpu().numpy()
        if not options.min_area:
            yield mask, True
            continue
        least = options.min_area
        (cleaned,) = clean_masks(mask[None], fill_holes=least, remove_islands=least, hole_connectivity=8)
        yield cleaned, np.array_equal(cleaned, mask)


def still_distinct(boxes: np.ndarray, is_as_found: np.ndarray, options: Options) -> np.ndarray:
    """Which masks stay after the cleaning, (kept,) int in their order: untouched ones before those that changed."""
    kept = box_nms(_pixel_boxes(boxes), is_as_found.astype(np.float32), max(options.box_nms, options.crop_nms))
    return np.sort(kept)


def in_image(found: Candidates, crops: list[Crop], size_hw: tuple[int, ...]) -> np.ndarray:
    """(masks, h, w) float32: logits on a grid over the whole image, surely outside beyond the crop they are of."""
    placed = []
    height, width = size_hw
    for logits, index in zip(found.logits, found.crops, strict=True):
        crop = crops[index]
        if crop.layer > 0:
            # Where the cells of the image lie in the crop, in -1 to 1 from edge to edge.
            crop_h, crop_w = crop.size_hw
            to_crop = [
                [width / crop_w, 0, (width - 2 * crop.x0) / crop_w - 1],
                [0, height / crop_h, (height - 2 * crop.y0) / crop_h - 1],
            ]
            grid = F.affine_grid(
                torch.tensor([to_crop], device=logits.device), [1, 1, *logits.shape], align_corners=False
            )
            inside = grid.abs().amax(-1)[0] <= 1
            moved = F.grid_sample(logits[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
            logits = torch.where(inside, moved, -MASK_PROMPT_LOGIT)
        placed.append(logits.cpu().numpy())
    return np.stack(placed) if placed else np.empty(tuple(found.logits.shape), np.float32)
