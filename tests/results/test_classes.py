"""The classes of masks are given in the same way to every export."""

import json
import re

import numpy as np
import pytest
from mask_results import rectangles

from masklet.masks import decode_rle, text_rle
from masklet.results import Masks
from masklet.results.exporters import read_classes

CATS = [
    "cat",
    ["cat", "dog", "cat"],
    {7: "cat", 2: "dog", 99: "hörse"},
]


@pytest.mark.parametrize(
    ("categories", "labels", "names"),
    [
        (None, ["object"] * 3, ["object"]),
        ("cat", ["cat"] * 3, ["cat"]),
        (["dog", "cat", "dog"], ["dog", "cat", "dog"], ["dog", "cat"]),
        (np.array(["dog", "cat", "dog"]), ["dog", "cat", "dog"], ["dog", "cat"]),
        ({2: "dog", 7: "cat", 99: "hörse"}, ["cat", "cat", "dog"], ["dog", "cat", "hörse"]),
    ],
)
def test_classes_are_one_name_or_by_mask_or_by_object(three, categories, labels, names):
    classes = read_classes(categories, three.object_ids.tolist())
    assert classes.labels == labels
    assert list(classes.names) == names


def test_names_fix_the_numbers_of_classes(three):
    names = ["bird", "cat", "dog"]
    categories = {7: "dog", 2: "cat"}
    assert [one["category_id"] for one in three.to_coco(categories=categories)] == [1, 1, 2]
    assert [one["category_id"] for one in three.to_coco(categories=categories, names=names)] == [3, 3, 2]
    shifted = three.to_coco(categories=categories, names=names, category_id=10)
    assert [one["category_id"] for one in shifted] == [12, 12, 11]
    first_numbers = [line.split(" ")[0] for line in three.to_yolo(categories=categories, names=names).splitlines()]
    assert first_numbers == ["2", "2", "1"]
    shifted = three.to_yolo(1, categories=categories, names=names).splitlines()
    assert [line.split(" ")[0] for line in shifted] == ["3", "3", "2"]


EXPORTS = {
    "coco": lambda masks, categories: masks.to_coco(categories=categories),
    "geojson": lambda masks, categories: masks.to_geojson(categories=categories),
    "labelme": lambda masks, categories: masks.to_labelme("a.jpg", categories=categories),
    "label studio": lambda masks, categories: masks.to_label_studio("a.jpg", categories=categories),
    "cvat": lambda masks, categories: masks.to_cvat("a.jpg", categories=categories),
    "yolo": lambda masks, categories: masks.to_yolo(categories=categories),
    "supervision": lambda masks, categories: masks.to_supervision(categories=categories),
    "pandas": lambda masks, categories: masks.to_pandas(categories=categories),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({7: "cat"}, "categories has no class for object 2, only for [7]"),
        (["cat", "dog"], "categories is 2 names, but there are 3 masks: expected one name for all, a list"),
        (3, "categories is 3, but there are 3 masks"),
        ({"a"}, "categories is {'a'}, but there are 3 masks"),
        (["cat", "dog", None], "None is not the name of a class: expected text"),
        ("", "'' is not the name of a class"),
        ({7: "cat", 2: ["dog"]}, "['dog'] is not the name of a class"),
    ],
)
def test_every_export_refuses_classes_that_do_not_fit(three, export, categories, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        export(three, categories)


@pytest.mark.parametrize(
    ("categories", "names", "message"),
    [
        ("cat", ["dog"], "class 'cat' is not among names=['dog']"),
        ("cat", ["cat", "cat"], "lists a name twice"),
        ("cat", "cat", "names='cat': expected a list of all classes"),
        (None, ["cat"], "names=['cat']: expected a list of all classes, and categories="),
        ("cat", ["cat", 3], "3 is not the name of a class"),
    ],
)
def test_names_that_do_not_fit_are_refused(three, categories, names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        three.to_coco(categories=categories, names=names)


@pytest.mark.parametrize("categories", CATS)
def test_the_class_of_each_mask_is_in_every_export(three, categories):
    labels = read_classes(categories, three.object_ids.tolist()).labels
    data = three.to_coco_dataset("a.jpg", categories=categories)
    names = {one["id"]: one["name"] for one in data["categories"]}
    assert [names[one["category_id"]] for one in data["annotations"]] == labels
    features = three.to_geojson(categories=categories)["features"]
    assert [feature["properties"]["class"] for feature in features] == labels
    assert [shape["label"] for shape in three.to_labelme("a.jpg", categories=categories)["shapes"]] == labels
    (prediction,) = three.to_label_studio("a.jpg", categories=categories)["predictions"]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [[label] for label in labels]
    assert re.findall('<mask label="(.*?)"', three.to_cvat("a.jpg", categories=categories)) == labels


def test_geojson_has_no_class_that_was_not_given(three):
    assert "class" not in three.to_geojson()["features"][0]["properties"]


def test_supervision_and_pandas_get_the_names(three, monkeypatch):
    pytest.importorskip("pandas")
    supervision = pytest.importorskip("supervision")
    names = ["bird", "cat", "dog"]
    detections = three.to_supervision(categories={7: "dog", 2: "cat"}, names=names)
    assert isinstance(detections, supervision.Detections)
    assert detections.class_id.tolist() == [2, 2, 1]
    assert detections["class_name"].tolist() == ["dog", "dog", "cat"]
    assert three.to_pandas(categories={7: "dog", 2: "cat"})["class"].tolist() == ["dog", "dog", "cat"]


def test_no_masks_have_no_classes(nothing):
    assert nothing.to_coco_dataset("a.jpg", categories=[])["categories"] == []
    data = nothing.to_coco_dataset("a.jpg", categories={3: "cat"})
    assert data["categories"] == [{"id": 1, "name": "cat"}]
    assert nothing.to_yolo(categories={3: "cat"}) == ""
    assert nothing.to_label_studio("a.jpg")["predictions"][0]["result"] == []


def test_a_coco_data_set_opens_in_pycocotools_and_comes_back(tmp_path, capsys):
    from pycocotools.coco import COCO

    masks = rectangles((0, 0, 3, 2), (1, 1, 4, 5), object_ids=[5, 8])
    data = masks.to_coco_dataset("fotos/ä.jpg", image_id=4, categories={5: "cat", 8: "dög"}, polygons=True)
    (tmp_path / "data.json").write_text(json.dumps(data))
    coco = COCO(tmp_path / "data.json")
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["cat", "dög"]
    assert coco.loadImgs(4)[0]["file_name"] == "fotos/ä.jpg"
    (dog,) = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["dög"])))
    np.testing.assert_array_equal(decode_rle([text_rle(coco.annToRLE(dog))])[0], masks.masks[1])
    np.testing.assert_array_equal(Masks.from_coco(data).masks, masks.masks)
    capsys.readouterr()  # pycocotools prints
