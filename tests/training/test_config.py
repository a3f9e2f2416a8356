"""Configurations as people write them."""

from dataclasses import replace
from importlib.resources import files

import pytest
import yaml

from masklet.errors import ConfigError
from masklet.training.config import TrainingConfig, as_plain, config_from, read_config

SMALLEST = {"data": {"layout": "folder", "path": "photos"}, "stages": [{"steps": 10}]}


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
            "validation": {"layout": "films", "path": "b"},
        },
        "rates": {"memory": 2.0},
    }
    config = config_from(values)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_as_lists(config)))
    assert read_config(tmp_path / "run.yaml") == config
    changed = read_config(tmp_path / "run.yaml", data="elsewhere", model="other")
    assert (changed.data.path, changed.model) == ("elsewhere", "other")


def config_as_lists(config: TrainingConfig):
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    return plain(as_plain(config))


def test_a_number_without_a_point_is_a_number(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\ndata: {layout: folder, path: a}\nstages: [{steps: 1}]\n")
    assert read_config(tmp_path / "run.yaml").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "the run has no 'sead': did you mean seed?"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"steps": 0}]}, "steps of a training stage is 0: expected a whole number >= 1"),
        ({"stages": [{"image_size": 250, "steps": 1}]}, "image_size of a training stage is 250: not a multiple of 32"),
        ({"stages": [{}]}, "a stage lacks 'steps'"),
        ({"stages": [5]}, "a stage is 5: expected names and values"),
        (
            {"stages": [{"steps": 1, "train": "head"}]},
            "train of a training stage is 'head': expected one of everything",
        ),
        ({"stages": [{"steps": 1, "train": "lora"}]}, "add lora"),
        ({"stages": [{"steps": 1, "losses": {"focus": 1}}]}, "losses has no 'focus': did you mean focal?"),
        ({"stages": [{"steps": 1, "prompts": {"click": 0, "box": 0}}]}, "expected shares >= 0, one of them above"),
        ({"data": {"layout": "voc", "path": "a"}}, "layout 'voc': expected one of folder, coco"),
        ({"data": {"layout": "coco", "path": "a"}}, "annotations"),
        ({"data": {"layout": "folder", "path": "a", "validation": 2}}, "validation 2.*share from 0 to 1"),
        ({"parts": 3}, "4 pictures cannot be split into 3 equal parts"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd': expected one of adamw, muon"),
        ({"rates": {"encoder": 0.1}}, "rates name 'encoder': expected one of image_encoder"),
        ({"trackers": ["mlflow"]}, "trackers name 'mlflow'"),
        ({"learning_rate": "fast"}, "learning_rate of the run is 'fast': expected a number"),
        ({"bfloat16": 1}, "bfloat16 of the run is 1: expected true or false"),
        ({"lora": {"rank": 0}}, "rank of lora is 0"),
        ({"geometry_steps": 5}, "geometry_steps are for a network that starts from nothing"),
        ({"model": {"hidden_sice": 1}}, "hidden_sice.*did you mean hidden_size"),
        ({"model": {"has_memory": False}, "stages": [{"steps": 1, "frames": 4}]}, "no memory"),
    ],
)
def test_a_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from(SMALLEST | change)


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2", "no YAML"), ("5", "holds int: expected names and values"), ("a: 1", "run.yaml: ")]
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "run.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the training configuration .*none.yaml: No such file"):
        read_config(tmp_path / "none.yaml")


def test_the_recipes_of_the_embedded_model_can_be_read():
    pictures, clips = (
        read_config(files("masklet.training") / name, data="there") for name in ("nano.yaml", "nano-video.yaml")
    )
    assert pictures.model.image_size == pictures.stages[-1].image_size == 512
    assert (clips.model, clips.stages[0].train, clips.data.path) == ("nano", "memory", "there")


def test_the_network_decides_about_sizes_that_are_not_given(tiny_run):
    stages = (replace(tiny_run.stages[0], image_size=None), tiny_run.stages[1])
    fitted = replace(tiny_run, stages=stages).fitting(tiny_run.model)
    assert [stage.side_px for stage in fitted.stages] == [64, 96]
