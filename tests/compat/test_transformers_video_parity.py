"""Our video classes against those of the installed transformers: the same weights, pixels and calls, in float32.

Both store memories in bfloat16. Equal sums in another order are sometimes rounded to other memories, and differences
grow from frame to frame: noise of 1e-7 on the features moves logits by up to 0.03. So the plain network is compared,
whose sums have transformers' order, and tests/engine compares the other engines with it.
"""

import pytest
import torch
from compat.torchvision_stub import has_torchvision
from compat.transformers_video import FRAMES, HW, make_side, moving_rectangles_of, prompted, random_network, their_model

from masklet.compat.transformers import modeling, video_modeling
from masklet.engine import EagerEngine

pytestmark = pytest.mark.xdist_group("transformers video classes")

FIRST = {"input_points": [[[[40, 50], [50, 55], [110, 90]]]], "input_labels": [[[1, 1, 0]]]}
CLICK = {"input_points": [[[[100, 40]]]], "input_labels": [[[1]]]}
BOX = {"input_boxes": [[[95, 76, 144, 112]]]}
SEVERAL = {"input_points": [[[[40, 50], [50, 55]], [[120, 95]]]], "input_labels": [[[1, 0], [1]]]}


@pytest.fixture(scope="module", autouse=True)
def plain_network():
    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling, video_modeling):
            patch.setattr(module, "make_engine", EagerEngine)
        yield


@pytest.fixture(scope="module")
def frames():
    return moving_rectangles_of(FRAMES)


def make_pair(**options):
    """Both sides in transformers' behaviour. Their processor is used where there is torchvision, otherwise ours."""
    network = random_network(**options)
    theirs = make_side("transformers", network) if has_torchvision() else their_model(network)
    ours = make_side("masklet", network)
    ours.model.config.corrections_are_kept, ours.model.config.pad_attends = False, True
    return theirs, ours


@pytest.fixture(scope="module", params=["2.1", pytest.param("EdgeTAM", marks=pytest.mark.slow)])
def pair(request):
    return make_pair(version=request.param)


@pytest.fixture(scope="module")
def sam2_pair():
    """For what transformers' EdgeTAM does not do, such as masks for several objects, or shows too little."""
    return make_pair()


def assert_same(pair, run, **tolerance):
    """Both sides return the same outputs, of which there is one or more."""
    theirs, ours = (list(run(side)) for side in pair)
    assert [output.frame_idx for output in ours] == [output.frame_idx for output in theirs]
    assert theirs
    for our, their in zip(ours, theirs, strict=True):
        assert our.object_ids == their.object_ids
        assert [type(value) for value in our.to_tuple()] == [type(value) for value in their.to_tuple()]
        for one, other in zip(our.to_tuple()[1:3], their.to_tuple()[1:3], strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})
    return ours


def video_of(side, frames, **options):
    return side.processor.init_video_session(video=frames, **options)


def propagated(side, session, **options):
    return list(side.model.propagate_in_video_iterator(session, **options))


def prompted_and_propagated(frames, **inputs):
    """What one side returns for one object that is prompted in frame 0."""

    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **inputs)
        yield from propagated(side, session)

    return run


def mask_of(side, session, output, binarize=True):
    sizes = [[session.video_height, session.video_width]]
    return side.processor.post_process_masks([output.pred_masks], original_sizes=sizes, binarize=binarize)[0]


def test_the_masks_of_the_network_depend_on_memory(pair, frames):
    """They have borders, move, and differ between objects, which on tracked frames only memory can cause."""
    side = pair[1]
    session = video_of(side, frames)
    prompted(side, session, 0, [1, 2], **SEVERAL)
    logits = torch.stack([output.pred_masks[:, 0] for output in propagated(side, session)])  # (frames, objects, h, w)
    masks = logits > 0
    assert masks.float().mean((2, 3)).min() > 0.03
    assert masks.float().mean((2, 3)).max() < 0.99
    assert (masks[1:] != masks[:-1]).float().mean((2, 3)).min() > 0.01
    assert (logits[:, 0] - logits[:, 1]).abs().amax((1, 2)).min() > 0.03  # hundreds of times the tolerance


@pytest.mark.parametrize("inputs", [FIRST, CLICK, BOX], ids=["points", "click", "box"])
def test_one_object_is_prompted_and_propagated(pair, frames, inputs):
    assert_same(pair, prompted_and_propagated(frames, **inputs))


def test_sam_2_0(frames):
    assert_same(make_pair(version="2.0"), prompted_and_propagated(frames, **FIRST))


def test_post_processed_logits(pair, frames):
    def masks(side):
        session = video_of(side, frames)
        return mask_of(side, session, prompted(side, session, 0, 1, **FIRST), binarize=False)

    theirs, ours = map(masks, pair)
    assert ours.shape == theirs.shape == (1, 1, *HW)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_several_objects_with_ragged_points_then_a_reset(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, [2, 3], **SEVERAL)
        yield from propagated(side, session, max_frame_num_to_track=2)
        session.reset_inference_session()
        yield prompted(side, session, 1, [7], **CLICK)
        yield from propagated(side, session)

    assert_same(pair, run)


def test_padding_does_not_take_part_unless_asked(sam2_pair, frames, monkeypatch):
    """An object scores the same alone and in a call with others."""
    _, ours = sam2_pair
    monkeypatch.setattr(ours.model.config, "pad_attends", False)
    together, alone = (video_of(ours, frames) for _ in range(2))
    rows = prompted(ours, together, 0, [1, 2], **SEVERAL).pred_masks
    one = {"input_points": [SEVERAL["input_points"][0][1:]], "input_labels": [SEVERAL["input_labels"][0][1:]]}
    torch.testing.assert_close(rows[1:], prompted(ours, alone, 0, 2, **one).pred_masks)
    monkeypatch.undo()
    padded = prompted(ours, video_of(ours, frames), 0, [1, 2], **SEVERAL).pred_masks
    assert not torch.allclose(rows[1:], padded[1:], atol=1e-2)


def test_a_later_object_and_frames_between(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **FIRST)
        yield prompted(side, session, 3, 2, **BOX)  # tracks the first object into frame 3 as well
        yield from propagated(side, session)

    assert_same(pair, run)


def test_an_object_is_refined_in_its_frame(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **FIRST)
        yield prompted(side, session, 0, 1, **CLICK, clear_old_inputs=False)
        yield from propagated(side, session)

    assert_same(pair, run)


@pytest.mark.parametrize("with_forward", [True, False])
def test_a_tracked_frame_is_refined(pair, frames, with_forward):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **FIRST)
        yield from propagated(side, session)
        side.processor.add_inputs_to_inference_session(session, frame_idx=3, obj_ids=1, **CLICK)
        if with_forward:
            yield side.model(session, frame_idx=3)
        yield from propagated(side, session, start_frame_idx=4 if with_forward else 3)

    assert_same(pair, run)


def test_a_correction_is_lost_as_theirs_is_if_asked(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **FIRST)
        yield from propagated(side, session)
        yield prompted(side, session, 3, 1, **CLICK)
        yield from propagated(side, session)

    outputs = assert_same(pair, run)
    assert not torch.equal(outputs[1 + FRAMES].pred_masks, outputs[4].pred_masks)  # the correction
    assert torch.equal(outputs[-3].pred_masks, outputs[4].pred_masks)  # lost


def test_the_corrected_frame_itself_is_theirs_in_any_case(pair, frames, monkeypatch):
    monkeypatch.setattr(pair[1].model.config, "corrections_are_kept", True)

    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **FIRST)
        yield from propagated(side, session)
        yield prompted(side, session, 3, 1, **CLICK)

    assert_same(pair, run)


def test_objects_are_tracked_backward(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 4, [1, 2], **SEVERAL)
        yield from propagated(side, session, reverse=True)
        yield from propagated(side, session, start_frame_idx=2)
        yield side.model(session, frame_idx=0, reverse=True)

    assert_same(pair, run)


def test_a_correction_of_a_frame_that_was_tracked_backward(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 4, 1, **FIRST)
        yield from propagated(side, session, reverse=True)
        yield prompted(side, session, 1, 1, **CLICK)
        yield side.model(session, frame_idx=0, reverse=True)
        side.processor.add_inputs_to_inference_session(session, frame_idx=2, obj_ids=1, **CLICK)
        yield side.model(session, frame_idx=2, reverse=True)

    assert_same(pair, run)


def test_a_prompt_of_one_object_does_not_change_another(sam2_pair, frames):
    """In transformers, the memories of all objects are encoded as prompted ones where one of them is prompted."""

    def last(side, *, is_corrected):
        session = video_of(side, frames)
        prompted(side, session, 4, [1, 2], **SEVERAL)
        propagated(side, session, reverse=True)
        if is_corrected:
            prompted(side, session, 1, 1, **CLICK)
        else:
            side.model(session, frame_idx=1)
        return side.model(session, frame_idx=0, reverse=True).pred_masks[1]

    for side, changes in zip(sam2_pair, (True, False), strict=True):
        difference = (last(side, is_corrected=True) - last(side, is_corrected=False)).abs().max()
        assert (difference > 0.01) == changes


def test_boxes_with_points(pair, frames):
    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, 1, **BOX, **CLICK)
        boxes = {"input_boxes": [[[20, 30, 60, 70], *BOX["input_boxes"][0]]]}
        yield prompted(side, session, 1, [1, 2], **boxes)
        yield from propagated(side, session)

    assert_same(pair, run)


def test_masks_are_fed_back(sam2_pair, frames):
    theirs = sam2_pair[0]
    fed_back = mask_of(theirs, session := video_of(theirs, frames), prompted(theirs, session, 0, 1, **FIRST))

    def run(side):
        session = video_of(side, frames)
        yield prompted(side, session, 0, [1, 2], input_masks=[fed_back[0, 0], fed_back[0, 0].numpy()[::-1].copy()])
        yield from propagated(side, session)
        yield prompted(side, session, 3, 1, input_masks=0 * fed_back)  # the object is not there
        yield from propagated(side, session, start_frame_idx=3)

    assert_same(sam2_pair, run)


def test_a_stream(pair, frames):
    def run(side):
        session = side.processor.init_video_session()
        for index, frame in enumerate(frames):
            inputs = side.processor(images=frame, device="cpu", return_tensors="pt")
            for prompt_at, ids, prompt in ((0, 1, FIRST), (3, [1, 2], SEVERAL)):
                if index == prompt_at:
                    side.processor.add_inputs_to_inference_session(
                        session, frame_idx=index, obj_ids=ids, **prompt, original_size=inputs.original_sizes[0]
                    )
            yield side.model(inference_session=session, frame=inputs.pixel_values[0])
        yield from propagated(side, session, start_frame_idx=1, max_frame_num_to_track=1)

    assert_same(pair, run)


def test_objects_that_leave(frames):
    outputs = assert_same(make_pair(presence=-50.0), prompted_and_propagated(frames, **FIRST))
    assert all((output.pred_masks == -1024).all() for output in outputs)


def test_outputs_that_a_session_keeps(pair, frames):
    def outputs(side):
        session = video_of(side, frames)
        prompted(side, session, 0, 1, **FIRST)
        propagated(side, session, max_frame_num_to_track=2)
        kept = session.output_dict_per_obj[0]
        return [kept["cond_frame_outputs"][0], *(kept["non_cond_frame_outputs"][frame] for frame in (1, 2))]

    for theirs, ours in zip(*map(outputs, pair), strict=True):
        # Their EdgeTAM does not keep the masks at full size.
        assert ours.keys() - ({"high_res_masks"} if pair[0].is_edgetam else set()) == theirs.keys()
        for name in theirs:
            assert ours[name].shape == theirs[name].shape
            assert ours[name].dtype == theirs[name].dtype
            tolerance = 0.02 if name == "maskmem_features" else 1e-4
            torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


def test_bfloat16(frames):
    pair = make_pair()
    for side in pair:
        side.model.to(torch.bfloat16)

    def run(side):
        session = video_of(side, frames, dtype=torch.bfloat16)
        yield prompted(side, session, 0, 1, **FIRST)
        yield side.model(session, frame_idx=1)

    outputs = assert_same(pair, run, rtol=0.1, atol=1.5)
    assert outputs[0].pred_masks.dtype == torch.bfloat16
