import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub_errors

from masklet import checkpoints
from masklet.errors import CheckpointError, ConfigError
from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.processing import IMAGE_MEAN, IMAGE_STD, ImageProcessor
from masklet.segmenter import load


def image_of(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


# Images


def test_pixels_are_normalised():
    pixels = torch.cat([ImageProcessor(32).pixel_values(i) for i in (image_of(10, 20, 255), image_of(5, 5, 0))])
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        torch.testing.assert_close(pixels[0, channel], torch.full((32, 32), (1 - mean) / std))
        torch.testing.assert_close(pixels[1, channel], torch.full((32, 32), -mean / std))


def test_an_image_of_the_input_size_keeps_its_pixels(image):
    enlarged = np.kron(image, np.ones((2, 2, 1), np.uint8))[:64, :96]
    (pixels,) = ImageProcessor((64, 96)).pixel_values(enlarged)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    back = ((pixels * std + mean) * 255).permute(1, 2, 0)
    np.testing.assert_allclose(back, enlarged, atol=1e-3)


def test_pixels_are_within_a_step_of_those_of_transformers_which_resizes_in_8_bits(golden_folder):
    with np.load(golden_folder / "transformers/processing.npz") as file:
        (every_16th,) = (file[name] for name in file if "pixel_values" in name and file[name].ndim == 4)
    std = np.array(IMAGE_STD)[:, None, None]
    for name, expected in zip(("truck.jpg", "cars.jpg"), every_16th, strict=True):
        (pixels,) = ImageProcessor(1024).pixel_values(read_image(golden_folder / "inputs" / name)).numpy()
        assert np.abs((pixels[:, ::16, ::16] - expected) * std * 255).max() <= 1


@pytest.mark.parametrize("size", [64, 64.0, np.int64(64), (64, 64), [64, 64], torch.Size((64, 64))])
def test_a_size_can_be_of_many_types(size):
    assert ImageProcessor(size).input_hw == (64, 64)


@pytest.mark.parametrize("size", [0, -32, 100, 64.5, True, "64", None, (64,), (64, 100), (64, 64, 64), (64, "64"), {}])
def test_a_size_that_does_not_fit_the_network_is_refused(size):
    with pytest.raises(ConfigError) as caught:
        ImageProcessor(size)
    assert str(caught.value) == (
        f"input size {size!r} does not fit the network: expected a multiple of 32 for the height and for the width"
    )


# From a folder


def test_a_folder_has_the_size(tiny_folder):
    assert ImageProcessor.from_pretrained(tiny_folder).input_hw == (64, 64)
    assert ImageProcessor.from_pretrained(str(tiny_folder)).input_hw == (64, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", 'has size None: expected {"height": …, "width": …} in pixels'),
        ('{"size": {"longest_edge": 1024}}', "has size {'longest_edge': 1024}: expected"),
        ('{"size": {"height": "64", "width": 64}}', "has size {'height': '64', 'width': 64}: expected"),
        ('{"size": 64', "is not JSON (Expecting"),
        ("[]", "holds a list: expected a JSON object"),
    ],
)
def test_a_malformed_preprocessor_file_is_refused(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        ImageProcessor.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "preprocessor_config.json"))


# The settings of a folder


PUBLISHED = {
    "image_processor_type": "Sam2ImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "mask_size": {"height": 16, "width": 16},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 64, "width": 64},
    # What older versions of transformers write as well.
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_pad": None,
    "input_data_format": None,
    "return_tensors": None,
}


@pytest.fixture(params=["preprocessor_config.json", "processor_config.json"])
def write_settings(request, tmp_path):
    """Writes the published settings, except for the given ones, into one of the two files of transformers."""

    def write(**changed):
        settings = {name: value for name, value in (PUBLISHED | changed).items() if value != "absent"}
        if request.param == "processor_config.json":
            settings = {"image_processor": settings, "processor_class": "Sam2Processor", "target_size": None}
        (tmp_path / request.param).write_text(json.dumps(settings))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"image_mean": [0.5, 0.25, 0.125]}, {"image_mean": (0.5, 0.25, 0.125)}),
        ({"image_std": [1, 0.5, 0.25]}, {"image_std": (1, 0.5, 0.25)}),
        ({"image_mean": "absent", "image_std": None}, {}),
        ({"rescale_factor": 1 / 128}, {"rescale_factor": 1 / 128}),
        ({"do_rescale": False, "rescale_factor": None}, {"rescale_factor": 1}),
        ({"do_normalize": False, "image_std": None}, {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}),
        ({"size": {"height": 32, "width": 96}, "mask_size": {"height": 8, "width": 24}}, {"size": (32, 96)}),
        ({"mask_size": "absent", "resample": None}, {}),
    ],
)
def test_the_settings_of_a_folder_are_followed(write_settings, image, changed, expected):
    processor = ImageProcessor.from_pretrained(write_settings(**changed))
    same = ImageProcessor(**({"size": 64} | expected))
    assert processor.config == same.config
    size = expected.get("size", (64, 64))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(expected.get(name, default)).view(3, 1, 1)
        for name, default in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD))
    )
    torch.testing.assert_close(
        processor.pixel_values(image), (resized * expected.get("rescale_factor", 1 / 255) - mean) / std
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"do_resize": False}, "has do_resize False: masklet supports only True"),
        ({"do_convert_rgb": False}, "has do_convert_rgb False: masklet supports only True"),
        ({"do_center_crop": True}, "has do_center_crop True: masklet supports only False"),
        ({"do_pad": True}, "has do_pad True: masklet supports only False"),
        ({"resample": 3}, "has resample 3: masklet supports only 2"),
        ({"do_rescale": "yes"}, "has do_rescale 'yes': expected true or false"),
        ({"do_normalize": 1}, "has do_normalize 1: expected true or false"),
        ({"image_mean": 0.5}, "has image_mean 0.5: expected three numbers, for red, green and blue"),
        ({"image_mean": [0.5]}, "has image_mean [0.5]: expected three numbers, for red, green and blue"),
        ({"image_mean": [0, 1, "2"]}, "has image_mean '2': expected a finite number"),
        ({"image_std": [0.1, 0.1, 0]}, "has image_std 0: expected a positive finite number"),
        ({"image_std": [0.1, 0.1, float("nan")]}, "has image_std nan: expected a positive finite number"),
        ({"rescale_factor": -1}, "has rescale_factor -1: expected a positive finite number"),
        ({"size": 64}, 'has size 64: expected {"height": …, "width": …} in pixels'),
        ({"mask_size": {"height": 64, "width": 64}}, "has mask_size (64, 64): masklet supports only (16, 16)"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(write_settings, changed, message):
    folder = write_settings(**changed)
    with pytest.raises(CheckpointError) as caught:
        ImageProcessor.from_pretrained(folder)
    (path,) = folder.iterdir()
    assert str(caught.value) == f"{path} {message}"


@pytest.mark.parametrize(("name", "value"), [("target_size", 32), ("point_pad_value", 0)])
def test_settings_of_the_whole_processor_are_checked(tmp_path, name, value):
    for nested in ({"image_processor": PUBLISHED}, {}):
        (tmp_path / "processor_config.json").write_text(json.dumps(nested | {name: value}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
        with pytest.raises(CheckpointError, match=f"has {name} {value}: masklet supports only "):
            ImageProcessor.from_pretrained(tmp_path)


def test_the_settings_in_processor_config_have_priority_as_in_transformers(tmp_path):
    nested = {"image_processor": PUBLISHED | {"image_mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    assert ImageProcessor.from_pretrained(tmp_path).config.image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("file", ["processor_config.json", "video_preprocessor_config.json"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_mean", [0.5, 0.5, 0.5], r"image_mean \(0.5, 0.5, 0.5\) for videos and \(0.485, 0.456, 0.406\) for im"),
        ("do_resize", False, "do_resize False: masklet supports only True"),
    ],
)
def test_frames_of_videos_must_be_prepared_as_images_are(tmp_path, file, name, value, message):
    for changed in ({}, {name: value}):
        frames = PUBLISHED | {"mask_size": None} | changed
        nested = {"image_processor": PUBLISHED, "video_processor": frames}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
        (tmp_path / file).write_text(json.dumps(nested if file == "processor_config.json" else frames))
        if not changed:
            assert ImageProcessor.from_pretrained(tmp_path).input_hw == (64, 64)
    with pytest.raises(CheckpointError, match=f"{file} has {message}"):
        ImageProcessor.from_pretrained(tmp_path)


OTHER = {"image_mean": (0.5, 0.25, 0.125), "image_std": (1.0, 0.5, 0.25), "rescale_factor": 0.01}


def test_saved_settings_are_the_used_ones(tmp_path):
    processor = ImageProcessor((32, 96), **OTHER)
    processor.save_pretrained(tmp_path / "made")
    assert ImageProcessor.from_pretrained(tmp_path / "made").config == processor.config
    processor.with_size(64).save_pretrained(tmp_path / "made")
    assert ImageProcessor.from_pretrained(tmp_path / "made").config == ImageProcessor(64, **OTHER).config


def test_settings_that_processor_config_would_override_are_not_saved(tmp_path, tiny_model):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PUBLISHED}))
    ImageProcessor(64).save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="has other settings for images and priority over preprocessor_config"):
        ImageProcessor(64, **OTHER).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PUBLISHED | OTHER}))
    with pytest.raises(CheckpointError, match="has other settings for images and priority over preprocessor_config"):
        tiny_model.save_pretrained(tmp_path)
    del before["processor_config.json"]
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "processor_config.json"}


def test_a_processor_that_cannot_be_saved_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot save the processor to .*file"):
        ImageProcessor(64).save_pretrained(tmp_path / "file")


def test_another_size_keeps_the_other_settings(image):
    processor = ImageProcessor(64, **OTHER)
    assert processor.with_size((32, 96)).config == ImageProcessor((32, 96), **OTHER).config
    assert processor.config == ImageProcessor(64, **OTHER).config
    with pytest.raises(ConfigError, match="input size 100 does not fit the network"):
        processor.with_size(100)


def test_everything_that_is_loaded_from_a_folder_uses_its_settings(tiny_folder, tmp_path, image):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    ImageProcessor(64, **OTHER).save_pretrained(folder)
    sam = load(folder)
    for processor, resolution in ((sam.image_processor, None), (ImageProcessor(32, **OTHER), 32)):
        expected = EncodedImage.encode(sam.engine, image, processor)
        encoded = sam.image(image, resolution=resolution)
        for level, other in zip(encoded.features, expected.features, strict=True):
            assert torch.equal(level, other)
    session = sam.video([image, image], resolution=32)
    session.prompt(frame=0, object=1, points=[(30, 20)])
    session.save(tmp_path / "session")
    assert sam.resume(tmp_path / "session", [image, image]).processor.config == ImageProcessor(32, **OTHER).config


def test_pixels_are_resized_on_the_cpu_whatever_the_default_device(image):
    """Antialiased interpolation does not exist on MPS. The meta device stands for any other device here."""
    processor = ImageProcessor(64)
    expected = [processor.pixel_values(image), processor.frame_values(image)]
    with torch.device("meta"):
        pixels = [processor.pixel_values(image), processor.frame_values(image)]
    for one, other in zip(pixels, expected, strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)


def test_a_repository_without_settings_has_the_defaults_of_its_network(tiny_folder, monkeypatch):
    def fetch(repository, filename, **_):
        if filename != "config.json":
            raise hub_errors.EntryNotFoundError(filename)
        return tiny_folder / filename

    monkeypatch.setattr(checkpoints.hub, "hf_hub_download", fetch)
    assert ImageProcessor.from_pretrained("me/mine").config == ImageProcessor(64).config


def test_settings_that_are_missing_offline_are_an_error(tiny_folder, monkeypatch):
    """The repository may have them."""

    def fetch(repository, filename, **_):
        if filename != "config.json":
            raise hub_errors.LocalEntryNotFoundError(filename)
        return tiny_folder / filename

    monkeypatch.setattr(checkpoints.hub, "hf_hub_download", fetch)
    with pytest.raises(CheckpointError, match="preprocessor_config.json of me/mine is not in the local cache"):
        ImageProcessor.from_pretrained("me/mine")
