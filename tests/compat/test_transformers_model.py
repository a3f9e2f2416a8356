"""The image models through transformers' interface: the same assertions on transformers' classes and on ours."""

import copy
import json
import pickle
import re

import pytest
import torch
import transformers
from compat.transformers_image import (
    BACKBONE,
    BOTH,
    DECODER,
    SIDE,
    VISION,
    inputs_of,
    package,
    small_config,
    small_model,
    small_weights,
)
from safetensors.torch import load_file, save_file
from torch import nn

import masklet
import masklet.compat.transformers as ours
from masklet.errors import CheckpointError, ConfigError, ImageError, PromptError

FIELDS = ["iou_scores", "pred_masks", "object_score_logits", "image_embeddings"]


@pytest.fixture(scope="module")
def models():
    return {kind: small_model(kind).requires_grad_(False) for kind in BOTH}


@pytest.fixture(params=BOTH)
def kind(request):
    return request.param


@pytest.fixture
def model(kind, models):
    return models[kind]


@pytest.fixture(scope="module")
def given():
    return inputs_of()


@pytest.fixture(scope="module")
def outputs(models, given):
    """The output of each side for three objects in each of two images."""
    return {kind: model(given.pixels, given.points, given.labels) for kind, model in models.items()}


# Outputs


def test_fields_have_their_order(outputs, kind):
    assert list(outputs[kind].keys()) == FIELDS


def test_a_field_is_an_attribute_a_key_and_an_index(outputs, kind):
    output = outputs[kind]
    assert output[1] is output["pred_masks"]
    assert output["pred_masks"] is output.pred_masks
    assert [len(part) for part in output[:2]] == [2, 2]


def test_the_tuple_leaves_out_what_is_none(outputs, kind):
    output = outputs[kind]
    scores, masks, objects, embeddings = output.to_tuple()
    assert masks is output.pred_masks
    assert output.vision_attentions is None
    assert "vision_attentions" not in output
    assert len(output) == 4


@pytest.mark.parametrize("key", ["vision_attentions", "nothing"])
def test_a_key_that_is_not_there_is_a_key_error(outputs, kind, key):
    with pytest.raises(KeyError):
        outputs[kind][key]
    assert outputs[kind].get(key, 5) == 5


def test_iteration_is_over_names(outputs, kind):
    assert list(outputs[kind]) == FIELDS
    assert {**outputs[kind]}.keys() == set(FIELDS)


def test_a_field_that_is_set_is_set_everywhere(models, kind, given):
    output = models[kind](given.pixels, given.points)
    output.pred_masks = torch.zeros(1)
    assert output["pred_masks"].tolist() == [0] == output[1].tolist()
    output["iou_scores"] = torch.ones(1)
    assert output.iou_scores.tolist() == [1]


@pytest.mark.parametrize("method", ["pop", "update", "setdefault"])
def test_fields_cannot_be_taken_away(outputs, kind, method):
    with pytest.raises(Exception, match=method):
        getattr(outputs[kind], method)("pred_masks")


def test_an_output_can_be_pickled_and_copied(outputs):
    for again in (pickle.loads(pickle.dumps(outputs["masklet"])), copy.deepcopy(outputs["masklet"])):
        assert type(again) is ours.Sam2ImageSegmentationOutput
        assert again.keys() == outputs["masklet"].keys()
        assert torch.equal(again.pred_masks, outputs["masklet"].pred_masks)


def test_return_dict_false_gives_a_tuple(model, given, kind):
    output = model(given.pixels, given.points, return_dict=False)
    assert type(output) is tuple
    assert [tuple(t.shape) for t in output[:3]] == [(2, 3, 3), (2, 3, 3, 16, 16), (2, 3, 1)]


def test_shapes(outputs, kind):
    output = outputs[kind]
    assert output.pred_masks.shape == (2, 3, 3, 16, 16)
    assert output.iou_scores.shape == (2, 3, 3)
    assert output.object_score_logits.shape == (2, 3, 1)
    assert [tuple(t.shape) for t in output.image_embeddings] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 32, 4, 4)]


def test_one_mask_for_each_object(model, given):
    output = model(given.pixels, given.points, multimask_output=False)
    assert output.pred_masks.shape == (2, 3, 1, 16, 16)
    assert output.iou_scores.shape == (2, 3, 1)


def test_hidden_states_and_attentions_come_when_asked_for(model, given):
    output = model(given.pixels, given.points, output_hidden_states=True, output_attentions=True)
    assert list(output.keys()) == [*FIELDS, "vision_hidden_states", "vision_attentions", "mask_decoder_attentions"]
    assert [len(output[name]) for name in list(output)[4:]] == [8, 7, 2]
    assert output.vision_hidden_states[0].shape == (2, 16, 16, 16)


def test_configurations_ask_for_them_too(given):
    """transformers looks at another configuration than that of the model."""
    model = small_model("masklet")
    model.config.output_hidden_states = True
    assert "vision_hidden_states" in model(given.pixels, given.points)


def test_embeddings_in_place_of_pixels(model, given, outputs, kind):
    output = model(
        image_embeddings=model.get_image_embeddings(given.pixels), input_points=given.points, input_labels=given.labels
    )
    torch.testing.assert_close(output.pred_masks, outputs[kind].pred_masks)
    assert "vision_attentions" not in output


# Values

PROMPT_KINDS = {
    "points": lambda g: {"input_points": g.points, "input_labels": g.labels},
    "points alone": lambda g: {"input_points": g.points},
    "one click": lambda g: {"input_points": g.points[:, :, :1], "input_labels": g.labels[:, :, :1]},
    "boxes": lambda g: {"input_boxes": g.boxes},
    "points and boxes": lambda g: {"input_points": g.points, "input_labels": g.labels, "input_boxes": g.boxes},
    "reversed boxes": lambda g: {"input_boxes": g.boxes[..., [2, 3, 0, 1]]},
    "points outside": lambda g: {"input_points": g.points * 4 - 90, "input_labels": g.labels},
    "labels 2 and 3": lambda g: {"input_points": g.points, "input_labels": g.labels + 2},
    "label -1": lambda g: {"input_points": g.points, "input_labels": g.labels - 1},
    "nothing": lambda g: {},
    "labels alone": lambda g: {"input_labels": g.labels},
    "mask": lambda g: {"input_masks": g.masks},
    "a mask for each image": lambda g: {"input_points": g.points, "input_masks": torch.cat([g.masks, -g.masks])},
    "one mask for all": lambda g: {"input_points": g.points, "input_masks": g.masks},
    "a large mask": lambda g: {"input_points": g.points, "input_masks": nn.Upsample(scale_factor=4)(g.masks)},
    "a small mask": lambda g: {"input_points": g.points, "input_masks": g.masks[..., ::2, ::2]},
    "PerSAM's similarity": lambda g: {"input_points": g.points, "attention_similarity": g.pixels[:1, :1, :1, :16]},
    "PerSAM's target": lambda g: {"input_points": g.points, "target_embedding": g.pixels[:1, :1, :1, :32]},
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", PROMPT_KINDS)
def test_both_sides_give_the_same(models, given, name, multimask):
    prompts = PROMPT_KINDS[name](given)
    if name == "mask":
        given = inputs_of(batch=1)
    theirs, got = (
        models[kind](
            given.pixels, **prompts, multimask_output=multimask, output_hidden_states=True, output_attentions=True
        )
        for kind in BOTH
    )
    assert got.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(got[key], theirs[key], rtol=1e-4, atol=1e-4)


def test_dynamic_multimask_is_the_same(given):
    """Single masks of small logits are unstable, and replaced."""
    found = []
    for kind in BOTH:
        model = small_model(kind).requires_grad_(False)
        model.mask_decoder.output_hypernetworks_mlps[0].proj_out.weight.mul_(1e-3)
        model.mask_decoder.output_hypernetworks_mlps[0].proj_out.bias.mul_(1e-3)
        found.append(model(given.pixels, given.points, multimask_output=False).pred_masks)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert found[1].abs().mean() > 0.1


@pytest.fixture
def padded(given):
    """The second object has one point, the third box is padding."""
    points, labels, boxes = given.points.clone(), given.labels.clone(), given.boxes.clone()
    points[:, 1, 1], labels[:, 1, 1], boxes[:, 2] = -10, -10, -10
    return {"input_points": points, "input_labels": labels}, {"input_boxes": boxes}


@pytest.mark.parametrize("how", ["argument", "configuration", "constructor"])
def test_padding_takes_part_as_in_transformers_when_asked(models, given, padded, how):
    model, forward = models["masklet"], {}
    if how == "argument":
        forward = {"pad_attends": True}
    elif how == "constructor":
        model = ours.Sam2Model(small_config("masklet"), pad_attends=True).eval()
        model.load_state_dict(small_weights())
    else:
        model = small_model("masklet")
        model.config.pad_attends = True
    for prompts in padded:
        theirs = models["transformers"](given.pixels, **prompts)
        torch.testing.assert_close(
            model(given.pixels, **prompts, **forward).pred_masks, theirs.pred_masks, rtol=1e-4, atol=1e-4
        )


def test_padding_has_no_effect_otherwise(models, given, padded):
    """The object with one point scores what it scores alone."""
    alone = models["masklet"](given.pixels, given.points[:, 1:2, :1], given.labels[:, 1:2, :1])
    together = models["masklet"](given.pixels, **padded[0])
    torch.testing.assert_close(together.pred_masks[:, 1:2], alone.pred_masks, rtol=1e-4, atol=1e-4)
    theirs = models["transformers"](given.pixels, **padded[0])
    assert (theirs.iou_scores[:, 1:2] - alone.iou_scores).abs().max() > 1e-4


def test_masks_for_each_object_are_accepted(models, given):
    """transformers' model takes one mask for each image only."""
    masks = torch.cat([given.masks * scale for scale in range(6)])
    got = models["masklet"](given.pixels, given.points, input_masks=masks.view(2, 3, 16, 16))
    for index in range(3):
        one = models["transformers"](
            given.pixels[1:], given.points[1:, index : index + 1], input_masks=masks[3 + index : 4 + index]
        )
        torch.testing.assert_close(got.pred_masks[1, index], one.pred_masks[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 1, 16, 16), (6, 16, 16)])
def test_masks_may_be_grouped_in_any_way(models, given, shape):
    masks = 10 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    one, other = (models["masklet"](given.pixels, given.points, input_masks=m) for m in (masks, masks.reshape(shape)))
    assert torch.equal(one.pred_masks, other.pred_masks)


@pytest.mark.parametrize("name", [name for name in PROMPT_KINDS if name != "mask"])
def test_without_gradients_both_sides_give_the_same(models, given, name):
    """The engine of ``masklet.load`` runs the network."""
    prompts = PROMPT_KINDS[name](given)
    with torch.no_grad():
        theirs, got = (models[kind](given.pixels, **prompts) for kind in BOTH)
    assert models["masklet"]._engine is not None
    assert list(got.keys()) == list(theirs.keys())
    for key in theirs:
        torch.testing.assert_close(got[key], theirs[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["optimizer", "load_state_dict", "module", "data", "cast"])
def test_without_gradients_changed_weights_are_used(given, change):
    model = small_model("masklet")
    with torch.no_grad():
        before = model(given.pixels, given.points).pred_masks
    if change == "optimizer":
        model(given.pixels, given.points).pred_masks.mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    elif change == "load_state_dict":
        model.load_state_dict({name: tensor * 1.1 for name, tensor in small_weights().items()})
    elif change == "module":
        model.mask_decoder.conv_s0 = nn.Conv2d(32, 4, 1)
    elif change == "cast":
        model.to(torch.bfloat16).float()
    else:
        model.mask_decoder.conv_s0.weight.data.mul_(2)
        model.eval()
    expected = model(given.pixels, given.points).pred_masks.detach()
    with torch.no_grad():
        after = model(given.pixels, given.points).pred_masks
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-3


def test_without_gradients_hooks_run_too(kind, given):
    model, seen = small_model(kind), []
    model.mask_decoder.transformer.register_forward_hook(lambda *_: seen.append("decoder"))
    with torch.no_grad():
        model(given.pixels, given.points)
    assert seen == ["decoder"]


# Methods


def test_image_features(models, given):
    theirs, got = (models[kind].get_image_features(given.pixels) for kind in BOTH)
    assert list(got.keys()) == list(theirs.keys())
    assert [tuple(t.shape) for t in got.fpn_hidden_states] == [(256, 2, 4), (64, 2, 8), (16, 2, 32)]
    for name in theirs:
        torch.testing.assert_close(got[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["vision_encoder", "vision_encoder.backbone"])
def test_parts_give_their_outputs(models, given, part):
    theirs, got = (
        models[kind].get_submodule(part)(given.pixels, output_hidden_states=True, output_attentions=True)
        for kind in BOTH
    )
    assert list(got.keys()) == list(theirs.keys())
    for name in theirs:
        torch.testing.assert_close(got[name], theirs[name], rtol=1e-4, atol=1e-4)
    assert type(got).__name__ == type(theirs).__name__


@pytest.mark.parametrize("part", ["vision_encoder", "vision_encoder.backbone"])
def test_parts_give_tuples(models, kind, given, part):
    assert type(models[kind].get_submodule(part)(given.pixels, return_dict=False)) is tuple


def test_positions_of_the_whole_image(models):
    theirs, got = (models[kind].get_image_wide_positional_embeddings() for kind in BOTH)
    assert got.shape == (1, 32, 4, 4)
    torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "names",
    [("points", "labels"), ("boxes",), ("points", "labels", "boxes"), ("masks",), ("points", "labels", "masks")],
)
def test_prompt_embeddings(models, given, names):
    prompts = {f"input_{name}": getattr(given, name) for name in names}
    theirs, got = (models[kind].get_prompt_embeddings(**prompts) for kind in BOTH)
    for t, g in zip(theirs, got, strict=True):
        if t is None:
            assert g is None
        else:
            torch.testing.assert_close(g, t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "names", [("points", "labels"), ("boxes",), ("points", "labels", "boxes", "masks"), ("masks",)]
)
def test_prompt_encoder_and_mask_decoder_by_themselves(models, given, names, multimask):
    def outputs(model):
        prompts = [getattr(given, name) if name in names else None for name in ("points", "labels", "boxes", "masks")]
        sparse, dense = model.prompt_encoder(*prompts)
        positions = model.get_image_wide_positional_embeddings()
        stride4, stride8, image = model.get_image_embeddings(given.pixels)
        if sparse is None:
            sparse = image.new_zeros(len(image), 1, 0, image.shape[1])
        return model.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=positions.repeat(len(image), 1, 1, 1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[stride4, stride8],
        )

    with torch.no_grad():
        theirs, got = (outputs(models[kind]) for kind in BOTH)
    for t, g in zip(theirs, got, strict=True):
        torch.testing.assert_close(g, t, rtol=1e-4, atol=1e-4)


def test_the_mask_decoder_takes_personalisation(models, given):
    def outputs(model):
        sparse, dense = model.prompt_encoder(given.points, given.labels, None, None)
        stride4, stride8, image = model.get_image_embeddings(given.pixels)
        side = image.shape[-1]
        generator = torch.Generator().manual_seed(3)
        similarity = torch.randn(sparse.shape[0] * sparse.shape[1], 1, 1, side * side, generator=generator)
        return model.mask_decoder(
            image, model.get_image_wide_positional_embeddings().repeat(len(image), 1, 1, 1), sparse, dense, True,
            [stride4, stride8], attention_similarity=similarity,
            target_embedding=torch.randn(1, 1, 1, image.shape[1], generator=generator),
        )  # fmt: skip

    with torch.no_grad():
        theirs, got = (outputs(models[kind]) for kind in BOTH)
    torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-4)


def test_the_prompt_encoder_and_the_mask_decoder_are_trained_through(kind, given):
    model = small_model(kind).train()
    sparse, dense = model.prompt_encoder(given.points, given.labels, None, None)
    stride4, stride8, image = model.get_image_embeddings(given.pixels)
    positions = model.get_image_wide_positional_embeddings().repeat(len(image), 1, 1, 1)
    masks, scores, _, _ = model.mask_decoder(image, positions, sparse, dense, False, [stride4, stride8])
    (masks.mean() + scores.mean()).backward()
    for module in (model.prompt_encoder.point_embed, model.mask_decoder.iou_token):
        assert module.weight.grad.abs().max() > 0


def test_hooks_of_the_mask_decoder_are_called(kind, given):
    called = []
    model = small_model(kind).eval()
    model.mask_decoder.register_forward_hook(lambda *_: called.append("mask decoder"))
    with torch.no_grad():
        model(given.pixels, given.points, given.labels)
    assert called == ["mask decoder"]


def test_a_dense_map_for_other_images_is_refused():
    model = small_model("masklet")
    image = torch.zeros(2, 256, 4, 4)
    with pytest.raises(PromptError, match="expected a map for each of 2 images, or for each of their 3 objects"):
        model.mask_decoder(image, image[:1], torch.zeros(2, 3, 1, 256), torch.zeros(5, 256, 4, 4), True, [image, image])


def test_prompt_embeddings_need_labels(model, given):
    with pytest.raises(ValueError, match="labels"):
        model.get_prompt_embeddings(input_points=given.points)


def test_parameters_have_the_same_names_and_shapes(models):
    theirs, got = ({n: p.shape for n, p in models[kind].named_parameters()} for kind in BOTH)
    assert got == theirs
    assert models["masklet"].state_dict().keys() == models["transformers"].state_dict().keys()


@pytest.mark.parametrize("kwargs", [{}, {"only_trainable": True}, {"exclude_embeddings": True}])
def test_num_parameters(kwargs):
    theirs, got = (small_model(kind).num_parameters(**kwargs) for kind in BOTH)
    assert got == theirs


def test_only_trainable_parameters_are_counted(kind):
    model = small_model(kind)
    model.vision_encoder.requires_grad_(False)
    rest = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("vision_encoder"))
    assert model.num_parameters(only_trainable=True) == rest


def test_questions(model):
    assert isinstance(model.get_input_embeddings().projection, nn.Conv2d)
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"
    assert model.main_input_name == "pixel_values"
    assert not model.can_generate()
    assert type(model.config).__name__ == "Sam2Config"


@pytest.mark.parametrize("name", ["Sam2VisionModel", "Sam2HieraDetModel"])
def test_parts_can_be_made_alone(kind, name, given):
    settings = VISION if name == "Sam2VisionModel" else BACKBONE
    model = getattr(package(kind), name)
    model = model(model.config_class(**copy.deepcopy(settings))).eval()
    assert model(given.pixels).last_hidden_state.shape == (2, 2, 2, 128)
    assert model.get_input_embeddings().projection.in_channels == 3


def test_pre_trained_model_is_the_base_of_all(kind):
    for name in ("Sam2Model", "Sam2VisionModel", "Sam2HieraDetModel"):
        assert issubclass(getattr(package(kind), name), package(kind).Sam2PreTrainedModel)


# Training


def test_gradients_are_the_same(given):
    gradients = []
    for kind in BOTH:
        model = small_model(kind).train()
        assert all(p.requires_grad for p in model.parameters())
        output = model(given.pixels, given.points, given.labels, multimask_output=False)
        (output.pred_masks.sigmoid().mean() + output.iou_scores.mean()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[1].keys() == gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_a_step_changes_the_output(kind, given):
    model = small_model(kind).train()
    optimizer = torch.optim.SGD(model.mask_decoder.parameters(), lr=0.1)
    before = model(given.pixels, given.points).pred_masks
    before.square().mean().backward()
    optimizer.step()
    assert model(given.pixels, given.points).pred_masks.square().mean() < before.square().mean()


def test_what_replaces_a_module_runs(kind, given):
    model = small_model(kind).requires_grad_(False)
    before = model(given.pixels, given.points).pred_masks
    model.mask_decoder.conv_s0 = nn.Conv2d(32, 4, 1)
    assert not torch.equal(model(given.pixels, given.points).pred_masks, before)


def test_hooks_on_modules_run(kind, given):
    model, seen = small_model(kind), []
    model.vision_encoder.register_forward_hook(lambda *_: seen.append("encoder"))
    model.vision_encoder.backbone.blocks[0].register_forward_hook(lambda *_: seen.append("block"))
    model(given.pixels, given.points)
    assert seen == ["block", "encoder"]


def test_a_copy_is_independent(kind, given):
    model = small_model(kind).requires_grad_(False)
    copied = copy.deepcopy(model)
    before = copied(given.pixels, given.points).pred_masks
    model.mask_decoder.conv_s0.weight.zero_()
    assert torch.equal(copied(given.pixels, given.points).pred_masks, before)
    assert not torch.equal(model(given.pixels, given.points).pred_masks, before)


def test_a_model_can_be_pickled(given):
    model = small_model("masklet").requires_grad_(False)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(given.pixels, given.points).pred_masks, model(given.pixels, given.points).pred_masks)


# Errors


@pytest.mark.parametrize("which", ["both", "neither"])
def test_pixels_or_embeddings_but_not_both(model, given, which):
    inputs = {"pixel_values": given.pixels, "image_embeddings": model.get_image_embeddings(given.pixels)}
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_points=given.points, **(inputs if which == "both" else {}))


def test_points_and_boxes_of_other_numbers_of_objects(model, given):
    with pytest.raises(ValueError, match="3"):
        model(given.pixels, given.points, input_boxes=given.boxes[:, :1])


def test_the_trunk_needs_pixels(model):
    with pytest.raises(ValueError, match="pixel_values"):
        model.vision_encoder()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"input_points": torch.zeros(3, 1, 2)}, r"input_points has shape \(3, 1, 2\): expected \(2, objects, points"),
        ({"input_boxes": torch.zeros(3, 4)}, r"input_boxes has shape \(3, 4\)"),
        (
            {"input_points": torch.zeros(2, 1, 2, 2), "input_labels": torch.ones(2, 1, 1)},
            r"input_labels \(2, 1, 1\) came with input_points \(2, 1, 2, 2\)",
        ),
        (
            {"input_points": torch.zeros(2, 1, 1, 2), "input_labels": torch.full((2, 1, 1), 7)},
            "label 7: expected 1",
        ),
        (
            {"input_points": torch.zeros(2, 3, 1, 2), "input_masks": torch.zeros(5, 1, 16, 16)},
            "input_masks holds 5 masks: expected one for each of 3 objects of 2 images, one for each image, or one",
        ),
        ({"input_masks": torch.zeros(16, 16)}, "input_masks has shape"),
        (
            {"input_points": torch.zeros(1, 1, 1, 2)},
            r"input_points has shape \(1, 1, 1, 2\): expected \(2, objects, po",
        ),
        (
            {"input_points": torch.zeros(2, 1, 1, 3)},
            r"input_points has shape \(2, 1, 1, 3\): expected \(2, objects, po",
        ),
        (
            {"input_points": torch.zeros(2, 1, 1, 2), "input_labels": torch.ones(2, 1)},
            r"input_labels has shape \(2, 1\): expected \(2, objects, points\)",
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused(models, given, prompts, message):
    with pytest.raises(PromptError, match=message):
        models["masklet"](given.pixels, **prompts)


def test_an_unknown_input_is_refused(models, given):
    with pytest.raises(TypeError, match="takes no input called pixels"):
        models["masklet"](given.pixels, pixels=1)
    with pytest.raises(TypeError, match="Sam2Model takes no input called input_point, points"):
        models["masklet"](given.pixels, points=1, input_point=1)
    models["masklet"](given.pixels, original_sizes=1, reshaped_input_sizes=1, labels=1)  # processors return these


@pytest.mark.parametrize("has_gradients", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 60, 60), (3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
def test_pixels_of_a_wrong_shape_are_refused(models, shape, has_gradients):
    message = re.escape(f"pixel_values is {shape}: expected (batch, 3, height, width) with sides that are multiples of")
    with torch.set_grad_enabled(has_gradients), pytest.raises(ImageError, match=message):
        models["masklet"](torch.zeros(shape))


# Configurations


@pytest.mark.parametrize("section", ["vision_config", "prompt_encoder_config", "mask_decoder_config"])
def test_defaults_are_the_same(section):
    theirs, got = (getattr(package(kind).Sam2Config(), section).to_dict() for kind in BOTH)
    assert {n: v for n, v in got.items() if n in theirs and n != "backbone_config"} == {
        n: theirs[n] for n in got if n in theirs and n != "backbone_config"
    }


def test_defaults_of_the_trunk_are_the_same():
    theirs, got = (package(kind).Sam2HieraDetConfig().to_dict() for kind in BOTH)
    got.pop("image_size"), theirs.pop("image_size")  # theirs is None, and without effect
    assert {n: theirs[n] for n in got if n in theirs} == {n: v for n, v in got.items() if n in theirs}


@pytest.mark.parametrize("as_dict", [True, False])
def test_sections_may_be_dicts_or_configurations(kind, as_dict):
    decoder = DECODER if as_dict else package(kind).Sam2MaskDecoderConfig(**DECODER)
    config = package(kind).Sam2Config(mask_decoder_config=decoder)
    assert config.mask_decoder_config.mlp_dim == 32
    assert config.prompt_encoder_config.image_size == 1024
    assert type(config.mask_decoder_config).__name__ == "Sam2MaskDecoderConfig"
    assert type(config.vision_config.backbone_config).__name__ == "Sam2HieraDetConfig"


def test_a_configuration_is_a_dict_and_back(kind):
    config = small_config(kind)
    again = type(config)(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert json.loads(config.to_json_string())["mask_decoder_config"]["mlp_dim"] == 32
    assert config.to_dict()["model_type"] == config.model_type == "sam2"


def test_a_configuration_can_be_saved(kind, tmp_path):
    small_config(kind).save_pretrained(tmp_path)
    assert type(small_config(kind)).from_pretrained(tmp_path).mask_decoder_config.mlp_dim == 32
    assert type(small_config(kind)).from_pretrained(tmp_path).to_dict()["vision_config"]["fpn_hidden_size"] == 32


def test_unknown_settings_are_kept(kind):
    config = package(kind).Sam2Config(colour="blue", mask_decoder_config={"shape": 3})
    assert config.colour == "blue"
    assert config.to_dict()["mask_decoder_config"]["shape"] == 3


def test_a_part_of_a_folder_is_its_configuration(kind, tmp_path):
    small_config(kind).save_pretrained(tmp_path)
    vision = ours.Sam2VisionConfig.from_pretrained(tmp_path)
    assert (vision.fpn_hidden_size, vision.backbone_config.hidden_size) == (32, 16)
    assert ours.Sam2HieraDetConfig.from_pretrained(tmp_path).blocks_per_stage == [1, 2, 3, 1]


@pytest.mark.parametrize("pair", [7, [7, 7]])
def test_pairs_may_be_one_number(kind, pair):
    config = small_config(kind)
    config.vision_config.backbone_config.patch_kernel_size = pair
    kernel = package(kind).Sam2Model(config).get_input_embeddings().projection.kernel_size
    assert kernel in (7, (7, 7))


@pytest.mark.parametrize(
    "section", ["prompt_encoder_config", "backbone_config", "mask_decoder_config", "vision_config"]
)
def test_relu_does_what_it_does_there(given, section):
    found = []
    for kind in BOTH:
        config = small_config(kind)
        part = config.vision_config.backbone_config if section == "backbone_config" else getattr(config, section)
        part.hidden_act = "relu"
        model = package(kind).Sam2Model(config).eval().requires_grad_(False)
        model.load_state_dict(small_weights())
        found.append(model(given.pixels, given.points, input_masks=given.masks).pred_masks)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["image_size", "image_encoder", "is_v2_1"])
def test_settings_of_the_plain_configuration_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is a setting of masklet.config.Sam2Config"):
        ours.Sam2Config(**{name: 1})


def test_what_cannot_be_built_is_refused_by_name():
    config = small_config("masklet")
    config.vision_config.fpn_kernel_size = 3
    with pytest.raises(ConfigError, match="vision_config.fpn_kernel_size is 3, expected 1"):
        ours.Sam2Model(config)


def test_a_plain_configuration_is_taken(tiny_config):
    model = ours.Sam2Model(tiny_config)
    assert model.network_config.image_encoder == tiny_config.image_encoder
    assert model.config.prompt_encoder_config.image_size == tiny_config.image_size


# Loading and saving


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder saved by each side."""
    paths = {kind: tmp_path_factory.mktemp(kind) for kind in BOTH}
    for kind, path in paths.items():
        small_model(kind).save_pretrained(path)
    return paths


@pytest.mark.parametrize("writer", BOTH)
def test_each_side_reads_what_either_wrote(folders, kind, writer, given, outputs):
    model = package(kind).Sam2Model.from_pretrained(folders[writer])
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        output = model(given.pixels, given.points, given.labels)
    torch.testing.assert_close(output.pred_masks, outputs["transformers"].pred_masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskGeneration"])
def test_auto_classes_read_our_folder(folders, auto):
    model = getattr(transformers, auto).from_pretrained(folders["masklet"])
    assert model.state_dict().keys() == small_weights().keys()


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
        ({"dtype": "float32"}, torch.float32),
        ({"torch_dtype": torch.float32}, torch.float32),
        ({"dtype": torch.float16}, torch.float16),
    ],
)
def test_dtype(kind, tmp_path, kwargs, expected):
    small_model(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["vision_encoder.neck.convs.0.weight"].dtype == torch.bfloat16
    model = package(kind).Sam2Model.from_pretrained(tmp_path, **kwargs)
    assert model.dtype == expected
    assert model.mask_decoder.conv_s0.weight.dtype == expected


def test_outputs_have_the_type_of_the_model(kind, folders, given):
    model = package(kind).Sam2Model.from_pretrained(folders[kind], dtype=torch.bfloat16).requires_grad_(False)
    output = model(given.pixels, given.points)
    assert {output[name].dtype for name in FIELDS[:3]} == {torch.bfloat16}
    assert {t.dtype for t in output.image_embeddings} == {torch.bfloat16}


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_device_map(kind, folders, device_map):
    if kind == "transformers" and device_map != "cpu":
        pytest.skip("where there is no accelerator, transformers splits by memory, which takes long")
    assert package(kind).Sam2Model.from_pretrained(folders[kind], device_map=device_map).device.type == "cpu"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
        {"use_safetensors": True},
        {"local_files_only": True},
        {"trust_remote_code": True},
        {"low_cpu_mem_usage": True},
        {"revision": "main"},
        {"token": None},
        {"cache_dir": None},
    ],
)
def test_keywords_that_are_accepted(kind, folders, kwargs):
    model = package(kind).Sam2Model.from_pretrained(folders[kind], **kwargs)
    assert model.config._attn_implementation == kwargs.get("attn_implementation", "sdpa")


def test_an_unknown_attention_is_refused(kind, folders):
    with pytest.raises(ValueError, match="attn_implementation"):
        package(kind).Sam2Model.from_pretrained(folders[kind], attn_implementation="none")


def test_an_unknown_keyword_is_a_type_error(kind, folders):
    with pytest.raises(TypeError, match="colour"):
        package(kind).Sam2Model.from_pretrained(folders[kind], colour="blue")


def test_settings_override_the_configuration(kind, folders):
    model = package(kind).Sam2Model.from_pretrained(folders[kind], output_hidden_states=True)
    assert model.config.output_hidden_states


def test_subfolder(kind, folders, tmp_path):
    small_model(kind).save_pretrained(tmp_path / "inner")
    assert (
        package(kind).Sam2Model.from_pretrained(tmp_path, subfolder="inner").config.vision_config.fpn_hidden_size == 32
    )


def test_the_cache_folder_is_used(tmp_path, monkeypatch):
    """What is asked of the Hub."""
    import masklet.checkpoints.hub as hub

    asked = []
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args, **kwargs: asked.append((args, kwargs)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours.Sam2Model.from_pretrained(
            "me/mine", cache_dir=tmp_path, local_files_only=True, revision="v1", token="t", subfolder="s"
        )
    assert asked == [
        (
            ("me/mine", "config.json"),
            {"cache_dir": tmp_path, "local_files_only": True, "revision": "v1", "token": "t", "subfolder": "s"},
        )
    ]


def test_loading_info(kind, folders):
    model, info = package(kind).Sam2Model.from_pretrained(folders[kind], output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.config.model_type == "sam2"


def changed_folder(kind, path):
    """A folder without one tensor and with another."""
    small_model(kind).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    del weights["no_memory_embedding"]
    save_file(weights | {"extra": torch.zeros(1)}, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_loading_info_names_what_does_not_fit(kind, tmp_path):
    folder = changed_folder(kind, tmp_path)
    _, info = package(kind).Sam2Model.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"no_memory_embedding"}
    assert set(info["unexpected_keys"]) == {"extra"}


def test_missing_weights_are_an_error_without_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"1 missing \(no_memory_embedding\)"):
        ours.Sam2Model.from_pretrained(changed_folder("masklet", tmp_path))


def test_a_configuration_in_place_of_the_folders(kind, folders):
    config = small_config(kind, mlp_dim=64)
    with pytest.raises((RuntimeError, OSError)):
        package(kind).Sam2Model.from_pretrained(folders[kind], config=config)
    model, info = package(kind).Sam2Model.from_pretrained(
        folders[kind], config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    layers = [f"mask_decoder.transformer.layers.{i}.mlp" for i in range(2)]
    assert mismatched == {
        f"{layer}.{n}" for layer in layers for n in ("proj_in.weight", "proj_in.bias", "proj_out.weight")
    }
    assert model.mask_decoder.transformer.layers[0].mlp.proj_in.out_features == 64
    assert torch.equal(model.no_memory_embedding, small_weights()["no_memory_embedding"])


def test_a_folder_that_is_not_there_is_an_os_error(kind, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        package(kind).Sam2Model.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("writer", BOTH)
def test_sharded_weights(kind, tmp_path, writer, given, outputs):
    small_model(writer).save_pretrained(tmp_path, max_shard_size="200KB")
    names = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(names) > 3
    assert "model.safetensors" not in names
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = package(kind).Sam2Model.from_pretrained(tmp_path).requires_grad_(False)
    torch.testing.assert_close(
        model(given.pixels, given.points, given.labels).pred_masks,
        outputs["transformers"].pred_masks,
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_lost_shard_is_named(tmp_path):
    small_model("masklet").save_pretrained(tmp_path, max_shard_size="200KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"holds no {lost.name}"):
        ours.Sam2Model.from_pretrained(tmp_path)


def test_shards_of_an_earlier_model_are_removed(tmp_path):
    small_model("masklet").save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "notes.txt").write_text("mine")
    small_model("masklet").save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "notes.txt",
        "preprocessor_config.json",
    ]


def test_pytorch_weights(kind, tmp_path, given, outputs):
    """transformers 5 ignores ``safe_serialization``, and reads such folders."""
    small_model("masklet").save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    assert not (tmp_path / "model.safetensors").exists()
    model = package(kind).Sam2Model.from_pretrained(tmp_path).requires_grad_(False)
    torch.testing.assert_close(
        model(given.pixels, given.points, given.labels).pred_masks,
        outputs["transformers"].pred_masks,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(("written", "asked"), [(True, False), (False, True)])
def test_use_safetensors_excludes_the_other_kind(kind, tmp_path, written, asked):
    small_model("masklet").save_pretrained(tmp_path, safe_serialization=written)
    with pytest.raises(OSError, match=r"pytorch_model\.bin|model\.safetensors"):
        package(kind).Sam2Model.from_pretrained(tmp_path, use_safetensors=asked)


def test_pickles_that_would_run_code_are_refused(tmp_path):
    small_model("masklet").save_pretrained(tmp_path, safe_serialization=False)
    torch.save({"weights": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        ours.Sam2Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", ["5", "many", "0GB", -1])
def test_malformed_shard_sizes_are_refused(tmp_path, size):
    if size == "5":
        small_model("masklet").save_pretrained(tmp_path, max_shard_size=size)
        assert len(list(tmp_path.glob("*.safetensors"))) == len(small_weights())
    else:
        with pytest.raises(ValueError, match="expected bytes"):
            small_model("masklet").save_pretrained(tmp_path, max_shard_size=size)


def test_other_processes_write_nothing(kind, tmp_path):
    small_model(kind).save_pretrained(tmp_path / "model", is_main_process=False)
    assert not list(tmp_path.glob("model/*"))


def test_a_state_dict_in_place_of_the_models(kind, tmp_path):
    weights = {name: torch.zeros_like(tensor) for name, tensor in small_weights().items()}
    small_model(kind).save_pretrained(tmp_path, state_dict=weights)
    assert not load_file(tmp_path / "model.safetensors")["no_memory_embedding"].any()


@pytest.mark.parametrize("through_save", [True, False])
def test_push_to_hub(tmp_path, monkeypatch, through_save):
    import masklet.checkpoints.hub as hub

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, *, private, exist_ok):
            calls.append((name, private, exist_ok))
            return type("Repository", (), {"repo_id": name})

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message, revision, create_pr):
            calls.append((repo_id, sorted(allow_patterns), commit_message))
            assert {path.name for path in folder_path.iterdir()} >= set(allow_patterns)
            return "https://hub/commit"

    calls = []
    monkeypatch.setattr(hub, "HfApi", Api)
    options = {"repo_id": "me/mine", "private": True, "commit_message": "new"}
    if through_save:
        small_model("masklet").save_pretrained(tmp_path, push_to_hub=True, **options)
    else:
        assert small_model("masklet").push_to_hub(**options) == "https://hub/commit"
    files = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert calls == [("me/mine", True, True), ("me/mine", files, "new")]


def test_options_of_the_hub_need_the_hub(tmp_path):
    with pytest.raises(TypeError, match="takes repo_id with push_to_hub=True only"):
        small_model("masklet").save_pretrained(tmp_path, repo_id="me/mine")


@pytest.mark.parametrize("name", ["Sam2VisionModel", "Sam2HieraDetModel"])
def test_parts_are_read_from_the_folder_of_a_whole(folders, models, given, name):
    """transformers leaves the weights of such a part random."""
    part = getattr(ours, name).from_pretrained(folders["transformers"]).requires_grad_(False)
    whole = models["transformers"].vision_encoder
    expected = whole if name == "Sam2VisionModel" else whole.backbone
    torch.testing.assert_close(
        part(given.pixels).last_hidden_state, expected(given.pixels).last_hidden_state, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["Sam2VisionModel", "Sam2HieraDetModel"])
def test_parts_can_be_saved_alone(kind, tmp_path, given, name):
    part = getattr(package(kind), name)
    settings = VISION if name == "Sam2VisionModel" else BACKBONE
    model = part(part.config_class(**copy.deepcopy(settings))).eval().requires_grad_(False)
    model.save_pretrained(tmp_path)
    again = part.from_pretrained(tmp_path).requires_grad_(False)
    assert torch.equal(again(given.pixels).last_hidden_state, model(given.pixels).last_hidden_state)


def test_the_image_half_of_a_model_of_videos_is_read(tiny_folder, tiny_model):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[[20.0, 30.0]]]])
    got = ours.Sam2Model.from_pretrained(tiny_folder).requires_grad_(False)(image, points)
    theirs = transformers.Sam2Model.from_pretrained(tiny_folder).requires_grad_(False)(image, points)
    torch.testing.assert_close(got.pred_masks, theirs.pred_masks, rtol=1e-4, atol=1e-4)


def test_names_of_masklet_load_are_read():
    model = masklet.Sam2Model.from_pretrained("nano")
    assert model.dtype == torch.float32  # though its file is in bfloat16
    assert model.config.vision_config.backbone_config.hidden_size == 40
    assert ours.Sam2Model.from_pretrained("nano", resolution=256).network_config.image_size == 256


def test_a_network_at_hand_shares_its_weights(tiny_model, given):
    model = ours.Sam2Model.from_network(tiny_model)
    assert model.mask_decoder.transformer is tiny_model.mask_decoder.transformer
    assert not any(name.startswith("memory") for name in model.state_dict())
    assert model(given.pixels, given.points).pred_masks.shape == (2, 3, 3, 16, 16)


def test_a_segmenter_takes_the_drop_in_model(given):
    model = small_model("masklet").requires_grad_(False)
    segmenter = masklet.Segmenter.from_model(model, engine="eager")
    assert segmenter.model.mask_decoder.transformer is model.mask_decoder.transformer


def test_norms_stay_in_float32_when_a_model_is_narrowed():
    model = small_model("masklet").to(torch.bfloat16)
    norm = model.mask_decoder.transformer.layer_norm_final_attn
    assert (norm.weight.dtype, model.no_memory_embedding.dtype) == (torch.float32, torch.float32)
    assert model.dtype == torch.bfloat16 == model.mask_decoder.conv_s0.weight.dtype
    assert model.network_config.image_size == SIDE
