"""SAM2AutomaticMaskGenerator: all masks of an image as a list of dicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.utils.amg import coco_encode_rle, mask_to_rle
from masklet.compat.sam2.utils.transforms import rgb_pixels
from masklet.errors import ConfigError
from masklet.everything.generator import find_masks
from masklet.everything.options import EverythingOptions

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class SAM2AutomaticMaskGenerator:
    """Finds all masks of an image. Meta's parameters; those of ``Segmenter.everything`` are behind them.

    Args:
        model: From ``build_sam2``.
        points_per_side: Points along each side of the image; None with ``point_grids``.
        points_per_batch: Makes no difference: batches have the size that suits the processor.
        pred_iou_thresh: Masks with a higher predicted IoU are kept.
        stability_score_thresh: Masks with at least this stability score are kept.
        stability_score_offset: Offset of the stability score, in logits.
        mask_threshold: A mask has the pixels whose logit is above this.
        box_nms_thresh: Of two masks whose boxes have a higher IoU, the better one is kept.
        crop_n_layers: Layers of crops that are searched besides the image.
        crop_nms_thresh: As ``box_nms_thresh``, between crops.
        crop_overlap_ratio: Overlap of the crops, as a share of the image's shorter side.
        crop_n_points_downscale_factor: Layer n has points / factor ** n along a side.
        point_grids: For each layer of crops, the whole image first, (points, 2) x and y from 0 to 1.
        min_mask_region_area: Holes and islands with fewer pixels are removed.
        output_mode: ``"binary_mask"``, ``"uncompressed_rle"`` or ``"coco_rle"``.
        use_m2m: Whether each candidate is prompted to the network once more.
        multimask_output: Whether each point gives three candidates, or one mask.
        kwargs: Refused by name.

    Raises:
        ConfigError: A value is invalid, or not among those above.
    """

    def __init__(
        self,
        model: SAM2Base,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        use_m2m: bool = False,
        multimask_output: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ConfigError(f"no argument {', '.join(kwargs)}: expected those of SAM2AutomaticMaskGenerator")
        if output_mode not in OUTPUT_MODES:
            raise ConfigError(f"output_mode is {output_mode!r}: expected one of {', '.join(OUTPUT_MODES)}")
        if (point_grids is None) == (points_per_side is None):
            raise ConfigError("expected either points_per_side or point_grids, and None for the other one")
        self.model = model
        self.points_per_batch = points_per_batch
        self.output_mode = output_mode
        self.options = EverythingOptions(
            **({} if points_per_side is None else {"points_per_side": points_per_side}),
            point_grids=point_grids,
            iou_threshold=pred_iou_thresh,
            stability_threshold=stability_score_thresh,
            stability_offset=stability_score_offset,
            box_nms=box_nms_thresh,
            crops=crop_n_layers,
            crop_nms=crop_nms_thresh,
            crop_overlap=crop_overlap_ratio,
            crop_points_divisor=crop_n_points_downscale_factor,
            min_area=min_mask_region_area,
            refine=use_m2m,
            candidates=multimask_output,
            mask_threshold=mask_threshold,
        )

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2AutomaticMaskGenerator:
        """A generator for a Hub repository, a model folder, or any name that ``masklet.load`` takes.

        Args:
            model_id: Its name.
            kwargs: Arguments of this class.
        """
        from masklet.compat.sam2.build_sam import build_sam2_hf

        return cls(build_sam2_hf(model_id), **kwargs)

    def generate(self, image: Any) -> list[dict[str, Any]]:
        """Finds all masks.

        Args:
            image: (height, width, 3) uint8 RGB, or a PIL image.

        Returns:
            A dict for each mask: ``segmentation`` ((height, width) bool, or run lengths), ``area``, ``bbox`` [x, y,
            width, height] of the first and last pixels, ``predicted_iou``, ``point_coords`` [[x, y]],
            ``stability_score``, and ``crop_box`` [x, y, width, height].

        Raises:
            ImageError: It is not an image.
        """
        pixels = rgb_pixels(image)
        masks, found, crops = find_masks(
            self.model.engine,
            self.model.image_processor,
            pixels,
            self.options,
            packed=self.output_mode != "binary_mask",
        )
        columns = (masks, masks.areas.tolist(), masks.boxes.astype(int).tolist(), found.points.tolist())
        rows = []
        for i, (mask, area, (x0, y0, x1, y1), point) in enumerate(zip(*columns, strict=True)):
            crop = crops[found.crops[i]]
            rows.append(
                {
                    "segmentation": self._encoded(np.asarray(mask.masks[0])),
                    "area": area,
                    "bbox": [x0, y0, x1 - x0 - 1, y1 - y0 - 1],
                    "predicted_iou": float(found.iou_scores[i]),
                    "point_coords": [point],
                    "stability_score": float(found.stability_scores[i]),
                    "crop_box": [crop.x0, crop.y0, crop.x1 - crop.x0, crop.y1 - crop.y0],
                }
            )
        return rows

    def _encoded(self, mask: np.ndarray) -> Any:
        if self.output_mode == "binary_mask":
            return mask
        rle = mask_to_rle(mask)
        return rle if self.output_mode == "uncompressed_rle" else coco_encode_rle(rle)
