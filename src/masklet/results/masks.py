"""Masks: the result of a prediction."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masklet.config import SizeHW
from masklet.images.reading import ImageSource, read_image
from masklet.masks import (
    PackedMasks,
    Rle,
    check_masks,
    check_rle,
    clean_masks,
    decode_rle,
    union,
    without_overlap,
)
from masklet.numbers import real_number, shown
from masklet.results import exporters, importers
from masklet.results.exports import MaskExports
from masklet.results.visualisation import cut_out, notebook_html, notebook_png, paint_masks

NOTEBOOK_ROWS = 20
"""Masks that the table in a notebook lists."""


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view of an array; the array itself stays as writable as it was."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_labels(labels: Any, count: int) -> np.ndarray:
    """The labels of masks as an array of text. Raise a ValueError unless there is one for each mask."""
    array = np.asarray(labels, dtype=np.str_) if len(labels) else np.zeros(0, np.str_)
    if array.shape != (count,) or not all(map(str.strip, array.tolist())):
        raise ValueError(f"labels are {shown(labels)}: expected a text for each of {count} masks")
    return array


def check_image(image: np.ndarray, size_hw: SizeHW) -> None:
    """Raise a ValueError unless an image has the size of the masks."""
    if getattr(image, "shape", None) != (*size_hw, 3):
        height, width = size_hw
        raise ValueError(
            f"an image of shape {getattr(image, 'shape', None)} does not fit masks of {width}×{height} pixels"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Masks(MaskExports):
    """Masks of one image, each with its score. Immutable; iterating gives ``Masks`` of one mask each.

    An index (a number, a slice, a list, a bool or integer array) gives the selected ``Masks``. ``masks``, ``logits``,
    ``iou_scores`` and ``object_ids`` all have the length ``len(self)``, which may be 0.
    """

    masks: np.ndarray
    """(masks, height, width) bool, in pixels of the image; or ``masklet.masks.PackedMasks`` for very many masks."""
    logits: np.ndarray
    """(masks, h, w) float32, low resolution, before the sigmoid: pass them as ``mask=`` to the next prediction. Packed
    masks have none: (masks, 0, 0)."""
    iou_scores: np.ndarray
    """(masks,) float32: the IoU with the true object, as predicted by the model."""
    object_ids: np.ndarray
    """(masks,) int: the object of each mask."""
    image: np.ndarray | None = None
    """(height, width, 3) uint8 RGB, the background of ``overlay``."""
    labels: np.ndarray | None = None
    """(masks,) text: what each mask is, if it was found by words. Exports use them as classes."""

    def __post_init__(self) -> None:
        for name, ndim, kind in (
            ("masks", 3, "b"),
            ("logits", 3, "f"),
            ("iou_scores", 1, "f"),
            ("object_ids", 1, "iu"),
        ):
            values = getattr(self, name)
            if not isinstance(values, np.ndarray | PackedMasks):
                raise ValueError(f"{name} are a {type(values).__name__}: expected an array")
            if values.ndim != ndim or values.dtype.kind not in kind or len(values) != len(self.masks):
                raise ValueError(
                    f"{name} of shape {values.shape}, {values.dtype}, do not fit masks of shape {self.masks.shape}"
                )
        check_masks(self.masks)
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels(self.labels, len(self.masks)))
        if not np.isfinite(self.iou_scores).all():
            raise ValueError("iou_scores hold NaN or infinity: expected finite numbers")
        if self.image is not None:
            check_image(self.image, self.size_hw)
        for field in fields(self):
            if isinstance(values := getattr(self, field.name), np.ndarray):
                object.__setattr__(self, field.name, read_only(values))

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator["Masks"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "Masks":
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return replace(
            self,
            masks=self.masks[chosen],
            logits=self.logits[chosen],
            iou_scores=self.iou_scores[chosen],
            object_ids=self.object_ids[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def __repr__(self) -> str:
        count, height, width = self.masks.shape
        if not count:
            return f"Masks(no masks, {width}×{height})"
        objects = len(np.unique(self.object_ids))
        return (
            f"Masks({count} mask{'s' * (count > 1)} of {objects} object{'s' * (objects > 1)}, "
            f"{width}×{height}, best score {self.iou_scores.max():.2f})"
        )

    def overlay(self, image: ImageSource | None = None, *, alpha: float = 0.45, ids: bool = False) -> Image.Image:
        """The image with its masks painted over it, each object in its own colour.

        Contours have a light line inside the mask and a dark line outside, so that they are visible on any image. Where
        masks overlap, the smallest is on top; colours do not mix. All contours are drawn.

        Args:
            image: The background, of the masks' size; by default the segmented image.
            alpha: Opacity of the fill, from 0 (contours only) to 1.
            ids: Whether to write each object's id on its mask.

        Raises:
            ValueError: There is no image, it has another size, or ``alpha`` is out of range.
        """
        alpha = real_number("alpha", alpha, ValueError, least=0, most=1)
        canvas = self._image_or(image, "overlay('truck.jpg')")
        return paint_masks(canvas, self.masks, self.object_ids, alpha=alpha, ids=ids)

    def cutout(self, image: ImageSource | None = None) -> Image.Image:
        """The image inside the masks, cropped to their common box: RGBA, transparent outside.

        Raises:
            ValueError: There is no image, it has another size, or all masks are empty.
        """
        canvas = self._image_or(image, "cutout('truck.jpg')")
        together = union(self.masks)
        if not together.any():
            raise ValueError("there is nothing to cut out: all masks are empty")
        return cut_out(canvas, together)

    def clean(
        self, *, smooth_px: float = 0, fill_holes: int = 0, remove_islands: int = 0, keep_largest: bool = False
    ) -> "Masks":
        """Smooths outlines, then fills small holes, then removes small islands or all but the largest.

        Args:
            smooth_px: Standard deviation of the blur that rounds outlines, in pixels.
            fill_holes: Holes that have fewer pixels are filled. Holes that touch only at a corner are separate.
            remove_islands: Islands that have fewer pixels are removed, but never the largest.
            keep_largest: Whether to keep only the largest island of each mask.
        """
        cleaned = clean_masks(
            self.masks,
            smooth_px=smooth_px,
            fill_holes=fill_holes,
            remove_islands=remove_islands,
            keep_largest=keep_largest,
        )
        return replace(self, masks=cleaned)

    def without_overlap(self) -> "Masks":
        """Masks that share no pixel: each pixel goes to the mask with the highest logit. A mask may become empty.

        Raises:
            ValueError: The masks are packed and have no logits.
        """
        if isinstance(self.masks, PackedMasks):
            raise ValueError("packed masks have no logits to decide which is on top: expected unpacked masks")
        return replace(self, masks=without_overlap(self.masks, self.logits))

    def save(self, path: str | os.PathLike[str], *, by_object: bool = False) -> None:
        """Writes the masks in the format of the file's suffix. Missing folders are created; files are replaced.

        .png: one image of the image's size, see ``index_map``. .npz: everything except the image;
        ``Masks(**numpy.load(path))`` reads it. .json: the list of ``to_coco``. .svg: a filled path for each mask.

        Args:
            path: Ends in one of these suffixes.
            by_object: The pixels of a .png hold object ids, see ``index_map``.

        Raises:
            ValueError: Another suffix; ``by_object`` with another format than .png; values that do not fit 16 bits;
                packed masks as .npz.
            OSError: The file cannot be written. Checked before the work starts.
        """
        exporters.save_masks(self, Path(path), by_object=by_object)

    def index_map(self, *, by_object: bool = False) -> Image.Image:
        """All masks in one image; where masks overlap, the one with the higher score is on top.

        One mask: 8 bits, 255 inside, 0 outside. Several: mask ``i`` has the value ``i + 1``; 8 bits with a colour
        palette, or 16 bits of grey for values beyond 255.

        Args:
            by_object: The value of every mask is its object id + 1, as in DAVIS. This keeps object ids through
                ``from_png``.

        Raises:
            ValueError: A value does not fit 16 bits.
        """
        return exporters.index_map(self, by_object=by_object)

    @classmethod
    def from_png(cls, path: str | os.PathLike[str], *, threshold: float | None = None) -> "Masks":
        """Reads the masks of an image: one of a black and white image, or one for each palette or grey value.

        0 is background. Other values are object ids + 1, as ``save(path, by_object=True)`` and DAVIS write them; an
        8-bit black and white image is object 0. Scores are 1. Logits are made from the masks.

        Args:
            path: The file.
            threshold: The image is one mask, object 0, of all values from this one up: for soft edges and JPEGs, e.g.
                128.

        Raises:
            ImageError: The file is missing, damaged, or has colours; or its values do not seem to number masks, and
                there is no threshold.
        """
        masks, values = importers.read_index_image(path, threshold)
        return cls(masks, importers.stand_in_logits(masks), np.ones(len(masks), np.float32), values - 1)

    @classmethod
    def from_coco(
        cls,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        size_hw: SizeHW | None = None,
        packed: bool = False,
    ) -> "Masks":
        """Reads the masks of one image's COCO annotations.

        Args:
            annotations: A list of annotations, or a whole data set of one image. ``segmentation`` holds run lengths,
                compressed or not, or polygons, which are filled as pycocotools does. ``object_id`` and ``score`` are
                read if present; otherwise ids count from 0 and scores are 1. Logits are made from the masks.
            size_hw: (height, width) of the image. Run lengths and data sets contain it; polygons and an empty list do
                not.
            packed: Keep the masks as run lengths, so that thousands of masks of a large image fit in memory. Most
                methods work as usual and unpack one mask at a time within its box. Exceptions: .npz and
                ``to_supervision`` store every pixel of each mask, and ``without_overlap`` needs logits.

        Raises:
            ValueError: The size is unknown or sizes differ; there are several images; a segmentation is malformed.
        """
        listed, size_hw = importers.annotations_of(annotations, size_hw)
        runs, size_hw = importers.read_annotations(listed, size_hw)
        scores, object_ids = importers.annotation_values(listed)
        if packed:
            return cls.from_rle(runs, size_hw, scores, object_ids)
        masks = decode_rle(runs) if runs else np.zeros((0, *size_hw), bool)
        return cls(masks, importers.stand_in_logits(masks), scores, object_ids)

    @classmethod
    def from_rle(cls, runs: Sequence[Rle], size_hw: SizeHW, iou_scores: np.ndarray, object_ids: np.ndarray) -> "Masks":
        """Packed masks from run lengths of the image's size; see ``from_coco``.

        Raises:
            ValueError: They are not run lengths, or do not fill the image's size.
        """
        check_rle(runs)
        if len(runs) and tuple(runs[0]["size"]) != tuple(size_hw):
            raise ValueError(f"run lengths of size {runs[0]['size']} do not fit size_hw={size_hw}")
        packed: Any = PackedMasks(runs, size_hw)
        return cls(packed, np.zeros((len(runs), 0, 0), np.float32), iou_scores, object_ids)

    def _repr_png_(self) -> bytes:
        """For notebooks: the overlay, or the masks on black without an image."""
        black = None if self.image is not None else np.zeros((*self.size_hw, 3), np.uint8)
        return notebook_png(self.overlay(black))

    def _repr_html_(self) -> str:
        """For notebooks: the overlay and a table of the first masks."""
        few = self[:NOTEBOOK_ROWS]
        names = few.object_ids.tolist() if few.labels is None else few.labels.tolist()
        columns = (names, few.iou_scores.tolist(), few.areas.tolist(), few.boxes.tolist())
        rows = [
            (object_id, f"{score:.2f}", f"{area:,}", ", ".join(f"{edge:g}" for edge in box))
            for object_id, score, area, box in zip(*columns, strict=True)
        ]
        more = f"; the first {NOTEBOOK_ROWS}:" if len(self) > NOTEBOOK_ROWS else ""
        headings = ("object", "score", "area (px)", "box (x0, y0, x1, y1)")
        return notebook_html(self._repr_png_(), f"{self}{more}", [headings, *rows] if rows else [])

    def _image_or(self, image: ImageSource | None, call: str) -> np.ndarray:
        """The given image, or else the stored one."""
        canvas = self.image if image is None else read_image(image)
        if canvas is None:
            raise ValueError(f"these masks have no image: pass it, {call}")
        check_image(canvas, self.size_hw)
        return canvas
