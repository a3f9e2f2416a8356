"""Draws worlds: whole batches of them at once, on the device that learns from them.

What chance decides was drawn before, and is the same on all devices; pixels may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.training.effects import box_blurred, captured, recoloured, softened
from masklet.training.worlds import EncodedImage, Matrix, Pixels, Surface, Texture, Thing, World, shifted

MAX_GROUND = 2.0
"""Side of a drawn ground in sides of the image; a camera that goes further sees it coarser."""
SHADOW = 0.5
"""How dark it is."""
SHADOW_BLUR = 1 / 64
"""How soft, in sides of the image."""
NUMBERS_OF_A_THING = 256
"""Its parts have fewer."""
MIN_MATERIAL_PX = 128
"""Material is drawn no smaller, and then shrunk: its grain may be finer than a small thing's pixels."""
MAX_SHRINKING = 2
"""A thing that grows in a clip is kept no larger than this times where it is smallest: there it would flicker."""
TO_HALVES = np.diag([0.5, 0.5, 1])
"""From -1..1 across an image to coordinates of which it is 1 wide."""


@dataclass(frozen=True)
class Rendered:
    """Videos of worlds, and what is seen in each pixel."""

    images: Tensor  # (worlds, frames, 3, side, side) uint8
    labels: Tensor  # (worlds, frames, side, side) int16: 0 for none, the ground's instances, then the things in order
    parts: Tensor  # (worlds, frames, side, side) int16: 0 for none; no two parts in a world share a number


@dataclass(frozen=True)
class _View:
    """One exposure of one world."""

    world: int
    time: float
    to_plane: Matrix  # (3, 3) from -1..1 across the image


@dataclass
class _Canvases:
    """What was laid so far, one of each for each view."""

    colours: Tensor  # (views, 3, side, side) 0 to 1
    labels: Tensor  # (views, side, side) int16
    parts: Tensor  # (views, side, side) int16


def render(worlds: Sequence[World], side_px: int, device: torch.device) -> Rendered:
    """Draw worlds of as many frames each.

    Args:
        worlds: At least one.
        side_px: Height and width, a multiple of 16.
        device: Where to.
    """
    views = [
        _View(index, time, world.camera.path.at(time) @ TO_HALVES)
        for index, world in enumerate(worlds)
        for time in world.moments.ravel()
    ]
    canvases = _grounds(worlds, views, side_px, device)
    for layer in range(max(len(world.things) for world in worlds)):
        _lay(canvases, worlds, views, layer)
    frames = len(worlds[0].moments)
    exposures = [world.moments.shape[1] for world in worlds]
    taken = [range_.unflatten(0, (frames, -1)) for range_ in canvases.colours.split([frames * n for n in exposures])]
    videos = torch.stack([frame.mean(1) if frame.shape[1] > 1 else frame[:, 0] for frame in taken])
    first = np.cumsum([0, *(frames * n for n in exposures)])
    middle = [first[w] + frame * n + n // 2 for w, n in enumerate(exposures) for frame in range(frames)]
    labels, parts = (maps[middle].unflatten(0, (-1, frames)) for maps in (canvases.labels, canvases.parts))
    return Rendered(captured(videos, [world.camera for world in worlds]), labels, parts)


def _grounds(worlds: Sequence[World], views: Sequence[_View], side_px: int, device: torch.device) -> _Canvases:
    colours, labels = [], []
    for index, world in enumerate(worlds):
        of_world = [view for view in views if view.world == index]
        to_ground = np.diag([2, 2, 1]) @ shifted(-0.5, -0.5)  # from 0..1 to -1..1 across the ground
        to_ground = to_ground @ np.diag([1 / world.ground_side] * 2 + [1]) @ shifted(*-world.ground_corner)
        matrices = [to_ground @ view.to_plane for view in of_world]
        ground_px = round(side_px * min(world.ground_side, MAX_GROUND))
        plane = _surface(world.ground, (ground_px, ground_px), device)[None]
        numbers = world.ground_labels
        names = None if numbers is None else _resized_names(numbers, (ground_px, ground_px), device)
        if len(of_world) > 1 or not np.allclose(matrices[0], np.eye(3)):  # a camera that does not move sees it all
            grid = _grid(matrices, side_px, device, range(side_px), range(side_px))
            plane = _looked_up(plane, grid, "bilinear", "border")
            names = None if names is None else _looked_up(names, grid, "nearest", "border")
        colours.append(plane)
        if names is None:
            names = torch.zeros(len(of_world), 1, side_px, side_px, device=device)
        labels.append(names[:, 0].to(torch.int16))
    seen = torch.cat(labels)
    return _Canvases(torch.cat(colours), seen, torch.zeros_like(seen))


def _lay(canvases: _Canvases, worlds: Sequence[World], views: Sequence[_View], layer: int) -> None:
    """Lay the things at one place of the worlds' lists onto all canvases that have one."""
    side_px, device = canvases.labels.shape[-1], canvases.labels.device
    places = [place for place, view in enumerate(views) if layer < len(worlds[view.world].things)]
    seen_by = [views[place] for place in places]
    things = [worlds[view.world].things[layer] for view in seen_by]
    # From -1..1 across the image to -1..1 across the thing.
    matrices = [
        np.diag([2 / thing.size[0], 2 / thing.size[1], 1]) @ np.linalg.inv(thing.place(view.time)) @ view.to_plane
        for thing, view in zip(things, seen_by, strict=True)
    ]
    rows, columns = _window(matrices, things, side_px)
    if not len(rows) or not len(columns):
        return
    patches, filled = _patches(worlds, seen_by, layer, side_px, device)
    straight = _grid(matrices, side_px, device, rows, columns)
    own = _bent(straight, things, seen_by)
    grid = (own + 1) * filled - 1
    laid = _finished(_looked_up(patches[:, :4], grid, "bilinear"), own, things, side_px)

    # All of them without a copy, where all have such a thing.
    which = slice(None) if len(places) == len(views) else torch.tensor(places, device=device)
    piece = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
    colours, labels, parts = (
        maps[which][..., piece[0], piece[1]] for maps in (canvases.colours, canvases.labels, canvases.parts)
    )
    if dark := [n for n, thing in enumerate(things) if thing.shadow is not None]:
        falls = [matrices[n][:2, :2] @ (2 * shadow) for n in dark if (shadow := things[n].shadow) is not None]
        behind = straight[dark] - _on(np.stack(falls), device).view(-1, 1, 1, 2)
        behind = _bent(behind, [things[n] for n in dark], [seen_by[n] for n in dark])
        shadows = _looked_up(patches[dark, 3:4], (behind + 1) * filled[dark] - 1, "bilinear")
        colours[dark] *= 1 - SHADOW * box_blurred(shadows, round(side_px * SHADOW_BLUR))
    alpha = laid[:, 3:]
    canvases.colours[(which, slice(None), *piece)] = torch.addcmul(colours + laid[:, :3], colours, alpha, value=-1)

    is_opaque = alpha[:, 0] > 0.5
    numbers = torch.tensor([worlds[view.world].first_label + layer for view in seen_by], dtype=torch.int16)
    canvases.labels[(which, *piece)] = torch.where(is_opaque, numbers.to(device).view(-1, 1, 1), labels)
    own_parts = torch.zeros_like(parts)
    if any(thing.parts is not None for thing in things):
        own_parts = _looked_up(patches[:, 4:], grid, "nearest")[:, 0].to(torch.int16)
        own_parts = torch.where(own_parts > 0, own_parts + layer * NUMBERS_OF_A_THING, 0)
    canvases.parts[(which, *piece)] = torch.where(is_opaque, own_parts, parts)


def _patches(
    worlds: Sequence[World], views: Sequence[_View], layer: int, side_px: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is laid, (views, 5, height, width) as of ``_patch``, and the shares of width and height that each fills."""
    owners = list(dict.fromkeys(view.world for view in views))
    patches = [_patch(thing := worlds[w].things[layer], _size_px(worlds[w], thing, side_px), device) for w in owners]
    height, width = (max(patch.shape[side] for patch in patches) for side in (1, 2))
    stack = torch.stack([_padded(patch, height, width) for patch in patches])
    of_view = [owners.index(view.world) for view in views]
    if len(owners) > 1:
        stack = stack[of_view]
    filled = np.array([[patches[n].shape[2] / width, patches[n].shape[1] / height] for n in of_view])
    return stack.expand(len(views), -1, -1, -1), _on(filled, device).view(-1, 1, 1, 2)


def _finished(laid: Tensor, own: Tensor, things: Sequence[Thing], side_px: int) -> Tensor:
    """Patches as they lie on the canvas, lit and blurred where things are. ``own`` is -1..1 across each thing."""
    if lit := [n for n, thing in enumerate(things) if thing.light is not None]:
        slopes = _on(np.stack([light for n in lit if (light := things[n].light) is not None]), laid.device)
        shade = (0.75 + 0.35 * (own[lit] * slopes[:, None, None]).sum(-1)).clamp(0.2, 1)
        laid[lit, :3] *= shade[:, None]
    if soft := [n for n, thing in enumerate(things) if thing.softness]:
        laid[soft] = softened(laid[soft], [things[n].softness * side_px for n in soft])
    return laid


def _window(matrices: Sequence[Matrix], things: Sequence[Thing], side_px: int) -> tuple[range, range]:
    """Rows and columns of pixels that anything of things can change, the last of them exclusive."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for matrix, thing in zip(matrices, things, strict=True):
        wide = 1 + (thing.bend.amount if thing.bend else 0)
        corners = np.array([[-wide, wide, -wide, wide], [-1, -1, 1, 1], [1, 1, 1, 1]])
        seen = 0.5 + (np.linalg.inv(matrix) @ corners)[:2] / 2  # 0 to 1
        margin = 3 * thing.softness + 1 / side_px
        low, high = np.minimum(low, seen.min(1) - margin), np.maximum(high, seen.max(1) + margin)
        if thing.shadow is not None:
            seen, margin = seen + thing.shadow[:, None], SHADOW_BLUR + 1 / side_px
            low, high = np.minimum(low, seen.min(1) - margin), np.maximum(high, seen.max(1) + margin)
    (x0, y0), (x1, y1) = ((np.clip(v, 0, 1) * side_px) for v in (low, high))
    return range(int(y0), int(np.ceil(y1))), range(int(x0), int(np.ceil(x1)))


def _size_px(world: World, thing: Thing, side_px: int) -> tuple[int, int]:
    """(height, width) of a thing where it is largest, within limits, and no more than it has."""
    seen = [np.linalg.inv(world.camera.path.at(time)) @ thing.place(time) for time in world.moments.ravel()]
    zooms = [float(np.linalg.norm(matrix[:2, :2], 2)) for matrix in seen]
    zoom = min(max(zooms), MAX_SHRINKING * min(zooms))
    width, height = (int(np.ceil(length * side_px * zoom)) for length in thing.size)
    return min(max(1, height), thing.pixels.shape[0]), min(max(1, width), thing.pixels.shape[1])


def _patch(thing: Thing, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(5, height, width): colours times opacity, opacity, and numbers of parts."""
    pixels = _on(thing.pixels, device).movedim(-1, 0)[None] / 255
    alpha = pixels[:, 3:]
    weighted = _resized(torch.cat([pixels[:, :3] * alpha, alpha], 1), size_hw)
    alpha = weighted[:, 3:]
    if thing.material is not None:
        fine_hw = (max(size_hw[0], MIN_MATERIAL_PX), max(size_hw[1], MIN_MATERIAL_PX))
        colours = _resized(_surface(thing.material, fine_hw, device)[None], size_hw)
    else:
        colours = weighted[:, :3] / alpha.clamp(min=1 / 255)
    if thing.look is not None:
        colours = recoloured(colours, [thing.look])
    parts = torch.zeros_like(alpha) if thing.parts is None else _resized_names(thing.parts, size_hw, device)
    return torch.cat([colours * alpha, alpha, parts], 1)[0]


def _surface(surface: Surface, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(3, height, width)."""
    if isinstance(surface, EncodedImage):
        image = _resized(_on(surface.pixels, device).movedim(-1, 0)[None] / 255, size_hw)
        return (image if surface.look is None else recoloured(image, [surface.look]))[0]
    return _texture(surface, size_hw, device)


def _texture(texture: Texture, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    noise = _on(texture.noise, device).movedim(-1, 0)[None] / 255
    noise = F.interpolate(noise, size_hw, mode="bicubic" if texture.is_smooth else "nearest-exact")[0].clamp(0, 1)
    colours = torch.lerp((_on(texture.plain, device) / 255).view(3, 1, 1), noise, texture.noise_share)
    if (stripes := texture.stripes) is not None:
        y, x = ((torch.arange(length, device=device) + 0.5) / length for length in size_hw)
        cos, sin, pace = np.cos(stripes.angle), np.sin(stripes.angle), 2 * np.pi * stripes.waves
        wave = torch.sin(pace * (x * cos + y[:, None] * sin))
        if stripes.is_chequered:
            wave = wave * torch.sin(pace * (y[:, None] * cos - x * sin))
        other = (_on(stripes.colour, device) / 255).view(3, 1, 1)
        colours = torch.lerp(colours, other, (wave * stripes.sharpness).clamp(-1, 1) * 0.4 + 0.5)
    return colours


def _bent(own: Tensor, things: Sequence[Thing], views: Sequence[_View]) -> Tensor:
    """Where to look things up, (views, side, side, 2), moved along x by a wave along y, for those that bend."""
    waves = [
        (n, (bend.amount, np.pi * bend.waves, bend.phase + 2 * np.pi * bend.cycles * view.time))
        for n, (thing, view) in enumerate(zip(things, views, strict=True))
        if (bend := thing.bend) is not None
    ]
    if not waves:
        return own
    places = [n for n, _ in waves]
    amount, pace, phase = _on(np.array([numbers for _, numbers in waves]), own.device)[..., None, None].unbind(1)
    bent = own.clone()
    bent[places, ..., 0] += amount * torch.sin(pace * own[places, ..., 1] + phase)
    return bent


def _grid(
    matrices: Sequence[Matrix],
    side_px: int,
    device: torch.device,
    rows: range,
    columns: range,
) -> Tensor:
    """(matrices, rows, columns, 2): where each of these pixels of an image is looked up."""
    (to_x, to_y) = _on(np.stack(matrices)[:, :2], device).unbind(1)  # (matrices, 3)
    y, x = (
        (2 * torch.arange(pixels.start, pixels.stop, device=device) + 1) / side_px - 1 for pixels in (rows, columns)
    )
    grid = torch.empty(len(matrices), len(y), len(x), 2, device=device)
    for place, weights in enumerate((to_x, to_y)):
        along_y = weights[:, 1:2] * y + weights[:, 2:]
        torch.add((weights[:, :1] * x)[:, None], along_y[..., None], out=grid[..., place])
    return grid


def _looked_up(maps: Tensor, grid: Tensor, way: str, beyond: str = "zeros") -> Tensor:
    maps = maps.expand(len(grid), -1, -1, -1)
    return F.grid_sample(maps, grid, mode=way, padding_mode=beyond, align_corners=False)


def _resized(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size_hw, mode="bilinear", antialias=True)


def _resized_names(names: Pixels, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(1, 1, height, width). Nearest: in between 1 and 3 there is no 2."""
    return F.interpolate(_on(names, device)[None, None], size_hw, mode="nearest-exact")


def _padded(patch: Tensor, height: int, width: int) -> Tensor:
    return F.pad(patch, (0, width - patch.shape[-1], 0, height - patch.shape[-2]))


def _on(values: np.ndarray, device: torch.device) -> Tensor:
    """As float32 on a device; bytes travel as such."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(device).float() if tensor.dtype == torch.uint8 else tensor.float().to(device)
