"""Objects without prompts: found in some frames, tracked, and recognised."""

import copy
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video.test_tracking import CUP, HEIGHT, WIDTH, moving_square

import masklet
from masklet.engine import make_engine
from masklet.errors import ConfigError
from masklet.masks import encode_rle, mask_ious
from masklet.results import Masks
from masklet.segmenter import Segmenter
from masklet.video.frames import open_video

BOXES = [(4, 4, 30, 30), (40, 8, 70, 40), (50, 20, 60, 30)]


def masks_of(*boxes):
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Masks.from_rle(encode_rle(masks), (HEIGHT, WIDTH), np.full(len(masks), 0.9, "f4"), np.arange(len(masks)))


@pytest.fixture
def finds(monkeypatch):
    """Sets what is found in each searched frame, since the network is random; returns the arguments of the search."""

    def finds(*of_frames):
        boxes, given = iter(of_frames), []

        def find(engine, processor, image, options, *, features, packed):
            assert packed
            given.append((image, options, features))
            return masks_of(*next(boxes))

        monkeypatch.setattr("masklet.video.discovery.everything", find)
        return given

    return finds


@pytest.fixture
def video():
    return moving_square(9)


def test_objects_are_found_in_every_nth_frame_and_keep_their_ids(sam, video, finds):
    given = finds(BOXES[:2], [], BOXES)
    session = sam.video(video)
    results = list(session.everything(every=4, same_iou=0.99, min_object=0, points_per_side=5))
    assert [r.index for r in results] == list(range(9))
    assert [r.object_ids for r in results] == 8 * [(1, 2)] + [(1, 2, 3, 4, 5)]
    assert [one[1].points_per_side for one in given] == [5, 5, 5]
    for result in results:
        np.testing.assert_array_equal(result.masks.object_ids, np.arange(len(result.object_ids)))
        np.testing.assert_array_equal(result.masks.image, video[result.index])
    assert (
        mask_ious(results[0].masks.masks, masks_of(*BOXES[:2]).masks).diagonal().min() > 0.7
    )  # at the network's input


def test_frames_are_encoded_once_and_found_objects_are_tracked_like_prompted_ones(sam, video, finds, monkeypatch):
    prompted = sam.video(video)
    for object_id, mask in enumerate(masks_of(*BOXES).masks, start=1):
        prompted.prompt(0, object_id, mask=mask)
    expected = [r.masks.masks for r in prompted.track()]
    finds(BOXES, [], [])
    encoded, encode = [], sam.engine.encode
    monkeypatch.setattr(sam.engine, "encode", lambda pixels: encoded.append(1) or encode(pixels))
    session = sam.video(video)
    for result, masks in zip(session.everything(every=4), expected, strict=True):
        np.testing.assert_array_equal(result.masks.masks, masks)
    assert len(encoded) == len(video)
    assert session.tracked_frames == tuple(range(9))


def test_an_object_that_is_found_again_is_recognised(sam, video, finds):
    finds(BOXES[:1], [])
    first = [r.masks.masks for r in sam.video(video).everything(every=8)]
    y, x = np.nonzero(first[8][0])
    again = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    overlap = mask_ious(masks_of(again).masks, first[8])[0, 0]
    for same_iou, object_ids in ((overlap - 0.01, (1,)), (overlap + 0.01, (1, 2))):
        finds(BOXES[:1], [again])
        last = list(sam.video(video).everything(every=8, same_iou=min(1, same_iou), min_object=0))[-1]
        assert last.object_ids == object_ids


def test_a_frame_gives_an_object_once_and_small_ones_not_at_all(sam, video, finds):
    finds([BOXES[1], (40, 8, 70, 39), BOXES[2], (1, 1, 5, 5)])
    (result,) = sam.video(video[:1]).everything(min_object=17)
    assert result.object_ids == (1, 2)


def test_prompted_objects_are_tracked_too_and_their_ids_are_not_used(sam, video, finds):
    alone = sam.video(video)
    alone.prompt(2, 1, **CUP)
    expected = [r.masks.masks for r in alone.track(start=0)]
    finds(BOXES[1:2], [], [])
    session = sam.video(video)
    session.prompt(2, 1, **CUP)
    for result, masks in zip(session.everything(every=4, same_iou=1, patience=1), expected, strict=True):
        assert result.object_ids == (1, 2)
        np.testing.assert_array_equal(result.masks.masks[:1], masks)


def test_ids_and_numbers_are_not_used_twice(sam, video, finds):
    finds(BOXES[:2], BOXES[2:], [])
    session = sam.video(video)
    for result in session.everything(every=4, same_iou=1, min_object=0):
        if result.index == 2:
            session.remove(2)
    assert result.object_ids == (1, 3)
    assert result.masks.object_ids.tolist() == [0, 2]


@pytest.fixture
def blind(sam):
    """A network for which no object is visible after its prompt."""
    model = copy.deepcopy(sam.model)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-100.0)
    return Segmenter(make_engine(model), sam.image_processor)


def test_an_object_that_is_out_of_sight_for_long_is_not_tracked(blind, video, finds):
    finds(BOXES[:1], BOXES[:1], [])
    session = blind.video(video)
    results = list(session.everything(every=4, patience=2))
    assert [r.object_ids for r in results] == 3 * [(1,)] + [(), (2,), (2,), (2,), (), ()]
    assert not session._tracks.objects[1].bank.maps
    assert session.object_ids == (1, 2)  # its results stay


def test_a_prompt_brings_a_lost_object_back(blind, video, finds):
    session = blind.video(video)
    for box, frame in zip(BOXES, (0, 6), strict=False):
        session.prompt(frame, "cup", mask=masks_of(box).masks[0])
    finds([], [], [])
    results = list(session.everything(every=4, patience=1))
    tracked = [r.index for r in results if "cup" in r.object_ids]
    assert tracked == [0, 1, 6, 7]
    assert results[6].visible.all()


def test_a_prompt_brings_a_lost_object_back_in_a_video_that_is_read_once(blind, finds):
    finds(BOXES[:1], [])
    session = blind.video(iter(moving_square(9)))
    tracked = []
    for result in session.everything(every=6, patience=1):
        tracked.append(result.object_ids)
        if result.index == 4:
            session.prompt(4, 1, mask=masks_of(BOXES[1]).masks[0])
    assert tracked == [(1,), (1,), (), (), (), (1,), (), (), ()]


def test_found_objects_can_be_corrected_written_and_tracked_on(sam, video, finds, tmp_path):
    finds(BOXES[:2], [], [])
    session = sam.video(video)
    for result in session.everything(every=4):
        if result.index == 3:
            break
    rest = list(session.resume_tracking())
    assert [r.index for r in rest] == [4, 5, 6, 7, 8]
    session.prompt(5, 2, points=[(60, 30), (10, 10, 0)])
    session.write(tmp_path / "masks")
    assert len(list((tmp_path / "masks").iterdir())) == 9
    session.save(tmp_path / "session.masklet")
    assert sam.resume(tmp_path / "session.masklet", video).object_ids == (1, 2)


def test_a_video_that_is_read_once_suffices_and_at_most_two_frames_are_held(sam, finds):
    finds(*[BOXES[:1]] * 4)
    alive, session = weakref.WeakSet(), sam.video(iter(moving_square(20)))
    for result in session.everything(every=5, same_iou=0):
        alive.add(result)
        assert len(alive) <= 2
        assert len(session._encoded) <= 2
        assert result.object_ids == (1,)
    assert result.index == 19


def test_a_video_without_any_object_gives_empty_results(sam, video):
    results = list(sam.video(video).everything(every=3, points_per_side=2, iou_threshold=1))
    assert [r.object_ids for r in results] == 9 * [()]
    assert results[0].masks.masks.shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0: expected a whole number, 1 or more"),
        ({"every": "3"}, "every is '3': expected a whole number, 1 or more"),
        ({"every": 1.5}, "every is 1.5: expected a whole number, 1 or more"),
        ({"same_iou": 1.5}, "same_iou is 1.5: expected a number, 0 to 1"),
        ({"min_object": -1}, "min_object is -1: expected a whole number, 0 or more"),
        ({"patience": -1}, "patience is -1: expected a whole number, 0 or more"),
        (
            {"tile": 64},
            "there is no option tile: expected every, same_iou, min_object, patience, packed, text, detector, "
            "detection_threshold, points_per_side, point_grids, crops, "
            "crop_overlap, crop_points_divisor, iou_threshold, stability_threshold, stability_offset, box_nms, "
            "crop_nms, min_area, refine, candidates, mask_threshold",
        ),
        ({"iou_threshold": 2}, "iou_threshold is 2: expected a number, 0 to 1"),
    ],
)
def test_invalid_options_are_refused_at_the_call(sam, video, options, message):
    with pytest.raises(ConfigError) as caught:
        sam.video(video).everything(**options)
    assert str(caught.value) == message


@pytest.mark.slow
def test_in_a_still_video_the_embedded_model_finds_few_objects_twice():
    image = np.array(
        Image.fromarray(open_video(Path(__file__).parents[2] / "examples/videos/dog.mp4")[0].image).resize((240, 136))
    )
    options = {"points_per_side": 6, "iou_threshold": 0.3, "stability_threshold": 0.25}
    results = list(masklet.load(device="cpu").video(3 * [image]).everything(every=2, **options))
    first, last = len(results[0].object_ids), len(results[2].object_ids)
    assert first > 2
    assert last - first < first / 2
