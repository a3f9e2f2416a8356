"""The engine for processors: blocks of work that fit in caches, one a thread, with weights packed once.

Matrix products run in float32 or, where the processor is faster at that, in bfloat16; norms, sums of softmax,
residuals, positions and rotations are in float32 either way.

Layers that were replaced, wrapped (LoRA) or hooked run as they are: the part of the network that holds them takes the
plain path.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.engine.base import ConfidentMasks, Engine
from masklet.engine.cpu.image_encoder import CpuImageEncoder
from masklet.engine.cpu.mask_decoder import CpuMaskDecoder
from masklet.engine.cpu.memory_attention import CpuMemoryAttention
from masklet.engine.cpu.memory_encoder import CpuMemoryEncoder
from masklet.engine.cpu.packing import Packed
from masklet.engine.cpu.repvit import CpuRepVitEncoder
from masklet.engine.cpu.threads import in_pool
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model, check_pixel_values


class CpuEngine(Engine):
    """For float32 weights on a CPU. The result for one object does not depend on the others, to the bit.

    No function of it has gradients, since it reads packed weights.

    Args:
        model: The network.
        products: The type of matrix products: float32 or bfloat16.
    """

    name = "cpu"

    def __init__(self, model: Sam2Model, products: torch.dtype = torch.float32) -> None:
        super().__init__(model)
        self._products = products
        decoder = model.mask_decoder
        self._image_encoder = Packed(
            lambda: [model.vision_encoder, decoder.conv_s0, decoder.conv_s1],
            lambda: pack_image_encoder(model, products),
        )
        self._mask_decoder = Packed(lambda: [model.mask_decoder], lambda: CpuMaskDecoder(model.mask_decoder, products))
        self._memory_attention = Packed(
            lambda: [model.memory_attention], lambda: CpuMemoryAttention(model.memory_attention, products)
        )
        self._memory_encoder = Packed(
            lambda: [model.memory_encoder], lambda: CpuMemoryEncoder(model.memory_encoder, products)
        )
        self._image_positions: tuple[SizeHW, Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[type[Engine], tuple[object, ...]]:  # noqa: D105
        return type(self), (self.model, self.products)

    @property
    def products(self) -> torch.dtype:  # noqa: D102
        return self._products

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Features:  # noqa: D102
        check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.device, self.dtype)
        encoder = self._image_encoder.get()
        positions = self._position_table((pixel_values.shape[-2], pixel_values.shape[-1]))
        if encoder is None:
            return self.model.encode(pixel_values, positions)
        return in_pool(partial(encoder, pixel_values, positions))

    @torch.no_grad()
    def decode(  # noqa: D102
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        decoder = self._mask_decoder.get()
        if decoder is None:
            return self.model.decode(features, prompts, multimask=multimask, conditioned=conditioned)
        return in_pool(lambda: self._decode(decoder, features, prompts, multimask, conditioned))

    def _decode(
        self,
        decoder: CpuMaskDecoder,
        features: Features,
        prompts: Prompts | None,
        multimask: bool | None,
        conditioned: Tensor | None,
    ) -> DecodedMasks:
        model = self.model
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

    @torch.no_grad()
    def decode_confident(self, features: Features, prompts: Prompts, *, iou_threshold: float) -> ConfidentMasks:  # noqa: D102
        decoder = self._mask_decoder.get()
        if decoder is None or len(features.stride16) != 1:
            return super().decode_confident(features, prompts, iou_threshold=iou_threshold)
        return in_pool(lambda: self._decode_confident(decoder, features, prompts, iou_threshold))

    def _decode_confident(
        self, decoder: CpuMaskDecoder, features: Features, prompts: Prompts, iou_threshold: float
    ) -> ConfidentMasks:
        image = self.model.without_memory(features.stride16)
        features, positions = features._replace(stride16=image), self._positions_of(features.map_hw)
        return decoder.decode_confident(features, positions, self.model.embed_prompts(prompts, image), iou_threshold)

    @torch.no_grad()
    def read_memory(self, features: Features, memory: Memory) -> Tensor:  # noqa: D102
        attention = None if memory.is_empty is not None else self._memory_attention.get()
        if attention is None:
            return self.model.read_memory(features, memory)
        return in_pool(partial(self._read_memory, attention, features, memory))

    def _read_memory(self, attention: CpuMemoryAttention, features: Features, memory: Memory) -> Tensor:
        map_hw = features.map_hw
        tokens = self.model.memory_tokens(memory, map_hw)
        read = attention(features.stride16.flatten(2).transpose(1, 2), tokens, map_hw)
        return read.transpose(1, 2).unflatten(2, map_hw)

    @torch.no_grad()
    def write_memory(  # noqa: D102
        self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool
    ) -> Tensor:
        encoder = self._memory_encoder.get()
        if encoder is None:
            return self.model.write_memory(features, logits, object_scores, binarize=binarize)

        def write() -> Tensor:
            masks = self.model.memory_masks(logits, features.map_hw, binarize=binarize)
            memory = self.model.mark_absent(encoder(features.stride16, masks), object_scores)
            return torch.cat([self.model.compress(one, features.map_hw) for one in memory.split(1)])

        return in_pool(write)

    def _positions_of(self, map_hw: SizeHW) -> Tensor:
        """(h*w, dim) Fourier positions of the image embedding, kept for the last size."""
        matrix = self.model.shared_image_embedding.positional_embedding
        kept = self._image_positions
        if kept is None or kept[0] != map_hw or kept[1] is not matrix:
            kept = self._image_positions = (map_hw, matrix, self.model.shared_image_embedding.grid(map_hw))
        return kept[2]


def pack_image_encoder(model: Sam2Model, products: torch.dtype) -> CpuImageEncoder | CpuRepVitEncoder:
    """The packed image encoder of a SAM 2 or an EdgeTAM."""
    return CpuRepVitEncoder(model, products) if model.config.is_edgetam else CpuImageEncoder(model, products)
