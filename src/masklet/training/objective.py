"""The network and its losses as one module, so that all of it can be replicated on several devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from masklet.engine import EagerEngine
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Batch
from masklet.training.clip_losses import clip_losses
from masklet.training.clip_plan import draw_plan
from masklet.training.config import Stage
from masklet.training.image_losses import interactive_losses
from masklet.training.losses import Losses
from masklet.training.parameter_groups import trains_encoder
from masklet.training.precision import autocast
from masklet.training.prompts import covered_cells

Encoder = Callable[[Batch], Features]
"""The features of all images of a batch, or of all frames of its clips, in order."""
ExtraLossFactory = Callable[[Sam2Model], nn.Module]
"""Makes the ``extra`` module of an ``Objective`` for a network."""


class Objective(nn.Module):
    """The losses of a batch.

    Args:
        model: The network.
        precision: Precision of matrix products, a key of ``precision.DTYPES``.
        frozen_encoder: Encodes images while the image encoder is not trained; the model itself if None.
        extra: A further loss on images, with parameters of its own that are trained but not part of the model. It is
            called with the features of the images, with targets (batch, objects, h, w) bool
            at the stride of the finest map, and with a CPU generator. It returns a scalar, which is added to the total
            and logged as ``extra``.
    """

    def __init__(
        self,
        model: Sam2Model,
        *,
        precision: str,
        frozen_encoder: Encoder | None = None,
        extra: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.extra = extra
        self.precision = precision
        self.frozen_encoder = frozen_encoder

    def forward(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """The total loss, each loss by name, and mean IoUs: of each round, or of a clip's first and other frames."""
        with autocast(batch.pixels.device, self.precision):
            return (self._on_clips if stage.frames > 1 else self._on_images)(batch, stage, generator)

    def _features(self, batch: Batch) -> Features:
        if trains_encoder(self.model):
            return self.model.encode(batch.pixel_values.flatten(0, -4))
        with torch.no_grad():
            if self.frozen_encoder is not None:
                return self.frozen_encoder(batch)
            return self.model.encode(batch.pixel_values.flatten(0, -4))

    def _on_images(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        features = self._features(batch)
        extra = None if self.extra is None else self.extra(features, covered_cells(batch.targets), generator)
        losses, ious = interactive_losses(
            self.model,
            features,
            batch.targets,
            rounds=stage.rounds,
            weights=stage.losses,
            prompts=stage.prompt_rates,
            generator=generator,
        )
        total, by_name = _mean(losses)
        if extra is None:
            return total, by_name, ious
        return total + extra, by_name | {"extra": extra.detach()}, ious

    def _on_clips(
        self, batch: Batch, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        plan = draw_plan(batch.targets, rounds=stage.rounds, prompts=stage.prompt_rates, generator=generator)
        losses, ious = clip_losses(
            EagerEngine(self.model),
            self._features(batch),
            batch.targets,
            rounds=stage.rounds,
            weights=stage.losses,
            plan=plan,
        )
        total, by_name = _mean([losses])
        return total, by_name, ious


def _mean(losses: Sequence[Losses]) -> tuple[Tensor, dict[str, Tensor]]:
    total = torch.stack([decoding.total for decoding in losses]).mean()
    names = ("focal", "dice", "iou", "object_score")
    by_name = {name: torch.stack([getattr(decoding, name).detach() for decoding in losses]).mean() for name in names}
    return total, by_name | {"total": total.detach()}
