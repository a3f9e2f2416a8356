"""Random worlds for images: cut-outs, procedural shapes and annotated instances on images and textures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklet.datasets.scenes import Pixels
from recipes.nano.sources import Sources
from recipes.nano.world import (
    Bend,
    Camera,
    ColourJitter,
    ImageSurface,
    Sprite,
    Stripes,
    Surface,
    Texture,
    Vector,
    World,
)

ANNOTATED_SHARE = 0.3
"""Share of images whose background is an annotated image."""
TEXTURE_SHARE = 0.2
"""Share of surfaces that are procedural textures."""
SHAPE_SHARE = 0.15
"""Share of sprites that are procedural shapes."""
REFILL_SHARE = 0.1
"""Share of cut-outs that are filled with a crop of an image or a texture."""
TWIN_SHARE = 0.2
"""Share of sprites that look like the one before, so that objects must be told apart by position."""
BENT_SHARE = 0.15
"""Share of sprites that are bent a little."""
SHADOW_SHARE = 0.3
"""Share of sprites with a shadow."""
MAX_SPRITES = 4
SPRITE_SIDES = (0.2, 0.9)
"""Range of the longer side of a sprite."""
CANDIDATE_PLACES = 5
"""Number of random places for a sprite, of which the least occupied is taken, to keep occlusion rare."""
OCCUPANCY_CELLS = 32
"""Cells along an image's side in which occupancy is recorded."""
UNKNOWN_LABEL = 255
"""In label maps of annotated images: pixels that belong to no single instance."""


@dataclass(frozen=True)
class Patch:
    """The appearance of a sprite, before it has a pose."""

    pixels: Pixels  # (height, width, 4) RGBA
    material: Surface | None
    parts: Pixels | None  # (height, width)


def sample_image_world(
    sources: Sources, rng: np.random.Generator, *, annotated_share: float = ANNOTATED_SHARE, with_parts: bool = True
) -> World:
    """A random world for one image.

    Args:
        sources: Material.
        rng: Decides everything: the same state gives the same world.
        annotated_share: Probability of an annotated image as background.
        with_parts: Find the parts of cut-outs.
    """
    is_annotated = rng.random() < annotated_share
    background = sample_annotated_image(sources, rng) if is_annotated else sample_surface(sources, rng)
    occupancy = _Occupancy(background)
    count = rng.integers(0, 3) if is_annotated else min(1 + rng.geometric(0.35), MAX_SPRITES)

    def place(sprite: Sprite) -> Sprite:
        # Mostly inside the image, sometimes cut by its border.
        centres = rng.uniform(-0.4, 0.4, (CANDIDATE_PLACES, 2))
        sprite = occupancy.least_occupied([replace(sprite, centre=centre) for centre in centres])
        occupancy.add(sprite)
        return sprite

    sprites = sample_sprites(sources, int(count), place, rng, bent_share=BENT_SHARE, with_parts=with_parts)
    return World(background, sprites, sample_camera(rng))


def sample_sprites(
    sources: Sources,
    count: int,
    place: Callable[[Sprite], Sprite],
    rng: np.random.Generator,
    *,
    bent_share: float,
    with_parts: bool,
) -> list[Sprite]:
    """Random sprites, each passed through ``place``, which positions it."""
    sprites: list[Sprite] = []
    patch = None
    for _ in range(count):
        if patch is None or rng.random() > TWIN_SHARE:
            patch = sample_patch(sources, rng, with_parts=with_parts)
        sprites.append(place(sample_sprite(patch, rng, bent_share)))
    return sprites


def sample_annotated_image(sources: Sources, rng: np.random.Generator) -> ImageSurface:
    """A random crop of an annotated image."""
    image, labels = sources.instances[rng.integers(len(sources.instances))]
    box, flip = _crop_box(image, rng, smallest=0.5), _sample_flip(rng)
    numbers = flip(labels.crop(box))
    numbers[numbers == UNKNOWN_LABEL] = 0
    return ImageSurface(flip(image.crop(box)), sample_jitter(rng, share=0.4), numbers)


def sample_surface(sources: Sources, rng: np.random.Generator) -> Surface:
    """A random crop of an image, or a texture."""
    if rng.random() < TEXTURE_SHARE:
        return _sample_texture(rng)
    image = sources.images[rng.integers(len(sources.images))]
    box, flip = _crop_box(image, rng, smallest=0.3), _sample_flip(rng)
    return ImageSurface(flip(image.crop(box)), sample_jitter(rng, share=0.6))


def _crop_box(image: Image.Image, rng: np.random.Generator, smallest: float) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a random crop. Its aspect ratio varies like that of images stretched to a square."""
    share = rng.uniform(smallest, 1) * np.array([1, rng.uniform(0.75, 1)])[rng.permutation(2)]
    width, height = np.maximum(1, share * image.size).astype(int)
    x0, y0 = (rng.uniform(0, 1, 2) * (image.width - width, image.height - height)).astype(int)
    return int(x0), int(y0), int(x0 + width), int(y0 + height)


def _sample_flip(rng: np.random.Generator) -> Callable[[Any], NDArray[np.uint8]]:
    """A function that copies the pixels of images and label maps, mirrored in half of the cases."""
    step = -1 if rng.random() < 0.5 else 1
    return lambda image: np.array(np.asarray(image)[:, ::step], order="C")


def _sample_texture(rng: np.random.Generator) -> Texture:
    """Noise of random fineness and colours, sometimes striped or chequered."""
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


def sample_patch(sources: Sources, rng: np.random.Generator, *, with_parts: bool) -> Patch:
    """A random cut-out or shape; a shape, and some cut-outs, are filled with another surface."""
    if rng.random() < SHAPE_SHARE:
        return Patch(_sample_shape(rng), sample_surface(sources, rng), None)
    index = int(rng.integers(len(sources.cutouts)))
    pixels = np.asarray(sources.cutouts[index])
    if rng.random() < REFILL_SHARE:
        return Patch(pixels, sample_surface(sources, rng), None)
    return Patch(pixels, None, sources.parts_of_cutout(index) if with_parts else None)


def _sample_shape(rng: np.random.Generator, side_px: int = 256) -> Pixels:
    """A white polygon, blob or ellipse, sometimes with a hole."""
    alpha = Image.new("L", (side_px, side_px))
    canvas = ImageDraw.Draw(alpha)
    canvas.polygon(_sample_outline(rng, np.array([0.5, 0.5]), 0.48, side_px), fill=255)
    if rng.random() < 0.3:
        canvas.polygon(_sample_outline(rng, rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.3), side_px), fill=0)
    return np.dstack([np.full((side_px, side_px, 3), 255, np.uint8), np.asarray(alpha)])


def _sample_outline(rng: np.random.Generator, centre: Vector, radius: float, side_px: int) -> list[tuple[float, float]]:
    """Corners (x, y) in pixels around ``centre``. Centre and radius are fractions of the side."""
    is_smooth = rng.random() < 0.5
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    radii = radius * rng.uniform(0.3, 1, len(angles))
    if is_smooth:
        angles = np.linspace(0, 2 * np.pi, 64)
        waves = sum(rng.normal(0, 0.3 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
        radii = radius * np.clip(0.8 + waves, 0.15, 1)
    corners = (centre[:, None] + radii * np.stack([np.cos(angles), np.sin(angles)])) * side_px
    return [(float(x), float(y)) for x, y in corners.T]


def sample_sprite(patch: Patch, rng: np.random.Generator, bent_share: float) -> Sprite:
    """A sprite of random size, angle, colours, light and so on, in the centre of the image."""
    size_wh = np.array(patch.pixels.shape[1::-1])
    long_side = np.exp(rng.uniform(*np.log(SPRITE_SIDES)))
    size = size_wh * np.exp(rng.uniform(-0.25, 0.25, 2)) / size_wh.max() * long_side
    flip = _sample_flip(rng)
    degrees = rng.uniform(-20, 20) if rng.random() < 0.6 else rng.uniform(0, 360)
    return Sprite(
        pixels=flip(patch.pixels),
        size=size,
        angle=float(np.radians(degrees)),
        centre=np.zeros(2),
        material=patch.material,
        parts=None if patch.parts is None else flip(patch.parts),
        jitter=sample_jitter(rng, share=0.7),
        light=rng.uniform(-1, 1, 2) if rng.random() < 0.4 else None,
        blur=rng.uniform(0, 0.006) if rng.random() < 0.2 else 0.0,
        shadow=rng.uniform(-0.05, 0.05, 2) if rng.random() < SHADOW_SHARE else None,
        bend=_sample_bend(rng) if rng.random() < bent_share else None,
    )


def _sample_bend(rng: np.random.Generator) -> Bend:
    return Bend(rng.uniform(0.03, 0.15), rng.uniform(0.3, 1.5), rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15))


def sample_jitter(rng: np.random.Generator, share: float) -> ColourJitter | None:
    """A random change of colours with probability ``share``."""
    if rng.random() > share:
        return None
    return ColourJitter(
        gamma=np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.1, 3)),
        gain=rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3),
        offset=rng.normal(0, 0.06),
        is_inverted=rng.random() < 0.1,
    )


def sample_camera(rng: np.random.Generator) -> Camera:
    """A camera with random colours, blur, compression and noise, each with some probability."""
    return Camera(
        jitter=sample_jitter(rng, share=0.3),
        blur=rng.uniform(0, 0.004) if rng.random() < 0.15 else 0.0,
        is_grey=rng.random() < 0.1,
        jpeg_quality=int(rng.integers(30, 95)) if rng.random() < 0.15 else None,
        noise=int(rng.integers(2, 25)) if rng.random() < 0.4 else 0,
        noise_seed=int(rng.integers(2**31)),
    )


class _Occupancy:
    """A coarse map of where objects are."""

    def __init__(self, background: Surface) -> None:
        self.is_taken = np.zeros((OCCUPANCY_CELLS, OCCUPANCY_CELLS), bool)
        if isinstance(background, ImageSurface) and background.labels is not None:
            small = Image.fromarray(background.labels).resize(self.is_taken.shape, Image.Resampling.NEAREST)
            self.is_taken = np.asarray(small) > 0
        centres = (np.arange(OCCUPANCY_CELLS) + 0.5) / OCCUPANCY_CELLS - 0.5
        y, x = np.meshgrid(centres, centres, indexing="ij")
        self.cells = np.stack([x, y, np.ones_like(x)])  # (3, cells, cells)

    def least_occupied(self, sprites: list[Sprite]) -> Sprite:
        """The sprite whose bounding box has the fewest cells that are occupied or outside the image."""

        def occupied_cells(sprite: Sprite) -> float:
            half = np.abs(sprite.pose(0)[:2, :2]) @ sprite.size / 2
            inside = (np.abs(self.cells[:2] - sprite.centre[:, None, None]) < half[:, None, None]).all(0)
            box = float(np.prod(2 * half)) * OCCUPANCY_CELLS**2
            return np.count_nonzero(inside & self.is_taken) + box - np.count_nonzero(inside)

        return min(sprites, key=occupied_cells)

    def add(self, sprite: Sprite) -> None:
        """Marks the cells in which a sprite is opaque."""
        own = np.tensordot(np.linalg.inv(sprite.pose(0)), self.cells, 1)[:2] / sprite.size[:, None, None] + 0.5
        height, width = sprite.pixels.shape[:2]
        x, y = np.floor(own * np.array([width, height])[:, None, None]).astype(int)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        self.is_taken[inside] |= sprite.pixels[y[inside], x[inside], 3] > 127
