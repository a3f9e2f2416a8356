"""Whatever stands in the files of a model or of an encoded image: it is loaded, or refused with a message."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import attempt, damaged_bytes, damaged_documents, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from masklet.checkpoints.meta import read_meta_file
from masklet.config import Sam2Config, Sam2ImageEncoderConfig, Sam2MemoryAttentionConfig, Sam2PromptEncoderConfig
from masklet.errors import CheckpointError, ConfigError, MaskletError
from masklet.image import EncodedImage
from masklet.processing import ImageProcessor
from masklet.segmenter import load


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load_and_use(folder):
    sam = load(folder, device="cpu")
    if max(sam.image_processor.input_hw) <= 256:
        masks = sam.image(np.zeros((20, 30, 3), np.uint8)).predict(points=[(5, 6)])
        assert np.isfinite(masks.iou_scores).all()
    return sam


@given(data=st.data())
@fuzzed(8)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_config_is_loaded_or_refused(folder, tiny_folder, name, data):
    content = json.loads((tiny_folder / name).read_text())
    text = json.dumps(data.draw(damaged_documents(content)), default=str)
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    sam, message = attempt(lambda: load_and_use(folder), MaskletError)
    assert sam is not None or len(message) > 20


@given(data=st.data())
@fuzzed(6)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_damaged_file_of_a_model_is_loaded_or_refused(folder, tiny_folder, name, data):
    (folder / name).write_bytes(data.draw(damaged_bytes((tiny_folder / name).read_bytes())))
    # Weights of other values may load, and then give scores that are not finite, which no Masks hold.
    sam, message = attempt(lambda: load_and_use(folder), (MaskletError, ValueError))
    assert sam is not None or len(message) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.fill_(torch.nan),
            "1 tensors hold NaN or infinity, or no floating-point numbers: no_memory",
        ),
        (lambda t: t.fill_(torch.inf), "1 tensors hold NaN or infinity"),
        (
            lambda t: t.int(),
            "1 tensors hold NaN or infinity, or no floating-point numbers: no_memory",
        ),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    tensors["no_memory_embedding"] = change(tensors["no_memory_embedding"])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sam2Config(image_size=2**40), "image_size is 1099511627776: expected 65536 at most"),
        (lambda: Sam2Config(num_maskmem=True), "num_maskmem is True: expected whole numbers >= 1"),
        (lambda: Sam2MemoryAttentionConfig(num_layers=5000), "num_layers is 5000: expected 1000 at most"),
        (lambda: Sam2PromptEncoderConfig(mask_input_channels=16.0), "mask_input_channels is 16.0: expected whole numb"),
        (lambda: Sam2ImageEncoderConfig(blocks_per_stage=(1, 9999, 7, 2)), "expected 1000 blocks at most"),
        (lambda: Sam2ImageEncoderConfig(global_attention_blocks=(1.5,)), "global attention block 1.5 does not exist"),
    ],
)
def test_networks_that_no_machine_holds_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "1" * 5000 + "}"], ids=["deep", "many digits"])
def test_json_that_python_does_not_read_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        load(folder)


@pytest.mark.parametrize(
    "payload",
    [
        {"image_encoder.trunk.pos_embed": torch.ones(1, 96, 7, 7), 5: torch.ones(1)},
        {"image_encoder.trunk.pos_embed": torch.ones(())},
        {
            "image_encoder.trunk.pos_embed": torch.ones(1, 96, 7, 7),
            "image_encoder.trunk.blocks.0.norm2.weight": torch.ones(()),
        },
        {"model": {}},
        {"model": [torch.ones(1)]},
    ],
)
def test_state_dicts_that_make_no_sense_are_refused(tmp_path, payload):
    torch.save(payload, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "x.pt"))):
        read_meta_file(tmp_path / "x.pt")


# Encoded images


@pytest.fixture(scope="module")
def image_bytes(encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.safetensors"
    encoded.save(path)
    return path.read_bytes()


@given(data=st.data())
@fuzzed(30)
def test_a_damaged_encoded_image_is_loaded_or_refused(sam, image_bytes, tmp_path, data):
    (tmp_path / "x").write_bytes(data.draw(damaged_bytes(image_bytes)))
    image, message = attempt(lambda: EncodedImage.load(sam.engine, tmp_path / "x"), CheckpointError)
    if image is None:
        assert str(tmp_path / "x") in message
    elif max(image.size_hw) < 1000:
        assert np.isfinite(image.predict(points=[(0, 0)]).iou_scores).all()


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"height": "x"}, {}, "the size of the image in .*: expected \\(height, width\\)"),
        ({"height": "-5"}, {}, r"the size of the image in .* is \[-5, 80\]: expected \(height, width\)"),
        ({"height": "9" * 20}, {}, "the size of the image in .*: expected \\(height, width\\)"),
        ({"encoder": ""}, {}, "was encoded by another model"),
        ({}, {"stride16": torch.zeros(1, 32, 3, 4)}, "holds no encoded image: maps of .* with finite numbers are not"),
        ({}, {"stride16": torch.zeros(32, 4, 4)}, "holds no encoded image"),
        ({}, {"stride8": torch.zeros(1, 8, 8, 8, dtype=torch.int64)}, "holds no encoded image"),
        ({}, {"stride4": torch.full((1, 4, 16, 16), torch.nan)}, "holds no encoded image"),
    ],
)
def test_encoded_images_that_make_no_sense_are_refused(sam, image_bytes, tmp_path, metadata, tensors, message):
    (tmp_path / "x").write_bytes(image_bytes)
    with safe_open(tmp_path / "x", framework="pt") as file:
        written = file.metadata() | metadata
        maps = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
    save_file(maps, tmp_path / "x", metadata=written)
    with pytest.raises(CheckpointError, match=message):
        EncodedImage.load(sam.engine, tmp_path / "x")


# Numbers of processors and of predictions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2**40}, "input size 1099511627776 is too large: expected at most 268435456 pixels"),
        ({"size": 10**400}, "input size 1000.* does not fit the network"),
        ({"image_std": (0.2, 0, 0.2)}, "image_std is 0: expected a number, 1e-06 to 1e\\+06"),
        ({"image_std": (0.2, 0.2)}, "is not a value for each of red, green and blue: expected three numbers"),
        ({"image_mean": (0.2, float("nan"), 0.2)}, "image_mean is nan: expected a number"),
        ({"image_mean": 0.5}, "0.5 is not a value for each of red, green and blue"),
        ({"rescale_factor": 0}, "rescale_factor is 0: expected a number, 1e-06 to 1e\\+06"),
        ({"rescale_factor": 10**400}, "rescale_factor is 1000.*: expected a number"),
    ],
)
def test_settings_of_a_processor_that_give_no_numbers_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ImageProcessor(**options)


@pytest.mark.parametrize("name", ["fill_holes", "remove_islands"])
@pytest.mark.parametrize("value", [-1, 1.5, "9", True, 10**400, float("nan")])
def test_areas_that_are_no_numbers_of_pixels_are_refused(encoded, name, value):
    with pytest.raises(ValueError, match=f"{name} is .*: expected a whole number, 0 or more"):
        encoded.predict(points=[(5, 6)], **{name: value})
    with pytest.raises(ValueError, match=f"{name} is .*: expected a whole number, 0 or more"):
        encoded.predict(points=[(5, 6)]).clean(**{name: value})


def test_areas_may_be_whole_floats(encoded):
    masks = encoded.predict(points=[(5, 6)])
    expected = masks.clean(fill_holes=30, remove_islands=20)
    found = masks.clean(fill_holes=30.0, remove_islands=np.float32(20))
    np.testing.assert_array_equal(found.masks, expected.masks)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 10**400, "3", True])
def test_smoothing_by_no_number_of_pixels_is_refused(encoded, value):
    with pytest.raises(ValueError, match=r"smooth_px is .*: expected a number, 0 to 10000"):
        encoded.predict(points=[(5, 6)]).clean(smooth_px=value)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -1, 10**400, "0.5", None])
def test_opacities_that_are_none_are_refused(encoded, value):
    with pytest.raises(ValueError, match="alpha is .*: expected a number, 0 to 1"):
        encoded.predict(points=[(5, 6)]).overlay(alpha=value)
