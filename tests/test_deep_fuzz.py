"""The fuzz tests again, with many more examples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in Path(__file__).parent.rglob("test_damaged_*.py")))
def test_hundreds_of_damaged_files_are_read_or_refused(repository, file):
    (path,) = (repository / "tests").rglob(file)
    environment = os.environ | {"MASKLET_FUZZ_EXAMPLES": "500", "MASKLET_FUZZ_SEEDED": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
