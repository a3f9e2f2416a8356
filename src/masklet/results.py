"""Masks: what people keep of a prediction, and its ways out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masklet.files import replacing
from masklet.masks import Polygon, Rle, encode_rle, mask_areas, mask_boxes, mask_polygons
from masklet.pictures import PictureSource, read_picture

# Told apart on each other's side and on any picture; an object keeps its colour through predictions and frames.
PALETTE = np.array(
    [
        (0, 132, 255),  # blue
        (255, 138, 0),  # orange
        (28, 190, 84),  # green
        (232, 48, 138),  # magenta
        (255, 212, 0),  # yellow
        (130, 84, 245),  # violet
        (0, 200, 200),  # cyan
        (235, 54, 44),  # red
        (160, 220, 30),  # lime
        (255, 140, 190),  # pink
        (150, 96, 50),  # brown
        (150, 190, 255),  # sky
    ],
    np.uint8,
)


@dataclass(frozen=True, eq=False, repr=False)
class Masks:
    """Masks of one picture, each with its score. Immutable; iterating gives ``Masks`` of one mask each.

    An index (a number, a slice, a list, an array of bool or of numbers) gives a ``Masks`` of the chosen ones.
    ``masks``, ``logits``, ``scores`` and ``objects`` are all as long as ``len(self)``, which may be 0.
    """

    masks: np.ndarray
    """(masks, height, width) bool, in pixels of the picture."""
    logits: np.ndarray
    """(masks, h, w) float32, low resolution, before the sigmoid: what ``mask=`` of a next prediction takes."""
    scores: np.ndarray
    """(masks,) float32: the IoU with the true object, as the model estimates it."""
    objects: np.ndarray
    """(masks,) int: the object each mask is of. Several candidates for one object share its number."""
    picture: np.ndarray | None = None
    """(height, width, 3) uint8 RGB, what ``overlay`` paints on."""

    def __post_init__(self) -> None:
        for name, ndim, kind in (("masks", 3, "b"), ("logits", 3, "f"), ("scores", 1, "f"), ("objects", 1, "iu")):
            values = getattr(self, name)
            if values.ndim != ndim or values.dtype.kind not in kind or len(values) != len(self.masks):
                raise ValueError(
                    f"{name} of shape {values.shape}, {values.dtype}, do not fit masks of shape {self.masks.shape}"
                )
        if self.picture is not None:
            self.check_size(self.picture)
        for field in fields(self):
            if (values := getattr(self, field.name)) is not None:
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
            scores=self.scores[chosen],
            objects=self.objects[chosen],
        )

    def __repr__(self) -> str:
        count, height, width = self.masks.shape
        if not count:
            return f"Masks(no masks, {width}×{height})"
        objects = len(np.unique(self.objects))
        return (
            f"Masks({count} mask{'s' * (count > 1)} of {objects} object{'s' * (objects > 1)}, "
            f"{width}×{height}, best score {self.scores.max():.2f})"
        )

    @property
    def boxes(self) -> np.ndarray:
        """(masks, 4) float32: x0, y0, x1, y1, edges in pixels of the picture; zeros for an empty mask."""
        return mask_boxes(self.masks)

    @property
    def areas(self) -> np.ndarray:
        """(masks,) int64, in pixels of the picture."""
        return mask_areas(self.masks)

    @property
    def best(self) -> "Masks":
        """For each object its mask of the highest score, in the order in which the objects first appear."""
        by_score = np.lexsort((-self.scores, self.objects))
        _, starts = np.unique(self.objects[by_score], return_index=True)
        _, appearances = np.unique(self.objects, return_index=True)
        return self[by_score[starts][np.argsort(appearances)]]

    def overlay(self, picture: PictureSource | None = None, *, alpha: float = 0.45) -> Image.Image:
        """The picture with its masks painted over it, each object in a colour of its own.

        Contours have a light line inside the mask and a dark one outside, so that one of them shows on any picture.
        Fills do not mix: where masks overlap, the smallest is seen, under the contours of all.

        Args:
            picture: What to paint on, of the masks' size; by default the picture that was segmented.
            alpha: How much of the picture the fill hides, from 0 (contours alone) to 1.

        Raises:
            ValueError: There is no picture to paint on, it has another size, or ``alpha`` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 (contours alone) to 1 (the fill hides the picture), got {alpha:g}")
        canvas = self.picture if picture is None else read_picture(picture)
        if canvas is None:
            raise ValueError("these masks were kept without their picture: pass it, overlay('truck.jpg')")
        self.check_size(canvas)
        boxes, areas, colours = self.boxes.astype(int), self.areas, colour_of(self.objects)
        small_last = [i for i in np.argsort(-areas, kind="stable") if areas[i]]
        painted = canvas.copy()
        for i in small_last:
            painted[self.masks[i]] = colours[i]
        canvas = np.array(Image.blend(Image.fromarray(canvas), Image.fromarray(painted), alpha))
        line_px = max(1, round(max(canvas.shape[:2]) / 600))
        for i in small_last:
            x0, y0, x1, y1 = boxes[i]
            around = np.s_[max(0, y0 - line_px) : y1 + line_px, max(0, x0 - line_px) : x1 + line_px]
            draw_contour(canvas[around], self.masks[i][around], colours[i], line_px)
        return Image.fromarray(canvas)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks as a PNG of the picture's size. Folders are made, an existing file is replaced whole.

        One mask: 8 bits, 255 inside, 0 outside. Several: mask ``i`` of them has the value ``i + 1``, and the one of
        the higher score is seen where masks overlap; in 8 bits with a colour palette, or in 16 bits of grey for more
        than 255 masks.

        Raises:
            ValueError: The name does not end in .png, or there are more than 65535 masks.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"masks are saved as .png, not as {path.name!r}; to_coco() is for JSON")
        with replacing(path) as unfinished:
            self.index_map().save(unfinished, format="PNG")

    def index_map(self) -> Image.Image:
        """The image that ``save`` writes."""
        count, height, width = self.masks.shape
        if count > 65535:
            raise ValueError(f"{count} masks do not fit the 65535 values of a 16-bit PNG: save them in parts")
        if count < 2:
            return Image.fromarray(self.masks.any(0).astype(np.uint8) * np.uint8(255))
        values = np.zeros((height, width), np.uint8 if count <= 255 else np.uint16)
        for i in np.argsort(self.scores, kind="stable"):
            values[self.masks[i]] = i + 1
        image = Image.fromarray(values)
        if count <= 255:
            image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), colour_of(self.objects)]).tobytes())
        return image

    def to_coco(self, *, image_id: int = 1, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO instances, one a mask, numbered from 1: plain dicts that ``json`` writes and pycocotools loads.

        Each has ``segmentation`` (compressed run lengths), ``bbox`` [x, y, width, height], ``area``, ``score``,
        ``id``, ``image_id``, ``category_id``, ``iscrowd`` 0 and, beyond the format, ``object_id``.
        """
        instances = []
        columns = (self.boxes.tolist(), self.areas.tolist(), self.scores.tolist(), self.objects.tolist())
        rows = zip(self.to_rle(), *columns, strict=True)
        for number, (rle, (x0, y0, x1, y1), area, score, object_id) in enumerate(rows, start=1):
            instances.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": rle,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": area,
                    "iscrowd": 0,
                    "score": score,
                    "object_id": object_id,
                }
            )
        return instances

    def to_rle(self) -> list[Rle]:
        """The masks as COCO's compressed run lengths."""
        return encode_rle(self.masks)

    def to_polygons(self) -> list[list[Polygon]]:
        """For each mask the exact outlines of its pieces; none for an empty mask."""
        return [mask_polygons(mask) for mask in self.masks]

    def check_size(self, picture: np.ndarray) -> None:
        """Refuse a picture that these masks cannot lie on."""
        if picture.shape != (*self.masks.shape[1:], 3):
            height, width = self.masks.shape[1:]
            raise ValueError(f"a picture of shape {picture.shape} does not fit masks of {width}×{height} pixels")


def colour_of(objects: np.ndarray | int) -> np.ndarray:
    """(..., 3) uint8: the colour of each object, from its number; they return after twelve."""
    return PALETTE[np.asarray(objects) % len(PALETTE)]


def draw_contour(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, line_px: int) -> None:
    """Outline ``mask`` on ``canvas``, (height, width, 3) uint8, in place; the picture's border is no outline."""
    light_line = mask & grow(~mask, line_px)
    dark_line = ~mask & grow(mask, line_px)
    canvas[light_line] = 191 + colour // 4
    canvas[dark_line] = canvas[dark_line] // 3


def grow(mask: np.ndarray, by_px: int) -> np.ndarray:
    """``mask`` and all within ``by_px`` of it, by octagons: steps to 4 and to 8 neighbours in turn."""
    for step in range(by_px):
        tall = mask.copy()
        tall[1:] |= mask[:-1]
        tall[:-1] |= mask[1:]
        core = tall if step % 2 else mask
        mask = tall.copy()
        mask[:, 1:] |= core[:, :-1]
        mask[:, :-1] |= core[:, 1:]
    return mask
