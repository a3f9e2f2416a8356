"""benchmarks/gpu.py in miniature: the one run on a GPU must not fail for a reason that a CPU shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    path = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--models", "tiny", "large", "--objects", "1", "2"]
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    results = {name: section["result"] for name, section in found["sections"].items()}
    assert not [(name, result) for name, result in results.items() if isinstance(result, dict) and "error" in result]
    assert results["tiny: make"] == results["large: make"] == ""  # transformers is there
    assert results["masks of the embedded model, float32"]["image, least"] > 0.99
    for video in (results["tiny: video, 2 objects"], results["large: video, 1 objects"]):
        assert video["cuda"]["frames_per_second"] > 0
        assert video["transformers"]["frames_per_second"] > 0
    assert results["tiny: images"]["64 clicks"]["transformers"]["median_ms"] > 0
    assert results["pytest -m gpu"]["exit status"] == 0
    assert not [*tmp_path.glob("*.part")]


@pytest.mark.slow
def test_a_section_that_fails_or_takes_too_long_leaves_its_error(tmp_path):
    code = f"""
import sys, time, torch
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu
from pathlib import Path
gpu.SECTION_SECONDS = 0.02
path = Path({str(tmp_path / "gpu.json")!r})
run = gpu.Run(path, torch.device("cpu"), time.monotonic() + 60, True, {{"sections": {{}}}})
run.section("fails", lambda: 1 / 0)
run.section("hangs", lambda: time.sleep(60))
run.section("works", lambda: {{"ms": 1}})
run.deadline = time.monotonic()
run.section("late", lambda: 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["fails"]["result"]["error"] == "ZeroDivisionError: division by zero"
    assert sections["hangs"]["result"]["error"] == "TimeoutError: it took longer than 0 s"
    assert sections["works"]["result"] == {"ms": 1}
    assert sections["late"]["result"]["error"] == "TimeoutError: no time is left"
