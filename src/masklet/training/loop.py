"""The training loop: a step is a function of the weights, the optimizers' state and the step's number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from masklet.atomic import replacing
from masklet.config import Sam2Config
from masklet.errors import CheckpointError, ConfigError, DeviceError, TrainingError
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.adapters import add_adapters, merged
from masklet.training.batches import Batch, Examples, prepared
from masklet.training.config import TrainingConfig
from masklet.training.geometry import noise_embeddings, random_shapes
from masklet.training.image_losses import interactive_losses
from masklet.training.initialise import initialise
from masklet.training.objective import Encoder, Objective
from masklet.training.parts import BETAS, learns, make_optimizers
from masklet.training.processes import gathered, stopping_together

SIDE_BY_SIDE = 2
"""Parts of a batch that a CPU learns from at the same time: two threads that each use one core waste the least of them.
More would not do, since the sum of two gradients has no order and that of three has."""


@dataclass(frozen=True)
class StepReport:
    """What a step says of itself."""

    step: int
    learning_rate: float
    gradient_norm: float
    losses: dict[str, float]
    """Means over the rounds, and over the single mask and the candidates."""
    ious: list[float]
    """Mean IoU of the mask that is shown after each round; on clips, in the first frame and in the others."""


class Trainer:
    """Weights, their running mean, and the optimizers: what a run is at one moment.

    Args:
        config: Of the run.
        accelerator: Knows the device and the other processes; one for the CPU if None.
        cache: Makes what encodes images while the model's image encoder does not learn; it itself does if None.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator | None = None,
        cache: Callable[[Sam2Model], Encoder] | None = None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator("cpu")
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if config.parts % self.processes:
            raise ConfigError(
                f"parts is {config.parts}, but there are {self.processes} processes: expected a multiple of them, such "
                f"as parts: {self.processes}, so that each has as much to do"
            )
        self.step = 0
        self.is_whole = True
        """Whether no step is half taken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = first_model(config)
            self.config = config = config.fitting(self.model.config)
            frozen_encoder = self.model.encode if cache is None else cache(self.model)
            objective = Objective(
                self.model, affinity=config.affinity, bfloat16=config.bfloat16, frozen_encoder=frozen_encoder
            )
            if config.lora is not None:
                add_adapters(self.model, config.lora)
        self.model.train()
        for name, weight in self.model.named_parameters():  # what never learns needs no room between processes
            weight.requires_grad_(any(learns(name, stage.train) for stage in config.stages))
        if config.checkpoint_activations:
            _checkpoint_activations(self.model)
        self.affinity = objective.affinity
        self.objective = objective.to(self.accelerator.device)
        self.shared: Any = self.accelerator.prepare_model(objective) if self.processes > 1 else objective
        self._keep_mean()
        self.optimizers = make_optimizers(
            self.model,
            self.affinity,
            kind=config.optimizer,
            weight_decay=config.weight_decay,
            rates=config.rates,
            layer_decay=config.layer_decay,
        )

    def _keep_mean(self) -> None:
        self.ema = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    def teach_geometry(self) -> Iterator[float]:
        """The lesson before the first step (see ``geometry``), yielding each step's mean IoU."""
        assert self.step == 0
        generator = torch.Generator().manual_seed(self.config.seed)
        stage, device = self.config.stages[0], self.accelerator.device
        optimizer = AdamW(self.model.parameters(), lr=self.config.learning_rate, betas=BETAS)
        for step in range(self.config.geometry_steps):
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * min(1.0, (step + 1) / max(self.config.warmup_steps, 1))
            targets = random_shapes(stage.images, stage.objects, stage.side_px, generator)
            embeddings = noise_embeddings(self.model.config, stage.images, stage.side_px, generator)
            losses, ious = interactive_losses(
                self.model,
                Features(*(maps.to(device) for maps in embeddings)),
                targets.to(device),
                rounds=2,
                weights=stage.losses,
                prompts=stage.prompt_rates,
                generator=generator,
            )
            optimizer.zero_grad()
            torch.stack([round_.total for round_ in losses]).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
            optimizer.step()
            yield float(torch.stack(ious).mean())
        self._keep_mean()

    def run(self, examples: Examples[Any], until: int | None = None) -> Iterator[StepReport]:
        """Train until step ``until`` (the end if None), yielding after each step, when it may be saved."""
        until = self.config.steps if until is None else until
        wanted = [(self.config.stage_of(step), step, self.places(step)) for step in range(self.step, until)]
        with closing(prepared(examples, wanted, workers=self.config.workers)) as batches:
            for _ in wanted:
                with stopping_together(self.accelerator):
                    batch = next(batches)
                yield self.take_step(batch)

    def places(self, step: int) -> range:
        """Of a step's batch, what this process learns from."""
        share = self.config.stage_of(step).images // self.processes
        return range(self.rank * share, (self.rank + 1) * share)

    def take_step(self, batch: Batch) -> StepReport:
        """Learn from this process's share of a batch.

        Raises:
            TrainingError: A loss or a gradient is not finite; the weights are as they were.
        """
        self._choose_what_learns()
        rate = learning_rate(self.config, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        parts = batch.to(self.accelerator.device).split(self.config.parts // self.processes)
        on_cpu = self.accelerator.device.type == "cpu"
        is_paired = on_cpu and self.processes == 1 and len(parts) == SIDE_BY_SIDE
        with ExitStack() as stack:
            if on_cpu:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention is slow to go back
            in_parallel = stack.enter_context(ThreadPoolExecutor(SIDE_BY_SIDE)).map if is_paired else map
            results = list(in_parallel(partial(self._learn, parts), range(len(parts))))
            losses, ious = self._mean_over_processes(results)
            norm = float(torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.max_gradient_norm))
            if not math.isfinite(losses["total"]) or not math.isfinite(norm):
                raise TrainingError(self._what_is_not_finite(parts))
            self.is_whole = False
            list(in_parallel(lambda optimizer: optimizer.step(), self.optimizers))
        self.step += 1
        self._follow()
        self.is_whole = True
        return StepReport(self.step, rate, norm, losses, ious)

    def _choose_what_learns(self) -> None:
        """By the stage's choice; what stops to learn is held at its mean, beside which the rest will be used."""
        trained = self.config.stage_of(self.step).train
        if self.step > 0 and self.config.stage_of(self.step - 1).train != trained:
            # What is frozen would be followed by its mean for long, while others learn from weights nobody keeps.
            self.model.load_state_dict(self.ema)
        for name, weight in self.model.named_parameters():
            # Without a gradient, optimizers pass a weight by: nothing decays.
            weight.requires_grad_(learns(name, trained))

    def _learn(self, parts: list[Batch], index: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Add the gradient of one part; between processes, the last one's gradient is shared with all of them."""
        is_last = index + 1 == len(parts)
        with ExitStack() as stack:
            if self.processes > 1 and not is_last:
                stack.enter_context(self.accelerator.no_sync(self.shared))
            stage = self.config.stage_of(self.step)
            total, losses, ious = self.shared(parts[index], stage, self._generator(self.rank * len(parts) + index))
            (total / len(parts)).backward()
        return losses, ious

    def _generator(self, part: int) -> torch.Generator:
        """Of the prompts of a part of this step's batch, whichever process learns from it."""
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * self.config.parts + part)

    def _mean_over_processes(
        self, results: list[tuple[dict[str, Tensor], list[Tensor]]]
    ) -> tuple[dict[str, float], list[float]]:
        names = list(results[0][0])
        rows = torch.stack([torch.stack([*losses.values(), *ious]) for losses, ious in results])
        means = self.accelerator.reduce(rows.mean(0), "mean").tolist()
        return dict(zip(names, means, strict=False)), means[len(names) :]

    def _what_is_not_finite(self, parts: list[Batch]) -> str:
        """Find the image by trying each alone."""
        stage, names = self.config.stage_of(self.step), [name for part in parts for name in part.names]
        with torch.no_grad():
            guilty = [
                one.names[0]
                for part in parts
                for one in part.split(len(part.names))
                if not self.objective(one, stage, self._generator(0))[0].isfinite()
            ]
        guilty, names = (gathered(self.accelerator, of_process) for of_process in (guilty, names))
        who = (
            f"{guilty[0]} alone gives such a loss; look at it"
            if guilty
            else f"its images are {', '.join(names)}; if they look well, begin a new run in another folder, with the "
            "model last of this one and a lower learning_rate"
        )
        return (
            f"step {self.step + 1} has a loss or gradient that is not a number: {who}. It was not taken; what was "
            "saved before it is unchanged"
        )

    def _follow(self) -> None:
        # The mean starts short, or the first weights would stay in it for long.
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                self.ema[name].lerp_(weight, 1 - decay)

    def averaged_model(self) -> Sam2Model:
        """A model of its own with the running mean of the weights, adapters merged, for use."""
        weights = {name: weight.clone() for name, weight in merged(self.ema, self.config.lora).items()}
        return Sam2Model.from_tensors(self.model.config, weights)

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Write everything the run needs to go on; the file at ``path`` is replaced whole or not at all.

        Raises:
            CheckpointError: It cannot be written.
        """
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "affinity": None if self.affinity is None else self.affinity.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "notes": notes or {},
        }
        try:
            with replacing(path) as unfinished:
                torch.save(state, unfinished)
        except (OSError, RuntimeError) as error:  # torch's writer hides the system's error
            raise CheckpointError(
                f"cannot save the state of step {self.step} to {path}: {error}. What was there before is unchanged"
            ) from error

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from what ``save`` wrote; returns its notes.

        Raises:
            CheckpointError: It is no such file, or of another network.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.accelerator.device)
            self.model.load_state_dict(state["model"])
            if self.affinity is not None:
                self.affinity.load_state_dict(state["affinity"])
            for optimizer, of_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(of_optimizer)
            self.step, self.ema = state["step"], state["ema"]
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"cannot go on from {path}: it is damaged or of another run ({error}). Begin anew in another folder, or"
                " from the model that was kept"
            ) from error
        return state["notes"]


def make_accelerator(device: str, trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """For the CPU if ``device`` is ``cpu``, else for what there is; it finds the other processes, if any.

    Args:
        device: ``auto`` or ``cpu``.
        trackers: Where to log to.
        folder: For what they write.
    """
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r}: expected auto or cpu; to choose a GPU, set CUDA_VISIBLE_DEVICES")
    # A step on images leaves the memory alone, and one on clips the rest.
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # the run's own bfloat16 decides, and not accelerate's settings
        kwargs_handlers=[handler],
        log_with=list(trackers) or None,
        project_dir=folder,
    )


def first_model(config: TrainingConfig) -> Sam2Model:
    """The network a run begins with."""
    if isinstance(config.model, Sam2Config):
        model = Sam2Model(config.model)
        initialise(model)
        return model
    return Sam2Model.from_pretrained(config.model)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rises linearly in the warm-up, then falls to zero along a cosine of the pixels seen after it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    warm = config.progress(config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (config.progress(step) - warm) / (1 - warm)))


def _checkpoint_activations(model: Sam2Model) -> None:
    """Let the blocks that make most of what has to be kept be computed again on the way back."""
    blocks = [*model.vision_encoder.backbone.blocks]
    if model.config.has_memory:
        blocks += [*model.memory_attention.layers]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
