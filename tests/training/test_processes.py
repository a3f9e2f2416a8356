"""Runs as programs: killed, and on several processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.training import train
from masklet.training.config_files import config_from
from masklet.training.loop import Trainer
from masklet.training.parameter_groups import BETAS
from masklet.training.prefetching import PARENT_CHECK_S, start_worker

NOISE = 1e-6
"""Difference of a gradient, whose norm is 1, when sums are taken in another order."""


@pytest.fixture
def values(tmp_path, tiny_folder):
    """A run on four images, as plain values."""
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels, labels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
        pixels[8:40, 4 * index : 4 * index + 30] += np.uint8(150)
        labels[8:40, 4 * index : 4 * index + 30] = 1
        for folder, array in (("images", pixels), ("masks", labels)):
            (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "images" / folder / f"p{index}.png")
    return {
        "model": str(tiny_folder),
        "data": {"layout": "folder", "path": str(tmp_path / "images"), "validation": 0.25},
        "stages": [{"steps": 20, "batch_size": 2, "objects": 1, "rounds": 1, "train": "decoder"}],
        "save_every": 10,
        "validate_every": 100,
    }


@pytest.fixture
def one_thread():
    """Sums in this process have the order of those in a process with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(values, folder, **environment):
    """``masklet train`` in a process of its own."""
    (folder.parent / "run.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "masklet", "train", folder.parent / "run.json", "--run", folder]
    return subprocess.Popen(
        [*map(str, command), "--device", "cpu", "--threads", "1"],
        env=os.environ | {key: str(value) for key, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(values, folder):
    """The same command on two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(values, folder, RANK=rank, LOCAL_RANK=rank, **environment) for rank in range(2)]


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def trainer_of(values, folder):
    """A trainer in the state of a finished run."""
    trainer = Trainer(config_from(values))
    trainer.load(folder / "state.pt")
    return trainer


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(values, tmp_path, one_thread):
    train(values, tmp_path / "straight", device="cpu")
    killed = start(values, tmp_path / "killed")
    log = tmp_path / "killed/log.jsonl"
    while not (log.exists() and '"step": 11,' in log.read_text()):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)  # until workers have closed their outputs, too
    assert state_of(tmp_path / "killed")["step"] == 10
    finish(start(values, tmp_path / "killed"))
    one, other = state_of(tmp_path / "straight"), state_of(tmp_path / "killed")
    assert one["step"] == other["step"] == 20
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def work_for_a_moment():
    start_worker(0)
    time.sleep(2.5 * PARENT_CHECK_S)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_workers_stay_while_the_main_process_runs_however_they_are_started(method):
    worker = multiprocessing.get_context(method).Process(target=work_for_a_moment)
    worker.start()
    worker.join(300)
    assert worker.exitcode == 0


def assert_same_step(one, two, rate):
    """Gradients (clipped to a norm of 1) agree within 1e-6, and weights as closely as Adam's first step allows.

    Adam divides a gradient by its own size. Where a gradient is rounding noise of 1e-10 or so, as for the biases of
    keys, which a softmax ignores, Adam takes a whole step in a random direction.
    """
    bounds, differences = [], []
    for weight, other in zip(one.model.parameters(), two.model.parameters(), strict=True):
        of_one, of_two = one.optimizers[0].state.get(weight, {}), two.optimizers[0].state.get(other, {})
        assert of_one.keys() == of_two.keys()
        bound = torch.full_like(weight, 1e-6)
        if of_one:  # images do not train the memory
            gradient, of_other = (state["exp_avg"] / (1 - BETAS[0]) for state in (of_one, of_two))
            torch.testing.assert_close(gradient, of_other, rtol=1e-3, atol=NOISE)
            bound += rate * (2 * NOISE / gradient.abs()).clip(max=2)
            bounds.append(bound.flatten())
        differences.append((weight - other).abs().flatten())
        assert (differences[-1] <= bound.flatten()).all()
    assert (torch.cat(differences) <= 1e-5).float().mean() > 0.999
    assert (torch.cat(bounds) < 0.1 * rate).float().mean() > 0.8, "too many weights without a gradient"


def on_one_and_two(values, tmp_path, **stage):
    """Executes a run on one process and on two; returns both folders and its values."""
    stages = [values["stages"][0] | {"batch_size": 4, "rounds": 2, "train": "everything"} | stage]
    values = values | {"stages": stages, "learning_rate": 1e-4, "warmup_steps": 0}
    train(values, tmp_path / "one", device="cpu")
    for process in start_two(values, tmp_path / "two"):
        finish(process)
    return tmp_path / "one", tmp_path / "two", values


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_two_processes_take_the_same_step_as_one(values, tmp_path, micro_batches):
    one, two, values = on_one_and_two(values | {"micro_batches": micro_batches}, tmp_path, steps=1)
    assert_same_step(trainer_of(values, one), trainer_of(values, two), rate=1e-4)


@pytest.mark.slow
def test_two_processes_take_the_same_two_steps_as_one(values, tmp_path):
    one, two, _ = on_one_and_two(values | {"micro_batches": 2}, tmp_path, steps=2)
    assert state_of(one)["step"] == state_of(two)["step"] == 2
    torch.testing.assert_close(state_of(one)["notes"], state_of(two)["notes"], rtol=0, atol=1e-3)
    norms = [norms_of(folder) for folder in (one, two)]
    assert len(norms[0]) == 2
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def wait_for_step_three(processes, log):
    while not (log.exists() and '"step": 3,' in log.read_text()):
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.01)


def norms_of(folder):
    """The gradient norm of each step."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["gradient_norm"] for line in lines if "gradient_norm" in line]


@pytest.mark.slow
def test_an_image_missing_in_one_of_two_processes_ends_both_and_the_run_is_saved(values, tmp_path):
    values |= {"micro_batches": 2, "stages": [values["stages"][0] | {"steps": 10_000}], "save_every": 10_000}
    values["data"]["validation"] = 0.0
    processes = start_two(values, tmp_path / "two")
    wait_for_step_three(processes, tmp_path / "two/log.jsonl")
    (tmp_path / "images/images/p1.png").unlink()
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2, output
        assert "p1.png" in output
        saved = re.search(r"The run was saved after step (\d+)", output)
        assert state_of(tmp_path / "two")["step"] == int(saved[1])


@pytest.mark.slow
def test_a_validation_image_missing_in_one_of_two_processes_ends_both(values, tmp_path):
    values |= {"micro_batches": 2, "stages": [values["stages"][0] | {"steps": 10_000}], "save_every": 10_000}
    values["validate_every"] = 40
    values["data"]["validation"] = values["data"] | {"validation": 0.0, "path": str(tmp_path / "validation")}
    shutil.copytree(tmp_path / "images", tmp_path / "validation")
    processes = start_two(values, tmp_path / "two")
    wait_for_step_three(processes, tmp_path / "two/log.jsonl")
    (tmp_path / "validation/images/p2.png").unlink()
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2, output
        assert "p2.png" in output
        assert "The run was saved after step 40" in output
    assert state_of(tmp_path / "two")["step"] == 40


@pytest.mark.slow
def test_two_processes_name_the_same_image_when_a_loss_is_not_finite(values, tmp_path):
    values |= {"micro_batches": 2, "learning_rate": 1e30, "warmup_steps": 0}
    values["data"]["validation"] = 0.0
    processes = start_two(values, tmp_path / "two")
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    errors = [re.search(r"step \d+ has a loss or gradient that is not finite.*", output)[0] for output in outputs]
    assert errors[0] == errors[1]
    assert [process.returncode for process in processes] == [2, 2]


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both_after_the_same_step(values, tmp_path):
    values |= {"stages": [values["stages"][0] | {"steps": 10_000}], "save_every": 10_000}
    values["data"]["validation"] = 0.0
    processes = start_two(values, tmp_path / "two")
    wait_for_step_three(processes, tmp_path / "two/log.jsonl")
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    logged = [json.loads(line)["step"] for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    assert state_of(tmp_path / "two")["step"] == logged[-1] >= 3


@pytest.mark.slow
def test_sigterm_to_a_single_process_saves_and_exits(values, tmp_path):
    values |= {"stages": [values["stages"][0] | {"steps": 10_000}], "save_every": 10_000}
    process = start(values, tmp_path / "one")
    wait_for_step_three([process], tmp_path / "one/log.jsonl")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert state_of(tmp_path / "one")["step"] >= 3


@pytest.mark.slow
def test_accelerate_launch_runs_the_documented_yaml_as_it_is(values, tmp_path):
    """Without micro_batches, which two processes need two of."""
    assert "micro_batches" not in values
    values["stages"][0] |= {"steps": 2}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
    ]
    more = ["--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = ["-m", "masklet", "train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "two"), "--threads", "1"]
    done = subprocess.run(
        [*launch, *more, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
    assert state_of(tmp_path / "two")["step"] == 2
