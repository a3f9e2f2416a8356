"""``make soak`` in miniature."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.mark.slow
def test_two_parts_run_for_a_moment_and_write_their_figures(repository, tmp_path):
    report = tmp_path / "soak.json"
    options = ["--only", "files", "--only", "disks", "--minutes", "0.03", "--folder", tmp_path, "--json", report]
    done = subprocess.run(
        [sys.executable, "-m", "soak", *map(str, options)],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(report.read_text())["parts"]
    assert parts["files"]["readers"]["images"]["cases"] == 250
    assert parts["disks"]["refused"] > 0
