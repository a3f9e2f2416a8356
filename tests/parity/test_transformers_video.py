"""Against the video model of the installed transformers: the same random weights, pixels and prompts, in float32.

Its processor needs torchvision, so its sessions are built by hand: our own pixel values, prompts in model pixels. It
differs from us in nothing that a test here must allow for: like us (and Meta) it stores memories in bfloat16, however
the session was made. Equal sums in another order then round to different memories now and then, and a network of
random weights feeds back what differs: the same happens to ourselves when weights are changed by 1e-7. So the seeds
below are of networks that do not amplify it; that their masks have borders, move, and hang on memory is asserted.
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
from masklet.processing import Sam2ImageProcessor
from masklet.prompts import to_model_pixels
from masklet.segmenter import Segmenter

FRAMES = 8
SIZE_HW = (120, 160)
PROMPTS = {1: {"points": [(40, 50), (50, 55), (110, 90, 0)]}, 2: {"box": (95, 76, 144, 112)}}


def loud(config, *, presence, seed=28):
    """A network whose masks have borders; ``presence`` is added to the logit that an object is there."""
    generator = torch.Generator().manual_seed(seed)
    model = Sam2Model(config).eval().requires_grad_(False)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = 1 if name.startswith("memory_") else 2  # more, and what a frame remembers runs away from frame to frame
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
    return Segmenter(ours, Sam2ImageProcessor(config.image_size)), theirs


@pytest.fixture(scope="module")
def pair():
    return pair_of(shrunken(hidden_size=128), presence=5.0)


@pytest.fixture(scope="module")
def film():
    """Two rectangles that move on noise."""
    back = np.random.default_rng(0).integers(0, 90, (*SIZE_HW, 3), dtype=np.uint8)
    frames = []
    for index in range(FRAMES):
        frame = back.copy()
        frame[30:70, 20 + 8 * index : 60 + 8 * index] = (240, 200, 40)
        frame[80:110, 100 - 6 * index : 140 - 6 * index] = (30, 90, 220)
        frames.append(frame)
    return frames


def pixels_of(sam, film):
    """(frames, 3, height, width): what our network is given."""
    return torch.cat([sam.image_processor.frame_values(frame) for frame in film])


def their_session(pixels=None):
    return TheirSession(video=pixels, video_height=SIZE_HW[0], video_width=SIZE_HW[1], dtype=torch.float32)


def tell(session, sam, frame, name, *, points=(), box=None):
    """Prompt theirs as their processor does: in model pixels, box corners as points of labels 2 and 3, first."""
    corners = [] if box is None else [(*box[:2], 2), (*box[2:], 3)]
    told = torch.tensor([(*p, 1)[:3] for p in [*corners, *points]], dtype=torch.float32)
    places = to_model_pixels(told[:, :2], size_hw=SIZE_HW, input_hw=sam.image_processor.input_hw)
    inputs = {"point_coords": places[None, None], "point_labels": told[None, None, :, 2].int()}
    session.add_point_inputs(session.obj_id_to_idx(name), frame, inputs)
    session.obj_with_new_inputs.append(name)


def track_theirs(sam, theirs, film, prompted, prompts, *, reverse=False):
    session = their_session(pixels_of(sam, film))
    for name, prompt in prompts.items():
        tell(session, sam, prompted, name, **prompt)
    with torch.inference_mode():
        theirs(inference_session=session, frame_idx=prompted)
        return list(theirs.propagate_in_video_iterator(session, start_frame_idx=prompted, reverse=reverse))


def track_ours(sam, film, prompted, prompts, **options):
    session = sam.video(film, max_prompted=None)
    for name, prompt in prompts.items():
        session.prompt(prompted, name, **prompt)
    return list(session.track(**options))


def assert_same_masks(ours, theirs, order=range(FRAMES)):
    assert [r.index for r in ours] == [r.frame_idx for r in theirs] == list(order)
    for result, other in zip(ours, theirs, strict=True):
        assert result.objects == tuple(other.object_ids)
        np.testing.assert_allclose(result.object_scores, other.object_score_logits.flatten(), atol=0.02)
        upscaled = F.interpolate(other.pred_masks, SIZE_HW, mode="bilinear", align_corners=False)
        same = (result.masks.masks == (upscaled[:, 0] > 0).numpy()).mean((1, 2))
        assert (same >= 0.999).all(), f"frame {result.index}: {same}"


def assert_masks_prove_something(results):
    """They have borders; they move; and the objects differ, which on tracked frames is the doing of memory alone."""
    masks = np.stack([result.masks.masks for result in results])  # (frames, objects, height, width)
    areas = masks.mean((2, 3))
    assert areas.min() > 0.04
    assert areas.max() < 0.96
    assert (masks[1:] != masks[:-1]).mean((2, 3)).min() > 0.01
    assert (masks[:, 0] != masks[:, 1]).mean((1, 2)).min() > 0.01


def test_two_objects_are_followed_as_theirs_are(pair, film):
    ours = track_ours(pair[0], film, 0, PROMPTS)
    assert_masks_prove_something(ours)
    assert_same_masks(ours, track_theirs(*pair, film, 0, PROMPTS))


def test_going_back_they_are_followed_as_theirs_are(pair, film):
    last = FRAMES - 1
    ours = track_ours(pair[0], film, last, PROMPTS, direction="backward")
    theirs = track_theirs(*pair, film, last, PROMPTS, reverse=True)
    assert_same_masks(ours, theirs, order=range(last, -1, -1))


def test_sam_2_0_follows_as_theirs_does(film):
    """Without positions of pointers in time, and without the embedding of absent objects."""
    pair = pair_of(shrunken(hidden_size=128, is_v2_1=False), presence=5.0)
    assert_same_masks(track_ours(pair[0], film, 0, PROMPTS), track_theirs(*pair, film, 0, PROMPTS))


def test_a_stream_follows_as_their_stream_does(pair, film):
    """Frames come one at a time, and pointers' distances are measured by 16 whatever is still to come."""
    sam, theirs = pair
    live, session = sam.stream(), their_session()
    ours, others = [], []
    for index, (frame, pixels) in enumerate(zip(film, pixels_of(sam, film), strict=True)):
        ours.append(live.push(frame, PROMPTS if index == 0 else None))
        if index == 0:
            for name, prompt in PROMPTS.items():
                tell(session, sam, 0, name, **prompt)
        with torch.inference_mode():
            others.append(theirs(inference_session=session, frame=pixels[None]))
    assert_same_masks(ours, others)


def test_a_stream_gives_what_a_film_of_sixteen_frames_gives_bit_for_bit(pair, film):
    frames = film + film[::-1]
    live = pair[0].stream()
    pushed = [live.push(frame, PROMPTS if index == 0 else None) for index, frame in enumerate(frames)]
    for ours, other in zip(pushed, track_ours(pair[0], frames, 0, PROMPTS), strict=True):
        np.testing.assert_array_equal(ours.masks.logits, other.masks.logits)
