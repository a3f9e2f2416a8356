"""All masks of an image: prompts the model with a grid of points, then keeps confident, stable and distinct masks.

Source: SAM (arXiv 2304.02643), section 5 and appendix B, "automatic mask generation details".
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.engine import ConfidentMasks, Engine
from masklet.everything.assembly import assemble
from masklet.everything.filters import Candidates, distinct_in_crop, is_cut, joined, stable_masks
from masklet.everything.grid import Crop, make_crops, points_in_layer
from masklet.everything.options import EverythingOptions
from masklet.mask_prompts import MASK_PROMPT_LOGIT
from masklet.masks import upscale_logits
from masklet.model.neck import Features
from masklet.model.prompt_encoder import FOREGROUND, Prompts
from masklet.processing import ImageProcessor
from masklet.prompts import to_model_pixels
from masklet.results import Masks

POINT_BATCH = 64
"""Points decoded in one batch."""
REFINE_LOGIT = 32.0
"""Logits are clamped to this before they are prompted again, as in training."""


def everything(
    engine: Engine,
    image_processor: ImageProcessor,
    image: np.ndarray,
    options: EverythingOptions,
    *,
    features: Features | None = None,
    packed: bool = False,
) -> Masks:
    """Finds all masks of an image.

    Args:
        engine: Runs the network.
        image_processor: Prepares each crop for the network.
        image: (height, width, 3) uint8 RGB.
        options: Options of the grid and of the filters.
        features: Features of the whole image, if it is encoded already.
        packed: Whether masks are run lengths, without logits. Only one mask at a time is then held at the image's size.

    Returns:
        Masks from high to low predicted IoU, each with an object id of its own. There may be none.

    Raises:
        ImageError: The image is too small for the crops.

    Source: SAM, appendix B.
    """
    return find_masks(engine, image_processor, image, options, features=features, packed=packed)[0]


def find_masks(
    engine: Engine,
    image_processor: ImageProcessor,
    image: np.ndarray,
    options: EverythingOptions,
    *,
    features: Features | None = None,
    packed: bool = False,
) -> tuple[Masks, Candidates, list[Crop]]:
    """As ``everything``, and what the masks were made of: their candidates, and the crops that these point to."""
    size_hw = (image.shape[0], image.shape[1])
    crops = make_crops(size_hw, options)
    found = find_candidates(engine, image_processor, image, crops, options, features)
    logits = None if packed else image_logits(found, crops, size_hw)
    masks, kept = assemble(found, crops, image, options, inside=_inside, logits=logits)
    return masks, kept, crops


@torch.inference_mode()
def find_candidates(
    engine: Engine,
    image_processor: ImageProcessor,
    image: np.ndarray,
    crops: list[Crop],
    options: EverythingOptions,
    features: Features | None = None,
) -> Candidates:
    """The masks of all crops that pass the filters, from high to low predicted IoU, see ``everything``."""
    parts = []
    for index, crop in enumerate(crops):
        encoded = features if crop.layer == 0 else None
        if encoded is None:
            encoded = engine.encode(image_processor.pixel_values(np.ascontiguousarray(image[crop.place])))
        size_hw = (image.shape[0], image.shape[1])
        parts.append(find_in_crop(engine, encoded, image_processor.input_hw, size_hw, crop, index, options))
    return joined(parts, crops, options)


def find_in_crop(
    engine: Engine,
    features: Features,
    input_hw: SizeHW,
    size_hw: SizeHW,
    crop: Crop,
    index: int,
    options: EverythingOptions,
) -> Candidates:
    """The masks of one crop that are confident, stable, not cut by the crop, and distinct.

    Args:
        engine: Runs the network.
        features: Features of the crop.
        input_hw: Size of the network's input.
        size_hw: Size of the image.
        crop: Where it lies in the image.
        index: Index of the crop.
        options: Options of the grid and of the filters.
    """
    grid = torch.from_numpy(points_in_layer(options, crop.layer))
    grid_xy = grid * torch.tensor(crop.size_hw[::-1], device="cpu")
    points = to_model_pixels(grid_xy, size_hw=crop.size_hw, input_hw=input_hw).to(engine.device)
    parts = []
    for batch_xy, batch in zip(grid_xy.split(POINT_BATCH), points.split(POINT_BATCH), strict=True):
        confident = decode_points(engine, features, batch, options)
        stable, boxes, stability = stable_masks(confident.logits, crop.size_hw, options)
        boxes = boxes + crop.offset_xyxy
        is_whole = ~is_cut(boxes, crop, size_hw)
        kept = stable[torch.from_numpy(is_whole)]
        parts.append(
            Candidates(
                confident.logits[kept.to(engine.device)],
                confident.iou_scores.cpu()[kept].numpy(),
                boxes[is_whole],
                np.full(len(kept), index),
                stability[is_whole],
                np.float32(crop.offset_xyxy[:2]) + batch_xy[confident.objects.cpu()[kept]].numpy(),
            )
        )
    return distinct_in_crop(Candidates.concatenate(parts), options)


def decode_points(engine: Engine, features: Features, points: Tensor, options: EverythingOptions) -> ConfidentMasks:
    """Decodes each point to the candidates whose predicted IoU is high.

    Args:
        engine: Runs the network.
        features: Features of one image.
        points: (points, 2), x and y in pixels of the network's input.
        options: The threshold, and whether to refine.

    Returns:
        Logits, relative to the options' threshold, and predicted IoU, in float32; objects are indices of ``points``.
    """
    points = points[None, :, None]  # (1, objects, points, 2)
    labels = torch.full(points.shape[:3], FOREGROUND, device=points.device)
    prompts = Prompts(points, labels)
    if not options.candidates and not options.refine:
        confident = decode_chosen(engine, features, prompts, options)
    elif not options.refine:
        confident = engine.decode_confident(features, prompts, iou_threshold=options.iou_threshold)
    else:
        rough = engine.decode(features, prompts, multimask=options.candidates)
        parts = [
            decode_chosen(engine, features, Prompts(points, labels, masks=candidate), options)
            for candidate in rough.logits.clamp(-REFINE_LOGIT, REFINE_LOGIT).unbind(2)  # (1, objects, h, w)
        ]
        columns = [[getattr(part, field.name) for part in parts] for field in fields(ConfidentMasks)]
        confident = ConfidentMasks(*map(torch.cat, columns))
    return ConfidentMasks(
        confident.logits.float() - options.mask_threshold, confident.iou_scores.float(), confident.objects
    )


def decode_chosen(engine: Engine, features: Features, prompts: Prompts, options: EverythingOptions) -> ConfidentMasks:
    """Decodes each prompt to the one mask that the model chooses, if its predicted IoU is high."""
    chosen = engine.decode(features, prompts, multimask=False)
    is_confident = chosen.iou_scores > options.iou_threshold  # (1, objects, 1)
    objects = is_confident[0, :, 0].nonzero()[:, 0]
    return ConfidentMasks(chosen.logits[is_confident], chosen.iou_scores[is_confident], objects)


def _inside(logits: Tensor, size_hw: SizeHW) -> np.ndarray:
    """(height, width) bool: the mask of (h, w) logits."""
    return (upscale_logits(logits, size_hw) > 0).cpu().numpy()


def image_logits(candidates: Candidates, crops: list[Crop], size_hw: SizeHW) -> np.ndarray:
    """(masks, h, w) float32: logits on a grid over the whole image, certainly outside beyond each mask's crop."""
    placed = [
        logits if crops[index].layer == 0 else _spread(logits, crops[index], size_hw)
        for logits, index in zip(candidates.logits, candidates.crops, strict=True)
    ]
    return torch.stack(placed).cpu().numpy() if placed else np.empty(tuple(candidates.logits.shape), np.float32)


def _spread(logits: Tensor, crop: Crop, size_hw: SizeHW) -> Tensor:
    """(h, w) logits of a crop, resampled on a grid of the same shape over the whole image."""
    (height, width), (crop_h, crop_w) = size_hw, crop.size_hw
    # Positions of the image's cells in the crop, in -1 to 1 from edge to edge.
    to_crop = [
        [width / crop_w, 0, (width - 2 * crop.x0) / crop_w - 1],
        [0, height / crop_h, (height - 2 * crop.y0) / crop_h - 1],
    ]
    matrix = torch.tensor([to_crop], dtype=logits.dtype, device=logits.device)
    grid = F.affine_grid(matrix, [1, 1, *logits.shape], align_corners=False)
    is_inside = grid.abs().amax(-1)[0] <= 1
    moved = F.grid_sample(logits[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    return torch.where(is_inside, moved, -MASK_PROMPT_LOGIT)
