"""EdgeTAM against the installed transformers, whose trunk is timm's: same random weights, pixels and prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from compat.transformers_video import HW, moving_rectangles_of
from edgetam import SMALL, random_edgetam
from parity.test_transformers_video import PROMPTS, assert_masks_depend_on_memory, pixels_of, prompt_theirs, track_ours
from transformers import EdgeTamConfig as TheirConfig
from transformers import EdgeTamModel as TheirModel
from transformers import EdgeTamVideoConfig as TheirVideoConfig
from transformers import EdgeTamVideoInferenceSession as TheirSession
from transformers import EdgeTamVideoModel as TheirVideoModel

from masklet.checkpoints.transformers import config_to_json
from masklet.config import edgetam_config
from masklet.engine import make_engine
from masklet.model.memory_attention import MemoryTokens
from masklet.model.prompt_encoder import Prompts
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

pytest.importorskip("timm", reason="transformers' EdgeTAM needs timm: make test-controls")
pytestmark = pytest.mark.xdist_group("edgetam")

FRAMES = 8
PUBLISHED = edgetam_config(image_size=512)
CONFIGS = {"small": SMALL, "small, as if of 2.1": edgetam_config(**{**vars(SMALL), "is_v2_1": True}), "M1": PUBLISHED}
MEMORY = (
    "mask_downsample",
    "memory_",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj",
    "occlusion_spatial_embedding_parameter",
    "spatial_perceiver",
    "temporal_positional_encoding_projection_layer",
)
SEEDS = {"small": 58, "small, as if of 2.1": 58, "M1": 3}
"""Of networks whose masks have borders, move, and depend on memory: a test asserts it."""
SLOW = pytest.mark.slow


def theirs_of(model):
    theirs = TheirVideoModel(TheirVideoConfig(**config_to_json(model.config))).eval().requires_grad_(False)
    assert not any(theirs.load_state_dict(model.state_dict(), strict=True))
    return theirs


def their_image_model(model):
    theirs = TheirModel(TheirConfig(**config_to_json(replace(model.config, has_memory=False)))).eval()
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith(MEMORY) for name in unexpected)
    return theirs


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[] if n == "small" else [SLOW]) for n in CONFIGS])
def pair(request):
    """Our segmenter and their model with the same weights."""
    model = random_edgetam(CONFIGS[request.param], seed=SEEDS[request.param])
    return Segmenter(make_engine(model), ImageProcessor(model.config.image_size)), theirs_of(model)


@pytest.fixture(scope="module")
def video():
    return moving_rectangles_of(FRAMES)


def recorded(module, calls):
    """A hook that keeps the inputs and outputs of a module."""

    def record(_, args, kwargs, output):
        inputs = [a.clone() for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        numbers = {k: v for k, v in kwargs.items() if isinstance(v, int)}
        outputs = [o.clone() for o in (output if isinstance(output, tuple) else (output,)) if o is not None]
        calls.append((inputs, numbers, outputs))

    return module.register_forward_hook(record, with_kwargs=True)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_stage_of_the_trunk_is_timms(pair, video):
    sam, theirs = pair
    pixels = pixels_of(sam, video[:2])
    with torch.inference_mode():
        ours = sam.model.vision_encoder.backbone.timm_model(pixels)
        expected = theirs.vision_encoder.backbone.timm_model(pixels)
    assert len(ours) == len(expected) == 4
    for mine, other in zip(ours, expected, strict=True):
        assert other.std() > 0.05
        close(mine, other)


def test_an_image_is_encoded_and_decoded_as_theirs_is(pair, video):
    sam, _ = pair
    side = sam.model.config.image_size
    points = torch.tensor([[[[0.3, 0.4], [0.7, 0.6]], [[0.5, 0.5], [0.2, 0.8]]]]) * side
    labels = torch.tensor([[[1, 0], [1, 1]]])
    with torch.inference_mode():
        features = sam.engine.encode(pixels_of(sam, video[:1]))
        images = their_image_model(sam.model)
        maps = images.get_image_features(pixels_of(sam, video[:1]), return_dict=True).fpn_hidden_states
        for mine, other in zip(features, maps, strict=True):
            close(mine, other.permute(1, 2, 0).unflatten(2, mine.shape[2:]))
        ours = sam.engine.decode(features, Prompts(points, labels), multimask=True)
        expected = images(pixel_values=pixels_of(sam, video[:1]), input_points=points, input_labels=labels)
    close(ours.logits, expected.pred_masks)
    close(ours.iou_scores, expected.iou_scores)
    close(ours.object_scores, expected.object_score_logits)


def track_theirs(sam, theirs, video):
    session = TheirSession(video=pixels_of(sam, video), video_height=HW[0], video_width=HW[1], dtype=torch.float32)
    with torch.inference_mode():
        for name, prompt in PROMPTS.items():
            prompt_theirs(session, sam, 0, name, **prompt)
        theirs(inference_session=session, frame_idx=0)
        return list(theirs.propagate_in_video_iterator(session, start_frame_idx=0))


def test_two_objects_are_tracked_through_eight_frames_as_theirs_are(pair, video):
    sam, theirs = pair
    ours, expected = track_ours(sam, video, {0: PROMPTS}), track_theirs(sam, theirs, video)
    assert [r.index for r in ours] == [r.frame_idx for r in expected] == list(range(FRAMES))
    assert_masks_depend_on_memory(ours)
    for result, other in zip(ours, expected, strict=True):
        logits = torch.from_numpy(np.stack([result[name].logits[0] for name in result.object_ids]))
        close(logits, other.pred_masks[:, 0])
        close(torch.as_tensor(result.object_scores), other.object_score_logits.flatten())


def test_every_part_of_the_memory_is_theirs(pair, video):
    """Given the inputs that their parts received, ours return what theirs did, layer by layer."""
    sam, theirs = pair
    perceived, attended, layers, ours = [], [], [], []
    hooks = [recorded(theirs.spatial_perceiver, perceived), recorded(theirs.memory_attention, attended)]
    hooks += [recorded(layer, layers) for layer in theirs.memory_attention.layers]
    track_theirs(sam, theirs, video[:4])
    for hook in hooks:
        hook.remove()
    assert (len(perceived), len(attended)) == (2 * 4, 2 * 3)
    hooks = [recorded(layer, ours) for layer in sam.model.memory_attention.layers]
    with torch.inference_mode():
        for (maps, _), _, (tokens, positions) in perceived:
            close(sam.model.spatial_perceiver(maps), tokens)
            close(sam.model.spatial_perceiver.positions(maps.device), positions[0])
        for (features, positions, memory, memory_positions), numbers, (expected,) in attended:
            tokens = MemoryTokens(
                keys=(memory + memory_positions).transpose(0, 1),
                values=memory.transpose(0, 1),
                num_pointers=numbers["num_object_pointer_tokens"],
                is_empty=None,
            )
            side = sam.model.config.image_size // 16
            arguments = (features.transpose(0, 1), positions[:, 0], tokens)
            close(sam.model.memory_attention(*arguments, map_hw=(side, side)), expected.flatten(0, 1))
    for hook in hooks:
        hook.remove()
    assert len(layers) == len(ours) == 2 * 3 * len(hooks)
    for (_, _, (mine,)), (_, _, (other,)) in zip(ours, layers, strict=True):
        close(mine, other.flatten(0, 1))
