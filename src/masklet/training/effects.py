"""What light, lenses and files do to pixels: for whole batches, on any device.

Images are (images, 3, height, width) or any batch of such, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.training.worlds import Camera, Look

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in brightness (ITU-R BT.601)."""
BLUE_DIFFERENCE, RED_DIFFERENCE = 1.772, 1.402
"""What JPEG's colour channels are divided by (JFIF 1.02)."""
# What coefficients are divided by at quality 50 (JPEG, ITU-T T.81, annex K).
BRIGHTNESS_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
COLOUR_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def captured(videos: Tensor, cameras: Sequence[Camera]) -> Tensor:
    """What cameras make of what they see: (videos, frames, 3, height, width) 0 to 1 to the same in uint8.

    A video is taken with one camera, whose noise is another in each frame.
    """
    _, frames, _, height, width = videos.shape

    videos = videos.clone()

    def of(places: list[int]) -> Tensor:
        return videos[places].flatten(0, 1)

    def put(places: list[int], images: Tensor) -> None:
        videos[places] = images.unflatten(0, (len(places), frames))

    if recoloured_by := [place for place, camera in enumerate(cameras) if camera.look]:
        looks = [look for place in recoloured_by if (look := cameras[place].look)]
        put(recoloured_by, recoloured(of(recoloured_by), [look for look in looks for _ in range(frames)]))
    if soft := [place for place, camera in enumerate(cameras) if camera.softness]:
        put(soft, softened(of(soft), [cameras[place].softness * width for place in soft for _ in range(frames)]))
    if grey := [place for place, camera in enumerate(cameras) if camera.is_grey]:
        put(grey, brightness(of(grey)).expand(-1, 3, -1, -1))
    if small := [place for place, camera in enumerate(cameras) if camera.quality]:
        qualities = [quality for place in small if (quality := cameras[place].quality) for _ in range(frames)]
        put(small, compressed(of(small), qualities))
    for place, camera in enumerate(cameras):
        if camera.loudness:
            # Drawn on the CPU: the same on every device.
            chance = torch.Generator().manual_seed(camera.noise_seed)
            low, high, shape = -camera.loudness, camera.loudness + 1, (frames, 3, height, width)
            noise = torch.randint(low, high, shape, generator=chance, dtype=torch.int8)
            videos[place] += noise.to(videos.device) / 255
    return videos.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def recoloured(images: Tensor, looks: Sequence[Look]) -> Tensor:
    """Each in its look."""

    def each(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).view(len(looks), -1, 1, 1).to(images.device)

    gamma, gain = (each([getattr(look, name).tolist() for look in looks]) for name in ("gamma", "gain"))
    offset, is_inverted = each([look.offset for look in looks]), each([float(look.is_inverted) for look in looks])
    # A sum of shares may end a little below black, which has no power.
    colours = (images.clamp(min=0) ** gamma * gain + offset).clamp(0, 1)
    return (is_inverted - colours).abs()


def softened(maps: Tensor, sigmas_px: Sequence[float]) -> Tensor:
    """(maps, channels, height, width), each blurred by a Gaussian of its own; what is outside is as its border is."""
    reach = math.ceil(3 * max(sigmas_px))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    sigmas = torch.tensor(sigmas_px, dtype=torch.float32).clamp(min=1e-3)[:, None]
    # No further than its own reach, whatever is beside it.
    exponents = torch.where(offsets.abs() <= 3 * sigmas, -(offsets**2) / (2 * sigmas**2), -math.inf)
    weights = torch.softmax(exponents, dim=1).to(maps.device)  # (maps, 2 reach + 1)
    maps = F.pad(maps, (reach,) * 4, mode="replicate")
    for axis in (2, 3):
        # Sums of shifted maps: a convolution of so few channels is slower by far on a CPU.
        pieces = maps.unfold(axis, maps.shape[axis] - 2 * reach, 1).movedim(axis, 0).movedim(-1, axis + 1)
        total = torch.zeros_like(pieces[0], memory_format=torch.contiguous_format)
        for piece, weight in zip(pieces, weights.T, strict=True):
            total.addcmul_(piece, weight.view(-1, 1, 1, 1))
        maps = total
    return maps


def box_blurred(maps: Tensor, reach_px: int) -> Tensor:
    """(maps, channels, height, width): the mean of a square around each pixel; what is outside is as its border is."""
    size = 2 * reach_px + 1
    rows = F.avg_pool2d(F.pad(maps, (reach_px,) * 4, mode="replicate"), (1, size), stride=1)
    return F.avg_pool2d(rows, (size, 1), stride=1)


def brightness(images: Tensor) -> Tensor:
    """(images, 1, height, width)."""
    shares = torch.tensor(GREY, device=images.device).view(3, 1, 1)
    return (images * shares).sum(1, keepdim=True)


def compressed(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """As if saved as a JPEG of some quality, up to 100, and read again. Sides are multiples of 16 pixels."""
    quality = torch.tensor(qualities, dtype=torch.float32)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).view(-1, 1, 1)
    bright, coarse = (
        ((torch.tensor(steps) * percent + 50) / 100).floor().clamp(1, 255).to(images.device)
        for steps in (BRIGHTNESS_STEPS, COLOUR_STEPS)
    )
    y = brightness(images)
    differences = (images[:, 2:] - y) / BLUE_DIFFERENCE, (images[:, :1] - y) / RED_DIFFERENCE
    y = _stepped(y - 0.5, bright) + 0.5
    blue, red = (
        F.interpolate(_stepped(F.avg_pool2d(d, 2), coarse), scale_factor=2, mode="bilinear") for d in differences
    )
    r, b = y + RED_DIFFERENCE * red, y + BLUE_DIFFERENCE * blue
    g = (y - GREY[0] * r - GREY[2] * b) / GREY[1]
    return torch.cat([r, g, b], 1).clamp(0, 1)


def _stepped(channel: Tensor, steps: Tensor) -> Tensor:
    """(images, 1, height, width) whose blocks' frequencies are whole multiples of ``steps`` (images, 8, 8)."""
    place = torch.arange(8, dtype=torch.float32, device=channel.device)
    cosines = torch.cos(math.pi / 16 * (2 * place + 1) * place[:, None]) / 2
    cosines[0] *= 0.5**0.5
    blocks = channel[:, 0].unflatten(1, (-1, 8)).unflatten(3, (-1, 8)) * 255  # (images, rows, 8, columns, 8)
    steps = steps[:, None, :, None]
    found = torch.einsum("ui,nricj,vj->nrucv", cosines, blocks, cosines)
    found = (found / steps).round() * steps
    blocks = torch.einsum("ui,nrucv,vj->nricj", cosines, found, cosines)
    return blocks.flatten(3).flatten(1, 2)[:, None] / 255
