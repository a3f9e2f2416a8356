"""The engine for processors: the same float32 arithmetic, arranged for caches, with weights packed once.

Layers that were replaced, wrapped (LoRA) or hooked run as they are: the part of the network that holds them takes the
plain path.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.engine.base import ConfidentMasks, Engine
from masklet.engine.cpu.image_encoder import CpuImageEncoder
from masklet.engine.cpu.mask_decoder import CpuMaskDecoder
from masklet.engine.cpu.memory_attention import CpuMemoryAttention
from masklet.engine.cpu.packing import Packed
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory, MemoryAttention
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model, check_pixel_values


class CpuEngine(Engine):
    """For float32 weights on a CPU. The result for one object does not depend on the others, to the bit."""

    name = "cpu"

    def __init__(self, model: Sam2Model) -> None:
        super().__init__(model)
        self._image_encoder = CpuImageEncoder(model)
        self._mask_decoder = Packed(lambda: [model.mask_decoder], lambda: CpuMaskDecoder(model.mask_decoder))
        self._memory_attention: CpuMemoryAttention | None = None
        self._image_positions: tuple[SizeHW, Tensor, Tensor] | None = None

    def encode(self, pixel_values: Tensor) -> Features:  # noqa: D102
        check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.device, self.dtype)
        return self._image_encoder(pixel_values, self._position_table(pixel_values))

    def decode(  # noqa: D102
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        model = self.model
        decoder = self._mask_decoder.get()
        if decoder is None:
            return model.decode(features, prompts, multimask=multimask, conditioned=conditioned)
        image = model.without_memory(features.stride16) if conditioned is None else conditioned
        output = decoder.decode(
            features._replace(stride16=image),
            self._positions_of(features.map_hw),
            model.embed_prompts(prompts, image),
            multimask=multimask,
        )
        each = zip(output.mask_tokens.split(1), output.object_scores.split(1), strict=True)
        pointers = [model.object_pointers(*one) for one in each]  # one by one, as in the decoder
        found = [pointer for pointer in pointers if pointer is not None]
        return replace(output, object_pointers=torch.cat(found) if found else None)

    def decode_confident(self, features: Features, prompts: Prompts, *, iou_threshold: float) -> ConfidentMasks:  # noqa: D102
        decoder = self._mask_decoder.get()
        if decoder is None or len(features.stride16) != 1:
            return super().decode_confident(features, prompts, iou_threshold=iou_threshold)
        image = self.model.without_memory(features.stride16)
        features, positions = features._replace(stride16=image), self._positions_of(features.map_hw)
        return decoder.decode_confident(features, positions, self.model.embed_prompts(prompts, image), iou_threshold)

    def read_memory(self, features: Features, memory: Memory) -> Tensor:  # noqa: D102
        attention, map_hw = self.model.memory_attention, features.map_hw
        if type(attention) is not MemoryAttention:
            return self.model.read_memory(features, memory)
        kept = self._memory_attention
        if kept is None or kept.attention is not attention or kept.map_hw != map_hw:
            kept = self._memory_attention = CpuMemoryAttention(attention, map_hw)
        tokens = self.model.memory_tokens(memory, map_hw)
        read = kept(features.stride16.flatten(2).transpose(1, 2), tokens)
        return read.transpose(1, 2).unflatten(2, map_hw)

    def write_memory(  # noqa: D102
        self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool
    ) -> Tensor:
        return self.model.write_memory(features, logits, object_scores, binarize=binarize)

    def _positions_of(self, map_hw: SizeHW) -> Tensor:
        """(h*w, dim) Fourier positions of the image embedding, kept for the last size."""
        matrix = self.model.shared_image_embedding.positional_embedding
        kept = self._image_positions
        if kept is None or kept[0] != map_hw or kept[1] is not matrix:
            kept = self._image_positions = (map_hw, matrix, self.model.shared_image_embedding.grid(map_hw))
        return kept[2]
