"""What a batch teaches: the network and its losses as one module, all of which runs on each of several devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from masklet.engine import EagerEngine
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.affinity import AffinityHead
from masklet.training.batches import Batch
from masklet.training.clip_losses import clip_losses
from masklet.training.config import Stage
from masklet.training.image_losses import interactive_losses
from masklet.training.losses import Losses
from masklet.training.parts import encoder_learns
from masklet.training.prompts import cells_of

Encoder = Callable[[Tensor], Features]
"""(batch, 3, height, width) to features, see ``Sam2Model.encode``."""


class Objective(nn.Module):
    """Losses of a batch, to be minimised."""

    def __init__(self, model: Sam2Model, *, affinity: float, bfloat16: bool, frozen_encoder: Encoder) -> None:
        super().__init__()
        self.model = model
        self.affinity_weight = affinity
        self.affinity = AffinityHead(model.config.hidden_size) if affinity else None
        self.narrows = bfloat16
        self.frozen_encoder = frozen_encoder

    def forward(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """The total, its parts, and the mean IoU of each round, or of a clip's first frame and the others."""
        device = batch.pixel_values.device.type
        # A cache of narrowed weights would be shared by the threads, and emptied by the first that ends.
        with torch.autocast(device, torch.bfloat16, enabled=self.narrows, cache_enabled=False):
            return (self._on_clips if stage.frames > 1 else self._on_images)(batch, stage, generator)

    def _features(self, pixel_values: Tensor) -> Features:
        is_frozen = not encoder_learns(self.model)
        with torch.no_grad() if is_frozen else nullcontext():
            return (self.frozen_encoder if is_frozen else self.model.encode)(pixel_values)

    def _on_images(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        features = self._features(batch.pixel_values)
        # First, as it draws its cells first.
        affinity = None if self.affinity is None else self.affinity(features, cells_of(batch.targets), generator)
        losses, ious = interactive_losses(
            self.model,
            features,
            batch.targets,
            rounds=stage.rounds,
            weights=stage.losses,
            prompts=stage.prompt_rates,
            generator=generator,
        )
        total, parts = _mean(losses)
        if affinity is None:
            return total, parts, ious
        return total + self.affinity_weight * affinity, parts | {"affinity": affinity.detach()}, ious

    def _on_clips(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        features = self._features(batch.pixel_values.flatten(0, 1))
        losses: list[Losses] = []
        ious: list[list[Tensor]] = []
        for clip, targets in enumerate(batch.targets):
            frames = range(clip * stage.frames, (clip + 1) * stage.frames)
            of_clip, of_frames = clip_losses(
                EagerEngine(self.model),
                [Features(*(maps[frame : frame + 1] for maps in features)) for frame in frames],
                targets,
                rounds=stage.rounds,
                weights=stage.losses,
                prompts=stage.prompt_rates,
                generator=generator,
            )
            losses += of_clip
            ious.append(of_frames)
        total, parts = _mean(losses)
        return total, parts, [torch.stack(values).mean() for values in zip(*ious, strict=True)]


def _mean(losses: Sequence[Losses]) -> tuple[Tensor, dict[str, Tensor]]:
    total = torch.stack([one.total for one in losses]).mean()
    names = ("focal", "dice", "iou", "object_score")
    parts = {name: torch.stack([getattr(one, name).detach() for one in losses]).mean() for name in names}
    return total, parts | {"total": total.detach()}
