"""The prompt encoder and the mask decoder by themselves, with transformers' signatures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from masklet.compat.transformers.personalised import decode_personalised
from masklet.compat.transformers.prompts import group_masks, read_prompts, with_padding_as_zeros
from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.model.mask_decoder import MaskDecoder
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEmbeddings, PromptEncoder


class Sam2PromptEncoder(PromptEncoder):
    """Points, box corners and masks to embeddings. ``Sam2Model`` has one as ``prompt_encoder``."""

    map_hw: SizeHW
    """(h, w) of the image embedding."""

    def forward(  # type: ignore[override]
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Embeds prompts as the mask decoder reads them; padded points are zeros.

        Args:
            input_points: (batch, objects, points, 2), x then y, pixels of the network's input.
            input_labels: (batch, objects, points), with the points.
            input_boxes: (batch, objects, 4).
            input_masks: (masks, 1, height / 4, width / 4) logits.

        Returns:
            (batch, objects, tokens, dim), None without points and boxes; and (masks or batch, dim, h, w).

        Raises:
            PromptError: Points came without labels, or shapes do not fit together.
        """
        if input_points is not None and input_labels is None:
            raise PromptError("input_points came without input_labels: expected one label for each point")
        given = next((t for t in (input_points, input_boxes) if t is not None), None)
        batch = 1 if given is None else len(given)
        tokens = None
        if given is not None:
            prompts = read_prompts(input_points, input_labels, input_boxes, None, batch=batch, map_hw=self.map_hw)
            input_hw = (self.map_hw[0] * STRIDES[-1], self.map_hw[1] * STRIDES[-1])
            embedded = super().forward(prompts, map_hw=self.map_hw, input_hw=input_hw)
            tokens = with_padding_as_zeros(embedded, prompts).tokens
        if input_masks is None:
            return tokens, self.embed_masks(None, self.map_hw)[0].expand(batch, -1, -1, -1)
        masks = group_masks(input_masks, batch=1, objects=None, map_hw=self.map_hw)
        return tokens, self.embed_masks(masks, self.map_hw)[0]


class Sam2MaskDecoder(MaskDecoder):
    """Embeddings of images and of prompts to masks. ``Sam2Model`` has one as ``mask_decoder``."""

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        image_positional_embeddings: Tensor,
        sparse_prompt_embeddings: Tensor | None,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        high_resolution_features: list[Tensor],
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        **ignored: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decodes every object of every image.

        Args:
            image_embeddings: (batch, dim, h, w).
            image_positional_embeddings: (1, dim, h, w), from ``Sam2Model.get_image_wide_positional_embeddings``.
            sparse_prompt_embeddings: (batch, objects, tokens, dim), from the prompt encoder.
            dense_prompt_embeddings: (batch, dim, h, w), from the prompt encoder; or one map for each object.
            multimask_output: Three candidates for each object, or one mask.
            high_resolution_features: (batch, dim / 8, 4h, 4w) and (batch, dim / 4, 2h, 2w).
            attention_similarity: As in ``Sam2Model.forward``.
            target_embedding: As in ``Sam2Model.forward``.
            ignored: Settings of attention, which make no difference.

        Returns:
            Logits (batch, objects, masks, 4h, 4w), predicted IoU (batch, objects, masks), mask tokens (batch, objects,
            masks, dim) and object scores (batch, objects, 1).

        Raises:
            PromptError: The dense embeddings are neither one for each image nor one for each object.
        """
        batch, dim = image_embeddings.shape[:2]
        tokens = sparse_prompt_embeddings
        if tokens is None:
            tokens = image_embeddings.new_zeros(batch, 1, 0, dim)
        dense = dense_prompt_embeddings
        if len(dense) not in (1, batch, batch * tokens.shape[1]):
            raise PromptError(
                f"dense_prompt_embeddings has shape {tuple(dense.shape)}: expected a map for each of {batch} images, "
                f"or for each of their {tokens.shape[1]} objects"
            )
        stride4, stride8 = high_resolution_features
        dense = dense[:, None] if len(dense) in (1, batch) else dense.unflatten(0, (batch, -1))
        decoded = decode_personalised(
            super().forward,
            self.transformer,
            Features(stride4, stride8, image_embeddings),
            image_positional_embeddings[0].flatten(1).T,
            PromptEmbeddings(tokens, None, dense),
            attention_similarity,
            target_embedding,
            multimask=multimask_output,
        )
        return decoded.logits, decoded.iou_scores, decoded.mask_tokens, decoded.object_scores
