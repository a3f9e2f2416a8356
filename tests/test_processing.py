import io
import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub_errors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masklet import checkpoints
from masklet.errors import CheckpointError, ConfigError, ImageError, PromptError
from masklet.image import EncodedImage
from masklet.processing import IMAGE_MEAN, IMAGE_STD, Sam2ImageProcessor, Sam2Processor
from masklet.segmenter import load


@pytest.fixture(scope="session")
def processor():
    return Sam2Processor(Sam2ImageProcessor(64))


def image_of(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


# Against transformers


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "transformers/processing.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def samples(golden_folder):
    return golden_folder / "inputs"


def test_a_batch_against_transformers(golden, samples):
    inputs = Sam2Processor(Sam2ImageProcessor(1024))(
        [samples / "truck.jpg", samples / "cars.jpg"],
        input_points=[[[[500, 375], [1125, 625]], [[900, 600]]], [[[100, 200]]]],
        input_labels=[[[1, 0], [1]], [[1]]],
        return_tensors="pt",
    )
    for name in ("input_points", "input_labels", "original_sizes"):
        expected = golden[f"batch.{name}"]
        np.testing.assert_array_equal(inputs[name], expected)
        assert inputs[name].numpy().dtype == expected.dtype

    std = np.array(IMAGE_STD)[:, None, None]
    pixels = inputs["pixel_values"].numpy()
    (every_16th,) = (value for name, value in golden.items() if "pixel_values" in name and value.ndim == 4)
    assert np.abs((pixels[..., ::16, ::16] - every_16th) * std * 255).max() <= 1


def test_boxes_against_transformers(golden, samples):
    inputs = Sam2Processor(Sam2ImageProcessor(1024))(
        samples / "truck.jpg", input_boxes=[[[425, 600, 700, 875], [10, 20, 300, 400]]]
    )
    np.testing.assert_array_equal(inputs["input_boxes"], golden["boxes.input_boxes"])


def test_segmentation_maps_against_transformers(golden):
    rows, columns = np.indices((1200, 1800))
    inputs = Sam2ImageProcessor(1024)(image_of(1200, 1800), segmentation_maps=((rows + columns) // 300) % 3)
    np.testing.assert_array_equal(inputs["labels"], golden["maps.labels"])


def test_masks_against_transformers(golden):
    low_res = torch.from_numpy(golden["post.low_res"]).float()
    expected = np.unpackbits(golden["post.masks_packed"])[: 3 * 1200 * 1800].reshape(3, 1200, 1800).astype(bool)
    (masks,) = Sam2ImageProcessor(1024).post_process_masks(low_res[None], [[1200, 1800]])
    assert (masks[0].numpy() == expected).mean() >= 0.9999


# Images


def test_pixels_are_normalised():
    pixels = Sam2ImageProcessor(32)([image_of(10, 20, 255), image_of(5, 5, 0)])["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        torch.testing.assert_close(pixels[0, channel], torch.full((32, 32), (1 - mean) / std))
        torch.testing.assert_close(pixels[1, channel], torch.full((32, 32), -mean / std))


def test_an_image_of_the_input_size_keeps_its_pixels(image):
    enlarged = np.kron(image, np.ones((2, 2, 1), np.uint8))[:64, :96]
    pixels = Sam2ImageProcessor((64, 96))(enlarged)["pixel_values"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    back = ((pixels * std + mean) * 255).permute(1, 2, 0)
    np.testing.assert_allclose(back, enlarged, atol=1e-3)


def test_images_give_pixels_and_sizes():
    inputs = Sam2ImageProcessor((64, 96))(Image.new("L", (20, 10)))
    assert inputs.keys() == {"pixel_values", "original_sizes", "reshaped_input_sizes"}
    assert inputs["pixel_values"].shape == (1, 3, 64, 96)
    assert inputs["original_sizes"].tolist() == [[10, 20]]
    assert inputs["reshaped_input_sizes"].tolist() == [[64, 96]]


def test_an_image_of_one_pixel_is_an_image(processor):
    inputs = processor(image_of(1, 1, 7), input_points=[[[[0, 1]]]], input_boxes=[[[0, 0, 1, 1]]])
    assert inputs["pixel_values"].std((2, 3)).max() < 1e-6
    assert inputs["input_points"].tolist() == [[[[0, 64]]]]
    assert inputs["input_boxes"].tolist() == [[[0, 0, 64, 64]]]


@pytest.mark.parametrize("size", [64, np.int64(64), (64, 64), [64, 64], torch.Size((64, 64))])
def test_a_size_can_be_of_many_types(size):
    assert Sam2ImageProcessor(size).input_hw == (64, 64)


@pytest.mark.parametrize("size", [0, -32, 100, 64.0, True, "64", None, (64,), (64, 100), (64, 64, 64), (64, "64"), {}])
def test_a_size_that_does_not_fit_the_network_is_refused(size):
    with pytest.raises(ConfigError) as caught:
        Sam2ImageProcessor(size)
    assert str(caught.value) == (
        f"input size {size!r} does not fit the network: expected a multiple of 32 for the height and for the width"
    )


def truncated_jpeg():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return io.BytesIO(file.getvalue()[:-1000])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "an empty list of images: expected at least one image"),
        (None, "expected an image: a path, a binary file, a PIL image, a numpy array or a torch tensor, not NoneType"),
        (truncated_jpeg(), "is truncated: the file ends before the image does"),
        (np.zeros((2, 10, 10, 3), np.uint8), "one image at a time"),
        ("no/such.jpg", "there is no image at no/such.jpg"),
    ],
)
def test_what_is_not_an_image_is_refused(images, message):
    with pytest.raises(ImageError) as caught:
        Sam2ImageProcessor(64)(images)
    assert message in str(caught.value)


def test_a_decompression_bomb_is_refused(monkeypatch, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"would unpack to more pixels than Pillow's limit of 1000"):
        Sam2ImageProcessor(64)(tmp_path / "bomb.png")


def test_only_pytorch_tensors_are_returned(processor):
    with pytest.raises(ValueError, match=r"return_tensors is 'np': expected 'pt', PyTorch tensors"):
        processor(image_of(5, 5), return_tensors="np")


# Segmentation maps


def test_maps_are_resized_to_mask_size_without_new_values(processor):
    maps = np.zeros((48, 80), np.uint8)
    maps[:24], maps[24:, 40:] = 7, 255
    labels = processor(image_of(48, 80), segmentation_maps=maps)["labels"]
    assert labels.shape == (1, 16, 16)
    assert labels.dtype == torch.int64
    assert (labels[0, :8] == 7).all()
    assert (labels[0, 8:, :8] == 0).all()
    assert (labels[0, 8:, 8:] == 255).all()


def test_maps_keep_large_integers_and_may_differ_in_size(processor):
    maps = [np.full((10, 10), 2**40 + 1), np.full((3, 50), 1, bool), torch.full((1, 1), -1)]
    labels = processor([image_of(10, 10), image_of(3, 50), image_of(1, 1)], segmentation_maps=maps)["labels"]
    assert labels.flatten(1).unique(dim=1).tolist() == [[2**40 + 1], [1], [-1]]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.zeros((4, 4), int)] * 2, "2 segmentation maps came with 1 images: expected one for each"),
        ([], "0 segmentation maps came with 1 images: expected one for each"),
        (
            np.zeros((4, 4)),
            "a segmentation map has shape (4, 4) of float64: expected (height, width) integers",
        ),
        (
            np.zeros((1, 4, 4), int),
            "a segmentation map has shape (1, 4, 4) of int64: expected (height, width) integers",
        ),
        (
            np.zeros((0, 4), int),
            "a segmentation map has shape (0, 4) of int64: expected (height, width) integers",
        ),
    ],
)
def test_maps_that_do_not_fit_the_images_are_refused(processor, maps, message):
    with pytest.raises(ImageError) as caught:
        processor(image_of(4, 4), segmentation_maps=maps)
    assert str(caught.value) == message


# Prompts


def test_prompts_have_the_scale_of_their_own_image(processor):
    inputs = processor(
        [image_of(100, 50), image_of(10, 200)],
        input_points=[[[[25, 50]]], [[[100, 5]], [[200, 10]]]],
        input_boxes=[[[0, 0, 50, 100]], [[50, 5, 100, 10], [0, 0, 100, 5]]],
    )
    assert inputs["input_points"].tolist() == [[[[32, 32]], [[-10, -10]]], [[[32, 32]], [[64, 64]]]]
    assert inputs["input_labels"].tolist() == [[[1], [-10]], [[1], [1]]]
    assert inputs["input_boxes"].tolist() == [[[0, 0, 64, 64], [-10] * 4], [[16, 32, 32, 64], [0, 0, 32, 32]]]


def test_a_box_with_coordinates_of_minus_ten_is_not_padding(processor):
    boxes = processor(image_of(32, 32), input_boxes=[[[-10, -10, 10, 10], [0, -10, 10, 10]]])["input_boxes"]
    assert boxes.tolist() == [[[-20, -20, 20, 20], [0, -20, 20, 20]]]


def test_encoded_images_need_only_their_sizes(processor):
    prompts = {"input_points": [[[[40, 24]]]], "input_boxes": [[[0, 0, 40, 24]]]}
    with_image = processor(image_of(48, 80), **prompts)
    for sizes in ([[48, 80]], torch.tensor([[48, 80]]), np.array([[48, 80]]), [(48, 80)]):
        without = processor(original_sizes=sizes, **prompts)
        assert without.keys() == {"original_sizes", "input_points", "input_labels", "input_boxes"}
        for name, value in without.items():
            torch.testing.assert_close(value, with_image[name])


def test_inputs_can_be_moved_and_only_floats_change_type(processor):
    inputs = processor(image_of(4, 4), input_points=[[[[1, 2]]]]).to("cpu", torch.float16)
    assert inputs["pixel_values"].dtype == inputs["input_points"].dtype == torch.float16
    assert inputs["input_labels"].dtype == inputs["original_sizes"].dtype == torch.int64
    assert inputs.to(dtype=torch.float64)["pixel_values"].dtype == torch.float64
    assert inputs.to(torch.device("cpu")).keys() == inputs.keys()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"input_labels": [[[1]]]},
            "input_labels came without input_points: expected one label for each point",
        ),
        (
            {"input_points": [[[[1, 2]]], [[[1, 2]]]]},
            "input_points are for 2 images, but 1 came",
        ),
        (
            {"input_points": [[[[500, 2]]]]},
            "point (500, 2) is outside the image: x runs from 0 to 80, y from 0 to 48. Points are (x, y) in pixels of "
            "the original image, not (row, column) and not 0 to 1",
        ),
        ({"input_boxes": [[]]}, "input_boxes hold an empty list: expected at least one value in every list"),
    ],
)
def test_invalid_prompts_are_refused(processor, prompts, message):
    with pytest.raises(PromptError) as caught:
        processor(image_of(48, 80), **prompts)
    assert str(caught.value) == message


def test_neither_images_nor_sizes_are_refused(processor):
    with pytest.raises(ImageError) as caught:
        processor(input_points=[[[[1, 2]]]])
    assert str(caught.value) == "expected images, or original_sizes for images that are already encoded"


# Masks


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=3),
    objects=st.integers(1, 3),
    masks=st.integers(1, 3),
)
def test_every_image_gets_masks_of_its_own_size(sizes, objects, masks):
    logits = torch.randn(len(sizes), objects, masks, 8, 8)
    post_processed = Sam2ImageProcessor(32).post_process_masks(logits, torch.tensor(sizes))
    for size, mask, low_res in zip(sizes, post_processed, logits, strict=True):
        assert mask.shape == (objects, masks, *size)
        assert mask.dtype == torch.bool
        (alone,) = Sam2ImageProcessor(32).post_process_masks([low_res], [size])
        assert torch.equal(mask, alone)


def test_logits_can_be_returned_upscaled():
    logits = torch.randn(1, 2, 1, 8, 8)
    (upscaled,) = Sam2ImageProcessor(32).post_process_masks(logits, [[20, 30]], binarize=False)
    (masks,) = Sam2ImageProcessor(32).post_process_masks(logits, [[20, 30]], mask_threshold=0.5)
    assert upscaled.dtype == torch.float32
    assert torch.equal(upscaled > 0.5, masks)


def test_the_third_positional_argument_is_the_threshold(processor):
    logits = 4 * torch.randn(1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (masks,) = processor.post_process_masks(logits, [[20, 30]], 2.0)
    (by_name,) = processor.post_process_masks(logits, [[20, 30]], mask_threshold=2.0)
    (default,) = processor.post_process_masks(logits, [[20, 30]])
    assert torch.equal(masks, by_name)
    assert 0 < masks.sum() < default.sum()
    (upscaled,) = processor.post_process_masks(logits, [[20, 30]], 2.0, False)
    assert torch.equal(masks, upscaled > 2)


@pytest.mark.parametrize("sizes", [torch.tensor([[64, 64]]), [[64, 64]], ((64, 64),), np.array([[64, 64]])], ids=type)
def test_the_reshaped_sizes_of_sam_are_accepted_but_never_instead_of_a_threshold(processor, sizes):
    logits = torch.randn(1, 1, 1, 8, 8)
    (expected,) = processor.post_process_masks(logits, [[9, 9]])
    for masks in (
        processor.post_process_masks(logits, [[9, 9]], sizes),
        processor.post_process_masks(logits, [[9, 9]], reshaped_input_sizes=sizes),
    ):
        assert torch.equal(masks[0], expected)
    with pytest.raises(PromptError, match="binarize is 2.0: expected True or False. .* leave SAM's reshaped_input_siz"):
        processor.post_process_masks(logits, [[9, 9]], sizes, 2.0)


def test_objects_can_be_made_disjoint_by_their_logits():
    logits = torch.tensor([3.0, 1.0, -20.0]).view(1, 3, 1, 1, 1) * torch.tensor([[1.0, 1], [1, -1]])
    (masks,) = Sam2ImageProcessor(32).post_process_masks(logits, [[2, 2]], apply_non_overlapping_constraints=True)
    expected = [[[True, True], [True, False]], [[False] * 2] * 2, [[False, False], [False, True]]]
    assert masks[:, 0].tolist() == expected
    (upscaled,) = Sam2ImageProcessor(32).post_process_masks(
        logits, [[2, 2]], binarize=False, apply_non_overlapping_constraints=True
    )
    assert upscaled[:, 0, 0, 0].tolist() == [3, -10, -20]


def test_holes_and_islands_can_be_removed():
    logits = torch.full((1, 1, 1, 8, 8), -1.0)
    logits[..., :5, :5] = 1
    logits[..., 2, 2] = -1
    logits[..., 7, 7] = 1
    post_process = Sam2ImageProcessor(32).post_process_masks
    (untouched,) = post_process(logits, [[8, 8]])
    (filled,) = post_process(logits, [[8, 8]], max_hole_area=2)
    (cleaned,) = post_process(logits, [[8, 8]], max_hole_area=2, max_sprinkle_area=2)
    assert (untouched.sum(), filled.sum(), cleaned.sum()) == (25, 26, 25)
    assert filled[0, 0, 2, 2]
    assert not cleaned[0, 0, 7, 7]


def test_masks_and_sizes_of_different_numbers_of_images_are_refused(processor):
    with pytest.raises(PromptError) as caught:
        processor.post_process_masks(torch.zeros(2, 1, 1, 8, 8), [[9, 9]])
    assert str(caught.value) == "masks are of 2 images, original_sizes of 1"


# From a folder


def test_a_folder_has_the_size(tiny_folder):
    assert Sam2Processor.from_pretrained(tiny_folder).image_processor.input_hw == (64, 64)
    assert Sam2ImageProcessor.from_pretrained(str(tiny_folder)).input_hw == (64, 64)


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
        Sam2Processor.from_pretrained(tmp_path)
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
    processor = Sam2ImageProcessor.from_pretrained(write_settings(**changed))
    same = Sam2ImageProcessor(**({"size": 64} | expected))
    assert processor.config == same.config
    assert Sam2Processor.from_pretrained(write_settings(**changed)).image_processor.config == same.config
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
        Sam2ImageProcessor.from_pretrained(folder)
    (path,) = folder.iterdir()
    assert str(caught.value) == f"{path} {message}"


@pytest.mark.parametrize(("name", "value"), [("target_size", 32), ("point_pad_value", 0)])
def test_settings_of_the_whole_processor_are_checked(tmp_path, name, value):
    for nested in ({"image_processor": PUBLISHED}, {}):
        (tmp_path / "processor_config.json").write_text(json.dumps(nested | {name: value}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
        with pytest.raises(CheckpointError, match=f"has {name} {value}: masklet supports only "):
            Sam2Processor.from_pretrained(tmp_path)


def test_the_settings_in_processor_config_have_priority_as_in_transformers(tmp_path):
    nested = {"image_processor": PUBLISHED | {"image_mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    assert Sam2ImageProcessor.from_pretrained(tmp_path).config.image_mean == (0.5, 0.5, 0.5)


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
            assert Sam2ImageProcessor.from_pretrained(tmp_path).input_hw == (64, 64)
    with pytest.raises(CheckpointError, match=f"{file} has {message}"):
        Sam2ImageProcessor.from_pretrained(tmp_path)


OTHER = {"image_mean": (0.5, 0.25, 0.125), "image_std": (1.0, 0.5, 0.25), "rescale_factor": 0.01}


def test_saved_settings_are_the_used_ones(tmp_path):
    processor = Sam2ImageProcessor((32, 96), **OTHER)
    processor.save_pretrained(tmp_path / "made")
    assert Sam2ImageProcessor.from_pretrained(tmp_path / "made").config == processor.config
    Sam2Processor(processor.with_size(64)).save_pretrained(tmp_path / "made")
    assert Sam2ImageProcessor.from_pretrained(tmp_path / "made").config == Sam2ImageProcessor(64, **OTHER).config


def test_settings_that_processor_config_would_override_are_not_saved(tmp_path, tiny_model):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PUBLISHED}))
    Sam2ImageProcessor(64).save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="has other settings for images and priority over preprocessor_config"):
        Sam2ImageProcessor(64, **OTHER).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PUBLISHED | OTHER}))
    with pytest.raises(CheckpointError, match="has other settings for images and priority over preprocessor_config"):
        tiny_model.save_pretrained(tmp_path)
    del before["processor_config.json"]
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "processor_config.json"}


def test_a_processor_that_cannot_be_saved_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot save the processor to .*file"):
        Sam2ImageProcessor(64).save_pretrained(tmp_path / "file")


def test_another_size_keeps_the_other_settings(image):
    processor = Sam2ImageProcessor(64, **OTHER)
    assert processor.with_size((32, 96)).config == Sam2ImageProcessor((32, 96), **OTHER).config
    assert processor.config == Sam2ImageProcessor(64, **OTHER).config
    with pytest.raises(ConfigError, match="input size 100 does not fit the network"):
        processor.with_size(100)


def test_everything_that_is_loaded_from_a_folder_uses_its_settings(tiny_folder, tmp_path, image):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    Sam2ImageProcessor(64, **OTHER).save_pretrained(folder)
    sam = load(folder)
    for processor, resolution in ((sam.image_processor, None), (Sam2ImageProcessor(32, **OTHER), 32)):
        expected = EncodedImage.encode(sam.engine, image, processor)
        encoded = sam.image(image, resolution=resolution)
        for level, other in zip(encoded.features, expected.features, strict=True):
            assert torch.equal(level, other)
    session = sam.video([image, image], resolution=32)
    session.prompt(frame=0, object=1, points=[(30, 20)])
    session.save(tmp_path / "session")
    assert sam.resume(tmp_path / "session", [image, image]).processor.config == Sam2ImageProcessor(32, **OTHER).config


def test_pixels_are_resized_on_the_cpu_whatever_the_default_device(image):
    """Antialiased interpolation does not exist on MPS. The meta device stands for any other device here."""
    processor = Sam2ImageProcessor(64)
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

    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    assert Sam2ImageProcessor.from_pretrained("me/mine").config == Sam2ImageProcessor(64).config


def test_settings_that_are_missing_offline_are_an_error(tiny_folder, monkeypatch):
    """The repository may have them."""

    def fetch(repository, filename, **_):
        if filename != "config.json":
            raise hub_errors.LocalEntryNotFoundError(filename)
        return tiny_folder / filename

    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    with pytest.raises(CheckpointError, match="preprocessor_config.json of me/mine is not in the local cache"):
        Sam2ImageProcessor.from_pretrained("me/mine")
