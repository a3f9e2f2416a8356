"""Short videos in which trackers go wrong, with the mask of one object in every frame.

They are rendered by the recipe's synthetic world from shapes and textures alone, without sources: a kind and a seed
give the same video on every machine. One object is tracked; others look like it, or hide it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from recipes.nano.rendering import render
from recipes.nano.world import Bend, Camera, Motion, Sprite, Texture, World

SIDE_PX, FRAMES = 256, 36
OBJECT = 0  # the first sprite, which the others occlude


@dataclass(frozen=True)
class HardVideo:
    """A video and the truth."""

    name: str
    images: np.ndarray  # (frames, side, side, 3) uint8
    masks: np.ndarray  # (frames, side, side) bool: the object


def hard_video(kind: str, seed: int, frames: int = FRAMES) -> HardVideo:
    """A video of a kind of ``KINDS``."""
    rng = np.random.default_rng([sorted(KINDS).index(kind), seed])
    sprites, label = KINDS[kind](rng, frames)
    times = np.arange(frames, dtype=float)[:, None]
    world = World(texture(rng, 0.6), sprites, Camera(noise=6, noise_seed=seed), times)
    rendered = render([world], SIDE_PX, torch.device("cpu"))
    images = rendered.images[0].movedim(1, -1).numpy()
    return HardVideo(f"{kind} {seed}", images, rendered.labels[0].numpy() == world.first_label + label)


def texture(rng: np.random.Generator, noise_share: float) -> Texture:
    noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Texture(noise, True, rng.integers(40, 216, 3).astype(np.uint8), noise_share, None)


def blob(rng: np.random.Generator) -> Sprite:
    """A smooth shape of its own colour and pattern, which lies in the middle and does not move."""
    angles = np.linspace(0, 2 * np.pi, 64)
    waves = sum(rng.normal(0, 0.2 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 5))
    radii = 120 * np.clip(0.8 + waves, 0.35, 1)
    outline = [(128 + r * np.cos(a), 128 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
    alpha = Image.new("L", (256, 256))
    ImageDraw.Draw(alpha).polygon(outline, fill=255)
    pixels = np.dstack([np.full((256, 256, 3), 128, np.uint8), np.asarray(alpha)])
    return Sprite(pixels, np.array([0.24, 0.24]), 0.0, np.zeros(2), material=texture(rng, 0.35))


def moving(sprite: Sprite, start: tuple[float, float], end: tuple[float, float], frames: int) -> Sprite:
    """Along a line, in sides of the image from its centre."""
    speed = (np.array(end) - start) / (frames - 1)
    return replace(sprite, centre=np.array(start, float), motion=Motion(velocity=np.array([*speed, 0, 0, 0])))


def crossing(rng: np.random.Generator, frames: int) -> tuple[list[Sprite], int]:
    """Two look-alikes cross, and the other one passes in front."""
    own, y = blob(rng), rng.uniform(-0.1, 0.1)
    other = moving(own, (0.35, y + 0.06), (-0.35, y - 0.06), frames)
    return [moving(own, (-0.35, y - 0.06), (0.35, y + 0.06), frames), other], OBJECT


def occlusion(rng: np.random.Generator, frames: int) -> tuple[list[Sprite], int]:
    """The object passes behind a wall that hides it whole, and a look-alike stands where it comes out."""
    own, y = blob(rng), rng.uniform(-0.15, 0.05)
    wall = Sprite(
        np.full((64, 64, 4), 255, np.uint8), np.array([0.3, 1.2]), 0.0, np.zeros(2), material=texture(rng, 0.1)
    )
    other = replace(own, centre=np.array([0.3, y + 0.27]))
    return [moving(own, (-0.36, y), (0.36, y), frames), wall, other], OBJECT


def leaving(rng: np.random.Generator, frames: int) -> tuple[list[Sprite], int]:
    """The object leaves the image and returns, while a look-alike stays in it."""
    own, y = blob(rng), rng.uniform(-0.2, 0.0)
    swing = np.array([0.9, 0, 0, 0, 0])
    motion = Motion(amplitude=swing, frequency=np.array([0.5 / (frames - 1), 0, 0, 0, 0]))
    other = replace(own, centre=np.array([-0.2, y + 0.3]))
    return [replace(own, centre=np.array([-0.15, y]), motion=motion), other], OBJECT


def shape_change(rng: np.random.Generator, frames: int) -> tuple[list[Sprite], int]:
    """The object bends, turns, grows and is stretched, beside a look-alike that does not."""
    own = blob(rng)
    velocity = np.array([0.2, 0.1, 0.7, rng.choice([-1, 1]) * 2.0, 0.5]) / (frames - 1)
    bend = Bend(0.35, 1.0, 0.0, 2.5 / frames)
    changing = replace(own, centre=np.array([-0.2, -0.15]), motion=Motion(velocity=velocity), bend=bend)
    return [changing, replace(own, centre=np.array([0.28, -0.25]))], OBJECT


KINDS = {
    "crossing look-alikes": crossing,
    "full occlusion": occlusion,
    "leaving and returning": leaving,
    "shape change": shape_change,
}
