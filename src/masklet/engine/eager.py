"""The engine that calls the model as it is, on any device and in any precision. Others are tested against it."""

from __future__ import annotations

from torch import Tensor

from masklet.engine.base import Engine
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import check_pixel_values


class EagerEngine(Engine):
    """Plain PyTorch."""

    name = "eager"

    def encode(self, pixel_values: Tensor) -> Features:  # noqa: D102
        check_pixel_values(pixel_values)
        positions = self._position_table((pixel_values.shape[-2], pixel_values.shape[-1]))
        return self.model.encode(pixel_values.to(self.device), positions)

    def decode(  # noqa: D102
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        prompts = None if prompts is None else prompts.to(self.device)
        return self.model.decode(features, prompts, multimask=multimask, conditioned=conditioned)

    def read_memory(self, features: Features, memory: Memory) -> Tensor:  # noqa: D102
        return self.model.read_memory(features, memory)

    def write_memory(  # noqa: D102
        self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool
    ) -> Tensor:
        return self.model.write_memory(features, logits, object_scores, binarize=binarize)
