"""Pretraining of prompts: plain shapes are segmented on noise, so only the prompt tells where they are.

A network that is trained from scratch spends its first thousands of steps on how the coordinates of a prompt relate to
cells of the image. Without images to encode, such a step costs a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import AdamW

from masklet.config import STRIDES, Sam2Config
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.config import TrainingConfig
from masklet.training.image_losses import interactive_losses
from masklet.training.parameter_groups import BETAS

NOISE = 0.3
"""Standard deviation of the noise that replaces the embedding of an image."""


def pretrain_on_shapes(model: Sam2Model, config: TrainingConfig, steps: int, device: torch.device) -> Iterator[float]:
    """Trains the decoder and the prompt encoder on shapes, in place; yields the mean IoU of each step.

    Args:
        model: The network, on ``device``.
        config: Configuration of the run; sizes, losses and prompts are those of its first stage.
        steps: Number of steps.
        device: Device to train on.
    """
    generator = torch.Generator().manual_seed(config.seed)
    config = config.for_network(model.config)
    stage = config.stages[0]
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, betas=BETAS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
        targets = random_shapes(stage.batch_size, stage.objects, stage.input_size, generator)
        features = noise_features(model.config, stage.batch_size, stage.input_size, generator)
        losses, ious = interactive_losses(
            model,
            Features(*(maps.to(device) for maps in features)),
            targets.to(device),
            rounds=2,
            weights=stage.losses,
            prompts=stage.prompt_rates,
            generator=generator,
        )
        optimizer.zero_grad()
        torch.stack([decoding.total for decoding in losses]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        yield float(torch.stack(ious).mean())
    model.zero_grad()


def random_shapes(batch: int, objects: int, side_px: int, generator: torch.Generator) -> Tensor:
    """Ellipses and rectangles of all sizes: (batch, objects, side, side) bool, none empty."""
    shape = (batch, objects, 1, 1)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    centres = (torch.arange(side_px) + 0.5) / side_px
    radius_x, radius_y = uniform(0.04, 0.45), uniform(0.04, 0.45)
    x = (centres - uniform(0.1, 0.9)) / radius_x  # (batch, objects, 1, side)
    y = (centres[:, None] - uniform(0.1, 0.9)) / radius_y  # (batch, objects, side, 1)
    is_ellipse = torch.rand(shape, generator=generator) < 0.6
    return torch.where(is_ellipse, x**2 + y**2 < 1, torch.maximum(x.abs(), y.abs()) < 1)


def noise_features(config: Sam2Config, batch: int, side_px: int, generator: torch.Generator) -> Features:
    """Noise in the shape of the image encoder's maps."""
    channels = (config.hidden_size // 8, config.hidden_size // 4, config.hidden_size)
    return Features(
        *(
            NOISE * torch.randn(batch, width, side_px // stride, side_px // stride, generator=generator)
            for width, stride in zip(channels, STRIDES, strict=True)
        )
    )
