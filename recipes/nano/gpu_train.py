"""Trains the embedded model further on one GPU in a few minutes: images, then clips.

    python -m recipes.nano.gpu_train DATA --out OUT [--minutes 8]

``gpu.sh`` calls it. It needs torch, numpy, Pillow, safetensors, pycocotools and connected-components-3d, and neither
accelerate nor a network. Time, not steps, decides: the learning rate falls to zero at the end of each phase. Whatever
goes wrong, OUT holds the averaged weights of the last minute (``last``), those before (``start``) and a log
(``log.jsonl``) with the scores of both on held-out sources.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Example
from masklet.training.config import Stage, TrainingConfig
from masklet.training.losses import LossWeights
from masklet.training.objective import Objective
from masklet.training.out_of_memory import is_out_of_memory
from masklet.training.parameter_groups import is_trained
from masklet.training.precision import precision_for, tf32
from masklet.training.prompts import PromptRates
from recipes.nano.gpu_batches import Feed, Material, PackedBatch, in_workers
from recipes.nano.gpu_scores import HeldOut, scores_of
from recipes.nano.muon import muon_and_adamw
from recipes.nano.sources import read_sources

SWITCH_S = 2e-4
"""Time for which a thread may keep Python's lock: the thread that fills pinned memory must not hold up a step."""
WRITE_EVERY_S = 60.0
LOG_EVERY_S = 10.0
EMA_DECAY = 0.998
MAX_GRADIENT_NORM = 1.0
WARMUP = 0.05
"""Share of a phase in which the learning rate rises."""
WEIGHT_DECAY = 0.05
LOSSES = LossWeights(focal=10, all_candidates=0.25)
MAX_FAILURES = 20
"""Steps in a row that may fail before a phase ends."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the training."""

    name: str
    stage: Stage
    share: float
    """Share of the time."""
    learning_rate: float


IMAGES = Phase(
    name="images",
    stage=Stage(steps=1, input_size=512, batch_size=64, objects=8, rounds=2, losses=LOSSES),
    share=0.72,
    learning_rate=5e-4,
)
CLIPS = Phase(
    name="clips",
    stage=Stage(
        steps=1,
        input_size=512,
        batch_size=8,
        objects=4,
        rounds=2,
        frames=6,
        train="memory",
        losses=LOSSES,
        prompts=PromptRates(click=0.25, box=0.25, mask=0.5),
    ),
    share=0.28,
    learning_rate=4e-4,
)


@dataclass
class Log:
    """Lines of JSON, each on disk at once."""

    path: Path
    started: float = field(default_factory=time.monotonic)

    def __call__(self, **values: Any) -> None:
        """Writes a line, with the seconds since the start."""
        line = json.dumps({"s": round(time.monotonic() - self.started, 1), **values})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Stopped(BaseException):
    """The process was asked to end."""


class Training:
    """The state: weights, their average, and where they are written."""

    def __init__(self, model: Sam2Model, device: torch.device, out: Path, log: Log) -> None:
        self.model = model.to(device).train()
        self.device = device
        self.out = out
        self.log = log
        self.precision = precision_for("auto", device)
        if self.precision == "float16":  # would need a scaler; such a GPU is slow anyway
            self.precision = "float32"
        self.objective = Objective(model, precision=self.precision)
        self.ema = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        self.micro_batches = 1
        self.written = time.monotonic()
        log(device=_name(device), precision=self.precision, torch=torch.__version__)

    def train(self, phase: Phase, batches: Iterator[PackedBatch], seconds: float) -> None:
        """Trains for some seconds. Steps that fail are left out; memory that runs out splits batches further."""
        stage = phase.stage
        self.model.load_state_dict(self.ema)  # a phase starts from the average, which is what is kept
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(is_trained(name, stage.train))
        config = TrainingConfig(stages=(stage,), weight_decay=WEIGHT_DECAY)
        optimizers = muon_and_adamw(self.model, None, config)
        begin, logged, step, failures = time.monotonic(), 0.0, 0, 0
        while (elapsed := time.monotonic() - begin) < seconds:
            rate = phase.learning_rate * schedule(elapsed / seconds)
            try:
                begun = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - begun
                values = self._step(batch, stage, optimizers, rate, step) | {"waited_s": round(waited, 3)}
                failures = 0
            except StopIteration:
                self.log(phase=phase.name, problem="no more batches")
                return
            except (RuntimeError, ValueError) as error:
                failures += 1
                self._recover(phase, error)
                if failures >= MAX_FAILURES:
                    return
                continue
            step += 1
            if elapsed - logged >= LOG_EVERY_S or step == 1:
                logged = elapsed
                self.log(phase=phase.name, step=step, rate=rate, micro_batches=self.micro_batches, **values)
            self.write(only_if_due=True)
        self.log(phase=phase.name, steps=step, examples=step * stage.batch_size)

    def _step(
        self, batch: PackedBatch, stage: Stage, optimizers: list[torch.optim.Optimizer], rate: float, step: int
    ) -> dict[str, float]:
        parts = batch.to(self.device).split(min(self.micro_batches, len(batch.names)))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        rows = []
        with tf32(self.device, self.precision):
            for number, part in enumerate(parts):
                total, losses, ious = self.objective(part, stage, torch.Generator().manual_seed(step * 997 + number))
                (total / len(parts)).backward()
                rows.append(torch.stack([total.detach(), losses["iou"], ious[0], ious[-1]]))
            norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), MAX_GRADIENT_NORM)
            *values, size = torch.cat([torch.stack(rows).mean(0), norm.detach().view(1)]).tolist()
            if not (math.isfinite(values[0]) and math.isfinite(size)):
                raise ValueError(f"loss {values[0]}, gradient norm {size}")
            for optimizer in optimizers:
                optimizer.step()
        self._average(step + 1)
        return dict(zip(("total", "iou_loss", "first_iou", "last_iou"), values, strict=True)) | {"norm": size}

    def _average(self, step: int) -> None:
        decay = min(EMA_DECAY, step / (step + 10))
        weights = self.model.state_dict()
        floats = [name for name in weights if weights[name].is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self.ema[name] for name in floats], [weights[name] for name in floats], 1 - decay)

    def _recover(self, phase: Phase, error: Exception) -> None:
        self.log(phase=phase.name, problem=f"{type(error).__name__}: {error}"[:300])
        if is_out_of_memory(error):
            self.micro_batches = min(2 * self.micro_batches, phase.stage.batch_size)
        self.objective.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def averaged_model(self) -> Sam2Model:
        """A copy with the averaged weights, on the CPU."""
        return Sam2Model.from_tensors(
            self.model.config, {name: weight.detach().cpu().clone() for name, weight in self.ema.items()}
        )

    def write(self, name: str = "last", *, only_if_due: bool = False) -> None:
        """Writes the averaged weights, whole or not at all."""
        if only_if_due and time.monotonic() - self.written < WRITE_EVERY_S:
            return
        self.written = time.monotonic()
        self.averaged_model().save_pretrained(self.out / name, dtype=torch.float16)
        self.log(written=name)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def schedule(progress: float) -> float:
    """The learning rate as a share of the highest: a short rise, then a cosine to zero."""
    if progress < WARMUP:
        return (progress + 1e-3) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def run(
    data: Path,
    out: Path,
    *,
    model: str = "nano",
    device: torch.device,
    seconds: float,
    deadline_s: float,
    workers: int,
    phases: Sequence[Phase] = (IMAGES, CLIPS),
    scored: int = 60,
) -> None:
    """Trains, and measures before and after on held-out sources.

    Args:
        data: Folder of the archives.
        out: Folder for the results.
        model: Model to start from.
        device: Device to train on.
        seconds: Time to train.
        deadline_s: Seconds from now after which nothing more is measured.
        workers: Processes that prepare batches.
        phases: What to train.
        scored: Images of each kind to measure on.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "log.jsonl")
    material, held_out = (
        Material.from_sources(read_sources(data, held_out=is_held_out)) for is_held_out in (False, True)
    )
    log(photos=sum(map(len, material.photos.by_family.values())), cutouts=len(material.sources.cutouts))
    with ExitStack() as stack:
        # All workers start now: before CUDA is used, and so early that their batches are there when they are wanted.
        feeds = [
            stack.enter_context(Feed(material, phase.stage, workers=workers, pin=device.type == "cuda"))
            for phase in phases
        ]
        measure = Measurement(in_workers(HeldOut(held_out, count=scored), workers), deadline_s)
        training = Training(Sam2Model.from_pretrained(model), device, out, log)
        training.write("start")
        try:
            measure(training, "start")
            for phase, feed in zip(phases, feeds, strict=True):
                training.train(phase, iter(feed), phase.share * seconds)
                feed.close()
                training.write()
                training.write(phase.name)
        except Stopped:
            log(problem="stopped by a signal")
        except Exception:  # what was learned is kept, whatever it was
            log(problem=traceback.format_exc()[-2000:])
        training.write()
    measure(training, "last")
    log(done=True)


class Measurement:
    """Scores the averaged weights on held-out images, which are made once."""

    def __init__(self, examples: Iterator[Example | None], deadline_s: float) -> None:
        self.unmade: Iterator[Example | None] = examples
        self.examples: list[Example] = []
        self.deadline_s = deadline_s

    def __call__(self, training: Training, name: str) -> None:
        """Logs the scores."""
        log = training.log
        try:
            self.examples += [example for example in self.unmade if example is not None]
            left = self.deadline_s - (time.monotonic() - log.started)
            model = training.averaged_model().to(training.device)
            log(scores=scores_of(model, self.examples, seconds=left / 3), of=name)
        except Exception:  # a score that is missing must not cost the weights
            log(of=name, problem=traceback.format_exc()[-600:])


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.gpu_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--minutes", type=float, default=8.0, help="time to train")
    parser.add_argument("--deadline", type=float, default=9.5, help="minutes after which nothing more is measured")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--miniature", action="store_true", help="tiny batches, for a trial on a CPU")
    arguments = parser.parse_args()

    def stop(*_: int | FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    sys.setswitchinterval(SWITCH_S)
    phases = (IMAGES, CLIPS)
    run(
        arguments.data,
        arguments.out,
        model=arguments.model,
        device=torch.device(arguments.device),
        seconds=60 * arguments.minutes,
        deadline_s=60 * arguments.deadline,
        workers=arguments.workers,
        phases=tuple(map(miniature, phases)) if arguments.miniature else phases,
        scored=2 if arguments.miniature else 60,
    )


def miniature(phase: Phase) -> Phase:
    """The phase with batches that a CPU computes in seconds."""
    stage = phase.stage
    small = replace(
        stage, input_size=128, batch_size=4 if stage.frames == 1 else 2, objects=2, frames=min(stage.frames, 3)
    )
    return replace(phase, stage=small)


if __name__ == "__main__":
    main()
