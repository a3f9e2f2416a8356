"""Descriptions of synthetic images and clips, as numbers and source pixels. ``rendering`` draws them.

A world is a plane with sprites on it and a camera that looks straight at it. Plane coordinates are those of the image
at time 0, whose side has length 1, with the origin at its centre: x right, y down. Lengths are in sides of the image,
so a world looks the same at every input size. Time is counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from masklet.datasets.scenes import Pixels

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ColourJitter:
    """A change of colours: ``gain * colour ** gamma + offset``, then inverted if ``is_inverted``."""

    gamma: Vector  # (3,)
    gain: Vector  # (3,)
    offset: float
    is_inverted: bool


@dataclass(frozen=True)
class ImageSurface:
    """A crop of an image, stretched over a square."""

    pixels: Pixels  # (height, width, 3)
    jitter: ColourJitter | None
    labels: Pixels | None = None  # (height, width): 0 for background, 1..k for instances


@dataclass(frozen=True)
class Stripes:
    """Sine waves, or a chequered pattern, of another colour."""

    angle: float
    waves: float  # across the square
    sharpness: float
    is_chequered: bool
    colour: Pixels  # (3,)


@dataclass(frozen=True)
class Texture:
    """Noise blended with a plain colour, over a square."""

    noise: Pixels  # (cells, cells, 3)
    is_smooth: bool
    plain: Pixels  # (3,)
    noise_share: float
    stripes: Stripes | None


Surface = ImageSurface | Texture


@dataclass(frozen=True)
class Motion:
    """A smooth motion, the identity at time 0: constant velocity plus an oscillation.

    Each field has five numbers: x, y, logarithm of the scale, angle in radians, logarithm of the stretch.
    """

    velocity: Vector = field(default_factory=lambda: np.zeros(5))  # per frame
    amplitude: Vector = field(default_factory=lambda: np.zeros(5))
    frequency: Vector = field(default_factory=lambda: np.zeros(5))  # cycles per frame
    phase: Vector = field(default_factory=lambda: np.zeros(5))

    def at(self, time: float) -> Matrix:
        """The transformation at a time, (3, 3): scale, then rotation, then translation."""
        swing = np.sin(2 * np.pi * self.frequency * time + self.phase) - np.sin(self.phase)
        dx, dy, scale, angle, stretch = self.velocity * time + self.amplitude * swing
        return translation(dx, dy) @ rotation(angle) @ np.diag([np.exp(scale + stretch), np.exp(scale - stretch), 1])


@dataclass(frozen=True)
class Bend:
    """A travelling wave along y that shifts the rows of a sprite along x."""

    amount: float  # in halves of the sprite's width
    waves: float  # across its height
    phase: float
    frequency: float  # cycles per frame


@dataclass(frozen=True)
class Sprite:
    """An object in a world."""

    pixels: Pixels  # (height, width, 4) RGBA
    size: Vector  # (2,) width and height before rotation
    angle: float  # in radians
    centre: Vector  # (2,) x, y at time 0
    motion: Motion = field(default_factory=Motion)
    material: Surface | None = None  # replaces the colours of ``pixels``
    parts: Pixels | None = None  # (height, width): 0 for none, 1..k
    jitter: ColourJitter | None = None
    light: Vector | None = None  # (2,) direction of the light, by which the sprite is shaded
    blur: float = 0.0  # standard deviation
    shadow: Vector | None = None  # (2,) offset of its shadow in the image, whatever the camera does
    bend: Bend | None = None

    def pose(self, time: float) -> Matrix:
        """The transformation from the sprite's to the plane's coordinates at a time, (3, 3), without its size."""
        return translation(*self.centre) @ self.motion.at(time) @ rotation(self.angle)


@dataclass(frozen=True)
class Camera:
    """The camera's motion, and what it does to the image."""

    motion: Motion = field(default_factory=Motion)  # from the image to the plane
    jitter: ColourJitter | None = None
    blur: float = 0.0  # standard deviation
    is_grey: bool = False
    jpeg_quality: int | None = None  # up to 100
    noise: int = 0  # maximum, in steps of 1/255
    noise_seed: int = 0


@dataclass(frozen=True)
class World:
    """A background, sprites on it, and a camera."""

    background: Surface
    sprites: list[Sprite]  # later ones occlude earlier ones
    camera: Camera = field(default_factory=Camera)
    exposures: Matrix = field(default_factory=lambda: np.zeros((1, 1)))
    """(frames, exposures): the times whose mean is the image of a frame. Its labels are those of the middle one."""
    background_corner: Vector = field(default_factory=lambda: np.array([-0.5, -0.5]))  # (2,) least x and y
    background_side: float = 1.0

    @property
    def background_labels(self) -> Pixels | None:
        """(height, width): instances in the background, if it is an annotated image."""
        return self.background.labels if isinstance(self.background, ImageSurface) else None

    @cached_property
    def first_label(self) -> int:
        """The label of the first sprite, after those of the background's instances."""
        return 1 + (0 if self.background_labels is None else int(self.background_labels.max()))


def translation(x: float, y: float) -> Matrix:
    """(3, 3)."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def rotation(angle: float) -> Matrix:
    """(3, 3), from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
