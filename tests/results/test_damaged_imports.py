"""Whatever stands in a file of masks: it is read, or refused by name. pycocotools would end the process."""

import io
import json
import math
import re

import numpy as np
import pycocotools.mask as coco
import pytest
from damage import ODD_VALUES, attempt, damaged_bytes, damaged_documents, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masklet.errors import ImageError
from masklet.masks import PackedMasks, decode_rle
from masklet.results import Masks
from masklet.results.importers import MAX_OUTLINE_PX, read_segmentation

SQUARE = [10, 10, 50, 10, 50, 50, 10, 50]
"""40 by 40 pixels."""
SIZE_HW = (60, 80)


def with_polygon(*numbers):
    return [{"segmentation": [SQUARE]}, {"segmentation": [list(numbers)]}]


def with_counts(counts, size=SIZE_HW):
    return [{"segmentation": {"size": list(size), "counts": counts}}]


def with_fields(**fields):
    return [{"segmentation": [SQUARE]}, {"segmentation": [SQUARE], **fields}]


COORDINATE = "annotation 1 has the coordinate {} in a polygon: expected pixels, finite and within ±16777216"


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (with_polygon(10, 10, math.nan, 10, 50, 50), COORDINATE.format("nan")),
        (with_polygon(10, 10, -math.inf, 10, 50, 50), COORDINATE.format("-inf")),
        (with_polygon(10, 10, 1e300, 10, 50, 50), COORDINATE.format("1e+300")),
        (with_polygon(10, 10, 10**9, 10, 50, 50), COORDINATE.format("1e+09")),
        (with_polygon(10, 10, 10**400, 10, 50, 50), "annotation 1 has the polygon [10, 10, 1000000"),
        (with_polygon(0, 0, 1.6e7, 0, 50, 50), f"an outline of 32000000 pixels: expected {MAX_OUTLINE_PX} at most"),
        (with_polygon(10, 10, None, 10, 50, 50), "annotation 1 has the polygon [10, 10, None, 10, 50, 50]: expected n"),
        (with_polygon(*"123456"), "annotation 1 has the polygon ['1', '2', '3', '4', '5', '6']: expected numbers, x0"),
        (with_polygon(*[[1, 2]] * 6), "annotation 1 has the polygon [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]"),
        (with_polygon(1, 2, 3, 4), "annotation 1 has the segmentation [[1, 2, 3, 4]]: expected run lengths"),
        (with_polygon(1, 2, 3, 4, 5), "annotation 1 has the segmentation [[1, 2, 3, 4, 5]]: expected run lengths"),
        (with_polygon(), "annotation 1 has the segmentation [[]]: expected run lengths"),
        (with_counts([-5, 4805]), "annotation 0 has the run lengths [-5, 4805]: expected COCO's string, or whole nu"),
        (with_counts([0.5, 4799.5]), "annotation 0 has the run lengths [0.5, 4799.5]: expected COCO's string"),
        (with_counts([math.nan]), "annotation 0 has the run lengths [nan]: expected COCO's string"),
        (with_counts([10**400]), "annotation 0 has the run lengths [1000000000"),
        (with_counts([2**32, 4800]), "annotation 0: run lengths of 4294972096 pixels do not fill their size of 80×60"),
        (with_counts([2**63, 2**63]), "annotation 0: run lengths of 18446744073709551616 pixels do not fill"),
        (with_counts(["4800"]), "annotation 0 has the run lengths ['4800']: expected COCO's string"),
        (with_counts([[4800]]), "annotation 0 has the run lengths [[4800]]: expected COCO's string"),
        (with_counts([]), "annotation 0: run lengths of 0 pixels do not fill"),
        (with_counts(None), "annotation 0 has the run lengths None: expected COCO's string"),
        (with_counts(""), "annotation 0: run lengths of 0 pixels do not fill"),
        (with_counts("é\ud800"), "annotation 0: run lengths of 0 pixels do not fill"),
        (with_counts(b"\xff\x00"), "annotation 0: run lengths of 0 pixels do not fill"),
        (with_counts("o" * 100 + "0"), "annotation 0: run lengths of 0 pixels do not fill"),
        (with_counts("`1"), "annotation 0: run lengths of 48 pixels do not fill their size of 80×60"),
        (with_counts([10**18], (10**9, 10**9)), "the size of annotation 0 is [1000000000, 1000000000]: expected (h"),
        (with_counts([0], (0, 5)), "the size of annotation 0 is [0, 5]: expected (height, width), whole numbers fr"),
        (with_counts([4800], (-60, -80)), "the size of annotation 0 is [-60, -80]: expected (height, width)"),
        (with_counts("1", ("a", "b")), "the size of annotation 0 is ['a', 'b']: expected (height, width)"),
        (with_fields(object_id="cat"), "the object_id of annotation 1 is 'cat': expected a whole number"),
        (with_fields(object_id=1.5), "the object_id of annotation 1 is 1.5: expected a whole number"),
        (with_fields(object_id=10**400), "the object_id of annotation 1 is 100000"),
        (with_fields(score=math.nan), "the score of annotation 1 is nan: expected a finite number"),
        (with_fields(score=1e300), "the score of annotation 1 is 1e+300: expected a finite number"),
        (with_fields(score="high"), "the score of annotation 1 is 'high': expected a finite number"),
        (with_fields(image_id=[1]), "an image_id of the annotations is neither a number nor text"),
        ([{"segmentation": [SQUARE]}, [SQUARE]], "annotation 1 is [[10, 10, 50, 10, 50, 50, 10, 50]]: expected a dict"),
        ("all.json", "annotations are 'all.json': expected a list of COCO annotations or a data set. Read a file with"),
        (None, "annotations are None: expected a list of COCO annotations"),
        ({"annotations": [], "images": 5}, "the images of the COCO data set are 5: expected a list of dicts"),
        ({"annotations": [], "images": [{"height": 1, "width": "x"}]}, "the data set's image size is (1, 'x')"),
        ({"annotations": [], "images": [{"height": 6, "width": 8}]}, "size_hw is (60, 80), but the data set's image"),
    ],
)
def test_annotations_that_make_no_sense_are_refused_by_name(annotations, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks.from_coco(annotations, size_hw=SIZE_HW)


@pytest.mark.parametrize("size_hw", [(0, 80), (60.5, 80), "60x80", (10**6, 10**6), 60, (60, math.nan)])
def test_sizes_that_make_no_sense_are_refused(size_hw):
    with pytest.raises(ValueError, match="size_hw is .*: expected \\(height, width\\), whole numbers from 1"):
        Masks.from_coco([{"segmentation": [SQUARE]}], size_hw=size_hw)


@pytest.mark.parametrize("size_hw", [(0, 80), (60, -1)])
def test_polygons_in_images_without_pixels_are_refused(size_hw):
    with pytest.raises(ValueError, match="the size of the image of annotation 3 is"):
        read_segmentation([SQUARE], size_hw, 3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_polygons_may_reach_over_the_edge_as_in_pycocotools():
    polygon = [-30.5, -10, 1000, 20, 5000.25, 300, 20, 90]
    expected = coco.decode(coco.frPyObjects([polygon], *SIZE_HW))[..., 0]
    np.testing.assert_array_equal(Masks.from_coco([{"segmentation": [polygon]}], size_hw=SIZE_HW).masks[0], expected)


def test_numpy_arrays_and_numbers_are_taken_where_lists_are():
    polygon = np.array(SQUARE, np.float32)
    counts = np.array([10 * 60 + 10, *[40, 20] * 39, 40, 10 + 30 * 60], np.uint32)
    segmentations = [
        [polygon],
        polygon[None],
        (tuple(SQUARE),),
        {"size": np.array(SIZE_HW), "counts": counts},
        {"size": (60.0, np.int64(80)), "counts": counts.astype(float)},
    ]
    annotations = [
        {"segmentation": one, "score": np.float32(0.5), "object_id": np.float64(number), "bbox": polygon}
        for number, one in enumerate(segmentations)
    ]
    expected = np.zeros(SIZE_HW, bool)
    expected[10:50, 10:50] = True
    for given_annotations in (annotations, tuple(annotations), iter(annotations), np.array(annotations, object)):
        masks = Masks.from_coco(given_annotations, size_hw=np.array(SIZE_HW))
        assert (masks.masks == expected).all()
        assert masks.iou_scores.tolist() == [0.5] * 5
        assert masks.object_ids.tolist() == list(range(5))


def test_masks_that_do_not_fit_in_memory_are_refused(monkeypatch):
    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr(PackedMasks, "__array__", no_memory)
    with pytest.raises(ValueError, match=r"1 masks of 2×3 pixels do not fit in memory: unpack a few .*packed=True"):
        decode_rle([{"size": [3, 2], "counts": "6"}])


@pytest.mark.parametrize(
    "run", [None, 5, {}, {"size": [2, 2]}, {"size": [2, 2], "counts": 4}, {"size": 2, "counts": "4"}]
)
def test_what_is_not_run_lengths_is_refused_by_every_reader(run):
    for read in (decode_rle, lambda runs: Masks.from_rle(runs, (2, 2), np.ones(1, np.float32), np.ones(1, int))):
        with pytest.raises(ValueError, match="run lengths"):
            read([run])
    with pytest.raises(ValueError, match=r"run lengths of size \[2, 2\] do not fit size_hw=\(4, 1\)"):
        Masks.from_rle([{"size": [2, 2], "counts": "4"}], (4, 1), np.ones(1, np.float32), np.ones(1, int))


DATA_SET = {
    "images": [{"id": 3, "file_name": "a.png", "height": 6, "width": 8}],
    "annotations": [
        {"id": 1, "image_id": 3, "segmentation": [[1, 1, 4, 1, 4, 5, 1, 5], [5.5, 1, 7, 1, 7, 3]], "score": 0.5},
        {"id": 2, "image_id": 3, "segmentation": {"size": [6, 8], "counts": [7, 4, 2, 4, 31]}, "object_id": 7},
        {"id": 3, "image_id": 3, "segmentation": {"size": [6, 8], "counts": "74`1"}, "bbox": [0, 0, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "object"}],
}


@given(document=damaged_documents(DATA_SET), packed=st.booleans(), has_size=st.booleans())
@fuzzed(60)
def test_damaged_coco_data_is_read_or_refused(document, packed, has_size):
    size_hw = (6, 8) if has_size else None
    masks, message = attempt(lambda: Masks.from_coco(document, size_hw=size_hw, packed=packed), ValueError)
    if masks is None:
        assert len(message) > 20
        return
    written = json.dumps(masks.to_coco(), allow_nan=False)
    assert json.dumps(Masks.from_coco(json.loads(written), size_hw=masks.size_hw).to_coco()) == written


@given(value=st.sampled_from(ODD_VALUES))
@fuzzed(20)
def test_anything_in_the_place_of_annotations_is_read_or_refused(value):
    for annotations in (value, [value], [{"segmentation": value}], {"annotations": value}):
        try:
            masks = Masks.from_coco(annotations, size_hw=(6, 8))
        except ValueError:
            continue
        assert masks.size_hw == (6, 8)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@given(counts=st.text(st.characters(max_codepoint=300), max_size=30) | st.text("0123456789:;<=>?@`abcdefghijklmno"))
@fuzzed(100)
def test_any_string_in_the_place_of_counts_is_read_or_refused(counts):
    run = {"size": [6, 8], "counts": counts}
    masks, message = attempt(lambda: decode_rle([run]), ValueError)
    if masks is None:
        assert "do not fill their size of 8×6 pixels" in message
    else:  # pycocotools agrees
        np.testing.assert_array_equal(masks[0], coco.decode(run) > 0)


def index_png(mode):
    file = io.BytesIO()
    pixels = np.zeros((12, 16), np.uint16 if mode == "I;16" else np.uint8)
    pixels[2:8, 3:9], pixels[4:, 10:] = 1, 2
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(file, "TIFF" if mode == "TIFF" else "PNG")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged TIFFs
@given(data=st.data(), threshold=st.sampled_from([None, 1, 128]))
@fuzzed(60)
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "TIFF"])
def test_damaged_index_images_are_read_or_refused(tmp_path, mode, data, threshold):
    path = tmp_path / "masks.png"
    path.write_bytes(data.draw(damaged_bytes(index_png(mode))))
    masks, message = attempt(lambda: Masks.from_png(path, threshold=threshold), ImageError)
    assert str(path) in message if masks is None else masks.masks.dtype == bool


@pytest.mark.parametrize("threshold", [math.nan, "128", 10**400, None])
def test_thresholds_that_are_no_numbers_are_refused(tmp_path, threshold):
    path = tmp_path / "masks.png"
    path.write_bytes(index_png("L"))
    if threshold is None:
        assert len(Masks.from_png(path)) == 2
        return
    with pytest.raises(ImageError, match="threshold is .*: expected a finite number"):
        Masks.from_png(path, threshold=threshold)


def saved_arrays(**changes):
    arrays = {
        "masks": np.ones((2, 3, 4), bool),
        "logits": np.zeros((2, 1, 1), np.float32),
        "iou_scores": np.ones(2, np.float32),
        "object_ids": np.arange(2),
    }
    return arrays | changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masks", 5),
        ("masks", [[[True]]]),
        ("masks", np.ones((2, 3, 4))),
        ("masks", np.ones((2, 0, 4), bool)),
        ("logits", None),
        ("logits", np.zeros((1, 1, 1), np.float32)),
        ("iou_scores", np.array(["a", "b"])),
        ("iou_scores", np.array([1, np.nan], np.float32)),
        ("iou_scores", np.array([1, np.inf], np.float32)),
        ("object_ids", np.array([1.5, 2])),
        ("object_ids", [0, 1]),
        ("image", np.zeros((3, 4), np.uint8)),
        ("image", "a.png"),
    ],
)
def test_arrays_that_are_not_masks_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}|image"):
        Masks(**saved_arrays(**{name: value}))
