"""The processors alone: what can be tested without transformers' own, which need torchvision."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compat.transformers_image import SIDE, noise_image, small_processor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masklet import Sam2Model, Sam2Processor, checkpoints
from masklet.compat.transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor
from masklet.compat.transformers import masks as masks_module
from masklet.errors import ImageError, PromptError
from masklet.masks import clean_masks
from masklet.masks import logits as logits_module
from masklet.processing import IMAGE_STD, ImageProcessor

HUGE = 10**400


@pytest.fixture(scope="module")
def processor():
    return small_processor("masklet")


def image_of(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


# Against results of transformers that were stored


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
    assert inputs.reshaped_input_sizes.tolist() == [[1024, 1024]] * 2

    std = np.array(IMAGE_STD)[:, None, None]
    pixels = inputs["pixel_values"].numpy()
    (every_16th,) = (value for name, value in golden.items() if "pixel_values" in name and value.ndim == 4)
    assert np.abs((pixels[..., ::16, ::16] - every_16th) * std * 255).max() <= 1e-3


def test_boxes_against_transformers(golden, samples):
    inputs = Sam2Processor(Sam2ImageProcessor(1024))(
        samples / "truck.jpg", input_boxes=[[[425, 600, 700, 875], [10, 20, 300, 400]]]
    )
    np.testing.assert_array_equal(inputs["input_boxes"], golden["boxes.input_boxes"])


def test_segmentation_maps_against_transformers(golden):
    rows, columns = np.indices((1200, 1800))
    inputs = Sam2ImageProcessor(1024)(
        image_of(1200, 1800), segmentation_maps=((rows + columns) // 300) % 3, return_tensors="pt"
    )
    np.testing.assert_array_equal(inputs["labels"], golden["maps.labels"])


def test_masks_against_transformers(golden):
    low_res = torch.from_numpy(golden["post.low_res"]).float()
    expected = np.unpackbits(golden["post.masks_packed"])[: 3 * 1200 * 1800].reshape(3, 1200, 1800).astype(bool)
    (masks,) = Sam2ImageProcessor(1024).post_process_masks(low_res[None], [[1200, 1800]])
    assert (masks[0].numpy() == expected).mean() >= 0.9999


# With the model


@pytest.mark.parametrize("with_maps", [False, True])
def test_code_for_transformers_runs_as_it_stands(tiny_folder, image, with_maps):
    device = "cpu"
    raw_image = image
    maps = {"segmentation_maps": np.zeros(image.shape[:2], np.uint8)} if with_maps else {}

    model = Sam2Model.from_pretrained(tiny_folder).to(device)
    processor = Sam2Processor.from_pretrained(tiny_folder)
    inputs = processor(raw_image, input_points=[[[45, 30]]], return_tensors="pt", **maps).to(device)
    with torch.no_grad():
        outputs = model(**inputs)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
    )
    scores = outputs.iou_scores

    assert scores.shape == (1, 1, 3)
    assert masks[0].shape == (1, 3, 48, 80)
    assert masks[0].dtype == torch.bool
    assert ("labels" in inputs) == with_maps
    if with_maps:
        assert inputs["labels"].shape == (1, 16, 16)


def test_the_long_way_and_the_short_way_agree(tiny_folder, image, encoded):
    processor = Sam2Processor.from_pretrained(tiny_folder)
    inputs = processor(image, input_points=[[[[45, 30], [10, 10]]]], input_labels=[[[1, 0]]], return_tensors="pt")
    inputs["pixel_values"] = ImageProcessor(64).pixel_values(image)  # not resized in 8 bits
    with torch.no_grad():
        outputs = Sam2Model.from_pretrained(tiny_folder)(**inputs, multimask_output=False)
    (masks,) = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
    short = encoded.predict([(45, 30), (10, 10, 0)], multimask=False)
    np.testing.assert_array_equal(short.masks, masks[0])
    np.testing.assert_allclose(short.iou_scores, outputs.iou_scores[0, 0], rtol=1e-5)


# Images


def test_an_image_of_one_pixel_is_an_image(processor):
    prompts = {"input_points": [[[[0, 1]]]], "input_boxes": [[[0, 0, 1, 1]]]}
    inputs = processor(Image.new("RGB", (1, 1), "red"), return_tensors="pt", **prompts)
    assert inputs["pixel_values"].std((2, 3)).max() < 1e-6
    assert inputs["input_points"].tolist() == [[[[0, 64]]]]
    assert inputs["input_boxes"].tolist() == [[[0, 0, 64, 64]]]


@pytest.mark.parametrize("height", [1, 3, 4])
def test_a_pil_image_with_as_many_rows_as_there_may_be_channels(processor, height):
    inputs = processor(Image.new("RGB", (20, height)), input_data_format="channels_first", return_tensors="pt")
    assert inputs["original_sizes"].tolist() == [[height, 20]]


def truncated_jpeg():
    file = io.BytesIO()
    Image.fromarray(noise_image(64, 64)).save(file, "JPEG")
    return io.BytesIO(file.getvalue()[:-1000])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "expected images, or original_sizes for images that are already encoded"),
        (truncated_jpeg(), "is truncated: the file ends before the image does"),
        (Image.open(truncated_jpeg()), "the PIL image of 64×64 is truncated: the file ends before the image does"),
        (io.BytesIO(b"text"), "the file object is not an image that Pillow can read"),
    ],
)
def test_what_is_not_an_image_is_refused(processor, images, message):
    with pytest.raises(ImageError) as caught:
        processor(images)
    assert message in str(caught.value)


def test_a_decompression_bomb_is_refused(processor, monkeypatch, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"would unpack to more pixels than Pillow's limit of 1000"):
        processor(tmp_path / "bomb.png")


def test_files_are_closed(processor, tmp_path):
    Image.fromarray(noise_image()).save(tmp_path / "image.png")
    with open(tmp_path / "image.png", "rb") as file:
        from_file = processor(file)["pixel_values"][0]
    assert torch.equal(from_file, processor(tmp_path / "image.png")["pixel_values"][0])  # warns of a file left open


@pytest.mark.parametrize("size", [(0, 5), (2.5, 5), (10**6, 10**6), (-1, 5), (5,), 5])
def test_original_sizes_that_are_none_are_refused(processor, size):
    with pytest.raises(ImageError, match=r"an original size is .*: expected \(height, width\)"):
        processor(original_sizes=[size], input_boxes=[[(0, 0, 2, 2)]])
    with pytest.raises(PromptError, match=r"an original size is .*: expected \(height, width\)"):
        processor.post_process_masks(torch.zeros(1, 1, 1, 8, 8), [size])


# Segmentation maps


def test_maps_are_resized_to_mask_size_without_new_values(processor):
    maps = np.zeros((48, 80), np.uint8)
    maps[:24], maps[24:, 40:] = 7, 255
    labels = processor(image_of(48, 80), segmentation_maps=maps, return_tensors="pt")["labels"]
    assert labels.shape == (1, 16, 16)
    assert labels.dtype == torch.int64
    assert (labels[0, :8] == 7).all()
    assert (labels[0, 8:, :8] == 0).all()
    assert (labels[0, 8:, 8:] == 255).all()


def test_maps_keep_large_integers_and_may_differ_in_size(processor):
    maps = [np.full((10, 10), 2**40 + 1), np.full((3, 50), 1, bool), torch.full((1, 1), -1)]
    images = [image_of(10, 10), image_of(3, 50), Image.new("L", (1, 1))]
    labels = processor(images, segmentation_maps=maps, return_tensors="pt")["labels"]
    assert labels.flatten(1).unique(dim=1).tolist() == [[2**40 + 1], [1], [-1]]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.zeros((4, 4), int)] * 2, "2 segmentation maps came with 1 images: expected one for each"),
        ([], "0 segmentation maps came with 1 images: expected one for each"),
        (np.zeros((0, 4), int), "a segmentation map has shape (0, 4): expected (height, width) integers"),
        (np.zeros((4, 4, 3), int), "a segmentation map has shape (4, 4, 3): expected (height, width) integers"),
    ],
)
def test_maps_that_do_not_fit_the_images_are_refused(processor, maps, message):
    with pytest.raises(ImageError) as caught:
        processor(image_of(4, 4), segmentation_maps=maps)
    assert str(caught.value) == message


def test_maps_without_images_are_refused(processor):
    with pytest.raises(ImageError, match="segmentation_maps came without images"):
        processor(original_sizes=[(4, 5)], segmentation_maps=np.zeros((4, 5), int))


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
    prompts = {"input_points": [[[[40, 24]]]], "input_boxes": [[[0, 0, 40, 24]]], "return_tensors": "pt"}
    with_image = processor(image_of(48, 80), **prompts)
    for sizes in ([[48, 80]], torch.tensor([[48, 80]]), np.array([[48, 80]]), [(48, 80)]):
        without = processor(original_sizes=sizes, **prompts)
        assert without.keys() == {"original_sizes", "input_points", "input_labels", "input_boxes"}
        for name, value in without.items():
            torch.testing.assert_close(value, with_image[name])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"input_points": [[[[HUGE, 2]]]]}, "input_points hold 1000"),
        ({"input_points": [[[[np.nan, 2]]]]}, "input_points hold nan: expected finite numbers up to 16777216"),
        ({"input_points": [[[[1, 2]]]], "input_labels": [[[HUGE]]]}, "input_labels hold 1000"),
        ({"input_points": [[[[1, 2]]]], "input_labels": [[[0.5]]]}, "input_labels hold 0.5: expected whole numbers"),
        ({"input_boxes": [[[0, 0, -1e38, 4]]]}, "input_boxes hold -1e+38: expected finite numbers up to"),
        ({"input_boxes": [[[0, 0, 5, np.inf]]]}, "input_boxes hold inf: expected finite numbers up to"),
        ({"input_boxes": [[]]}, "input_boxes hold an empty list: expected at least one value in every list"),
        ({"input_points": [[[True, 2]]]}, "input_points hold True: expected numbers in nested lists"),
        ({"input_points": [[[1, 2], 3]]}, "input_points are nested 1 deep in one place and 2 in another"),
        (
            {"input_points": [[[[[1, 2]]]]]},
            "input_points are nested 5 deep: expected 4 levels (image, object, point, xy), or 3 with one object",
        ),
        ({"input_points": [[[1, 2]]], "input_labels": 1}, "input_labels are nested 0 deep: expected 3 levels"),
        ({"input_points": [[[[1, 2]]]], "input_labels": [[[]]]}, "input_labels hold an empty list"),
        (
            {"input_points": [[[[1, 2], [3, 4]]]], "input_labels": [[[1]]]},
            "input_labels hold [[1]] labels for each image and object, input_points [[2]] points: expected one label",
        ),
        ({"input_boxes": [1, 2, 3, 4]}, "input_boxes are nested 1 deep: expected 3 levels (image, object, x0 y0 x1 y1"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(processor, prompts, message):
    with pytest.raises(PromptError) as caught:
        processor(image_of(48, 80), **prompts)
    assert str(caught.value).startswith(message)


coordinates = st.tuples(st.integers(-20, 80), st.integers(-20, 80)).map(list)
objects = st.lists(coordinates, min_size=1, max_size=4)
batches = st.lists(st.lists(objects, min_size=1, max_size=3), min_size=1, max_size=3)


def prompts_of(processor, batch, **prompts):
    """Prompts of images of the input's size, so that coordinates stay as they are."""
    return processor(original_sizes=[(SIDE, SIDE)] * len(batch), return_tensors="pt", **prompts)


@given(batch=batches, data=st.data())
def test_padded_points_hold_what_was_given_and_nothing_else(processor, batch, data):
    labels = [[[data.draw(st.sampled_from([0, 1])) for _ in row] for row in image] for image in batch]
    inputs = prompts_of(processor, batch, input_points=batch, input_labels=labels)
    points, padded = inputs.input_points, inputs.input_labels
    assert (points.dtype, padded.dtype) == (torch.float32, torch.int64)
    longest = max(len(row) for image in batch for row in image)
    assert points.shape == (len(batch), max(map(len, batch)), longest, 2)
    assert padded.shape == points.shape[:3]
    for p, image in enumerate(batch):
        for o, row in enumerate(image):
            assert points[p, o, : len(row)].tolist() == row
            assert padded[p, o, : len(row)].tolist() == labels[p][o]
    is_padding = padded == -10
    assert (points[is_padding] == -10).all()
    assert (~is_padding).sum() == sum(len(row) for image in batch for row in image)


@given(batch=batches)
def test_without_labels_all_points_are_foreground(processor, batch):
    labels = prompts_of(processor, batch, input_points=batch).input_labels
    assert set(labels.unique().tolist()) <= {1, -10}
    assert (labels == 1).sum() == sum(len(row) for image in batch for row in image)


@given(batch=st.lists(objects, min_size=1, max_size=3))
def test_three_levels_are_one_object_an_image(processor, batch):
    three = prompts_of(processor, batch, input_points=batch)
    four = prompts_of(processor, batch, input_points=[[row] for row in batch])
    for name in ("input_points", "input_labels"):
        assert torch.equal(three[name], four[name])


@given(batch=batches)
def test_padding_a_padded_batch_changes_nothing(processor, batch):
    first = prompts_of(processor, batch, input_points=batch)
    points, labels = first.input_points, first.input_labels
    for again in (
        prompts_of(processor, batch, input_points=points, input_labels=labels),
        prompts_of(processor, batch, input_points=points.numpy(), input_labels=labels.numpy()),
    ):
        assert torch.equal(again.input_points, points)
        assert torch.equal(again.input_labels, labels)


@given(
    batch=st.lists(st.lists(st.lists(st.integers(-9, 99), min_size=4, max_size=4), min_size=1, max_size=3), min_size=1)
)
def test_padded_boxes_hold_what_was_given_and_nothing_else(processor, batch):
    boxes = prompts_of(processor, batch, input_boxes=batch).input_boxes
    assert boxes.dtype == torch.float32
    assert boxes.shape == (len(batch), max(map(len, batch)), 4)
    for p, image in enumerate(batch):
        assert boxes[p, : len(image)].tolist() == image
        assert (boxes[p, len(image) :] == -10).all()


# Masks


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=3),
    objects=st.integers(0, 3),
    masks=st.integers(1, 3),
    apart=st.booleans(),
)
def test_every_image_gets_masks_of_its_own_size(processor, sizes, objects, masks, apart):
    logits, options = torch.randn(len(sizes), objects, masks, 8, 8), {"apply_non_overlapping_constraints": apart}
    post_processed = processor.post_process_masks(logits, torch.tensor(sizes), **options)
    for size, mask, low_res in zip(sizes, post_processed, logits, strict=True):
        assert mask.shape == (objects, masks, *size)
        assert mask.dtype == torch.bool
        (alone,) = processor.post_process_masks([low_res], [size], **options)
        assert torch.equal(mask, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_post_processed_in_chunks_of_bounded_size(processor, monkeypatch, dtype):
    logits, size_hw, sizes = torch.randn(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (20, 30), []
    logits = logits.to(dtype)

    def counting(low_res, **options):
        sizes.append(low_res.shape[:2].numel())
        return F.interpolate(low_res, **options)

    expected = F.interpolate(logits[0], size_hw, mode="bilinear") > 0.25
    monkeypatch.setattr(masks_module, "F", type("Counting", (), {"interpolate": staticmethod(counting)}))
    monkeypatch.setattr(logits_module, "CHUNK_PIXELS", 4 * 20 * 30)
    (masks,) = processor.post_process_masks(logits, [size_hw], mask_threshold=0.25)
    cleaning = {"max_hole_area": 9, "max_sprinkle_area": 9}
    (cleaned,) = processor.post_process_masks(logits, [size_hw], mask_threshold=0.25, **cleaning)
    assert sizes == [4, 4, 4, 3] * 2
    assert torch.equal(masks, expected)
    expected = clean_masks(expected.numpy().reshape(-1, *size_hw), fill_holes=9, remove_islands=9)
    np.testing.assert_array_equal(cleaned, expected.reshape(5, 3, *size_hw))


@pytest.mark.parametrize("apart", [False, True])
def test_logits_can_be_returned_upscaled(processor, apart):
    logits = 4 * torch.randn(1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"apply_non_overlapping_constraints": apart}
    (upscaled,) = processor.post_process_masks(logits, [[20, 30]], binarize=False, **options)
    (masks,) = processor.post_process_masks(logits, [[20, 30]], mask_threshold=0.5, **options)
    assert upscaled.dtype == torch.float32
    assert torch.equal(upscaled > 0.5, masks)
    assert (masks[0] & masks[1]).any() != apart


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


def test_objects_can_be_made_disjoint_by_their_logits(processor):
    logits = torch.tensor([3.0, 1.0, -20.0]).view(1, 3, 1, 1, 1) * torch.tensor([[1.0, 1], [1, -1]])
    (masks,) = processor.post_process_masks(logits, [[2, 2]], apply_non_overlapping_constraints=True)
    expected = [[[True, True], [True, False]], [[False] * 2] * 2, [[False, False], [False, True]]]
    assert masks[:, 0].tolist() == expected
    (upscaled,) = processor.post_process_masks(logits, [[2, 2]], binarize=False, apply_non_overlapping_constraints=True)
    assert upscaled[:, 0, 0, 0].tolist() == [3, -10, -20]


# Saving


@pytest.mark.parametrize("through_save", [True, False])
@pytest.mark.parametrize("kind", [Sam2Processor, Sam2VideoProcessor])
def test_all_files_of_a_processor_are_uploaded(tmp_path, monkeypatch, kind, through_save):
    pushed = []

    def push_folder(folder, filenames, *, repo_id):
        assert sorted(filenames) == sorted(path.name for path in Path(folder).iterdir())
        pushed.append((repo_id, len(filenames)))
        return "https://hub/commit"

    monkeypatch.setattr(checkpoints, "push_folder", push_folder)
    parts = [Sam2ImageProcessor(64), Sam2VideoVideoProcessor(64)][: len(kind.attributes)]
    if through_save:
        kind(*parts).save_pretrained(tmp_path, push_to_hub=True, repo_id="me/mine")
    else:
        assert kind(*parts).push_to_hub("me/mine") == "https://hub/commit"
    assert pushed == [("me/mine", 1 + len(parts))]
