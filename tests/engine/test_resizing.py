"""Frames resized on the device: the pixels are Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.engine.resizing import resize_frame
from masklet.processing import ImageProcessor


def frame(height, width):
    """Noise with hard edges, which a cubic filter overshoots at."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2] = pixels[: height // 2] // 128 * 255
    return pixels


@pytest.mark.parametrize(
    ("frame_hw", "input_hw"),
    [
        ((45, 80), (96, 96)),  # larger
        ((108, 192), (96, 96)),  # smaller
        ((432, 768), (64, 32)),  # much smaller
        ((96, 60), (96, 64)),  # one axis alone
        ((60, 96), (64, 96)),
        ((96, 96), (96, 96)),
        ((1, 1), (32, 64)),
        pytest.param((480, 854), (1024, 1024), marks=pytest.mark.slow),
        pytest.param((1080, 1920), (1024, 1024), marks=pytest.mark.slow),
    ],
)
def test_resized_frames_have_the_pixels_of_the_processor(frame_hw, input_hw):
    pixels = frame(*frame_hw)
    expected = ImageProcessor(input_hw).resized_frame(pixels)
    assert resize_frame(torch.from_numpy(pixels), input_hw).equal(expected)


@pytest.mark.parametrize("frame_hw", [(192, 108), (301, 40), (500, 33), (77, 500)])
def test_every_frame_is_resized_across_and_then_down(frame_hw):
    # Pillow 13 resizes some tall images down first, which rounds differently.
    pixels = frame(*frame_hw)
    across = Image.fromarray(pixels).resize((96, frame_hw[0]), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize((96, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_frame(torch.from_numpy(pixels), (64, 96)).numpy(), expected)
