"""Effects of cameras and file formats."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from recipes.nano.effects import box_blurred, captured, colour_jittered, gaussian_blurred, jpeg_compressed, luma
from recipes.nano.world import Camera, ColourJitter


@pytest.fixture
def image():
    """(1, 3, 48, 64): soft blobs and an edge."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 48), torch.linspace(0, 6, 64), indexing="ij")
    colours = torch.stack([x.sin() * y.cos(), (x + y).cos(), (x > 3).float() * 2 - 1])
    return (0.5 + 0.4 * colours)[None]


def as_pil(image):
    return Image.fromarray((image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


def test_gaussian_blur_is_near_that_of_pillow(image):
    both = gaussian_blurred(image.expand(2, -1, -1, -1), [1.5, 0.0])
    # Pillow approximates a Gaussian by three boxes.
    expected = as_tensor(as_pil(image).filter(ImageFilter.GaussianBlur(1.5)))
    assert (both[0] - expected[0]).abs().mean() < 0.4 * (both[0] - image[0]).abs().mean()
    assert torch.allclose(both[1], image[0], atol=1e-6)


def test_a_box_blur_is_the_mean_of_a_square(image):
    found = box_blurred(image, 3)
    assert found.shape == image.shape
    for y, x in ((3, 3), (20, 30), (44, 60)):
        assert torch.allclose(found[0, :, y, x], image[0, :, y - 3 : y + 4, x - 3 : x + 4].mean((1, 2)), atol=1e-5)
    assert torch.allclose(box_blurred(torch.ones(1, 1, 9, 9), 3), torch.ones(1, 1, 9, 9))  # up to the border


@pytest.mark.parametrize("quality", [30, 75, 94])
def test_compression_is_near_that_of_jpeg(image, quality):
    file = io.BytesIO()
    as_pil(image).save(file, "JPEG", quality=quality)
    expected = as_tensor(Image.open(file))
    mine = jpeg_compressed(image, [quality])
    lost = (expected - image).abs().mean()
    assert (mine - expected).abs().mean() < 0.35 * lost + 0.002
    assert (mine - image).abs().mean() == pytest.approx(float(lost), rel=0.2)


def test_each_image_has_its_own_quality(image):
    both = jpeg_compressed(image.expand(2, -1, -1, -1), [30, 90])
    for mine, quality in zip(both, (30, 90), strict=True):
        assert torch.allclose(mine, jpeg_compressed(image, [quality])[0], atol=1e-6)


def test_colour_jitter_is_gamma_gain_and_offset(image):
    jitter = ColourJitter(np.array([1.0, 2.0, 0.5]), np.array([0.5, 1.0, 1.2]), 0.1, False)
    mine = colour_jittered(image, [jitter])[0]
    for channel, (gamma, gain) in enumerate(((1, 0.5), (2, 1), (0.5, 1.2))):
        expected = (image[0, channel] ** gamma * gain + 0.1).clamp(0, 1)
        assert torch.allclose(mine[channel], expected, atol=1e-6)
    assert colour_jittered(torch.full((1, 3, 2, 2), -1e-8), [jitter]).isfinite().all()  # below 0 by rounding
    inverted = colour_jittered(image, [ColourJitter(jitter.gamma, jitter.gain, jitter.offset, True)])[0]
    assert torch.allclose(inverted, 1 - mine)


def test_each_video_gets_the_effects_of_its_camera(image):
    videos = image[None].expand(4, 3, -1, -1, -1)
    cameras = [Camera(), Camera(is_grey=True), Camera(noise=9, noise_seed=5), Camera(blur=0.05)]
    taken = captured(videos, cameras)
    assert taken.dtype == torch.uint8
    plain, grey, noisy, blurred = taken
    assert (plain.float() - videos[0] * 255).abs().max() <= 0.5001
    assert (grey[:, 0] == grey[:, 2]).all()
    assert (grey[0, :1].float() - luma(image)[0] * 255).abs().max() <= 0.51
    noise = noisy.int() - plain.int()
    assert 3 < noise.float().abs().mean() < 6
    assert 9 <= noise.abs().max() <= 10  # before colours are rounded
    assert not torch.equal(noise[0], noise[1])  # it differs between frames
    assert torch.equal(noisy, captured(videos, cameras)[2])
    assert torch.equal(blurred[0], blurred[1])
    assert (blurred.float() - plain.float()).abs().mean() > 3
