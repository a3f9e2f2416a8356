"""Synthetic clips: the world of ``synthetic`` under a camera that moves, with objects that go their own ways.

Coordinates of the world are those of the first picture, whose side is 1, from its centre: x right, y down. Time is
counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.training.sources import Sources
from masklet.training.synthetic import (
    Pixels,
    blend,
    draw_object,
    finish,
    numbering,
    photograph,
    pose,
    real_scene,
    surface,
)

Matrix = NDArray[np.float64]

REAL_SHARE = 0.25
"""Clips over a photo whose instances are annotated: they move as the camera does."""
MAX_OBJECTS = 3
TWIN_SHARE = 0.2
"""Objects that look as the one before, and must be told from it."""
BLUR_SHARE = 0.2
"""Clips whose shutter stays open for part of a frame's time."""
PACES = (0.03, 3.0)
"""Of an object, where 1 makes it cross the picture in half a dozen frames."""
CAMERA_PACES = (0.01, 0.4)
VELOCITY = np.array([0.18, 0.18, 0.08, 0.25, 0.06])
"""At a pace of 1, a frame: x, y, logarithm of the scale, angle in radians, logarithm of the stretch."""
SWAY = np.array([0.5, 0.5, 0.25, 0.5, 0.15])
"""Half of the way to and fro at a pace of 1."""
MAX_BACKGROUND = 2.0
"""Side of the background in sides of the picture; a camera that goes further sees it coarser."""


@dataclass(frozen=True)
class Path:
    """A smooth motion that begins where it is: an even one and a swing."""

    velocity: NDArray[np.float64]  # (5,) as ``VELOCITY``
    sway: NDArray[np.float64]  # (5,)
    cycles: NDArray[np.float64]  # (5,) a frame
    phase: NDArray[np.float64]  # (5,)

    @classmethod
    def draw(cls, rng: np.random.Generator, paces: tuple[float, float]) -> Path:
        """A path at a random pace."""
        pace = np.exp(rng.uniform(*np.log(paces)))
        return cls(
            velocity=pace * VELOCITY * rng.uniform(-1, 1, 5),
            sway=pace * SWAY * rng.uniform(0, 1, 5),
            cycles=rng.uniform(0.02, 0.2, 5),
            phase=rng.uniform(0, 2 * np.pi, 5),
        )

    def at(self, time: float) -> Matrix:
        """(3, 3): scaled, turned and shifted; the identity at time 0."""
        swing = np.sin(2 * np.pi * self.cycles * time + self.phase) - np.sin(self.phase)
        dx, dy, scale, angle, stretch = self.velocity * time + self.sway * swing
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, dx], [sin, cos, dy], [0, 0, 1]])
        return turn @ np.diag([np.exp(scale + stretch), np.exp(scale - stretch), 1])


@dataclass(frozen=True)
class Mover:
    """A cut-out on its way."""

    patch: Image.Image  # RGBA, as large as it is in the first picture
    start: NDArray[np.float64]  # (2,) of its middle
    path: Path

    def place(self, time: float, side_px: int) -> Matrix:
        """(3, 3) from pixels of the patch to the world."""
        centred = np.array([[1, 0, -self.patch.width / 2], [0, 1, -self.patch.height / 2], [0, 0, side_px]]) / side_px
        return _shift(self.start) @ self.path.at(time) @ centred


@dataclass(frozen=True)
class World:
    """All that is filmed."""

    ground: Pixels
    ground_labels: Pixels
    from_ground: Matrix  # (3, 3) from pixels of the ground to the world
    camera: Path  # from the picture to the world
    movers: list[Mover]  # the later ones hide the earlier

    def picture(self, time: float, side_px: int) -> tuple[Pixels, Pixels]:
        """What the camera sees: (side_px, side_px, 3) and (side_px, side_px) labels."""
        from_pixels = np.array([[1, 0, -side_px / 2], [0, 1, -side_px / 2], [0, 0, side_px]]) / side_px
        to_world = self.camera.at(time) @ from_pixels
        to_ground = np.linalg.inv(self.from_ground) @ to_world
        size = (side_px, side_px)
        canvas = np.array(_transform(Image.fromarray(self.ground), size, to_ground, Image.Resampling.BILINEAR))
        # Nearest, as labels are names.
        labels = np.zeros(size, np.uint8)
        if self.ground_labels.any():
            seen = _transform(Image.fromarray(self.ground_labels), size, to_ground, Image.Resampling.NEAREST)
            labels = np.array(seen)
        first = int(self.ground_labels.max()) + 1
        for label, mover in enumerate(self.movers, start=first):
            _lay(canvas, labels, mover.patch, np.linalg.inv(to_world) @ mover.place(time, side_px), label)
        return canvas, labels


def compose_clip(sources: Sources, side_px: int, frames: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Make a clip and its label maps.

    Args:
        sources: What to make it of.
        side_px: Height and width.
        frames: Its length.
        rng: Decides everything.

    Returns:
        (frames, side_px, side_px, 3) uint8 RGB, and (frames, side_px, side_px) uint8 labels: 0 background, 1..k the
        visible pixels of each object that is well visible in the first frame. Later it may be hidden or gone. There
        may be no object.
    """
    world = _world(sources, side_px, frames, rng)
    # The shutter opens a little before the moment whose labels are kept and closes as much after it.
    moments = np.linspace(-0.5, 0.5, 3) * rng.uniform(0.2, 0.7) if rng.random() < BLUR_SHARE else np.zeros(1)
    pictures, labels = [], []
    for time in range(frames):
        shots = [world.picture(time + moment, side_px) for moment in moments]
        pictures.append(
            np.mean([shot for shot, _ in shots], axis=0).astype(np.uint8) if len(shots) > 1 else shots[0][0]
        )
        labels.append(shots[len(shots) // 2][1])
    # One below the other, so that all are taken with the same camera, but for the noise.
    film = photograph(np.concatenate(pictures), rng).reshape(frames, side_px, side_px, 3)
    names = np.stack(labels)
    if rng.random() < 0.5:  # what went away comes in
        film, names = film[::-1].copy(), names[::-1]
    return film, numbering(names[0])[names]


def _world(sources: Sources, side_px: int, frames: int, rng: np.random.Generator) -> World:
    camera = Path.draw(rng, CAMERA_PACES)
    corners = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1]]).T
    # Half a frame more on either side, for the shutter.
    seen = np.concatenate(
        [(camera.at(time) @ corners)[:2] for time in np.linspace(-0.5, frames - 0.5, 2 * frames + 1)], 1
    )
    extent = 1.02 * float((seen.max(1) - seen.min(1)).max())  # with a margin, since PIL sees black half a pixel inside
    low = (seen.min(1) + seen.max(1) - extent) / 2
    ground_px = round(side_px * min(extent, MAX_BACKGROUND))
    is_real = rng.random() < REAL_SHARE
    if is_real:
        ground, labels = real_scene(sources, ground_px, rng)
        labels = numbering(labels)[labels]
    else:
        ground, labels = np.array(surface(sources, ground_px, rng)), np.zeros((ground_px, ground_px), np.uint8)
    from_ground = _shift(low) @ np.diag([extent / ground_px, extent / ground_px, 1])
    movers: list[Mover] = []
    patch = None
    for _ in range(rng.integers(0, MAX_OBJECTS) if is_real else rng.integers(1, MAX_OBJECTS + 1)):
        if patch is None or rng.random() > TWIN_SHARE:
            patch = draw_object(sources, side_px, rng)
        posed = finish(pose(patch, side_px, rng), side_px, rng)
        movers.append(Mover(posed, rng.uniform(-0.4, 0.4, 2), Path.draw(rng, PACES)))
    return World(ground, labels, from_ground, camera, movers)


def _lay(canvas: Pixels, labels: Pixels, patch: Image.Image, to_picture: Matrix, label: int) -> None:
    """Lay a patch onto the canvas, in place. ``to_picture`` is from its pixels to the picture's."""
    side_px = len(canvas)
    corners = np.array([[0, 0, 1], [patch.width, 0, 1], [0, patch.height, 1], [patch.width, patch.height, 1]]).T
    around = to_picture[:2] @ corners
    x0, y0 = (int(v) for v in np.clip(np.floor(around.min(1)), 0, side_px))
    x1, y1 = (int(v) for v in np.clip(np.ceil(around.max(1)), 0, side_px))
    if x0 >= x1 or y0 >= y1:
        return
    # Only the piece that is in the picture is worked on.
    from_piece = np.linalg.inv(to_picture) @ _shift(np.array([x0, y0]))
    piece = _transform(patch, (x1 - x0, y1 - y0), from_piece, Image.Resampling.BILINEAR)
    inside, _ = blend(canvas, np.asarray(piece), x0, y0)
    labels[y0:y1, x0:x1][inside] = label


def _transform(picture: Image.Image, size_wh: tuple[int, int], to_source: Matrix, way: Image.Resampling) -> Image.Image:
    """A picture of ``size_wh``, each pixel of which is looked up where ``to_source`` says; empty beyond the source."""
    return picture.transform(size_wh, Image.Transform.AFFINE, to_source[:2].ravel().tolist(), way)


def _shift(by: NDArray[np.float64]) -> Matrix:
    shift = np.eye(3)
    shift[:2, 2] = by
    return shift
