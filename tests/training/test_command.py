"""``python -m masklet.training`` and the measuring after it, on made-up data."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
import yaml

from masklet.training import __main__ as command
from masklet.training import held_out
from masklet.training.loop import Trainer


@pytest.fixture
def train(tiny_run, made_up_archives, tmp_path, monkeypatch):
    """Call the command; its run is in ``tmp_path / name``."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(tiny_run)))))
    monkeypatch.setattr(command, "LOG_EVERY", 1)
    monkeypatch.setattr(command, "SAVE_EVERY", 2)

    def run(name):
        arguments = ["train", tmp_path / "tiny.yaml", "--data", made_up_archives, "--run", tmp_path / name]
        monkeypatch.setattr(sys, "argv", [str(a) for a in [*arguments, "--threads", torch.get_num_threads()]])
        command.main()
        return tmp_path / name

    return run


def test_a_run_leaves_a_log_a_state_and_a_model_that_can_be_measured(train, made_up_archives, monkeypatch, capsys):
    run = train("run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    arguments = ["--data", made_up_archives, "--model", run / "model", "--count", 3]
    monkeypatch.setattr(sys, "argv", ["held_out", *map(str, arguments)])
    held_out.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["objects"] > 0
    assert 0 <= figures["one_click"] <= figures["oracle_click"] <= 1


def test_a_command_that_was_killed_goes_on_where_it_saved(train, monkeypatch):
    straight = train("straight")
    take_step = Trainer.take_step

    def die_in_the_fourth(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return take_step(trainer, batch)

    with monkeypatch.context() as dying:
        dying.setattr(Trainer, "take_step", die_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train("cut")
    cut = train("cut")
    steps = [json.loads(line)["step"] for line in (cut / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6]
    states = [torch.load(run / "state.pt", weights_only=True) for run in (straight, cut)]
    assert states[0]["step"] == states[1]["step"] == 6
    for part in ("model", "ema"):
        for name, weight in states[0][part].items():
            assert weight.equal(states[1][part][name]), name
