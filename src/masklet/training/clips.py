"""Synthetic clips: the world of ``synthetic`` under a camera that moves, with objects that go their own ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from masklet.training.sources import Sources
from masklet.training.synthetic import draw_camera, draw_surface, draw_things, real_ground
from masklet.training.worlds import Path, Thing, World

REAL_SHARE = 0.25
"""Clips over an image whose instances are annotated: they move as the camera does."""
MAX_OBJECTS = 3
BENT_SHARE = 0.35
"""Objects whose form changes as they go."""
BLUR_SHARE = 0.2
"""Clips whose shutter stays open for part of a frame's time."""
EXPOSURES = 3
"""Moments that such a frame is the mean of."""
PACES = (0.03, 3.0)
"""Of an object, where 1 makes it cross the image in half a dozen frames."""
CAMERA_PACES = (0.01, 0.4)
VELOCITY = np.array([0.18, 0.18, 0.08, 0.25, 0.06])
"""At a pace of 1, a frame, as ``Path`` counts."""
SWAY = np.array([0.5, 0.5, 0.25, 0.5, 0.15])


def draw_clip(sources: Sources, frames: int, rng: np.random.Generator) -> World:
    """A world for a clip.

    Args:
        sources: What to make it of.
        frames: Its length.
        rng: Decides everything.
    """
    camera_path = draw_path(rng, CAMERA_PACES)
    is_real = rng.random() < REAL_SHARE
    ground = real_ground(sources, rng) if is_real else draw_surface(sources, rng)
    count = rng.integers(0, MAX_OBJECTS) if is_real else rng.integers(1, MAX_OBJECTS + 1)

    def set_off(thing: Thing) -> Thing:
        return replace(thing, middle=rng.uniform(-0.4, 0.4, 2), path=draw_path(rng, PACES))

    things = draw_things(sources, int(count), set_off, rng, bent_share=BENT_SHARE, with_parts=False)
    # The shutter opens a little before the moment whose labels are kept and closes as much after it.
    is_blurred = rng.random() < BLUR_SHARE
    open_for = np.linspace(-0.5, 0.5, EXPOSURES) * rng.uniform(0.2, 0.7) if is_blurred else np.zeros(1)
    moments = np.arange(frames)[:, None] + open_for
    corner, side = _extent(camera_path, moments)
    if rng.random() < 0.5:  # what went away comes in
        moments = moments[::-1]
    return World(ground, things, replace(draw_camera(rng), path=camera_path), moments, corner, side)


def draw_path(rng: np.random.Generator, paces: tuple[float, float]) -> Path:
    """A path at a random pace."""
    pace = np.exp(rng.uniform(*np.log(paces)))
    return Path(
        velocity=pace * VELOCITY * rng.uniform(-1, 1, 5),
        sway=pace * SWAY * rng.uniform(0, 1, 5),
        cycles=rng.uniform(0.02, 0.2, 5),
        phase=rng.uniform(0, 2 * np.pi, 5),
    )


def _extent(camera: Path, moments: np.ndarray) -> tuple[np.ndarray, float]:
    """The square that a camera sees of the plane: its least x and y, and its side."""
    corners = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1]]).T
    seen = np.concatenate([(camera.at(time) @ corners)[:2] for time in moments.ravel()], 1)
    side = float((seen.max(1) - seen.min(1)).max())
    return (seen.min(1) + seen.max(1) - side) / 2, side
