import base64
import io
import json
import os
import re
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_results import any_masks, assert_fields_equal, even_odd, few_examples, rectangles
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

from masklet.masks import decode_rle, text_rle
from masklet.results import Masks
from masklet.results.visualisation import PALETTE, colour_of


def test_one_mask_is_saved_in_black_and_white(three, tmp_path):
    three[0].save(tmp_path / "one.png")
    image = Image.open(tmp_path / "one.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(image, three.masks[0] * 255)


def test_several_masks_are_numbered_with_the_higher_score_on_top(three, tmp_path):
    three.save(tmp_path / "several.png")
    image = Image.open(tmp_path / "several.png")
    assert image.mode == "P"
    expected = np.zeros((6, 8), int)
    expected[0:2, 0:3] = 1
    expected[1:5, 1:4] = 2
    expected[0:6, 5:8] = 3
    np.testing.assert_array_equal(image, expected)
    first, second = rectangles((0, 0, 4, 4), (0, 0, 2, 2), iou_scores=[0.9, 0.1]), tmp_path / "first.png"
    first.save(second)
    assert np.unique(Image.open(second)).tolist() == [0, 1]


def test_the_palette_of_a_file_is_that_of_the_overlay(three, tmp_path):
    three.save(tmp_path / "map.png")
    seen = Image.open(tmp_path / "map.png").convert("RGB")
    assert seen.getpixel((4, 0)) == (0, 0, 0)
    assert seen.getpixel((2, 3)) == tuple(PALETTE[7])
    assert seen.getpixel((6, 3)) == tuple(PALETTE[2])


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16"), (300, "I;16")])
def test_more_than_255_masks_take_16_bits(count, mode, tmp_path):
    columns = rectangles(*[(x, 0, x + 1, 1) for x in range(count)], size_hw=(1, count))
    columns.save(tmp_path / "many.png")
    image = Image.open(tmp_path / "many.png")
    assert image.mode == mode
    np.testing.assert_array_equal(np.array(image)[0], np.arange(1, count + 1))


def test_more_masks_than_16_bits_can_number_are_refused(tmp_path):
    count = 65536
    many = Masks(np.ones((count, 1, 1), bool), np.zeros((count, 1, 1), "f4"), np.zeros(count), np.zeros(count, int))
    with pytest.raises(ValueError, match="values from 1 to 65536 do not fit the 65535 values"):
        many.save(tmp_path / "many.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.PNG.tmp"])
def test_another_suffix_is_refused_before_anything_is_written(three, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"masks are saved as .png, .npz, .json or .svg, not as {name!r}")):
        three.save(tmp_path / "folder" / name)
    assert os.listdir(tmp_path) == []


def test_save_creates_folders_and_accepts_any_name(three, tmp_path):
    path = tmp_path / "a" / "b" / "máscara 掩码.PNG"
    three[0].save(str(path))
    assert os.listdir(path.parent) == [path.name]


def test_save_replaces_a_file_whole(three, tmp_path):
    three.save(tmp_path / "mask.png")
    three[2].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), three.masks[2] * 255)
    assert os.listdir(tmp_path) == ["mask.png"]


def test_a_save_that_fails_leaves_the_old_file(three, tmp_path, monkeypatch):
    three[0].save(tmp_path / "mask.png")

    def save_half(image, path, format):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match="No space left"):
        three[1].save(tmp_path / "mask.png")
    assert os.listdir(tmp_path) == ["mask.png"]
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), three.masks[0] * 255)


def test_coco_instances_survive_json_and_load_in_pycocotools(three, capsys):
    instances = json.loads(json.dumps(three.to_coco(image_id=5, category_id=4)))
    assert instances[1]["bbox"] == [1, 1, 3, 4]
    assert instances[1]["area"] == 12
    assert instances[1]["score"] == pytest.approx(0.8)
    assert [instance["object_id"] for instance in instances] == [7, 7, 2]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 5, "width": 8, "height": 6}],
        "categories": [{"id": 4, "name": "thing"}],
        "annotations": instances,
    }
    coco.createIndex()
    assert coco.getAnnIds(imgIds=5, catIds=4) == [1, 2, 3]
    runs = [coco.annToRLE(coco.anns[number]) for number in (1, 2, 3)]
    np.testing.assert_array_equal(decode_rle(runs), three.masks)
    assert len(coco.loadRes(instances).anns) == 3
    capsys.readouterr()  # pycocotools prints


@given(any_masks())
@few_examples
def test_pycocotools_fills_polygons_with_the_masks(masks):
    height, width = masks.size_hw
    instances = json.loads(json.dumps(masks.to_coco(polygons=True), allow_nan=False))
    assert [one["id"] for one in instances] == [number for number, mask in enumerate(masks.masks, 1) if mask.any()]
    for instance in instances:
        mask = masks.masks[instance["id"] - 1]
        parts = mask_tools.frPyObjects(instance["segmentation"], height, width)
        np.testing.assert_array_equal(decode_rle([text_rle(mask_tools.merge(parts))])[0], mask)
        assert instance["area"] == mask.sum()
        assert instance["iscrowd"] == 0


def disc_with_hole(radius=40):
    y, x = np.mgrid[:100, :120] - np.array((49.5, 59.5))[:, None, None]
    ring = (np.hypot(x, y) < radius) & (np.hypot(x, y) > radius / 3)
    return Masks(ring[None], np.zeros((1, 2, 2), np.float32), np.ones(1, np.float32), np.array([4]))


def test_a_tolerance_leaves_out_points_and_keeps_the_shape():
    masks, size_hw = disc_with_hole(), (100, 120)
    disc = masks.clean(fill_holes=2000)
    ((exact,),), ((polygon,),) = masks.to_polygons(), masks.to_polygons(tolerance=1.5)
    assert len(polygon.holes) == 1
    assert len(np.concatenate(polygon.rings)) < len(np.concatenate(exact.rings)) / 5
    rings = {
        "coco": np.reshape(masks.to_coco(polygons=True, tolerance=1.5)[0]["segmentation"][0], (-1, 2)),
        "yolo": np.reshape(masks.to_yolo(tolerance=1.5).split(" ")[1:], (-1, 2)).astype(float) * size_hw[::-1],
    }
    outlines = [masks.to_geojson(tolerance=1.5)["features"][0]["geometry"]["coordinates"]]
    outlines += [[ring.tolist()] for ring in rings.values()]
    for shapes in outlines:
        agrees = even_odd([ring[:-1] if ring[0] == ring[-1] else ring for ring in shapes], size_hw) == masks.masks[0]
        assert agrees.mean() > 0.97
    (shape,) = disc.to_labelme("a.jpg", tolerance=1.5)["shapes"]
    assert 5 < len(shape["points"]) < 40
    (shape,) = masks.to_labelme("a.jpg", tolerance=1.5)["shapes"]
    np.testing.assert_array_equal(
        Image.open(io.BytesIO(base64.b64decode(shape["mask"]))), masks.masks[0, 10:90, 20:100]
    )


def test_a_tolerance_is_for_polygons(three):
    with pytest.raises(ValueError, match=re.escape("tolerance=0.5 simplifies polygons, but run lengths are exact")):
        three.to_coco(tolerance=0.5)


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_every_export_of_polygons_refuses_a_malformed_tolerance(three, tolerance):
    message = re.escape(f"tolerance must be a finite number of pixels, 0 or more, got {tolerance}")
    for export in (three.to_polygons, three.to_geojson, three.to_yolo):
        with pytest.raises(ValueError, match=message):
            export(tolerance=tolerance)
    for export in (three.to_labelme, three.to_label_studio, three.to_cvat):
        polygons = {} if export == three.to_labelme else {"polygons": True}
        with pytest.raises(ValueError, match=message):
            export("a.jpg", **polygons, tolerance=tolerance)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_no_json_holds_a_score_that_json_cannot(score):
    with pytest.raises(ValueError, match="iou_scores hold NaN or infinity: expected finite numbers"):
        rectangles((0, 0, 1, 1), (1, 1, 3, 3), iou_scores=[0.5, score])


def test_ids_may_be_numbers_of_numpy(three):
    data = three.to_coco_dataset("a.jpg", image_id=np.int64(5), category_id=np.int64(2))
    assert json.loads(json.dumps(data)) == three.to_coco_dataset("a.jpg", image_id=5, category_id=2)
    assert three.to_yolo(np.int64(3)) == three.to_yolo(3)


def test_polygons_are_listed_by_mask(three):
    polygons = three.to_polygons()
    assert [len(pieces) for pieces in polygons] == [1, 1, 1]
    assert polygons[0][0].exterior.tolist() == [[0, 0], [3, 0], [3, 2], [0, 2]]


@given(any_masks())
@few_examples
def test_npz_round_trip(tmp_path, masks):
    masks.save(tmp_path / "masks.npz")
    assert_fields_equal(masks, Masks(**np.load(tmp_path / "masks.npz")), "masks", "logits", "iou_scores", "object_ids")


def outlines(feature):
    """Polygons of a GeoJSON Feature."""
    match feature["geometry"]:
        case None:
            return []
        case {"type": "Polygon", "coordinates": polygon}:
            return [polygon]
        case {"type": "MultiPolygon", "coordinates": polygons}:
            return polygons


@given(any_masks(), st.sampled_from([None, (0.5, 0, 100, 0, -0.5, 900), (0, 2, 3, 2, 0, 5), (3, 1, 0, 1, 2, 0)]))
@few_examples
def test_filling_geojson_gives_the_masks_and_rings_follow_the_right_hand_rule(masks, transform):
    collection = json.loads(json.dumps(masks.to_geojson(transform)))
    assert collection["type"] == "FeatureCollection"
    a, b, c, d, e, f = transform or (1, 0, 0, 0, 1, 0)
    back = np.linalg.inv([[a, b], [d, e]])
    for feature, mask in zip(collection["features"], masks.masks, strict=True):
        polygons = outlines(feature)
        assert feature["properties"]["area"] == mask.sum()
        ground_area = sum(closed_ring_area(ring) for polygon in polygons for ring in polygon)
        assert ground_area == pytest.approx(mask.sum() * abs(a * e - b * d))
        for exterior, *holes in polygons:
            assert closed_ring_area(exterior) > 0
            assert all(closed_ring_area(hole) < 0 for hole in holes)
            assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in (exterior, *holes))
        rings = [np.rint((np.array(r[:-1]) - (c, f)) @ back.T).tolist() for polygon in polygons for r in polygon]
        np.testing.assert_array_equal(even_odd(rings, mask.shape), mask)


@given(any_masks())
@few_examples
def test_filling_yolo_lines_gives_the_masks_that_are_not_empty(masks):
    lines = masks.to_yolo(class_id=7).splitlines()
    full = [mask for mask in masks.masks if mask.any()]
    for line, mask in zip(lines, full, strict=True):
        class_id, *numbers = line.split(" ")
        assert class_id == "7"
        shares = np.array(numbers, float).reshape(-1, 2)
        assert shares.min() >= 0
        assert shares.max() <= 1
        ring = np.rint(shares * mask.shape[::-1]).tolist()
        np.testing.assert_array_equal(even_odd([ring], mask.shape), mask)


@given(any_masks(), st.booleans())
@few_examples
def test_filling_labelme_shapes_gives_the_masks(masks, polygons):
    page = json.loads(json.dumps(masks.to_labelme("truck.jpg", label="cat", polygons=polygons)))
    height, width = masks.masks.shape[1:]
    assert (page["imagePath"], page["imageHeight"], page["imageWidth"]) == ("truck.jpg", height, width)
    painted = {object_id: np.zeros((height, width), bool) for object_id in masks.object_ids.tolist()}
    for shape in page["shapes"]:
        assert shape["label"] == "cat"
        into = painted[shape["group_id"]]
        if shape["shape_type"] == "polygon":
            into ^= even_odd([shape["points"]], (height, width))
        else:
            assert not polygons
            (x0, y0), (x1, y1) = np.array(shape["points"]).astype(int)
            into[y0 : y1 + 1, x0 : x1 + 1] |= np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    for object_id, mask in zip(masks.object_ids.tolist(), masks.masks, strict=True):
        np.testing.assert_array_equal(painted[object_id], mask)


@given(any_masks())
@few_examples
def test_filling_the_paths_of_an_svg_gives_the_masks(tmp_path, masks):
    masks.save(tmp_path / "masks.svg")
    height, width = masks.masks.shape[1:]
    svg = ElementTree.parse(tmp_path / "masks.svg").getroot()
    assert svg.get("viewBox") == f"0 0 {width} {height}"
    paths = {path.get("id"): path for path in svg}
    assert set(paths) == {f"mask-{i}" for i, area in enumerate(masks.areas) if area}
    sizes = [masks.areas[int(name.removeprefix("mask-"))] for name in paths]
    assert sizes == sorted(sizes, reverse=True)
    for name, path in paths.items():
        i = int(name.removeprefix("mask-"))
        assert path.get("fill-rule") == "evenodd"
        assert path.get("data-object") == str(masks.object_ids[i])
        assert bytes.fromhex(path.get("fill")[1:]) == colour_of(masks.object_ids[i]).tobytes()
        rings = []
        for step, x, y in re.findall(r"([MHV])(\d+)(?: (\d+))?", path.get("d")):
            if step == "M":
                rings.append([(int(x), int(y))])
            else:
                before = rings[-1][-1]
                rings[-1].append((int(x), before[1]) if step == "H" else (before[0], int(x)))
        np.testing.assert_array_equal(even_odd(rings, (height, width)), masks.masks[i])


def test_the_json_file_is_the_list_of_coco(three, tmp_path):
    three.save(tmp_path / "masks.json")
    assert json.loads((tmp_path / "masks.json").read_text()) == three.to_coco()


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json", ".svg"])
def test_every_format_accepts_any_name_no_masks_and_one_pixel(nothing, tmp_path, suffix):
    nothing.save(tmp_path / f"nada ñ 掩码{suffix}")
    dot = rectangles((0, 0, 1, 1), size_hw=(1, 1), object_ids=[300])
    dot.save(tmp_path / f"🐕{suffix.upper()}")
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    ("objects", "mode", "values"), [([0, 254], "P", [1, 255]), ([0, 255], "I;16", [1, 256]), ([3], "P", [4])]
)
def test_a_png_by_object_holds_object_ids_plus_1(tmp_path, objects, mode, values):
    masks = rectangles(*[(x, 0, x + 1, 6) for x in range(len(objects))], object_ids=objects)
    masks.save(tmp_path / "objects.png", by_object=True)
    image = Image.open(tmp_path / "objects.png")
    assert image.mode == mode
    assert np.unique(image).tolist() == [0, *values]
    if mode == "P":
        assert image.convert("RGB").getpixel((0, 0)) == tuple(colour_of(objects[0]))


@pytest.mark.parametrize(("object_id", "shown"), [(65535, "values from 65536 to 65536"), (-1, "values from 0 to 0")])
def test_object_ids_beyond_16_bits_are_refused(tmp_path, object_id, shown):
    with pytest.raises(ValueError, match=shown + " do not fit the 65535 values of a 16-bit PNG"):
        rectangles((0, 0, 1, 1), object_ids=[object_id]).save(tmp_path / "objects.png", by_object=True)
    assert os.listdir(tmp_path) == []


def test_by_object_is_for_png_only(three, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("by_object sets the pixels of a .png: it does not apply to 'a.svg'")
    ):
        three.save(tmp_path / "a.svg", by_object=True)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ((1, 0, 0, 0, 1), "expected 6 numbers a, b, c, d, e, f"),
        ((1, 0, 0, 0, float("nan"), 0), "a number of the transform is nan: expected a finite number"),
        ((1, 0, 0, 0, 10**400, 0), "expected a finite number"),
        ((1e308, 0, 1e308, 0, 1, 0), "maps pixels beyond the largest number"),
        ((1, 2, 0, 2, 4, 0), "maps all pixels to one line: expected rasterio's order"),
    ],
)
def test_a_malformed_transform_is_refused(three, transform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        three.to_geojson(transform)


def test_a_transform_can_be_rasterios_nine_numbers(three):
    assert three.to_geojson((2, 0, 1, 0, -2, 3, 0, 0, 1)) == three.to_geojson((2, 0, 1, 0, -2, 3))


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_the_error_for_a_missing_package_says_how_to_install_it(three, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"to_{package}\(\) needs the package {package}: pip install {package}"
    with pytest.raises(ModuleNotFoundError, match=message):
        getattr(three, f"to_{package}")()


def test_supervision_gets_boxes_masks_scores_and_object_ids(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    detections = three.to_supervision(class_id=4)
    np.testing.assert_array_equal(detections.xyxy, three.boxes)
    assert detections.mask is three.masks
    assert detections.confidence is three.iou_scores
    assert detections.tracker_id is three.object_ids
    assert detections.class_id.tolist() == [4, 4, 4]


def test_pandas_gets_a_row_for_each_mask(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    frame = three.to_pandas()
    assert list(frame) == ["object_id", "score", "area", "x0", "y0", "x1", "y1", "segmentation"]
    assert [frame[name][1] for name in ("object_id", "area", "x0", "y0", "x1", "y1")] == [7, 12, 1, 1, 4, 5]
    assert frame["segmentation"] == three.to_rle()


def test_the_detections_of_supervision_are_the_masks(three):
    supervision = pytest.importorskip("supervision")
    detections = three.to_supervision(class_id=4)
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.mask, three.masks)
    np.testing.assert_array_equal(detections.area, three.areas)
    np.testing.assert_array_equal(detections[detections.tracker_id == 2].xyxy, three[2:].boxes)
    assert len(Masks.from_coco(three.to_coco(), packed=True).to_supervision()) == 3
    assert len(three[[]].to_supervision()) == 0


def test_the_table_of_pandas_has_the_masks(three, nothing):
    pandas = pytest.importorskip("pandas")
    frame = three.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["area"].tolist() == three.areas.tolist()
    np.testing.assert_array_equal(frame[["x0", "y0", "x1", "y1"]], three.boxes)
    assert frame.sort_values("score").iloc[-1]["segmentation"] == three.to_rle()[1]
    assert len(nothing.to_pandas()) == 0


def closed_ring_area(ring):
    """Positive where a ring runs against the clock, y up."""
    x, y = np.array(ring).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
