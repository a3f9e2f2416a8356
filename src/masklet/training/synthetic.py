"""A synthetic world: cut-outs, shapes and real instances on images and textures. Here chance decides what there is.

``worlds`` says what a world is, ``rendering`` draws it, ``clips`` lets it move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklet.training.sources import Sources
from masklet.training.worlds import (
    Bend,
    Camera,
    EncodedImage,
    Look,
    Pixels,
    Stripes,
    Surface,
    Texture,
    Thing,
    Vector,
    World,
)

REAL_SHARE = 0.3
"""Images that begin with an image whose instances are annotated."""
TEXTURE_SHARE = 0.2
"""Backgrounds that are procedural."""
SHAPE_SHARE = 0.15
"""Pasted objects that are procedural shapes."""
REFILL_SHARE = 0.1
"""Pasted cut-outs that keep their outline and are filled with a piece of image or a texture."""
TWIN_SHARE = 0.2
"""Objects that look as the one before, and must be told from it."""
BENT_SHARE = 0.15
"""Objects that are bent a little."""
SHADOW_SHARE = 0.3
MAX_OBJECTS = 4
OBJECT_SIDES = (0.2, 0.9)
"""Longer side of a pasted object."""
PLACES = 5
"""So many are looked at, and the least crowded is taken: occlusion stays the exception."""
CROWD_CELLS = 32
"""Cells along an image's side in which it is noted where objects are."""
NOT_KNOWN = 255
"""In maps of instances: something, or several things that are not told apart."""


@dataclass(frozen=True)
class Patch:
    """An object before it has a place."""

    pixels: Pixels  # (height, width, 4) RGBA
    material: Surface | None
    parts: Pixels | None  # (height, width)


def draw_image(
    sources: Sources, rng: np.random.Generator, *, real_share: float = REAL_SHARE, with_parts: bool = True
) -> World:
    """A world for one image.

    Args:
        sources: What to make it of.
        rng: Decides everything: the same generator state makes the same world.
        real_share: Chance of beginning with an image whose instances are annotated.
        with_parts: Look for parts of cut-outs.
    """
    is_real = rng.random() < real_share
    ground = real_ground(sources, rng) if is_real else draw_surface(sources, rng)
    crowd = _Crowd(ground)
    count = rng.integers(0, 3) if is_real else min(1 + rng.geometric(0.35), MAX_OBJECTS)

    def find_place(thing: Thing) -> Thing:
        # Mostly inside, at times cut by the border.
        thing = crowd.least([replace(thing, middle=middle) for middle in rng.uniform(-0.4, 0.4, (PLACES, 2))])
        crowd.add(thing)
        return thing

    things = draw_things(sources, int(count), find_place, rng, bent_share=BENT_SHARE, with_parts=with_parts)
    return World(ground, things, draw_camera(rng))


def draw_things(
    sources: Sources,
    count: int,
    find_place: Callable[[Thing], Thing],
    rng: np.random.Generator,
    *,
    bent_share: float,
    with_parts: bool,
) -> list[Thing]:
    """Objects, each at the place that ``find_place`` gives it."""
    things: list[Thing] = []
    patch = None
    for _ in range(count):
        if patch is None or rng.random() > TWIN_SHARE:
            patch = draw_patch(sources, rng, with_parts=with_parts)
        things.append(find_place(pose(patch, rng, bent_share)))
    return things


def real_ground(sources: Sources, rng: np.random.Generator) -> EncodedImage:
    """A piece of an annotated image."""
    image, labels = sources.instances[rng.integers(len(sources.instances))]
    box, flip = _crop_box(image, rng, smallest=0.5), _flip(rng)
    numbers = flip(labels.crop(box))
    numbers[numbers == NOT_KNOWN] = 0
    return EncodedImage(flip(image.crop(box)), draw_look(rng, share=0.4), numbers)


def draw_surface(sources: Sources, rng: np.random.Generator) -> Surface:
    """A piece of image or a texture."""
    if rng.random() < TEXTURE_SHARE:
        return _texture(rng)
    image = sources.images[rng.integers(len(sources.images))]
    box, flip = _crop_box(image, rng, smallest=0.3), _flip(rng)
    return EncodedImage(flip(image.crop(box)), draw_look(rng, share=0.6))


def _crop_box(image: Image.Image, rng: np.random.Generator, smallest: float) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a random part, whose aspect varies as that of images stretched to a square does."""
    share = rng.uniform(smallest, 1) * np.array([1, rng.uniform(0.75, 1)])[rng.permutation(2)]
    width, height = np.maximum(1, share * image.size).astype(int)
    x0, y0 = (rng.uniform(0, 1, 2) * (image.width - width, image.height - height)).astype(int)
    return int(x0), int(y0), int(x0 + width), int(y0 + height)


def _flip(rng: np.random.Generator) -> Callable[[Any], NDArray[np.uint8]]:
    """Left is right, or not: of images and label maps alike. The pixels are a copy."""
    step = -1 if rng.random() < 0.5 else 1
    return lambda image: np.array(np.asarray(image)[:, ::step], order="C")


def _texture(rng: np.random.Generator) -> Texture:
    """Noise of a random fineness between random colours, at times striped or chequered."""
    cells = int(2 ** rng.uniform(1, 6))
    noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    is_smooth = rng.random() > 0.1
    plain, share = rng.integers(0, 256, 3, dtype=np.uint8), rng.uniform(0, 0.8)
    stripes = None
    if rng.random() < 0.4:
        stripes = Stripes(
            angle=rng.uniform(0, np.pi),
            waves=2 ** rng.uniform(1, 5),
            sharpness=rng.uniform(1, 8),
            is_chequered=rng.random() < 0.5,
            colour=rng.integers(0, 256, 3, dtype=np.uint8),
        )
    return Texture(noise, is_smooth, plain, share, stripes)


def draw_patch(sources: Sources, rng: np.random.Generator, *, with_parts: bool) -> Patch:
    """A cut-out or a shape, at times of foreign material."""
    if rng.random() < SHAPE_SHARE:
        return Patch(_shape(rng), draw_surface(sources, rng), None)
    index = int(rng.integers(len(sources.cutouts)))
    pixels = np.asarray(sources.cutouts[index])
    if rng.random() < REFILL_SHARE:
        return Patch(pixels, draw_surface(sources, rng), None)
    return Patch(pixels, None, sources.parts_of_cutout(index) if with_parts else None)


def _shape(rng: np.random.Generator, side_px: int = 256) -> Pixels:
    """A white polygon, blob or ellipse, at times with a hole."""
    alpha = Image.new("L", (side_px, side_px))
    draw = ImageDraw.Draw(alpha)
    draw.polygon(_outline(rng, np.array([0.5, 0.5]), 0.48, side_px), fill=255)
    if rng.random() < 0.3:
        draw.polygon(_outline(rng, rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.3), side_px), fill=0)
    return np.dstack([np.full((side_px, side_px, 3), 255, np.uint8), np.asarray(alpha)])


def _outline(rng: np.random.Generator, centre: Vector, radius: float, side_px: int) -> list[tuple[float, float]]:
    """Corners (x, y) in pixels around ``centre``, which like ``radius`` is in fractions of the side."""
    is_smooth = rng.random() < 0.5
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    radii = radius * rng.uniform(0.3, 1, len(angles))
    if is_smooth:
        angles = np.linspace(0, 2 * np.pi, 64)
        waves = sum(rng.normal(0, 0.3 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
        radii = radius * np.clip(0.8 + waves, 0.15, 1)
    corners = (centre[:, None] + radii * np.stack([np.cos(angles), np.sin(angles)])) * side_px
    return [(float(x), float(y)) for x, y in corners.T]


def pose(patch: Patch, rng: np.random.Generator, bent_share: float) -> Thing:
    """Scale, stretch, flip, turn, recolour, bend, light and blur an object. It stands in the middle."""
    size_wh = np.array(patch.pixels.shape[1::-1])
    long_side = np.exp(rng.uniform(*np.log(OBJECT_SIDES)))
    size = size_wh * np.exp(rng.uniform(-0.25, 0.25, 2)) / size_wh.max() * long_side
    flip = _flip(rng)
    degrees = rng.uniform(-20, 20) if rng.random() < 0.6 else rng.uniform(0, 360)
    return Thing(
        pixels=flip(patch.pixels),
        size=size,
        angle=float(np.radians(degrees)),
        middle=np.zeros(2),
        material=patch.material,
        parts=None if patch.parts is None else flip(patch.parts),
        look=draw_look(rng, share=0.7),
        light=rng.uniform(-1, 1, 2) if rng.random() < 0.4 else None,
        softness=rng.uniform(0, 0.006) if rng.random() < 0.2 else 0.0,
        shadow=rng.uniform(-0.05, 0.05, 2) if rng.random() < SHADOW_SHARE else None,
        bend=_bend(rng) if rng.random() < bent_share else None,
    )


def _bend(rng: np.random.Generator) -> Bend:
    return Bend(rng.uniform(0.03, 0.15), rng.uniform(0.3, 1.5), rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15))


def draw_look(rng: np.random.Generator, share: float) -> Look | None:
    """Another gamma, gain and offset in each channel, for a share of all."""
    if rng.random() > share:
        return None
    return Look(
        gamma=np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.1, 3)),
        gain=rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3),
        offset=rng.normal(0, 0.06),
        is_inverted=rng.random() < 0.1,
    )


def draw_camera(rng: np.random.Generator) -> Camera:
    """Exposure, softness, compression and noise, for some."""
    return Camera(
        look=draw_look(rng, share=0.3),
        softness=rng.uniform(0, 0.004) if rng.random() < 0.15 else 0.0,
        is_grey=rng.random() < 0.1,
        quality=int(rng.integers(30, 95)) if rng.random() < 0.15 else None,
        loudness=int(rng.integers(2, 25)) if rng.random() < 0.4 else 0,
        noise_seed=int(rng.integers(2**31)),
    )


class _Crowd:
    """Where objects are, coarsely."""

    def __init__(self, ground: Surface) -> None:
        self.is_taken = np.zeros((CROWD_CELLS, CROWD_CELLS), bool)
        if isinstance(ground, EncodedImage) and ground.labels is not None:
            small = Image.fromarray(ground.labels).resize(self.is_taken.shape, Image.Resampling.NEAREST)
            self.is_taken = np.asarray(small) > 0
        middles = (np.arange(CROWD_CELLS) + 0.5) / CROWD_CELLS - 0.5
        y, x = np.meshgrid(middles, middles, indexing="ij")
        self.cells = np.stack([x, y, np.ones_like(x)])  # (3, cells, cells)

    def least(self, things: list[Thing]) -> Thing:
        """The thing whose box holds the fewest cells of others, and of what is outside the image."""

        def crowd(thing: Thing) -> float:
            half = np.abs(thing.place(0)[:2, :2]) @ thing.size / 2
            inside = (np.abs(self.cells[:2] - thing.middle[:, None, None]) < half[:, None, None]).all(0)
            box = float(np.prod(2 * half)) * CROWD_CELLS**2
            return np.count_nonzero(inside & self.is_taken) + box - np.count_nonzero(inside)

        return min(things, key=crowd)

    def add(self, thing: Thing) -> None:
        """Note where a thing is opaque."""
        own = np.tensordot(np.linalg.inv(thing.place(0)), self.cells, 1)[:2] / thing.size[:, None, None] + 0.5
        height, width = thing.pixels.shape[:2]
        x, y = np.floor(own * np.array([width, height])[:, None, None]).astype(int)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        self.is_taken[inside] |= thing.pixels[y[inside], x[inside], 3] > 127
