"""Random worlds for clips: those of ``image_worlds`` with a moving camera and moving sprites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recipes.nano.image_worlds import sample_annotated_image, sample_camera, sample_sprites, sample_surface
from recipes.nano.sources import Sources
from recipes.nano.world import Matrix, Motion, Sprite, Vector, World

ANNOTATED_SHARE = 0.25
"""Share of clips whose background is an annotated image; its instances move as the camera does."""
MAX_SPRITES = 3
BENT_SHARE = 0.35
"""Share of sprites whose shape changes over time."""
BLUR_SHARE = 0.2
"""Share of clips with motion blur."""
EXPOSURES = 3
"""Number of exposures that are averaged for a frame with motion blur."""
SPRITE_PACES = (0.03, 3.0)
"""Range of a sprite's pace. At 1, it crosses the image in about six frames."""
CAMERA_PACES = (0.01, 0.4)
"""Range of the camera's pace."""
VELOCITY = np.array([0.18, 0.18, 0.08, 0.25, 0.06])
"""Largest velocity at a pace of 1, see ``Motion``."""
AMPLITUDE = np.array([0.5, 0.5, 0.25, 0.5, 0.15])
"""Largest amplitude at a pace of 1."""


def sample_clip_world(sources: Sources, frames: int, rng: np.random.Generator) -> World:
    """A random world for a clip.

    Args:
        sources: Material.
        frames: Length of the clip.
        rng: Decides everything: the same state gives the same world.
    """
    camera_motion = sample_motion(rng, CAMERA_PACES)
    is_annotated = rng.random() < ANNOTATED_SHARE
    background = sample_annotated_image(sources, rng) if is_annotated else sample_surface(sources, rng)
    count = rng.integers(0, MAX_SPRITES) if is_annotated else rng.integers(1, MAX_SPRITES + 1)

    def place(sprite: Sprite) -> Sprite:
        return replace(sprite, centre=rng.uniform(-0.4, 0.4, 2), motion=sample_motion(rng, SPRITE_PACES))

    sprites = sample_sprites(sources, int(count), place, rng, bent_share=BENT_SHARE, with_parts=False)
    # Exposures are centred on the time that the labels belong to.
    is_blurred = rng.random() < BLUR_SHARE
    offsets = np.linspace(-0.5, 0.5, EXPOSURES) * rng.uniform(0.2, 0.7) if is_blurred else np.zeros(1)
    exposures = np.arange(frames)[:, None] + offsets
    corner, side = _visible_square(camera_motion, exposures)
    if rng.random() < 0.5:  # in reverse, objects that leave the image enter it
        exposures = exposures[::-1]
    return World(background, sprites, replace(sample_camera(rng), motion=camera_motion), exposures, corner, side)


def sample_motion(rng: np.random.Generator, paces: tuple[float, float]) -> Motion:
    """A random motion at a random pace within a range."""
    pace = np.exp(rng.uniform(*np.log(paces)))
    return Motion(
        velocity=pace * VELOCITY * rng.uniform(-1, 1, 5),
        amplitude=pace * AMPLITUDE * rng.uniform(0, 1, 5),
        frequency=rng.uniform(0.02, 0.2, 5),
        phase=rng.uniform(0, 2 * np.pi, 5),
    )


def _visible_square(camera: Motion, times: Matrix) -> tuple[Vector, float]:
    """The square of the plane that the camera sees at any of the times: least x and y, and side."""
    corners = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1]]).T
    visible = np.concatenate([(camera.at(time) @ corners)[:2] for time in times.ravel()], 1)
    side = float((visible.max(1) - visible.min(1)).max())
    return (visible.min(1) + visible.max(1) - side) / 2, side
