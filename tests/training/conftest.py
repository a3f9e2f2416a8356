"""What the tests of training share: made-up sources, and the real ones where they are."""

import io
import zipfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

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
from masklet.training.config import DataConfig, Stage, TrainingConfig
from masklet.training.losses import LossWeights
from masklet.training.sources import CUTOUT_ARCHIVES, IMAGE_ARCHIVES, INSTANCE_ARCHIVES, Sources

DATA = Path(__file__).parents[3] / "shared/data/train"


@pytest.fixture(scope="session")
def same_worlds():
    """Whether two worlds, or what they hold, are equal in all numbers."""

    def same(one, other):
        if type(one) is not type(other):
            return False
        if is_dataclass(one):
            return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
        if isinstance(one, list):
            return len(one) == len(other) and all(map(same, one, other))
        return np.array_equal(one, other)

    return same


@pytest.fixture(scope="session")
def data_folder():
    if not DATA.exists():
        pytest.skip(f"the training data are not at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def made_up_sources():
    """Two bright cut-outs, one dull image, one image with two annotated squares."""
    cutouts = [Image.new("RGBA", (40, 30), colour) for colour in ("red", "yellow")]
    encoded = Image.fromarray(np.full((90, 120, 3), 60, np.uint8))
    labels = np.zeros((90, 120), np.uint8)
    labels[10:50, 10:50], labels[30:80, 70:110], labels[:5] = 1, 2, 255
    scene = np.array(encoded)
    scene[labels == 1], scene[labels == 2] = (0, 200, 0), (0, 0, 200)
    return Sources(cutouts, [encoded], [(Image.fromarray(scene), Image.fromarray(labels))])


@pytest.fixture(scope="session")
def tiny_run():
    """A run of a network that takes a moment."""
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
    stage = Stage(image_size=64, steps=4, images=2, objects=2, rounds=2, losses=LossWeights(focal=5))
    return TrainingConfig(
        model=model,
        data=DataConfig(layout="synthetic", path="nowhere", validation=0.0),
        geometry_steps=2,
        stages=(stage, replace(stage, image_size=96, steps=2)),
        seed=7,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.05,
        max_gradient_norm=1.0,
        ema_decay=0.9,
        optimizer="muon",
        parts=2,
        affinity=1.0,
        workers=1,
    )


@pytest.fixture(scope="session")
def made_up_archives(tmp_path_factory):
    """A data folder of a few files, laid out as the real one."""
    folder = tmp_path_factory.mktemp("data")

    def pack(name, **images):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path, (image, kind) in images.items():
                file = io.BytesIO()
                image.save(file, kind)
                archive.writestr(path, file.getvalue())

    encoded, cutout = Image.new("RGB", (60, 40), "grey"), Image.new("RGBA", (20, 20), "red")
    labels = Image.new("L", encoded.size)
    labels.paste(1, (10, 10, 40, 30))
    for name in CUTOUT_ARCHIVES:
        pack(f"cutouts-{name}", **{f"thing{n}.webp": (cutout, "WEBP") for n in range(60)})
    for name in IMAGE_ARCHIVES:
        pack(name, **{f"view{n}.jpg": (encoded, "JPEG") for n in range(60)})
    for name in INSTANCE_ARCHIVES:
        images = {f"images/view{n}.jpg": (encoded, "JPEG") for n in range(60)}
        pack(name, **images, **{f"masks/view{n}.png": (labels, "PNG") for n in range(60)})
    return folder


@pytest.fixture
def images(tmp_path):
    """Six images of two bright squares each."""
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels, labels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
        for number, (x, y) in enumerate(((4 + 2 * index, 6), (34, 30 + 2 * index)), start=1):
            pixels[y : y + 20, x : x + 24] += np.uint8(150)
            labels[y : y + 20, x : x + 24] = number
        for folder, array in (("images", pixels), ("masks", labels)):
            (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "images" / folder / f"p{index}.png")
    return tmp_path / "images"


@pytest.fixture
def config(images, tiny_folder):
    """A short run of the tiny model."""
    return TrainingConfig(
        model=str(tiny_folder),
        data=DataConfig(layout="folder", path=str(images), validation=0.3),
        stages=(Stage(steps=4, images=2, objects=2, rounds=2, losses=LossWeights(focal=5)),),
        learning_rate=1e-3,
        warmup_steps=1,
        workers=1,
        save_every=2,
        validate_every=2,
    )
