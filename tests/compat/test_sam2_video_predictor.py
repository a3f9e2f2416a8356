"""Meta's video and camera predictors: triples, states, errors; and that the tracker behind them is ours."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch_settings import default_device, default_dtype

from masklet.compat.sam2.build_sam import read_overrides
from masklet.compat.sam2.sam2_camera_predictor import SAM2CameraPredictor
from masklet.compat.sam2.sam2_video_predictor import SAM2VideoPredictor
from masklet.errors import ImageError, PromptError, VideoError
from masklet.processing import ImageProcessor

HW, FRAMES = (48, 80), 6
BOX, OTHER = np.array([20, 10, 50, 30], np.float32), np.array([5, 5, 30, 40], np.float32)


@pytest.fixture(scope="module")
def frames(image):
    return [np.roll(image, 3 * i, axis=1) for i in range(FRAMES)]


@pytest.fixture(scope="module")
def predictor(sam):
    return SAM2VideoPredictor(sam.model, ImageProcessor(64))


@pytest.fixture
def state(predictor, frames):
    return predictor.init_state(frames)


def test_a_prompt_returns_all_objects_of_the_frame(predictor, state):
    frame, ids, logits = predictor.add_new_points_or_box(state, 0, 7, box=BOX)
    assert (frame, ids) == (0, [7])
    assert logits.shape == (1, 1, *HW)
    assert logits.dtype == torch.float32
    frame, ids, logits = predictor.add_new_points(state, frame_idx=2, obj_id="b", points=[[35, 20]], labels=[1])
    assert (frame, ids) == (2, [7, "b"])
    assert logits.shape == (2, 1, *HW)
    assert (logits[0] == -1024).all()  # no result in this frame
    assert (logits[1] > -1024).all()


def test_masks_are_taken_as_they_are(predictor, state):
    mask = np.zeros(HW, bool)
    mask[10:30, 20:50] = True
    _, _, logits = predictor.add_new_mask(state, 1, 3, torch.from_numpy(mask))
    assert ((logits[0, 0].numpy() > 0) == mask).mean() > 0.97
    with pytest.raises(PromptError, match="expected .* the video's"):
        predictor.add_new_mask(state, 1, 3, np.zeros((5, 5), bool))


def test_propagation_is_that_of_a_session(predictor, state, sam, frames):
    predictor.add_new_points_or_box(state, 1, 1, box=BOX)
    predictor.add_new_points_or_box(state, 1, 2, points=[[10, 40], [40, 10]], labels=[1, 0])
    session = sam.video(frames, max_prompted=None)
    session.prompt(1, 1, box=BOX)
    session.prompt(1, 2, points=[(10, 40), (40, 10, 0)])
    for (frame, ids, logits), expected in zip(predictor.propagate_in_video(state), session.track(), strict=True):
        assert frame == expected.index
        assert ids == list(expected.object_ids)
        assert logits.shape == (2, 1, *HW)
        assert 0.05 < (logits > 0).float().mean() < 0.95
        np.testing.assert_array_equal(logits[:, 0].numpy() > 0, expected.masks.masks)


@pytest.mark.parametrize(
    ("arguments", "visited"),
    [
        ({}, [2, 3, 4, 5]),
        ({"start_frame_idx": 1}, [1, 2, 3, 4, 5]),
        ({"max_frame_num_to_track": 2}, [2, 3, 4]),  # through start + max
        ({"start_frame_idx": 4, "max_frame_num_to_track": 9}, [4, 5]),
        ({"reverse": True}, [2, 1, 0]),
        ({"reverse": True, "start_frame_idx": 5, "max_frame_num_to_track": 1}, [5, 4]),
        ({"reverse": True, "start_frame_idx": 0}, []),
    ],
)
def test_propagation_visits_metas_frames(predictor, state, arguments, visited):
    predictor.add_new_points_or_box(state, 2, 1, box=BOX)
    predictor.add_new_points_or_box(state, 4, 2, box=OTHER)
    assert [frame for frame, _, _ in predictor.propagate_in_video(state, **arguments)] == visited


def test_points_are_replaced_or_added(predictor, frames):
    def logits_of(*steps):
        state = predictor.init_state(frames)
        for points, labels, clear in steps:
            out = predictor.add_new_points_or_box(state, 0, 1, points, labels, clear_old_points=clear)
        stored = state["point_inputs_per_obj"][0][0]
        return out[2], stored["point_coords"].shape[1]

    first, second = ([[35.0, 20]], [1]), ([[10.0, 40]], [0])
    added, count = logits_of((*first, True), (*second, False))
    assert count == 2
    replaced, count = logits_of((*first, True), (*second, True))
    assert count == 1
    assert not torch.equal(added, replaced)


def test_the_box_comes_first_and_alone(predictor, state):
    predictor.add_new_points_or_box(state, 0, 1, points=[[35, 20]], labels=[1], box=BOX)
    assert state["point_inputs_per_obj"][0][0]["point_labels"].tolist() == [[2, 3, 1]]
    with pytest.raises(ValueError, match="a box must be the first prompt of its frame"):
        predictor.add_new_points_or_box(state, 0, 1, box=BOX, clear_old_points=False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "neither points nor box"),
        ({"points": [[1, 2]]}, "points and labels go together"),
        ({"labels": [1]}, "points and labels go together"),
        ({"points": [[1, 2], [3, 4]], "labels": [1]}, "2 points came with 1 labels"),
        ({"points": [[1, "2"]], "labels": [1]}, "points: expected numbers"),
        ({"points": [[1, 10**400]], "labels": [1]}, "points: expected numbers"),
        ({"points": [[1, np.nan]], "labels": [1]}, "points: expected finite numbers"),
        ({"points": [[1, 2]], "labels": [7]}, "labels hold 7: expected 1"),
        ({"box": [1, 2]}, "box of shape"),
        ({"box": np.stack([BOX, OTHER])}, "box holds 2 boxes"),
    ],
)
def test_incomplete_prompts_are_value_errors(predictor, state, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.add_new_points_or_box(state, 0, 1, **prompt)
    assert state["obj_ids"] == []


def test_ids_and_frames_that_are_none_are_refused(predictor, state):
    with pytest.raises(PromptError, match=r"object is \[1\]: expected an id"):
        predictor.add_new_points_or_box(state, 0, [1], box=BOX)
    with pytest.raises(PromptError, match=r"frame_idx is \[\]: expected a whole number"):
        predictor.add_new_points_or_box(state, [], 1, box=BOX)
    assert state["obj_ids"] == []
    predictor.add_new_points_or_box(state, 1.0, 1, box=BOX)
    with pytest.raises(PromptError, match="start_frame_idx is 'x': expected a whole number"):
        next(predictor.propagate_in_video(state, start_frame_idx="x"))


def test_coordinates_may_be_shares_of_the_frame(predictor, frames):
    pixels = predictor.add_new_points_or_box(predictor.init_state(frames), 0, 1, [[40, 24]], [1], box=BOX)[2]
    shares = predictor.add_new_points_or_box(
        predictor.init_state(frames), 0, 1, [[0.5, 0.5]], [1], box=BOX / [80, 48, 80, 48], normalize_coords=False
    )[2]
    torch.testing.assert_close(pixels, shares, rtol=1e-4, atol=1e-4)


def test_a_correction_stays_unless_metas_behaviour_is_requested(sam, frames):
    for options, stays in (((), True), (("++model.add_all_frames_to_correct_as_cond=false",), False)):
        kept = read_overrides(options).corrections_are_kept
        predictor = SAM2VideoPredictor(sam.model, ImageProcessor(64), corrections_are_kept=kept)
        state = predictor.init_state(frames)
        predictor.add_new_points_or_box(state, 0, 1, box=BOX)
        before = {frame: logits for frame, _, logits in predictor.propagate_in_video(state)}
        corrected = predictor.add_new_points_or_box(state, 3, 1, [[70, 40]], [1])[2]
        bank = state.tracks.objects[1].bank
        assert all(bank[frame].object_score > 5 for frame in bank.frames)  # it is there, and no score is NaN
        assert not torch.equal(corrected, before[3])
        again = {frame: logits for frame, _, logits in predictor.propagate_in_video(state)}
        assert torch.equal(again[3], corrected) == stays


def test_the_state_that_others_read(predictor, state, frames):
    assert state["num_frames"] == len(state["images"]) == FRAMES
    assert (state["video_height"], state["video_width"]) == HW
    assert state["images"].shape == (FRAMES, 3, 64, 64)
    expected = ImageProcessor(64).frame_values(frames[2])[0]
    torch.testing.assert_close(state["images"][2], expected)
    torch.testing.assert_close(state["images"][-4:-2][0], expected)
    ids = state["obj_ids"]
    predictor.add_new_points_or_box(state, 0, "x", box=BOX)
    predictor.add_new_points_or_box(state, 2, "y", box=OTHER)
    assert ids == ["x", "y"]  # one list, which grows
    assert dict(state["obj_id_to_idx"]) == {"x": 0, "y": 1}
    assert dict(state["obj_idx_to_id"]) == {0: "x", 1: "y"}
    list(predictor.propagate_in_video(state, max_frame_num_to_track=3))
    outputs = state["output_dict_per_obj"][0]
    assert list(outputs["cond_frame_outputs"]) == [0]
    assert list(outputs["non_cond_frame_outputs"]) == [1, 2, 3]
    output = outputs["non_cond_frame_outputs"][2]
    assert output["pred_masks"].shape == (1, 1, 16, 16)
    assert output["obj_ptr"].shape == (1, 32)
    assert output["object_score_logits"].shape == (1, 1)
    assert output["maskmem_features"].shape == (1, 16, 4, 4)
    assert state["frames_tracked_per_obj"][1] == {frame: {"reverse": False} for frame in range(4)}
    assert 9 not in state["output_dict_per_obj"]


def test_objects_are_removed_and_states_reset(predictor, state):
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    predictor.add_new_points_or_box(state, 0, 2, box=OTHER)
    predictor.add_new_points_or_box(state, 3, 2, box=OTHER)
    ids, frames_of_two = predictor.remove_object(state, 2)
    assert ids == state["obj_ids"] == [1]
    assert [frame for frame, _ in frames_of_two] == [0, 3]
    assert [logits.shape for _, logits in frames_of_two] == 2 * [(1, 1, *HW)]
    assert (frames_of_two[0][1] > -1024).all()
    assert (frames_of_two[1][1] == -1024).all()
    assert predictor.remove_object(state, 5) == ([1], [])
    with pytest.raises(RuntimeError, match="no object 5"):
        predictor.remove_object(state, 5, strict=True)
    predictor.reset_state(state)
    assert state["obj_ids"] == []
    with pytest.raises(RuntimeError, match="no object was prompted"):
        next(predictor.propagate_in_video(state))


def test_prompts_of_a_frame_are_cleared(predictor, state):
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    predictor.add_new_points_or_box(state, 4, 1, box=BOX)
    frame, ids, logits = predictor.clear_all_prompts_in_frame(state, 4, 1)
    assert (frame, ids, logits.shape) == (4, [1], (1, 1, *HW))
    assert list(state["output_dict_per_obj"][0]["cond_frame_outputs"]) == [0]
    assert predictor.clear_all_prompts_in_frame(state, 0, 1, need_output=False) is None
    with pytest.raises(RuntimeError, match="object 1 has no prompts"):
        next(predictor.propagate_in_video(state))
    with pytest.raises(RuntimeError, match="no object 2"):
        predictor.clear_all_prompts_in_frame(state, 0, 2)


def test_an_object_without_prompts_starts_anew(predictor, state, frames):
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    list(predictor.propagate_in_video(state))
    cleared = predictor.clear_all_prompts_in_frame(state, 0, 1)[2]
    assert (cleared == -1024).all()
    again = predictor.add_new_points_or_box(state, 3, 1, [[40, 20]], [1])[2]  # a frame that was tracked before
    fresh = predictor.init_state(frames)
    assert torch.equal(again, predictor.add_new_points_or_box(fresh, 3, 1, [[40, 20]], [1])[2])
    assert [frame for frame, _, _ in predictor.propagate_in_video(state)] == [3, 4, 5]


@pytest.mark.parametrize("kept", [True, False])
def test_points_of_a_correction_are_cleared(sam, frames, kept):
    predictor = SAM2VideoPredictor(sam.model, ImageProcessor(64), corrections_are_kept=kept)
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    list(predictor.propagate_in_video(state))
    corrected = predictor.add_new_points_or_box(state, 3, 1, [[40, 20]], [1])[2]
    points = state["point_inputs_per_obj"][0]
    assert list(points) == [0, 3]
    assert torch.equal(predictor.clear_all_prompts_in_frame(state, 3, 1)[2], corrected)  # until it is tracked again
    assert list(state["output_dict_per_obj"][0]["cond_frame_outputs"]) == [0]
    predictor.add_new_points_or_box(state, 3, 1, [[40, 30]], [1], clear_old_points=False)
    assert state["point_inputs_per_obj"][0][3]["point_coords"].shape == (1, 1, 2)


def test_points_replace_a_mask_and_a_mask_replaces_points(predictor, state):
    mask = np.zeros(HW, bool)
    mask[10:30, 20:50] = True
    prompts = (
        lambda: predictor.add_new_mask(state, 0, 1, mask),
        lambda: predictor.add_new_points_or_box(state, 0, 1, [[40, 20]], [1], clear_old_points=False),
        lambda: predictor.add_new_points_or_box(state, 0, 1, [[60, 40]], [0], clear_old_points=False),
        lambda: predictor.add_new_mask(state, 0, 1, mask),
    )
    for prompt, points, masks in zip(prompts, ([], [1], [2], []), ([0], [], [], [0]), strict=True):
        prompt()
        stored = state["point_inputs_per_obj"][0]
        assert [one["point_labels"].shape[1] for one in stored.values()] == points
        assert list(state["mask_inputs_per_obj"][0]) == masks
    predictor.reset_state(state)
    assert dict(state["point_inputs_per_obj"]) == dict(state["mask_inputs_per_obj"]) == {}
    predictor.add_new_points_or_box(state, 2, 1, [[40, 20]], [1])
    assert state["frames_tracked_per_obj"][0] == {}
    assert [frame for frame, _, _ in predictor.propagate_in_video(state)] == [2, 3, 4, 5]


def test_a_refused_prompt_changes_nothing(predictor, state):
    before = predictor.add_new_points_or_box(state, 0, 1, [[40, 20]], [1])[2]
    with pytest.raises(PromptError, match="too small"):
        predictor.add_new_mask(state, 0, 1, np.arange(HW[0] * HW[1]).reshape(HW) == 0)  # one pixel
    with pytest.raises(ValueError, match="neither points nor box"):
        predictor.add_new_points_or_box(state, 0, 1)
    assert list(state["point_inputs_per_obj"][0]) == [0]
    assert torch.equal(state.output(0)[2], before)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_states_are_not_copied(state, copied):
    with pytest.raises(TypeError, match="call init_state again"):
        copied(state)


def test_a_predictor_may_be_copied_trained_and_moved(sam, frames):
    predictor = copy.deepcopy(SAM2VideoPredictor(sam.model, ImageProcessor(64)))
    predictor.network.requires_grad_(True)

    def masks():
        state = predictor.init_state(frames[:3])
        predictor.add_new_points_or_box(state, 0, 1, box=BOX)
        return torch.stack([logits for _, _, logits in predictor.propagate_in_video(state)])

    expected = masks()
    assert predictor.train(True) is predictor
    assert not torch.equal(masks(), expected)  # unstable single masks are replaced in evaluation alone, as in Meta's
    assert torch.equal(predictor.eval().to("cpu") and masks(), expected)
    rounded = predictor.to(torch.bfloat16) and masks()
    assert rounded.dtype == torch.float32
    assert ((rounded > 0) == (expected > 0)).float().mean() > 0.9


@pytest.mark.parametrize(
    "setting",
    [lambda: default_dtype(torch.float16), lambda: default_dtype(torch.float64), lambda: default_device("meta")],
    ids=["float16", "float64", "meta"],
)
def test_results_do_not_depend_on_torchs_defaults(predictor, frames, setting):
    def logits():
        state = predictor.init_state(frames[:3])
        predictor.add_new_points_or_box(state, 0, 1, [[40, 20]], [1], box=BOX)
        predictor.add_new_mask(state, 1, 2, np.tri(*HW) > 0)
        camera = SAM2CameraPredictor(predictor.network, predictor.image_processor)
        camera.load_first_frame(frames[0])
        return [
            *predictor.propagate_in_video(state),
            camera.add_new_prompt(0, 1, bbox=BOX),
            (1, *camera.track(frames[1])),
        ]

    expected = logits()
    with setting():
        for one, other in zip(logits(), expected, strict=True):
            torch.testing.assert_close(one[2], other[2], rtol=0, atol=0)


def test_frames_that_do_not_exist_are_refused(predictor, state, tmp_path):
    for frame in (-1, FRAMES):
        with pytest.raises(PromptError, match="the video has the frames 0 to 5"):
            predictor.add_new_points_or_box(state, frame, 1, box=BOX)
    with pytest.raises(VideoError):
        predictor.init_state(tmp_path / "missing.mp4")


def test_small_holes_are_filled_and_overlaps_resolved(sam, frames):
    mask = np.ones(HW, bool)
    mask[20:23, 30:35] = False
    for area, is_filled in ((0, False), (8, True)):
        predictor = SAM2VideoPredictor(sam.model, ImageProcessor(64), fill_hole_area=area, non_overlap_masks=True)
        state = predictor.init_state(frames)
        _, _, alone = predictor.add_new_mask(state, 0, 1, mask)
        assert (alone > 0).all() == is_filled
        _, _, both = predictor.add_new_mask(state, 0, 2, mask[::-1].copy())
        assert ((both > 0).sum(0) == 1).all()


def test_a_camera_tracks_as_a_stream(sam, frames):
    camera = SAM2CameraPredictor(sam.model, ImageProcessor(64))
    with pytest.raises(RuntimeError, match="call load_first_frame"):
        camera.track(frames[0])
    camera.load_first_frame(frames[0])
    frame, ids, logits = camera.add_new_prompt(0, "cup", bbox=BOX)
    assert (frame, ids, logits.shape) == (0, ["cup"], (1, 1, *HW))
    stream = sam.stream()
    stream.push(frames[0], {"cup": {"box": BOX}})
    for image in frames[1:4]:
        ids, logits = camera.track(image)
        assert ids == ["cup"]
        np.testing.assert_array_equal(logits[:, 0].numpy() > 0, stream.push(image).masks.masks)
    assert camera.add_new_points(3, 2, points=[[40, 20]], labels=[1])[1] == ["cup", 2]
    assert camera.track(frames[4])[0] == ["cup", 2]
    with pytest.raises(PromptError, match="frame 1 is past: expected 4, the last one"):
        camera.add_new_prompt(1, 3, bbox=BOX)
    with pytest.raises(ImageError):
        camera.track(frames[0][:40])
    camera.reset_state()
    camera.load_first_frame(frames[0])
    assert camera.frame_idx == 0


def test_a_camera_holds_a_bounded_number_of_frames(sam, frames):
    camera = SAM2CameraPredictor(sam.model, ImageProcessor(64))
    camera.load_first_frame(frames[0])
    camera.add_new_mask(0, 1, np.ones(HW, bool))
    sizes = []
    for i in range(60):
        camera.track(frames[i % FRAMES])
        sizes.append(len(camera._tracks.objects[1].bank.frames))
    assert max(sizes[20:]) == sizes[-1] <= 20
