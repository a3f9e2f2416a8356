"""Parts of a drawn object: a shirt, a wheel."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from masklet.training.worlds import Pixels

COLOURS = 8
"""An object's colours are told apart as coarsely as this; a region of one is a part."""
AREAS = (0.04, 0.7)
"""Smallest and largest part, as shares of the object."""
STEP = 35
"""To the rest of the object, on average along a part's border, in the channel that changes most."""
RAGGEDNESS = 200
"""Border squared over area of a part, at most, where the border is counted in crossings: about 60 for a square."""
MAX_PARTS = 6


def parts_of(patch: Image.Image) -> Pixels:
    """Regions of one colour with clear borders in an RGBA object, (height, width): 0 for none, 1..k, the largest first.

    Where shading or texture was cut into colours, steps across borders are small, or borders long for their region.
    """
    smooth = patch.convert("RGB").filter(ImageFilter.MedianFilter(5))
    colours = np.asarray(smooth.quantize(COLOURS)) + np.uint8(1)
    colours[np.asarray(patch.getchannel("A")) <= 127] = 0
    regions = cc3d.connected_components(colours, connectivity=4)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    smallest, largest = np.array(AREAS) * max(1, areas.sum())
    steps, lengths = _borders(regions, np.asarray(smooth).astype(np.int16))
    is_part = (areas >= smallest) & (areas <= largest)
    is_part &= (steps >= STEP) & (lengths**2 <= RAGGEDNESS * areas)
    chosen = np.flatnonzero(is_part)
    chosen = chosen[np.argsort(-areas[chosen], kind="stable")][:MAX_PARTS]
    table = np.zeros(len(areas), np.uint8)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return table[regions]


def _borders(regions: NDArray, pixels: NDArray[np.int16]) -> tuple[NDArray, NDArray]:
    """Of each region, (regions,) both: the mean step in colour to others, 0 if it meets none; the length of its border.

    Pixels two apart are compared, since borders are soft. Region 0 is outside: it counts for the length alone.
    """
    steps, meetings, lengths = (np.zeros(int(regions.max()) + 1) for _ in range(3))
    for names, colours in ((regions, pixels), (regions.T, pixels.swapaxes(0, 1))):
        here, there = names[:-2], names[2:]
        crosses = here != there
        meets = (crosses & (here > 0) & (there > 0))[crosses]
        step = np.abs(colours[:-2] - colours[2:]).max(-1)[crosses]
        for side in (here[crosses], there[crosses]):
            steps += np.bincount(side, step * meets, len(steps))
            meetings += np.bincount(side, meets, len(steps))
            lengths += np.bincount(side, minlength=len(steps))
    return steps / np.maximum(meetings, 1), lengths
