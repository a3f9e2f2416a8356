"""CVAT: the XML of "CVAT for images 1.1", and the parts that it shares with "CVAT for video 1.1"."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from masklet.config import SizeHW
from masklet.masks import Patch, joined_ring, patch_polygons, patches
from masklet.results.exporters.classes import Categories, read_classes

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, not even escaped."""


def cvat_document(
    pages: Iterable[tuple[str | os.PathLike[str], MaskExports, Categories | None]],
    *,
    image_id: int = 0,
    names: Sequence[str] | None = None,
    polygons: bool = False,
    tolerance: float = 0.0,
) -> str:
    """The XML of "CVAT for images 1.1" of several images, since an upload to a task replaces all its annotations.

    Args:
        pages: Each image's name in the task, its masks, and their ``categories`` as in ``Masks.to_cvat``.
        image_id: Id of the first image; the others follow.
        names: As in ``Masks.to_cvat``, for all images.
        polygons: As in ``Masks.to_cvat``.
        tolerance: As in ``Masks.to_cvat``.

    Raises:
        ValueError: As in ``Masks.to_cvat``.
    """
    if tolerance and not polygons:
        raise ValueError(f"tolerance={tolerance:g} simplifies polygons, but CVAT's masks are exact: pass polygons=True")
    known: dict[str, None] = {}
    images = []
    for number, (image_path, masks, categories) in enumerate(pages, image_id):
        classes = read_classes(categories, masks.object_ids.tolist(), names)
        known |= dict.fromkeys(classes.names)
        height, width = masks.size_hw
        image = element("image", id=number, name=os.fspath(image_path), width=width, height=height)
        shapes = shape_lines(masks, classes.labels, polygons=polygons, tolerance=tolerance)
        images.append("".join([image.replace("/>\n", ">\n"), *(f"  {line}" for line in shapes), "</image>\n"]))
    return "".join([document_start(known), *images, "</annotations>\n"])


def shape_lines(masks: MaskExports, labels: Sequence[str], *, polygons: bool, tolerance: float) -> Iterator[str]:
    """An element for each mask that is not empty, or for each of its connected components."""
    for number, (patch, label) in enumerate(zip(patches(masks.masks), labels, strict=True), 1):
        shared = {"label": label, "source": "auto", "occluded": 0, "z_order": 0}
        if polygons:
            outlines = patch_polygons(patch, tolerance=tolerance)
            group = {"group_id": number} if len(outlines) > 1 else {}
            for outline in outlines:
                yield element("polygon", **shared, points=points_text(outline.rings), **group)
        elif patch.inside.size:
            yield element("mask", **shared, **mask_attributes(patch))


def document_start(names: Iterable[str], size_hw: SizeHW | None = None) -> str:
    """The beginning of a document: the version, all classes, and the size of a video, which some readers need."""
    labels = "".join(f"  <label><name>{escape(xml_text(name))}</name></label>\n" for name in names)
    size = "<original_size><height>{}</height><width>{}</width></original_size>\n".format(*size_hw) if size_hw else ""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
        f"<labels>\n{labels}</labels>\n{size}</task>\n</meta>\n"
    )


def mask_attributes(patch: Patch) -> dict[str, object]:
    """The box of a mask that is not empty, and the lengths of its runs within the box, row by row."""
    rows, columns = patch.inside.shape
    left, top = patch.corner_xy
    runs = ", ".join(map(str, mask_runs(patch)))
    return {"rle": runs, "left": left, "top": top, "width": columns, "height": rows}


def mask_runs(patch: Patch) -> list[int]:
    """The lengths of the runs of a mask that is not empty, within its box, row by row; the first is background."""
    pixels = np.concatenate([[False], patch.inside.ravel(), [not patch.inside[-1, -1]]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff(edges, prepend=0).tolist()


def points_text(rings: Sequence[np.ndarray]) -> str:
    """The points of one ring around all rings, as CVAT writes them."""
    return ";".join(f"{x:.10g},{y:.10g}" for x, y in joined_ring(rings).tolist())


def element(tag: str, /, **attributes: object) -> str:
    """An XML element without content, on a line of its own."""
    return f"<{tag} {' '.join(f'{key}={quoteattr(xml_text(value))}' for key, value in attributes.items())}/>\n"


def xml_text(value: object) -> str:
    """A value as text that XML can hold.

    Raises:
        ValueError: It has control characters.
    """
    text = str(value)
    if found := NOT_XML.search(text):
        raise ValueError(f"{text!r} has the character {found[0]!r}, which XML cannot hold: expected another name")
    return text
