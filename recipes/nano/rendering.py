"""Renders worlds: whole batches of frames at once, on the device that trains on them.

All randomness is drawn before, so a world is the same on all devices up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.datasets.scenes import Pixels
from recipes.nano.effects import box_blurred, captured, colour_jittered, gaussian_blurred
from recipes.nano.world import ImageSurface, Matrix, Sprite, Surface, Texture, World, translation

MAX_BACKGROUND = 2.0
"""Largest side of a rendered background, in sides of the image. A camera that sees more of it sees it coarser."""
SHADOW_OPACITY = 0.5
SHADOW_BLUR = 1 / 64
"""Reach of the blur of shadows, in sides of the image."""
MAX_PARTS = 256
"""More than the number of parts of any sprite."""
MIN_MATERIAL_PX = 128
"""Smallest size at which material is rendered before it is shrunk: its detail may be finer than a pixel of a small
sprite."""
MAX_SHRINKING = 2
"""Resolution of a sprite that grows in a clip, relative to where it is smallest. At a higher one it would flicker
there."""
TO_HALVES = np.diag([0.5, 0.5, 1])
"""From coordinates of -1..1 across an image to coordinates in which the image has side 1."""


@dataclass(frozen=True)
class Rendered:
    """Videos of worlds, with label maps."""

    images: Tensor  # (worlds, frames, 3, side, side) uint8
    labels: Tensor  # (worlds, frames, side, side) int16: 0 for none, the background's instances, then the sprites
    parts: Tensor  # (worlds, frames, side, side) int16: 0 for none; no two parts in a world share a number


@dataclass(frozen=True)
class _View:
    """One exposure of one world."""

    world: int
    time: float
    to_plane: Matrix  # (3, 3) from -1..1 across the image


@dataclass
class _Canvases:
    """One canvas for each view, with all that has been drawn so far."""

    colours: Tensor  # (views, 3, side, side) 0 to 1
    labels: Tensor  # (views, side, side) int16
    parts: Tensor  # (views, side, side) int16


def render(worlds: Sequence[World], side_px: int, device: torch.device) -> Rendered:
    """Renders worlds that all have the same number of frames.

    Args:
        worlds: At least one.
        side_px: Height and width of the images, a multiple of 16.
        device: Device to render on.
    """
    views = [
        _View(index, time, world.camera.motion.at(time) @ TO_HALVES)
        for index, world in enumerate(worlds)
        for time in world.exposures.ravel()
    ]
    canvases = _backgrounds(worlds, views, side_px, device)
    for layer in range(max(len(world.sprites) for world in worlds)):
        _draw_layer(canvases, worlds, views, layer)
    frames = len(worlds[0].exposures)
    exposures = [world.exposures.shape[1] for world in worlds]
    split = [part.unflatten(0, (frames, -1)) for part in canvases.colours.split([frames * n for n in exposures])]
    videos = torch.stack([frame.mean(1) if frame.shape[1] > 1 else frame[:, 0] for frame in split])
    first = np.cumsum([0, *(frames * n for n in exposures)])
    middle = [first[w] + frame * n + n // 2 for w, n in enumerate(exposures) for frame in range(frames)]
    labels, parts = (maps[middle].unflatten(0, (-1, frames)) for maps in (canvases.labels, canvases.parts))
    return Rendered(captured(videos, [world.camera for world in worlds]), labels, parts)


def _backgrounds(worlds: Sequence[World], views: Sequence[_View], side_px: int, device: torch.device) -> _Canvases:
    colours, labels = [], []
    for index, world in enumerate(worlds):
        world_views = [view for view in views if view.world == index]
        to_background = np.diag([2, 2, 1]) @ translation(-0.5, -0.5)  # from 0..1 to -1..1 across the background
        to_background = to_background @ np.diag([1 / world.background_side] * 2 + [1])
        to_background = to_background @ translation(*-world.background_corner)
        matrices = [to_background @ view.to_plane for view in world_views]
        background_px = round(side_px * min(world.background_side, MAX_BACKGROUND))
        plane = _surface(world.background, (background_px, background_px), device)[None]
        numbers = world.background_labels
        names = None if numbers is None else _resized_labels(numbers, (background_px, background_px), device)
        if len(world_views) > 1 or not np.allclose(matrices[0], np.eye(3)):  # else the view is the whole background
            grid = _grid(matrices, side_px, device, range(side_px), range(side_px))
            plane = _sampled(plane, grid, "bilinear", "border")
            names = None if names is None else _sampled(names, grid, "nearest", "border")
        colours.append(plane)
        if names is None:
            names = torch.zeros(len(world_views), 1, side_px, side_px, device=device)
        labels.append(names[:, 0].to(torch.int16))
    all_labels = torch.cat(labels)
    return _Canvases(torch.cat(colours), all_labels, torch.zeros_like(all_labels))


def _draw_layer(canvases: _Canvases, worlds: Sequence[World], views: Sequence[_View], layer: int) -> None:
    """Draws the sprites at one position of the worlds' lists, on the canvases of all worlds that have one there."""
    side_px, device = canvases.labels.shape[-1], canvases.labels.device
    places = [place for place, view in enumerate(views) if layer < len(worlds[view.world].sprites)]
    layer_views = [views[place] for place in places]
    sprites = [worlds[view.world].sprites[layer] for view in layer_views]
    # From -1..1 across the image to -1..1 across the sprite.
    matrices = [
        np.diag([2 / sprite.size[0], 2 / sprite.size[1], 1]) @ np.linalg.inv(sprite.pose(view.time)) @ view.to_plane
        for sprite, view in zip(sprites, layer_views, strict=True)
    ]
    rows, columns = _window(matrices, sprites, side_px)
    if not len(rows) or not len(columns):
        return
    patches, filled = _patches(worlds, layer_views, layer, side_px, device)
    straight = _grid(matrices, side_px, device, rows, columns)
    own = _bent(straight, sprites, layer_views)
    grid = (own + 1) * filled - 1
    drawn = _shaded_and_blurred(_sampled(patches[:, :4], grid, "bilinear"), own, sprites, side_px)

    # A slice avoids a copy when all views have a sprite in this layer.
    which = slice(None) if len(places) == len(views) else torch.tensor(places, device=device)
    window = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
    colours, labels, parts = (
        maps[which][..., window[0], window[1]] for maps in (canvases.colours, canvases.labels, canvases.parts)
    )
    if shadowed := [n for n, sprite in enumerate(sprites) if sprite.shadow is not None]:
        offsets = [matrices[n][:2, :2] @ (2 * shadow) for n in shadowed if (shadow := sprites[n].shadow) is not None]
        behind = straight[shadowed] - _on_device(np.stack(offsets), device).view(-1, 1, 1, 2)
        behind = _bent(behind, [sprites[n] for n in shadowed], [layer_views[n] for n in shadowed])
        shadows = _sampled(patches[shadowed, 3:4], (behind + 1) * filled[shadowed] - 1, "bilinear")
        colours[shadowed] *= 1 - SHADOW_OPACITY * box_blurred(shadows, round(side_px * SHADOW_BLUR))
    alpha = drawn[:, 3:]
    canvases.colours[(which, slice(None), *window)] = torch.addcmul(colours + drawn[:, :3], colours, alpha, value=-1)

    is_opaque = alpha[:, 0] > 0.5
    numbers = torch.tensor([worlds[view.world].first_label + layer for view in layer_views], dtype=torch.int16)
    canvases.labels[(which, *window)] = torch.where(is_opaque, numbers.to(device).view(-1, 1, 1), labels)
    own_parts = torch.zeros_like(parts)
    if any(sprite.parts is not None for sprite in sprites):
        own_parts = _sampled(patches[:, 4:], grid, "nearest")[:, 0].to(torch.int16)
        own_parts = torch.where(own_parts > 0, own_parts + layer * MAX_PARTS, 0)
    canvases.parts[(which, *window)] = torch.where(is_opaque, own_parts, parts)


def _patches(
    worlds: Sequence[World], views: Sequence[_View], layer: int, side_px: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The sprites of a layer, padded to one size.

    Returns:
        (views, 5, height, width) as from ``_patch``, and the shares of width and height that each sprite fills.
    """
    owners = list(dict.fromkeys(view.world for view in views))
    patches = [_patch(sprite := worlds[w].sprites[layer], _size_px(worlds[w], sprite, side_px), device) for w in owners]
    height, width = (max(patch.shape[side] for patch in patches) for side in (1, 2))
    stack = torch.stack([_padded(patch, height, width) for patch in patches])
    owner_of_view = [owners.index(view.world) for view in views]
    if len(owners) > 1:
        stack = stack[owner_of_view]
    filled = np.array([[patches[n].shape[2] / width, patches[n].shape[1] / height] for n in owner_of_view])
    return stack.expand(len(views), -1, -1, -1), _on_device(filled, device).view(-1, 1, 1, 2)


def _shaded_and_blurred(drawn: Tensor, own: Tensor, sprites: Sequence[Sprite], side_px: int) -> Tensor:
    """Applies light and blur to sprites in image coordinates. ``own`` is -1..1 across each sprite."""
    if lit := [n for n, sprite in enumerate(sprites) if sprite.light is not None]:
        lights = _on_device(np.stack([light for n in lit if (light := sprites[n].light) is not None]), drawn.device)
        shade = (0.75 + 0.35 * (own[lit] * lights[:, None, None]).sum(-1)).clamp(0.2, 1)
        drawn[lit, :3] *= shade[:, None]
    if blurred := [n for n, sprite in enumerate(sprites) if sprite.blur]:
        drawn[blurred] = gaussian_blurred(drawn[blurred], [sprites[n].blur * side_px for n in blurred])
    return drawn


def _window(matrices: Sequence[Matrix], sprites: Sequence[Sprite], side_px: int) -> tuple[range, range]:
    """Rows and columns of the pixels that any of the sprites can change."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for matrix, sprite in zip(matrices, sprites, strict=True):
        wide = 1 + (sprite.bend.amount if sprite.bend else 0)
        corners = np.array([[-wide, wide, -wide, wide], [-1, -1, 1, 1], [1, 1, 1, 1]])
        corners = 0.5 + (np.linalg.inv(matrix) @ corners)[:2] / 2  # 0 to 1 across the image
        margin = 3 * sprite.blur + 1 / side_px
        low, high = np.minimum(low, corners.min(1) - margin), np.maximum(high, corners.max(1) + margin)
        if sprite.shadow is not None:
            corners, margin = corners + sprite.shadow[:, None], SHADOW_BLUR + 1 / side_px
            low, high = np.minimum(low, corners.min(1) - margin), np.maximum(high, corners.max(1) + margin)
    (x0, y0), (x1, y1) = ((np.clip(v, 0, 1) * side_px) for v in (low, high))
    return range(int(y0), int(np.ceil(y1))), range(int(x0), int(np.ceil(x1)))


def _size_px(world: World, sprite: Sprite, side_px: int) -> tuple[int, int]:
    """(height, width) of a sprite where it is largest, limited by ``MAX_SHRINKING`` and by its source pixels."""
    poses = [np.linalg.inv(world.camera.motion.at(time)) @ sprite.pose(time) for time in world.exposures.ravel()]
    zooms = [float(np.linalg.norm(matrix[:2, :2], 2)) for matrix in poses]
    zoom = min(max(zooms), MAX_SHRINKING * min(zooms))
    width, height = (int(np.ceil(length * side_px * zoom)) for length in sprite.size)
    return min(max(1, height), sprite.pixels.shape[0]), min(max(1, width), sprite.pixels.shape[1])


def _patch(sprite: Sprite, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(5, height, width): premultiplied colours, opacity, and numbers of parts."""
    pixels = _on_device(sprite.pixels, device).movedim(-1, 0)[None] / 255
    alpha = pixels[:, 3:]
    weighted = _resized(torch.cat([pixels[:, :3] * alpha, alpha], 1), size_hw)
    alpha = weighted[:, 3:]
    if sprite.material is not None:
        fine_hw = (max(size_hw[0], MIN_MATERIAL_PX), max(size_hw[1], MIN_MATERIAL_PX))
        colours = _resized(_surface(sprite.material, fine_hw, device)[None], size_hw)
    else:
        colours = weighted[:, :3] / alpha.clamp(min=1 / 255)
    if sprite.jitter is not None:
        colours = colour_jittered(colours, [sprite.jitter])
    parts = torch.zeros_like(alpha) if sprite.parts is None else _resized_labels(sprite.parts, size_hw, device)
    return torch.cat([colours * alpha, alpha, parts], 1)[0]


def _surface(surface: Surface, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(3, height, width)."""
    if isinstance(surface, ImageSurface):
        image = _resized(_on_device(surface.pixels, device).movedim(-1, 0)[None] / 255, size_hw)
        return (image if surface.jitter is None else colour_jittered(image, [surface.jitter]))[0]
    return _texture(surface, size_hw, device)


def _texture(texture: Texture, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    noise = _on_device(texture.noise, device).movedim(-1, 0)[None] / 255
    noise = F.interpolate(noise, size_hw, mode="bicubic" if texture.is_smooth else "nearest-exact")[0].clamp(0, 1)
    colours = torch.lerp((_on_device(texture.plain, device) / 255).view(3, 1, 1), noise, texture.noise_share)
    if (stripes := texture.stripes) is not None:
        y, x = ((torch.arange(length, device=device) + 0.5) / length for length in size_hw)
        cos, sin, frequency = np.cos(stripes.angle), np.sin(stripes.angle), 2 * np.pi * stripes.waves
        wave = torch.sin(frequency * (x * cos + y[:, None] * sin))
        if stripes.is_chequered:
            wave = wave * torch.sin(frequency * (y[:, None] * cos - x * sin))
        other = (_on_device(stripes.colour, device) / 255).view(3, 1, 1)
        colours = torch.lerp(colours, other, (wave * stripes.sharpness).clamp(-1, 1) * 0.4 + 0.5)
    return colours


def _bent(own: Tensor, sprites: Sequence[Sprite], views: Sequence[_View]) -> Tensor:
    """Sampling coordinates, (views, side, side, 2), shifted along x by a wave along y for sprites that bend."""
    waves = [
        (n, (bend.amount, np.pi * bend.waves, bend.phase + 2 * np.pi * bend.frequency * view.time))
        for n, (sprite, view) in enumerate(zip(sprites, views, strict=True))
        if (bend := sprite.bend) is not None
    ]
    if not waves:
        return own
    places = [n for n, _ in waves]
    numbers = _on_device(np.array([wave for _, wave in waves]), own.device)
    amount, frequency, phase = numbers[..., None, None].unbind(1)
    bent = own.clone()
    bent[places, ..., 0] += amount * torch.sin(frequency * own[places, ..., 1] + phase)
    return bent


def _grid(matrices: Sequence[Matrix], side_px: int, device: torch.device, rows: range, columns: range) -> Tensor:
    """(matrices, rows, columns, 2): sampling coordinates of these pixels of an image."""
    (to_x, to_y) = _on_device(np.stack(matrices)[:, :2], device).unbind(1)  # (matrices, 3)
    y, x = (
        (2 * torch.arange(pixels.start, pixels.stop, device=device) + 1) / side_px - 1 for pixels in (rows, columns)
    )
    grid = torch.empty(len(matrices), len(y), len(x), 2, device=device)
    for axis, weights in enumerate((to_x, to_y)):
        along_y = weights[:, 1:2] * y + weights[:, 2:]
        torch.add((weights[:, :1] * x)[:, None], along_y[..., None], out=grid[..., axis])
    return grid


def _sampled(maps: Tensor, grid: Tensor, mode: str, padding_mode: str = "zeros") -> Tensor:
    maps = maps.expand(len(grid), -1, -1, -1)
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding_mode, align_corners=False)


def _resized(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size_hw, mode="bilinear", antialias=True)


def _resized_labels(labels: Pixels, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(1, 1, height, width), by nearest neighbour, since labels cannot be averaged."""
    return F.interpolate(_on_device(labels, device)[None, None], size_hw, mode="nearest-exact")


def _padded(patch: Tensor, height: int, width: int) -> Tensor:
    return F.pad(patch, (0, width - patch.shape[-1], 0, height - patch.shape[-2]))


def _on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """As float32 on a device; bytes are converted after the transfer."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(device).float() if tensor.dtype == torch.uint8 else tensor.float().to(device)
