"""Masks: what people keep of a prediction, and its ways out."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from masklet.atomic import replacing
from masklet.config import SizeHW
from masklet.images.reading import ImageSource, read_image
from masklet.masks import (
    PackedMasks,
    Polygon,
    Rle,
    clean_masks,
    decode_rle,
    encode_rle,
    mask_areas,
    mask_boxes,
    patch_polygons,
    patches,
    union,
    without_overlap,
)
from masklet.prompts import plain_mask_logits
from masklet.results.exporters import (
    Affine,
    annotations_of,
    coco_instance,
    geojson_feature,
    index_image,
    labelme_shapes,
    optional_package,
    read_annotations,
    read_index_image,
    svg_text,
    yolo_line,
)
from masklet.results.visualisation import colour_of, cut_out, notebook_html, notebook_png, paint_masks

ROWS_SHOWN = 20
"""Of the table in a notebook."""
SUFFIXES = (".png", ".npz", ".json", ".svg")


@dataclass(frozen=True, eq=False, repr=False)
class Masks:
    """Masks of one image, each with its score. Immutable; iterating gives ``Masks`` of one mask each.

    An index (a number, a slice, a list, an array of bool or of numbers) gives a ``Masks`` of the chosen ones.
    ``masks``, ``logits``, ``iou_scores`` and ``object_ids`` are all as long as ``len(self)``, which may be 0.
    """

    masks: np.ndarray
    """(masks, height, width) bool, in pixels of the image; or, for very many, ``masklet.masks.PackedMasks``."""
    logits: np.ndarray
    """(masks, h, w) float32, low resolution, before the sigmoid: what ``mask=`` of a next prediction takes. Packed
    masks have none: (masks, 0, 0)."""
    iou_scores: np.ndarray
    """(masks,) float32: the IoU with the true object, as the model estimates it."""
    object_ids: np.ndarray
    """(masks,) int: the object each mask is of. Several candidates for one object share its number."""
    image: np.ndarray | None = None
    """(height, width, 3) uint8 RGB, what ``overlay`` paints on."""

    def __post_init__(self) -> None:
        for name, ndim, kind in (
            ("masks", 3, "b"),
            ("logits", 3, "f"),
            ("iou_scores", 1, "f"),
            ("object_ids", 1, "iu"),
        ):
            values = getattr(self, name)
            if values.ndim != ndim or values.dtype.kind not in kind or len(values) != len(self.masks):
                raise ValueError(
                    f"{name} of shape {values.shape}, {values.dtype}, do not fit masks of shape {self.masks.shape}"
                )
        if self.image is not None:
            self.check_size(self.image)
        for field in fields(self):
            if isinstance(values := getattr(self, field.name), np.ndarray):
                frozen = values.view()  # the caller's own array stays as writable as it was
                frozen.flags.writeable = False
                object.__setattr__(self, field.name, frozen)

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

    @property
    def size_hw(self) -> SizeHW:
        """(height, width) of the image."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def boxes(self) -> np.ndarray:
        """(masks, 4) float32: x0, y0, x1, y1, edges in pixels of the image; zeros for an empty mask."""
        return mask_boxes(self.masks)

    @property
    def areas(self) -> np.ndarray:
        """(masks,) int64, in pixels of the image."""
        return mask_areas(self.masks)

    @property
    def best(self) -> "Masks":
        """For each object its mask of the highest score, in the order in which the objects first appear."""
        by_score = np.lexsort((-self.iou_scores, self.object_ids))
        _, starts = np.unique(self.object_ids[by_score], return_index=True)
        _, appearances = np.unique(self.object_ids, return_index=True)
        return self[by_score[starts][np.argsort(appearances)]]

    def overlay(self, image: ImageSource | None = None, *, alpha: float = 0.45, ids: bool = False) -> Image.Image:
        """The image with its masks painted over it, each object in a colour of its own.

        Contours have a light line inside the mask and a dark one outside, so that one of them shows on any image.
        Fills do not mix: where masks overlap, the smallest is seen, under the contours of all.

        Args:
            image: What to paint on, of the masks' size; by default the image that was segmented.
            alpha: How much of the image the fill hides, from 0 (contours alone) to 1.
            ids: Whether each mask carries the number of its object.

        Raises:
            ValueError: There is no image to paint on, it has another size, or ``alpha`` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 (contours alone) to 1 (the fill hides the image), got {alpha:g}")
        canvas = self._image_or(image, "overlay('truck.jpg')")
        return paint_masks(canvas, self.masks, self.object_ids, alpha=alpha, ids=ids)

    def cutout(self, image: ImageSource | None = None) -> Image.Image:
        """What lies under the masks, all of them, cropped to their box: RGBA, transparent outside.

        Raises:
            ValueError: There is no image to cut from, it has another size, or no mask has a pixel.
        """
        canvas = self._image_or(image, "cutout('truck.jpg')")
        together = union(self.masks)
        if not together.any():
            raise ValueError("there is nothing to cut out: no mask has a pixel")
        return cut_out(canvas, together)

    def clean(
        self, *, smooth_px: float = 0, fill_holes: int = 0, remove_islands: int = 0, keep_largest: bool = False
    ) -> "Masks":
        """Masks with smooth outlines, then without small holes, then without small islands, or all but the largest.

        Args:
            smooth_px: How round outlines become: the standard deviation of a blur, in pixels.
            fill_holes: Holes of fewer pixels are filled; what holds a mask together, a corner, closes a hole, too.
            remove_islands: Islands of fewer pixels are removed, but never the largest.
            keep_largest: Whether of each mask only the largest island stays.
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
        """Masks that share no pixel: of those that claim one, the highest logit has it. A mask may become empty.

        Raises:
            ValueError: The masks are packed, and have no logits.
        """
        if isinstance(self.masks, PackedMasks):
            raise ValueError("packed masks have no logits to tell which is on top: expected masks as they were found")
        return replace(self, masks=without_overlap(self.masks, torch.tensor(self.logits)))

    def save(self, path: str | os.PathLike[str], *, by_object: bool = False) -> None:
        """Write the masks as their file's suffix says. Folders are made, an existing file is replaced whole.

        .png: one image of the image's size, see ``index_map``. .npz: everything but the image, which
        ``Masks(**numpy.load(path))`` brings back. .json: the list of ``to_coco``. .svg: a filled path for each mask.

        Args:
            path: Its suffix is one of these.
            by_object: The pixels of a .png hold objects' numbers, see ``index_map``.

        Raises:
            ValueError: Another suffix; ``by_object`` for anything but .png; numbers that do not fit 16 bits; packed
                masks as .npz.
            OSError: It cannot be written there, which is found out before the work.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"masks are saved as .png, .npz, .json or .svg, not as {path.name!r}")
        if by_object and suffix != ".png":
            raise ValueError(f"by_object is about the pixels of a .png, and {path.name!r} is none")
        if suffix == ".npz" and isinstance(self.masks, PackedMasks):
            raise ValueError(
                f"packed masks are saved as .png, .json or .svg, not as {path.name!r}, which has each pixel"
            )
        with replacing(path) as unfinished:
            if suffix == ".png":
                self.index_map(by_object=by_object).save(unfinished, format="PNG")
            elif suffix == ".npz":
                with unfinished.open("wb") as file:  # a name that ends in .NPZ would get another .npz
                    np.savez_compressed(
                        file,
                        masks=self.masks,
                        logits=self.logits,
                        iou_scores=self.iou_scores,
                        object_ids=self.object_ids,
                    )
            elif suffix == ".json":
                unfinished.write_text(json.dumps(self.to_coco()), encoding="utf-8")
            else:
                unfinished.write_text(svg_text(self.masks, self.object_ids, self.iou_scores), encoding="utf-8")

    def index_map(self, *, by_object: bool = False) -> Image.Image:
        """All masks in one image, the one of the higher score where they overlap.

        One mask: 8 bits, 255 inside, 0 outside. Several: mask ``i`` of them has the value ``i + 1``; in 8 bits with a
        colour palette, or in 16 bits of grey for values beyond 255.

        Args:
            by_object: Masks have the number of their object + 1 instead, and one alone has it, too: as DAVIS keeps
                videos, and what keeps objects' numbers through ``from_png``.

        Raises:
            ValueError: A value does not fit 16 bits.
        """
        if by_object:
            return index_image(self.masks, self.object_ids + 1, self.iou_scores, colour_of(np.arange(255)))
        if len(self) < 2:
            return Image.fromarray(union(self.masks).astype(np.uint8) * np.uint8(255))
        return index_image(self.masks, np.arange(1, len(self) + 1), self.iou_scores, colour_of(self.object_ids))

    @classmethod
    def from_png(cls, path: str | os.PathLike[str], *, threshold: float | None = None) -> "Masks":
        """The masks of an image: of a black and white one, or one for each value of a palette or a grey one.

        0 is background, and a value is the number of its object + 1, as ``save(path, by_object=True)`` and DAVIS
        write them; black and white of 8 bits is object 0. Scores are 1, and logits stand in.

        Args:
            path: The file.
            threshold: The image is one mask, object 0, of all values from this one on: for soft edges and JPEGs, as
                128 of 255.

        Raises:
            ImageError: The file is missing, damaged, or an image in colours; or its values do not look like numbers
                of masks, and there is no threshold.
        """
        masks, values = read_index_image(path, threshold)
        return cls._given(masks, values - 1, np.ones(len(masks)))

    @classmethod
    def from_coco(
        cls,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        size_hw: SizeHW | None = None,
        packed: bool = False,
    ) -> "Masks":
        """The masks of one image's COCO annotations.

        Args:
            annotations: A list of them, or a whole data set of one image; with run lengths, compressed or not, or
                polygons (which are filled as pycocotools does it) in ``segmentation``. ``object_id`` and ``score`` are
                taken where they are given; otherwise objects are numbered from 0 in order, and scores are 1. Logits
                stand in.
            size_hw: (height, width) of the image; run lengths and data sets know it, polygons and an empty list do
                not.
            packed: Leave the masks as run lengths, so that thousands of a large image fit in memory. All ways out
                work as ever and unpack one mask at a time, as far as its box goes, but for those that have each pixel
                of each mask (.npz, ``to_supervision``) or need logits (``without_overlap``): there are none.

        Raises:
            ValueError: The size is not known, or not one; there are several images; a segmentation makes no sense.
        """
        listed, size_hw = annotations_of(annotations, size_hw)
        runs, size_hw = read_annotations(listed, size_hw)

        def given(name: str, index: int, default: float) -> Any:
            return default if (value := listed[index].get(name)) is None else value  # some tools write null

        objects = np.array([given("object_id", index, index) for index in range(len(listed))], int)
        scores = np.array([given("score", index, 1.0) for index in range(len(listed))], np.float32)
        if packed:
            return cls.of_runs(runs, size_hw, scores, objects)
        return cls._given(decode_rle(runs) if runs else np.zeros((0, *size_hw), bool), objects, scores)

    @classmethod
    def of_runs(cls, runs: Sequence[Rle], size_hw: SizeHW, scores: np.ndarray, objects: np.ndarray) -> "Masks":
        """Packed masks, from run lengths of the size of the image; see ``from_coco``."""
        stack: Any = PackedMasks(runs, size_hw)
        return cls(stack, np.zeros((len(runs), 0, 0), np.float32), scores, objects)

    @classmethod
    def _given(cls, masks: np.ndarray, objects: np.ndarray, scores: np.ndarray) -> "Masks":
        """Masks that no network made. Their logits stand in: they are those of the mask as a prompt at 1024×1024."""
        logits = np.zeros((len(masks), 256, 256), np.float32)
        for into, mask in zip(logits, masks, strict=True):
            into[:] = plain_mask_logits(torch.from_numpy(mask[None]), (256, 256))[0].numpy()
        return cls(masks, logits, scores.astype(np.float32), objects)

    def to_coco(self, *, image_id: int = 1, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO instances, one a mask, numbered from 1: plain dicts that ``json`` writes and pycocotools loads.

        Each has ``segmentation`` (compressed run lengths), ``bbox`` [x, y, width, height], ``area``, ``score``,
        ``id``, ``image_id``, ``category_id``, ``iscrowd`` 0 and, beyond the format, ``object_id``.
        """
        columns = (self.boxes.tolist(), self.areas.tolist(), self.iou_scores.tolist(), self.object_ids.tolist())
        return [
            coco_instance(
                number,
                rle,
                box,
                area=area,
                score=score,
                object_id=object_id,
                image_id=image_id,
                category_id=category_id,
            )
            for number, (rle, box, area, score, object_id) in enumerate(zip(self.to_rle(), *columns, strict=True), 1)
        ]

    def to_rle(self) -> list[Rle]:
        """The masks as COCO's compressed run lengths."""
        return encode_rle(self.masks)

    def to_polygons(self) -> list[list[Polygon]]:
        """For each mask the exact outlines of its pieces; none for an empty mask."""
        return [patch_polygons(patch) for patch in patches(self.masks)]

    def to_geojson(self, transform: Affine | None = None) -> dict[str, Any]:
        """A GeoJSON FeatureCollection (RFC 7946), a Feature for each mask; its outlines are exact and keep holes.

        Args:
            transform: a, b, c, d, e, f, as rasterio orders them: x' = a x + b y + c, y' = d x + e y + f, from pixels to
                the ground; rasterio's own object is taken, too. By default coordinates are pixels, y down.

        Returns:
            Plain dicts. Properties are ``object_id``, ``score`` and ``area`` in pixels. An empty mask has no geometry.

        Raises:
            ValueError: ``transform`` is none.
        """
        features = [
            geojson_feature(patch, transform, {"object_id": object_id, "score": score, "area": area})
            for patch, object_id, score, area in zip(
                patches(self.masks),
                self.object_ids.tolist(),
                self.iou_scores.tolist(),
                self.areas.tolist(),
                strict=True,
            )
        ]
        return {"type": "FeatureCollection", "features": features}

    def to_labelme(self, image_path: str | os.PathLike[str], *, label: str = "object") -> dict[str, Any]:
        """What labelme opens, once ``json`` has written it.

        Each piece of a mask is a polygon, or, where it has holes, a mask, which keeps them; pieces of an object share
        its number as ``group_id``.

        Args:
            image_path: The image, as seen from the folder of the JSON file.
            label: What the objects are.
        """
        height, width = self.masks.shape[1:]
        shapes = [
            shape
            for patch, object_id in zip(patches(self.masks), self.object_ids.tolist(), strict=True)
            for shape in labelme_shapes(patch, label, object_id)
        ]
        return {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.fspath(image_path),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }

    def to_yolo(self, class_id: int = 0) -> str:
        """Lines of a YOLO segmentation label file, one for each mask that is not empty.

        A line is the class, then x and y of each point as shares of width and height. Its one ring goes around all
        pieces and holes, and the ways between them there and back: filled by the even-odd rule it is the mask.
        """
        height, width = self.masks.shape[1:]
        return "".join(
            yolo_line(patch, (height, width), class_id) + "\n" for patch in patches(self.masks) if patch.inside.size
        )

    def to_supervision(self, class_id: int = 0) -> Any:
        """``supervision.Detections`` with boxes, masks, scores as ``confidence`` and objects as ``tracker_id``.

        Raises:
            ModuleNotFoundError: The package supervision is not installed.
        """
        return optional_package("supervision", "to_supervision()").Detections(
            xyxy=self.boxes,
            mask=np.asarray(self.masks),
            confidence=self.iou_scores,
            class_id=np.full(len(self), class_id),
            tracker_id=self.object_ids,
        )

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each mask.

        Columns: ``object_id``, ``score``, ``area`` in pixels, ``x0``, ``y0``, ``x1``, ``y1``, and ``segmentation``,
        COCO's run lengths.

        Raises:
            ModuleNotFoundError: The package pandas is not installed.
        """
        columns = {"object_id": self.object_ids, "score": self.iou_scores, "area": self.areas}
        columns |= dict(zip(("x0", "y0", "x1", "y1"), self.boxes.T, strict=True))
        return optional_package("pandas", "to_pandas()").DataFrame({**columns, "segmentation": self.to_rle()})

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlay, or the masks on black where there is no image."""
        return notebook_png(
            self.overlay(np.zeros((*self.masks.shape[1:], 3), np.uint8) if self.image is None else None)
        )

    def _repr_html_(self) -> str:
        """The same with a table of what they are; of many masks, of the first."""
        few = self[:ROWS_SHOWN]
        columns = zip(
            few.object_ids.tolist(), few.iou_scores.tolist(), few.areas.tolist(), few.boxes.tolist(), strict=True
        )
        rows = [
            (name, f"{score:.2f}", f"{area:,}", ", ".join(f"{edge:g}" for edge in box))
            for name, score, area, box in columns
        ]
        more = f"; the first {ROWS_SHOWN}:" if len(self) > ROWS_SHOWN else ""
        headings = ("object", "score", "area (px)", "box (x0, y0, x1, y1)")
        return notebook_html(self._repr_png_(), f"{self}{more}", [headings, *rows] if rows else [])

    def _image_or(self, image: ImageSource | None, call: str) -> np.ndarray:
        """The image that was given, or else the one that was kept."""
        canvas = self.image if image is None else read_image(image)
        if canvas is None:
            raise ValueError(f"these masks were kept without their image: pass it, {call}")
        self.check_size(canvas)
        return canvas

    def check_size(self, image: np.ndarray) -> None:
        """Refuse an image that these masks cannot lie on."""
        if image.shape != (*self.masks.shape[1:], 3):
            height, width = self.masks.shape[1:]
            raise ValueError(f"an image of shape {image.shape} does not fit masks of {width}×{height} pixels")
