"""Behaviour of transformers' video classes: the same assertions on the installed transformers and on ours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compat.transformers_video import FRAMES, HW, SIDE, make_side, moving_rectangles_of, prompted, random_network

pytestmark = pytest.mark.xdist_group("transformers video classes")

POINT, LABEL = [[[[40, 50]]]], [[[1]]]
POINTS, LABELS = [[[[40, 50], [50, 55]]]], [[[1, 1]]]
BOX = [[[95, 76, 144, 112]]]
MASK = np.zeros(HW, np.uint8)
MASK[30:70, 20:60] = 1


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "masklet",
        pytest.param("transformers EdgeTAM", marks=pytest.mark.slow),
        pytest.param("masklet EdgeTAM", marks=pytest.mark.slow),
    ],
)
def side(request):
    """A model, a processor and the class of sessions: theirs, then ours with the same weights."""
    kind, _, version = request.param.partition(" ")
    return make_side(kind, random_network(version=version or "2.1"))


@pytest.fixture(scope="module")
def frames():
    return moving_rectangles_of(FRAMES)


@pytest.fixture
def session(side, frames):
    return side.processor.init_video_session(video=frames)


@pytest.fixture
def add(side, session):
    def add(frame, ids, **inputs):
        return side.processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=ids, **inputs)

    return add


@pytest.fixture
def tracked(side, session, add):
    """One object, prompted in frame 0 and tracked through the video."""
    add(0, 1, input_points=POINTS, input_labels=LABELS)
    first = side.model(session, frame_idx=0)
    outputs = list(side.model.propagate_in_video_iterator(session))
    return SimpleNamespace(first=first, outputs=outputs)


# Outputs


def test_an_output_is_a_tuple_in_transformers_order(side, session, add):
    assert add(0, 5, input_points=POINTS, input_labels=LABELS) is None
    output = side.model(inference_session=session, frame_idx=0)
    assert list(output.keys()) == ["object_ids", "pred_masks", "object_score_logits", "frame_idx"]
    assert output[0] == output["object_ids"] == output.object_ids == [5]
    assert output.to_tuple()[3] == output.frame_idx == 0
    assert output[1] is output.pred_masks


def test_shapes_and_types_of_an_output(side, session, add):
    add(0, [1, 2], input_boxes=[[*BOX[0], [20, 30, 60, 70]]])
    output = side.model(session, frame_idx=0)
    assert output.pred_masks.shape == (2, 1, SIDE // 4, SIDE // 4)
    assert output.object_score_logits.shape == (2, 1)
    assert output.pred_masks.dtype == output.object_score_logits.dtype == torch.float32


def test_the_stored_output_of_a_frame(side, session, tracked):
    outputs = session.output_dict_per_obj[0]
    assert list(outputs["cond_frame_outputs"]) == [0]
    assert sorted(outputs["non_cond_frame_outputs"]) == [*range(1, FRAMES)]
    output = outputs["non_cond_frame_outputs"][FRAMES - 1]
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes.pop("high_res_masks", (1, 1, SIDE, SIDE)) == (1, 1, SIDE, SIDE)
    tokens = (1, 24 + 16, 64) if side.is_edgetam else ((SIDE // 16) ** 2, 1, 64)
    assert shapes == {
        "pred_masks": (1, 1, SIDE // 4, SIDE // 4),
        "object_pointer": (1, 1, 128),
        "object_score_logits": (1, 1, 1),
        "maskmem_features": tokens,
        "maskmem_pos_enc": tokens,
    }
    assert output["maskmem_features"].dtype == (torch.float32 if side.is_edgetam else torch.bfloat16)
    assert torch.equal(output["pred_masks"], tracked.outputs[-1].pred_masks)
    if "high_res_masks" not in output:  # transformers' EdgeTAM does not keep them
        assert side.is_edgetam
        return
    upscaled = torch.nn.functional.interpolate(output["pred_masks"], (SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(output["high_res_masks"], upscaled)


def test_frames_that_were_tracked_are_noted(side, session, tracked):
    assert dict(session.frames_tracked_per_obj[0]) == {frame: {"reverse": False} for frame in range(1, FRAMES)}
    list(side.model.propagate_in_video_iterator(session, start_frame_idx=3, max_frame_num_to_track=1, reverse=True))
    assert session.frames_tracked_per_obj[0][2] == {"reverse": True}
    assert session.frames_tracked_per_obj[0][4] == {"reverse": False}


def test_a_prompted_frame_returns_its_stored_result(side, session, tracked):
    assert torch.equal(tracked.outputs[0].pred_masks, tracked.first.pred_masks)
    assert torch.equal(side.model(session, frame_idx=0).pred_masks, tracked.first.pred_masks)


def test_propagating_again_changes_nothing(side, session, tracked):
    again = list(side.model.propagate_in_video_iterator(session))
    assert all(torch.equal(a.pred_masks, b.pred_masks) for a, b in zip(again, tracked.outputs, strict=True))


@pytest.mark.parametrize(
    ("arguments", "visited"),
    [
        ({}, [2, 3, 4, 5]),
        ({"start_frame_idx": 1}, [1, 2, 3, 4, 5]),
        ({"max_frame_num_to_track": 2}, [2, 3, 4]),  # through start + max
        ({"max_frame_num_to_track": 0}, [2]),
        ({"start_frame_idx": 4, "max_frame_num_to_track": 9}, [4, 5]),
        ({"reverse": True}, [2, 1, 0]),
        ({"reverse": True, "start_frame_idx": 5, "max_frame_num_to_track": 1}, [5, 4]),
        ({"reverse": True, "start_frame_idx": 0}, []),
        ({"start_frame_idx": 20}, []),
        ({"show_progress_bar": True, "max_frame_num_to_track": 1}, [2, 3]),
    ],
)
def test_propagation_visits_transformers_frames(side, session, add, arguments, visited):
    add(4, 1, input_points=POINTS, input_labels=LABELS)
    side.model(session, frame_idx=4)
    add(2, 1, input_boxes=BOX)
    side.model(session, frame_idx=2)
    assert [output.frame_idx for output in side.model.propagate_in_video_iterator(session, **arguments)] == visited


def test_propagation_needs_a_first_frame(side, session, add):
    with pytest.raises(ValueError, match="start"):
        next(iter(side.model.propagate_in_video_iterator(session)))
    add(0, 1, input_points=POINTS, input_labels=LABELS)
    with pytest.raises(ValueError, match="start"):
        next(iter(side.model.propagate_in_video_iterator(session)))
    outputs = list(side.model.propagate_in_video_iterator(session, start_frame_idx=0))  # runs the prompt itself
    assert len(outputs) == FRAMES
    assert list(session.output_dict_per_obj[0]["cond_frame_outputs"]) == [0]


def test_a_prompt_in_a_frame_that_was_not_tracked_reads_no_memory(side, frames):
    def result(first):
        session = side.processor.init_video_session(video=frames)
        prompted(side, session, 0, 1, **first)
        prompted(side, session, 3, 1, input_points=POINTS, input_labels=LABELS)
        assert sorted(session.output_dict_per_obj[0]["cond_frame_outputs"]) == [0, 3]
        return session.get_output(0, 3, "pred_masks")

    assert torch.equal(result({"input_boxes": BOX}), result({"input_masks": MASK}))


def test_a_correction_of_a_tracked_frame_reads_memory(side, frames):
    def result(first):
        session = side.processor.init_video_session(video=frames)
        prompted(side, session, 0, 1, **first)
        list(side.model.propagate_in_video_iterator(session))
        return prompted(side, session, 3, 1, input_points=POINTS, input_labels=LABELS).pred_masks

    assert not torch.equal(result({"input_boxes": BOX}), result({"input_masks": MASK}))


def test_a_new_prompt_replaces_that_of_its_frame(side, session, frames, add, tracked):
    add(0, 1, input_points=POINT, input_labels=LABEL)
    replaced = side.model(session, frame_idx=0).pred_masks
    fresh = side.processor.init_video_session(video=frames)
    alone = prompted(side, fresh, 0, 1, input_points=POINT, input_labels=LABEL).pred_masks
    assert torch.equal(replaced, alone)
    assert not torch.equal(replaced, tracked.first.pred_masks)


def test_a_mask_comes_back_as_logits_of_ten(side, session, add):
    add(0, 1, input_masks=MASK)
    output = side.model(session, frame_idx=0)
    upscaled = side.processor.post_process_masks([output.pred_masks], [HW], binarize=False)[0][0, 0]
    assert upscaled.amax() == 10
    assert upscaled.amin() == -10
    assert ((upscaled > 0).numpy() == MASK).mean() > 0.98
    assert output.object_score_logits.item() == 10
    if not side.is_edgetam:  # transformers' does not keep them
        assert session.get_output(0, 0, "high_res_masks").unique().tolist() == [-10, 10]


def test_an_empty_mask_says_that_the_object_is_not_there(side, session, add):
    add(0, 1, input_masks=0 * MASK)
    output = side.model(session, frame_idx=0)
    torch.testing.assert_close(output.pred_masks, torch.full_like(output.pred_masks, -10))
    assert output.object_score_logits.item() == -10


@pytest.mark.parametrize("kind", ["transformers", "masklet"])
def test_objects_that_are_not_in_a_frame_have_logits_of_minus_1024(frames, kind):
    side = make_side(kind, random_network(presence=-50.0))
    session = side.processor.init_video_session(video=frames)
    output = prompted(side, session, 0, 1, input_points=POINTS, input_labels=LABELS)
    assert output.object_score_logits.item() < 0
    assert (output.pred_masks == -1024).all()


# Prompts


@pytest.mark.parametrize(
    ("ids", "inputs"),
    [
        (1, {"input_points": POINT}),
        (1, {"input_labels": LABEL}),
        (1, {}),
        (1, {"input_points": POINT, "input_labels": LABEL, "input_masks": MASK}),
        (1, {"input_boxes": BOX, "input_masks": MASK}),
        (1, {"input_boxes": BOX, "clear_old_inputs": False}),
        ([1, 2], {"input_points": POINT, "input_labels": LABEL}),
        ([1, 2], {"input_boxes": BOX}),
        ([1, 2], {"input_masks": [MASK]}),
        (1, {"input_masks": [MASK, MASK]}),
        (1, {"input_points": POINTS, "input_labels": LABEL}),
        (1, {"input_points": POINT[0], "input_labels": LABEL[0]}),
        (1, {"input_points": POINT[0][0], "input_labels": LABEL[0][0]}),
        (1, {"input_boxes": BOX[0]}),
        (1, {"input_boxes": BOX[0][0]}),
        (1, {"input_masks": MASK[None, None, None]}),
        ([1, 2], {"input_masks": np.stack([MASK, MASK])}),
    ],
)
def test_incomplete_prompts_are_value_errors(side, session, add, ids, inputs):
    with pytest.raises(ValueError):  # noqa: PT011
        add(0, ids, **inputs)
    assert not any(session.point_inputs_per_obj.values())


def test_points_are_moved_to_the_input_of_the_network(side, session, add):
    add(0, 1, input_points=[[[[40, 50], [-8, 500]]]], input_labels=[[[1, 0]]])
    inputs = session.point_inputs_per_obj[0][0]
    expected = torch.tensor([[40.0, 50], [-8, 500]]) * torch.tensor([SIDE / HW[1], SIDE / HW[0]])
    torch.testing.assert_close(inputs["point_coords"], expected[None, None])
    assert inputs["point_labels"].tolist() == [[[1, 0]]]


@pytest.mark.parametrize("convert", [np.array, torch.tensor], ids=["array", "tensor"])
def test_points_and_boxes_may_be_arrays_or_tensors(side, session, add, convert):
    add(0, 1, input_points=convert(POINTS), input_labels=convert(LABELS), input_boxes=convert(BOX))
    add(0, 2, input_points=POINTS, input_labels=LABELS, input_boxes=BOX)
    ours, others = session.point_inputs_per_obj[0][0], session.point_inputs_per_obj[1][0]
    assert torch.equal(ours["point_coords"], others["point_coords"])
    assert torch.equal(ours["point_labels"], others["point_labels"])


def test_a_box_is_two_points_before_the_others(side, session, add):
    add(0, [1, 2], input_points=[[[[1, 2], [3, 4]], [[5, 6]]]], input_labels=[[[1, 0], [1]]], input_boxes=[2 * BOX[0]])
    first, second = (session.point_inputs_per_obj[i][0] for i in range(2))
    assert first["point_labels"].tolist() == [[[2, 3, 1, 0]]]
    assert second["point_labels"].tolist() == [[[2, 3, 1, -10]]]  # padded
    corners = torch.tensor([[95.0, 76], [144, 112]]) * torch.tensor([SIDE / HW[1], SIDE / HW[0]])
    torch.testing.assert_close(first["point_coords"][0, 0, :2], corners)
    assert second["point_coords"][0, 0, 3].tolist() == [-10, -10]


def test_a_box_alone(side, session, add):
    add(2, ["cat"], input_boxes=BOX)
    assert session.point_inputs_per_obj[0][2]["point_labels"].tolist() == [[[2, 3]]]


@pytest.mark.parametrize(("clear", "labels"), [(True, [0]), (False, [1, 1, 0])])
def test_points_of_a_frame_are_replaced_or_added(side, session, add, clear, labels):
    add(0, 1, input_points=POINTS, input_labels=LABELS)
    add(0, 1, input_points=POINT, input_labels=[[[0]]], clear_old_inputs=clear)
    assert session.point_inputs_per_obj[0][0]["point_labels"].tolist() == [[labels]]


@pytest.mark.parametrize(
    ("ids", "known"), [(3, [3]), ([3], [3]), ((3,), [3]), ([4, 3], [4, 3])], ids=["int", "list", "tuple", "two"]
)
def test_ids_are_a_number_or_a_list(side, session, add, ids, known):
    count = len(known)
    add(0, ids, input_points=[POINT[0] * count], input_labels=[LABEL[0] * count])
    assert session.obj_ids == list(session.obj_with_new_inputs) == known
    assert session.get_obj_num() == count


def test_masks_replace_points_and_points_replace_masks(side, session, add):
    add(0, 1, input_points=POINT, input_labels=LABEL)
    add(0, 1, input_masks=MASK)
    assert 0 not in session.point_inputs_per_obj[0]
    assert 0 in session.mask_inputs_per_obj[0]
    add(0, 1, input_points=POINT, input_labels=LABEL)
    assert 0 in session.point_inputs_per_obj[0]
    assert 0 not in session.mask_inputs_per_obj[0]


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK[None],
        MASK[None, None],
        MASK.astype(bool),
        255 * MASK,
        [MASK],
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).bool()[None],
        np.kron(MASK, np.ones((2, 2), np.uint8)),
    ],
    ids=["2d", "3d", "4d", "bool", "255", "list", "tensor", "bool tensor", "twice the size"],
)
def test_masks_of_all_kinds_are_resized(side, session, add, mask):
    add(0, 1, input_masks=mask)
    kept = session.mask_inputs_per_obj[0][0]
    assert kept.shape == (1, 1, SIDE, SIDE)
    assert kept.dtype == torch.float32
    assert set(kept.unique().tolist()) == {0, 1}
    small = torch.nn.functional.interpolate(
        torch.from_numpy(MASK)[None, None].float(), (SIDE, SIDE), mode="bilinear", antialias=True
    )
    assert (kept != (small >= 0.5)).float().mean() < 0.02  # 255 has half a pixel more around it


def test_the_first_prompt_of_a_stream_needs_a_size(side):
    session = side.processor.init_video_session()
    with pytest.raises(ValueError, match="original_size"):
        side.processor.add_inputs_to_inference_session(session, 0, 1, input_points=POINT, input_labels=LABEL)
    for size in ([60, 80], (60, 80), torch.tensor([60, 80])):
        side.processor.add_inputs_to_inference_session(
            session, 0, 1, input_points=POINT, input_labels=LABEL, original_size=size
        )
        assert (session.video_height, session.video_width) == (60, 80)


# Sessions


def test_a_session_of_a_stream_is_empty_at_first(side):
    session = side.processor.init_video_session()
    assert session.processed_frames is None
    assert session.num_frames is None
    assert session.video_height is None
    assert session.obj_ids == []
    assert session.get_obj_num() == 0
    assert dict(session.output_dict_per_obj) == {}


def test_a_session_of_a_video(side, session):
    assert session.num_frames == len(session.processed_frames) == FRAMES
    assert (int(session.video_height), int(session.video_width)) == HW
    assert list(session.processed_frames) == [*range(FRAMES)]
    assert session.get_frame(2).shape == (3, SIDE, SIDE)
    with pytest.raises(KeyError):
        session.get_frame(FRAMES)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"max_vision_features_cache_size": 3}])
def test_options_of_a_session(side, frames, options):
    session = side.processor.init_video_session(video=frames[:1], inference_device="cpu", **options)
    assert session.inference_state_device == session.video_storage_device == "cpu"
    assert session.dtype == session.processed_frames[0].dtype == options.get("dtype", torch.float32)
    assert session.cache.max_vision_features_cache_size == options.get("max_vision_features_cache_size", 1)


def _kinds(frames):
    from PIL import Image

    stacked = np.stack(frames)
    return {
        "arrays": list(frames),
        "PIL images": [Image.fromarray(frame) for frame in frames],
        "one array": stacked,
        "channels first": stacked.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(stacked).permute(0, 3, 1, 2),
        "tensor, channels last": torch.from_numpy(stacked),
        "tensors": [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames],
        "nested": [list(frames)],
        "nested tensor": [torch.from_numpy(stacked)],
        "5 dimensions": stacked[None],
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the control
@pytest.mark.parametrize("kind", _kinds([np.zeros((1, 1, 3), np.uint8)]))
def test_videos_of_all_kinds_have_the_same_pixels(side, session, frames, kind):
    other = side.processor.init_video_session(video=_kinds(frames)[kind])
    assert other.num_frames == FRAMES
    assert (int(other.video_height), int(other.video_width)) == HW
    for frame in (0, FRAMES - 1):
        assert torch.equal(other.get_frame(frame), session.get_frame(frame))


def test_objects_have_places(side, session):
    assert [session.obj_id_to_idx(name) for name in (7, 3, 7)] == [0, 1, 0]
    assert session.obj_ids == [7, 3]
    assert [session.obj_idx_to_id(i) for i in range(2)] == [7, 3]
    assert session.point_inputs_per_obj == session.mask_inputs_per_obj == {0: {}, 1: {}}
    assert dict(session.output_dict_per_obj[1]["cond_frame_outputs"]) == {}
    with pytest.raises(KeyError):
        session.obj_idx_to_id(2)


def test_inputs_are_added_and_removed(side, session):
    idx = session.obj_id_to_idx(1)
    session.add_point_inputs(idx, 4, {"point_coords": torch.zeros(1, 1, 1, 2), "point_labels": torch.ones(1, 1, 1)})
    session.add_mask_inputs(idx, 5, torch.ones(1, 1, SIDE, SIDE))
    assert list(session.point_inputs_per_obj[idx]) == [4]
    assert list(session.mask_inputs_per_obj[idx]) == [5]
    for frame in (4, 5, 99):
        session.remove_point_inputs(idx, frame)
        session.remove_mask_inputs(idx, frame)
    assert session.point_inputs_per_obj == session.mask_inputs_per_obj == {idx: {}}
    with pytest.raises(KeyError):
        session.add_point_inputs(9, 4, {})


def test_outputs_are_stored_and_found(side, session):
    idx = session.obj_id_to_idx(1)
    session.store_output(idx, 4, output_value={"pred_masks": torch.ones(1), "note": 3})
    session.store_output(idx, 4, output_key="note", output_value=torch.zeros(2))
    session.store_output(idx, 6, output_value={"pred_masks": torch.ones(2)}, is_conditioning_frame=False)
    assert session.get_output(idx, 4, "pred_masks").shape == (1,)
    assert session.get_output(idx, 4, "note").shape == (2,)
    assert session.get_output(idx, 6, "pred_masks", is_conditioning_frame=False).shape == (2,)
    assert session.get_output(idx, 6, "pred_masks") is None
    assert sorted(session.output_dict_per_obj[idx]["cond_frame_outputs"]) == [4]
    for call in (
        lambda: session.get_output(idx, 4, "nothing"),
        lambda: session.get_output(9, 4, "pred_masks"),
        lambda: session.store_output(idx, 8, output_key="pred_masks", output_value=torch.ones(1)),
        lambda: session.store_output(9, 8, output_value={"pred_masks": torch.ones(1)}),
    ):
        with pytest.raises(KeyError):
            call()


def test_frames_are_added(side):
    session = side.session_class(dtype=torch.float32)
    frame = torch.rand(3, SIDE, SIDE)
    assert session.add_new_frame(frame[None]) == 0
    assert session.add_new_frame(frame) == 1
    assert session.add_new_frame(frame, frame_idx=7) == 7
    assert session.num_frames == 3
    assert sorted(session.processed_frames) == [0, 1, 7]
    assert torch.equal(session.get_frame(0), frame)
    with pytest.raises(KeyError):
        session.get_frame(5)


def test_prepared_frames_may_be_given(side):
    video = torch.rand(4, 3, SIDE, SIDE)
    session = side.session_class(video=video, video_height=48, video_width=64, dtype=torch.float32)
    assert session.num_frames == 4
    assert torch.equal(session.processed_frames[2], video[2])


def test_the_cache_keeps_the_last_frames(side):
    cache = side.cache_class(max_vision_features_cache_size=2)
    for frame in range(3):
        cache.cache_vision_features(frame, {"vision_feats": [torch.full((1,), frame)], "other": torch.ones(1)})
    assert cache.get_vision_features(0) is None
    assert cache.get_vision_features(2)["vision_feats"][0].item() == 2
    cache.clear_all()
    assert cache.get_vision_features(2) is None


def test_the_cache_holds_the_maps_of_the_last_frame(side, session, tracked):
    assert session.cache.get_vision_features(0) is None
    maps = session.cache.get_vision_features(FRAMES - 1)["vision_feats"]
    cells = SIDE // 4
    assert [tuple(level.shape) for level in maps] == [
        (cells**2, 1, 16), ((cells // 2) ** 2, 1, 32), ((cells // 4) ** 2, 1, 128)
    ]  # fmt: skip


def test_resetting_keeps_frames_and_the_cache_or_frames_alone(side, session, add, tracked):
    session.reset_tracking_data()
    assert session.obj_ids == session.obj_with_new_inputs == []
    assert session.point_inputs_per_obj == {}
    assert dict(session.output_dict_per_obj) == dict(session.frames_tracked_per_obj) == {}
    assert session.num_frames == FRAMES
    assert session.cache.get_vision_features(FRAMES - 1) is not None
    session.reset_inference_session()
    assert session.cache.get_vision_features(FRAMES - 1) is None
    add(0, 1, input_points=POINTS, input_labels=LABELS)
    assert torch.equal(side.model(session, frame_idx=0).pred_masks, tracked.first.pred_masks)


# Streams


def test_frames_of_a_stream_are_tracked_as_they_arrive(side, frames):
    session = side.processor.init_video_session()
    for index, frame in enumerate(frames[:3]):
        inputs = side.processor(images=frame, return_tensors="pt")
        if index == 0:
            side.processor.add_inputs_to_inference_session(
                session, 0, 1, input_points=POINTS, input_labels=LABELS, original_size=inputs.original_sizes[0]
            )
        pixels = inputs.pixel_values if index == 1 else inputs.pixel_values[0]
        assert side.model(session, frame=pixels).frame_idx == index
    assert session.num_frames == 3
    assert side.model(session, frame=pixels, frame_idx=9).frame_idx == 9
    with pytest.raises(KeyError):
        side.model(session, frame_idx=5)


def test_a_stream_needs_an_object(side):
    session = side.processor.init_video_session()
    with pytest.raises(ValueError, match=r"[Oo]bjects"):
        side.model(session, frame=torch.zeros(3, SIDE, SIDE))


# Processors


def test_images_and_videos_have_the_same_pixels(side, session, frames):
    inputs = side.processor(images=frames[1], input_points=POINTS, input_labels=LABELS, return_tensors="pt")
    assert torch.equal(inputs.pixel_values[0], session.get_frame(1))
    assert inputs.original_sizes.tolist() == [list(HW)]
    torch.testing.assert_close(
        inputs.input_points, torch.tensor(POINTS) * torch.tensor([SIDE / HW[1], SIDE / HW[0]]), check_dtype=False
    )


def test_masks_of_the_size_of_the_video(side, session, tracked):
    sizes = [[session.video_height, session.video_width]]
    (masks,) = side.processor.post_process_masks([tracked.first.pred_masks], original_sizes=sizes)
    (logits,) = side.processor.post_process_masks([tracked.first.pred_masks], original_sizes=sizes, binarize=False)
    (strict,) = side.processor.post_process_masks([tracked.first.pred_masks], sizes, 2.0)
    assert masks.shape == logits.shape == (1, 1, *HW)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, logits > 0)
    assert torch.equal(strict, logits > 2)


def test_videos_are_prepared(side, session, frames):
    inputs = side.processor.video_processor(videos=frames, return_tensors="pt")
    assert sorted(inputs) == ["original_sizes", "pixel_values_videos", "reshaped_input_sizes"]
    assert inputs.pixel_values_videos.shape == (1, FRAMES, 3, SIDE, SIDE)
    assert inputs.original_sizes.tolist() == [list(HW)]
    assert inputs.reshaped_input_sizes.tolist() == [[SIDE, SIDE]]
    assert torch.equal(inputs.pixel_values_videos[0, 3], session.get_frame(3))
    lists = side.processor.video_processor(videos=[frames, frames[:2]])
    assert [len(video) for video in lists["pixel_values_videos"]] == [FRAMES, 2]


@pytest.mark.parametrize("pad_size", [None, {"height": SIDE, "width": SIDE}])
@pytest.mark.parametrize("reshaped", [[SIDE, SIDE], [SIDE // 2, SIDE]])
def test_the_video_processor_crops_masks_to_what_the_frame_filled(side, tracked, reshaped, pad_size):
    masks = tracked.first.pred_masks
    arguments = ([masks], [HW], [reshaped])
    (logits,) = side.processor.video_processor.post_process_masks(*arguments, binarize=False, pad_size=pad_size)
    interpolate = torch.nn.functional.interpolate
    padded = interpolate(masks, (SIDE, SIDE), mode="bilinear")[..., : reshaped[0], : reshaped[1]]
    torch.testing.assert_close(logits, interpolate(padded, HW, mode="bilinear"))
    (binary,) = side.processor.video_processor.post_process_masks(*arguments, 1.0)
    assert torch.equal(binary, logits > 1)


def test_settings_of_the_processors(side):
    assert side.processor.target_size == SIDE
    assert side.processor.point_pad_value == -10
    video = side.processor.video_processor
    assert (video.size["height"], video.size["width"]) == (SIDE, SIDE)
    assert tuple(video.image_mean) == (0.485, 0.456, 0.406)
    assert (video.do_resize, video.do_rescale, video.do_normalize, video.do_convert_rgb) == (True,) * 4
