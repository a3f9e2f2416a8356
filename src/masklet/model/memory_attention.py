"""Memory attention: a frame's features read what is remembered of an object.

Source: SAM 2 (arXiv 2408.00714), section 4 and appendix C, "memory attention".
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.layers import in_blocks
from masklet.model.positions import axial_rotations, rotate

Rotations = tuple[Tensor, Tensor]
POSITION_WEIGHT = 0.1
"""Share of the sine positions that is added to the features before the first layer."""
FOLDED_QUERIES = 1024
"""Cells that look at memory together when folded: their scores of one row should stay in a CPU's caches."""
FOLDING_PAYS = 0.7
"""Folded, so much of the arithmetic takes as long as all of it does in fused attention."""


class RotaryAttention(nn.Module):
    """One-head attention whose queries and keys are turned by their place in the image."""

    def __init__(self, dim: int, memory_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(memory_dim, dim)
        self.v_proj = nn.Linear(memory_dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotations: Rotations,
        num_pointers: int = 0,
        is_empty: Tensor | None = None,
    ) -> Tensor:
        """(objects or 1, h*w, dim) attends to (objects, keys, memory_dim).

        Args:
            q: Queries, one for each cell.
            k: Keys: whole maps of h*w cells one after another, then ``num_pointers`` tokens that have no place.
            v: Values of the same tokens.
            rotations: Cosines and sines for the cells of one map.
            num_pointers: Keys at the end that are not turned.
            is_empty: (objects, keys) bool: keys that nobody attends to.
        """
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        cells = q.shape[1]
        maps, pointers = k.split([k.shape[1] - num_pointers, num_pointers], dim=1)
        turned = rotate(maps.unflatten(1, (-1, cells)), rotations).flatten(1, 2)
        k = torch.cat([turned, pointers], dim=1)
        q = rotate(q, rotations).expand(len(k), -1, -1)
        mask = None if is_empty is None else ~is_empty[:, None, None]
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)
        return self.o_proj(attended[:, 0])

    def fold(
        self, q: Tensor, k: Tensor, v: Tensor, rotations: Rotations, num_pointers: int, map_hw: tuple[int, int]
    ) -> Tensor:
        """As ``forward`` for one object, with half the arithmetic where memory is narrow.

        A turned query u meets a key that stands at (x, y) as u·R(W k + b), where R turns the first half of the channels
        with x alone and the second with y alone. All keys of a row share y: for each row, u's second half is brought to
        k itself, which is narrower than that half. And values are summed before they are projected, since weights sum
        to one.

        Args:
            q: (1, h*w, dim). This and the others are as in ``forward``.
            k: (1, keys, memory_dim).
            v: (1, keys, memory_dim).
            rotations: Cosines and sines.
            num_pointers: Keys at the end.
            map_hw: (h, w).
        """
        places = k.shape[1] - num_pointers
        to_columns, to_rows = self._turned_keys(rotations, map_hw)
        half, width = to_rows.shape[1], v.shape[-1]
        memories = F.pad(k[0, :places], (0, 1), value=1.0).view(-1, *map_hw, width + 1)  # the one meets the bias
        by_column = memories.permute(2, 1, 0, 3).flatten(1, 2) @ to_columns  # (w, h * maps, dim / 2)
        keys = memories.new_empty(map_hw[0], len(memories), map_hw[1], half + width + 1)
        keys[..., :half] = by_column.unflatten(1, keys.shape[:2]).permute(1, 2, 0, 3)
        keys[..., half:] = memories.transpose(0, 1)
        keys = keys.flatten(1, 2)  # (h, maps * w, dim / 2 + memory_dim + 1)
        values = v[0, :places].view(-1, *map_hw, width).transpose(0, 1).flatten(1, 2)  # (h, maps * w, memory_dim)
        pointer_keys, pointer_values = self.k_proj(k[0, places:]).T, v[0, places:]

        turned = rotate(self.q_proj(q), rotations)[0] * q.shape[-1] ** -0.5
        # Made once, since memory that is new costs more than what is computed in it.
        queries = turned.new_empty(FOLDED_QUERIES, half + width + 1)
        at_rows = turned.new_empty(len(keys), FOLDED_QUERIES, width + 1)
        scores = turned.new_empty(FOLDED_QUERIES, keys.shape[1])
        attended = []
        for u in turned.split(FOLDED_QUERIES):
            x, y, s = queries[: len(u)], at_rows[:, : len(u)], scores[: len(u)]
            x[:, :half] = u[:, :half]
            torch.matmul(u[:, half:], to_rows, out=y)
            # Weights are relative to the highest score of a row, not of all: higher ones have room up to e^88.
            x[:, half:] = y[0]
            highest = torch.mm(x, keys[0].T, out=s).amax(1)
            y[..., -1] -= highest
            weights = (u @ pointer_keys - highest[:, None]).exp_()
            sums, total = weights @ pointer_values, weights.sum(1)
            for at_row, keys_of_row, values_of_row in zip(y, keys, values, strict=True):
                x[:, half:] = at_row
                torch.mm(x, keys_of_row.T, out=s).exp_()
                sums.addmm_(s, values_of_row)
                total += s.sum(1)
            attended.append(sums / total[:, None])
        read = torch.cat(attended)
        if not read.isfinite().all():  # that was not room enough
            return self(q, k, v, rotations, num_pointers)
        return self.o_proj(self.v_proj(read))[None]

    def _turned_keys(self, rotations: Rotations, map_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """``k_proj``, bias last, turned as each place is.

        Returns:
            Its first half at each column, (w, memory_dim + 1, dim / 2), and its second at each row,
            (h, dim / 2, memory_dim + 1).
        """
        weight = torch.cat([self.k_proj.weight, self.k_proj.bias[:, None]], 1).T  # (memory_dim + 1, dim)
        first, second = weight.chunk(2, dim=1)
        places = [part.view(*map_hw, 1, 2, -1) for part in rotations]  # the pairs that turn with x, and those with y
        at_columns = rotate(first, (places[0][0, ..., 0, :], places[1][0, ..., 0, :]))
        at_rows = rotate(second, (places[0][:, 0, :, 1], places[1][:, 0, :, 1]))
        return at_columns, at_rows.transpose(1, 2).contiguous()

    def folding_pays(self, keys: int, map_hw: tuple[int, int]) -> bool:
        """Whether ``fold`` is faster than ``forward`` on a CPU: it is for many keys that are narrow."""
        dim, width = self.q_proj.out_features, self.k_proj.in_features
        folded = (dim / 2 + 2 * width) * keys + map_hw[0] * dim / 2 * width
        return folded < FOLDING_PAYS * 2 * dim * keys


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to memory and an MLP, each behind its norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim, dim)
        self.cross_attn_image = RotaryAttention(dim, memory_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.layer_norm3 = nn.LayerNorm(dim)

    def look_around(self, x: Tensor, rotations: Rotations) -> Tensor:
        """(objects or 1, h*w, dim) attends to itself."""
        y = self.layer_norm1(x)
        return x + self.self_attn(y, y, y, rotations)

    def look_back(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        rotations: Rotations,
        num_pointers: int,
        is_empty: Tensor | None,
        folded_hw: tuple[int, int] | None,
    ) -> Tensor:
        """(objects or 1, h*w, dim) reads keys and values (objects, tokens, memory_dim): (objects, h*w, dim)."""
        y = self.layer_norm2(x)
        if folded_hw is None:
            x = x + self.cross_attn_image(y, keys, values, rotations, num_pointers, is_empty)
        else:
            x = x + self.cross_attn_image.fold(y, keys, values, rotations, num_pointers, folded_hw)
        rows = in_blocks(self._think, x.flatten(0, 1), self.linear1.out_features)
        return x + rows.view(x.shape)

    def _think(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(self.layer_norm3(x))))


class MemoryAttention(nn.Module):
    """Layers, and a last norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, memory_dim, mlp_dim) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        map_hw: tuple[int, int],
        num_pointers: int = 0,
        is_empty: Tensor | None = None,
    ) -> Tensor:
        """Condition a frame on memory.

        Args:
            features: (1, h*w, dim), the frame's coarsest map as it left the image encoder.
            positions: (h*w, dim), the sine positions of its cells.
            memory: (objects, tokens, memory_dim): maps of h*w tokens one after another, then pointer tokens.
            memory_positions: (objects or 1, tokens, memory_dim): sine positions and age.
            map_hw: (h, w).
            num_pointers: Tokens at the end that are pointers.
            is_empty: (objects, tokens) bool: slots that hold nothing.

        Returns:
            (objects, h*w, dim).
        """
        rotations = axial_rotations(map_hw, features.shape[-1], features.device)
        # Keys know where and when, values only what.
        keys = memory + memory_positions
        # Until they look back, all objects of a frame see the same.
        first_layer, *layers = cast(list[MemoryAttentionLayer], list(self.layers))
        seen = first_layer.look_around(features + POSITION_WEIGHT * positions, rotations)
        # One after another on a CPU: together they fall out of its caches.
        step = 1 if features.device.type == "cpu" else len(memory)
        may_fold = features.device.type == "cpu" and features.dtype == torch.float32 and is_empty is None
        is_folded = (
            may_fold
            and not torch.is_grad_enabled()
            and first_layer.cross_attn_image.folding_pays(memory.shape[1], map_hw)
        )
        read = []
        for first in range(0, len(memory), step):
            some = slice(first, first + step)
            nothing = None if is_empty is None else is_empty[some]
            told = (keys[some], memory[some], rotations, num_pointers, nothing, map_hw if is_folded else None)
            x = first_layer.look_back(seen, *told)
            for layer in layers:
                x = layer.look_back(layer.look_around(x, rotations), *told)
            read.append(x)
        return self.layer_norm(torch.cat(read))
