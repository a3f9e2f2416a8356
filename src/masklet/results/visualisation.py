"""Masks on images: colours, contours, object ids, cut-outs, notebook output. Arrays in, images out."""

import html
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masklet.masks import MaskStack, mask_areas, patches, widened

# Distinct next to each other and on any image. An object keeps its colour across predictions and frames.
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


def colour_of(object_ids: np.ndarray | int) -> np.ndarray:
    """(..., 3) uint8: the colour of each object, by its id; colours repeat after twelve."""
    return PALETTE[np.asarray(object_ids) % len(PALETTE)]


def paint_masks(
    image: np.ndarray, masks: MaskStack, object_ids: np.ndarray, *, alpha: float, ids: bool = False
) -> Image.Image:
    """The image with masks painted over it: see ``Masks.overlay``.

    Args:
        image: (height, width, 3) uint8.
        masks: (masks, height, width) bool.
        object_ids: (masks,) int: they select the colours, and ``ids`` writes them.
        alpha: Opacity of the fill, 0 to 1.
        ids: Whether to write each object's id on its mask.
    """
    areas, colours = mask_areas(masks), colour_of(object_ids)
    order = [i for i in np.argsort(-areas, kind="stable") if areas[i]]  # the smallest last, on top
    canvas = fill_masks(image, masks, order, colours, alpha)
    line_px = max(1, round(max(canvas.shape[:2]) / 600))
    for i, patch in zip(order, patches(masks, order), strict=True):
        wide = widened(patch, line_px, (image.shape[0], image.shape[1]))
        draw_contour(canvas[wide.place], wide.inside, colours[i], line_px)
    painted = Image.fromarray(canvas)
    if ids:
        write_ids(painted, masks, order, object_ids, colours)
    return painted


def fill_masks(
    image: np.ndarray, masks: MaskStack, order: Sequence[int], colours: np.ndarray, alpha: float
) -> np.ndarray:
    """A copy of the image with each mask filled, later ones over earlier ones without mixing."""
    filled = image.copy()
    for i, patch in zip(order, patches(masks, order), strict=True):
        filled[patch.place][patch.inside] = colours[i]
    return np.array(Image.blend(Image.fromarray(image), Image.fromarray(filled), alpha))


def draw_contour(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, line_px: int) -> None:
    """Outlines ``mask`` on ``canvas``, (height, width, 3) uint8, in place; the image's border is not outlined."""
    light_line = mask & grow(~mask, line_px)
    dark_line = ~mask & grow(mask, line_px)
    canvas[light_line] = 191 + colour // 4
    canvas[dark_line] = canvas[dark_line] // 3


def grow(mask: np.ndarray, by_px: int) -> np.ndarray:
    """Dilates a mask by ``by_px`` with an octagon: steps to 4 and to 8 neighbours alternate."""
    for step in range(by_px):
        tall = mask.copy()
        tall[1:] |= mask[:-1]
        tall[:-1] |= mask[1:]
        core = tall if step % 2 else mask
        mask = tall.copy()
        mask[:, 1:] |= core[:, :-1]
        mask[:, :-1] |= core[:, 1:]
    return mask


def write_ids(
    painted: Image.Image, masks: MaskStack, order: Sequence[int], object_ids: np.ndarray, colours: np.ndarray
) -> None:
    """Writes the object's id on the visible part of each mask, or on the mask if all of it is covered."""
    pen, font = ImageDraw.Draw(painted), ImageFont.load_default(max(10, max(painted.size) / 45))
    topmost = np.full(masks.shape[1:], -1)
    for i, patch in zip(order, patches(masks, order), strict=True):
        topmost[patch.place][patch.inside] = i
    for i, patch in zip(order, patches(masks, order), strict=True):
        visible = topmost[patch.place] == i
        x, y = inner_point(visible if visible.any() else patch.inside)
        x0, y0 = patch.corner_xy
        write_number(pen, font, (x0 + x, y0 + y), int(object_ids[i]), colours[i])


def inner_point(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) inside a mask that is not empty: the middle of the longest run in the row that halves its area."""
    areas_above = mask.sum(1).cumsum()
    y = int(np.searchsorted(areas_above, areas_above[-1] / 2))
    edges = np.flatnonzero(np.diff(np.pad(mask[y], 1).astype(np.int8)))  # starts and ends of runs, alternating
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
    """Writes a number in white on a label of the object's colour, darkened for contrast, within the image."""
    text = str(number)
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font)
    margin = (y1 - y0) / 3
    reach_xy = (x1 - x0) / 2 + margin, (y1 - y0) / 2 + margin
    x, y = (
        float(np.clip(at, reach, max(reach, side - reach)))
        for at, reach, side in zip(centre_xy, reach_xy, pen.im.size, strict=True)
    )
    label = (x - reach_xy[0], y - reach_xy[1], x + reach_xy[0], y + reach_xy[1])
    dark = tuple(int(value) // 2 for value in colour)
    pen.rounded_rectangle(label, radius=margin, fill=dark, outline=(255, 255, 255))
    pen.text((x - (x0 + x1) / 2, y - (y0 + y1) / 2), text, (255, 255, 255), font)


def cut_out(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """RGBA: the image inside a mask that is not empty, cropped to its box and transparent outside the mask."""
    (patch,) = patches(mask[None])
    inside = patch.inside[..., None]
    return Image.fromarray(np.concatenate([image[patch.place] * inside, inside * np.uint8(255)], axis=2))


def notebook_png(image: Image.Image, max_side: int = 1024) -> bytes:
    """An image as a PNG for a notebook, reduced to ``max_side`` if it is larger."""
    image = image.copy()
    image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def notebook_html(png: bytes | None, caption: str, rows: Iterable[Sequence[object]] = ()) -> str:
    """HTML for a notebook: an image, a caption below it, and a table.

    Args:
        png: See ``notebook_png``; None for no image.
        caption: Any text.
        rows: Rows of the table; the first row has the headings.
    """
    image = "" if png is None else f'<img src="data:image/png;base64,{b64encode(png).decode()}">'
    head, *body = [[html.escape(str(cell)) for cell in row] for row in rows] or [[]]
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    headings = "".join(f"<th>{cell}</th>" for cell in head)
    table = f"<table><tr>{headings}</tr>{''.join(lines)}</table>" if head else ""
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption>{table}</figure>"
