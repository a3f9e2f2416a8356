"""Effects of cameras, lenses and file formats on pixels: for whole batches, on any device.

Images are (images, 3, height, width), 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.nano.world import Camera, ColourJitter

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
BLUE_DIFFERENCE, RED_DIFFERENCE = 1.772, 1.402
"""Divisors of JPEG's colour channels (JFIF 1.02)."""
# Quantisation tables at quality 50 (JPEG, ITU-T T.81, annex K).
LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def captured(videos: Tensor, cameras: Sequence[Camera]) -> Tensor:
    """Applies each camera's effects to its video; the noise differs between frames.

    Args:
        videos: (videos, frames, 3, height, width), 0 to 1.
        cameras: One for each video.

    Returns:
        The same shape, uint8.
    """
    _, frames, _, height, width = videos.shape
    videos = videos.clone()

    def images_of(indices: list[int]) -> Tensor:
        return videos[indices].flatten(0, 1)

    def put(indices: list[int], images: Tensor) -> None:
        videos[indices] = images.unflatten(0, (len(indices), frames))

    if jittered := [n for n, camera in enumerate(cameras) if camera.jitter]:
        jitters = [jitter for n in jittered if (jitter := cameras[n].jitter)]
        put(jittered, colour_jittered(images_of(jittered), [jitter for jitter in jitters for _ in range(frames)]))
    if blurred := [n for n, camera in enumerate(cameras) if camera.blur]:
        put(
            blurred,
            gaussian_blurred(images_of(blurred), [cameras[n].blur * width for n in blurred for _ in range(frames)]),
        )
    if grey := [n for n, camera in enumerate(cameras) if camera.is_grey]:
        put(grey, luma(images_of(grey)).expand(-1, 3, -1, -1))
    if compressed := [n for n, camera in enumerate(cameras) if camera.jpeg_quality]:
        qualities = [quality for n in compressed if (quality := cameras[n].jpeg_quality) for _ in range(frames)]
        put(compressed, jpeg_compressed(images_of(compressed), qualities))
    for n, camera in enumerate(cameras):
        if camera.noise:
            # Drawn on the CPU, so that it is the same on every device.
            generator = torch.Generator().manual_seed(camera.noise_seed)
            low, high, shape = -camera.noise, camera.noise + 1, (frames, 3, height, width)
            noise = torch.randint(low, high, shape, generator=generator, dtype=torch.int8)
            videos[n] += noise.to(videos.device) / 255
    return videos.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def colour_jittered(images: Tensor, jitters: Sequence[ColourJitter]) -> Tensor:
    """Applies one jitter to each image."""

    def per_image(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).view(len(jitters), -1, 1, 1).to(images.device)

    gamma, gain = (per_image([getattr(jitter, name).tolist() for jitter in jitters]) for name in ("gamma", "gain"))
    offset = per_image([jitter.offset for jitter in jitters])
    is_inverted = per_image([float(jitter.is_inverted) for jitter in jitters])
    # Rounding may leave colours a little below 0, where powers are not defined.
    colours = (images.clamp(min=0) ** gamma * gain + offset).clamp(0, 1)
    return (is_inverted - colours).abs()


def gaussian_blurred(maps: Tensor, sigmas_px: Sequence[float]) -> Tensor:
    """Blurs each of (maps, channels, height, width) by its own Gaussian. Borders are replicated."""
    reach = math.ceil(3 * max(sigmas_px))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    sigmas = torch.tensor(sigmas_px, dtype=torch.float32).clamp(min=1e-3)[:, None]
    # Each Gaussian is cut at its own three sigmas, so that a map's result does not depend on the others.
    exponents = torch.where(offsets.abs() <= 3 * sigmas, -(offsets**2) / (2 * sigmas**2), -math.inf)
    weights = torch.softmax(exponents, dim=1).to(maps.device)  # (maps, 2 * reach + 1)
    maps = F.pad(maps, (reach,) * 4, mode="replicate")
    for axis in (2, 3):
        # Sums of shifted maps: with so few channels, a convolution is much slower on a CPU.
        shifted = maps.unfold(axis, maps.shape[axis] - 2 * reach, 1).movedim(axis, 0).movedim(-1, axis + 1)
        total = torch.zeros_like(shifted[0], memory_format=torch.contiguous_format)
        for piece, weight in zip(shifted, weights.T, strict=True):
            total.addcmul_(piece, weight.view(-1, 1, 1, 1))
        maps = total
    return maps


def box_blurred(maps: Tensor, reach_px: int) -> Tensor:
    """The mean of a square around each pixel of (maps, channels, height, width). Borders are replicated."""
    size = 2 * reach_px + 1
    rows = F.avg_pool2d(F.pad(maps, (reach_px,) * 4, mode="replicate"), (1, size), stride=1)
    return F.avg_pool2d(rows, (size, 1), stride=1)


def luma(images: Tensor) -> Tensor:
    """(images, 1, height, width)."""
    weights = torch.tensor(LUMA_WEIGHTS, device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def jpeg_compressed(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """Images as they would be after JPEG compression of some quality, up to 100. Sides are multiples of 16 pixels."""
    quality = torch.tensor(qualities, dtype=torch.float32)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).view(-1, 1, 1)
    luma_steps, chroma_steps = (
        ((torch.tensor(steps) * percent + 50) / 100).floor().clamp(1, 255).to(images.device)
        for steps in (LUMA_STEPS, CHROMA_STEPS)
    )
    y = luma(images)
    differences = (images[:, 2:] - y) / BLUE_DIFFERENCE, (images[:, :1] - y) / RED_DIFFERENCE
    y = _quantised(y - 0.5, luma_steps) + 0.5
    blue, red = (
        F.interpolate(_quantised(F.avg_pool2d(d, 2), chroma_steps), scale_factor=2, mode="bilinear")
        for d in differences
    )
    r, b = y + RED_DIFFERENCE * red, y + BLUE_DIFFERENCE * blue
    g = (y - LUMA_WEIGHTS[0] * r - LUMA_WEIGHTS[2] * b) / LUMA_WEIGHTS[1]
    return torch.cat([r, g, b], 1).clamp(0, 1)


def _quantised(channel: Tensor, steps: Tensor) -> Tensor:
    """Rounds the DCT coefficients of 8×8 blocks of (images, 1, height, width) to multiples of (images, 8, 8) steps."""
    index = torch.arange(8, dtype=torch.float32, device=channel.device)
    cosines = torch.cos(math.pi / 16 * (2 * index + 1) * index[:, None]) / 2
    cosines[0] *= 0.5**0.5
    blocks = channel[:, 0].unflatten(1, (-1, 8)).unflatten(3, (-1, 8)) * 255  # (images, rows, 8, columns, 8)
    steps = steps[:, None, :, None]
    coefficients = torch.einsum("ui,nricj,vj->nrucv", cosines, blocks, cosines)
    coefficients = (coefficients / steps).round() * steps
    blocks = torch.einsum("ui,nrucv,vj->nricj", cosines, coefficients, cosines)
    return blocks.flatten(3).flatten(1, 2)[:, None] / 255
