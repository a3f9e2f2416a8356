"""The image encoder in blocks of the map, one a thread.

Windows are independent of each other, and so are the rows of an MLP: a rectangle of windows passes through one block
after another, as long as their windows fit together, without leaving the caches of a core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SizeHW
from masklet.engine.cpu.blocks import row_blocks
from masklet.engine.cpu.products import Linear, attention, layer_norm
from masklet.engine.cpu.threads import for_each, num_threads
from masklet.model.hiera import POOL, HieraBlock, join_windows, split_windows
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model

MOST_TOKENS, FEWEST_TOKENS = 2048, 256
"""Cells of a rectangle: enough that reading the weights costs little, few enough for the caches of a core."""
MLP_TOKENS = 1024
QUERIES = 512
"""Queries of global attention that one thread takes at a time."""
PATCH, STRIDE, MARGIN = 7, 4, 3

Rectangle = tuple[slice, slice]
"""Rows and columns of a map."""


@dataclass(frozen=True)
class PackedBlock:
    """See ``HieraBlock``. Products are in the engine's precision, norms and residuals in float32."""

    norm1: nn.LayerNorm
    qkv: Linear
    out: Linear
    norm2: nn.LayerNorm
    mlp_in: Linear
    mlp_out: Linear
    shortcut: Linear | None
    activation: Callable[[Tensor], Tensor]
    heads: int
    window: int
    pools: bool

    @classmethod
    def pack(cls, block: HieraBlock, dtype: torch.dtype) -> PackedBlock:
        """Pack a block of plain layers."""
        names = (block.attn.qkv, block.attn.proj, block.mlp.proj_in, block.mlp.proj_out)
        qkv, out, mlp_in, mlp_out = (Linear.pack(layer, dtype) for layer in names)
        shortcut = Linear.pack(block.proj, dtype) if block.pools else None
        return cls(
            block.layer_norm1, qkv, out, block.layer_norm2, mlp_in, mlp_out, shortcut, block.mlp.activation,
            block.attn.heads, block.window, block.pools,
        )  # fmt: skip

    def in_windows(self, x: Tensor) -> Tensor:
        """(height, width, dim) of whole windows, or of those at the border, to (height', width', dim')."""
        normed = layer_norm(self.norm1, x).to(self.qkv.weight.dtype)
        shortcut = x if self.shortcut is None else _max_pool(self.shortcut(normed)[None])[0]
        windows, grid = split_windows(normed[None], self.window) if self.window else (normed[None], (1, 1))
        q, k, v = self.project(windows)
        if self.pools:
            q = _max_pool(q.flatten(3)).unflatten(-1, (self.heads, -1))
        side_hw = q.shape[1:3]
        attended = attention(*(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)))
        attended = self.out(attended.transpose(1, 2).flatten(2)).unflatten(1, side_hw)
        size_hw = (shortcut.shape[0], shortcut.shape[1])
        return self.add_mlp(shortcut + join_windows(attended, grid, size_hw)[0])

    def project(self, normed: Tensor) -> tuple[Tensor, ...]:
        """(..., dim) to queries, keys and values, each (..., heads, head_dim)."""
        return self.qkv(normed).unflatten(-1, (3, self.heads, -1)).unbind(-3)

    def add_mlp(self, x: Tensor) -> Tensor:
        """(..., dim) float32 to the same."""
        x = x.float()
        rows = x.view(-1, x.shape[-1])
        for part in rows.split(MLP_TOKENS):
            part += self.mlp_out(self.activation(self.mlp_in(layer_norm(self.norm2, part))))
        return x


def _max_pool(x_bhwc: Tensor) -> Tensor:
    return F.max_pool2d(x_bhwc.permute(0, 3, 1, 2), POOL).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Run:
    """Blocks that a rectangle passes through on its own, or a single block with global attention."""

    blocks: list[PackedBlock]
    first: int  # index of the first block

    @property
    def is_global(self) -> bool:
        """Whether its block attends to the whole map."""
        return self.blocks[0].window == 0


def _runs(blocks: list[PackedBlock]) -> list[Run]:
    runs: list[Run] = []
    unit, tokens = 0, 0  # side of the windows that the rectangles consist of, and the tokens of a rectangle
    for index, block in enumerate(blocks):
        left = tokens // POOL**2 if block.pools else tokens
        if block.window and block.window == unit and left >= FEWEST_TOKENS:
            runs[-1].blocks.append(block)
        else:
            runs.append(Run([block], index))
            left = MOST_TOKENS // POOL**2 if block.pools else MOST_TOKENS
        tokens = left
        unit = block.window // POOL if block.pools else block.window  # even where it pools
    return runs


def pack_levels(model: Sam2Model, dtype: torch.dtype) -> list[Linear]:
    """Neck and skip convolutions, finest level first.

    Only the decoder's skip convolutions read the two finest levels, so neck and skip convolution are merged into one
    product, and the wide maps between them are never computed.
    """
    decoder = model.mask_decoder
    stride32, stride16, stride8, stride4 = model.vision_encoder.neck.convs
    return [
        Linear.product(stride4, decoder.conv_s0, dtype),
        Linear.product(stride8, decoder.conv_s1, dtype),
        Linear.pack(stride16, dtype),
        Linear.pack(stride32, dtype),
    ]


def decoder_features(levels: list[Tensor]) -> Features:
    """The features of one image from its four levels, (h, w, dim) each, finest first."""
    stride4, stride8, stride16, stride32 = (level.permute(2, 0, 1)[None] for level in levels)
    return Features(stride4, stride8, stride16 + F.interpolate(stride32, scale_factor=2.0, mode="nearest"))


def joined(images: list[Features]) -> Features:
    """The features of single images as those of a batch."""
    return images[0] if len(images) == 1 else Features(*map(torch.cat, zip(*images, strict=True)))


class CpuImageEncoder:
    """The packed weights of trunk, neck and skip convolutions; see ``Sam2Model.encode``."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        trunk = model.vision_encoder.backbone
        self.patches = trunk.patch_embed.projection
        self.runs = _runs([PackedBlock.pack(cast(HieraBlock, block), dtype) for block in trunk.blocks])
        self.stage_ends = trunk.stage_ends
        self.levels = pack_levels(model, dtype)

    def __call__(self, pixel_values: Tensor, positions: Tensor | None) -> Features:
        """(batch, 3, height, width), normalised float32, and the trunk's table of positions.

        Images run one by one, so a result does not depend on the rest of its batch.
        """
        assert positions is not None
        return joined([self._encode(pixels[None], positions[0]) for pixels in pixel_values])

    def _encode(self, pixels: Tensor, positions: Tensor) -> Features:
        padded = F.pad(pixels, (MARGIN,) * 4)
        map_hw = (pixels.shape[2] // STRIDE, pixels.shape[3] // STRIDE)

        def embed(part: Rectangle) -> Tensor:
            rows, columns = (slice(STRIDE * s.start, STRIDE * (s.stop - 1) + PATCH) for s in part)
            embedded = F.conv2d(padded[:, :, rows, columns], self.patches.weight, self.patches.bias, STRIDE)
            return embedded[0].permute(1, 2, 0) + positions[part]

        maps: list[Tensor] = []
        read: Callable[[Rectangle], Tensor] = embed
        for run in self.runs:
            out, map_hw = self._pass(run, read, map_hw, maps)
            read = partial(torch.Tensor.__getitem__, out)
        return decoder_features(maps)

    def _pass(
        self, run: Run, read: Callable[[Rectangle], Tensor], map_hw: SizeHW, maps: list[Tensor]
    ) -> tuple[Tensor, SizeHW]:
        """Pass a map (height, width, dim) through a run; levels of the neck that it reaches are added to ``maps``."""
        steps = _Steps(run, self.stage_ends, self.levels, map_hw)
        if run.is_global and not run.blocks[0].pools:
            whole = read((slice(0, map_hw[0]), slice(0, map_hw[1]))).flatten(0, 1)
            steps.attend_globally(whole)
        else:
            side = run.blocks[0].window or max(map_hw)
            for_each(lambda part: steps.pass_windows(part, read(part)), list(_rectangles(map_hw, side)))
        maps += steps.levels_of.values()
        return steps.out, (steps.out.shape[0], steps.out.shape[1])


class _Steps:
    """A run on one map: its results, written rectangle by rectangle."""

    def __init__(self, run: Run, stage_ends: list[int], levels: list[Linear], map_hw: SizeHW) -> None:
        self.run = run
        self.levels_of: dict[int, Tensor] = {}  # by block
        self.projections: dict[int, Linear] = {}
        shrink = 1
        for index, block in enumerate(run.blocks, run.first):
            shrink *= POOL if block.pools else 1
            size_hw = (map_hw[0] // shrink, map_hw[1] // shrink)
            if index in stage_ends:
                self.projections[index] = level = levels[stage_ends.index(index)]
                self.levels_of[index] = _float32(*size_hw, level.width)
        self.out = _float32(*size_hw, run.blocks[-1].out.width)

    def pass_windows(self, part: Rectangle, x: Tensor) -> None:
        """Pass a rectangle of windows through all blocks."""
        for index, block in enumerate(self.run.blocks, self.run.first):
            x = block.in_windows(x)
            if block.pools:
                rows, columns = (
                    slice(s.start // POOL, s.start // POOL + n) for s, n in zip(part, x.shape[:2], strict=True)
                )
                part = (rows, columns)
            if index in self.projections:
                self.levels_of[index][part] = self.projections[index](x)
        self.out[part] = x

    def attend_globally(self, x: Tensor) -> None:
        """Pass (h*w, dim) through a block with global attention."""
        (block,), index = self.run.blocks, self.run.first
        normed = x.new_empty(3, block.heads, len(x), block.qkv.width // 3 // block.heads, dtype=block.qkv.weight.dtype)

        def project(rows: slice) -> None:
            for to, part in zip(normed, block.project(layer_norm(block.norm1, x[rows])), strict=True):
                to[:, rows] = part.transpose(0, 1)

        def attend(rows: slice) -> None:
            q, k, v = normed[:, None]
            attended = attention(q[:, :, rows], k, v)[0].transpose(0, 1).flatten(1)
            y = block.add_mlp(x[rows] + block.out(attended))
            self.out.flatten(0, 1)[rows] = y
            if index in self.projections:
                self.levels_of[index].flatten(0, 1)[rows] = self.projections[index](y)

        blocks = row_blocks(len(x), QUERIES)
        for_each(project, blocks)
        for_each(attend, blocks)


def _float32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _rectangles(map_hw: SizeHW, window: int) -> Iterator[Rectangle]:
    """Rectangles of whole windows, those at the border cut off, that tile a map."""
    height, width = map_hw
    down, across = -(-height // window), -(-width // window)
    most = max(1, MOST_TOKENS // window**2)
    for_all_threads = max(down * across // (4 * num_threads()), -(-FEWEST_TOKENS // window**2))
    parts = -(-across // max(1, min(most, for_all_threads)))
    edges = [min(width, across * i // parts * window) for i in range(parts)] + [width]
    for top in range(0, height, window):
        for left, right in zip(edges[:-1], edges[1:], strict=True):
            yield slice(top, min(height, top + window)), slice(left, right)
