"""EdgeTAM's files: folders that transformers and masklet write for each other, and the authors' ``.pt``."""

import json
import re
from dataclasses import replace

import pytest
import torch
from edgetam import SMALL, random_edgetam
from transformers import EdgeTamModel, EdgeTamVideoModel

import masklet
from masklet.checkpoints.meta import meta_name, meta_tensors
from masklet.config import RepVitConfig, SpatialPerceiverConfig, edgetam_config
from masklet.engine import make_engine
from masklet.errors import CheckpointError, ConfigError
from masklet.model.sam2 import Sam2Model


@pytest.fixture(scope="module")
def model():
    return random_edgetam(SMALL)


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_transformers_loads_a_folder_of_ours_and_we_load_theirs(model, tmp_path):
    pytest.importorskip("timm", reason="transformers' EdgeTAM needs timm: make test-controls")
    model.save_pretrained(tmp_path / "ours")
    theirs = EdgeTamVideoModel.from_pretrained(tmp_path / "ours")
    assert_same_weights(model.state_dict(), theirs.state_dict())

    theirs.save_pretrained(tmp_path / "theirs")
    loaded = Sam2Model.from_pretrained(tmp_path / "theirs")
    assert loaded.config == SMALL
    assert_same_weights(loaded.state_dict(), model.state_dict())


@pytest.mark.slow
def test_a_folder_of_the_image_half_loads(model, tmp_path):
    pytest.importorskip("timm", reason="transformers' EdgeTAM needs timm: make test-controls")
    model.save_pretrained(tmp_path / "video")
    EdgeTamModel.from_pretrained(tmp_path / "video").save_pretrained(tmp_path / "image")
    assert json.loads((tmp_path / "image/config.json").read_text())["model_type"] == "edgetam"
    loaded = Sam2Model.from_pretrained(tmp_path / "image")
    assert loaded.config == replace(SMALL, has_memory=False, **as_without_memory(loaded.config))
    assert "spatial_perceiver.latents_2d" not in loaded.state_dict()


def as_without_memory(config):
    """Numbers of a memory that the folder of an image model does not store."""
    return {name: getattr(config, name) for name in ("memory_attention", "memory_encoder", "perceiver", "is_v2_1")}


def authors_tensors(tensors):
    """Tensors under the names of the authors' file, EdgeTAM.pt. They are those of SAM 2's files, and some more."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "prompt_encoder.point_embed.weight":
            for label in range(4):
                renamed[f"sam_prompt_encoder.point_embeddings.{label}.weight"] = tensor[label : label + 1]
        elif name.startswith("spatial_perceiver.") and ".v_proj." in name:
            continue
        elif name.startswith("spatial_perceiver.") and ".k_proj." in name:
            both = torch.cat([tensor, tensors[name.replace("k_proj", "v_proj")]])
            renamed[authors_name(name.replace("k_proj", "to_kv"))] = both
        elif name != "prompt_encoder.shared_embedding.positional_embedding":
            renamed[authors_name(name)] = tensor
    return renamed


def authors_name(name):
    if name.startswith("spatial_perceiver."):
        for ours, theirs in (
            ("latents_1d", "latents"),
            ("layer_norm_input", "attn.norm_x"),
            ("layer_norm_latents", "attn.norm_latents"),
            ("layer_norm_self", "self_attn.norm"),
            ("cross_attention", "attn"),
            ("self_attention", "self_attn"),
            ("q_proj", "to_q"),
            ("o_proj", "to_out"),
            ("mlp.layer_norm", "ff.0"),
            ("mlp.up_proj", "ff.1"),
            ("mlp.down_proj", "ff.3"),
            (".layer_norm.", ".norm."),
        ):
            name = name.replace(ours, theirs)
        return name
    if name.startswith("vision_encoder.backbone."):
        return name.replace("vision_encoder.backbone.timm_model", "image_encoder.trunk.body")
    if name.startswith("memory_attention."):
        name = name.replace("mlp.up_proj", "linear1").replace("mlp.down_proj", "linear2")
    return meta_name(name)


@pytest.fixture(scope="module")
def full_width():
    """The widths that the authors' file has, which does not store them, behind a small trunk."""
    return random_edgetam(edgetam_config(image_encoder=SMALL.image_encoder, perceiver=SMALL.perceiver))


def test_the_authors_file_loads_with_every_tensor_in_its_place(full_width, tmp_path):
    tensors = authors_tensors(full_width.state_dict())
    assert "spatial_perceiver.layers.0.self_ff.3.weight" in tensors
    assert "image_encoder.trunk.body.stages_2.blocks.1.channel_mixer.conv2.bn.running_var" in tensors
    torch.save({"model": tensors}, tmp_path / "EdgeTAM.pt")
    loaded = Sam2Model.from_pretrained(tmp_path / "EdgeTAM.pt", resolution=256)
    assert loaded.config == replace(full_width.config, image_size=256)
    assert_same_weights(loaded.state_dict(), full_width.state_dict())


def test_tensors_are_written_under_the_authors_names(full_width):
    state = full_width.state_dict()
    assert_same_weights(meta_tensors(state), authors_tensors(state))


@pytest.mark.slow
def test_a_training_checkpoint_with_a_prefix_loads(full_width, tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in authors_tensors(full_width.state_dict()).items()}
    torch.save({"state_dict": tensors}, tmp_path / "trained.pth")
    loaded = Sam2Model.from_pretrained(tmp_path / "trained.pth")
    assert_same_weights(loaded.state_dict(), full_width.state_dict())


def test_an_authors_file_without_a_stage_is_refused(full_width, tmp_path):
    tensors = authors_tensors(full_width.state_dict())
    torch.save({"model": {n: t for n, t in tensors.items() if "stages_3" not in n}}, tmp_path / "cut.pt")
    with pytest.raises(
        CheckpointError, match=r"not an EdgeTAM with a RepViT that is known: embed_dim_per_stage is .*0"
    ):
        Sam2Model.from_pretrained(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("vision_config", "backbone_config", "architecture"),
            "resnet50",
            "architecture is 'resnet50': expected repvit_m1",
        ),
        (("vision_config", "backbone_config", "model_args"), 3, "model_args is 3: expected a JSON object"),
        (
            ("memory_attention_rope_k_sizes",),
            [16, 16],
            r"memory_attention_rope_k_sizes is \[16, 16\], expected \[4, 4\]",
        ),
        (("perceiver_resampler_num_layers",), 3, "perceiver_resampler_num_layers is 3, expected 2"),
        (("perceiver_resampler_num_latents_2d",), 15, "num_latents_2d is 15: expected a square number"),
    ],
)
def test_a_folder_that_asks_for_another_network_is_refused_by_name(model, tmp_path, path, value, message):
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    section = content
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        Sam2Model.from_pretrained(tmp_path)


def test_the_full_name_of_the_trunk_and_the_number_of_its_classes_are_accepted(model, tmp_path):
    """As in the folder on the Hub, which was made of the classifier's configuration."""
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["vision_config"]["backbone_config"] |= {"architecture": "repvit_m1.dist_in1k", "num_classes": 1000}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert Sam2Model.from_pretrained(tmp_path).config == SMALL


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edgetam_config(perceiver=None), "expected RepVitConfig and SpatialPerceiverConfig"),
        (lambda: RepVitConfig(blocks_per_stage=(1, 2)), "expected four numbers, one for each stage"),
        (lambda: RepVitConfig(embed_dim_per_stage=(7, 8, 8, 8)), "expected an even number first"),
        (lambda: RepVitConfig(blocks_per_stage=(1, 1, 5000, 1)), "expected 1000 blocks at most"),
        (lambda: SpatialPerceiverConfig(num_latents=0), "num_latents is 0: expected whole numbers >= 1"),
    ],
)
def test_an_impossible_network_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_published_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = Sam2Model(edgetam_config())
    # Counted in timm's repvit_m1 without its classifier. EdgeTAM's paper says 13.9 million for the whole.
    assert sum(parameter.numel() for parameter in network.vision_encoder.backbone.parameters()) == 4_713_712
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 13.9


def test_damaged_weights_are_refused_though_batch_norm_counts_in_whole_numbers(model, tmp_path):
    tensors = dict(model.state_dict())
    name = "vision_encoder.backbone.timm_model.stem.conv1.bn.running_var"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        Sam2Model.from_tensors(SMALL, tensors)


def test_edgetam_runs_on_the_engine_for_processors(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert masklet.load(tmp_path).engine.name == "cpu"


def test_edgetam_on_a_gpu_runs_on_the_eager_engine_unless_asked_otherwise(model, monkeypatch):
    monkeypatch.setattr(Sam2Model, "device", torch.device("cuda"))
    monkeypatch.setattr("masklet.engine.CudaEngine", lambda model, precision: "the cuda engine")
    assert make_engine(model).name == "eager"
    assert make_engine(model, "cuda") == "the cuda engine"
