"""Against the installed transformers, with the same random weights, in float32."""

from contextlib import contextmanager

import pytest
import torch
from transformers import Sam2Config as TheirConfig
from transformers import Sam2Model as TheirModel
from transformers import Sam2VideoConfig as TheirVideoConfig
from transformers import Sam2VideoModel as TheirVideoModel

from masklet.checkpoints.transformers import config_to_json
from masklet.config import Sam2Config, Sam2ImageEncoderConfig, Sam2MaskDecoderConfig, Sam2MemoryAttentionConfig
from masklet.engine import make_engine
from masklet.model.memory_attention import MemoryTokens
from masklet.model.neck import Features
from masklet.model.positions import sine_positions_2d
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model


def shrunken(**changes):
    """A small network with all modules: windows do not divide the map, two stages have a global block."""
    fields = {
        "image_size": 256,
        "hidden_size": 64,
        "image_encoder": Sam2ImageEncoderConfig(
            hidden_size=16,
            num_attention_heads=2,
            blocks_per_stage=(1, 2, 3, 2),
            global_attention_blocks=(2, 4),
            window_size_per_stage=(8, 4, 14, 7),
            window_positional_embedding_background_size=(5, 5),
        ),
        "mask_decoder": Sam2MaskDecoderConfig(mlp_dim=96, num_attention_heads=4),
        "memory_attention": Sam2MemoryAttentionConfig(num_layers=2, feed_forward_hidden_size=128),
    }
    return Sam2Config(**(fields | changes))


CONFIGS = {
    "tiny": Sam2Config(image_size=512),  # the golden files of Meta's predictor are at 1024
    "shrunken": shrunken(),
    "shrunken 2.0": shrunken(is_v2_1=False),
    "shrunken, heads of 4 channels, without dynamic multimask": shrunken(
        image_size=128,
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=32, num_attention_heads=8, dynamic_multimask_via_stability=False),
    ),
}
SLOW = {"tiny"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.xdist_group(name), *([pytest.mark.slow] if name in SLOW else [])])
        for name in CONFIGS
    ],
)
def pair(request):
    """Our model, their image model and their video model, with the same random weights."""
    config = CONFIGS[request.param]
    torch.manual_seed(0)
    ours = Sam2Model(config)
    for parameter in ours.parameters():  # errors in a parameter near zero would not show
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        elif parameter.std() < 0.1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    ours.eval().requires_grad_(False)
    content = config_to_json(config)
    video = TheirVideoModel(TheirVideoConfig(**content)).eval().requires_grad_(False)
    assert not any(video.load_state_dict(ours.state_dict(), strict=False))
    image = TheirModel(TheirConfig(**{k: v for k, v in content.items() if k.endswith("_config")}))
    assert not image.load_state_dict(ours.state_dict(), strict=False).missing_keys
    return ours, image.eval().requires_grad_(False), video


@pytest.fixture(scope="module")
def embeddings(pair):
    """Their embeddings and ours of two images."""
    ours, theirs, _ = pair
    side = ours.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = ours.encode(pixels)
        return theirs.get_image_embeddings(pixels), [*features[:2], ours.without_memory(features.stride16)]


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def prompts_for(side):
    """Prompts for three objects in each of two images of this side in pixels."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(2, 3, 2, 2, generator=generator) * side
    labels = torch.tensor([[[1, 0], [1, 1], [0, 1]], [[1, 1], [1, 0], [1, 0]]])
    corners = torch.rand(2, 3, 2, 2, generator=generator) * side
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)
    return {
        "points": {"input_points": points, "input_labels": labels},
        "one click": {"input_points": points[:, :, :1], "input_labels": labels[:, :, :1]},
        "boxes": {"input_boxes": boxes},
        "points and boxes": {"input_points": points, "input_labels": labels, "input_boxes": boxes},
        "many points": {  # too many tokens for folded attention on a CPU
            "input_points": torch.rand(2, 3, 40, 2, generator=generator) * side,
            "input_labels": torch.ones(2, 3, 40, dtype=torch.long),
        },
    }


def test_the_image_encoder_gives_their_maps(embeddings):
    for theirs, ours in zip(*embeddings, strict=True):
        close(ours, theirs)


def test_the_prompt_encoder_gives_their_embeddings(pair):
    ours, theirs, _ = pair
    side = ours.config.image_size
    prompts = prompts_for(side)["points and boxes"]
    masks = torch.randn(6, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(3)) * 5
    sparse, dense = theirs.prompt_encoder(
        prompts["input_points"], prompts["input_labels"], prompts["input_boxes"], masks
    )
    embedded = ours.prompt_encoder(
        Prompts(*prompts.values(), masks.view(2, 3, side // 4, side // 4)),
        map_hw=(side // 16, side // 16),
        input_hw=(side, side),
    )
    close(embedded.tokens, sparse)
    close(embedded.dense.flatten(0, 1), dense)


def prompts_as_ours(given):
    """Their names of prompts to ours."""
    return Prompts(*(given.get(f"input_{name}") for name in ("points", "labels", "boxes", "masks")))


@pytest.mark.parametrize("engine", ["eager", "cpu"])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["points", "one click", "boxes", "points and boxes", "many points"])
def test_engines_give_their_masks(pair, embeddings, kind, multimask, engine):
    ours, theirs, _ = pair
    given = prompts_for(ours.config.image_size)[kind]
    features = Features(*embeddings[0])
    with torch.inference_mode():
        expected = theirs(image_embeddings=embeddings[0], multimask_output=multimask, **given)
        got = make_engine(ours, engine).decode(
            features, prompts_as_ours(given), multimask=multimask, conditioned=features.stride16
        )
    close(got.logits, expected.pred_masks)
    close(got.iou_scores, expected.iou_scores)
    close(got.object_scores, expected.object_score_logits)


@pytest.mark.parametrize("with_point", [True, False])
def test_a_mask_prompt_gives_their_masks(pair, embeddings, with_point):
    ours, theirs, _ = pair
    side = ours.config.image_size
    mask = torch.randn(1, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(3)) * 5
    given = {"input_masks": mask}
    if with_point:
        given["input_points"] = torch.full((1, 1, 1, 2), side / 3)
        given["input_labels"] = torch.ones(1, 1, 1, dtype=torch.long)
    one = Features(*(embedding[:1] for embedding in embeddings[0]))
    with torch.inference_mode():
        expected = theirs(image_embeddings=[*one], **given)
        got = ours.decode(one, prompts_as_ours(given), multimask=True, conditioned=one.stride16)
    close(got.logits, expected.pred_masks)
    close(got.iou_scores, expected.iou_scores)


@contextmanager
def fainter_single_masks(models, factor):
    """Scale the logits of the single mask: with random weights none is near 0."""
    names = [f"mask_decoder.output_hypernetworks_mlps.0.proj_out.{name}" for name in ("weight", "bias")]
    parameters = [model.get_parameter(name) for model in models for name in names]
    originals = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.mul_(factor)
    yield
    for parameter, original in zip(parameters, originals, strict=True):
        parameter.copy_(original)


@pytest.mark.parametrize(("kind", "multimask"), [("points and boxes", False), ("masks", True)])
def test_gradients_of_a_loaded_model_are_theirs(pair, kind, multimask):
    frozen, theirs, _ = pair
    side = frozen.config.image_size
    ours = Sam2Model.from_tensors(frozen.config, frozen.state_dict())
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    prompts = {name: values[:1] for name, values in prompts_for(side)["points and boxes"].items()}
    if kind == "masks":
        prompts["input_masks"] = torch.randn(1, 1, side // 4, side // 4, generator=generator) * 5
        prompts = {name: values if name == "input_masks" else values[:, :1] for name, values in prompts.items()}
    gradients = []
    for model in (ours, theirs.requires_grad_(True)):
        if model is ours:
            output = ours.decode(ours.encode(pixels), prompts_as_ours(prompts), multimask=multimask)
            masks, scores = output.logits, output.object_scores
        else:
            output = theirs(pixel_values=pixels, multimask_output=multimask, **prompts)
            masks, scores = output.pred_masks, output.object_score_logits
        (masks.sigmoid().mean() + output.iou_scores.sum() + scores.sum()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
        model.zero_grad()
    theirs.requires_grad_(False)
    (own, expected), parts = gradients, set()
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-6)
        if gradient.any():
            parts.add(name.split(".")[0])
    assert {"vision_encoder", "mask_decoder", "prompt_encoder"} <= parts


def test_unstable_single_masks_are_replaced_as_theirs_are(pair, embeddings):
    """As they are, all single masks are stable. Scaled down, none is."""
    ours, theirs, _ = pair
    points = torch.rand(2, 8, 1, 2, generator=torch.Generator().manual_seed(4)) * ours.config.image_size
    labels = torch.ones(points.shape[:3], dtype=torch.long)
    features = Features(*embeddings[0])
    is_replaced = []
    for factor in (1, 0.001):
        with fainter_single_masks((ours, theirs), factor), torch.inference_mode():
            expected = theirs(image_embeddings=embeddings[0], input_points=points, multimask_output=False)
            got, all_four = (
                ours.decode(features, Prompts(points, labels), multimask=multimask, conditioned=features.stride16)
                for multimask in (False, None)
            )
        close(got.logits, expected.pred_masks)
        is_replaced += (got.logits[:, :, 0] != all_four.logits[:, :, 0]).flatten(2).any(2).flatten().tolist()
    assert any(is_replaced) == ours.config.mask_decoder.dynamic_multimask_via_stability
    assert not all(is_replaced)


def test_the_memory_attention_gives_their_features(pair):
    ours, _, theirs = pair
    side = ours.config.image_size // 16
    cells, dim, memory_dim = side * side, ours.config.hidden_size, ours.config.memory_encoder.output_channels
    generator = torch.Generator().manual_seed(5)
    features, positions = (torch.randn(cells, 1, dim, generator=generator) for _ in range(2))
    memory, memory_positions = (torch.randn(cells * 2 + 8, 2, memory_dim, generator=generator) for _ in range(2))
    with torch.inference_mode():
        of_both = (tensor.expand(-1, 2, -1) for tensor in (features, positions))
        expected = theirs.memory_attention(next(of_both), memory, next(of_both), memory_positions, 8)
        ours_first = [t.transpose(0, 1) for t in (features, positions, memory, memory_positions)]
        tokens = MemoryTokens(ours_first[2] + ours_first[3], ours_first[2], num_pointers=8, is_empty=None)
        got = ours.memory_attention(*ours_first[:2], tokens, map_hw=(side, side))
    close(got, expected.squeeze(0) if expected.ndim == 4 else expected)


def test_the_memory_encoder_gives_their_memories(pair):
    ours, _, theirs = pair
    side = ours.config.image_size
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(2, ours.config.hidden_size, side // 16, side // 16, generator=generator)
    masks = torch.randn(2, 1, side, side, generator=generator) * 10
    with torch.inference_mode():
        expected, positions = theirs.memory_encoder(features, masks)
        got = ours.memory_encoder(features, masks)
    close(got, expected)
    memory_dim = ours.config.memory_encoder.output_channels
    sines = sine_positions_2d((side // 16, side // 16), memory_dim, got.device)
    close(sines, positions[0].flatten(1).T)
