"""A small network overfits a few images, and a video."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from edgetam import TINY, random_edgetam
from PIL import Image

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
)
from masklet.training import Run
from masklet.training.config import LossWeights, Stage, TrainingConfig
from masklet.training.data_config import Augmentations, DataConfig

NETWORK = Sam2Config(
    image_size=64,
    hidden_size=64,
    image_encoder=Sam2ImageEncoderConfig(
        hidden_size=16, blocks_per_stage=(1, 1, 1, 1), global_attention_blocks=(2,), window_size_per_stage=(4, 4, 4, 4)
    ),
    mask_decoder=Sam2MaskDecoderConfig(mlp_dim=128, num_attention_heads=4),
    memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=32),
    memory_encoder=Sam2MemoryEncoderConfig(output_channels=32),
)
IMAGES = Stage(steps=800, batch_size=4, objects=2, rounds=2, losses=LossWeights(focal=5, all_candidates=0.25))
CLIPS = replace(IMAGES, steps=400, batch_size=2, frames=3)
LAST = 20


def image(index, shift=0):
    """Noise with two bright rectangles, one of which may occlude the other, and their label map."""
    rng = np.random.default_rng(index)
    pixels, labels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
    places = ((4 * index + 4 * shift, 4), (32 - 4 * shift, 32 + 4 * (index // 2)))
    for number, (x, y) in enumerate(places, start=1):
        pixels[y : y + 24, x : x + 28] = rng.integers(100, 255, 3)
        labels[y : y + 24, x : x + 28] = number
    return pixels, labels


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def last_ious(path, layout, stages, wanted, network=NETWORK):
    """Trains on data in ``path`` until the mean IoUs of the last steps exceed ``wanted``, and returns these means.

    They are the IoUs of each round or, on clips, of first and later frames, at the resolution of the network's masks.
    The number of steps depends on rounding.
    """
    config = TrainingConfig(
        model=network,
        data=DataConfig(layout=layout, path=str(path), augment=Augmentations(flip=0), validation=0.0),
        stages=stages,
        learning_rate=2e-3,
        weight_decay=0.0,
        save_every=10_000,
    )
    first = config.steps - stages[-1].steps
    last = deque(maxlen=LAST)
    for report in Run(config, path / "run", device="cpu").reports():
        last.append(report.ious)
        if report.step >= first + LAST and (np.mean(last, axis=0) > wanted).all():
            break
    return np.mean(last, axis=0)


@pytest.mark.slow
def test_four_images_can_be_overfitted(tmp_path):
    for index in range(4):
        pixels, labels = image(index)
        save(pixels, tmp_path / "images" / f"p{index}.png")
        save(labels, tmp_path / "masks" / f"p{index}.png")
    prompted, corrected = last_ious(tmp_path, "folder", (IMAGES,), wanted=(0.9, 0.9))
    assert prompted > 0.9
    assert corrected > 0.9


def save_video(path):
    for frame in range(4):
        pixels, labels = image(0, shift=frame)
        save(pixels, path / "JPEGImages/one" / f"{frame:05}.png")
        save(labels, path / "Annotations/one" / f"{frame:05}.png")


@pytest.mark.slow
def test_a_video_can_be_overfitted(tmp_path):
    save_video(tmp_path)
    first, tracked = last_ious(tmp_path, "videos", (replace(IMAGES, steps=250, batch_size=2), CLIPS), wanted=(0.9, 0.9))
    assert first > 0.9
    assert tracked > 0.9


@pytest.mark.slow
def test_an_edgetam_is_fine_tuned_on_images_and_then_on_a_video(tmp_path):
    """From a folder of random weights, of which the statistics of batch norms stay as they are."""
    save_video(tmp_path)
    before = random_edgetam(TINY)
    before.save_pretrained(tmp_path / "edgetam")
    stages = (replace(IMAGES, steps=120, batch_size=2), replace(CLIPS, steps=200))
    ious = last_ious(tmp_path, "videos", stages, (0.75, 0.75), network=str(tmp_path / "edgetam"))
    assert (ious > 0.75).all()
