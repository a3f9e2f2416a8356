"""Configurations in Python and YAML."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from masklet.errors import ConfigError
from masklet.training.config import TrainingConfig
from masklet.training.config_files import as_plain, config_from, read_config
from masklet.training.data_config import DataConfig

SMALLEST = {"data": {"layout": "folder", "path": "images"}, "stages": [{"steps": 10}]}


def test_a_configuration_may_be_short():
    config = config_from(SMALLEST)
    assert (config.model, config.data.validation, config.stages[0].rounds) == ("nano", 0.1, 8)
    assert vars(config.stages[0].losses) == {"focal": 20, "dice": 1, "iou": 1, "object_score": 1, "all_candidates": 0}


def test_what_is_written_is_read_back(tmp_path):
    values = SMALLEST | {
        "lora": {"rank": 2, "targets": ["mask_decoder.*_proj"]},
        "stages": [{"steps": 5, "train": "lora", "losses": {"focal": 5}, "prompts": {"click": 0, "box": 1}}],
        "data": {
            "layout": "coco",
            "path": "a",
            "annotations": "a.json",
            "validation": {"layout": "videos", "path": "b"},
        },
        "rates": {"memory": 2.0},
    }
    config = config_from(values)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_as_lists(config)))
    assert read_config(tmp_path / "run.yaml") == config
    changed = read_config(
        tmp_path / "run.yaml",
        changes={"data.path": "elsewhere", "model": "other", "stages.steps": 7, "stages.0.rounds": 3},
    )
    assert (changed.data.path, changed.model) == ("elsewhere", "other")
    assert [(stage.steps, stage.rounds) for stage in changed.stages] == [(7, 3)]
    with pytest.raises(ConfigError, match="stages.1.steps names item 1 of a list of 1: they are counted from 0"):
        read_config(tmp_path / "run.yaml", changes={"stages.1.steps": 7})


def config_as_lists(config: TrainingConfig):
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    return plain(as_plain(config))


def test_a_number_without_a_decimal_point_is_a_number(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\ndata: {layout: folder, path: a}\nstages: [{steps: 1}]\n")
    assert read_config(tmp_path / "run.yaml").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "the run has no 'sead': did you mean seed?"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"steps": 0}]}, "steps of a training stage is 0: expected a whole number >= 1"),
        ({"stages": [{"input_size": 250, "steps": 1}]}, "input_size of a training stage is 250: not a multiple of 32"),
        ({"stages": [{}]}, "a stage lacks 'steps'"),
        ({"stages": [5]}, "a stage is 5: expected names and values"),
        (
            {"stages": [{"steps": 1, "train": "head"}]},
            "train of a training stage is 'head': expected one of everything",
        ),
        ({"stages": [{"steps": 1, "train": "lora"}]}, "add lora"),
        ({"stages": [{"steps": 1, "losses": {"focus": 1}}]}, "losses has no 'focus': did you mean focal?"),
        (
            {"stages": [{"steps": 1, "prompts": {"click": 0, "box": 0}}]},
            "expected shares >= 0, at least one of them above 0",
        ),
        ({"data": {"layout": "voc", "path": "a"}}, "layout 'voc': expected one of folder, coco"),
        ({"data": {"layout": "coco", "path": "a"}}, "annotations"),
        ({"data": {"layout": "folder", "path": "a", "validation": 2}}, "validation 2.*share from 0 to 1"),
        ({"micro_batches": 3}, "batch_size of 4 cannot be split into 3 equal micro_batches"),
        ({"rates": {"encoder": 0.1}}, "rates name 'encoder': expected one of image_encoder"),
        ({"trackers": ["mlflow"]}, "trackers name 'mlflow'"),
        ({"learning_rate": "fast"}, "learning_rate of the run is 'fast': expected a number"),
        ({"precision": "half"}, "precision is 'half': expected one of auto, bfloat16, float16, float32"),
        ({"lora": {"rank": 0}}, "rank of lora is 0"),
        ({"lora": {"targets": []}}, "lora has no targets"),
        ({"data": "images"}, "data is 'images': expected names and values"),
        ({"data": {"layout": "folder", "path": 5}}, "path is 5: expected text"),
        (
            {"data": {"layout": "videos", "path": "a", "split_masks": True}},
            "split_masks is for layout folder only",
        ),
        ({"stages": 5}, r"stages is 5: expected a list, such as \[{steps: 500}\]"),
        ({"stages": {"steps": 5}}, "stages is {'steps': 5}: expected a list"),
        ({"model": 5}, "model is 5: expected text"),
        ({"learning_rate": 0}, "learning_rate is 0.0: expected a number > 0"),
        ({"learning_rate": "nan"}, "learning_rate is nan: expected a number > 0"),
        ({"ema_decay": 1}, "ema_decay is 1.0: expected a number from 0 to below 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1: expected a whole number >= 0"),
        ({"max_gradient_norm": 0}, "max_gradient_norm is 0.0: expected a number > 0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5: expected a number above 0, up to 1"),
        ({"seed": -1}, "seed is -1: expected a whole number >= 0"),
        ({"cache_gb": -1}, "cache_gb is -1.0: expected a number >= 0"),
        ({"rates": {"memory": -1}}, "memory of rates is -1.0: expected a number >= 0"),
        ({"rates": {"memory": "slow"}}, "memory of rates is 'slow': expected a number"),
        (
            {"stages": [{"steps": 1, "losses": {"all_candidates": 2}}]},
            "all_candidates of losses is 2.0: expected .* 0 to 1",
        ),
        ({"stages": [{"steps": 1, "losses": {"dice": -1}}]}, "dice of losses is -1.0: expected a number >= 0"),
        ({"model": {"hidden_sice": 1}}, "hidden_sice.*did you mean hidden_size"),
        ({"model": {"has_memory": False}, "stages": [{"steps": 1, "frames": 4}]}, "no memory"),
    ],
)
def test_a_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from(SMALLEST | change)


def test_path_objects_and_single_names_are_accepted():
    values = SMALLEST | {"model": Path("m"), "trackers": "wandb", "lora": {"targets": "a.*"}, "cache": Path("c")}
    config = config_from(values | {"data": DataConfig(layout="folder", path=Path("images"))})
    assert (config.model, config.data.path, config.cache) == ("m", "images", "c")
    assert (config.trackers, config.lora.targets) == (("wandb",), ("a.*",))


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2", "not YAML"), ("5", "holds int: expected names and values"), ("a: 1", "run.yaml: ")]
)
def test_a_file_that_is_not_a_configuration_is_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "run.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the training configuration .*none.yaml: No such file"):
        read_config(tmp_path / "none.yaml")


def test_stages_without_an_input_size_get_that_of_the_network(scratch):
    stages = (replace(scratch.stages[0], input_size=0), scratch.stages[1])
    resolved = replace(scratch, stages=stages).for_network(scratch.model)
    assert [stage.input_size for stage in resolved.stages] == [64, 96]
