"""Fuzzed prompts and options through images, videos and the drop-in classes: valid results, or clear errors.

Every case has a seed of its own. Batches run in processes of their own: ``python -m soak.prompts SEED FIRST COUNT``
repeats one, and a case alone with COUNT 1.
"""

from __future__ import annotations

import faulthandler
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from soak.outcome import Outcome, described, is_clear
from soak.prompt_cases import Case, Target, make_targets

PROMPTS, BATCH = 1_000_000, 4000
HANG_SECONDS = 600
CALLS_PER_VIDEO = 25
"""So that videos gather objects and corrections, and then begin again."""


def run(seconds: float, seed: int, folder: Path) -> Outcome:
    """Batches until a million prompts were given or the time is over."""
    totals: Counter[str] = Counter()
    by_target: dict[str, Counter[str]] = {}
    failures, first, until = [], 0, time.monotonic() + seconds
    while totals["prompts"] < PROMPTS and time.monotonic() < until:
        command = [sys.executable, "-m", "soak.prompts", str(seed), str(first), str(BATCH)]
        done = subprocess.run(command, capture_output=True, text=True)
        for line in map(json.loads, filter(lambda text: text.startswith("{"), done.stdout.splitlines())):
            if "failure" in line:
                failures.append(line["failure"])
                continue
            for name, counts in line.items():
                by_target.setdefault(name, Counter()).update(counts)
                totals.update(counts)
        if done.returncode:
            failures.append(f"rc {done.returncode}: {' '.join(command[1:])}: {done.stderr[-500:]}")
        print(f"  {first}: {dict(totals)}, {len(failures)} failures", flush=True)
        first += BATCH
    figures = {**totals, **{name: dict(counts) for name, counts in by_target.items()}}
    return Outcome(figures, failures)


def run_batch(seed: int, first: int, count: int) -> None:
    """Prints a line of JSON for each failure, and the counts at the end."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder))
        for number in range(first, first + count):
            if (number - first) % CALLS_PER_VIDEO == 0:
                for target in targets:
                    target.begin()
            case = Case(random.Random(f"{seed} {number}"))
            target = case.random.choice(targets)
            total = counts.setdefault(target.name, Counter())
            if error := outcome_of(target, case, total):
                begun = number - (number - first) % CALLS_PER_VIDEO
                repeat = f"python -m soak.prompts {seed} {begun} {CALLS_PER_VIDEO}"
                failure = f"{target.name}: {described(error)}; {repeat}"
                print(json.dumps({"failure": failure, "given": str(case.given)[:500]}), flush=True)
                if count <= CALLS_PER_VIDEO:
                    traceback.print_exception(error)
    print(json.dumps(counts))


def outcome_of(target: Target, case: Case, total: Counter[str]) -> BaseException | None:
    """Runs and counts a case; returns what must not happen."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    outcome, failure = "accepted", None
    try:
        target.attack(case)
    except Exception as error:
        outcome = "refused" if is_clear(error) else "failed"
        failure = None if is_clear(error) else error
    finally:
        faulthandler.cancel_dump_traceback_later()
    total.update({"calls": 1, "prompts": case.prompts, outcome: 1})
    return failure


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.enable()
    run_batch(*map(int, sys.argv[1:]))
