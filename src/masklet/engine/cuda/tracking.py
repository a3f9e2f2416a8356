"""A whole step of tracking as one function, so that it becomes one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from masklet.engine.base import TrackedObjects
from masklet.engine.cuda.mask_decoder import CudaMaskDecoder
from masklet.engine.cuda.memory_attention import CudaMemoryAttention, MemoryConstants
from masklet.engine.cuda.memory_encoder import CudaMemoryEncoder
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.prompt_encoder import PromptEmbeddings


class CudaTracker:
    """Reads memory, decodes without a prompt, keeps the best candidate, and encodes its memory map."""

    def __init__(
        self,
        attention: CudaMemoryAttention,
        decoder: CudaMaskDecoder,
        encoder: CudaMemoryEncoder,
        prompt: PromptEmbeddings,
    ) -> None:
        self.attention, self.decoder, self.encoder = attention, decoder, encoder
        self.prompt = prompt

    def __call__(
        self,
        constants: MemoryConstants,
        positions: Tensor,
        stride4: Tensor,
        stride8: Tensor,
        stride16: Tensor,
        *memory: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Track objects.

        Args:
            constants: Of the memory attention.
            positions: Of the mask decoder.
            stride4: As in ``Features``, of one frame.
            stride8: As in ``Features``, of one frame.
            stride16: As in ``Features``, of one frame.
            memory: The fields of ``Memory``, without weights.

        Returns:
            The fields of ``TrackedObjects``, and memory maps (objects, h*w, memory_dim) bfloat16.
        """
        (conditioned,) = self.attention(constants, stride16, *memory)
        tokens = self.prompt.tokens[0].expand(len(conditioned), -1, -1)
        outputs = self.decoder(positions, conditioned, stride4, stride8, self.prompt.dense[0], tokens, None)
        # The first mask is for prompts of several points.
        logits, iou_scores, object_scores, mask_tokens, pointers = (output[:, None] for output in outputs)
        several = DecodedMasks(logits[:, :, 1:], iou_scores[:, :, 1:], object_scores, mask_tokens, pointers[:, :, 1:])
        tracked = TrackedObjects.best_of(several)
        (maps,) = self.encoder(False, stride16, tracked.logits, tracked.object_scores[:, None])
        return (*tracked, maps.to(torch.bfloat16))
