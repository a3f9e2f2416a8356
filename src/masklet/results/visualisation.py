"""Masks on images: colours, contours, numbers, cut-outs. Arrays in, images out."""

import html
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masklet.masks import MaskStack, mask_areas, patches, widened

# Told apart on each other's side and on any image; an object keeps its colour through predictions and frames.
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


def colour_of(objects: np.ndarray | int) -> np.ndarray:
    """(..., 3) uint8: the colour of each object, from its number; they return after twelve."""
    return PALETTE[np.asarray(objects) % len(PALETTE)]


def paint_masks(
    image: np.ndarray, masks: MaskStack, objects: np.ndarray, *, alpha: float, ids: bool = False
) -> Image.Image:
    """The image with masks painted over it: see ``Masks.overlay``.

    Args:
        image: (height, width, 3) uint8.
        masks: (masks, height, width) bool.
        objects: (masks,) int, which choose the colours and are what ``ids`` writes.
        alpha: How much of the image the fill hides, 0 to 1.
        ids: Whether each mask carries its object's number.
    """
    areas, colours = mask_areas(masks), colour_of(objects)
    small_last = [i for i in np.argsort(-areas, kind="stable") if areas[i]]
    filled = image.copy()
    for i, patch in zip(small_last, patches(masks, small_last), strict=True):
        filled[patch.place][patch.inside] = colours[i]
    canvas = np.array(Image.blend(Image.fromarray(image), Image.fromarray(filled), alpha))
    line_px = max(1, round(max(canvas.shape[:2]) / 600))
    for i, patch in zip(small_last, patches(masks, small_last), strict=True):
        wide = widened(patch, line_px, (image.shape[0], image.shape[1]))
        draw_contour(canvas[wide.place], wide.inside, colours[i], line_px)
    painted = Image.fromarray(canvas)
    if ids:
        pen, font = ImageDraw.Draw(painted), ImageFont.load_default(max(10, max(painted.size) / 45))
        topmost = np.full(masks.shape[1:], -1)
        for i, patch in zip(small_last, patches(masks, small_last), strict=True):
            topmost[patch.place][patch.inside] = i
        for i, patch in zip(small_last, patches(masks, small_last), strict=True):
            seen = topmost[patch.place] == i
            x, y = inner_point(seen if seen.any() else patch.inside)
            x0, y0 = patch.corner_xy
            write_number(pen, font, (x0 + x, y0 + y), int(objects[i]), colours[i])
    return painted


def draw_contour(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, line_px: int) -> None:
    """Outline ``mask`` on ``canvas``, (height, width, 3) uint8, in place; the image's border is no outline."""
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


def inner_point(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) inside a mask that is not empty: the middle of the longest run of the row that halves its area."""
    areas_above = mask.sum(1).cumsum()
    y = int(np.searchsorted(areas_above, areas_above[-1] / 2))
    edges = np.flatnonzero(np.diff(np.pad(mask[y], 1).astype(np.int8)))  # where runs start and end, in turn
    starts, ends = edges[::2], edges[1::2]
    longest = np.argmax(ends - starts)
    return (starts[longest] + ends[longest]) / 2, y + 0.5


def write_number(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    centre_xy: tuple[float, float],
    number: int,
    colour: np.ndarray,
) -> None:
    """White on a plate of the object's colour, darkened until white can be read on it; kept within the image."""
    text = str(number)
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font)
    margin = (y1 - y0) / 3
    reach_xy = (x1 - x0) / 2 + margin, (y1 - y0) / 2 + margin
    x, y = (
        float(np.clip(at, reach, max(reach, side - reach)))
        for at, reach, side in zip(centre_xy, reach_xy, pen.im.size, strict=True)
    )
    plate = (x - reach_xy[0], y - reach_xy[1], x + reach_xy[0], y + reach_xy[1])
    dark = tuple(int(value) // 2 for value in colour)
    pen.rounded_rectangle(plate, radius=margin, fill=dark, outline=(255, 255, 255))
    pen.text((x - (x0 + x1) / 2, y - (y0 + y1) / 2), text, (255, 255, 255), font)


def cut_out(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """RGBA of what lies under a mask that is not empty, cropped to its box; all else is transparent black."""
    (patch,) = patches(mask[None])
    inside = patch.inside[..., None]
    return Image.fromarray(np.concatenate([image[patch.place] * inside, inside * np.uint8(255)], axis=2))


def notebook_png(image: Image.Image, max_side: int = 1024) -> bytes:
    """What a notebook shows and keeps: a PNG, made smaller if need be."""
    image = image.copy()
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def notebook_html(png: bytes | None, caption: str, rows: Iterable[Sequence[object]] = ()) -> str:
    """What a notebook shows instead, where it can: a PNG, if there is one, a line below it, and a table.

    Args:
        png: See ``notebook_png``.
        caption: Any text.
        rows: Of the table; the first are its headings.
    """
    image = "" if png is None else f'<img src="data:image/png;base64,{b64encode(png).decode()}">'
    head, *body = [[html.escape(str(cell)) for cell in row] for row in rows] or [[]]
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    headings = "".join(f"<th>{cell}</th>" for cell in head)
    table = f"<table><tr>{headings}</tr>{''.join(lines)}</table>" if head else ""
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption>{table}</figure>"
