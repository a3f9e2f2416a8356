import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from mask_results import any_masks, assert_fields_equal, few_examples, rectangles
from PIL import Image, ImageFilter

from masklet.errors import ImageError
from masklet.results import Masks
from masklet.results.exporters import coco_data


@given(any_masks())
@few_examples
def test_coco_round_trip(masks):
    size_hw = masks.masks.shape[1:]
    instances = json.loads(json.dumps(masks.to_coco()))
    returned = Masks.from_coco(instances, size_hw=size_hw)
    assert_fields_equal(masks, returned, "masks", "iou_scores", "object_ids")
    assert Masks.from_coco([], size_hw=size_hw).masks.shape == (0, *size_hw)
    if len(masks):
        assert_fields_equal(masks, Masks.from_coco(instances), "masks")


@given(any_masks(apart=True))
@few_examples
def test_png_round_trip_with_object_ids(tmp_path, masks):
    masks.save(tmp_path / "objects.png", by_object=True)
    assert_fields_equal(masks, Masks.from_png(tmp_path / "objects.png"), "masks", "object_ids")
    masks.save(tmp_path / "masks.png")
    returned = Masks.from_png(tmp_path / "masks.png")
    assert_fields_equal(masks, returned, "masks")
    assert returned.object_ids.tolist() == list(range(len(masks)))
    assert returned.iou_scores.tolist() == [1] * len(masks)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA"])
def test_a_black_and_white_image_is_one_mask(three, tmp_path, mode):
    Image.fromarray(three.masks[1] * np.uint8(255)).convert(mode).save(tmp_path / "mask.png")
    masks = Masks.from_png(tmp_path / "mask.png")
    np.testing.assert_array_equal(masks.masks, three.masks[1:2])
    assert masks.object_ids.tolist() == [0]


@pytest.mark.parametrize("name", ["soft.png", "soft.jpg", "hard.jpg"])
def test_a_mask_of_soft_edges_needs_a_threshold(tmp_path, name):
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if "soft" in name:
        image = image.filter(ImageFilter.GaussianBlur(2))
    image.save(tmp_path / name)
    with pytest.raises(ImageError, match="shades of grey, .* If it is one mask, pass threshold=128; if they are num"):
        Masks.from_png(tmp_path / name)
    masks = Masks.from_png(tmp_path / name, threshold=128)
    assert masks.object_ids.tolist() == [0]
    assert (masks.masks[0] != mask).sum() <= 12  # corners


def test_a_threshold_works_for_black_and_white_images(three, tmp_path):
    three[0].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(Masks.from_png(tmp_path / "mask.png", threshold=128).masks, three[0].masks)
    Image.new("L", (8, 6)).save(tmp_path / "black.png")
    assert not Masks.from_png(tmp_path / "black.png", threshold=128).masks.any()


def test_grey_values_that_number_masks_are_read_as_numbers(tmp_path):
    numbers = np.repeat(np.arange(256, dtype=np.uint8)[None], 4, axis=0)
    for name, values in (
        ("all", numbers),
        ("few", numbers[:, ::32]),
        ("void", np.pad(numbers[:, :21], 1, constant_values=255)),
    ):
        Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / f"{name}.png")
        assert len(Masks.from_png(tmp_path / f"{name}.png")) == len(np.unique(values[values > 0]))


def test_images_that_are_not_masks_are_refused(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "image.png")
    with pytest.raises(ImageError, match=r"image.png is an image in colours or with transparency \(RGB\), not masks"):
        Masks.from_png(tmp_path / "image.png")
    with pytest.raises(ImageError, match="there is no image at"):
        Masks.from_png(tmp_path / "none.png")


def test_logits_of_imported_masks_agree_with_the_masks(encoded):
    given_masks = Masks.from_coco(encoded.predict(box=(20, 10, 50, 30)).to_coco())
    assert given_masks.logits.shape == (1, 256, 256)
    np.testing.assert_array_equal(given_masks.without_overlap().masks, given_masks.masks)
    inside = np.array(Image.fromarray(given_masks.masks[0]).resize((256, 256), Image.Resampling.NEAREST))
    assert ((given_masks.logits[0] > 0) == inside).mean() > 0.98


def test_logits_of_imported_masks_are_computed_on_the_cpu_whatever_the_default_device():
    """Antialiased interpolation does not exist on MPS. The meta device stands for any other device here."""
    annotations = rectangles((1, 1, 4, 5)).to_coco()
    with torch.device("meta"):
        masks = Masks.from_coco(annotations)
    np.testing.assert_array_equal(masks.logits, Masks.from_coco(annotations).logits)


def test_every_form_of_coco_segmentation_is_read():
    drawn = rectangles((1, 1, 4, 5)).masks[0]
    compressed = rectangles((1, 1, 4, 5)).to_rle()[0]
    counts = [
        int(n) for n in np.diff(np.flatnonzero(np.diff(np.pad(drawn.T.ravel(), 1, constant_values=2).astype(int))))
    ]
    assert sum(counts) == 48
    segmentations = [
        compressed,
        {**compressed, "counts": compressed["counts"].encode()},
        {"size": [6, 8], "counts": counts},
        [[1, 1, 4, 1, 4, 5, 1, 5]],
        [[1, 1, 4, 1, 4, 3, 1, 3], [1.0, 3, 4, 3, 4, 5, 1, 5]],
    ]
    masks = Masks.from_coco([{"segmentation": s} for s in segmentations] + [{"segmentation": []}], size_hw=(6, 8))
    for mask in masks.masks[:-1]:
        np.testing.assert_array_equal(mask, drawn)
    assert not masks.masks[-1].any()
    assert masks.object_ids.tolist() == list(range(6))
    assert masks.iou_scores.tolist() == [1] * 6


def test_a_data_set_of_one_image_and_null_scores_are_read(three):
    data = coco_data(three.to_coco(image_id=7), "a.png", three.size_hw, image_id=7)
    assert_fields_equal(three, Masks.from_coco(json.loads(json.dumps(data))), "masks", "iou_scores", "object_ids")
    data["annotations"][0] |= {"score": None, "object_id": None}
    returned = Masks.from_coco(data)
    assert (returned.iou_scores[0], returned.object_ids[0]) == (1, 0)
    assert Masks.from_coco(data | {"annotations": []}).size_hw == three.size_hw == (6, 8)


def test_annotations_of_several_images_are_refused(three):
    choose = r"expected one. Choose its annotations: \[a for a in annotations if a\['image_id'\] == …\]"
    with pytest.raises(ValueError, match=f"the annotations are of 2 images: {choose}"):
        Masks.from_coco(three.to_coco() + three.to_coco(image_id=2))
    data = coco_data(three.to_coco(), "a.png", three.size_hw)
    with pytest.raises(ValueError, match=f"the COCO data set has 2 images: {choose}"):
        Masks.from_coco(data | {"images": 2 * data["images"]})
    with pytest.raises(ValueError, match=r"a dict of \['images'\] is not a COCO data set"):
        Masks.from_coco({"images": []})


@pytest.mark.parametrize("packed", [False, True])
def test_runs_of_zero_pixels_are_dropped(packed):
    counts = [3, 0, 1, 2, 0, 1, 5, 0]
    masks = Masks.from_coco([{"segmentation": {"size": [3, 4], "counts": counts}}], packed=packed)
    assert masks.boxes.tolist() == [[1, 0, 3, 3]]
    assert masks.to_rle() == Masks.from_coco(masks.to_coco()).to_rle()


@pytest.mark.parametrize(
    ("annotations", "size_hw", "message"),
    [
        ([], None, "the size of the image is unknown without annotations: pass size_hw=(height, width)"),
        ([{"segmentation": [[0, 0, 1, 0, 1, 1]]}], None, "the size of the image is unknown from polygons: pass"),
        ([{"segmentation": {"size": [6, 8], "counts": "`1"}}], (8, 6), "size [6, 8] do not fit size_hw=(8, 6)"),
        ([{"segmentation": [[0, 0, 5, 5]]}], (8, 6), "annotation 0 has the segmentation [[0, 0, 5, 5]]: expected run"),
        ([{"segmentation": [0, 0, 5, 5, 6, 6]}], (8, 6), "annotation 0 has the segmentation [0, 0, 5, 5, 6, 6]"),
        ([{"bbox": [0, 0, 1, 1]}], (8, 6), "annotation 0 has the segmentation None"),
    ],
)
def test_malformed_annotations_are_refused(annotations, size_hw, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks.from_coco(annotations, size_hw=size_hw)
