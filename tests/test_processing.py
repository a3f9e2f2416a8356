import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masklet.errors import CheckpointError, ConfigError, ImageError, PromptError
from masklet.processing import IMAGE_MEAN, IMAGE_STD, Sam2ImageProcessor, Sam2Processor


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


def test_an_image_of_the_right_size_keeps_its_pixels(image):
    enlarged = np.kron(image, np.ones((2, 2, 1), np.uint8))[:64, :96]
    pixels = Sam2ImageProcessor((64, 96))(enlarged)["pixel_values"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    back = ((pixels * std + mean) * 255).permute(1, 2, 0)
    np.testing.assert_allclose(back, enlarged, atol=1e-3)


def test_what_comes_back_of_images():
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
def test_a_size_comes_in_many_ways(size):
    assert Sam2ImageProcessor(size).input_hw == (64, 64)


@pytest.mark.parametrize("size", [0, -32, 100, 64.0, True, "64", None, (64,), (64, 100), (64, 64, 64), (64, "64"), {}])
def test_a_size_that_fits_no_network_is_refused(size):
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
def test_what_is_no_image_is_refused(images, message):
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


def test_maps_come_back_at_mask_size_without_new_values(processor):
    maps = np.zeros((48, 80), np.uint8)
    maps[:24], maps[24:, 40:] = 7, 255
    labels = processor(image_of(48, 80), segmentation_maps=maps)["labels"]
    assert labels.shape == (1, 16, 16)
    assert labels.dtype == torch.int64
    assert (labels[0, :8] == 7).all()
    assert (labels[0, 8:, :8] == 0).all()
    assert (labels[0, 8:, 8:] == 255).all()


def test_maps_keep_large_numbers_and_may_differ_in_size(processor):
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
            "a segmentation map has shape (4, 4) of float64: expected (height, width) whole numbers",
        ),
        (
            np.zeros((1, 4, 4), int),
            "a segmentation map has shape (1, 4, 4) of int64: expected (height, width) whole numbers",
        ),
        (
            np.zeros((0, 4), int),
            "a segmentation map has shape (0, 4) of int64: expected (height, width) whole numbers",
        ),
    ],
)
def test_maps_that_fit_no_image_are_refused(processor, maps, message):
    with pytest.raises(ImageError) as caught:
        processor(image_of(4, 4), segmentation_maps=maps)
    assert str(caught.value) == message


# Prompts


def test_prompts_move_with_their_own_image(processor):
    inputs = processor(
        [image_of(100, 50), image_of(10, 200)],
        input_points=[[[[25, 50]]], [[[100, 5]], [[200, 10]]]],
        input_boxes=[[[0, 0, 50, 100]], [[50, 5, 100, 10], [0, 0, 100, 5]]],
    )
    assert inputs["input_points"].tolist() == [[[[32, 32]], [[-10, -10]]], [[[32, 32]], [[64, 64]]]]
    assert inputs["input_labels"].tolist() == [[[1], [-10]], [[1], [1]]]
    assert inputs["input_boxes"].tolist() == [[[0, 0, 64, 64], [-10] * 4], [[16, 32, 32, 64], [0, 0, 32, 32]]]


def test_a_box_that_reaches_to_minus_ten_is_no_padding(processor):
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


def test_input_may_be_moved_and_only_floats_change_type(processor):
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
def test_prompts_that_make_no_sense_are_refused(processor, prompts, message):
    with pytest.raises(PromptError) as caught:
        processor(image_of(48, 80), **prompts)
    assert str(caught.value) == message


def test_without_an_image_there_is_nothing_to_do(processor):
    with pytest.raises(ImageError) as caught:
        processor(input_points=[[[[1, 2]]]])
    assert str(caught.value) == "expected images, or original_sizes for images that are encoded already"


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


def test_logits_come_back_upscaled_if_asked_for():
    logits = torch.randn(1, 2, 1, 8, 8)
    (upscaled,) = Sam2ImageProcessor(32).post_process_masks(logits, [[20, 30]], binarize=False)
    (masks,) = Sam2ImageProcessor(32).post_process_masks(logits, [[20, 30]], mask_threshold=0.5)
    assert upscaled.dtype == torch.float32
    assert torch.equal(upscaled > 0.5, masks)


def test_the_reshaped_sizes_of_sam_are_accepted(processor):
    logits = torch.randn(1, 1, 1, 8, 8)
    (masks,) = processor.post_process_masks(logits, [[9, 9]], torch.tensor([[64, 64]]))
    assert masks.shape == (1, 1, 9, 9)


def test_holes_and_islands_go_if_asked_for():
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


def test_a_folder_says_the_size(tiny_folder):
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
def test_a_preprocessor_file_that_says_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        Sam2Processor.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "preprocessor_config.json"))
