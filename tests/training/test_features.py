"""The feature cache: hits, misses, damaged files and limits."""

import copy
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training import features as features_module
from masklet.training.batches import Batch
from masklet.training.config import LoraConfig
from masklet.training.data_config import Augmentations
from masklet.training.features import FeatureCache
from masklet.training.run import Run


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch_of(pixels):
    return Batch(pixels, torch.zeros(len(pixels), 1, 64, 64, dtype=torch.bool), tuple("abc"[: len(pixels)]))


@pytest.fixture
def counted(tiny_model):
    """The tiny model, counting the images it encodes."""
    model = copy.deepcopy(tiny_model)
    encode, model.encoded = model.encode, 0

    def counting(pixel_values):
        model.encoded += len(pixel_values)
        return encode(pixel_values)

    model.encode = counting
    return model


def test_an_image_is_encoded_once_in_whatever_batch(counted, pixels, tmp_path):
    cache = FeatureCache(tmp_path, counted, max_bytes=1e9)
    first = cache(batch_of(pixels))
    again = FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels.flip(0)))
    assert counted.encoded == 3
    for made, kept, exact in zip(first, again, counted.encode(batch_of(pixels).pixel_values), strict=True):
        assert made.equal(kept.flip(0))
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, exact, rtol=1e-3, atol=1e-3)


def test_other_images_and_encoders_have_other_files(counted, pixels, tmp_path):
    cache = FeatureCache(tmp_path, counted, max_bytes=1e9)
    cache(batch_of(pixels[:1]))
    cache(batch_of(pixels[:1].flip(-1)))
    assert counted.encoded == 2
    with torch.no_grad():
        counted.vision_encoder.neck.convs[0].weight.mul_(1.1)
    FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels[:1]))
    assert counted.encoded == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_a_damaged_file_is_replaced(counted, pixels, tmp_path, caplog):
    first = FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels[:1]))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels[:1]))
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    assert "is damaged: its image is encoded again" in caplog.text


def test_a_full_folder_does_not_grow_and_results_are_the_same(counted, pixels, tmp_path, caplog):
    whole = FeatureCache(tmp_path / "whole", counted, max_bytes=1e9)(batch_of(pixels))
    one_file = next((tmp_path / "whole").rglob("*.safetensors")).stat().st_size
    cache = FeatureCache(tmp_path / "small", counted, max_bytes=1.5 * one_file)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert all(a.equal(b) for a, b in zip(whole, cache(batch_of(pixels)), strict=True))
    assert len(list((tmp_path / "small").rglob("*.safetensors"))) == 1
    assert caplog.text.count("is full: further images are encoded every time") == 1


def test_a_full_disk_does_not_end_the_run(counted, pixels, tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(features_module, "save_file", full)
    cache = FeatureCache(tmp_path, counted, max_bytes=1e9)
    assert len(cache(batch_of(pixels))) == 3
    assert caplog.text.count("nothing more is added to") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_encodes_each_image_once_and_does_not_depend_on_what_is_cached(config, tmp_path, monkeypatch):
    cached = replace(
        config,
        data=replace(config.data, augment=Augmentations(flip=0), validation=0.0),
        stages=(replace(config.stages[0], train="decoder", steps=6),),
        cache=str(tmp_path / "cache"),
    )
    encoded = []
    encode = Sam2Model.encode
    monkeypatch.setattr(Sam2Model, "encode", lambda self, values: encoded.append(len(values)) or encode(self, values))
    states = []
    for name in ("cold", "warm"):
        run = Run(cached, tmp_path / name, device="cpu")
        list(run.reports())
        states.append(run.trainer.model.state_dict())
    assert sum(encoded) == 6
    assert all(weight.equal(states[1][name]) for name, weight in states[0].items())


@pytest.mark.parametrize("change", [{"train": "everything"}, {"train": "lora"}])
def test_a_trained_encoder_cannot_be_cached(config, tmp_path, change):
    changed = replace(
        config, stages=(replace(config.stages[0], **change),), lora=LoraConfig(), cache=str(tmp_path / "cache")
    )
    with pytest.raises(ConfigError, match="cache stores the features of a frozen image encoder, but this run trains"):
        Run(changed, tmp_path / "run", device="cpu")


def test_unfinished_files_do_not_count_and_are_removed_later(counted, pixels, tmp_path):
    FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels[:1]))
    (file,) = tmp_path.rglob("*.safetensors")
    old, new = (file.with_name(f".unfinished-{name * 8}-{file.name}") for name in "ab")
    for orphan in (old, new):
        orphan.write_bytes(bytes(1000))
    os.utime(old, (0, 0))
    cache = FeatureCache(tmp_path, counted, max_bytes=1e9)
    assert cache.free_bytes == 1e9 - file.stat().st_size
    assert not old.exists()
    assert new.exists()  # another run may be writing it


def test_a_file_that_another_run_renames_is_skipped(counted, pixels, tmp_path, monkeypatch):
    FeatureCache(tmp_path, counted, max_bytes=1e9)(batch_of(pixels[:1]))
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: [folder / "gone.safetensors"])
    assert FeatureCache(tmp_path, counted, max_bytes=1e9).free_bytes == 1e9
