"""A whole step of tracking as one function, so that it becomes one CUDA graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from masklet.config import Sam2Config
from masklet.engine.base import TrackedObjects, stored_maps
from masklet.engine.cuda.mask_decoder import CudaMaskDecoder
from masklet.engine.cuda.memory_attention import CudaMemoryAttention, MemoryConstants
from masklet.engine.cuda.memory_encoder import CudaMemoryEncoder
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.prompt_encoder import PromptEmbeddings


class CudaTracker:
    """Reads memory, decodes without a prompt, keeps the best candidate, and encodes its memory map."""

    def __init__(
        self,
        config: Sam2Config,
        attention: CudaMemoryAttention,
        decoder: CudaMaskDecoder,
        encoder: CudaMemoryEncoder,
        prompt: PromptEmbeddings,
    ) -> None:
        self.config = config
        self.attention, self.decoder, self.encoder = attention, decoder, encoder
        self.prompt = prompt

    def __call__(
        self,
        constants: MemoryConstants,
        positions: Tensor,
        stride4: Tensor,
        stride8: Tensor,
        stride16: Tensor,
        *memory: Any,
    ) -> tuple[Tensor, ...]:
        """Track objects.

        Args:
            constants: Of the memory attention.
            positions: Of the mask decoder.
            stride4: As in ``Features``, of one frame.
            stride8: As in ``Features``, of one frame.
            stride16: As in ``Features``, of one frame.
            memory: The fields of ``Memory``, without weights, as ``CudaMemoryAttention`` takes them.

        Returns:
            The fields of ``TrackedObjects``, and memory maps (objects, tokens, memory_dim), see ``stored_maps``.
        """
        (conditioned,) = self.attention(constants, stride16, *memory)
        tokens = self.prompt.tokens[0].expand(len(conditioned), -1, -1)
        outputs = self.decoder(positions, conditioned, stride4, stride8, self.prompt.dense[0], tokens, None)
        # The first mask is for prompts of several points.
        logits, iou_scores, object_scores, mask_tokens, pointers = (output[:, None] for output in outputs)
        several = DecodedMasks(logits[:, :, 1:], iou_scores[:, :, 1:], object_scores, mask_tokens, pointers[:, :, 1:])
        tracked = TrackedObjects.best_of(several)
        (maps,) = self.encoder(False, stride16, tracked.logits, tracked.object_scores[:, None])
        return (*tracked, stored_maps(maps, self.config))
