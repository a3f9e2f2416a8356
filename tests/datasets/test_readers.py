"""Data sets on disk: what each reader returns, and its errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from masklet.datasets import read_scenes
from masklet.datasets.coco import read_coco, read_sa1b
from masklet.datasets.folder import read_folder
from masklet.datasets.scenes import Scene, split_by_name
from masklet.datasets.videos import read_sav, read_videos, sav_stride
from masklet.errors import DataError, ImageError, VideoError
from masklet.masks import encode_rle
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data_config import DataConfig
from masklet.training.run_data import open_data
from masklet.video.writer import VideoWriter

HEIGHT, WIDTH = 40, 60


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def square(x, y, side=12):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def labels_of(*masks):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    return labels


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        save(image(index), tmp_path / "images" / f"p{index}.png")
        save(labels_of(square(2, 3), square(30, 20)), tmp_path / "masks" / f"p{index}.png")
    return tmp_path


def masks_of(scene, frame=0):
    read = scene.frame(frame)
    return {number: read.mask(number) for number in read.masks}


def test_a_folder_of_images_and_label_maps(folder):
    scenes = read_folder(folder)
    assert [scene.name for scene in scenes] == ["p0", "p1", "p2"]
    assert np.array_equal(scenes[1].frame(0).image, image(1))
    masks = masks_of(scenes[1])
    assert np.array_equal(masks[1], square(2, 3))
    assert np.array_equal(masks[2], square(30, 20))


def test_an_image_may_have_a_folder_of_masks_that_overlap(folder):
    (folder / "masks/p0.png").unlink()
    for number, mask in enumerate([square(0, 0), square(5, 5)]):
        save(mask.astype(np.uint8) * 255, folder / "masks/p0" / f"{number}.png")
    masks = masks_of(read_folder(folder)[0])
    assert np.array_equal(masks[1], square(0, 0))
    assert np.array_equal(masks[2], square(5, 5))


def test_a_mask_may_be_black_and_white_and_in_label_maps_white_is_unknown(folder):
    alone = labels_of(square(2, 3)) * np.uint8(255)
    both = labels_of(square(2, 3))
    both[:, 40:] = 255
    save(alone, folder / "masks/p0.png")
    save(both, folder / "masks/p1.png")
    first, second, _ = read_folder(folder)
    assert np.array_equal(masks_of(first)[1], square(2, 3))
    assert list(masks_of(second)) == [1]


def test_videos_may_be_black_and_white_as_those_of_davis_2016(tmp_path):
    for frame in range(3):
        save(image(frame), tmp_path / f"JPEGImages/dog/{frame}.png")
        save(square(2 * frame, 3) * np.uint8(255), tmp_path / f"Annotations/dog/{frame}.png")
    (scene,) = read_videos(tmp_path)
    assert np.array_equal(masks_of(scene, 2)[1], square(4, 3))


def test_connected_components_may_be_objects(folder):
    save(labels_of(square(2, 3) | square(30, 20)), folder / "masks/p0.png")
    assert len(masks_of(read_folder(folder)[0])) == 1
    parts = masks_of(read_folder(folder, split_masks=True)[0])
    assert sorted(mask.sum() for mask in parts.values()) == [144, 144]
    assert not (parts[1] & parts[2]).any()
    save(labels_of(square(2, 3) | square(30, 20)).astype(np.uint16) * 300, folder / "masks/p0.png")
    assert len(masks_of(read_folder(folder, split_masks=True)[0])) == 2


def test_sixteen_bit_and_grey_in_colour_masks_are_read(folder):
    save(labels_of(square(2, 3)).astype(np.uint16) * 300, folder / "masks/p0.png")
    save(np.stack([labels_of(square(2, 3))] * 3, -1), folder / "masks/p1.png")
    first, second, _ = read_folder(folder)
    assert list(masks_of(first)) == [300]
    assert list(masks_of(second)) == [1]


def test_folders_of_another_layout_are_explained(folder, tmp_path_factory):
    with pytest.raises(DataError, match=r"no images in .*images: expected images/NAME.jpg and masks/NAME.png"):
        read_folder(tmp_path_factory.mktemp("empty"))
    (folder / "masks/p1.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images in .* have no masks, for example p1.png"):
        read_folder(folder)


def test_masks_of_another_size_coloured_or_damaged_are_named(folder):
    save(labels_of(square(2, 3))[:30], folder / "masks/p0.png")
    save(image(), folder / "masks/p1.png")
    (folder / "masks/p2.png").write_bytes(b"no image")
    first, second, third = read_folder(folder)
    with pytest.raises(DataError, match="p0.png: the mask of object 1 is 60×30 pixels, but the image is 60×40"):
        masks_of(first)
    with pytest.raises(ImageError, match="p1.png is an image in colours"):
        second.frame(0)
    with pytest.raises(ImageError, match="p2.png is not an image"):
        third.frame(0)


def test_an_image_that_cannot_be_read_is_named(folder):
    whole = (folder / "images/p0.png").read_bytes()
    (folder / "images/p0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="p0.png is truncated"):
        read_folder(folder)[0].frame(0)


def coco_content(**changes):
    outline = [[2, 3, 14, 3, 14, 15, 2, 15]]
    packed = encode_rle(square(30, 20)[None])[0]
    listed = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 5, HEIGHT * (WIDTH - 5)]}
    annotations = [
        {"id": 7, "image_id": 1, "segmentation": outline, "iscrowd": 0},
        {"id": 8, "image_id": 1, "segmentation": packed, "iscrowd": 0},
        {"id": 9, "image_id": 1, "segmentation": listed, "iscrowd": 0},
        {"id": 10, "image_id": 1, "segmentation": listed, "iscrowd": 1},
        {"id": 11, "image_id": 2, "segmentation": [], "iscrowd": 0},
        {"id": 12, "image_id": 2, "bbox": [1, 2, 3, 4]},
    ]
    images = [{"id": n, "file_name": f"p{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2)]
    return {"images": images, "annotations": annotations} | changes


def test_coco_may_mix_polygons_and_both_kinds_of_run_lengths_and_crowds_are_skipped(tmp_path):
    save(image(), tmp_path / "p1.png")
    (tmp_path / "all.json").write_text(json.dumps(coco_content()))
    (scene,) = read_coco(tmp_path, tmp_path / "all.json")
    masks = masks_of(scene)
    assert len(masks) == 3
    assert np.array_equal(masks[1], square(2, 3))
    assert np.array_equal(masks[2], square(30, 20))
    assert masks[3][:, :5].all()
    assert not masks[3][:, 5:].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "is not COCO instances"),
        ([], "is not COCO instances"),
        (coco_content(annotations=[]), "has no objects: 2 images, but no segmentations"),
        (
            coco_content(annotations=[{"id": 7, "image_id": 77, "segmentation": [[2, 3, 14, 3, 14, 15]]}]),
            "all.json: annotation 7 is of image 77, which is not among its 2 images",
        ),
        *(
            (
                coco_content(
                    images=[{"id": n, "file_name": f"p{n}.png", "height": side, "width": WIDTH} for n in (1, 2)]
                ),
                r"all.json: the size of p1.png is .*: expected \(height, width\), whole numbers from 1",
            )
            for side in (0, -4, "x", 10**12)  # pycocotools would end the process
        ),
    ],
)
def test_json_that_is_not_coco_is_explained(tmp_path, content, message):
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path, tmp_path / "all.json")


def test_json_that_is_none_is_explained(tmp_path):
    (tmp_path / "all.json").write_text("{")
    with pytest.raises(DataError, match="all.json is not JSON"):
        read_coco(tmp_path, tmp_path / "all.json")
    with pytest.raises(DataError, match="cannot read .*none.json: No such file"):
        read_coco(tmp_path, tmp_path / "none.json")


def test_a_segmentation_that_makes_no_sense_is_named(tmp_path):
    save(image(), tmp_path / "p1.png")
    bad = [{"id": 7, "image_id": 1, "segmentation": [[1, 2, 3]]}]
    (tmp_path / "all.json").write_text(json.dumps(coco_content(annotations=bad)))
    with pytest.raises(DataError, match="all.json: annotation 7 has the segmentation"):
        masks_of(read_coco(tmp_path, tmp_path / "all.json")[0])
    bad[0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [-5, 3]}
    (tmp_path / "all.json").write_text(json.dumps(coco_content(annotations=bad)))
    with pytest.raises(DataError, match="all.json: annotation 7 .*run lengths"):
        masks_of(read_coco(tmp_path, tmp_path / "all.json")[0])


def test_sa1b_has_a_json_beside_each_image(tmp_path):
    content = {
        "image": {"image_id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "sa_1.jpg"},
        "annotations": [{"segmentation": run} for run in encode_rle(np.stack([square(2, 3), square(5, 5)]))],
    }
    save(image(), tmp_path / "part/sa_1.jpg")
    (tmp_path / "part/sa_1.json").write_text(json.dumps(content))
    (tmp_path / "part/other.json").write_text("{}")
    (scene,) = read_sa1b(tmp_path)
    masks = masks_of(scene)
    assert scene.name == "sa_1"
    assert np.array_equal(masks[1], square(2, 3))
    assert np.array_equal(masks[2], square(5, 5))
    (tmp_path / "part/sa_1.json").write_text("{}")
    with pytest.raises(DataError, match="sa_1.json is not in the format of SA-1B"):
        scene.frame(0)
    with pytest.raises(DataError, match="no images of SA-1B"):
        read_sa1b(tmp_path / "nowhere")


@pytest.mark.parametrize("above", ["", "480p"])
def test_videos_of_davis_and_youtube_vos(tmp_path, above):
    for frame in range(6):
        save(image(frame), tmp_path / "JPEGImages" / above / "dog" / f"{frame:05}.png")
        if frame % 2 == 0:
            labels = labels_of(square(frame, 3), square(30, 20) if frame else square(0, 0, 0))
            labels[-1] = 255
            save(labels, tmp_path / "Annotations" / above / "dog" / f"{frame:05}.png")
    (scene,) = read_videos(tmp_path)
    assert (scene.name, scene.count()) == ("dog", 3)
    assert list(masks_of(scene, 0)) == [1]
    assert np.array_equal(scene.frame(1).image, image(2))
    assert np.array_equal(masks_of(scene, 2)[1], square(4, 3))
    assert list(masks_of(scene, 2)) == [1, 2]


def test_videos_without_annotations_are_named(tmp_path):
    with pytest.raises(VideoError, match="no videos in .*JPEGImages: expected JPEGImages/VIDEO"):
        read_videos(tmp_path)
    save(image(), tmp_path / "JPEGImages/dog/1.png")
    with pytest.raises(VideoError, match="video dog has no annotations in .*: expected JPEGImages/VIDEO"):
        read_videos(tmp_path)


def test_videos_of_sa_v_show_every_fourth_frame(tmp_path):
    with VideoWriter(tmp_path / "sav_1.mp4", fps=24) as video:
        for frame in range(12):
            video.write(np.full((HEIGHT, WIDTH, 3), 20 * frame, np.uint8))
    first, second = (encode_rle(np.stack([square(x, 3), square(30, 20)])) for x in (2, 6))
    manual = {"masklet": [first, second, [None, second[1]]], "masklet_id": [0, 1]}
    auto = {"masklet": [first[1:], second[1:], second[1:]], "masklet_id": [0]}
    (tmp_path / "sav_1_manual.json").write_text(json.dumps(manual))
    (tmp_path / "sav_1_auto.json").write_text(json.dumps(auto))
    (scene,) = read_sav(tmp_path)
    assert (scene.name, scene.count()) == ("sav_1", 3)
    assert abs(int(scene.frame(1).image.mean()) - 80) < 5
    assert np.array_equal(masks_of(scene, 1)[1], square(6, 3))
    assert list(masks_of(scene, 2)) == [2, 3]  # the first is absent, and the others keep their numbers
    with pytest.raises(DataError, match="no videos of SA-V"):
        read_sav(tmp_path / "nowhere")


@pytest.mark.parametrize("frames", range(1, 26))
def test_short_videos_of_sa_v_too_are_annotated_every_fourth_frame(frames):
    assert sav_stride(frames, len(range(0, frames, 4))) == 4


@pytest.mark.parametrize(
    ("frames", "annotated", "stride"), [(10, 10, 1), (10, 6, 1), (10, 5, 2), (100, 34, 3), (3, 9, 1)]
)
def test_the_stride_of_other_videos_follows_from_their_counts(frames, annotated, stride):
    assert sav_stride(frames, annotated) == stride


def test_json_of_another_format_is_named(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as video:
        video.write(image())
    (tmp_path / "a_auto.json").write_text("{}")
    (scene,) = read_sav(tmp_path)
    with pytest.raises(DataError, match="a_auto.json is not in the format of SA-V"):
        scene.count()


def scenes(*names):
    return [Scene(name, lambda frame: None) for name in names]


def test_a_split_is_by_name_and_does_not_depend_on_other_scenes():
    names = [f"image {index}" for index in range(400)]
    kept, held_out = split_by_name(scenes(*names), 0.25)
    assert len(kept) + len(held_out) == 400
    assert 70 < len(held_out) < 130
    fewer_kept, fewer_held_out = split_by_name(scenes(*names[100:300]), 0.25)
    assert {s.name for s in fewer_held_out} <= {s.name for s in held_out}
    assert {s.name for s in fewer_kept} <= {s.name for s in kept}


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (1, 0.9999999, 0), (5, 0.0, 0)]
)
def test_both_sides_of_a_small_split_have_something(count, share, held_out):
    one, other = split_by_name(scenes(*map(str, range(count))), share)
    assert (len(one), len(other)) == (count - held_out, held_out)


def test_images_of_the_same_name_in_two_folders_are_two(tmp_path):
    images = [{"id": n, "file_name": f"{part}/p.png", "height": HEIGHT, "width": WIDTH} for n, part in enumerate("ab")]
    outline = [[2, 3, 14, 3, 14, 15, 2, 15]]
    annotations = [{"id": n, "image_id": n, "segmentation": outline} for n in range(2)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    scenes = read_coco(tmp_path, tmp_path / "all.json")
    assert [len(side) for side in split_by_name(scenes, 0.5)] == [1, 1]


def test_validation_may_have_a_folder_of_its_own(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other / "val")
    data = DataConfig(
        layout="folder", path=str(folder), validation=DataConfig(layout="folder", path=str(other / "val"))
    )
    examples, validation = open_data(TrainingConfig(data=data, stages=(Stage(steps=1),)))
    assert (
        [s.name for s in examples.of_images.data_sets[0].scenes] == [s.name for s in validation] == ["p0", "p1", "p2"]
    )


def test_files_that_are_missing_are_counted_before_the_run(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(coco_content()))
    with pytest.raises(DataError, match="1 files of the data are missing: .*p1.png"):
        read_scenes("coco", tmp_path, annotations=tmp_path / "all.json")


def test_crowds_of_run_lengths_do_not_have_to_be_decodable(tmp_path):
    save(image(), tmp_path / "p1.png")
    crowd = {"id": 1, "image_id": 1, "iscrowd": 1, "segmentation": {"size": [1, 1], "counts": "broken"}}
    content = coco_content()
    content["annotations"].append(crowd)
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert len(masks_of(read_coco(tmp_path, tmp_path / "all.json")[0])) == 3
