"""The training loop: one process; a step is a function of the weights, the optimizers' state and the step's number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW, Muon, Optimizer

from masklet.model.sam2 import Sam2Model
from masklet.training.affinity import AffinityHead
from masklet.training.batches import Batch, make_batch, make_clip_batch
from masklet.training.clip_losses import clip_losses
from masklet.training.config import Stage, TrainingConfig
from masklet.training.geometry import noise_embeddings, random_shapes
from masklet.training.initialise import initialise
from masklet.training.losses import Losses, mask_iou, segmentation_losses
from masklet.training.prompts import correction_click, first_prompt
from masklet.training.sources import Sources

HALVES = 2
"""Parts of a batch that are learned from at the same time, and of the matrices that are changed at the same time."""
BETAS = (0.9, 0.95)
LEARNED_FROM_CLIPS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "object_pointer_proj.",
    "memory_temporal_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer.",
    "mask_decoder.pred_obj_score_head.",
)
"""What the names of these weights begin with. All others stay as pictures left them, and so do pictures' masks."""


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
    """Weights, their running mean, and the optimizers: what a run is at one moment."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = Sam2Model(config.model)
            initialise(self.model)
            self.affinity = AffinityHead(config.model.hidden_size)
        self.model.train()
        self.ema = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[Optimizer]:
        """Muon for the matrices of linear maps, AdamW for all else.

        From the same pictures Muon learns more than AdamW does; its steps are scaled to AdamW's, so they share a rate.
        Source: Muon is Scalable for LLM Training (arXiv 2502.16982).
        """
        rate, decay = self.config.learning_rate, self.config.weight_decay
        matrices = [module.weight for module in self.model.modules() if isinstance(module, nn.Linear)]
        others = [p for p in self.model.parameters() if all(p is not matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1]},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(self.affinity.parameters()), "weight_decay": 0.0},
        ]
        parts = [matrices[part::HALVES] for part in range(HALVES)]
        return [
            *(Muon(part, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw") for part in parts),
            AdamW(groups, lr=rate, weight_decay=decay, betas=BETAS),
        ]

    def start_from(self, model: Sam2Model) -> None:
        """Take the weights of a model of the same network."""
        self.model.load_state_dict(model.state_dict())
        self.ema = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def teach_geometry(self) -> Iterator[float]:
        """The lesson before the first step (see ``geometry``), yielding each step's mean IoU."""
        assert self.step == 0
        generator = torch.Generator().manual_seed(self.config.seed)
        stage = self.config.stages[0]
        optimizer = AdamW(self.model.parameters(), lr=self.config.learning_rate, betas=BETAS)
        for step in range(self.config.geometry_steps):
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * min(1.0, (step + 1) / self.config.warmup_steps)
            targets = random_shapes(stage.pictures, stage.objects, stage.image_size, generator)
            embeddings = noise_embeddings(self.config.model, stage.pictures, stage.image_size, generator)
            losses, ious = interactive_losses(
                self.model, embeddings, targets, rounds=2, focal_weight=stage.focal_weight, generator=generator
            )
            optimizer.zero_grad()
            torch.stack([round_.total for round_ in losses]).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
            optimizer.step()
            yield sum(ious) / len(ious)
        self.ema = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def run(self, sources: Sources, until: int | None = None) -> Iterator[StepReport]:
        """Train until step ``until`` (the end if None), yielding after each step, when it may be saved."""
        until = self.config.steps if until is None else until
        with ThreadPoolExecutor(1) as ahead:  # composes the next pictures while the network works on these
            coming = ahead.submit(self.batch, sources, self.step) if self.step < until else None
            while coming is not None:
                batch = coming.result()
                coming = ahead.submit(self.batch, sources, self.step + 1) if self.step + 1 < until else None
                yield self.take_step(batch)

    def batch(self, sources: Sources, step: int) -> Batch:
        """The pictures or clips of one step."""
        stage = self.config.stage_of(step)
        if stage.frames > 1:
            return make_clip_batch(
                sources,
                side_px=stage.image_size,
                frames=stage.frames,
                clips=stage.pictures,
                objects=stage.objects,
                seed=self.config.seed,
                step=step,
            )
        return make_batch(
            sources,
            side_px=stage.image_size,
            pictures=stage.pictures,
            objects=stage.objects,
            seed=self.config.seed,
            step=step,
        )

    def take_step(self, batch: Batch) -> StepReport:
        """Learn from one batch, its halves side by side: two threads that each use one core waste the least of them."""
        self._choose_what_learns()
        rate = learning_rate(self.config, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        with ThreadPoolExecutor(HALVES) as pool, sdpa_kernel(SDPBackend.MATH):  # fused attention is slow to go back
            halves = list(pool.map(self._learn, batch.split(HALVES), range(HALVES)))
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config.max_gradient_norm, error_if_nonfinite=True
            )
            list(pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.step += 1
        self._follow()
        losses = {name: sum(half[0][name] for half in halves) / HALVES for name in halves[0][0]}
        ious = [sum(values) / HALVES for values in zip(*(half[1] for half in halves), strict=True)]
        return StepReport(self.step, rate, float(norm), losses, ious)

    def _choose_what_learns(self) -> None:
        """All from pictures; from clips the memory, beside the averaged weights of all that is used with it."""
        on_clips = self.config.stage_of(self.step).frames > 1
        if on_clips and self.step > 0 and self.config.stage_of(self.step - 1).frames == 1:
            # What is frozen would be followed by its mean for long, while the memory learns from weights nobody keeps.
            self.model.load_state_dict(self.ema)
        for name, weight in self.model.named_parameters():
            # Without a gradient, optimizers pass a weight by: nothing decays.
            weight.requires_grad_(not on_clips or name.startswith(LEARNED_FROM_CLIPS))

    def _learn(self, batch: Batch, part: int) -> tuple[dict[str, float], list[float]]:
        """Add a part's gradient. There are two, whose sum has no order, so a step's result is the same every time."""
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * HALVES + part)
        stage = self.config.stage_of(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16, cache_enabled=False):
            if stage.frames > 1:
                total, losses, ious = self._losses_on_clips(batch, stage, generator)
            else:
                total, losses, ious = self._losses_on_pictures(batch, stage, generator)
        (total / HALVES).backward()
        return losses, ious

    def _losses_on_pictures(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], list[float]]:
        embeddings = self.model.get_image_embeddings(batch.pixel_values)
        affinity = self.affinity(embeddings, batch.targets, generator)
        losses, ious = interactive_losses(
            self.model,
            embeddings,
            batch.targets,
            rounds=stage.rounds,
            focal_weight=stage.focal_weight,
            generator=generator,
        )
        total = torch.stack([round_.total for round_ in losses]).mean() + affinity
        return total, _means(losses) | {"affinity": float(affinity.detach())}, ious

    def _losses_on_clips(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], list[float]]:
        with torch.no_grad():
            features = self.model.get_image_features(batch.pixel_values.flatten(0, 1))
        losses: list[Losses] = []
        ious: list[list[float]] = []
        for clip, targets in enumerate(batch.targets):
            frames = range(clip * stage.frames, (clip + 1) * stage.frames)
            of_clip, of_frames = clip_losses(
                self.model,
                [[maps[frame : frame + 1] for maps in features] for frame in frames],
                targets,
                focal_weight=stage.focal_weight,
                generator=generator,
            )
            losses += of_clip
            ious.append(of_frames)
        total = torch.stack([frame.total for frame in losses]).mean()
        return total, _means(losses), [sum(values) / len(ious) for values in zip(*ious, strict=True)]

    def _follow(self) -> None:
        # The mean starts short, or the first weights would stay in it for long.
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                self.ema[name].lerp_(weight, 1 - decay)

    def averaged_model(self) -> Sam2Model:
        """A model of its own with the running mean of the weights, for use."""
        model = Sam2Model(self.config.model)
        model.load_state_dict(self.ema)
        return model.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write everything the run needs to go on; the file at ``path`` is replaced whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "affinity": self.affinity.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        beside = path.with_suffix(".part")
        torch.save(state, beside)
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.affinity.load_state_dict(state["affinity"])
        self.ema = state["ema"]
        for optimizer, of_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rises linearly in the warm-up, falls to zero along a cosine of the pixels seen."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * config.progress(step)))


def interactive_losses(
    model: Sam2Model,
    embeddings: list[Tensor],
    targets: Tensor,
    *,
    rounds: int,
    focal_weight: float,
    generator: torch.Generator,
) -> tuple[list[Losses], list[float]]:
    """Prompt every object, then correct it click by click: the losses, and the mean IoU of what is shown each round.

    Source: SAM (arXiv 2304.02643), appendix A, "training algorithm".
    """
    prompts = first_prompt(targets, generator)
    previous: Tensor | None = None
    losses, ious = [], []
    for index in range(rounds):
        out = model.decode(embeddings, points=prompts.points, labels=prompts.labels, masks=previous, multimask=None)
        logits, predicted, scores = out.logits.float(), out.ious.float(), out.object_scores.float()
        # The single mask answers every prompt, the candidates only a lone click: what people get is what is taught.
        is_one_click = prompts.is_one_click
        single, candidates = slice(0, 1), slice(1, None)
        for masks, counts in ((single, None), (candidates, is_one_click)) if index == 0 else ((single, None),):
            losses.append(
                segmentation_losses(
                    logits[:, :, masks],
                    predicted[:, :, masks],
                    scores,
                    targets,
                    focal_weight=focal_weight,
                    counts=counts,
                )
            )
        best = torch.where(is_one_click, 1 + predicted[:, :, candidates].argmax(-1), 0)[..., None, None, None]
        shown = logits.detach().gather(2, best.expand(-1, -1, 1, *logits.shape[-2:])).squeeze(2)
        ious.append(float(mask_iou(shown > 0, targets).mean()))
        if index + 1 < rounds:
            previous = shown
            prompts = prompts.and_then(correction_click(shown > 0, targets, generator))
    return losses, ious


def _means(losses: list[Losses]) -> dict[str, float]:
    names = ("focal", "dice", "iou", "object_score", "total")
    return {name: sum(float(getattr(round_, name).detach()) for round_ in losses) / len(losses) for name in names}
