"""Finds parts of drawn objects, such as a shirt or a wheel: regions of one colour."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from masklet.datasets.scenes import Pixels

COLOURS = 8
"""Number of colours to which an object is quantised; a connected region of one colour may be a part."""
AREA_RANGE = (0.04, 0.7)
"""Smallest and largest area of a part, as shares of the object."""
MIN_CONTRAST = 35
"""Smallest mean difference to the rest of the object along a part's border, in the channel that differs most."""
MAX_RAGGEDNESS = 200
"""Largest squared border length over area of a part. Border length is counted in crossings: about 60 for a square."""
MAX_PARTS = 6


def parts_of(patch: Image.Image) -> Pixels:
    """Parts of an RGBA object, (height, width): 0 for none, 1..k from the largest to the smallest.

    Regions that are artefacts of quantised shading or texture have little contrast or ragged borders, and are no parts.
    """
    smooth = patch.convert("RGB").filter(ImageFilter.MedianFilter(5))
    colours = np.asarray(smooth.quantize(COLOURS)) + np.uint8(1)
    colours[np.asarray(patch.getchannel("A")) <= 127] = 0
    regions = cc3d.connected_components(colours, connectivity=4)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    smallest, largest = np.array(AREA_RANGE) * max(1, areas.sum())
    contrasts, lengths = _borders(regions, np.asarray(smooth).astype(np.int16))
    is_part = (areas >= smallest) & (areas <= largest)
    is_part &= (contrasts >= MIN_CONTRAST) & (lengths**2 <= MAX_RAGGEDNESS * areas)
    chosen = np.flatnonzero(is_part)
    chosen = chosen[np.argsort(-areas[chosen], kind="stable")][:MAX_PARTS]
    table = np.zeros(len(areas), np.uint8)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return table[regions]


def _borders(regions: NDArray, pixels: NDArray[np.int16]) -> tuple[NDArray, NDArray]:
    """The mean contrast of each region to other regions, 0 if it touches none; and the length of its border.

    Compares pixels that are two apart, since borders are blurred. Region 0 is outside the object: it counts for the
    length, not for the contrast.
    """
    contrasts, contacts, lengths = (np.zeros(int(regions.max()) + 1) for _ in range(3))
    for labels, colours in ((regions, pixels), (regions.T, pixels.swapaxes(0, 1))):
        here, there = labels[:-2], labels[2:]
        crosses = here != there
        touches = (crosses & (here > 0) & (there > 0))[crosses]
        contrast = np.abs(colours[:-2] - colours[2:]).max(-1)[crosses]
        for side in (here[crosses], there[crosses]):
            contrasts += np.bincount(side, contrast * touches, len(contrasts))
            contacts += np.bincount(side, touches, len(contrasts))
            lengths += np.bincount(side, minlength=len(contrasts))
    return contrasts / np.maximum(contacts, 1), lengths
