"""Parts of drawn objects."""

import numpy as np
from PIL import Image

from recipes.nano.object_parts import parts_of


def painted(paint):
    """An opaque round object of 80 pixels."""
    y, x = np.mgrid[:80, :80]
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 38**2
    pixels = np.dstack([paint(x, y), inside * 255]).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA"), inside


def test_parts_are_regions_of_one_colour():
    def shirt_and_trousers(x, y):
        return np.where((y < 30)[..., None], (200, 30, 30), (20, 20, 220))

    patch, inside = painted(shirt_and_trousers)
    parts = parts_of(patch)
    y = np.mgrid[:80, :80][0]
    assert set(np.unique(parts)) == {0, 1, 2}
    assert ((parts == 1) == (inside & (y >= 30))).mean() > 0.98
    assert ((parts == 2) == (inside & (y < 30))).mean() > 0.98


def test_shading_and_texture_are_not_parts():
    shaded, _ = painted(lambda x, y: np.dstack([x * 3, x * 2, y]))
    noise, _ = painted(lambda x, y: np.random.default_rng(0).integers(0, 255, (*x.shape, 3)))
    plain, _ = painted(lambda x, y: np.full((*x.shape, 3), 90))
    assert not any(parts_of(patch).any() for patch in (shaded, noise, plain))
    assert not parts_of(Image.new("RGBA", (9, 7))).any()
