"""SAM2ImagePredictor: encode an image once, prompt it often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.prompts import read_corners, read_labels, read_numbers, read_points
from masklet.compat.sam2.utils.transforms import SAM2Transforms, rgb_pixels
from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.model.neck import Features
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, Prompts

LOGIT_LIMIT = 32.0
"""Low-resolution logits are clamped to this, as they are to be prompted again."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Prompt = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Masks, points, labels and boxes, as ``_prep_prompts`` returns them."""


class SAM2ImagePredictor:
    """Segments prompted objects of an image, or of a batch of images.

    Args:
        sam_model: From ``build_sam2``.
        mask_threshold: Logit above which a pixel is inside.
        max_hole_area: Holes of low-resolution masks of up to so many pixels are filled.
        max_sprinkle_area: Islands of up to so many pixels are removed.
        kwargs: Ignored, as in Meta's class.
    """

    def __init__(
        self,
        sam_model: SAM2Base,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._transforms = SAM2Transforms(
            sam_model.image_size, mask_threshold, max_hole_area, max_sprinkle_area, sam_model.image_processor
        )
        side = sam_model.image_size
        self._bb_feat_sizes = [(side // stride, side // stride) for stride in STRIDES]
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """A predictor for a Hub repository, a model folder, or any name that ``masklet.load`` takes.

        Args:
            model_id: Its name.
            kwargs: Arguments of ``build_sam2``.
        """
        from masklet.compat.sam2.build_sam import build_sam2_hf

        return cls(build_sam2_hf(model_id, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.model.device

    def reset_predictor(self) -> None:
        """Forgets the image."""
        self._is_image_set = False
        self._is_batch = False
        self._features: dict[str, Any] | None = None
        self._orig_hw: list[SizeHW] | None = None

    def set_image(self, image: Any) -> None:
        """Encodes an image.

        Args:
            image: (height, width, 3) uint8 RGB, or a PIL image. EXIF orientation is not applied.

        Raises:
            ImageError: It is not an image.
        """
        self._encode([image])

    def set_image_batch(self, image_list: Sequence[Any]) -> None:
        """Encodes several images, for ``predict_batch``."""
        self._encode(image_list)
        self._is_batch = True

    @torch.no_grad()
    def _encode(self, images: Sequence[Any]) -> None:
        self.reset_predictor()
        pixels = [rgb_pixels(image) for image in images]
        encoded = self.model.engine.encode(self._transforms.forward_batch(pixels))
        self._orig_hw = [(one.shape[0], one.shape[1]) for one in pixels]
        self._features = {
            "image_embed": self.model.network.without_memory(encoded.stride16),
            "high_res_feats": [encoded.stride4, encoded.stride8],
        }
        self._is_image_set = True

    def get_image_embedding(self) -> Tensor:
        """(batch, dim, h, w): the embedding of the image."""
        self._check_is_set()
        assert self._features is not None
        embedding: Tensor = self._features["image_embed"]
        return embedding

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> Arrays:
        """Segments one object, or several: those of N boxes, or of N lists of points.

        Args:
            point_coords: (points, 2) or (objects, points, 2), x right and y down, in pixels of the image.
            point_labels: (points,) or (objects, points): 1 on the object, 0 beside it.
            box: (4,) or (objects, 4), x0 y0 x1 y1.
            mask_input: (1, h, w) or (objects, 1, h, w) logits of an earlier prediction.
            multimask_output: Three candidates, or one mask.
            return_logits: Whether masks are logits.
            normalize_coords: False if coordinates are from 0 to 1.

        Returns:
            Masks (masks, height, width) float32, 0 and 1, or logits; predicted IoU (masks,); and low-resolution logits
            (masks, h, w). With several objects, each has one more axis in front.

        Raises:
            RuntimeError: No image is set.
        """
        self._check_is_set()
        prompt = self._prep_prompts(point_coords, point_labels, box, mask_input, normalize_coords)
        return self._predict_arrays(prompt, multimask_output, return_logits, 0)

    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """As ``predict`` for each image of ``set_image_batch``; arguments and results are lists, one entry an image."""
        self._check_is_set()
        assert self._orig_hw is not None
        if not self._is_batch:
            raise RuntimeError("set_image was called: expected set_image_batch before predict_batch")
        results: list[Arrays] = []
        for index in range(len(self._orig_hw)):
            points, labels, box, mask = (
                None if batch is None else batch[index]
                for batch in (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
            )
            prompt = self._prep_prompts(points, labels, box, mask, normalize_coords, index)
            results.append(self._predict_arrays(prompt, multimask_output, return_logits, index))
        masks, iou_scores, logits = zip(*results, strict=True)
        return list(masks), list(iou_scores), list(logits)

    def _predict_arrays(self, prompt: Prompt, multimask_output: bool, return_logits: bool, index: int) -> Arrays:
        mask, points, labels, boxes = prompt
        masks, iou_scores, logits = self._predict(
            points, labels, boxes, mask, multimask_output, return_logits=return_logits, img_idx=index
        )
        outputs = (masks.float(), iou_scores.float(), logits.float())
        arrays = [output.detach().cpu().numpy() for output in outputs]
        first, second, third = (array.squeeze(0) if len(array) == 1 else array for array in arrays)
        return first, second, third

    def _prep_prompts(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_logits: Any,
        normalize_coords: bool,
        img_idx: int = -1,
    ) -> Prompt:
        """Masks (objects, 1, h, w), points (objects, points, 2), labels and boxes (objects, 2, 2) in model pixels."""
        assert self._orig_hw is not None
        size_hw = self._orig_hw[img_idx]
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None:
                raise PromptError("point_coords came without point_labels: expected one label for each point")
            coords = read_points("point_coords", point_coords, self.device)
            points = self._transforms.transform_coords(coords, normalize_coords, size_hw)
            labels = read_labels("point_labels", point_labels, coords)
            if points.ndim == 2:
                points, labels = points[None], labels[None]
        if box is not None:
            corners = read_corners("box", box, self.device)
            boxes = self._transforms.transform_boxes(corners, normalize_coords, size_hw)
        if mask_logits is not None:
            masks = read_numbers("mask_input", mask_logits, torch.float32, self.device)
            masks = masks[None] if masks.ndim == 3 else masks
            if masks.ndim != 4 or masks.shape[1] != 1:
                raise PromptError(
                    f"mask_input of shape {tuple(masks.shape)}: expected (1, h, w) or (objects, 1, h, w) logits"
                )
        return masks, points, labels, boxes

    @torch.no_grad()
    def _predict(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        img_idx: int = -1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``predict``, for tensors in pixels of the network's input, as ``_prep_prompts`` returns them.

        Returns:
            (objects, masks, height, width) bool or logits, (objects, masks), and (objects, masks, h, w).
        """
        self._check_is_set()
        assert self._features is not None
        assert self._orig_hw is not None
        image = self._features["image_embed"][img_idx][None]
        fine = [level[img_idx][None] for level in self._features["high_res_feats"]]
        decoded = self.model.engine.decode(
            Features(fine[0], fine[1], image),
            _joined(point_coords, point_labels, boxes, mask_input),
            multimask=multimask_output,
            conditioned=image,
        )
        logits, iou_scores = decoded.logits[0].float(), decoded.iou_scores[0]
        masks = self._transforms.postprocess_masks(logits, self._orig_hw[img_idx])
        return (
            masks if return_logits else masks > self.mask_threshold,
            iou_scores,
            logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
        )

    def _check_is_set(self) -> None:
        if not self._is_image_set:
            raise RuntimeError("no image is set: call set_image(image) first")


def _joined(points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None) -> Prompts | None:
    """Corners of boxes and points of each object, (1, objects, ...), boxes first."""
    if boxes is not None:
        corners = boxes.reshape(-1, 2, 2)
        corner_labels = torch.tensor([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], dtype=torch.int32, device=boxes.device)
        corner_labels = corner_labels.expand(len(corners), 2)
        if points is None or labels is None:
            points, labels = corners, corner_labels
        else:
            points, labels = torch.cat([corners, points], dim=1), torch.cat([corner_labels, labels], dim=1)
    if points is None and masks is None:
        return None
    return Prompts(
        None if points is None else points[None],
        None if labels is None else labels[None].long(),
        masks=None if masks is None else masks[None, :, 0],
    )
