"""Memory attention for all objects at once. Rotated queries and keys come out of the products themselves.

A rotation of x is ``x * cos + turned(x) * sin``, where ``turned`` exchanges the channels of each pair. The product that
projects x projects ``turned(x)`` too, so a rotation is two operators instead of eight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.engine.cuda.constants import BySize
from masklet.engine.cuda.fused import layer_norm, rotate
from masklet.engine.cuda.products import Norm, Product, affine, quarter_turn
from masklet.model.edgetam.memory_attention import LatentMemoryAttentionLayer
from masklet.model.memory_attention import POSITION_WEIGHT, MemoryAttentionLayer
from masklet.model.positions import TEMPERATURE, axial_rotations, sine_positions_2d
from masklet.model.sam2 import Sam2Model


@dataclass(frozen=True, eq=False)
class MemoryConstants:
    """What depends on the size of the map and the number of memory slots, in float32."""

    positions: Tensor  # (h*w, dim), added to the frame
    space: Tensor  # (tokens of a map, memory_dim), added to the keys of maps
    cos: Tensor  # (h*w, dim)
    sin: Tensor
    key_cos: Tensor  # (tokens, dim): of every map, then 1 and 0 for pointers, which are not rotated
    key_sin: Tensor
    speeds: Tensor  # (dim / 2,) of the sines of a pointer's distance in time

    @classmethod
    def make(cls, model: Sam2Model, map_hw: SizeHW, maps: int, pointer_tokens: int) -> MemoryConstants:
        """Constants for ``maps`` slots of maps, and pointers that are cut into ``pointer_tokens`` tokens."""
        dim, device = model.config.hidden_size, model.device
        cos, sin = (table.repeat_interleave(2, -1) for table in axial_rotations(map_hw, dim, device))
        key_cos, key_sin = cos, sin
        if model.config.is_edgetam:
            layer = cast(LatentMemoryAttentionLayer, model.memory_attention.layers[0])
            latents = layer.cross_attn_image.key_rotations(dim, device)
            key_cos, key_sin = (table.repeat_interleave(2, -1) for table in latents)
        exponents = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4)
        return cls(
            positions=POSITION_WEIGHT * sine_positions_2d(map_hw, dim, device),
            space=model.spatial_positions(map_hw, device),
            cos=cos,
            sin=sin,
            key_cos=torch.cat([key_cos.repeat(maps, 1), cos.new_ones(pointer_tokens, dim)]),
            key_sin=torch.cat([key_sin.repeat(maps, 1), sin.new_zeros(pointer_tokens, dim)]),
            speeds=1 / (TEMPERATURE**exponents).repeat_interleave(2),
        )


class Layer:
    """The packed weights of a ``MemoryAttentionLayer``, or of EdgeTAM's."""

    def __init__(self, layer: MemoryAttentionLayer | LatentMemoryAttentionLayer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        own, cross = layer.self_attn, layer.cross_attn_image
        q, k = affine(own.q_proj), affine(own.k_proj)
        self.own_inputs = Product.pack([q, k, quarter_turn(q), quarter_turn(k), affine(own.v_proj)], dtype)
        self.own_output = Product.pack([affine(own.o_proj)], dtype)
        q, k = affine(cross.q_proj), affine(cross.k_proj)
        self.query = Product.pack([q, quarter_turn(q)], dtype)
        self.key = Product.pack([k, quarter_turn(k)], dtype)
        self.value = Product.pack([affine(cross.v_proj)], dtype)
        self.output = Product.pack([affine(cross.o_proj)], dtype)
        if isinstance(layer, LatentMemoryAttentionLayer):
            mlp = layer.mlp.up_proj, layer.mlp.down_proj
        else:
            mlp = layer.linear1, layer.linear2
        self.mlp_in, self.mlp_out = (Product.pack([affine(part)], dtype) for part in mlp)
        self.norms = [Norm.pack(norm) for norm in (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3)]

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, constants: MemoryConstants, mask: Tensor | None
    ) -> Tensor:
        """(objects or 1, h*w, dim) to (objects, h*w, dim), float32."""
        x = x + self._attend_to_frame(self._normed(0, x), constants)
        dim = x.shape[-1]
        q = rotate(self.query(self._normed(1, x)), constants.cos, constants.sin, dim)
        k = rotate(self.key(keys), constants.key_cos, constants.key_sin, dim)
        v = self.value(values)
        q = q.expand(len(k), -1, -1)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)
        x = x + self.output(attended[:, 0])
        return x + self.mlp_out(F.relu(self.mlp_in(self._normed(2, x))))

    def _attend_to_frame(self, x: Tensor, constants: MemoryConstants) -> Tensor:
        y = self.own_inputs(x)  # (objects or 1, h*w, 5 * dim)
        dim = y.shape[-1] // 5
        q, k = rotate(y, constants.cos, constants.sin, 2 * dim).chunk(2, -1)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], y[:, None, :, 4 * dim :])
        return self.own_output(attended[:, 0])

    def _normed(self, number: int, x: Tensor) -> Tensor:
        return layer_norm(x, self.norms[number], self.dtype)


class CudaMemoryAttention:
    """The packed weights of memory attention of plain layers."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        attention = model.memory_attention
        self.dtype = dtype
        layers = cast(Iterable[MemoryAttentionLayer | LatentMemoryAttentionLayer], attention.layers)
        self.layers = [Layer(layer, dtype) for layer in layers]
        self.norm = Norm.pack(attention.layer_norm)
        self.times = model.memory_temporal_positional_encoding.detach().float()[:, 0, 0]  # (slots, memory_dim)
        self.pointer_times = None
        if model.config.is_v2_1:
            self.pointer_times = Product.pack([affine(model.temporal_positional_encoding_projection_layer)], dtype)
        self._model = model
        self._by_size: BySize[MemoryConstants] = BySize()

    def constants(self, map_hw: SizeHW, maps: int, pointers: int) -> MemoryConstants:
        """Constants for a size of map and numbers of slots; made once."""
        config = self._model.config
        tokens = pointers * (config.hidden_size // config.memory_encoder.output_channels)
        return self._by_size.get(
            (map_hw, maps, tokens), lambda: MemoryConstants.make(self._model, map_hw, maps, tokens)
        )

    def __call__(
        self,
        constants: MemoryConstants,
        stride16: Tensor,
        maps: Tensor,
        map_slots: Tensor,
        pointers: Tensor,
        pointer_distances: Tensor,
        is_empty: Tensor | None,
    ) -> tuple[Tensor]:
        """The frame (1, dim, h, w) and the fields of ``Memory`` to (objects, dim, h, w)."""
        keys, values = self._tokens(constants, maps, map_slots, pointers, pointer_distances)
        mask = None if is_empty is None else self._mask(is_empty, maps, pointers)
        x = (stride16.flatten(2).transpose(1, 2) + constants.positions).contiguous()
        for layer in self.layers:
            x = layer(x, keys, values, constants, mask)
        return (
            layer_norm(x, self.norm, torch.float32)
            .transpose(1, 2)
            .unflatten(2, (stride16.shape[-2], stride16.shape[-1])),
        )

    def _tokens(
        self, constants: MemoryConstants, maps: Tensor, map_slots: Tensor, pointers: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, (objects, tokens, memory_dim) each: see ``Sam2Model.memory_tokens``."""
        memory_dim = maps.shape[-1]
        times = self.times[map_slots]  # (objects, maps, memory_dim)
        keys = (maps + (constants.space + times[:, :, None])).flatten(1, 2)
        split = pointers.unflatten(-1, (-1, memory_dim))  # (objects, pointers, tokens, memory_dim)
        pointer_keys = split
        if self.pointer_times is not None:
            angles = distances[..., None] * constants.speeds
            sines = torch.cat([angles.sin(), angles.cos()], -1)
            pointer_keys = split + self.pointer_times(sines)[:, :, None]
        return (
            torch.cat([keys.to(self.dtype), pointer_keys.to(self.dtype).flatten(1, 2)], 1),
            torch.cat([maps.to(self.dtype).flatten(1, 2), split.to(self.dtype).flatten(1, 2)], 1),
        )

    def _mask(self, is_empty: Tensor, maps: Tensor, pointers: Tensor) -> Tensor:
        """(objects, slots) bool to (objects, 1, 1, tokens): what is attended to."""
        objects, num_maps, cells, memory_dim = maps.shape
        is_filled = ~is_empty[..., None]
        of_maps = is_filled[:, :num_maps].expand(-1, -1, cells).reshape(objects, -1)
        split = pointers.shape[-1] // memory_dim
        of_pointers = is_filled[:, num_maps:].expand(-1, -1, split).reshape(objects, -1)
        return torch.cat([of_maps, of_pointers], 1)[:, None, None]
