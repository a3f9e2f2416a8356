"""The parts of a network as modules with plain tensors in and out, one for each graph that is exported.

They call the functions of ``Sam2Model``. They differ from it where a graph cannot branch: flags are tensors, padding is
always masked, and everything that follows from the input size is a constant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import STRIDE, STRIDES, SizeHW
from masklet.model.edgetam.memory_attention import LatentMemoryAttentionLayer
from masklet.model.hiera import Hiera, window_positions
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import (
    POSITION_WEIGHT,
    Memory,
    MemoryAttentionLayer,
    MemoryTokens,
    RotaryAttention,
)
from masklet.model.neck import Features
from masklet.model.positions import Rotations, axial_rotations, rotate, sine_positions_2d
from masklet.model.prompt_encoder import PADDING, PromptEmbeddings
from masklet.model.sam2 import MEMORY_BIAS, MEMORY_SCALE, Sam2Model

QUERY_BLOCKS = 8
"""Attention to memory runs in so many blocks of queries: its scores would take 470 MB for each object at 1024."""


class ImageEncoder(nn.Module):
    """Images to the three maps of ``Features``, and to the embedding that is decoded without memory."""

    positions: Tensor | None

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.model = model
        trunk, positions = model.vision_encoder.backbone, None
        if isinstance(trunk, Hiera):
            grid, window = (weight.detach().cpu().float() for weight in (trunk.pos_embed, trunk.pos_embed_window))
            positions = window_positions(grid, window, _map_hw(input_hw, STRIDES[0]))
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(batch, 3, height, width) float32, normalised, to float32 maps."""
        features = self.model.encode(pixel_values.to(self.model.dtype), self.positions)
        embedding = self.model.without_memory(features.stride16)
        return features.stride4.float(), features.stride8.float(), features.stride16.float(), embedding.float()


class EmbeddingEncoder(ImageEncoder):
    """``ImageEncoder`` without the map that only memory needs, for layouts of images."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """(batch, 3, height, width) to the maps of stride 4 and 8 and the embedding, all float32."""
        stride4, stride8, _, embedding = super().forward(pixel_values)
        return stride4, stride8, embedding


class PromptDecoder(nn.Module):
    """Prompts on an image embedding, with or without memory, to the four masks of every object."""

    image_positions: Tensor

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.model = model
        self.input_hw = input_hw
        self.register_buffer("image_positions", model.shared_image_embedding.grid(_map_hw(input_hw, STRIDE)))

    def forward(
        self,
        stride4: Tensor,
        stride8: Tensor,
        image_embedding: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode.

        Args:
            stride4: (1, dim / 8, 4h, 4w).
            stride8: (1, dim / 4, 2h, 2w).
            image_embedding: (batch, dim, h, w).
            points: (batch, objects, points, 2), x and y in pixels of the network's input; box corners too.
            labels: (batch, objects, points) int64: 1, 0, 2 and 3 for box corners, -1, and -10 for padding.
            mask_input: (1, 1, 4h, 4w) logits to refine, for all objects.
            has_mask: (1,) float32: 1 if ``mask_input`` is used, 0 if not.

        Returns:
            Logits (batch, objects, 4, 4h, 4w), of the single mask and then of the three candidates; predicted IoU
            (batch, objects, 4); object scores (batch, objects, 1); object pointers (batch, objects, 4, dim), which are
            the mask tokens of a network without memory.
        """
        decoded = self.decode(stride4, stride8, image_embedding, points, labels, mask_input, has_mask)
        pointers = self.model.object_pointers(decoded.mask_tokens, decoded.object_scores)
        return (
            decoded.logits,
            decoded.iou_scores,
            decoded.object_scores,
            decoded.mask_tokens if pointers is None else pointers,
        )

    def decode(
        self,
        stride4: Tensor,
        stride8: Tensor,
        image_embedding: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> DecodedMasks:
        """See ``forward``."""
        encoder = self.model.prompt_encoder
        tokens = encoder.embed_points(points, labels, self.input_hw)
        last = encoder.not_a_point_embed.weight.expand(*tokens.shape[:2], 1, -1)
        is_padding = F.pad(labels == PADDING, (0, 1), value=False)
        no_mask = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        dense = torch.where(has_mask > 0, encoder.mask_embed(mask_input), no_mask)[None]  # (1, 1, dim, h, w)
        prompts = PromptEmbeddings(torch.cat([tokens, last], dim=2), is_padding, dense)
        features = Features(stride4, stride8, image_embedding)
        return self.model.mask_decoder(features, self.image_positions, prompts, multimask=None)


class MemoryAttention(nn.Module):
    """A frame's map conditioned on the memory of each object. Slots may be empty."""

    rotation_cosines: Tensor
    rotation_sines: Tensor
    positions: Tensor

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.model = model
        self.map_hw = _map_hw(input_hw, STRIDE)
        dim, device = model.config.hidden_size, model.device
        cos, sin = axial_rotations(self.map_hw, dim, device)
        self.register_buffer("rotation_cosines", cos)
        self.register_buffer("rotation_sines", sin)
        self.register_buffer("positions", POSITION_WEIGHT * sine_positions_2d(self.map_hw, dim, device))

    def forward(
        self,
        stride16: Tensor,
        maps: Tensor,
        map_slots: Tensor,
        pointers: Tensor,
        pointer_distances: Tensor,
        is_empty: Tensor,
    ) -> Tensor:
        """(1, dim, h, w) and a ``Memory`` to (objects, dim, h, w); at least one map of each object is filled."""
        tokens = self.model.memory_tokens(Memory(maps, map_slots, pointers, pointer_distances, is_empty), self.map_hw)
        x = stride16.flatten(2).transpose(1, 2)  # (1, h*w, dim)
        x = (x + self.positions).to(self.model.dtype)
        for layer in self.model.memory_attention.layers:
            assert isinstance(layer, MemoryAttentionLayer | LatentMemoryAttentionLayer)
            x = self._layer(layer, x, tokens)
        return self.model.memory_attention.layer_norm(x).transpose(1, 2).unflatten(2, self.map_hw).float()

    def _layer(
        self, layer: MemoryAttentionLayer | LatentMemoryAttentionLayer, x: Tensor, memory: MemoryTokens
    ) -> Tensor:
        rotations = (self.rotation_cosines, self.rotation_sines)
        x = layer.attend_to_frame(x, rotations)
        x = x + _attend_to_memory(layer.cross_attn_image, layer.layer_norm2(x), memory, rotations)
        return x + (layer.mlp(x) if isinstance(layer, MemoryAttentionLayer) else layer.mlp(layer.layer_norm3(x)))


def _attend_to_memory(attention: RotaryAttention, x: Tensor, memory: MemoryTokens, rotations: Rotations) -> Tensor:
    """As ``RotaryAttention``, in blocks of queries, with values that are projected after they are summed.

    Weights sum to one, so the order does not matter, and memories are narrower than their projection.
    """
    assert memory.is_empty is not None
    q, k = rotate(attention.q_proj(x), rotations), attention.k_proj(memory.keys)
    maps, pointers = k.split([k.shape[1] - memory.num_pointers, memory.num_pointers], dim=1)
    k = torch.cat([attention.rotate_keys(maps, rotations), pointers], dim=1).transpose(1, 2) * q.shape[-1] ** -0.5
    bias = torch.where(memory.is_empty, float("-inf"), 0.0)[:, None].to(k.dtype)  # (objects, 1, tokens)
    blocks = [((block @ k) + bias).softmax(-1) @ memory.values for block in q.chunk(QUERY_BLOCKS, dim=1)]
    return attention.o_proj(attention.v_proj(torch.cat(blocks, dim=1)))


class MemoryEncoder(nn.Module):
    """The masks of a frame to spatial memories."""

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.model = model
        self.input_hw = input_hw

    def forward(self, stride16: Tensor, logits: Tensor, object_scores: Tensor, is_prompted: Tensor) -> Tensor:
        """Encode masks.

        Args:
            stride16: (1, dim, h, w).
            logits: (objects, 4h, 4w).
            object_scores: (objects, 1) logits.
            is_prompted: (1,) float32: 1 on prompted frames, whose masks are binarized, 0 on others.

        Returns:
            (objects, tokens, memory_dim), which SAM 2's reference rounds to bfloat16.
        """
        masks = F.interpolate(logits[:, None], size=self.input_hw, mode="bilinear", align_corners=False)
        probabilities = torch.where(is_prompted > 0, (masks > 0).to(masks.dtype), masks.sigmoid())
        memory = self.model.memory_encoder(stride16, probabilities * MEMORY_SCALE + MEMORY_BIAS)
        memory = memory.flatten(2).transpose(1, 2)
        if self.model.config.is_v2_1:
            is_absent = (object_scores <= 0)[:, None].to(memory.dtype)
            memory = memory + is_absent * self.model.occlusion_spatial_embedding_parameter
        return self.model.compress(memory, _map_hw(self.input_hw, STRIDE))


class BoxDecoder(nn.Module):
    """``PromptDecoder`` without mask prompts, as transformers.js calls it: three candidates of every object."""

    mask_input: Tensor
    has_mask: Tensor

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.decoder = PromptDecoder(model, input_hw)
        self.register_buffer("mask_input", torch.zeros(1, 1, *_map_hw(input_hw, STRIDES[0])))
        self.register_buffer("has_mask", torch.zeros(1))

    def forward(
        self, points: Tensor, labels: Tensor, embedding_0: Tensor, embedding_1: Tensor, embedding_2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU, masks and object scores; see ``PromptDecoder``."""
        decoded = self.decoder.decode(
            embedding_0, embedding_1, embedding_2, points, labels, self.mask_input, self.has_mask
        ).masks(slice(1, None))
        return decoded.iou_scores, decoded.logits, decoded.object_scores


class LabelDecoder(nn.Module):
    """``PromptDecoder`` on one image, as samexporter's consumers call it: three candidates of every label."""

    def __init__(self, model: Sam2Model, input_hw: SizeHW) -> None:
        super().__init__()
        self.decoder = PromptDecoder(model, input_hw)

    def forward(
        self,
        image_embed: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(labels, 3, 4h, 4w) logits and (labels, 3) predicted IoU; points (labels, points, 2), labels are float32."""
        decoded = self.decoder.decode(
            high_res_feats_0,
            high_res_feats_1,
            image_embed,
            point_coords[None],
            point_labels.long()[None],
            mask_input,
            has_mask_input,
        ).masks(slice(1, None))
        return decoded.logits[0], decoded.iou_scores[0]


def _map_hw(input_hw: SizeHW, stride: int) -> SizeHW:
    return input_hw[0] // stride, input_hw[1] // stride
