import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from mask_results import any_masks, even_odd, few_examples, rectangles

from masklet.results import Masks
from masklet.results.exporters import cvat_document


def image_of(masks, name="a.jpg", **options):
    root = ElementTree.fromstring(masks.to_cvat(name, **options).encode())
    assert root.find("version").text == "1.1"
    assert root.find(".//original_size") is None, "that of a video, which datumaro expects to be complete"
    image = root.find("image")
    assert image.get("name") == name
    assert (int(image.get("height")), int(image.get("width"))) == masks.size_hw
    return image


def painted(shape, size_hw):
    """A mask as CVAT describes it: numbers of pixels outside, inside, outside … of its box, row by row."""
    left, top, width, height = (int(shape.get(name)) for name in ("left", "top", "width", "height"))
    pixels = []
    for number, count in enumerate(map(int, shape.get("rle").split(","))):
        pixels += [number % 2 == 1] * count
    mask = np.zeros(size_hw, bool)
    mask[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
    return mask


@given(any_masks())
@few_examples
def test_masks_of_cvat_are_the_masks(masks):
    shapes = list(image_of(masks, categories="cat"))
    full = [mask for mask in masks.masks if mask.any()]
    for shape, mask in zip(shapes, full, strict=True):
        assert (shape.tag, shape.get("label")) == ("mask", "cat")
        np.testing.assert_array_equal(painted(shape, masks.size_hw), mask)
    packed = Masks.from_coco(masks.to_coco(), size_hw=masks.size_hw, packed=True)
    assert packed.to_cvat("a.jpg", polygons=True) == masks.to_cvat("a.jpg", polygons=True)


def points_of(shape):
    return [tuple(map(float, point.split(","))) for point in shape.get("points").split(";")]


@given(any_masks())
@few_examples
def test_polygons_of_cvat_are_the_masks_and_components_form_groups(masks):
    shapes = list(image_of(masks, polygons=True))
    total = np.zeros(masks.size_hw, int)
    for shape in shapes:
        assert shape.tag == "polygon"
        total += even_odd([points_of(shape)], masks.size_hw)
    np.testing.assert_array_equal(total, masks.masks.sum(0))
    components = [len(polygons) for polygons in masks.to_polygons()]
    groups = [number for number, count in enumerate(components, 1) for _ in range(count) if count > 1]
    assert [int(shape.get("group_id")) for shape in shapes if shape.get("group_id")] == groups


def test_names_are_escaped_and_listed(three):
    names = ['<a href="x">', "a & 'b'", "掩码"]
    text = three.to_cvat('"é&<.jpg', image_id=3, categories=[*names[:2], names[0]], names=names)
    root = ElementTree.fromstring(text.encode())
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == names
    assert [shape.get("label") for shape in root.find("image")] == [*names[:2], names[0]]
    assert root.find("image").get("name") == '"é&<.jpg'
    assert root.find("image").get("id") == "3"


@pytest.mark.parametrize("name", ["a\0b", "a\x1bb", "a\ud800b"])
def test_characters_that_xml_cannot_hold_are_refused(three, name):
    with pytest.raises(ValueError, match="which XML cannot hold: expected another name"):
        three.to_cvat("a.jpg", categories=name)


def test_a_tolerance_is_for_polygons():
    masks = rectangles((0, 0, 3, 3))
    with pytest.raises(ValueError, match=re.escape("tolerance=2 simplifies polygons, but CVAT's masks are exact")):
        masks.to_cvat("a.jpg", tolerance=2)
    (shape,) = image_of(masks, polygons=True, tolerance=2.5)  # a corner is 2.12 from the diagonal
    assert len(points_of(shape)) == 3


def test_a_document_may_have_several_images(three, nothing):
    pages = [("a.jpg", three, {7: "cat", 2: "dog"}), ("b.jpg", nothing, None), ("c.jpg", three[2], ["bird"])]
    root = ElementTree.fromstring(cvat_document(pages))
    names = [name.text for name in root.iterfind("meta/task/labels/label/name")]
    assert names == ["cat", "dog", "object", "bird"]
    found = [(one.get("id"), one.get("name"), [shape.get("label") for shape in one]) for one in root.iterfind("image")]
    assert found == [("0", "a.jpg", ["cat", "cat", "dog"]), ("1", "b.jpg", []), ("2", "c.jpg", ["bird"])]
    np.testing.assert_array_equal(painted(root[-1][0], three.size_hw), three.masks[2])


def test_no_masks_make_an_image_without_shapes(nothing):
    assert len(image_of(nothing)) == 0
