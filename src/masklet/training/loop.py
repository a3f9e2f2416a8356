"""The training loop: a step is a function of the weights, the optimizers' state and the step's number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from masklet.atomic import replacing
from masklet.config import Sam2Config
from masklet.errors import CheckpointError, ConfigError, TrainingError
from masklet.model.sam2 import Sam2Model
from masklet.training.adapters import add_adapters, merge_adapters
from masklet.training.batches import Batch, Examples
from masklet.training.config import TrainingConfig
from masklet.training.objective import Encoder, ExtraLossFactory, Objective
from masklet.training.parameter_groups import OptimizerFactory, adamw, encoder_blocks, is_trained
from masklet.training.precision import precision_for, tf32
from masklet.training.prefetching import prefetch
from masklet.training.processes import fail_together, gather, make_accelerator, shared_among

Initialiser = Callable[[Sam2Model], None]
"""Sets the weights of a network that is trained from scratch, in place."""

PARALLEL_MICRO_BATCHES = 2
"""Number of micro-batches that a CPU computes at the same time: two threads with a core each waste less than one thread
with two. It is no more, because a sum of three gradients would depend on the order in which threads finish."""


@dataclass(frozen=True)
class StepReport:
    """Measurements of one step."""

    step: int
    learning_rate: float
    gradient_norm: float
    losses: dict[str, float]
    """Means over all decodings."""
    ious: list[float]
    """Mean IoU of the selected masks: after each round; on clips, in the first frame and in the others."""


class Trainer:
    """The state of a run: the weights, their moving average and the optimizers.

    Args:
        config: Configuration of the run.
        accelerator: Handles the device and the other processes; one for the CPU if None.
        cache: Makes the function that encodes images while the image encoder is not trained; the model itself encodes
            them if None.
        initialiser: Sets the initial weights of a network that is trained from scratch.
        make_optimizers: Makes the optimizers.
        make_extra_loss: Makes an extra loss, see ``Objective``.

    Raises:
        ConfigError: The micro-batches cannot be shared equally among the processes, or the network cannot be trained
            as configured.
        CheckpointError: The model to start from cannot be read.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator | None = None,
        *,
        cache: Callable[[Sam2Model], Encoder] | None = None,
        initialiser: Initialiser | None = None,
        make_optimizers: OptimizerFactory = adamw,
        make_extra_loss: ExtraLossFactory | None = None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator("cpu")
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        config = shared_among(config, self.processes)
        self.precision = precision_for(config.precision, self.accelerator.device)
        if self.precision != "float32" and self.accelerator.device.type == "mps":
            raise ConfigError(f"precision {self.precision} is not supported on MPS: expected auto or float32")
        self.step = 0
        self.is_between_steps = True
        """False while a step is being applied, when the state must not be saved."""
        self.is_stop_requested: Callable[[], bool] = lambda: False
        """Whether this process was asked to stop. The answer travels with the losses, so that all processes know."""
        self.is_stopped = False
        """Whether any process was asked to stop before the last step; then all end after it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = initial_model(config, initialiser)
            self.config = config = config.for_network(self.model.config)
            objective = Objective(
                self.model,
                precision=self.precision,
                frozen_encoder=None if cache is None else cache(self.model),
                extra=None if make_extra_loss is None else make_extra_loss(self.model),
            )
            if config.lora is not None:
                add_adapters(self.model, config.lora)
        self.model.train()
        _freeze_statistics(self.model)
        for name, weight in self.model.named_parameters():  # weights that are never trained are not synchronised
            weight.requires_grad_(any(is_trained(name, stage.train) for stage in config.stages))
        if config.checkpoint_activations:
            _checkpoint_activations(self.model)
        if config.compile and cache is None:  # with a cache, batches of new images vary in size
            self.model.vision_encoder.compile(dynamic=False)
        self.objective = objective.to(self.accelerator.device)
        # float16 has few exponents: gradients are scaled up, and steps in which one overflows are left out.
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=self.precision == "float16")
        self.replica: Any = self.accelerator.prepare_model(objective) if self.processes > 1 else objective
        self.ema = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        self.optimizers = make_optimizers(self.model, objective.extra, config)

    def run(self, examples: Examples[Any], until: int | None = None) -> Iterator[StepReport]:
        """Trains until step ``until`` (the end if None). Yields after each step, when the state may be saved."""
        until = self.config.steps if until is None else until
        wanted = [(self.config.stage_at(step), step, self.indices(step)) for step in range(self.step, until)]
        is_cuda = self.accelerator.device.type == "cuda"
        with closing(prefetch(examples, wanted, workers=self.config.workers, pin_memory=is_cuda)) as batches:
            for _ in wanted:
                with fail_together(self.accelerator):
                    batch = next(batches)
                yield self.train_step(batch)

    def indices(self, step: int) -> range:
        """Indices of the examples in a step's batch that belong to this process."""
        share = self.config.stage_at(step).batch_size // self.processes
        return range(self.rank * share, (self.rank + 1) * share)

    def train_step(self, batch: Batch) -> StepReport:
        """Trains on this process's share of a batch.

        Raises:
            TrainingError: A loss or a gradient is not finite. The weights are unchanged.
        """
        self._select_trained_weights()
        rate = learning_rate(self.config, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        micro_batches = batch.to(self.accelerator.device).split(self.config.micro_batches // self.processes)
        on_cpu = self.accelerator.device.type == "cpu"
        is_parallel = on_cpu and self.processes == 1 and len(micro_batches) == PARALLEL_MICRO_BATCHES
        with ExitStack() as stack:
            stack.enter_context(tf32(self.accelerator.device, self.precision))
            if on_cpu:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the backward pass of fused attention is slow
            mapped = stack.enter_context(ThreadPoolExecutor(PARALLEL_MICRO_BATCHES)).map if is_parallel else map
            results = list(mapped(partial(self._backward, micro_batches), range(len(micro_batches))))
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.max_gradient_norm)
            losses, ious, gradient_norm = self._mean_over_processes(results, norm)
            is_applied = self._check_finite(losses["total"], gradient_norm, micro_batches)
            self.is_between_steps = False
            list(mapped(self._apply, self.optimizers))
            self.scaler.update()
        self.step += 1
        if is_applied:
            self._update_ema()
        self.is_between_steps = True
        return StepReport(self.step, rate, gradient_norm if is_applied else 0.0, losses, ious)

    def _apply(self, optimizer: Optimizer) -> None:
        self.scaler.step(optimizer)  # leaves the step out if a gradient is not finite

    def _check_finite(self, loss: float, norm: float, micro_batches: list[Batch]) -> bool:
        """Whether the gradients are finite. In float16 they may overflow now and then, until the scale has settled."""
        is_finite = math.isfinite(norm)
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not math.isfinite(loss) or not (is_finite or may_overflow):
            raise TrainingError(self._explain_not_finite(micro_batches))
        return is_finite

    def _select_trained_weights(self) -> None:
        """Turns gradients on for the weights of the current stage, and off for all others."""
        choice = self.config.stage_at(self.step).train
        if self.step > 0 and self.config.stage_at(self.step - 1).train != choice:
            # Weights that are frozen now would differ from their average for long, and the average is what is saved.
            self.model.load_state_dict(self.ema)
        for name, weight in self.model.named_parameters():
            # Optimizers skip weights without gradient, so these do not decay either.
            weight.requires_grad_(is_trained(name, choice))

    def _backward(self, micro_batches: list[Batch], index: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Adds the gradient of one micro-batch. Only the last one synchronises gradients between processes."""
        is_last = index + 1 == len(micro_batches)
        with ExitStack() as stack:
            if self.processes > 1 and not is_last:
                stack.enter_context(self.accelerator.no_sync(self.replica))
            stage = self.config.stage_at(self.step)
            generator = self._generator(self.rank * len(micro_batches) + index)
            total, losses, ious = self.replica(micro_batches[index], stage, generator)
            self.scaler.scale(total / len(micro_batches)).backward()
        return losses, ious

    def _generator(self, index: int) -> torch.Generator:
        """The source of prompts for a micro-batch of this step, independent of which process computes it."""
        return torch.Generator().manual_seed(
            (self.config.seed * 1_000_003 + self.step) * self.config.micro_batches + index
        )

    def _mean_over_processes(
        self, results: list[tuple[dict[str, Tensor], list[Tensor]]], norm: Tensor
    ) -> tuple[dict[str, float], list[float], float]:
        """Means of the losses and IoUs, and the gradients' norm: all that a step reads back from the device."""
        names = list(results[0][0])
        means = torch.stack([torch.stack([*losses.values(), *ious]) for losses, ious in results]).mean(0)
        if self.processes > 1:
            stop = means.new_tensor([float(self.is_stop_requested())])
            means = self.accelerator.reduce(torch.cat([means, stop]), "mean")
        *numbers, gradient_norm = torch.cat([means, norm.detach().to(means).view(1)]).tolist()
        self.is_stopped = self.processes > 1 and numbers.pop() > 0
        return dict(zip(names, numbers, strict=False)), numbers[len(names) :], gradient_norm

    def _explain_not_finite(self, micro_batches: list[Batch]) -> str:
        """An error message that names the image or clip at fault, which is found by trying each one alone."""
        stage, names = self.config.stage_at(self.step), [name for batch in micro_batches for name in batch.names]
        with torch.no_grad():
            at_fault = [
                single.names[0]
                for batch in micro_batches
                for single in batch.split(len(batch.names))
                if not self.objective(single, stage, self._generator(0))[0].isfinite()
            ]
        at_fault, names = (gather(self.accelerator, of_process) for of_process in (at_fault, names))
        cause = (
            f"{at_fault[0]} alone has such a loss; inspect this image"
            if at_fault
            else f"its images are {', '.join(names)}; if they are fine, start a new run in another folder, with the "
            "model last of this one and a lower learning_rate"
        )
        return (
            f"step {self.step + 1} has a loss or gradient that is not finite: {cause}. The step was not applied, and "
            "everything saved before it is unchanged"
        )

    def _update_ema(self) -> None:
        # The window grows at first, so that the initial weights soon leave the average.
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                if weight.is_floating_point():  # batch norms of EdgeTAM count in whole numbers
                    self.ema[name].lerp_(weight, 1 - decay)

    def free_memory(self) -> None:
        """Frees the gradients, after which the state can be saved though memory ran out."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def averaged_model(self) -> Sam2Model:
        """A copy of the model for inference, with averaged weights and merged adapters."""
        weights = {name: weight.clone() for name, weight in merge_adapters(self.ema, self.config.lora).items()}
        return Sam2Model.from_tensors(self.model.config, weights)

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Writes all that is needed to resume the run; the file at ``path`` is replaced whole or not at all.

        Raises:
            CheckpointError: The file cannot be written.
        """
        extra = self.objective.extra
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "extra": None if extra is None else extra.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "notes": notes or {},
        }
        try:
            with replacing(path) as unfinished:
                torch.save(state, unfinished)
        except (OSError, RuntimeError) as error:  # torch wraps the error of the system in a RuntimeError
            raise CheckpointError(
                f"cannot save the state of step {self.step} to {path}: {error}. The previous save is unchanged"
            ) from error

    def load(self, path: Path) -> dict[str, Any]:
        """Resumes from what ``save`` wrote; returns its notes.

        Raises:
            CheckpointError: The file is damaged, or the state of another run.
        """
        extra = self.objective.extra
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.accelerator.device)
            self.model.load_state_dict(state["model"])
            if extra is not None:
                extra.load_state_dict(state["extra"])
            for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer_state)
            if self.scaler.is_enabled() and state.get("scaler"):  # a run may continue in another precision
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.ema = state["step"], state["ema"]
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"cannot resume from {path}: it is damaged or the state of another run ({error}). Start a new run in "
                "another folder, or from a model that was saved"
            ) from error
        return state["notes"]


def initial_model(config: TrainingConfig, initialiser: Initialiser | None = None) -> Sam2Model:
    """The network that a run starts with; ``initialiser`` is applied if it is trained from scratch."""
    if not isinstance(config.model, Sam2Config):
        return Sam2Model.from_pretrained(config.model)
    with torch.device("cpu"):  # whatever the default device, since initial weights are drawn there
        model = Sam2Model(config.model)
        if initialiser is not None:
            initialiser(model)
    return model


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rises linearly in the warm-up, then falls to zero along a cosine of the pixels processed."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    warm = config.progress(config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (config.progress(step) - warm) / (1 - warm)))


def _freeze_statistics(model: Sam2Model) -> None:
    """Keeps the means and variances of batch norms: those of a few images would be too noisy."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _checkpoint_activations(model: Sam2Model) -> None:
    """Makes the blocks with the most activations recompute them in the backward pass."""
    blocks = [*encoder_blocks(model).values()]
    if model.config.has_memory:
        blocks += [*model.memory_attention.layers]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
