"""Shared by the tests of training: a tiny network trained from scratch, examples, and a folder of images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
)
from masklet.training.batches import Batch, Example
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data_config import DataConfig
from masklet.training.losses import LossWeights


class Squares:
    """Bright squares on noise, which move to the right in clips; an ``Examples``."""

    def example(self, stage, step, index):
        rng = np.random.default_rng((step, index))
        size, side = stage.input_size, stage.input_size // 4
        pixels = rng.integers(0, 90, (stage.frames, size, size, 3), dtype=np.uint8)
        masks = np.zeros((stage.frames, stage.objects, size, size), bool)
        for number in range(stage.objects):
            x, y = rng.integers(0, size - side, 2)
            colour = rng.integers(100, 255, 3, dtype=np.uint8)
            for frame in range(stage.frames):
                left = min(x + 4 * frame, size - side)
                pixels[frame, y : y + side, left : left + side] = colour
                masks[frame, number, y : y + side, left : left + side] = True
        if stage.frames == 1:
            pixels, masks = pixels[0], masks[0]
        return Example(f"squares {index} of step {step}", pixels, masks)

    def batch(self, stage, examples):
        return Batch.from_examples(examples)


@pytest.fixture(scope="session")
def squares():
    return Squares()


@pytest.fixture(scope="session")
def squares_source():
    """The same, for tests that call something else squares."""
    return Squares()


@pytest.fixture(scope="session")
def scratch():
    """A run that trains a tiny network from scratch, in two stages on images."""
    model = Sam2Config(
        image_size=64,
        hidden_size=32,
        image_encoder=Sam2ImageEncoderConfig(
            hidden_size=8,
            blocks_per_stage=(1, 1, 1, 1),
            global_attention_blocks=(2,),
            window_size_per_stage=(4, 4, 4, 4),
        ),
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=32, num_attention_heads=2),
        memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=16),
        memory_encoder=Sam2MemoryEncoderConfig(output_channels=16),
    )
    stage = Stage(input_size=64, steps=4, batch_size=2, objects=2, rounds=2, losses=LossWeights(focal=5))
    return TrainingConfig(
        model=model,
        stages=(stage, replace(stage, input_size=96, steps=2)),
        seed=7,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.05,
        ema_decay=0.9,
        micro_batches=2,
        precision="float32",
        workers=1,
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of six images of two bright squares each. Tests that change files use ``own_config``."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(6):
        pixels, labels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
        for number, (x, y) in enumerate(((4 + 2 * index, 6), (34, 30 + 2 * index)), start=1):
            pixels[y : y + 20, x : x + 24] += np.uint8(150)
            labels[y : y + 20, x : x + 24] = number
        Image.fromarray(pixels).save(folder / "images" / f"p{index}.png")
        Image.fromarray(labels).save(folder / "masks" / f"p{index}.png")
    return folder


@pytest.fixture(scope="session")
def config(images, tiny_folder):
    """A short run that fine-tunes the tiny model."""
    return TrainingConfig(
        model=str(tiny_folder),
        data=DataConfig(layout="folder", path=str(images), validation=0.3),
        stages=(Stage(steps=4, batch_size=2, objects=2, rounds=2, losses=LossWeights(focal=5)),),
        learning_rate=1e-3,
        warmup_steps=1,
        precision="float32",
        workers=1,
        save_every=2,
        validate_every=2,
    )


@pytest.fixture
def own_config(config, images, tmp_path):
    """The same run on a copy of the images, at ``tmp_path / "images"``."""
    shutil.copytree(images, tmp_path / "images")
    return replace(config, data=replace(config.data, path=str(tmp_path / "images")))
