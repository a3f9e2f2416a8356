"""Tracks for CVAT, MOT and MOTS."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from mask_results import even_odd
from video.test_outputs import result_of
from video.test_tracking import CUP, moving_square

from masklet.errors import PromptError, VideoError
from masklet.masks import decode_rle
from masklet.results import Masks
from masklet.video.exporters import write_tracks

SIZE_HW = (6, 8)


def mask_of(*rows):
    return np.array([[pixel == "#" for pixel in row.ljust(SIZE_HW[1], ".")] for row in rows])


NOTHING = mask_of(*[""] * 6)
BOX = mask_of("", ".###", ".###", "", "", "")
RING = mask_of("", "...###", "...#.#", "...###", ".......#", "")
DOT = mask_of("#", "", "", "", "", "")
FRAMES = {
    2: (NOTHING, DOT),
    3: (BOX, DOT),
    4: (RING, DOT),
    5: (NOTHING, DOT),
    9: (BOX, NOTHING),
    10: (BOX, NOTHING),
}
"""Masks of the objects "cat" and 7 by frame."""


def results(frames=FRAMES):
    return [result_of(np.array(masks), index=index, object_ids=("cat", 7)) for index, masks in frames.items()]


CLASSES = {"cat": "animal & co", 7: "ding <ö>"}


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_mot_has_a_line_for_each_box(tmp_path):
    write_tracks(tmp_path / "gt.txt", results(), "mot", categories=CLASSES, names=["other", *CLASSES.values()])
    assert lines_of(tmp_path / "gt.txt") == [
        "3,2,0,0,1,1,0.5000,3,1",
        "4,1,1,1,3,2,0.5000,2,1",
        "4,2,0,0,1,1,0.5000,3,1",
        "5,1,3,1,5,4,0.5000,2,1",
        "5,2,0,0,1,1,0.5000,3,1",
        "6,2,0,0,1,1,0.5000,3,1",
        "10,1,1,1,3,2,0.5000,2,1",
        "11,1,1,1,3,2,0.5000,2,1",
    ]


def test_mots_has_the_masks_without_overlap(tmp_path):
    full = np.ones(SIZE_HW, bool)
    logits = np.stack([np.where(DOT, -1, 3), np.ones(SIZE_HW)]).astype(np.float32)
    frames = [result_of(np.stack([full, full]), logits, 0), *results()]
    frames[0] = result_of(np.stack([full, full]), logits, 0, object_ids=("cat", 7))
    write_tracks(tmp_path / "mots.txt", frames, "mots", categories=CLASSES)
    read = [line.split(" ") for line in lines_of(tmp_path / "mots.txt")]
    masks = decode_rle([{"size": [int(height), int(width)], "counts": counts} for *_, height, width, counts in read])
    expected = [(1, 1, full & ~DOT), (1, 2, DOT)]
    expected += [(index + 1, 1 + n, m) for index, both in FRAMES.items() for n, m in enumerate(both) if m.any()]
    for (frame, object_id, class_id, *_), mask, (index, number, truth) in zip(read, masks, expected, strict=True):
        assert (int(frame), int(class_id)) == (index, number)
        assert int(object_id) == 1000 * number + number
        np.testing.assert_array_equal(mask, truth)


def tracks_of(path):
    """For each object its label, and for each keyframe whether it is outside, and its points."""
    root = ElementTree.parse(path).getroot()
    return [
        (
            track.get("label"),
            {
                int(shape.get("frame")): (
                    shape.get("outside") == "1",
                    [tuple(map(float, point.split(","))) for point in shape.get("points").split(";")],
                )
                for shape in track
            },
        )
        for track in root.iterfind("track")
    ]


def test_cvat_has_a_track_for_each_object_that_ends_where_it_disappears(tmp_path):
    write_tracks(tmp_path / "tracks.xml", results(), categories=CLASSES, count=20)
    root = ElementTree.parse(tmp_path / "tracks.xml").getroot()
    assert root.find("version").text == "1.1"
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == list(CLASSES.values())
    size = root.find("meta/task/original_size")
    assert tuple(int(size.find(side).text) for side in ("height", "width")) == SIZE_HW
    (cat, shapes), (thing, others) = tracks_of(tmp_path / "tracks.xml")
    assert (cat, thing) == tuple(CLASSES.values())
    outside = {frame: is_outside for frame, (is_outside, _) in shapes.items()}
    assert outside == {3: False, 4: False, 5: True, 9: False, 10: False, 11: True}
    assert {frame: is_outside for frame, (is_outside, _) in others.items()} == {
        2: False,
        3: False,
        4: False,
        5: False,
        6: True,  # frames 6 to 8 were not tracked
    }
    for frame, (is_outside, points) in shapes.items():
        if not is_outside:
            np.testing.assert_array_equal(even_odd([points], SIZE_HW), FRAMES[frame][0])


@pytest.mark.parametrize(("count", "last"), [(11, 10), (12, 11), (None, 10)])
def test_a_track_is_ended_only_within_the_video(tmp_path, count, last):
    write_tracks(tmp_path / "tracks.xml", results(), count=count)
    (_, shapes), _ = tracks_of(tmp_path / "tracks.xml")
    assert max(shapes) == last


def test_what_is_between_every_nth_frame_is_left_to_cvat(tmp_path):
    frames = {index: (BOX, NOTHING) for index in (0, 3, 6, 12)}
    write_tracks(tmp_path / "tracks.xml", results(frames), every=3)
    ((_, shapes),) = tracks_of(tmp_path / "tracks.xml")
    outside = {frame: is_outside for frame, (is_outside, _) in shapes.items()}
    assert outside == {0: False, 3: False, 6: False, 9: True, 12: False}


def test_a_track_of_cvat_ends_where_its_object_was_not_tracked_on(tmp_path):
    frames = {index: (BOX, DOT) if index < 2 else (BOX,) for index in range(4)}
    made = [result_of(np.array(masks), index=index) for index, masks in frames.items()]
    write_tracks(tmp_path / "tracks.xml", made, count=4)
    outside = [
        {frame: is_outside for frame, (is_outside, _) in shapes.items()}
        for _, shapes in tracks_of(tmp_path / "tracks.xml")
    ]
    assert outside == [dict.fromkeys(range(4), False), {0: False, 1: False, 2: True}]


def test_polygons_of_cvat_have_fewer_points_with_a_tolerance(tmp_path):
    stairs = np.tri(6, 8, dtype=bool)
    write_tracks(tmp_path / "tracks.xml", results({0: (stairs, NOTHING)}), tolerance=0.75)
    ((_, shapes),) = tracks_of(tmp_path / "tracks.xml")
    assert shapes[0][1] == [(0, 0), (6, 6), (0, 6)]


def test_frames_without_objects_make_empty_files(tmp_path):
    for name, format in (("a.xml", "cvat"), ("a.txt", "mot"), ("b.txt", "mots")):
        write_tracks(tmp_path / name, results({4: (NOTHING, NOTHING)}), format, categories=CLASSES)
    assert tracks_of(tmp_path / "a.xml") == []
    assert lines_of(tmp_path / "a.txt") == lines_of(tmp_path / "b.txt") == []


@pytest.mark.parametrize(
    ("name", "format", "options", "error", "message"),
    [
        ("a.txt", None, {}, VideoError, "format=None for"),
        ("a.txt", "cvat", {}, VideoError, "expected a name that ends in .xml"),
        ("a.xml", "mot", {}, VideoError, "expected a name that ends in .txt"),
        ("a.xml", "coco", {}, VideoError, "format='coco' for"),
        ("a.txt", "mot", {"tolerance": 1}, ValueError, "tolerance=1 simplifies polygons, and 'mot' has none"),
        ("a.xml", None, {"tolerance": -1}, ValueError, "finite number of pixels"),
        ("a.xml", None, {"categories": ["a", "b"]}, ValueError, "expected one name for all objects, or {object id:"),
        ("a.xml", None, {"categories": {7: "a"}}, ValueError, "no class for object 'cat'"),
        ("a.xml", None, {"categories": "a\0"}, ValueError, "which XML cannot hold"),
        ("a.txt", "mot", {"categories": "a", "names": ["b"]}, ValueError, "class 'a' is not among names=['b']"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, name, format, options, error, message):
    (tmp_path / name).write_text("old")
    with pytest.raises(error, match=re.escape(message)):
        write_tracks(tmp_path / name, results(), format, **options)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_frames_come_in_order_with_one_size(tmp_path):
    first, second, *_ = results()
    with pytest.raises(VideoError, match="frame 2 came after frame 3: expected the video's order"):
        write_tracks(tmp_path / "a.xml", [second, first])
    other = result_of(np.ones((1, 3, 4), bool), index=9)
    with pytest.raises(VideoError, match="frame 9 differs in size from frame 2"):
        write_tracks(tmp_path / "a.txt", [first, other], "mot")
    with pytest.raises(VideoError, match="no tracks to write"):
        write_tracks(tmp_path / "a.txt", [], "mot")
    assert list(tmp_path.iterdir()) == []


def packed(result):
    masks = Masks.from_coco(result.masks.to_coco(), packed=True)
    return type(result)(result.index, result.time, result.object_ids, masks, result.object_scores)


def test_packed_masks_give_the_same_files_but_mots_needs_logits(tmp_path):
    for name, format in (("a.xml", "cvat"), ("a.txt", "mot")):
        write_tracks(tmp_path / name, results(), format)
        write_tracks(tmp_path / f"packed-{name}", map(packed, results()), format)
        assert lines_of(tmp_path / name) == lines_of(tmp_path / f"packed-{name}")
    with pytest.raises(VideoError, match="packed masks have no logits"):
        write_tracks(tmp_path / "b.txt", map(packed, results()), "mots")


def test_a_session_exports_what_was_tracked(sam, tmp_path):
    session = sam.video(moving_square(7))
    session.prompt(1, "cup", **CUP)
    with pytest.raises(PromptError, match="nothing to export: track first"):
        session.export(tmp_path / "tracks.xml")
    tracked = list(session.track(end=5, every=2))
    session.export(tmp_path / "tracks.xml", categories={"cup": "mug"})
    ((label, shapes),) = tracks_of(tmp_path / "tracks.xml")
    assert label == "mug"
    for result in tracked:
        is_outside, points = shapes.pop(result.index)
        assert not is_outside
        np.testing.assert_array_equal(even_odd([points], result.masks.size_hw), result.masks.masks[0])
    assert shapes == {}  # the next step would be after the video's end
    session.export(tmp_path / "tracks.txt", "mot")
    boxes = [tuple(map(float, line.split(",")[2:6])) for line in lines_of(tmp_path / "tracks.txt")]
    np.testing.assert_array_equal(boxes, [one["bbox"] for result in tracked for one in result.masks.to_coco()])
