"""A synthetic world: cut-outs, shapes and real instances on photos and textures, with the mask of all that is visible.

Everything is measured in fractions of the picture's side, so that a world looks the same at every input size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from masklet.training.sources import Sources

Pixels = NDArray[np.uint8]

REAL_SHARE = 0.3
"""Pictures that begin with a photo whose instances are annotated."""
TEXTURE_SHARE = 0.2
"""Backgrounds that are procedural."""
SHAPE_SHARE = 0.15
"""Pasted objects that are procedural shapes."""
REFILL_SHARE = 0.1
"""Pasted cut-outs that keep their outline and are filled with a piece of photo or a texture."""
PART_COLOURS = 8
"""An object's colours are told apart as coarsely as this; a region of one is a part."""
PART_AREAS = (0.04, 0.7)
"""Smallest and largest part, as shares of the object."""
PART_STEP = 35
"""To the rest of the object, on average along a part's border, in the channel that changes most."""
PART_RAGGEDNESS = 200
"""Border squared over area of a part, at most, where the border is counted in crossings: about 60 for a square."""
MAX_PARTS = 6
MAX_OBJECTS = 4
OBJECT_SIDES = (0.2, 0.9)
"""Longer side of a pasted object."""
MIN_AREA = 0.01
"""Visible fragments below this share of the picture are not asked for."""


@dataclass(frozen=True)
class Composition:
    """A picture and what is in it. Label maps are 0 where there is nothing, and then 1..k; there may be nothing."""

    picture: Pixels  # (side, side, 3) RGB
    labels: Pixels  # (side, side), the visible pixels of each object
    parts: Pixels  # (side, side), those of parts of pasted objects: a shirt, a wheel


def compose(sources: Sources, side_px: int, rng: np.random.Generator, *, real_share: float = REAL_SHARE) -> Composition:
    """Make one picture and its label maps.

    Args:
        sources: What to make it of.
        side_px: Height and width.
        rng: Decides everything: the same generator state makes the same picture.
        real_share: Chance of beginning with a photo whose instances are annotated.
    """
    is_real = rng.random() < real_share
    canvas, labels = real_scene(sources, side_px, rng) if is_real else _empty_scene(sources, side_px, rng)
    parts = np.zeros_like(labels)
    count = rng.integers(0, 3) if is_real else min(1 + rng.geometric(0.35), MAX_OBJECTS)
    patch = None
    for _ in range(count):
        if patch is None or rng.random() > 0.2:  # a repeated object must be told from its twin
            patch = draw_object(sources, side_px, rng)
        posed = pose(patch, side_px, rng)
        _paste(canvas, labels, parts, finish(posed, side_px, rng), parts_of(posed), rng)
    return Composition(photograph(canvas, rng), numbering(labels)[labels], numbering(parts)[parts])


def real_scene(sources: Sources, side_px: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A square piece of an annotated photo, and its label map."""
    photo, labels = sources.instances[rng.integers(len(sources.instances))]
    box, flip = _crop_box(photo, rng, smallest=0.5), rng.random() < 0.5
    size = (side_px, side_px)
    picture = photo.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2)
    # Nearest, as labels are names: in between 1 and 3 there is no 2. 255 is "several, not told apart".
    numbers = np.asarray(labels.resize(size, Image.Resampling.NEAREST, box=box)).copy()
    numbers[numbers == 255] = 0
    canvas = np.array(_recolour(picture, rng, strength=0.4))
    return (canvas[:, ::-1].copy(), numbers[:, ::-1].copy()) if flip else (canvas, numbers)


def _empty_scene(sources: Sources, side_px: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    return np.array(surface(sources, side_px, rng)), np.zeros((side_px, side_px), np.uint8)


def surface(sources: Sources, side_px: int, rng: np.random.Generator) -> Image.Image:
    """A square piece of photo or texture."""
    if rng.random() < TEXTURE_SHARE:
        return _texture(side_px, rng)
    photo = sources.photos[rng.integers(len(sources.photos))]
    size = (side_px, side_px)
    piece = photo.resize(size, Image.Resampling.BILINEAR, box=_crop_box(photo, rng, smallest=0.3), reducing_gap=2)
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _recolour(piece, rng, strength=0.6)


def _crop_box(photo: Image.Image, rng: np.random.Generator, smallest: float) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a random part, whose aspect varies as that of photos stretched to a square does."""
    share = rng.uniform(smallest, 1) * np.array([1, rng.uniform(0.75, 1)])[rng.permutation(2)]
    width, height = share * photo.size
    x0, y0 = rng.uniform(0, 1, 2) * (photo.width - width, photo.height - height)
    return float(x0), float(y0), float(min(x0 + width, photo.width)), float(min(y0 + height, photo.height))


def _texture(side_px: int, rng: np.random.Generator) -> Image.Image:
    """Smooth noise of a random fineness between random colours, at times striped or chequered."""
    cells = int(2 ** rng.uniform(1, 6))
    noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    way = Image.Resampling.NEAREST if rng.random() < 0.1 else Image.Resampling.BICUBIC
    noise = noise.resize((side_px, side_px), way)
    plain = Image.new("RGB", noise.size, tuple(int(c) for c in rng.integers(0, 256, 3)))
    texture = Image.blend(plain, noise, rng.uniform(0, 0.8))
    if rng.random() < 0.4:
        y, x = np.mgrid[:side_px, :side_px] / side_px
        angle, waves = rng.uniform(0, np.pi), 2 ** rng.uniform(1, 5)
        wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
        if rng.random() < 0.5:
            wave *= np.sin(2 * np.pi * waves * (y * np.cos(angle) - x * np.sin(angle)))
        mask = Image.fromarray((np.clip(wave * rng.uniform(1, 8), -1, 1) * 100 + 128).astype(np.uint8))
        other = Image.new("RGB", noise.size, tuple(int(c) for c in rng.integers(0, 256, 3)))
        texture = Image.composite(other, texture, mask)
    return texture


def draw_object(sources: Sources, side_px: int, rng: np.random.Generator) -> Image.Image:
    """An RGBA object: a cut-out or a shape, at times in foreign material."""
    is_shape = rng.random() < SHAPE_SHARE
    patch = _shape(rng) if is_shape else sources.cutouts[rng.integers(len(sources.cutouts))]
    if is_shape or rng.random() < REFILL_SHARE:
        material = surface(sources, 128, rng).resize(patch.size, Image.Resampling.BILINEAR)
        material.putalpha(patch.getchannel("A"))
        patch = material
    return patch


def _shape(rng: np.random.Generator, side_px: int = 192) -> Image.Image:
    """A white polygon, blob or ellipse, at times with a hole."""
    alpha = Image.new("L", (side_px, side_px))
    draw = ImageDraw.Draw(alpha)
    draw.polygon(_outline(rng, np.array([0.5, 0.5]), 0.48, side_px), fill=255)
    if rng.random() < 0.3:
        draw.polygon(_outline(rng, rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.3), side_px), fill=0)
    shape = Image.new("RGBA", alpha.size, "white")
    shape.putalpha(alpha)
    return shape


def _outline(rng: np.random.Generator, centre: NDArray, radius: float, side_px: int) -> list[tuple[float, float]]:
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


def pose(patch: Image.Image, side_px: int, rng: np.random.Generator) -> Image.Image:
    """Scale, stretch, flip, turn and recolour an object."""
    long_side = side_px * np.exp(rng.uniform(*np.log(OBJECT_SIDES)))
    stretch = np.exp(rng.uniform(-0.25, 0.25, 2))
    width, height = np.maximum(4, np.array(patch.size) * stretch / max(patch.size) * long_side).astype(int)
    patch = patch.resize((int(width), int(height)), Image.Resampling.BILINEAR, reducing_gap=2)
    if rng.random() < 0.5:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-20, 20) if rng.random() < 0.6 else rng.uniform(0, 360)
    patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return _recolour(patch, rng, strength=0.7)


def parts_of(patch: Image.Image) -> Pixels:
    """Regions of one colour with clear borders in an RGBA object, (height, width): 0 for none, 1..k, the largest first.

    Where shading or texture was cut into colours, steps across borders are small, or borders long for their region.
    """
    smooth = patch.convert("RGB").filter(ImageFilter.MedianFilter(5))
    colours = np.asarray(smooth.quantize(PART_COLOURS)) + np.uint8(1)
    colours[np.asarray(patch.getchannel("A")) <= 127] = 0
    regions = cc3d.connected_components(colours, connectivity=4)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    smallest, largest = np.array(PART_AREAS) * max(1, areas.sum())
    steps, lengths = _borders(regions, np.asarray(smooth).astype(np.int16))
    is_part = (areas >= smallest) & (areas <= largest)
    is_part &= (steps >= PART_STEP) & (lengths**2 <= PART_RAGGEDNESS * areas)
    chosen = np.flatnonzero(is_part)
    chosen = chosen[np.argsort(-areas[chosen], kind="stable")][:MAX_PARTS]
    table = np.zeros(len(areas), np.uint8)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return table[regions]


def _borders(regions: NDArray, pixels: NDArray[np.int16]) -> tuple[NDArray, NDArray]:
    """Of each region, (regions,) both: the mean step in colour to others, 0 if it meets none; the length of its border.

    Pixels two apart are compared, since borders are soft. Region 0 is outside: it counts for the length alone.
    """
    steps, meetings, lengths = (np.zeros(int(regions.max()) + 1) for _ in range(3))
    for names, colours in ((regions, pixels), (regions.T, pixels.swapaxes(0, 1))):
        here, there = names[:-2], names[2:]
        crosses = here != there
        meets = (crosses & (here > 0) & (there > 0))[crosses]
        step = np.abs(colours[:-2] - colours[2:]).max(-1)[crosses]
        for side in (here[crosses], there[crosses]):
            steps += np.bincount(side, step * meets, len(steps))
            meetings += np.bincount(side, meets, len(steps))
            lengths += np.bincount(side, minlength=len(steps))
    return steps / np.maximum(meetings, 1), lengths


def finish(patch: Image.Image, side_px: int, rng: np.random.Generator) -> Image.Image:
    """Light and blur an object."""
    if rng.random() < 0.4:
        patch = _light(patch, rng)
    if rng.random() < 0.2:
        patch = patch.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.006) * side_px))
    return patch


def _recolour(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Another gamma, gain and offset in each channel; alpha is left alone."""
    if rng.random() > strength:
        return picture
    level = np.linspace(0, 1, 256)
    gamma = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.1, 3))
    gain, offset = rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3), rng.normal(0, 0.06)
    tables = [np.clip(level**g * k + offset, 0, 1) for g, k in zip(gamma, gain, strict=True)]
    tables += [level] * (len(picture.getbands()) - 3)
    if rng.random() < 0.1:
        tables[:3] = [1 - table for table in tables[:3]]
    return picture.point((np.concatenate(tables) * 255).astype(int).tolist())


def _light(patch: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darken an object towards a random side, so that flat art looks round."""
    slope = rng.uniform(-1, 1, 2)
    x, y = np.linspace(-1, 1, patch.width), np.linspace(-1, 1, patch.height)[:, None]
    shade = np.clip(0.75 + 0.35 * (slope[0] * x + slope[1] * y), 0.2, 1)
    pixels = np.array(patch)
    pixels[..., :3] = pixels[..., :3] * shade[..., None].astype(np.float32)
    return Image.fromarray(pixels)


def _paste(
    canvas: Pixels, labels: Pixels, parts: Pixels, patch: Image.Image, parts_of_patch: Pixels, rng: np.random.Generator
) -> None:
    """Lay an object, and at times its shadow, onto the canvas; its pixels and its parts get the next labels."""
    side_px = len(canvas)
    # Mostly inside, at times cut by the border; of a few places the least crowded: occlusion stays the exception.
    centres = rng.uniform(0.1, 0.9, (5, 2)) * side_px
    corners = [(int(cx - patch.width / 2), int(cy - patch.height / 2)) for cx, cy in centres]
    x, y = min(corners, key=lambda corner: _crowd(labels, corner[0], corner[1], patch.width, patch.height))
    if rng.random() < 0.3:
        dx, dy = rng.integers(-side_px // 20, side_px // 20 + 1, 2)
        shadow = Image.new("RGBA", patch.size)
        shadow.putalpha(patch.getchannel("A").point([int(v * 0.5) for v in range(256)]))
        shadow = shadow.filter(ImageFilter.BoxBlur(side_px // 64))
        blend(canvas, np.asarray(shadow), x + int(dx), y + int(dy))
    pixels = np.asarray(patch)
    inside, (x0, y0, x1, y1) = blend(canvas, pixels, x, y)
    if inside is not None:
        labels[y0:y1, x0:x1][inside] = labels.max() + 1
        seen = parts_of_patch[y0 - y : y1 - y, x0 - x : x1 - x][inside]
        parts[y0:y1, x0:x1][inside] = np.where(seen > 0, seen + parts.max(), 0)


def _crowd(labels: Pixels, x: int, y: int, width: int, height: int) -> int:
    """Pixels of objects, and pixels outside the picture, in a box."""
    piece = labels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    return int(np.count_nonzero(piece)) + width * height - piece.size


def blend(canvas: Pixels, patch: Pixels, x: int, y: int) -> tuple[NDArray[np.bool_] | None, tuple[int, int, int, int]]:
    """Alpha-blend an RGBA patch at (x, y), in place: where it is more than half opaque, and the box it fills."""
    height, width = patch.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, canvas.shape[1]), min(y + height, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return None, (0, 0, 0, 0)
    piece = patch[y0 - y : y1 - y, x0 - x : x1 - x]
    alpha = piece[..., 3:].astype(np.uint16)
    under = canvas[y0:y1, x0:x1]
    under[:] = ((piece[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
    return alpha[..., 0] > 127, (x0, y0, x1, y1)


def photograph(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """What a camera does to the whole picture, or to a column of them: exposure, softness, noise, compression."""
    picture = _recolour(Image.fromarray(canvas), rng, strength=0.3)
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.004) * picture.width))
    if rng.random() < 0.1:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.15:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(30, 95)))
        picture = Image.open(file)
    pixels = np.array(picture)
    if rng.random() < 0.4:
        loud = int(rng.integers(2, 25))
        noise = rng.integers(-loud, loud, pixels.shape, dtype=np.int16, endpoint=True)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels


def numbering(labels: Pixels) -> Pixels:
    """A table from old labels to new, (256,): what is hardly visible becomes background, the rest 1..k."""
    counts = np.bincount(labels.ravel(), minlength=256)
    is_kept = counts >= MIN_AREA * labels.size
    is_kept[0] = False
    return np.where(is_kept, np.cumsum(is_kept), 0).astype(np.uint8)
