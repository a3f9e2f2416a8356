"""Damaged files: every reader reads them or refuses them with a clear error. None crashes or hangs.

Each batch of cases runs in a process of its own, which writes a case to disk before it reads it, so that a file that
ends the process is left behind. ``python -m soak.files READER SEED COUNT FOLDER`` repeats a batch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from damage import damaged_bytes, damaged_documents
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from soak.originals import READERS, Original
from soak.outcome import Outcome, described, is_clear

CASES, BATCH = 10_000, 250
HANG_SECONDS = 600
MEMORY_BYTES = 12 << 30
"""Address space of a process: one that asks for more is refused its memory, as on a smaller machine."""


def run(seconds: float, first_seed: int, folder: Path) -> Outcome:
    """Batches for one reader after the other, until each has its share of the cases or the time is over."""
    totals, failures = {name: Counter() for name in READERS}, []
    until, share = time.monotonic() + seconds, CASES // len(READERS)
    for number in range(-(-share // BATCH)):
        for name, total in totals.items():
            if time.monotonic() < until:
                count = min(BATCH, share - number * BATCH)
                failures += run_batch(name, first_seed + number, count, folder / name, total)
    figures = {name: dict(total) for name, total in totals.items()}
    return Outcome({"cases": sum(total["cases"] for total in totals.values()), "readers": figures}, failures)


def run_batch(name: str, seed_number: int, count: int, folder: Path, total: Counter[str]) -> list[str]:
    """The cases of a seed in a process of their own; counts them, and returns what failed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "soak.files", name, str(seed_number), str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        total["cases"] += 1
        total[line["outcome"]] += 1
    print(f"  {name}, seed {seed_number}: {dict(total)}", flush=True)
    failures = [f"{name}: {line['error']}; {line['kept']}" for line in lines if line["outcome"] == "failed"]
    if done.returncode:
        total["ended the process"] += 1
        kept = shutil.copytree(folder / "case", folder / f"crash-{seed_number}", dirs_exist_ok=True)
        reason = done.stderr.strip()[-300:]
        failures.append(f"{name}: rc {done.returncode}; {kept} ({' '.join(command[1:])}): {reason}")
    return failures


def run_cases(name: str, seed_number: int, count: int, folder: Path) -> None:
    """Prints a line of JSON for each case."""
    originals = READERS[name](folder / "originals")
    case = folder / "case"
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()

    @seed(seed_number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(originals), st.data())
    def attack(original: Original, data: st.DataObject) -> None:
        broken = data.draw(damaged(original))
        (case / original.path.name).write_bytes(broken)  # what is left if it ends the process
        error = outcome_of(original, broken)
        line = {"outcome": "read" if error is None else "refused"}
        if error is not None and not is_clear(error):
            kept = folder / f"failed-{seed_number}-{len(list(folder.iterdir()))}{original.path.suffix}"
            kept.write_bytes(broken)
            line = {"outcome": "failed", "error": described(error), "kept": str(kept)}
        print(json.dumps(line), flush=True)

    attack()


@st.composite
def damaged(draw, original: Original) -> bytes:
    """The bytes of a file, damaged; documents also by their values."""
    content = original.path.read_bytes()
    if original.path.suffix != ".json" or draw(st.booleans()):
        return draw(damaged_bytes(content))
    document = draw(damaged_documents(json.loads(content)))
    return json.dumps(document, default=str).encode(errors="surrogatepass")


def outcome_of(original: Original, broken: bytes) -> BaseException | None:
    """The error with which the damaged file is refused; the original is put back."""
    whole = original.path.read_bytes()
    original.path.write_bytes(broken)
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        original.read()
    except Exception as error:
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()
        original.path.write_bytes(whole)
    return None


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    faulthandler.enable()
    run_cases(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
