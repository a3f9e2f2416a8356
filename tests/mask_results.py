"""``Masks`` for tests, and how to compare them."""

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masklet.results import Masks

few_examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rectangles(*boxes, size_hw=(6, 8), iou_scores=None, object_ids=None, image=None):
    """Masks of rectangles (x0, y0, x1, y1)."""
    masks = np.zeros((len(boxes), *size_hw), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Masks(
        masks,
        np.arange(len(boxes) * 4, dtype=np.float32).reshape(-1, 2, 2),
        np.linspace(0.5, 0.9, len(boxes), dtype=np.float32) if iou_scores is None else np.array(iou_scores, np.float32),
        np.arange(len(boxes)) if object_ids is None else np.array(object_ids),
        image,
    )


@st.composite
def any_masks(draw, apart=False):
    """Random masks with object ids beyond 255; ``apart``: not empty, without overlap, with ascending ids."""
    height, width, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 4))
    if apart:
        numbers = draw(arrays(np.int64, (height, width), elements=st.integers(0, count)))
        masks = numbers == np.unique(numbers[numbers > 0])[:, None, None]
    else:
        masks = draw(arrays(bool, (count, height, width)))
    objects = sorted(draw(st.sets(st.integers(0, 65534), min_size=len(masks), max_size=len(masks))))
    return Masks(
        masks,
        np.zeros((len(masks), 2, 2), np.float32),
        np.linspace(0.25, 1, len(masks), dtype=np.float32),
        np.array(objects, int),
    )


def assert_fields_equal(first, second, *names):
    for name in names:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def even_odd(rings, size_hw):
    """(height, width) bool: pixels whose centre has an odd number of edges to its left."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    ends = (sorted((tuple(a), tuple(b))) for ring in rings for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
    crossings = np.zeros(size_hw, int)
    for ((x0, y0), (x1, y1)), count in Counter(map(tuple, ends)).items():
        if y0 != y1 and count % 2:  # a line that is passed twice separates nothing
            crossings += (min(y0, y1) < y) & (y < max(y0, y1)) & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return crossings % 2 == 1
