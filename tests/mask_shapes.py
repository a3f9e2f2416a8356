"""Masks for tests, and plain, slow versions of the computations on them."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

few_examples = settings(max_examples=80, deadline=None)


def bool_masks(min_masks=0, max_masks=4, max_side=12):
    side = st.integers(1, max_side)
    return st.tuples(st.integers(min_masks, max_masks), side, side).flatmap(lambda shape: arrays(bool, shape))


def drawn(*rows):
    """One mask from text: # is inside."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def components_of(mask, neighbours):
    """The connected components of a mask as sets of (row, column), by a plain flood fill."""
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)] if neighbours == 8 else []
    left = set(zip(*mask.nonzero(), strict=True))
    components = []
    while left:
        component, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            component.add((row, column))
            near = {(row + down, column + right) for down, right in steps} & left
            left -= near
            front += near
        components.append(component)
    return components


def filled(rings, height, width):
    """Pixels whose centre is inside: by the even-odd rule, and by the winding number."""
    y, x = np.mgrid[:height, :width] + 0.5
    crossings, winding = np.zeros((2, height, width), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            right_of = x > x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            spans = (min(y0, y1) <= y) & (y < max(y0, y1))
            crossings += spans & right_of
            winding += (spans & right_of) * (1 if y1 > y0 else -1)
    return crossings % 2 == 1, winding != 0


def signed_area(ring):
    """Positive where the ring runs clockwise on the screen, y down."""
    x, y = ring.astype(float).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
