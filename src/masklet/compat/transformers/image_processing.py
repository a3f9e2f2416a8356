"""The image processor: images to pixels, and logits to masks, with transformers' arguments and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from masklet import checkpoints
from masklet.compat.transformers import crops
from masklet.compat.transformers.feature import BatchFeature, as_tensor
from masklet.compat.transformers.images import flat_list, normalise, resize, resize_map, to_channels_first
from masklet.compat.transformers.masks import clean_masks_above, masks_of_size
from masklet.compat.transformers.settings import SizeDict, json_text, read_channels, read_size, take_hub_options
from masklet.config import STRIDES, SizeHW
from masklet.errors import ConfigError, ImageError, PromptError
from masklet.numbers import size_of
from masklet.processing import IMAGE_MEAN, IMAGE_STD

Processor = TypeVar("Processor", bound="Sam2ImageProcessor")

BILINEAR = 2
_UNSUPPORTED = ("do_pad", "do_center_crop")
_WITHOUT_EFFECT = ("disable_grouping", "data_format", "crop_size", "pad_size", "default_to_square", "image_seq_length")


class Sam2ImageProcessor:
    """Prepares images for the model, and converts its logits to masks.

    Images are not rotated by EXIF and are resized in 8 bits, as in transformers, unlike in ``masklet.load``. Every
    argument is a setting by attribute, is saved, and may be given to a call for that call alone.

    Args:
        size: Size of the network's input: ``{"height": …, "width": …}``, or one side of a square.
        do_resize: Whether images are stretched to ``size``.
        resample: 0 nearest, 2 bilinear, 3 bicubic.
        do_rescale: Whether pixels are multiplied by ``rescale_factor``.
        rescale_factor: 1 / 255 by default, also for images of floats, as in transformers.
        do_normalize: Whether ``image_mean`` is subtracted, and divided by ``image_std`` afterwards.
        image_mean: Means of red, green and blue, after rescaling; or one number.
        image_std: Standard deviations of red, green and blue, after rescaling; or one number.
        mask_size: Size of segmentation maps; a quarter of ``size`` if None.
        do_convert_rgb: Whether images of other than three channels become RGB.
        input_data_format: ``"channels_first"`` or ``"channels_last"``; None decides by the shape.
        device: Where pixels are computed.
        return_tensors: ``"pt"``, ``"np"`` or None, for lists.
        kwargs: Further settings, which are kept and saved. ``do_pad`` and ``do_center_crop`` are refused.

    Raises:
        ConfigError: A setting is malformed or not supported.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        size: Any = 1024,
        *,
        do_resize: bool = True,
        resample: int = BILINEAR,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = IMAGE_MEAN,
        image_std: Any = IMAGE_STD,
        mask_size: Any = None,
        do_convert_rgb: bool = True,
        input_data_format: Any = None,
        device: Any = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> None:
        _check_unsupported(kwargs)
        self.size = read_size("size", size)
        self.do_resize, self.resample = do_resize, int(resample)
        self.do_rescale, self.rescale_factor = do_rescale, rescale_factor
        self.do_normalize = do_normalize
        self.image_mean, self.image_std = read_channels("image_mean", image_mean), read_channels("image_std", image_std)
        quarter = {side: max(1, pixels // STRIDES[0]) for side, pixels in self.size.items()}
        self.mask_size = read_size("mask_size", quarter if mask_size is None else mask_size)
        self.do_convert_rgb, self.input_data_format = do_convert_rgb, input_data_format
        self.device, self.return_tensors = device, return_tensors
        for name, value in kwargs.items():
            setattr(self, name, value)

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        return self.size.hw

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    # Saving and loading

    def to_dict(self) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``."""
        content = {n: v for n, v in vars(self).items() if n not in ("device", "return_tensors") and v is not None}
        content = {n: dict(v) if isinstance(v, SizeDict) else v for n, v in content.items() if not n.startswith("_")}
        return content | {"image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """The text of ``preprocessor_config.json``."""
        return json_text(self.to_dict())

    @classmethod
    def from_dict(cls: type[Processor], image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """The processor of a file's content; keyword arguments override it."""
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        known = {n: v for n, v in image_processor_dict.items() if n not in _NO_SETTINGS and v is not None}
        made = cls(**(known | kwargs))
        return (made, {}) if returns_unused else made

    @classmethod
    def from_pretrained(cls: type[Processor], pretrained_model_name_or_path: Any, **kwargs: Any) -> Processor:
        """The processor of a model.

        Args:
            pretrained_model_name_or_path: As in ``Sam2Model.from_pretrained``.
            kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download`` and ``subfolder``;
                and settings, which override those of the folder. ``use_fast`` and ``trust_remote_code`` have no effect.

        Raises:
            CheckpointError: The settings cannot be found, or are malformed.
        """
        hub = take_hub_options(kwargs)
        content = checkpoints.read_processor(pretrained_model_name_or_path, hub)[0]
        made: Processor = cls.from_dict(content, **kwargs)
        return made

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes ``preprocessor_config.json``, which masklet and transformers load.

        Args:
            save_directory: Folder of the model; created if missing.
            push_to_hub: Whether to upload it, with ``repo_id`` and others among ``kwargs``: see
                ``Sam2Model.save_pretrained``.
            kwargs: Arguments for ``push_to_hub``.

        Raises:
            CheckpointError: It cannot be written.
        """
        checkpoints.write_text(Path(save_directory) / checkpoints.PREPROCESSOR, self.to_json_string())
        if push_to_hub:
            checkpoints.push_folder(save_directory, [checkpoints.PREPROCESSOR], **kwargs)

    # Images to pixels

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """As ``preprocess``."""
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepares images.

        Args:
            images: One image, or a list, or nested lists: see ``to_channels_first``; or an array of four axes.
            segmentation_maps: One map (height, width) of integers for each image.
            kwargs: Settings of the constructor, for this call.

        Returns:
            ``pixel_values`` (batch, 3, height, width) float32, ``original_sizes`` and ``reshaped_input_sizes`` (batch,
            2) as (height, width); with maps, ``labels`` (batch, height / 4, width / 4) int64. Lists of each without
            ``return_tensors``.

        Raises:
            ImageError: Something is not an image, or maps are of another number of images.
            TypeError: A keyword argument is unknown.
        """
        settings = self._with(kwargs)
        pixels = [
            to_channels_first(image, settings.input_data_format, to_rgb=settings.do_convert_rgb)
            for image in flat_list(images)
        ]
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        prepared = [settings.pixel_values(image) for image in pixels]
        found = BatchFeature(
            {
                "pixel_values": prepared,
                "original_sizes": sizes,
                "reshaped_input_sizes": [(image.shape[-2], image.shape[-1]) for image in prepared],
            }
        )
        if segmentation_maps is not None:
            found["labels"] = settings.labels(segmentation_maps, count=len(pixels))
        return found.convert_to_tensors(settings.return_tensors)

    def pixel_values(self, image: Tensor) -> Tensor:
        """(channels, height, width) to (channels, height, width) of the network's input, float32."""
        image = image if self.device is None else image.to(self.device)
        if self.do_resize:
            image = resize(image, self.size.hw, self.resample)
        return normalise(
            image,
            factor=self.rescale_factor if self.do_rescale else None,
            mean=self.image_mean if self.do_normalize else None,
            std=self.image_std if self.do_normalize else None,
        )

    def labels(self, maps: Any, *, count: int) -> list[Tensor]:
        """Segmentation maps at ``mask_size``."""
        maps = list(maps) if isinstance(maps, list | tuple) else [maps]
        if len(maps) != count:
            raise ImageError(f"{len(maps)} segmentation maps came with {count} images: expected one for each")
        return [resize_map(values, self.mask_size.hw if self.do_resize else None) for values in maps]

    def _with(self: Processor, changes: dict[str, Any]) -> Processor:
        """This processor with some settings changed."""
        if not changes:
            return self
        changes = {name: value for name, value in changes.items() if name not in _WITHOUT_EFFECT}
        if unknown := [name for name in changes if name not in _SETTINGS and name not in _UNSUPPORTED]:
            raise TypeError(f"{type(self).__name__} takes no argument {', '.join(unknown)}")
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return type(self)(**(settings | {n: v for n, v in changes.items() if v is not None or n == "return_tensors"}))

    # Logits to masks

    def post_process_masks(
        self,
        masks: Any,
        original_sizes: Any,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        apply_non_overlapping_constraints: bool = False,
        reshaped_input_sizes: Any = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Converts logits to masks of the original images' sizes.

        Args:
            masks: (batch, objects, masks, h, w) logits, or a list of (objects, masks, h, w).
            original_sizes: (batch, 2) heights and widths.
            mask_threshold: Logit above which a pixel is inside. Sizes in its place are SAM's ``reshaped_input_sizes``:
                they are ignored, since the image fills the whole input here, and the threshold is 0.
            binarize: False returns the upscaled logits, in their own type.
            max_hole_area: Holes of fewer pixels are filled.
            max_sprinkle_area: Islands of fewer pixels are removed.
            apply_non_overlapping_constraints: Each pixel belongs to the object with the highest logit at most; the
                logits of others become -10 or less.
            reshaped_input_sizes: Ignored, too.
            kwargs: ``pad_size``, which is SAM's and ignored.

        Returns:
            For each image (objects, masks, height, width), bool.

        Raises:
            PromptError: Masks and sizes are of different numbers of images, or the order of arguments is SAM's.
            TypeError: ``masks`` are no tensors, or a keyword argument is unknown.
        """
        if unknown := kwargs.keys() - {"pad_size"}:
            raise TypeError(f"post_process_masks takes no argument {', '.join(sorted(unknown))}")
        to_masks = partial(
            clean_masks_above,
            threshold=_read_threshold(mask_threshold, binarize),
            max_hole_area=max_hole_area,
            max_sprinkle_area=max_sprinkle_area,
        )
        return [
            masks_of_size(
                logits, size_hw, to_masks if binarize else None, may_overlap=not apply_non_overlapping_constraints
            )
            for logits, size_hw in _of_images(masks, original_sizes)
        ]

    # For transformers' pipeline "mask-generation"

    def generate_crop_boxes(
        self,
        image: Any,
        target_size: Any,
        crop_n_layers: int = 0,
        overlap_ratio: float = 512 / 1500,
        points_per_crop: int = 32,
        crop_n_points_downscale_factor: int = 1,
        device: Any = None,
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Crops of an image and a grid of points for each.

        Args:
            image: One image.
            target_size: Size of the network's input: one side, or as ``size``.
            crop_n_layers: Layers of crops besides the whole image; layer n has 2**n by 2**n of them.
            overlap_ratio: Share of the shorter side by which the crops of the first layer overlap.
            points_per_crop: Points along each side.
            crop_n_points_downscale_factor: Only 1 together with crops.
            device: Device of the results.

        Returns:
            Boxes (crops, 4), x0 y0 x1 y1; points (1, points, crops, 2) in pixels of the network's input, which cover
            every crop; the crops (3, height, width); labels (1, points, crops), all 1.
        """
        target_hw = read_size("target_size", target_size).hw
        boxes, points, cropped, labels = crops.generate_crop_boxes(
            image,
            target_hw,
            crop_n_layers=crop_n_layers,
            overlap_ratio=overlap_ratio,
            points_per_crop=points_per_crop,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        )
        return boxes.to(device), points.to(device), cropped, labels.to(device)

    def filter_masks(
        self,
        masks: Tensor,
        iou_scores: Tensor,
        original_size: Any,
        cropped_box_image: Any,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        mask_threshold: float = 0,
        stability_score_offset: float = 1,
    ) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
        """Keeps the confident and stable masks of a crop that its edges do not cut.

        Args:
            masks: (objects, masks, height, width) logits, at the size of the crop.
            iou_scores: (objects, masks), predicted IoU.
            original_size: (height, width) of the image.
            cropped_box_image: (4,) x0 y0 x1 y1 of the crop.
            pred_iou_thresh: Least predicted IoU; 0 keeps all.
            stability_score_thresh: Least stability score; 0 keeps all.
            mask_threshold: Logit above which a pixel is inside.
            stability_score_offset: Distance of the two cut-offs of the stability score from the threshold.

        Returns:
            Uncompressed run lengths of the image's size, scores (kept,), and boxes (kept, 4) from the first to the last
            pixel.
        """
        return crops.filter_masks(
            masks,
            iou_scores,
            original_size,
            cropped_box_image,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            mask_threshold=mask_threshold,
            stability_score_offset=stability_score_offset,
        )

    def post_process_for_mask_generation(
        self, all_masks: list[dict[str, Any]], all_scores: Tensor, all_boxes: Tensor, crops_nms_thresh: float
    ) -> tuple[list[np.ndarray], Tensor, list[dict[str, Any]], Tensor]:
        """Removes duplicates among the masks of all crops.

        Args:
            all_masks: Run lengths from ``filter_masks``.
            all_scores: (masks,).
            all_boxes: (masks, 4).
            crops_nms_thresh: Of two boxes with a higher IoU, the better one is kept.

        Returns:
            Masks (height, width) bool, scores, run lengths and boxes, from high to low scores.
        """
        return crops.without_duplicates(all_masks, all_scores, all_boxes, crops_nms_thresh)


_SETTINGS = tuple(signature(Sam2ImageProcessor).parameters)[:-1]
"""All but ``kwargs``."""
_NO_SETTINGS = ("image_processor_type", "processor_class", "feature_extractor_type", "video_processor_type")


def _check_unsupported(kwargs: dict[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if kwargs.pop(name, None):
            raise ConfigError(f"{name} is True: expected False, since images are stretched to the input's size")


def _read_threshold(mask_threshold: Any, binarize: Any) -> float:
    """The threshold, or 0 where sizes came in its place, as in SAM.

    Raises:
        PromptError: SAM's order of arguments has a threshold in place of ``binarize``, which must not be ignored.
    """
    if isinstance(mask_threshold, int | float | np.number):
        return float(mask_threshold)
    if not isinstance(binarize, bool):
        raise PromptError(
            f"binarize is {binarize!r}: expected True or False. The arguments after original_sizes are mask_threshold "
            "and binarize; leave SAM's reshaped_input_sizes out"
        )
    return 0.0


def _of_images(masks: Any, original_sizes: Any) -> list[tuple[Tensor, SizeHW]]:
    """The logits (objects, masks, h, w) of each image, and its size."""
    if not isinstance(masks, Tensor | np.ndarray | list | tuple):
        raise TypeError(f"masks are {type(masks).__name__}: expected tensors or arrays of logits")
    sizes = [size_of("an original size", size, PromptError) for size in original_sizes]
    if len(masks) != len(sizes):
        raise PromptError(f"masks are of {len(masks)} images, original_sizes of {len(sizes)}")
    logits = [as_tensor(one) for one in masks]
    if wrong := [one for one in logits if one.ndim != 4]:
        raise PromptError(f"masks of an image are {tuple(wrong[0].shape)}: expected (objects, masks, h, w)")
    return list(zip(logits, sizes, strict=True))
