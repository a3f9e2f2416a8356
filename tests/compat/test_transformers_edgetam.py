"""transformers' EdgeTAM classes for images: the same assertions on the installed transformers and on ours.

Its video classes are tested with those of SAM 2, in ``test_transformers_video`` and ``test_transformers_video_parity``.
"""

import json

import pytest
import torch
import transformers
from compat.test_transformers_processing import registered  # noqa: F401
from compat.transformers_image import BOTH, package
from compat.transformers_video import CONFIGS, random_network

from masklet.checkpoints.transformers import config_to_json
from masklet.compat import transformers as ours
from masklet.errors import CheckpointError, ConfigError

pytest.importorskip("timm", reason="transformers' EdgeTAM needs timm: pip install masklet[test-edgetam]")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers edgetam")]

SIDE = 128
CONFIG = config_to_json(CONFIGS["EdgeTAM"])


def image_config(kind):
    sections = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    return package(kind).EdgeTamConfig(**{name: dict(CONFIG[name]) for name in sections})


def image_model(kind):
    model = package(kind).EdgeTamModel(image_config(kind)).eval()
    weights = random_network(version="EdgeTAM").state_dict()
    assert not model.load_state_dict({n: t for n, t in weights.items() if n in model.state_dict()}).missing_keys
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: image_model(kind) for kind in BOTH}


@pytest.fixture(params=BOTH)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(2, 3, 2, 2, generator=generator) * SIDE
    return {
        "pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=generator),
        "input_points": points,
        "input_labels": torch.tensor([[[1, 0], [1, 1], [0, 1]]] * 2),
    }


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """The image model of each side, saved by it."""
    paths = {kind: tmp_path_factory.mktemp(kind) for kind in BOTH}
    for kind, model in models.items():
        model.save_pretrained(paths[kind])
    return paths


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompts", [("input_points", "input_labels"), ("input_boxes",), ("input_masks",), ()])
@pytest.mark.parametrize("multimask", [True, False])
def test_both_sides_give_the_same(models, given, prompts, multimask):
    corners = given["input_points"]
    more = {
        "input_boxes": torch.cat([corners.amin(2), corners.amax(2)], -1)[:1],
        "input_masks": torch.randn(1, 1, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(0)),
    }
    batch = 2 if "input_points" in prompts else 1
    inputs = {name: (given | more)[name] for name in prompts} | {"pixel_values": given["pixel_values"][:batch]}
    with torch.no_grad():
        one, other = (models[kind](**inputs, multimask_output=multimask) for kind in BOTH)
    assert list(one.keys()) == list(other.keys())
    for name in ("iou_scores", "pred_masks", "object_score_logits"):
        close(one[name], other[name])
    for mine, their in zip(one.image_embeddings, other.image_embeddings, strict=True):
        close(mine, their)


def test_an_output_has_its_fields_in_order(models, kind, given):
    with torch.no_grad():
        output = models[kind](**given)
    assert list(output.keys()) == ["iou_scores", "pred_masks", "object_score_logits", "image_embeddings"]
    assert output[1] is output.pred_masks
    assert output.pred_masks.shape == (2, 3, 3, SIDE // 4, SIDE // 4)


def test_embeddings_stand_in_for_pixels(models, kind, given):
    prompts = {name: value for name, value in given.items() if name != "pixel_values"}
    with torch.no_grad():
        embeddings = models[kind].get_image_embeddings(given["pixel_values"])
        output = models[kind](image_embeddings=embeddings, **prompts)
        close(output.pred_masks, models[kind](**given).pred_masks)


def test_image_features_and_positions_are_the_same(models, given):
    with torch.no_grad():
        one, other = (m.get_image_features(given["pixel_values"], return_dict=True) for m in models.values())
        vision = [m.vision_encoder(given["pixel_values"]) for m in models.values()]
    close(vision[0].last_hidden_state, vision[1].last_hidden_state)
    for name in ("fpn_hidden_states", "fpn_position_encoding"):
        for mine, their in zip(one[name], other[name], strict=True):
            close(mine, their)
    close(*(m.get_image_wide_positional_embeddings() for m in models.values()))


def test_prompt_embeddings_are_the_same(models, given):
    sides = [m.get_prompt_embeddings(given["input_points"], given["input_labels"]) for m in models.values()]
    for one, other in zip(*sides, strict=True):
        close(one, other)


def test_parameters_and_buffers_have_the_same_names_and_shapes(models):
    shapes = [{name: tuple(t.shape) for name, t in m.state_dict().items()} for m in models.values()]
    assert shapes[0] == shapes[1]
    assert models["masklet"].num_parameters() == models["transformers"].num_parameters()


@pytest.mark.parametrize("name", ["EdgeTamConfig", "EdgeTamVideoConfig"])
def test_names_of_types_and_sections_are_the_same(name):
    one, other = (getattr(package(kind), name)() for kind in BOTH)
    assert one.model_type == other.model_type
    for section in ("prompt_encoder_config", "mask_decoder_config"):
        mine, theirs = getattr(other, section).to_dict(), getattr(one, section).to_dict()
        assert mine["model_type"] == theirs["model_type"]
        assert {k: v for k, v in mine.items() if theirs.get(k, v) != v} == {}
    if name == "EdgeTamVideoConfig":
        own = {k: v for k, v in other.to_dict().items() if k.startswith(("memory_", "perceiver_", "mask_down", "num_"))}
        assert own
        assert {k: v for k, v in own.items() if one.to_dict()[k] != v} == {}


def test_a_configuration_can_be_saved(kind, tmp_path):
    image_config(kind).save_pretrained(tmp_path)
    read = package(kind).EdgeTamConfig.from_pretrained(tmp_path)
    assert read.to_dict()["vision_config"]["backbone_config"]["model_args"]["embed_dim"] == [8, 16, 96, 64]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "edgetam"


@pytest.mark.parametrize("writer", BOTH)
def test_each_side_reads_what_either_wrote(folders, models, kind, writer, given):
    model = package(kind).EdgeTamModel.from_pretrained(folders[writer])
    assert not model.training
    with torch.no_grad():
        close(model(**given).pred_masks, models["transformers"](**given).pred_masks)


def test_the_image_half_of_a_video_model_is_read(kind, tmp_path, given, models):
    random_network(version="EdgeTAM").save_pretrained(tmp_path)
    model = package(kind).EdgeTamModel.from_pretrained(tmp_path)
    assert not [name for name in model.state_dict() if "perceiver" in name or "memory_" in name[:7]]
    with torch.no_grad():
        close(model(**given).pred_masks, models["transformers"](**given).pred_masks)


def test_a_bfloat16_model_keeps_its_norms_in_float32(folders, given):
    model = ours.EdgeTamModel.from_pretrained(folders["masklet"], dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    norm = model.vision_encoder.backbone.timm_model.stem.conv1.bn
    assert norm.weight.dtype == norm.running_var.dtype == torch.float32
    assert norm.num_batches_tracked.dtype == torch.int64
    with torch.no_grad():
        assert model(**given).pred_masks.dtype == torch.bfloat16


def test_gradients_are_the_same(given):
    gradients = []
    for kind in BOTH:
        model = image_model(kind)
        model(**given).pred_masks.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = max(gradient.abs().max().item(), 1e-3)  # that of a key's bias is zero, and only rounding remains
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3 * scale, msg=name)


def test_the_trunk_has_no_attention_to_show(kind, models, given):
    with pytest.raises(ValueError, match="output_attentions"):
        models[kind](**given, output_attentions=True)


def test_a_model_of_the_other_family_is_refused_by_name(folders, tiny_folder):
    with pytest.raises(CheckpointError, match="type 'edgetam': expected sam2 or sam2_video"):
        ours.Sam2Model.from_pretrained(folders["masklet"])
    with pytest.raises(CheckpointError, match="type 'sam2_video': expected edgetam or edgetam_video"):
        ours.EdgeTamModel.from_pretrained(tiny_folder)


def test_another_trunk_is_refused_by_name():
    vision = {"backbone_config": {"model_type": "timm_wrapper", "architecture": "resnet50"}}
    with pytest.raises(ConfigError, match="architecture is 'resnet50': expected repvit_m1"):
        ours.EdgeTamModel(ours.EdgeTamConfig(vision_config=vision))


@pytest.mark.parametrize(
    ("auto", "image", "video"),
    [
        ("AutoConfig", "EdgeTamConfig", "EdgeTamVideoConfig"),
        ("AutoModel", "EdgeTamModel", "EdgeTamVideoModel"),
        ("AutoModelForMaskGeneration", "EdgeTamModel", "EdgeTamModel"),
        ("AutoProcessor", "Sam2Processor", "Sam2VideoProcessor"),
    ],
)
def test_auto_classes_find_ours_after_register(registered, folders, tmp_path, auto, image, video):  # noqa: F811
    find = getattr(transformers, auto).from_pretrained
    assert isinstance(find(folders["masklet"]), getattr(ours, image))
    ours.EdgeTamVideoModel.from_network(random_network(version="EdgeTAM")).save_pretrained(tmp_path)
    assert isinstance(find(tmp_path), getattr(ours, video))
