"""What a synthetic image or clip shows, as numbers and source pixels: nothing of it is drawn yet.

A plane is looked at from its front. Its coordinates are those of the image at time 0, whose side is 1, from its
centre: x right, y down. Lengths are in sides of the image, so that a world looks the same at every input size. Time
is counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """Other colours: ``gain * colour ** gamma + offset``, at times inverted."""

    gamma: Vector  # (3,)
    gain: Vector  # (3,)
    offset: float
    is_inverted: bool


@dataclass(frozen=True)
class EncodedImage:
    """A piece of an image, stretched over a square."""

    pixels: Pixels  # (height, width, 3)
    look: Look | None
    labels: Pixels | None = None  # (height, width): 0 for nothing, 1..k instances


@dataclass(frozen=True)
class Stripes:
    """Waves of another colour."""

    angle: float
    waves: float  # across the square
    sharpness: float
    is_chequered: bool
    colour: Pixels  # (3,)


@dataclass(frozen=True)
class Texture:
    """Noise of some fineness blended with a plain colour, over a square."""

    noise: Pixels  # (cells, cells, 3)
    is_smooth: bool
    plain: Pixels  # (3,)
    noise_share: float
    stripes: Stripes | None


Surface = EncodedImage | Texture


@dataclass(frozen=True)
class Path:
    """A smooth motion that begins where it is: an even one and a swing.

    Five numbers each: x, y, logarithm of the scale, angle in radians, logarithm of the stretch.
    """

    velocity: Vector = field(default_factory=lambda: np.zeros(5))  # a frame
    sway: Vector = field(default_factory=lambda: np.zeros(5))  # half of the way to and fro
    cycles: Vector = field(default_factory=lambda: np.zeros(5))  # a frame
    phase: Vector = field(default_factory=lambda: np.zeros(5))

    def at(self, time: float) -> Matrix:
        """(3, 3): scaled, turned and shifted; the identity at time 0."""
        swing = np.sin(2 * np.pi * self.cycles * time + self.phase) - np.sin(self.phase)
        dx, dy, scale, angle, stretch = self.velocity * time + self.sway * swing
        return shifted(dx, dy) @ turned(angle) @ np.diag([np.exp(scale + stretch), np.exp(scale - stretch), 1])


@dataclass(frozen=True)
class Bend:
    """A wave along y that moves rows of a thing along x, and travels."""

    amount: float  # in halves of the thing's width
    waves: float  # across its height
    phase: float
    cycles: float  # a frame


@dataclass(frozen=True)
class Thing:
    """An object, of its own colours or of a surface's."""

    pixels: Pixels  # (height, width, 4) RGBA
    size: Vector  # (2,) width and height before it is turned
    angle: float  # in radians
    middle: Vector  # (2,) x, y at time 0
    path: Path = field(default_factory=Path)
    material: Surface | None = None
    parts: Pixels | None = None  # (height, width): 0 for none, 1..k
    look: Look | None = None
    light: Vector | None = None  # (2,) towards which side it is lit
    softness: float = 0.0  # standard deviation of a blur
    shadow: Vector | None = None  # (2,) how far it falls, in the image wherever the camera is
    bend: Bend | None = None

    def place(self, time: float) -> Matrix:
        """(3, 3) from its own coordinates, which are those of the plane before it is moved and turned."""
        return shifted(*self.middle) @ self.path.at(time) @ turned(self.angle)


@dataclass(frozen=True)
class Camera:
    """Where it looks, and what it does to what it sees."""

    path: Path = field(default_factory=Path)  # from the image to the plane
    look: Look | None = None
    softness: float = 0.0
    is_grey: bool = False
    quality: int | None = None  # of JPEG, up to 100
    loudness: int = 0  # largest noise, in steps of 1/255
    noise_seed: int = 0


@dataclass(frozen=True)
class World:
    """A plane with things on it, and a camera."""

    ground: Surface
    things: list[Thing]  # the later ones hide the earlier
    camera: Camera = field(default_factory=Camera)
    moments: Matrix = field(default_factory=lambda: np.zeros((1, 1)))
    """(frames, exposures): when light is taken. The middle one of a frame is that of its labels."""
    ground_corner: Vector = field(default_factory=lambda: np.array([-0.5, -0.5]))  # (2,), the least x and y
    ground_side: float = 1.0

    @property
    def ground_labels(self) -> Pixels | None:
        """(height, width): instances of the ground, if it is an annotated image."""
        return self.ground.labels if isinstance(self.ground, EncodedImage) else None

    @cached_property
    def first_label(self) -> int:
        """The number of its first thing, after those of the ground's instances."""
        return 1 + (0 if self.ground_labels is None else int(self.ground_labels.max()))


def shifted(x: float, y: float) -> Matrix:
    """(3, 3)."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def turned(angle: float) -> Matrix:
    """(3, 3), from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
