"""Videos, against the video model of the installed transformers: same random weights, pixels and prompts, in float32.

Its processor needs torchvision, so the tests build its sessions from our pixel values and from prompts in model pixels.

Both sides (and Meta) store memories in bfloat16, whatever the type of the session. Equal sums in another order are
sometimes rounded to other memories, and a network of random weights amplifies the difference from frame to frame:
scaling our own weights by 1 + 1e-7 changes our own masks as much. The seed is that of a network that does not amplify
it. A test asserts that its masks have borders, move, and depend on memory.

transformers differs from Meta in two points, in which masklet follows Meta: see the last two tests.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compat.transformers_video import HW, moving_rectangles_of
from parity.test_transformers import shrunken
from transformers import Sam2VideoConfig as TheirConfig
from transformers import Sam2VideoModel as TheirModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession as TheirSession

from masklet.checkpoints.transformers import config_to_json
from masklet.model.sam2 import Sam2Model
from masklet.prompts import to_model_pixels
from masklet.video.tracker import readable_memory, track_object

pytestmark = pytest.mark.xdist_group("transformers video")

FRAMES = 8
PROMPTS = {1: {"points": [(40, 50), (50, 55), (110, 90, 0)]}, 2: {"box": (95, 76, 144, 112)}}
LAST_PROMPTS = {1: {"points": [(96, 50), (106, 55), (30, 100, 0)]}, 2: {"box": (56, 77, 101, 112)}}
"""Prompts for the rectangles of the last frame; ``PROMPTS`` are for those of the first."""


def random_model(config, *, presence, seed=8):
    """A network whose masks have borders. ``presence`` is the bias of the object score."""
    generator = torch.Generator().manual_seed(seed)
    model = Sam2Model(config).eval().requires_grad_(False)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = 1.2 if name.startswith("memory_") else 1.4  # with more, memories grow from frame to frame
        if parameter.ndim == 1:
            parameter.copy_(name.endswith("weight") + 0.1 * noise)
        else:
            parameter.copy_(noise if "embed" in name else gain * noise * parameter[0].numel() ** -0.5)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(presence)
    return model


CONFIG = shrunken(hidden_size=128)
"""Their model fails where the channels of features and of memories are equal, which are 64."""


@pytest.fixture(scope="module")
def pair_of(segmenter_of):
    """Builds our segmenter and their model with the same weights."""
    return partial(build_pair, segmenter_of)


def build_pair(segmenter_of, config, presence):
    ours = random_model(config, presence=presence)
    theirs = TheirModel(TheirConfig(**config_to_json(config))).eval().requires_grad_(False)
    assert not any(theirs.load_state_dict(ours.state_dict(), strict=False))
    return segmenter_of(ours), theirs


@pytest.fixture(scope="module")
def pair(pair_of):
    return pair_of(CONFIG, presence=5.0)


@pytest.fixture(scope="module")
def video():
    return moving_rectangles_of(FRAMES)


def pixels_of(sam, video):
    """(frames, 3, height, width): the input of our network."""
    return torch.cat([sam.image_processor.frame_values(frame) for frame in video])


def their_session(pixels=None):
    return TheirSession(video=pixels, video_height=HW[0], video_width=HW[1], dtype=torch.float32)


def prompt_theirs(session, sam, frame, name, *, points=(), box=None, mask=None):
    """Prompt as their processor does: in model pixels, with box corners as the first points, labelled 2 and 3."""
    session.obj_with_new_inputs.append(name)
    if mask is not None:
        fraction = F.interpolate(
            torch.from_numpy(mask)[None, None].float(), (256, 256), mode="bilinear", antialias=True
        )
        session.add_mask_inputs(session.obj_id_to_idx(name), frame, (fraction >= 0.5).float())
        return
    corners = [] if box is None else [(*box[:2], 2), (*box[2:], 3)]
    labelled = torch.tensor([(*p, 1)[:3] for p in [*corners, *points]], dtype=torch.float32)
    points_xy = to_model_pixels(labelled[:, :2], size_hw=HW, input_hw=sam.image_processor.input_hw)
    inputs = {"point_coords": points_xy[None, None], "point_labels": labelled[None, None, :, 2].int()}
    session.add_point_inputs(session.obj_id_to_idx(name), frame, inputs)


def track_theirs(sam, theirs, video, prompts, *, reverse=False):
    """Track from the first prompted frame, or backward from the last; ``prompts`` is {frame: {object: prompt}}."""
    session = their_session(pixels_of(sam, video))
    with torch.inference_mode():
        for frame, frame_prompts in prompts.items():
            for name, prompt in frame_prompts.items():
                prompt_theirs(session, sam, frame, name, **prompt)
            theirs(inference_session=session, frame_idx=frame)
        start = max(prompts) if reverse else min(prompts)
        return list(theirs.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse))


def track_ours(sam, video, prompts, **options):
    session = sam.video(video, max_prompted=None)
    for frame, frame_prompts in prompts.items():
        for name, prompt in frame_prompts.items():
            session.prompt(frame, name, **prompt)
    return list(session.track(**options))


def assert_same_masks(ours, theirs, order=range(FRAMES), agreement=0.999):
    assert [r.index for r in ours] == [r.frame_idx for r in theirs] == list(order)
    for result, other in zip(ours, theirs, strict=True):
        assert result.object_ids == tuple(other.object_ids)
        np.testing.assert_allclose(result.object_scores, other.object_score_logits.flatten(), atol=1 - agreement)
        upscaled = F.interpolate(other.pred_masks, HW, mode="bilinear", align_corners=False)
        same = (result.masks.masks == (upscaled[:, 0] > 0).numpy()).mean((1, 2))
        assert (same >= agreement).all(), f"frame {result.index}: {same}"


def assert_masks_depend_on_memory(results):
    """The masks have borders, move, and differ between objects, which on tracked frames only memory can cause."""
    masks = np.stack([result.masks.masks for result in results])  # (frames, objects, height, width)
    areas = masks.mean((2, 3))
    assert areas.min() > 0.04
    assert areas.max() < 0.96
    assert (masks[1:] != masks[:-1]).mean((2, 3)).min() > 0.01
    assert (masks[:, 0] != masks[:, 1]).mean((1, 2)).min() > 0.01


PROMPTED = {
    "two objects at once": {0: PROMPTS},
    "one on two frames": {0: {1: PROMPTS[1]}, 3: {1: {"points": [(80, 50), (90, 90, 0)]}}},
    "one later than the other": {0: {1: PROMPTS[1]}, 3: {2: PROMPTS[2]}},  # both track it before frame 3, too
    "one click": {0: {1: {"points": [(40, 50)]}, 2: PROMPTS[2]}},
}


@pytest.mark.parametrize("case", PROMPTED)
def test_objects_are_tracked_as_theirs_are(pair, video, case):
    assert_same_masks(track_ours(pair[0], video, PROMPTED[case]), track_theirs(*pair, video, PROMPTED[case]))


def test_masks_of_the_random_network_depend_on_memory(pair, video):
    assert_masks_depend_on_memory(track_ours(pair[0], video, {0: PROMPTS}))


def test_objects_are_tracked_backward_as_theirs_are(pair, video):
    prompts = {FRAMES - 1: LAST_PROMPTS}
    ours = track_ours(pair[0], video, prompts, direction="backward")
    assert_same_masks(ours, track_theirs(*pair, video, prompts, reverse=True), order=range(FRAMES - 1, -1, -1))


@pytest.mark.slow
def test_sam_2_0_tracks_as_theirs_does(pair_of, video):
    """Without positions of pointers in time, and without the embedding of absent objects."""
    pair = pair_of(shrunken(hidden_size=128, is_v2_1=False), presence=5.0)
    assert_same_masks(track_ours(pair[0], video, {0: PROMPTS}), track_theirs(*pair, video, {0: PROMPTS}))


def test_objects_that_leave_and_return_are_tracked_as_theirs_are(pair_of, video):
    sam, theirs = pair_of(CONFIG, presence=-1.05)
    for model in (sam.model, theirs):  # with these weights prompted objects score lowest, so the sign is changed
        model.mask_decoder.pred_obj_score_head.proj_out.weight.neg_()
    ours = track_ours(sam, video, {0: PROMPTS})
    visible = np.stack([result.visible for result in ours])
    assert visible[0].all()
    assert not visible[1].any()
    assert visible[-1].any()
    assert_same_masks(ours, track_theirs(sam, theirs, video, {0: PROMPTS}))


def test_a_stream_is_tracked_as_their_stream_is(pair, video):
    """Frames arrive one at a time, so distances of pointers are relative to 16 and not to the length of the video."""
    sam, theirs = pair
    live, session = sam.stream(), their_session()
    ours, others = [], []
    for index, (frame, pixels) in enumerate(zip(video, pixels_of(sam, video), strict=True)):
        ours.append(live.push(frame, PROMPTS if index == 0 else None))
        if index == 0:
            for name, prompt in PROMPTS.items():
                prompt_theirs(session, sam, 0, name, **prompt)
        with torch.inference_mode():
            others.append(theirs(inference_session=session, frame=pixels[None]))
    assert_same_masks(ours, others)


def test_a_stream_gives_what_a_video_of_sixteen_frames_gives_bit_for_bit(pair, video):
    frames = video + video[::-1]
    live = pair[0].stream()
    pushed = [live.push(frame, PROMPTS if index == 0 else None) for index, frame in enumerate(frames)]
    for ours, other in zip(pushed, track_ours(pair[0], frames, {0: PROMPTS}), strict=True):
        np.testing.assert_array_equal(ours.masks.logits, other.masks.logits)


def test_a_mask_prompt_is_tracked_nearly_as_theirs_is(pair, video):
    """Theirs remembers the mask at full size and takes the pointer from the best of three masks.

    Meta's predictor remembers the low-resolution mask and takes the pointer from the single one (see the golden files).
    """
    mask = np.zeros(HW, bool)
    mask[30:70, 20:60] = True
    prompts = {0: {1: {"mask": mask}, 2: PROMPTS[2]}}
    ours, theirs = track_ours(pair[0], video, prompts), track_theirs(*pair, video, prompts)
    assert_same_masks(ours[:1], theirs[:1], order=[0])
    assert_same_masks(ours, theirs, agreement=0.98)


def test_a_correction_without_the_previous_logits_gives_their_mask(pair, video):
    """Meta's predictor and ours give the decoder the previous logits of the frame. Theirs does not."""
    sam, theirs = pair
    clicks = {"points": [(90, 50), (20, 90, 0)]}
    session = their_session(pixels_of(sam, video))
    prompt_theirs(session, sam, 0, 1, **PROMPTS[1])
    with torch.inference_mode():
        theirs(inference_session=session, frame_idx=0)
        list(theirs.propagate_in_video_iterator(session, start_frame_idx=0))
        prompt_theirs(session, sam, 4, 1, **clicks)
        expected = theirs(inference_session=session, frame_idx=4).pred_masks[0, 0]

    ours = sam.video(video, max_prompted=None)
    ours.prompt(0, 1, **PROMPTS[1])
    list(ours.track())
    bank, features = ours._tracks.objects[1].bank, ours._features_of(4)
    reading = ours._tracks.policy.select(4, bank, step=1)
    with torch.inference_mode():
        memory = readable_memory(sam.engine, features, [bank], [reading])
        remembered = sam.engine.read_memory(features, memory)
        seen, _ = track_object(sam.engine, features, ours._tracks.read(**clicks), remembered, previous=None)
    torch.testing.assert_close(seen.logits, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
