"""A run over a source: what is left to do, the work, and the summary."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain
from time import perf_counter
from typing import Any, TypeVar

from masklet.batch.coco import write_coco
from masklet.batch.inputs import Input, digest_of, find_inputs, suffixes_of
from masklet.batch.parts import PARTS, Done, keep_only, read_record, schema
from masklet.batch.prompt_files import PromptTable
from masklet.batch.storage import Storage
from masklet.batch.tasks import ImageTask, Task
from masklet.batch.worker import SESSIONS, Block, Report, Work, Worker, digest_of_prompts
from masklet.errors import ConfigError, MaskletError, PromptError
from masklet.version import __version__

T = TypeVar("T")
READERS = 32
"""Parts that are read at a time."""
WAITING = 4096
"""Parts whose records are in memory at a time."""
FORMATS = ("parquet", "coco", "png")
FAILURES, SUMMARY = "failures.parquet", "summary.json"
Execute = Callable[[Work, Sequence[Block]], Iterable[Report]]
"""Runs blocks in any order, and reports each part when it is written."""


@dataclass
class Progress:
    """How far a run is."""

    total: int
    """Inputs to be processed."""
    skipped: int
    """Inputs that were finished before."""
    done: int = 0
    failed: int = 0
    worked: float = 0.0
    """Inputs that were worked on in this run, with fractions of videos."""
    earlier: float = 0.0
    """Fractions of videos that an earlier run has done."""
    frames: int = 0
    masks: int = 0
    seconds: float = 0.0
    """Since the run started."""
    workers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Frames, or images, and seconds of work of each worker."""

    def add(self, report: Report, seconds: float) -> None:
        """Counts a part."""
        self.done += report.done
        self.failed += report.failed
        self.worked += report.share
        self.earlier += report.earlier
        self.frames += report.frames
        self.masks += report.masks
        self.seconds = seconds
        worker = self.workers.setdefault(report.worker, {"frames": 0, "seconds": 0})
        worker["frames"] += report.frames
        worker["seconds"] += report.seconds

    @property
    def seconds_left(self) -> float | None:
        """Estimated from what was done so far; None at the start."""
        if self.done + self.failed == self.total:
            return 0.0
        return self.seconds / self.worked * (self.total - self.worked - self.earlier) if self.worked else None

    @property
    def frames_per_second(self) -> float:
        """Frames, or images, per second of all workers together."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def worker_rates(self) -> dict[str, float]:
        """Frames, or images, per second of each worker."""
        return {name: worker["frames"] / max(worker["seconds"], 1e-9) for name, worker in self.workers.items()}

    def to_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        left = self.seconds_left
        return {
            **{name: getattr(self, name) for name in ("total", "skipped", "done", "failed", "frames", "masks")},
            "seconds": round(self.seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
            "inputs_per_second": round(self.worked / self.seconds, 3) if self.seconds else 0.0,
            "frames_per_second": round(self.frames_per_second, 3),
            "workers": {name: round(rate, 3) for name, rate in self.worker_rates.items()},
        }


@dataclass(frozen=True)
class Run:
    """A source, what to do with it, and where the results go.

    Args:
        source: See ``find_inputs``.
        out: A folder, or an address that fsspec writes.
        task: What to do.
        prompts: Prompts of the inputs, for tasks that take them.
        model: Arguments of ``masklet.load``.
        formats: Names from ``FORMATS``; Parquet files are always written.
        block: Images in one part of the results: what is done again if a worker dies.
        chunk_frames: Frames of a video in one part.

    Raises:
        ConfigError: An argument is invalid, or prompts are missing.
    """

    source: str
    out: str
    task: Task
    prompts: PromptTable | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = ("parquet",)
    block: int = 64
    chunk_frames: int = 1000

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - set(FORMATS):
            raise ConfigError(f"format is {min(unknown)!r}: expected some of {', '.join(FORMATS)}")
        if "coco" in self.formats and not isinstance(self.task, ImageTask):
            raise ConfigError("COCO data sets have no videos: expected the formats parquet or png")
        if (self.prompts is not None) != self.task.needs_prompts:
            needs = "needs prompts: expected a file of them" if self.task.needs_prompts else "takes no prompts"
            raise ConfigError(f"the task {self.task.name} {needs}")
        if self.block < 1 or self.chunk_frames < 1:
            raise ConfigError("block and chunk_frames: expected 1 or more")

    def __call__(self, execute: Execute | None = None) -> Iterator[Progress]:
        """Processes what is not finished; yields the progress before the first part and after each.

        Args:
            execute: Runs the blocks; one after the other in this process if None.

        Raises:
            DataError: The source is empty, or the folder of the results holds something else.
            MaskletError: A package is missing; the results cannot be written; machines of a cluster do not share
                their folder.
        """
        schema()  # an error now if pyarrow is missing
        inputs = find_inputs(self.source, suffixes_of(self.task.kind))
        storage = Storage(self.out)
        storage.check_writable()
        work = Work(storage.address, self.task, self._settings(), self.model, self.chunk_frames, "png" in self.formats)
        prompts = [[] if self.prompts is None else self.prompts.of(one.name) for one in inputs]
        if self.prompts is not None and not any(prompts):
            raise PromptError(f"no prompt is for an input of {self.source}, such as {inputs[0].name}")
        finished = find_finished(storage, inputs, prompts, work.settings)
        left = [(one, its) for one, its in zip(inputs, prompts, strict=True) if one.name not in finished]
        size = self.block if self.task.kind == "image" else 1
        blocks = [
            Block([one for one, _ in left[at : at + size]], [its for _, its in left[at : at + size]])
            for at in range(0, len(left), size)
        ]
        start, progress = perf_counter(), Progress(len(left), len(finished))
        yield progress
        for report in (execute or in_this_process)(work, blocks):
            progress.add(report, perf_counter() - start)
            yield progress
        missing = len(inputs) - finish(storage, self.formats)
        if missing > 0:
            raise MaskletError(
                f"{missing} of {len(inputs)} inputs have no results in {storage.address}: expected a folder that all "
                "machines of the cluster share, or object storage"
            )

    def _settings(self) -> str:
        """Identifies all that the results depend on besides the inputs."""
        import masklet
        from masklet.model.fingerprint import fingerprint

        model = masklet.load(**{**self.model, "device": "cpu", "engine": "eager"}).model
        depends_on = {
            "masklet": __version__,
            "task": [type(self.task).__name__, asdict(self.task)],
            "model": fingerprint(model.config, model.state_dict().values()),
            "load": {"dtype": self.model.get("dtype", "auto"), "resolution": self.model.get("resolution")},
        }
        # Whole numbers become floats, since the command line passes 2.0 where a caller passes 2.
        as_floats = json.loads(json.dumps(depends_on, default=str), parse_int=float)
        return sha256(json.dumps(as_floats, sort_keys=True).encode()).hexdigest()[:16]


def in_this_process(work: Work, blocks: Sequence[Block]) -> Iterator[Report]:
    """Runs blocks one after the other."""
    return chain.from_iterable(map(Worker(work), blocks))


def find_finished(
    storage: Storage, inputs: Sequence[Input], prompts: Sequence[Sequence[Any]], settings: str
) -> set[str]:
    """The names of inputs whose results are there and up to date; results that are not are removed.

    Raises:
        DataError: The folder holds Parquet files of another origin.
    """
    by_name = {one.name: (one, its) for one, its in zip(inputs, prompts, strict=True)}
    chunks: dict[str, set[int]] = defaultdict(set)
    last: dict[str, int] = {}

    def read(part: str) -> tuple[str, list[Done], list[Done]]:
        made_with, record = read_record(storage, part)
        current = [
            done
            for done in record
            if made_with == settings
            and done.error is None
            and done.name in by_name
            and _is_current(done, *by_name[done.name])
        ]
        return part, record, current

    for part, record, current in in_threads(read, storage.names(PARTS)):
        if len(current) < len(record):
            keep_only(storage, part, current, settings)
        for done in current:
            chunks[done.name].add(done.chunk)
            if done.is_last:
                last[done.name] = done.chunk
    return {name for name, chunk in last.items() if chunks[name] == set(range(chunk + 1))}


def in_threads(work: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """What ``work`` returns for each name, in order. Object storage answers slowly, but many requests at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(names), WAITING):
            yield from pool.map(work, names[start : start + WAITING])


def _is_current(done: Done, one: Input, prompts: Sequence[Any]) -> bool:
    """Whether an input is what it was when its masks were made. It is read only if its stamp has changed."""
    if done.prompts != digest_of_prompts(prompts):
        return False
    try:
        if one.stamp() == done.stamp:
            return True
        with one.as_file() as path:
            return digest_of(path) == done.digest
    except OSError:
        return False


def finish(storage: Storage, formats: Sequence[str]) -> int:
    """Writes the failures, the summary and further formats from the parts. Returns the number of inputs in them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = storage.names(PARTS)
    records = [done for _, record in in_threads(partial(read_record, storage), parts) for done in record]
    failures = sorted((one.name, one.error) for one in records if one.error is not None)
    if failures:
        columns = {"input": [name for name, _ in failures], "reason": [reason for _, reason in failures]}
        pq.write_table(pa.table(columns), content := io.BytesIO())
        storage.write(FAILURES, content.getvalue())
    else:
        storage.remove(FAILURES)
    summary = {
        "inputs": len({one.name for one in records}),
        "finished": len({one.name for one in records if one.error is None and one.is_last}),
        "failed": len(failures),
        "frames": sum(one.frames for one in records),
        "masks": sum(one.masks for one in records),
        "parts": len(parts),
    }
    storage.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    if "coco" in formats:
        write_coco(storage, parts)
    if summary["finished"] + summary["failed"] == summary["inputs"]:
        for name in storage.names(f"{SESSIONS}/*.session"):  # of inputs that are not in the source any more
            storage.remove(name)
    return summary["finished"] + summary["failed"]
