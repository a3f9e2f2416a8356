"""Shared by the tests of the recipe: synthetic sources, the real ones where they exist, and a tiny recipe."""

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
from masklet.training.config import Stage, TrainingConfig
from masklet.training.losses import LossWeights
from recipes.nano.recipe import Recipe
from recipes.nano.sources import CUTOUT_ARCHIVES, IMAGE_ARCHIVES, INSTANCE_ARCHIVES, Sources

HERE = Path(__file__).parent
DATA = HERE.parents[3] / "shared/data/train"


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.recipe)


@pytest.fixture(scope="session")
def same_worlds():
    """Whether two worlds, or values in them, are equal in all numbers."""

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
def sources():
    """Two bright cut-outs, one dull image, and one image with two annotated squares."""
    cutouts = [Image.new("RGBA", (40, 30), colour) for colour in ("red", "yellow")]
    image = Image.fromarray(np.full((90, 120, 3), 60, np.uint8))
    labels = np.zeros((90, 120), np.uint8)
    labels[10:50, 10:50], labels[30:80, 70:110], labels[:5] = 1, 2, 255
    annotated = np.array(image)
    annotated[labels == 1], annotated[labels == 2] = (0, 200, 0), (0, 0, 200)
    return Sources(cutouts, [image], [(Image.fromarray(annotated), Image.fromarray(labels))])


@pytest.fixture(scope="session")
def recipe():
    """A recipe for a tiny network, in two stages on images."""
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
    stage = Stage(input_size=64, steps=2, batch_size=2, objects=2, rounds=2, losses=LossWeights(focal=5))
    training = TrainingConfig(
        model=model,
        stages=(stage, replace(stage, input_size=96)),
        seed=7,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.05,
        ema_decay=0.9,
        micro_batches=2,
        workers=1,
        save_every=1,
        validation_objects=6,
    )
    return Recipe(training=training, geometry_steps=2, affinity=1.0, muon=True)


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """A folder of small archives, named like those of the embedded model."""
    folder = tmp_path_factory.mktemp("data")

    def pack(name, **images):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path, (image, kind) in images.items():
                file = io.BytesIO()
                image.save(file, kind)
                archive.writestr(path, file.getvalue())

    image, cutout = Image.new("RGB", (60, 40), "grey"), Image.new("RGBA", (20, 20), "red")
    labels = Image.new("L", image.size)
    labels.paste(1, (10, 10, 40, 30))
    for name in CUTOUT_ARCHIVES:
        pack(f"cutouts-{name}", **{f"thing{n}.webp": (cutout, "WEBP") for n in range(60)})
    for name in IMAGE_ARCHIVES:
        pack(name, **{f"view{n}.jpg": (image, "JPEG") for n in range(60)})
    for name in INSTANCE_ARCHIVES:
        images = {f"images/view{n}.jpg": (image, "JPEG") for n in range(60)}
        pack(name, **images, **{f"masks/view{n}.png": (labels, "PNG") for n in range(60)})
    return folder
