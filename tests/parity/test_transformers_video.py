"""Against the video model of the installed transformers: the same random weights, pixels and prompts, in float32.

Its processor needs torchvision, so its sessions are built by hand: our own pixel values, prompts in model pixels. Like
us (and Meta) it stores memories in bfloat16, whatever the session's type; so equal sums in another order become other
memories now and then, and a network of random weights feeds back what differs: changing our own weights by 1e-7 does
the same to our own masks. The seed is of a network that does not amplify it; that its masks have borders, move, and
hang on memory is asserted. Where it goes other ways than Meta, whom we follow, a test at the end of this file says how.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity.test_transformers import shrunken
from transformers import Sam2VideoConfig as TheirConfig
from transformers import Sam2VideoModel as TheirModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession as TheirSession

from masklet import Sam2Model
from masklet.checkpoints.transformers import config_to_json
from masklet.engine import make_engine
from masklet.processing import Sam2ImageProcessor
from masklet.prompts import to_model_pixels
from masklet.segmenter import Segmenter
from masklet.video.tracker import read_memory, track_object

FRAMES = 8
SIZE_HW = (120, 160)
PROMPTS = {1: {"points": [(40, 50), (50, 55), (110, 90, 0)]}, 2: {"box": (95, 76, 144, 112)}}
LAST_PROMPTS = {1: {"points": [(96, 50), (106, 55), (30, 100, 0)]}, 2: {"box": (56, 77, 101, 112)}}
"""Where the first frame's and the last frame's rectangles are."""


def loud(config, *, presence, seed=8):
    """A network whose masks have borders; ``presence`` is added to the logit that an object is there."""
    generator = torch.Generator().manual_seed(seed)
    model = Sam2Model(config).eval().requires_grad_(False)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = (
            1.2 if name.startswith("memory_") else 1.4
        )  # more, and what a frame remembers runs away from frame to frame
        if parameter.ndim == 1:
            parameter.copy_(name.endswith("weight") + 0.1 * noise)
        else:
            parameter.copy_(noise if "embed" in name else gain * noise * parameter[0].numel() ** -0.5)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(presence)
    return model


def pair_of(config, presence):
    """Ours and theirs with the same weights. Objects of 128 channels: with 64, equal to the memory's, theirs fails."""
    ours = loud(config, presence=presence)
    theirs = TheirModel(TheirConfig(**config_to_json(config))).eval().requires_grad_(False)
    assert not any(theirs.load_state_dict(ours.state_dict(), strict=False))
    return Segmenter(make_engine(ours), Sam2ImageProcessor(config.image_size)), theirs


@pytest.fixture(scope="module")
def pair():
    return pair_of(shrunken(hidden_size=128), presence=5.0)


@pytest.fixture(scope="module")
def video():
    """Two rectangles that move on noise."""
    back = np.random.default_rng(0).integers(0, 90, (*SIZE_HW, 3), dtype=np.uint8)
    frames = []
    for index in range(FRAMES):
        frame = back.copy()
        frame[30:70, 20 + 8 * index : 60 + 8 * index] = (240, 200, 40)
        frame[80:110, 100 - 6 * index : 140 - 6 * index] = (30, 90, 220)
        frames.append(frame)
    return frames


def pixels_of(sam, video):
    """(frames, 3, height, width): what our network is given."""
    return torch.cat([sam.image_processor.frame_values(frame) for frame in video])


def their_session(pixels=None):
    return TheirSession(video=pixels, video_height=SIZE_HW[0], video_width=SIZE_HW[1], dtype=torch.float32)


def tell(session, sam, frame, name, *, points=(), box=None, mask=None):
    """Prompt theirs as their processor does: in model pixels, box corners as points of labels 2 and 3, first."""
    session.obj_with_new_inputs.append(name)
    if mask is not None:
        share = F.interpolate(torch.from_numpy(mask)[None, None].float(), (256, 256), mode="bilinear", antialias=True)
        session.add_mask_inputs(session.obj_id_to_idx(name), frame, (share >= 0.5).float())
        return
    corners = [] if box is None else [(*box[:2], 2), (*box[2:], 3)]
    told = torch.tensor([(*p, 1)[:3] for p in [*corners, *points]], dtype=torch.float32)
    places = to_model_pixels(told[:, :2], size_hw=SIZE_HW, input_hw=sam.image_processor.input_hw)
    inputs = {"point_coords": places[None, None], "point_labels": told[None, None, :, 2].int()}
    session.add_point_inputs(session.obj_id_to_idx(name), frame, inputs)


def track_theirs(sam, theirs, video, told, *, reverse=False):
    """From the first frame told, or the last when going back; ``told`` is {frame: {object: prompt}}."""
    session = their_session(pixels_of(sam, video))
    with torch.inference_mode():
        for frame, prompts in told.items():
            for name, prompt in prompts.items():
                tell(session, sam, frame, name, **prompt)
            theirs(inference_session=session, frame_idx=frame)
        start = max(told) if reverse else min(told)
        return list(theirs.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse))


def track_ours(sam, video, told, **options):
    session = sam.video(video, max_prompted=None)
    for frame, prompts in told.items():
        for name, prompt in prompts.items():
            session.prompt(frame, name, **prompt)
    return list(session.track(**options))


def assert_same_masks(ours, theirs, order=range(FRAMES), share=0.999):
    assert [r.index for r in ours] == [r.frame_idx for r in theirs] == list(order)
    for result, other in zip(ours, theirs, strict=True):
        assert result.object_ids == tuple(other.object_ids)
        np.testing.assert_allclose(result.object_scores, other.object_score_logits.flatten(), atol=1 - share)
        upscaled = F.interpolate(other.pred_masks, SIZE_HW, mode="bilinear", align_corners=False)
        same = (result.masks.masks == (upscaled[:, 0] > 0).numpy()).mean((1, 2))
        assert (same >= share).all(), f"frame {result.index}: {same}"


def assert_masks_prove_something(results):
    """They have borders; they move; and the objects differ, which on tracked frames is the doing of memory alone."""
    masks = np.stack([result.masks.masks for result in results])  # (frames, objects, height, width)
    areas = masks.mean((2, 3))
    assert areas.min() > 0.04
    assert areas.max() < 0.96
    assert (masks[1:] != masks[:-1]).mean((2, 3)).min() > 0.01
    assert (masks[:, 0] != masks[:, 1]).mean((1, 2)).min() > 0.01


PROMPTED = {
    "two objects at once": {0: PROMPTS},
    "one on two frames": {0: {1: PROMPTS[1]}, 3: {1: {"points": [(80, 50), (90, 90, 0)]}}},
    "one later than the other": {0: {1: PROMPTS[1]}, 3: {2: PROMPTS[2]}},  # and sought before it, too, by both
    "one click": {0: {1: {"points": [(40, 50)]}, 2: PROMPTS[2]}},
}


@pytest.mark.parametrize("case", PROMPTED)
def test_objects_are_followed_as_theirs_are(pair, video, case):
    assert_same_masks(track_ours(pair[0], video, PROMPTED[case]), track_theirs(*pair, video, PROMPTED[case]))


def test_the_weights_reach_what_is_compared(pair, video):
    assert_masks_prove_something(track_ours(pair[0], video, {0: PROMPTS}))


def test_going_back_they_are_followed_as_theirs_are(pair, video):
    told = {FRAMES - 1: LAST_PROMPTS}
    ours = track_ours(pair[0], video, told, direction="backward")
    assert_same_masks(ours, track_theirs(*pair, video, told, reverse=True), order=range(FRAMES - 1, -1, -1))


def test_sam_2_0_follows_as_theirs_does(video):
    """Without positions of pointers in time, and without the embedding of absent objects."""
    pair = pair_of(shrunken(hidden_size=128, is_v2_1=False), presence=5.0)
    assert_same_masks(track_ours(pair[0], video, {0: PROMPTS}), track_theirs(*pair, video, {0: PROMPTS}))


def test_objects_that_go_and_come_back_are_theirs(video):
    sam, theirs = pair_of(shrunken(hidden_size=128), presence=-1.05)
    for model in (sam.model, theirs):  # these weights find prompted objects the least present: the other way round
        model.mask_decoder.pred_obj_score_head.proj_out.weight.neg_()
    ours = track_ours(sam, video, {0: PROMPTS})
    visible = np.stack([result.visible for result in ours])
    assert visible[0].all()
    assert not visible[1].any()
    assert visible[-1].any()
    assert_same_masks(ours, track_theirs(sam, theirs, video, {0: PROMPTS}))


def test_a_stream_follows_as_their_stream_does(pair, video):
    """Frames come one at a time, and pointers' distances are measured by 16 whatever is still to come."""
    sam, theirs = pair
    live, session = sam.stream(), their_session()
    ours, others = [], []
    for index, (frame, pixels) in enumerate(zip(video, pixels_of(sam, video), strict=True)):
        ours.append(live.push(frame, PROMPTS if index == 0 else None))
        if index == 0:
            for name, prompt in PROMPTS.items():
                tell(session, sam, 0, name, **prompt)
        with torch.inference_mode():
            others.append(theirs(inference_session=session, frame=pixels[None]))
    assert_same_masks(ours, others)


def test_a_stream_gives_what_a_video_of_sixteen_frames_gives_bit_for_bit(pair, video):
    frames = video + video[::-1]
    live = pair[0].stream()
    pushed = [live.push(frame, PROMPTS if index == 0 else None) for index, frame in enumerate(frames)]
    for ours, other in zip(pushed, track_ours(pair[0], frames, {0: PROMPTS}), strict=True):
        np.testing.assert_array_equal(ours.masks.logits, other.masks.logits)


def test_a_mask_is_followed_nearly_as_theirs_is(pair, video):
    """Theirs remembers the mask at full size, and takes the pointer from the best of three masks.

    Meta's predictor remembers the low-resolution mask, and takes it from the single one (see the golden files).
    """
    mask = np.zeros(SIZE_HW, bool)
    mask[30:70, 20:60] = True
    told = {0: {1: {"mask": mask}, 2: PROMPTS[2]}}
    ours, theirs = track_ours(pair[0], video, told), track_theirs(*pair, video, told)
    assert_same_masks(ours[:1], theirs[:1], order=[0])
    assert_same_masks(ours, theirs, share=0.98)


def test_a_correction_is_theirs_but_for_the_earlier_logits_which_they_leave_out(pair, video):
    """Meta's predictor gives the decoder the frame's earlier logits, as we do; theirs then loses the correction."""
    sam, theirs = pair
    clicks = {"points": [(90, 50), (20, 90, 0)]}
    session = their_session(pixels_of(sam, video))
    tell(session, sam, 0, 1, **PROMPTS[1])
    with torch.inference_mode():
        theirs(inference_session=session, frame_idx=0)
        list(theirs.propagate_in_video_iterator(session, start_frame_idx=0))
        tell(session, sam, 4, 1, **clicks)
        expected = theirs(inference_session=session, frame_idx=4).pred_masks[0, 0]

    ours = sam.video(video, max_prompted=None)
    ours.prompt(0, 1, **PROMPTS[1])
    list(ours.track())
    bank, features = ours._tracks.objects[1].bank, ours._features_of(4)
    reading = ours._tracks.policy(4, bank.prompted, bank, step=1)
    with torch.inference_mode():
        remembered = read_memory(sam.model, features[2], [bank], [reading])
        seen, _ = track_object(sam.model, features, ours._tracks.read(**clicks), remembered, previous=None)
    torch.testing.assert_close(seen.logits, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
