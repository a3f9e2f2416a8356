"""The processors through transformers' interface: the same assertions on transformers' classes and on ours."""

import json

import numpy as np
import pytest
import torch
import transformers
from compat.torchvision_stub import has_torchvision
from compat.transformers_image import BOTH, SIDE, noise_image, package, small_model, small_processor
from PIL import Image

import masklet
import masklet.compat.transformers as ours
from masklet.errors import ConfigError, ImageError, PromptError

IMAGE = noise_image()
PHOTO = Image.fromarray(IMAGE)


@pytest.fixture(params=BOTH)
def kind(request):
    return request.param


@pytest.fixture
def processor(kind):
    return small_processor(kind)


@pytest.fixture
def image_processor(processor):
    return processor.image_processor


def both(call, **settings):
    """What each side gives."""
    return tuple(call(small_processor(kind, **settings)) for kind in BOTH)


# What comes back


def test_without_return_tensors_images_are_in_lists(processor, image_processor):
    for inputs in (processor(images=PHOTO), image_processor(PHOTO)):
        assert isinstance(inputs["pixel_values"], list)
        assert inputs["pixel_values"][0].shape == (3, SIDE, SIDE)
        assert [tuple(size) for size in inputs["original_sizes"]] == [(40, 60)]


@pytest.mark.parametrize(("name", "tensor_class"), [("pt", torch.Tensor), ("np", np.ndarray)])
def test_return_tensors(processor, image_processor, name, tensor_class):
    for inputs in (
        processor(images=PHOTO, return_tensors=name),
        image_processor(PHOTO, return_tensors=name),
        image_processor.preprocess(PHOTO, return_tensors=name),
    ):
        assert all(isinstance(value, tensor_class) for value in inputs.values())
        assert tuple(inputs.pixel_values.shape) == (1, 3, SIDE, SIDE)


def test_an_unknown_type_of_tensors_is_refused(image_processor):
    with pytest.raises(ValueError, match="tf"):
        image_processor(PHOTO, return_tensors="tf")


def test_inputs_are_a_dict_with_attributes(processor):
    inputs = processor(images=PHOTO, return_tensors="pt")
    assert inputs.original_sizes is inputs["original_sizes"] is inputs.data["original_sizes"]
    assert list(inputs.keys())[:2] == ["pixel_values", "original_sizes"]
    assert isinstance(inputs.data, dict)
    assert "pixel_values" in inputs
    with pytest.raises(AttributeError):
        _ = inputs.colour


@pytest.mark.parametrize("arguments", [("cpu", torch.bfloat16), (torch.bfloat16,)])
def test_inputs_move(processor, arguments):
    inputs = processor(images=PHOTO, return_tensors="pt").to(*arguments)
    assert inputs.pixel_values.dtype == torch.bfloat16
    assert inputs.original_sizes.dtype == torch.int64
    assert processor(images=PHOTO, return_tensors="pt").to("cpu").pixel_values.dtype == torch.float32


def test_inputs_go_into_the_model(processor, kind):
    inputs = processor(images=PHOTO, input_points=[[[[10, 20]]]], input_labels=[[[1]]], return_tensors="pt")
    output = small_model(kind)(**inputs)
    (masks,) = processor.post_process_masks(output.pred_masks, inputs["original_sizes"])
    assert masks.shape == (1, 3, 40, 60)


def test_names_of_inputs(processor):
    assert list(processor.model_input_names) == ["pixel_values", "original_sizes"]
    assert list(processor.image_processor.model_input_names) == ["pixel_values"]


# Images

FLOATS = IMAGE / np.float32(255)
IMAGES = {
    "PIL": PHOTO,
    "height, width, channels": IMAGE,
    "channels, height, width": IMAGE.transpose(2, 0, 1),
    "a batch": np.stack([IMAGE, IMAGE[::-1]]),
    "a batch, channels first": np.stack([IMAGE, IMAGE[::-1]]).transpose(0, 3, 1, 2),
    "a list": [IMAGE, PHOTO],
    "a list of several sizes": [PHOTO, IMAGE[:30, :20]],
    "nested lists": [[IMAGE], [IMAGE, IMAGE]],
    "a tensor": torch.from_numpy(IMAGE),
    "a tensor, channels first": torch.from_numpy(IMAGE).permute(2, 0, 1),
    "a tensor of a batch": torch.from_numpy(np.stack([IMAGE, IMAGE])),
    "floats": FLOATS,
    "floats to 255": IMAGE.astype(np.float32),
    "doubles": FLOATS.astype(np.float64),
    "grey": PHOTO.convert("L"),
    "RGBA": Image.fromarray(noise_image(channels=4), "RGBA"),
    "RGBA as an array": noise_image(channels=4),
    "palette": PHOTO.convert("P"),
    "one channel": IMAGE[..., :1],
    "one channel, first": IMAGE[..., :1].transpose(2, 0, 1),
    "large": noise_image(700, 500),
    "very small": noise_image(2, 3),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_the_same_to_the_bit(name):
    theirs, got = both(lambda processor: processor.image_processor(IMAGES[name], return_tensors="pt"))
    if "RGBA" in name:  # blended with white in floats, in an order that rounds otherwise
        step = 1 / 255 / 0.224
        torch.testing.assert_close(got.pixel_values, theirs.pixel_values, rtol=0, atol=1.02 * step)
    else:
        assert torch.equal(got.pixel_values, theirs.pixel_values.float())
    assert torch.equal(got.original_sizes, theirs.original_sizes)


SETTINGS = {
    "do_resize": False,
    "do_normalize": False,
    "do_rescale": False,
    "size": {"height": 32, "width": 96},
    "rescale_factor": 0.5,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [1.0, 2.0, 3.0],
    "resample": 3,
    "input_data_format": "channels_last",
    "device": "cpu",
    "mask_size": {"height": 8, "width": 4},
    "do_convert_rgb": True,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("where", ["call", "constructor", "processor"])
def test_settings_do_the_same(name, where):
    setting = {name: SETTINGS[name]}
    if where == "constructor":
        theirs, got = both(lambda p: p(images=IMAGE, segmentation_maps=IMAGE[..., 0], return_tensors="pt"), **setting)
    else:
        theirs, got = both(
            lambda p: (p if where == "processor" else p.image_processor)(
                IMAGE, segmentation_maps=IMAGE[..., 0], return_tensors="pt", **setting
            )
        )
    assert torch.equal(got.pixel_values, theirs.pixel_values)
    assert torch.equal(got.labels, theirs.labels)


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("floats", [False, True])
def test_resampling_is_the_same(resample, floats):
    image = FLOATS if floats else IMAGE
    theirs, got = both(lambda p: p(images=image, return_tensors="pt", resample=resample))
    if resample == 0:  # their nearest pixel is that at the corner of the new one, in 8 bits
        assert got.pixel_values.shape == theirs.pixel_values.shape
    else:
        assert torch.equal(got.pixel_values, theirs.pixel_values)


def test_both_steps_off(processor):
    pixels = processor(images=PHOTO, return_tensors="pt", do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(pixels.pixel_values[0].permute(1, 2, 0), torch.from_numpy(IMAGE).to(pixels.pixel_values.dtype))


def test_an_ambiguous_shape_is_read_as_told(image_processor):
    image = noise_image(3, 60, 3)
    kwargs = {"return_tensors": "pt", "do_resize": False}
    assert image_processor(image, input_data_format="channels_last", **kwargs).original_sizes.tolist() == [[3, 60]]
    assert image_processor(image, input_data_format="channels_first", **kwargs).original_sizes.tolist() == [[60, 3]]


def test_exif_does_not_rotate(processor):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = PHOTO.copy()
    rotated.info["exif"] = exif.tobytes()
    inputs = processor(images=rotated, return_tensors="pt")
    assert inputs.original_sizes.tolist() == [[40, 60]]
    assert torch.equal(inputs.pixel_values, processor(images=PHOTO, return_tensors="pt").pixel_values)


def test_exif_of_a_file_does_not_rotate_either(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "photo.png", exif=exif)
    inputs = small_processor("masklet")(images=tmp_path / "photo.png", return_tensors="pt")
    assert inputs.original_sizes.tolist() == [[40, 60]]
    assert torch.equal(inputs.pixel_values, small_processor("masklet")(images=PHOTO, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "an empty list of images"),
        ("no/such.jpg", "there is no image at no/such.jpg"),
        (np.zeros((4, 5, 6, 7, 3), np.uint8), "has shape"),
        (np.zeros((20, 30, 7), np.uint8), r"\(20, 30, 7\): expected 1, 3 or 4 channels"),
        (object(), "expected an image"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        small_processor("masklet")(images=image)


def test_an_unknown_keyword_is_a_type_error(processor):
    with pytest.raises(TypeError, match="colour"):
        processor(images=PHOTO, colour="blue")


@pytest.mark.parametrize("setting", [{"do_pad": True}, {"do_center_crop": True}, {"size": "large"}, {"resample": 1}])
def test_settings_that_cannot_be_followed_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        small_processor("masklet")(images=PHOTO, **setting)


# Segmentation maps

MAPS = {
    "bytes": IMAGE[..., 0],
    "large numbers": IMAGE[..., 0].astype(np.int32) * 1000,
    "an axis of one": IMAGE[None, ..., 0],
    "PIL": PHOTO.convert("L"),
    "a tensor": torch.from_numpy(IMAGE[..., 0]),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_same(name):
    theirs, got = both(lambda p: p(images=PHOTO, segmentation_maps=MAPS[name], return_tensors="pt").labels)
    assert (got.shape, got.dtype) == ((1, 16, 16), torch.int64)
    assert torch.equal(got, theirs)


def test_one_map_for_each_image():
    with pytest.raises(ImageError, match="1 segmentation maps came with 2 images"):
        small_processor("masklet")([PHOTO, PHOTO], segmentation_maps=[IMAGE[..., 0]])


# Prompts

PROMPTS = {
    "points": {"input_points": [[[[10, 20]]]], "input_labels": [[[1]]]},
    "points of a tensor": {"input_points": torch.tensor([[[[10, 20]]]]), "input_labels": torch.tensor([[[1]]])},
    "points of an array": {"input_points": np.array([[[[10, 20.0]]]]), "input_labels": np.array([[[0]]])},
    "ragged points": {"input_points": [[[[1, 2], [3, 4]], [[5, 6]]]], "input_labels": [[[1, 0], [1]]]},
    "labels 2 and 3": {"input_points": [[[[10, 20], [30, 35]]]], "input_labels": [[[2, 3]]]},
    "points outside": {"input_points": [[[[100, 200], [-7, -4]]]], "input_labels": [[[1, 0]]]},
    "boxes": {"input_boxes": [[[1, 2, 30, 40], [5, 6, 7, 8]]]},
    "boxes of a tensor": {"input_boxes": torch.tensor([[[1, 2, 30, 40]]])},
    "reversed boxes": {"input_boxes": [[[30, 40, 1, 2]]]},
    "boxes outside": {"input_boxes": [[[-30, 40, 100, 2]]]},
    "labels alone": {"input_labels": [[[1]]]},
    "all": {"input_points": [[[[1, 2]]]], "input_labels": [[[0]]], "input_boxes": [[[1, 2, 30, 40]]]},
}


@pytest.mark.parametrize("return_tensors", ["pt", None])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_the_same(name, return_tensors):
    theirs, got = both(lambda p: p(images=PHOTO, return_tensors=return_tensors, **PROMPTS[name]))
    assert [n for n in got if n.startswith("input")] != []
    for key in PROMPTS[name]:
        assert got[key].dtype == theirs[key].dtype
        torch.testing.assert_close(got[key], theirs[key])


def test_points_alone_are_the_same():
    """Ours come with labels, without which the model would take padding for points."""
    points = [[[[1, 2], [3, 4]], [[5, 6]]]]
    theirs, got = both(lambda p: p(images=PHOTO, input_points=points, return_tensors="pt"))
    torch.testing.assert_close(got.input_points, theirs.input_points)
    assert "input_labels" not in theirs
    assert got.input_labels.tolist() == [[[1, 1], [1, -10]]]


def test_points_of_several_images_are_the_same():
    points = [[[[1, 2]]], [[[1, 2], [5, 6]], [[3, 4]]]]
    labels = [[[1]], [[1, 0], [1]]]
    images = [PHOTO, noise_image(30, 20)]
    theirs, got = both(lambda p: p(images, input_points=points, input_labels=labels, return_tensors="pt"))
    torch.testing.assert_close(got.input_points, theirs.input_points)
    assert torch.equal(got.input_labels, theirs.input_labels)


def test_original_sizes_in_place_of_images(processor):
    inputs = processor(original_sizes=[[40, 60]], input_points=[[[[15, 20]]]], return_tensors="pt")
    assert inputs["input_points"].tolist() == [[[[16, 32]]]]
    assert inputs["original_sizes"].tolist() == [[40, 60]]


def test_one_size_for_all():
    """transformers scales the points of the first image only."""
    processor = small_processor("masklet")
    points = [[[[15, 20]]], [[[30, 10]]]]
    inputs = processor(original_sizes=torch.tensor([[40, 60]]), input_points=points, return_tensors="pt")
    assert inputs["input_points"].tolist() == [[[[16, 32]]], [[[32, 16]]]]


def test_images_or_sizes_are_needed(processor):
    with pytest.raises(ValueError, match="images"):
        processor(input_points=[[[[10, 20]]]])


def test_target_size_and_pad_value(kind):
    processor = package(kind).Sam2Processor(small_processor(kind).image_processor, target_size=128, point_pad_value=-5)
    assert (processor.target_size, processor.point_pad_value) == (128, -5)
    inputs = processor(
        PHOTO, input_points=[[[[15, 20], [30, 10]], [[45, 5]]]], input_labels=[[[1, 0], [1]]], return_tensors="pt"
    )
    expected = torch.tensor([[[[32.0, 64], [64, 32]], [[96, 16], [-5, -5]]]])
    torch.testing.assert_close(inputs.input_points, expected)
    assert inputs.input_labels.tolist() == [[[1, 0], [1, -5]]]


@pytest.mark.parametrize(
    "prompts",
    [
        {"input_points": [[10, 20]]},
        {"input_boxes": [[1, 2, 30, 40]]},
        {"input_points": [[[[1, 2], [3, 4]], [[5, 6]]]], "input_labels": [[[1], [1]]]},
        {"input_points": [[[[1, 2]], [[3, 4]]]], "input_labels": [[[1]]]},
        {"input_points": [[[]]]},
    ],
)
def test_malformed_prompts_are_value_errors(processor, prompts):
    with pytest.raises(ValueError, match=r"levels|inconsistent|labels|empty"):
        processor(PHOTO, return_tensors="pt", **prompts)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"input_points": [[[[1, 2, 3]]]]}, "coordinates of 3 numbers: expected 2"),
        ({"input_boxes": [[[1, 2, 3]]] * 3}, "coordinates of 3 numbers: expected 4"),
        ({"input_points": "a"}, "input_points hold 'a'"),
        ({"input_points": [[[[1, 2]]]] * 2}, "input_points are for 2 images, but 3 came"),
        ({"input_boxes": [[[1, 2, 3, 4]], [[1, 2, 3]], [[1, 2, 3, 4]]]}, "coordinates of 3 numbers"),
    ],
)
def test_what_transformers_lets_pass_is_refused(prompts, message):
    with pytest.raises(PromptError, match=message):
        small_processor("masklet")([PHOTO] * 3 if len(prompts.get("input_points", "abc")) != 1 else PHOTO, **prompts)


def test_ragged_boxes_are_padded():
    """transformers refuses them: its model attends to padding."""
    boxes = [[[1, 2, 30, 40]], [[1, 2, 30, 40], [3, 4, 45, 20]]]
    inputs = small_processor("masklet")([PHOTO, PHOTO], input_boxes=boxes, return_tensors="pt")
    assert inputs.input_boxes[0, 1].tolist() == [-10] * 4
    assert inputs.input_boxes[1, 1].tolist() == pytest.approx([3.2, 6.4, 48, 32])
    output = small_model("masklet")(**inputs)
    alone = small_model("masklet")(inputs.pixel_values[1:], input_boxes=inputs.input_boxes[1:, 1:])
    torch.testing.assert_close(output.pred_masks[1, 1], alone.pred_masks[0, 0], rtol=1e-4, atol=1e-4)


def test_three_levels_are_one_object_for_each_image():
    """As in the documentation of SAM 2's image model."""
    inputs = small_processor("masklet")(PHOTO, input_points=[[[15, 20]]], return_tensors="pt")
    assert inputs.input_points.tolist() == [[[[16, 32]]]]
    assert inputs["reshaped_input_sizes"].tolist() == [[SIDE, SIDE]]


# Masks

LOGITS = torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 3
SIZES = [[40, 60], [20, 30]]
POST = {
    "defaults": ((), {}),
    "threshold": ((0.5,), {}),
    "threshold by name": ((), {"mask_threshold": -1.5}),
    "logits": ((), {"binarize": False}),
    "logits by position": ((0.0, False), {}),
    "no overlap": ((), {"apply_non_overlapping_constraints": True}),
    "no overlap, logits": ((), {"apply_non_overlapping_constraints": True, "binarize": False}),
}


@pytest.mark.parametrize("sizes", [SIZES, torch.tensor(SIZES), [(40, 60), (20, 30)]])
@pytest.mark.parametrize("name", POST)
def test_masks_are_the_same(name, sizes):
    args, kwargs = POST[name]
    theirs, got = both(lambda p: p.post_process_masks(LOGITS, sizes, *args, **kwargs))
    for t, g in zip(theirs, got, strict=True):
        assert g.dtype == t.dtype
        torch.testing.assert_close(g, t)


@pytest.mark.parametrize("masks", [[LOGITS[0], LOGITS[1]], [LOGITS[0].numpy(), LOGITS[1].numpy()]])
def test_lists_of_masks(processor, masks):
    for got, expected in zip(
        processor.post_process_masks(masks, SIZES), processor.post_process_masks(LOGITS, SIZES), strict=True
    ):
        assert torch.equal(got, expected)


def test_logits_keep_their_type(processor):
    assert processor.post_process_masks(LOGITS.bfloat16(), SIZES, binarize=False)[0].dtype == torch.bfloat16


def test_the_best_object_wins_each_pixel(processor):
    logits = torch.tensor([[[[[1.0, 2], [3, -4]]], [[[2.0, 1], [4, -12]]]]])
    (masks,) = processor.post_process_masks(logits, [[2, 2]], apply_non_overlapping_constraints=True, binarize=False)
    assert masks.tolist() == [[[[-10, 2], [-10, -4]]], [[[2, -10], [4, -12]]]]


def test_the_image_processor_has_the_method_too(processor):
    (one, _), (other, _) = (of.post_process_masks(LOGITS, SIZES) for of in (processor, processor.image_processor))
    assert torch.equal(one, other)


def test_masks_of_another_type_are_a_type_error(processor):
    with pytest.raises(TypeError, match="masks"):
        processor.post_process_masks("masks", SIZES)


def test_sams_order_of_arguments_is_not_taken_for_a_threshold():
    process = small_processor("masklet").post_process_masks
    for args, kwargs in (((SIZES, [[64, 64]] * 2), {}), ((SIZES,), {"reshaped_input_sizes": [[64, 64]] * 2})):
        for got, expected in zip(process(LOGITS, *args, **kwargs), process(LOGITS, SIZES), strict=True):
            assert torch.equal(got, expected)
    with pytest.raises(PromptError, match="binarize is 0.5"):
        process(LOGITS, SIZES, [[64, 64]] * 2, 0.5)


def test_holes_and_islands():
    logits = torch.full((1, 1, 1, 16, 16), -5.0)
    logits[..., 2:10, 2:10] = 5
    logits[..., 5, 5] = -5
    logits[..., 14, 14] = 5
    process = small_processor("masklet").post_process_masks
    (filled,) = process(logits, [[16, 16]], max_hole_area=2)
    (swept,) = process(logits, [[16, 16]], max_sprinkle_area=2)
    assert (filled[0, 0, 5, 5], filled[0, 0, 14, 14]) == (True, True)
    assert (swept[0, 0, 5, 5], swept[0, 0, 14, 14]) == (False, False)


def test_masks_of_other_images_are_refused():
    process = small_processor("masklet").post_process_masks
    with pytest.raises(PromptError, match="masks are of 2 images, original_sizes of 1"):
        process(LOGITS, SIZES[:1])
    with pytest.raises(PromptError, match=r"\(1, 16, 16\): expected \(objects, masks, h, w\)"):
        process([LOGITS[0, 0]], SIZES[:1])
    with pytest.raises(TypeError, match="colour"):
        process(LOGITS, SIZES, colour=1)


# Attributes, saving and loading


def test_settings_are_attributes(image_processor):
    assert (image_processor.size["height"], image_processor.size.width) == (SIDE, SIDE)
    assert (image_processor.mask_size["height"], image_processor.mask_size.width) == (SIDE // 4, SIDE // 4)
    assert list(image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(image_processor.image_std) == [0.229, 0.224, 0.225]
    assert image_processor.rescale_factor == 1 / 255
    assert image_processor.do_resize is image_processor.do_rescale is image_processor.do_normalize is True
    assert image_processor.resample == 2


def test_defaults(kind):
    if kind == "transformers":
        small_processor(kind)
    processor = package(kind).Sam2ImageProcessor()
    assert (processor.size["height"], processor.mask_size["width"]) == (1024, 256)
    assert package(kind).Sam2Processor(processor).target_size == 1024
    assert package(kind).Sam2Processor(processor).point_pad_value == -10


def test_json(processor):
    content = json.loads(processor.to_json_string())
    assert content["processor_class"] == "Sam2Processor"
    assert content["image_processor"]["size"] == {"height": SIDE, "width": SIDE}
    assert json.loads(processor.image_processor.to_json_string())["image_processor_type"] == "Sam2ImageProcessor"
    assert (content["target_size"], content["point_pad_value"]) == (SIDE, -10)


CHANGED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "do_resize": False, "rescale_factor": 0.25}


@pytest.mark.parametrize("writer", BOTH)
def test_settings_of_either_side_are_read(kind, writer, tmp_path):
    small_processor(kind)
    small_processor(writer, **CHANGED).save_pretrained(tmp_path)
    read = package(kind).Sam2Processor.from_pretrained(tmp_path).image_processor
    assert {name: getattr(read, name) for name in ("do_resize", "rescale_factor")} == {
        name: CHANGED[name] for name in ("do_resize", "rescale_factor")
    }
    assert list(read.image_mean) == CHANGED["image_mean"]
    assert read.size["height"] == SIDE
    again = package(kind).Sam2ImageProcessor.from_pretrained(tmp_path)
    assert list(again.image_std) == CHANGED["image_std"]


def test_only_a_processor_config(tmp_path):
    """The only file that transformers 5 writes for a processor."""
    content = {
        "image_processor": {"image_processor_type": "Sam2ImageProcessor", "size": {"height": 96, "width": 96}},
        "processor_class": "Sam2Processor",
        "target_size": 96,
        "point_pad_value": -10,
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    processor = ours.Sam2Processor.from_pretrained(tmp_path)
    assert (processor.target_size, processor.image_processor.input_hw) == (96, (96, 96))


def test_keyword_arguments_override_the_folder(kind, tmp_path):
    small_processor(kind).save_pretrained(tmp_path)
    processor = package(kind).Sam2Processor.from_pretrained(tmp_path, target_size=33)
    assert processor.target_size == 33
    assert package(kind).Sam2ImageProcessor.from_pretrained(tmp_path, do_resize=False).do_resize is False


def test_a_processor_of_a_model(tiny_folder):
    processor = masklet.Sam2Processor.from_pretrained(tiny_folder)
    assert processor.image_processor.input_hw == (64, 64)
    assert masklet.Sam2Processor.from_pretrained("nano").target_size == 512


# The pipeline


def test_crops(kind):
    processor = small_processor(kind).image_processor
    boxes, points, cropped, labels = processor.generate_crop_boxes(PHOTO, SIDE, crop_n_layers=1, points_per_crop=4)
    assert boxes.tolist() == [[0, 0, 60, 40], [0, 0, 37, 27], [0, 14, 37, 40], [24, 0, 60, 27], [24, 14, 60, 40]]
    assert points.shape == (1, 16, 5, 2)
    assert labels.shape == (1, 16, 5)
    assert labels.unique().tolist() == [1]
    assert [tuple(crop.shape) for crop in cropped] == [(3, 40, 60), (3, 27, 37), (3, 26, 37), (3, 27, 36), (3, 26, 36)]
    assert torch.equal(cropped[4], torch.from_numpy(IMAGE[14:40, 24:60]).permute(2, 0, 1))


def test_points_of_a_square_image_are_the_same():
    theirs, got = both(lambda p: p.image_processor.generate_crop_boxes(IMAGE[:, :40], SIDE, points_per_crop=8)[1])
    torch.testing.assert_close(got, theirs)


def test_points_cover_an_image_that_is_not_square():
    """transformers' grid leaves out the lower third of this one."""
    theirs, got = both(lambda p: p.image_processor.generate_crop_boxes(PHOTO, SIDE, points_per_crop=4)[1])
    assert got[0, :, 0].amax(0).tolist() == got[0, :, 0].amin(0).neg().add(SIDE).tolist() == [56, 56]
    assert theirs[0, :, 0, 1].max() < 40


def test_fewer_points_in_crops_are_refused():
    with pytest.raises(ConfigError, match="crop_n_points_downscale_factor is 2: expected 1"):
        small_processor("masklet").image_processor.generate_crop_boxes(
            PHOTO, SIDE, crop_n_layers=1, crop_n_points_downscale_factor=2
        )


BIG = torch.nn.functional.interpolate(
    torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 8, size=(40, 60), mode="bilinear"
)
SCORES = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("box", [[0, 0, 60, 40], [10, 5, 60, 40], [0, 0, 37, 27]])
@pytest.mark.parametrize(
    "thresholds",
    [
        {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.5},
        {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
        {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.9, "mask_threshold": 1.0, "stability_score_offset": 0.5},
        {"pred_iou_thresh": 1.0},
    ],
)
def test_filtered_masks_are_the_same(box, thresholds):
    masks = BIG[..., box[1] : box[3], box[0] : box[2]]
    theirs, got = both(lambda p: p.image_processor.filter_masks(masks, SCORES, (40, 60), box, **thresholds))
    assert got[0] == theirs[0]
    torch.testing.assert_close(got[1], theirs[1])
    assert torch.equal(got[2], theirs[2].reshape(-1, 4))


def test_duplicates_are_removed():
    processor = small_processor("masklet").image_processor
    rles, scores, boxes = processor.filter_masks(BIG, SCORES, (40, 60), [0, 0, 60, 40], 0.01, 0.01)
    masks, kept_scores, kept_rles, kept_boxes = processor.post_process_for_mask_generation(rles, scores, boxes, 0.7)
    assert 1 < len(masks) == len(kept_scores) == len(kept_rles) == len(kept_boxes) < len(rles)
    assert kept_scores.tolist() == sorted(kept_scores.tolist(), reverse=True)
    assert kept_scores[0] == scores.max()
    assert masks[0].shape == (40, 60)
    assert masks[0].dtype == bool


@pytest.fixture
def registered():
    """Our classes in transformers' Auto classes, for one test."""
    import transformers.models.auto.auto_factory as auto
    from transformers.models.auto import (
        configuration_auto,
        image_processing_auto,
        modeling_auto,
        processing_auto,
        video_processing_auto,
    )

    del auto
    mappings = [
        configuration_auto.CONFIG_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        modeling_auto.MODEL_MAPPING,
        modeling_auto.MODEL_FOR_MASK_GENERATION_MAPPING,
        processing_auto.PROCESSOR_MAPPING,
        video_processing_auto.VIDEO_PROCESSOR_MAPPING,
    ]
    before = [dict(mapping._extra_content) for mapping in mappings]
    names = dict(processing_auto.PROCESSOR_MAPPING_NAMES)
    ours.register()
    ours.register()  # may be called again
    yield
    for mapping, content in zip(mappings, before, strict=True):
        mapping._extra_content = content
    processing_auto.PROCESSOR_MAPPING_NAMES.update(names)


@pytest.fixture
def folder(tmp_path):
    """A whole model, saved by masklet."""
    small_model("masklet").save_pretrained(tmp_path)
    small_processor("masklet").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        ("AutoConfig", "Sam2Config"),
        ("AutoModel", "Sam2Model"),
        ("AutoModelForMaskGeneration", "Sam2Model"),
        ("AutoProcessor", "Sam2Processor"),
        ("AutoImageProcessor", "Sam2ImageProcessor"),
    ],
)
def test_auto_classes_find_ours_after_register(registered, folder, auto, name):
    assert isinstance(getattr(transformers, auto).from_pretrained(folder), getattr(ours, name))


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        ("AutoConfig", "Sam2VideoConfig"),
        ("AutoModel", "Sam2VideoModel"),
        ("AutoModelForMaskGeneration", "Sam2Model"),
        ("AutoProcessor", "Sam2VideoProcessor"),
        ("AutoVideoProcessor", "Sam2VideoVideoProcessor"),
        ("AutoImageProcessor", "Sam2ImageProcessor"),
    ],
)
def test_auto_classes_find_the_video_classes(registered, tiny_model, tmp_path, auto, name):
    if auto == "AutoVideoProcessor" and not has_torchvision():
        pytest.skip("transformers' AutoVideoProcessor needs torchvision")
    ours.Sam2VideoModel.from_network(tiny_model).save_pretrained(tmp_path)
    assert isinstance(getattr(transformers, auto).from_pretrained(tmp_path), getattr(ours, name))


def test_a_model_of_a_configuration(registered):
    from compat.transformers_image import small_config

    assert isinstance(transformers.AutoModel.from_config(small_config("masklet")), ours.Sam2Model)


@pytest.mark.parametrize(
    ("auto", "name"),
    [("AutoProcessor", "Sam2Processor"), ("AutoImageProcessor", "Sam2ImageProcessor"), ("AutoConfig", "Sam2Config")],
)
def test_transformers_opens_our_folder_with_its_own_classes(folder, auto, name):
    small_processor("transformers")
    opened = getattr(transformers, auto).from_pretrained(folder)
    assert type(opened).__name__ == name
    assert not isinstance(opened, getattr(ours, name))


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        ("AutoProcessor", "Sam2VideoProcessor"),
        ("AutoVideoProcessor", "Sam2VideoVideoProcessor"),
        ("AutoImageProcessor", "Sam2ImageProcessor"),
        ("Sam2VideoProcessor", "Sam2VideoProcessor"),
        ("Sam2Processor", "Sam2Processor"),
    ],
)
def test_transformers_opens_the_folder_of_a_model_of_videos(tiny_folder, auto, name):
    small_processor("transformers")
    assert type(getattr(transformers, auto).from_pretrained(tiny_folder)).__name__ == name


OPTIONS = {"points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_batch": 8}


def test_the_pipeline_runs(registered, folder):
    generator = transformers.pipeline("mask-generation", model=str(folder), device="cpu")
    assert isinstance(generator.model, ours.Sam2Model)
    found = generator(PHOTO, output_rle_mask=True, output_bboxes_mask=True, **OPTIONS)
    assert found.keys() == {"masks", "scores", "rle_mask", "bounding_boxes"}
    assert len(found["masks"]) == len(found["scores"]) == len(found["rle_mask"]) == len(found["bounding_boxes"]) > 0
    assert found["masks"][0].shape == (40, 60)


def test_the_pipeline_takes_objects_too(folder):
    """Without register()."""
    generator = transformers.pipeline(
        "mask-generation",
        model=ours.Sam2Model.from_pretrained(folder),
        image_processor=ours.Sam2ImageProcessor.from_pretrained(folder),
        device="cpu",
    )
    assert generator(PHOTO, crops_n_layers=1, **OPTIONS).keys() == {"masks", "scores"}


def test_the_pipeline_gives_the_same_for_a_square_image(folder, monkeypatch):
    """transformers' removal of duplicates needs torchvision's operators, so both sides use ours."""
    if not has_torchvision():
        pytest.skip("transformers' processors need torchvision")
    results = []
    for kind in BOTH:
        image_processor = package(kind).Sam2ImageProcessor.from_pretrained(folder)
        if kind == "transformers":
            remove = small_processor("masklet").image_processor.post_process_for_mask_generation
            monkeypatch.setattr(image_processor, "post_process_for_mask_generation", remove)
        generator = transformers.pipeline(
            "mask-generation",
            model=package(kind).Sam2Model.from_pretrained(folder),
            image_processor=image_processor,
            device="cpu",
        )
        results.append(generator(Image.fromarray(IMAGE[:, :40]), **OPTIONS))
    theirs, got = results
    torch.testing.assert_close(got["scores"], theirs["scores"], rtol=1e-4, atol=1e-4)
    assert len(got["masks"]) == len(theirs["masks"]) > 0
    for one, other in zip(got["masks"], theirs["masks"], strict=True):
        np.testing.assert_array_equal(one, other)
