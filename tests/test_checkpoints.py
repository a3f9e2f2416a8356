import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from masklet import checkpoints
from masklet.checkpoints import KNOWN_MODELS, check_tensors, read
from masklet.checkpoints.meta import config_from_meta, convert_meta, without_wrappers
from masklet.checkpoints.meta import meta_tensors as meta_tensors_of
from masklet.checkpoints.transformers import config_from_json, config_to_json
from masklet.config import (
    Sam2Config,
    Sam2EverythingConfig,
    Sam2ImageEncoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
)
from masklet.errors import CheckpointError
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.segmenter import load

FILES = ["config.json", "model.safetensors", "preprocessor_config.json", "video_preprocessor_config.json"]


def refusal_of(name, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        Sam2Model.from_pretrained(name, **kwargs)
    assert isinstance(caught.value, OSError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def spoil(folder, **changes):
    """Change values of config.json; names are dotted."""
    content = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *path, key = name.split("__")
        section = content
        for step in path:
            section = section[step]
        section[key] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


# Folders


def test_a_saved_model_is_read_unchanged(tiny_model, tiny_config, tiny_folder):
    config, tensors = read(tiny_folder)
    assert config == tiny_config
    assert tensors.keys() == tiny_model.state_dict().keys()
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_a_folder_holds_files_that_everyone_may_read(tiny_folder):
    assert sorted(os.listdir(tiny_folder)) == FILES
    assert all(path.stat().st_mode & 0o044 for path in tiny_folder.iterdir())


def test_saving_again_writes_the_same_bytes(tiny_folder, tmp_path):
    Sam2Model.from_pretrained(tiny_folder).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tiny_folder)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_model_is_loaded_in_evaluation_mode_and_can_be_trained(tiny_folder, mode):
    with mode():
        model = Sam2Model.from_pretrained(str(tiny_folder))
    assert not model.training
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_a_model_may_be_saved_over_the_folder_it_was_loaded_from(folder):
    before = contents(folder)
    model = Sam2Model.from_pretrained(folder)
    model.save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_stored_in_16_bits(tiny_model, tiny_folder, tmp_path, dtype):
    tiny_model.save_pretrained(tmp_path / "half", dtype=dtype)
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    half, whole = ((p / "model.safetensors").stat().st_size for p in (tmp_path / "half", tiny_folder))
    assert half < 0.6 * whole
    model = Sam2Model.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.float32
    assert torch.equal(model.no_memory_embedding, tiny_model.no_memory_embedding.to(dtype).float())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_v2_1": False},
        {
            "has_memory": False,
            "memory_encoder": Sam2Config().memory_encoder,
            "memory_attention": Sam2Config().memory_attention,
        },
        {"image_size": 96, "num_maskmem": 3},
        {"everything": Sam2EverythingConfig(iou_threshold=0.4, stability_threshold=0.3)},
        {"image_encoder": Sam2ImageEncoderConfig(hidden_size=8, num_attention_heads=2, global_attention_blocks=())},
    ],
)
def test_every_configuration_returns_from_json(tiny_config, tmp_path, changes):
    config = replace(tiny_config, **changes)
    Sam2Model(config).save_pretrained(tmp_path)
    assert Sam2Model.from_pretrained(tmp_path).config == config
    content = json.loads((tmp_path / "config.json").read_text())
    assert config_from_json(content, has_memory=config.has_memory, where="here") == config


def test_extra_files_in_a_folder_stay(tiny_model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tiny_model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", *FILES]
    assert (tmp_path / "README.md").read_text() == "mine"


# Folders that do not fit


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_file_is_refused(folder, missing):
    (folder / missing).unlink()
    rest = ", ".join(name for name in FILES if name != missing)
    assert refusal_of(folder) == f"{folder} holds no {missing} (it holds {rest}): expected a model folder"


def test_an_empty_folder_is_refused(tmp_path):
    assert refusal_of(tmp_path) == f"{tmp_path} holds no config.json (it holds nothing): expected a model folder"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda whole: whole[: len(whole) // 2], "bytes that are cut off or of another kind"),
        (lambda whole: whole[:100], "100 bytes that are cut off or of another kind"),
        (lambda whole: whole[:4], "4 bytes that are cut off or of another kind"),
        (lambda whole: b"", "0 bytes that are cut off or of another kind"),
        (lambda whole: whole + b"!", "bytes that are cut off or of another kind"),
        (
            lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "this is a Git LFS pointer, not the weights: run git lfs pull",
        ),
        (lambda whole: b"<!DOCTYPE html><html>404</html>", "this is a web page, not weights"),
    ],
    ids=["half", "100 bytes", "4 bytes", "empty", "too long", "Git LFS", "web page"],
)
def test_damaged_weights_are_refused(folder, content, what):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    message = refusal_of(folder)
    assert message.startswith(f"{path}: ")
    assert what in message
    assert message.endswith("Expected a whole safetensors file; fetch or copy it again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("no_object_pointer"), "tensors 1 missing (no_object_pointer)"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensors 1 unexpected (extra)"),
        (
            lambda t: t.update(no_object_pointer=torch.zeros(1, 8)),
            "tensors 1 of another shape (no_object_pointer is (1, 8) instead of (1, 32))",
        ),
        (
            lambda t: (
                [t.pop(name) for name in sorted(t) if name.startswith("mask_downsample")]
                and t.update(b=t.pop("no_memory_embedding"))
            ),
            "tensors 3 missing (mask_downsample.bias, mask_downsample.weight, no_memory_embedding); 1 unexpected (b)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    expected = len(tensors)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert refusal_of(folder) == (
        f"the weights do not fit the network of the configuration: {message}. "
        f"Expected the {expected} tensors of a SAM 2 model"
    )


def test_only_a_few_of_many_wrong_tensors_are_named():
    with pytest.raises(CheckpointError, match=r"tensors 5 missing \(a0, a1, a2, …\)\. Expected the 5 tensors"):
        check_tensors({}, {f"a{i}": (1,) for i in range(5)})


def test_a_folder_of_one_version_with_weights_of_the_other_is_refused(tiny_config, folder):
    Sam2Model(replace(tiny_config, is_v2_1=False)).save_pretrained(folder.parent / "old")
    shutil.copy(folder.parent / "old/model.safetensors", folder)
    assert "3 missing (occlusion_spatial_embedding_parameter, temporal_pos" in refusal_of(folder)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", '{"model_type": "sam2",}'])
def test_a_config_that_is_not_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    message = refusal_of(folder)
    assert message.startswith(f"{folder / 'config.json'} is not JSON (")
    assert message.endswith("): expected a model's config.json")


def test_a_config_that_is_not_an_object_is_refused(folder):
    (folder / "config.json").write_text("[1, 2]")
    assert refusal_of(folder) == f"{folder / 'config.json'} holds a list: expected a JSON object"


@pytest.mark.parametrize("kind", ["sam", "bert", "sam3", None, 5])
def test_a_config_of_another_kind_of_model_is_refused(folder, kind):
    spoil(folder, model_type=kind)
    assert refusal_of(folder) == (
        f"{folder / 'config.json'} describes a model of type {kind!r}: expected sam2, sam2_video, edgetam "
        "or edgetam_video"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask_decoder_config__num_hidden_layers", 3, "mask_decoder_config.num_hidden_layers is 3, expected 2"),
        (
            "mask_decoder_config__num_multimask_outputs",
            5,
            "mask_decoder_config.num_multimask_outputs is 5, expected 3",
        ),
        (
            "mask_decoder_config__dynamic_multimask_stability_delta",
            0.1,
            "mask_decoder_config.dynamic_multimask_stability_delta is 0.1, expected 0.05",
        ),
        ("mask_decoder_config__hidden_size", 64, "mask_decoder_config.hidden_size is 64, expected 32"),
        ("prompt_encoder_config__patch_size", 14, "prompt_encoder_config.patch_size is 14, expected 16"),
        ("vision_config__num_feature_levels", 4, "vision_config.num_feature_levels is 4, expected 3"),
        ("vision_config__fpn_top_down_levels", [0, 1, 2, 3], "fpn_top_down_levels is [0, 1, 2, 3], expected [2, 3]"),
        ("vision_config__backbone_config__mlp_ratio", 2.0, "backbone_config.mlp_ratio is 2.0, expected 4.0"),
        ("vision_config__backbone_config__mlp_ratio", 3.0, "mlp_ratio is 3.0, expected 4.0"),
        ("vision_config__backbone_config__query_stride", [4, 4], "query_stride is [4, 4], expected [2, 2]"),
        ("memory_fuser_num_layers", 3, "memory_fuser_num_layers is 3, expected 2"),
        ("sigmoid_bias_for_mem_enc", 0.0, "sigmoid_bias_for_mem_enc is 0.0, expected -10.0"),
        (
            "enable_temporal_pos_encoding_for_object_pointers",
            False,
            "enable_temporal_pos_encoding_for_object_pointers is False, expected True",
        ),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_name(folder, name, value, message):
    spoil(folder, **{name: value})
    refusal = refusal_of(folder)
    assert refusal.startswith(f"{folder / 'config.json'} asks for a SAM 2 that masklet does not know: ")
    assert message in refusal


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt_encoder_config__image_size", 1000, "image_size is 1000: expected a multiple of 32 pixels"),
        ("prompt_encoder_config__image_size", [64, 32], "image_size is [64, 32]: expected whole numbers >= 1"),
        ("prompt_encoder_config__hidden_act", "silu", "hidden_act is 'silu': expected gelu or relu"),
        ("vision_config__backbone_config__hidden_act", "silu", "hidden_act is 'silu': expected gelu or relu"),
        ("prompt_encoder_config__hidden_size", "32", "hidden_size is '32': expected whole numbers >= 1"),
        ("num_maskmem", 7.5, "num_maskmem is 7.5: expected whole numbers >= 1"),
        (
            "vision_config__backbone_config__blocks_per_stage",
            [1, 2],
            "blocks_per_stage is (1, 2): expected four numbers, one for each stage",
        ),
        ("vision_config__backbone_config__blocks_per_stage", 4, "'int' object is not iterable"),
        ("vision_config", None, "vision_config is None: expected a JSON object"),
        ("vision_config__backbone_config", [], "backbone_config is []: expected a JSON object"),
        ("mask_decoder_config", "small", "mask_decoder_config is 'small': expected a JSON object"),
        ("everything", {"iou_threshold": 1.5}, "iou_threshold is 1.5: expected a number, 0 to 1"),
        ("everything", {"iou_threshold": "high"}, "iou_threshold is 'high': expected a number, 0 to 1"),
        ("everything", {"points": 3}, "got an unexpected keyword argument 'points'"),
        ("everything", 0.5, "everything is 0.5: expected a JSON object"),
    ],
)
def test_a_config_with_invalid_values_is_refused(folder, name, value, message):
    spoil(folder, **{name: value})
    refusal = refusal_of(folder)
    assert refusal.startswith(str(folder / "config.json"))
    assert message in refusal


def test_a_config_may_omit_defaults():
    assert config_from_json({"model_type": "sam2_video"}, has_memory=True, where="here") == Sam2Config()
    assert config_from_json({"model_type": "sam2"}, has_memory=False, where="here") == Sam2Config(has_memory=False)


def test_keys_that_do_not_describe_the_network_are_ignored(folder):
    spoil(folder, transformers_version="99", dtype="float16", initializer_range=0.5, architectures=["Mine"])
    Sam2Model.from_pretrained(folder)


def test_the_folder_of_a_published_checkpoint_has_the_thresholds_of_the_reference(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["everything"]
    (folder / "config.json").write_text(json.dumps(content))
    assert Sam2Model.from_pretrained(folder).config.everything == Sam2EverythingConfig()


# Failing saves


def fail_with(error):
    def fail(tensors, path, metadata=None):
        Path(path).write_bytes(b"half of the wei")
        raise error

    return fail


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("Error while serializing: I/O error")]
)
def test_a_failed_save_does_not_change_the_old_folder(tiny_config, folder, monkeypatch, error):
    before = contents(folder)
    monkeypatch.setattr(checkpoints.weights, "save_file", fail_with(error))
    with pytest.raises(CheckpointError) as caught:
        Sam2Model(tiny_config).save_pretrained(folder)
    assert str(caught.value) == f"cannot save the model to {folder}: {error}; what was there is unchanged"
    assert contents(folder) == before


def test_a_save_that_fails_after_the_weights_changes_nothing_either(tiny_config, folder, monkeypatch):
    before = contents(folder)
    written = []

    def full(path, *args, **kwargs):
        written.append(path.name)
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="No space left on device; what was there is unchanged"):
        Sam2Model(tiny_config).save_pretrained(folder)
    assert len(written) == 1
    assert contents(folder) == before


def test_an_interrupted_save_leaves_nothing_behind(tiny_config, folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(checkpoints.weights, "save_file", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Sam2Model(tiny_config).save_pretrained(folder)
    assert contents(folder) == before


def test_a_failed_first_save_leaves_no_folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.weights, "save_file", fail_with(OSError("disk full")))
    with pytest.raises(CheckpointError, match="disk full"):
        tiny_model.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_not_touched(tiny_model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match=f"cannot save the model to {tmp_path / 'model'}: "):
        tiny_model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_way_of_a_file_is_refused_before_anything_changes(tiny_config, folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(CheckpointError, match=f"its {name} is a folder. Expected a file, or nothing"):
        Sam2Model(tiny_config).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert sorted(os.listdir(folder)) == FILES


# Meta's files

RELEASES = [
    f"{version}_hiera_{size}" for version in ("sam2", "sam2.1") for size in ("tiny", "small", "base_plus", "large")
]


def manifest(golden_folder, release):
    return json.loads((golden_folder / f"meta/manifests/{release}.json").read_text())


def light_tensors(shapes):
    """Tensors of these shapes that take no space in a file; each holds one number of its own."""
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_of_meta_is_recognised_and_fits(golden_folder, release):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in manifest(golden_folder, release).items()}
    config = config_from_meta(tensors, where=release)
    assert config.is_v2_1 == release.startswith("sam2.1")
    assert config.has_memory
    with torch.device("meta"):
        model = Sam2Model(config)
    check_tensors(convert_meta(tensors), {name: tuple(t.shape) for name, t in model.state_dict().items()})

    (known,) = (m for m in KNOWN_MODELS if m.source == f"facebook/{release.replace('_', '-')}")
    # The last embedding of each label and the positions are stored twice or joined; buffers count as well.
    assert known.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)


@pytest.fixture(scope="module")
def meta_tensors(golden_folder):
    return light_tensors(manifest(golden_folder, "sam2.1_hiera_tiny"))


@pytest.fixture(scope="module")
def meta_file(meta_tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("meta") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": meta_tensors}, path)
    return path


@pytest.mark.parametrize("release", RELEASES)
def test_names_of_meta_are_found_again(golden_folder, release):
    shapes = manifest(golden_folder, release)
    again = meta_tensors_of(convert_meta({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    assert {name: list(t.shape) for name, t in again.items()} == shapes


def test_a_file_of_meta_loads(meta_file, meta_tensors):
    model = Sam2Model.from_pretrained(meta_file)
    assert model.config == Sam2Config()
    assert (model.no_memory_embedding == meta_tensors["no_mem_embed"]).all()
    labels = [meta_tensors[f"sam_prompt_encoder.point_embeddings.{i}.weight"][0] for i in range(4)]
    assert torch.equal(model.prompt_encoder.point_embed.weight, torch.stack(labels))
    block = model.vision_encoder.backbone.blocks[3].mlp
    assert (block.proj_out.bias == meta_tensors["image_encoder.trunk.blocks.3.mlp.layers.1.bias"]).all()
    assert torch.equal(
        model.shared_image_embedding.positional_embedding, model.prompt_encoder.shared_embedding.positional_embedding
    )
    assert load(meta_file).image_processor.input_hw == (1024, 1024)


def test_a_file_of_meta_may_have_been_fine_tuned_at_another_resolution(meta_file, tmp_path):
    sam = load(meta_file, resolution=512)
    assert sam.image_processor.input_hw == (512, 512)
    assert sam.model.config.image_size == 512
    sam.model.save_pretrained(tmp_path, dtype=torch.float16)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 512, "width": 512}
    again = load(tmp_path)
    assert again.image_processor.input_hw == (512, 512)
    assert again.model.config == sam.model.config


@pytest.mark.parametrize("around", ["training state", "nothing", "float16", "legacy"])
def test_fine_tuned_files_of_the_same_layout_load(meta_tensors, tmp_path, around):
    path = tmp_path / "mine.pt"
    if around == "training state":
        torch.save({"epoch": 3, "model": meta_tensors, "optimizer": {"state": {0: torch.zeros(2)}, "lr": [0.1]}}, path)
    elif around == "legacy":
        small = {
            name: t if t.numel() < 1000 else torch.empty(0).new_full((1,), 1.0).expand(t.shape)
            for name, t in meta_tensors.items()
        }
        torch.save({"model": small}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({n: t.half() if around == "float16" else t for n, t in list(meta_tensors.items())}, path)
    assert Sam2Model.from_pretrained(str(path)).config == Sam2Config()


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module."])
def test_the_wrappers_of_training_loops_are_removed(meta_tensors, key, prefix):
    wrapped = {prefix + name: t for name, t in meta_tensors.items()} | {"loss.weight": torch.zeros(1)}
    state = wrapped if key is None else {"epoch": 3, key: wrapped}
    found = without_wrappers(state)
    assert found is not None
    assert found.keys() == meta_tensors.keys()
    assert all(found[name] is t for name, t in meta_tensors.items())


class RunsCode:
    """A stand-in for a malicious pickle."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "legacy torch", "pickle"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pickle_that_would_run_code_does_not(folder, tmp_path, how, name):
    trace = tmp_path / "code was run"
    path = folder / name
    payload = {"model": {"weight": torch.zeros(1), "evil": RunsCode(trace)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "torch")
    if name == "model.safetensors":
        assert "cut off or of another kind" in refusal_of(folder)
    else:
        message = refusal_of(path)
        assert "or a pickle of more than tensors, which is not loaded since it could run code." in message
        assert message.endswith('Expected one of Meta\'s files, {"model": tensors}; save another one as that first')
    assert not trace.exists()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"model": {}}, 'holds no state dict: expected {"model": {name: tensor}}'),
        ({}, 'holds no state dict: expected {"model": {name: tensor}}'),
        ([torch.zeros(1)], 'holds no state dict: expected {"model": {name: tensor}}'),
        (torch.zeros(3), 'holds no state dict: expected {"model": {name: tensor}}'),
        ({"state_dict": {"a": torch.zeros(1)}}, "holds tensors like 'a': expected SAM 2 in Meta's layout"),
        ({"weights": {"a": torch.zeros(1)}}, 'holds no state dict: expected {"model": {name: tensor}}'),
        ({"model": {"a": torch.zeros(1), "b": 3}}, 'holds no state dict: expected {"model": {name: tensor}}'),
        (
            {"fc.weight": torch.zeros(1)},
            "holds tensors like 'fc.weight': expected SAM 2 in Meta's layout (image_encoder.trunk.pos_embed, …)",
        ),
        (
            {"image_encoder.pos_embed": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1)},
            "holds a SAM 1 model: expected SAM 2 in Meta's layout (image_encoder.trunk.pos_embed, …)",
        ),
        (
            {"image_encoder.trunk.pos_embed": torch.zeros(1, 64, 7, 7)},
            "has 64 channels and (0, 0, 0, 0) blocks per stage: expected tiny, small, base-plus or large (",
        ),
        ({"image_encoder.trunk.pos_embed": torch.zeros(())}, "has 0 channels and (0, 0, 0, 0) blocks per stage"),
    ],
)
def test_foreign_pt_files_are_refused(tmp_path, payload, message):
    path = tmp_path / "other.pt"
    torch.save(payload, path)
    refusal = refusal_of(path)
    assert refusal.startswith(f"{path} ")
    assert message in refusal


def test_a_file_of_meta_that_lacks_tensors_is_refused(meta_tensors, tmp_path):
    torch.save({"model": {n: t for n, t in meta_tensors.items() if n != "no_obj_ptr"}}, tmp_path / "part.pt")
    assert "tensors 1 missing (no_object_pointer)" in refusal_of(tmp_path / "part.pt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "0 bytes that are cut off or of another kind"),
        (b"hello, I am text", "16 bytes that are cut off or of another kind"),
        (b"\xff\xd8\xff\xe0JFIF" + bytes(100), "108 bytes that are cut off or of another kind"),
        (b"<html>404</html>", "this is a web page, not weights"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "this is a Git LFS pointer, not the weights: run git lfs pull",
        ),
    ],
    ids=["empty", "text", "JPEG", "web page", "Git LFS"],
)
def test_files_of_another_kind_are_refused(tmp_path, content, what):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    message = refusal_of(path)
    assert message.startswith(f"{path}: {what}")
    assert "Expected " in message


@given(data=st.data())
def test_a_damaged_file_of_meta_is_refused_wherever_it_is_damaged(meta_file, tmp_path_factory, data):
    whole = meta_file.read_bytes()
    cut = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.pt"
    path.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match="cut off or of another kind"):
        read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_zip", [True, False])
def test_any_byte_of_a_file_may_be_wrong(tmp_path, is_zip):
    path = tmp_path / "damaged.pt"
    torch.save({"model": {f"layer.{i}": torch.zeros(2) for i in range(5)}}, path, _use_new_zipfile_serialization=is_zip)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_without_a_config_are_refused(tiny_folder, tmp_path, name):
    path = shutil.copy(tiny_folder / "model.safetensors", tmp_path / name)
    assert refusal_of(path) == (
        f"{path} holds only weights: expected its folder, with config.json, or a .pt file of Meta's"
    )


# Names and the Hub


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sam2.1-hiera-tny", "sam2.1-hiera-tiny"),
        ("SAM2.1-hiera-large", "sam2.1-hiera-large"),
        ("sam2-hiera-base", "sam2-hiera-base-plus"),
        ("nan", "nano"),
        ("hiera-small", "sam2-hiera-small"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_the_nearest_known_one(name, nearest):
    known = ", ".join(model.name for model in KNOWN_MODELS)
    assert refusal_of(name) == (
        f"no model {name!r}: did you mean {nearest}? Expected one of {known}, a Hub repository (owner/name), a model "
        "folder or a .pt file that exists"
    )


@pytest.mark.parametrize("name", ["zzzzzz", "/no/such/folder", "a/b/c", "~/nets"])
def test_the_error_for_a_very_different_name_lists_the_known_ones(name):
    assert refusal_of(name).startswith(f"no model {name!r}: Expected one of nano, edgetam, ")


@pytest.mark.parametrize("name", ["model.pt", "checkpoints/sam2.1_hiera_tiny.pt", "/no/where/model.safetensors"])
def test_a_missing_file_is_not_searched_on_the_hub(name):
    assert refusal_of(name) == f"there is no file {name}; looked in {os.getcwd()}"


def test_the_name_of_the_embedded_model_has_priority_over_files(tmp_path, monkeypatch):
    (tmp_path / "nano").write_bytes(b"not a model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints.hub, "_EMBEDDED_FOLDER", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    assert refusal_of("nano").startswith(f"{tmp_path / 'weights'} holds no config.json (it holds nothing)")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The Hub's client with HF_HUB_OFFLINE=1 and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


UNREACHABLE = (
    "config.json of facebook/sam2.1-hiera-tiny is not in the local cache and the Hub cannot be reached. To work "
    "offline, fetch it once where there is a network (hf download facebook/sam2.1-hiera-tiny) and set "
    "HF_HUB_OFFLINE=1, copy the folder here and give its path, or use the embedded model, 'nano'"
)


@pytest.mark.parametrize("name", ["facebook/sam2.1-hiera-tiny", "sam2.1-hiera-tiny"])
def test_the_error_offline_says_what_to_do(offline, name):
    assert refusal_of(name) == UNREACHABLE


def test_a_hub_that_cannot_be_reached_is_the_same(offline, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # it tries six times
    assert refusal_of("sam2.1-hiera-tiny") == UNREACHABLE


def test_offline_the_cache_is_used(offline, tiny_folder, tiny_config):
    repository = offline / "models--facebook--sam2.1-hiera-tiny"
    commit = "0123456789" * 4
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    assert Sam2Model.from_pretrained("facebook/sam2.1-hiera-tiny").config == tiny_config
    assert load("sam2.1-hiera-tiny").image_processor.input_hw == (64, 64)
    assert Sam2Model.from_pretrained("sam2.1-hiera-tiny", revision=commit).config == tiny_config
    assert "is not in the local cache" in refusal_of("sam2.1-hiera-tiny", revision="other")


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "facebook/sam2.1-hiera-tny",
            hub_errors.RepositoryNotFoundError("404", response=RESPONSE),
            "there is no folder 'facebook/sam2.1-hiera-tny' here, and the Hub has no such repository; did you mean "
            "facebook/sam2.1-hiera-tiny?",
        ),
        (
            "me/mine",
            hub_errors.RepositoryNotFoundError("404", response=RESPONSE),
            "there is no folder 'me/mine' here, and the Hub has no such repository; if it is private, pass token=",
        ),
        (
            "me/mine",
            hub_errors.GatedRepoError("403", response=RESPONSE),
            "me/mine is gated: ask for access on its page, then pass token=",
        ),
        (
            "me/mine",
            hub_errors.RevisionNotFoundError("404", response=RESPONSE),
            "me/mine has no revision 'old'",
        ),
        (
            "me/mine",
            hub_errors.RemoteEntryNotFoundError("404", response=RESPONSE),
            "me/mine holds no config.json: expected a transformers SAM 2 model",
        ),
        (
            "me/mine",
            hub_errors.HfHubHTTPError("500 Internal Server Error\n\n(Request ID: 1)", response=RESPONSE),
            "cannot fetch config.json of 'me/mine': 500 Internal Server Error (Request ID: 1)",
        ),
        (
            "me/mine",
            OSError(28, "No space left on device"),
            "cannot fetch config.json of 'me/mine': [Errno 28] No space left on device",
        ),
    ],
)
def test_errors_of_the_hub_are_reported(monkeypatch, name, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints.hub, "hf_hub_download", fail)
    assert refusal_of(name, revision="old") == message


@pytest.mark.parametrize("name", ["a/b--c", "a/b..c", "-a/b", "a/b.git"])
def test_an_invalid_repository_is_refused(offline, name):
    assert refusal_of(name).startswith(f"cannot fetch config.json of {name!r}: ")


def test_revision_and_token_reach_the_hub(tiny_folder, monkeypatch):
    asked = []

    def fetch(repository, filename, *, revision, token):
        asked.append((repository, filename, revision, token))
        if not (tiny_folder / filename).exists():
            raise hub_errors.EntryNotFoundError(filename)
        return tiny_folder / filename

    monkeypatch.setattr(checkpoints.hub, "hf_hub_download", fetch)
    load("me/mine", revision="v1", token="secret")
    assert sorted(asked) == sorted(("me/mine", name, "v1", "secret") for name in [*FILES, "processor_config.json"])


# transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def known_to_transformers(tiny_config):
    """The width of memories is a constant in transformers 5.23."""
    return replace(tiny_config, hidden_size=64, memory_encoder=Sam2MemoryEncoderConfig(output_channels=64))


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("kind", ["Sam2Model", "Sam2VideoModel"])
def test_what_masklet_saves_transformers_loads(transformers, known_to_transformers, tmp_path, kind, version):
    thresholds = Sam2EverythingConfig(iou_threshold=0.4, stability_threshold=0.3)
    config = replace(
        known_to_transformers, is_v2_1=version == "2.1", has_memory=kind == "Sam2VideoModel", everything=thresholds
    )
    ours = Sam2Model(config).eval()
    ours.save_pretrained(tmp_path)
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    theirs.save_pretrained(tmp_path / "again")
    assert Sam2Model.from_pretrained(tmp_path / "again").config.everything == thresholds


def test_transformers_gives_the_same_masks(transformers, tiny_folder, tiny_model):
    theirs, info = transformers.Sam2Model.from_pretrained(tiny_folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    pixel_values, points = torch.randn(2, 3, 64, 64), 64 * torch.rand(2, 3, 2, 2)
    labels = torch.tensor([[[1, 0], [1, 1], [0, 1]]] * 2)
    with torch.inference_mode():
        for multimask in (True, False):
            a = tiny_model.decode(tiny_model.encode(pixel_values), Prompts(points, labels), multimask=multimask)
            b = theirs(pixel_values, points, labels, multimask_output=multimask)
            torch.testing.assert_close(a.logits, b.pred_masks, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(a.iou_scores, b.iou_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Sam2Model", "Sam2VideoModel"])
def test_what_transformers_saves_masklet_loads(transformers, known_to_transformers, tmp_path, kind):
    config = known_to_transformers
    if kind == "Sam2Model":
        config = replace(config, has_memory=False, memory_attention=Sam2MemoryAttentionConfig())
    config_class = getattr(transformers, kind.replace("Model", "Config"))
    theirs = getattr(transformers, kind)(config_class(**config_to_json(config))).eval()
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()

    ours = Sam2Model.from_pretrained(tmp_path)
    assert ours.config == config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    sam = load(tmp_path)
    assert sam.image_processor.input_hw == (64, 64)
