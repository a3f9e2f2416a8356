"""The mask decoder for many objects of one image, arranged for caches.

Cross-attention is folded: a score q . (W x) is (W^T q) . x, and a sum of projected values is the projection of the sum,
so a few tokens, once for each head, are projected instead of thousands of cells. Masks are drawn cell by cell: the
stride of a 2x2 transposed convolution is its size, so it is one matrix product, and the four parts of a cell stay side
by side until the logits are put in their places. The images of the objects are processed in chunks that fit in caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, repeat
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SizeHW
from masklet.engine.base import ConfidentMasks
from masklet.model.layers import join_heads, split_heads
from masklet.model.mask_decoder import (
    IOU_TOKEN,
    MASK_TOKENS,
    OBJECT_TOKEN,
    Attention,
    DecodedMasks,
    MaskDecoder,
    TwoWayAttentionBlock,
)
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEmbeddings

OBJECTS_PER_BATCH = 16
"""Reading the weights costs as much for one token as for a hundred."""
CHUNK_ELEMENTS = 2**22
"""Elements of the finest maps of a chunk of objects. Larger maps do not fit in the caches, and the allocator does not
reuse their memory; allocating it anew costs more than the arithmetic."""


@dataclass(frozen=True)
class Images:
    """The image's cells as updated for each object, in chunks of objects; at first one image that all objects share."""

    chunks: list[Tensor]  # (1, objects, h*w, dim)
    pos: Tensor  # (h*w, dim)
    chunk: int  # objects of a chunk
    is_folded: bool  # how the decoder attends
    is_shared: bool = False  # whether several objects still have the same image

    def split(self, tokens: Tensor) -> Iterable[Tensor]:
        """Split (1, objects, ...) into the chunks of objects."""
        return [tokens] if len(self.chunks) == 1 else tokens.split(self.chunk, dim=1)


class CpuMaskDecoder:
    """The packed weights of a ``MaskDecoder`` of plain layers."""

    def __init__(self, decoder: MaskDecoder) -> None:
        self.decoder = decoder
        self.own_tokens = decoder.own_tokens.detach()
        transformer = decoder.transformer
        self.blocks = [CpuTwoWayBlock(cast(TwoWayAttentionBlock, block)) for block in transformer.layers]
        self.final_attention = TokensToImage(transformer.final_attn_token_to_image)
        self.upscaling = CellUpscaling(decoder)

    def decode(
        self, features: Features, image_pos: Tensor, prompts: PromptEmbeddings, *, multimask: bool | None
    ) -> DecodedMasks:
        """See ``MaskDecoder.forward``. Images run one by one; no result depends on the other objects, to the bit."""
        images = []
        fine = zip(features.stride4.split(1), features.stride8.split(1), strict=True)
        skips_of_images = [self.upscaling.skip_maps(*maps) for maps in fine]  # one, where objects share an image
        for number, skips in zip(range(len(features.stride16)), cycle(skips_of_images), strict=False):
            one = slice(number, number + 1)
            decoded = [
                self._decode(features.stride16[one], image_pos, batch, skips)
                for batch in _batches(_of_image(prompts, number))
            ]
            images.append(_concatenate(decoded, dim=1))
        return self.decoder.select(_concatenate(images, dim=0), multimask)

    def decode_confident(
        self, features: Features, image_pos: Tensor, prompts: PromptEmbeddings, iou_threshold: float
    ) -> ConfidentMasks:
        """See ``Engine.decode_confident``.

        The IoU is predicted before the mask, by a token of its own: objects without a confident candidate skip the
        final attention of the other tokens, and their masks are not drawn.
        """
        h, w = features.map_hw
        skips = self.upscaling.skip_maps(features.stride4, features.stride8)
        logits, iou_scores = [features.stride4.new_empty(0, 4 * h, 4 * w)], [features.stride4.new_empty(0)]
        owners = [torch.empty(0, dtype=torch.long)]
        for start, batch in enumerate(_batches(prompts)):
            tokens, token_pos, images = self._attend(features.stride16, image_pos, batch)
            of_iou = self._finish(tokens[:, :, [IOU_TOKEN]], token_pos[:, :, [IOU_TOKEN]], images)
            candidates = self.decoder.iou_prediction_head(of_iou[0, :, 0]).sigmoid()[:, 1:]  # (objects, masks)
            is_confident = candidates > iou_threshold
            iou_scores.append(candidates[is_confident])
            owners.append(start * OBJECTS_PER_BATCH + is_confident.nonzero()[:, 0])
            parts = (x.split(images.chunk) for x in (tokens[0], token_pos[0], is_confident))
            for cells, own, own_pos, confident in zip(images.chunks, *parts, strict=True):
                if (is_drawn := confident.any(1)).any():
                    chunk = Images([cells[:, is_drawn]], image_pos, images.chunk, images.is_folded)
                    chosen = (None, is_drawn, MASK_TOKENS)
                    mask_tokens = self._finish(own[chosen], own_pos[chosen], chunk)
                    weights = self.decoder.mask_weights(mask_tokens)[:, :, 1:]
                    logits.append(self.upscaling(chunk.chunks[0], weights, skips)[0][confident[is_drawn]])
        return ConfidentMasks(torch.cat(logits), torch.cat(iou_scores), torch.cat(owners))

    def _decode(self, image: Tensor, image_pos: Tensor, prompts: PromptEmbeddings, skips: SkipMaps) -> DecodedMasks:
        """A batch of objects of one image, all four masks of each."""
        tokens, token_pos, images = self._attend(image, image_pos, prompts)
        own = slice(0, MASK_TOKENS.stop)
        tokens = self._finish(tokens[:, :, own], token_pos[:, :, own], images)
        mask_tokens = tokens[:, :, MASK_TOKENS]
        weights = self.decoder.mask_weights(mask_tokens).split(images.chunk, dim=1)
        logits = [self.upscaling(*pair, skips) for pair in zip(images.chunks, weights, strict=True)]
        return DecodedMasks(
            _cat(logits, dim=1),
            self.decoder.iou_prediction_head(tokens[:, :, IOU_TOKEN]).sigmoid(),
            self.decoder.pred_obj_score_head(tokens[:, :, OBJECT_TOKEN]),
            mask_tokens,
        )

    def _attend(self, image: Tensor, image_pos: Tensor, prompts: PromptEmbeddings) -> tuple[Tensor, Tensor, Images]:
        """The two-way blocks: tokens (1, objects, tokens, dim), their positions, and the images."""
        own_tokens = self.own_tokens.expand(*prompts.tokens.shape[:2], -1, -1)
        token_pos = torch.cat([own_tokens, prompts.tokens], dim=2)
        is_padding = None
        if prompts.is_padding is not None:
            is_padding = F.pad(prompts.is_padding, (own_tokens.shape[2], 0), value=False)
        map_hw = (image.shape[-2], image.shape[-1])
        chunk = max(1, CHUNK_ELEMENTS // (math.prod(map_hw) * 16 * self.upscaling.finest_dim))
        # With more tokens, folding costs more than it saves.
        is_folded = token_pos.shape[2] <= 2 * self.final_attention.head_dim
        cells = (image[:, None] + prompts.dense).flatten(3).transpose(2, 3).contiguous()
        is_shared = cells.shape[1] == 1 and token_pos.shape[1] > 1
        images = Images([*cells.split(chunk, dim=1)], image_pos, chunk, is_folded, is_shared)
        tokens = token_pos
        for block in self.blocks:
            tokens, images = block(tokens, token_pos, images, is_padding)
        return tokens, token_pos, images

    def _finish(self, tokens: Tensor, token_pos: Tensor, images: Images) -> Tensor:
        """The final attention, for the given tokens only."""
        tokens = tokens + self.final_attention(tokens + token_pos, images)
        return self.decoder.transformer.layer_norm_final_attn(tokens)


class CpuTwoWayBlock:
    """See ``TwoWayAttentionBlock``."""

    def __init__(self, block: TwoWayAttentionBlock) -> None:
        self.block = block
        self.tokens_to_image = TokensToImage(block.cross_attn_token_to_image)
        self.image_to_tokens = ImageToTokens(block.cross_attn_image_to_token)

    def __call__(
        self, tokens: Tensor, token_pos: Tensor, images: Images, is_padding: Tensor | None
    ) -> tuple[Tensor, Images]:
        """Tokens (1, objects, tokens, dim) and images after they have attended to each other."""
        block = self.block
        if block.is_first:
            tokens = block.self_attn(tokens, tokens, tokens, is_padding)
        else:
            q = tokens + token_pos
            tokens = tokens + block.self_attn(q, q, tokens, is_padding)
        tokens = block.layer_norm1(tokens)
        tokens = block.layer_norm2(tokens + self.tokens_to_image(tokens + token_pos, images))
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        updates = self.image_to_tokens(images, tokens + token_pos, tokens, is_padding)
        before = repeat(images.chunks[0]) if images.is_shared else images.chunks
        chunks = [block.layer_norm4(chunk + update) for chunk, update in zip(before, updates, strict=False)]
        return tokens, Images(chunks, images.pos, images.chunk, images.is_folded)


class TokensToImage:
    """Tokens attend to the cells of the image."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.heads = attention.heads
        self.head_dim = attention.q_proj.out_features // attention.heads
        self.from_keys, self.from_values = (
            project.weight.detach().unflatten(0, (self.heads, self.head_dim))
            for project in (attention.k_proj, attention.v_proj)
        )  # (heads, head_dim, dim)

    def __call__(self, tokens: Tensor, images: Images) -> Tensor:
        """(1, objects, tokens, dim) to the same."""
        pairs = zip(images.split(tokens), images.chunks, strict=True)
        return _cat([self._read(own, cells, images) for own, cells in pairs], dim=1)

    def _read(self, tokens: Tensor, cells: Tensor, images: Images) -> Tensor:
        with_pos = cells + images.pos
        if not images.is_folded or images.is_shared:  # a shared image is projected once for all anyway
            return self.attention(tokens, with_pos, cells)
        q = split_heads(self.attention.q_proj(tokens), self.heads)  # (1, objects, heads, tokens, head_dim)
        count = q.shape[3]
        # The keys' bias adds the same to all scores of a query, which the softmax ignores.
        scores = (q * self.head_dim**-0.5 @ self.from_keys).flatten(2, 3) @ with_pos.transpose(2, 3)
        weights = scores.softmax(-1)  # (1, objects, heads * tokens, h*w)
        sums = (weights @ cells).unflatten(2, (self.heads, count))  # (1, objects, heads, tokens, dim)
        values = sums @ self.from_values.transpose(1, 2)  # the weights sum to one, so the bias can be added after
        return self.attention.o_proj(join_heads(values) + self.attention.v_proj.bias)


class ImageToTokens:
    """Cells of the image attend to the tokens."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.heads = heads = attention.heads
        self.head_dim = attention.q_proj.out_features // heads
        self.to_image = attention.o_proj.weight.detach().unflatten(1, (heads, -1)).permute(1, 2, 0).contiguous()
        self.from_queries = attention.q_proj.weight.detach().unflatten(0, (heads, -1))  # (heads, head_dim, dim)
        self.query_bias = attention.q_proj.bias.detach().unflatten(0, (heads, -1, 1))  # (heads, head_dim, 1)

    def __call__(self, images: Images, k: Tensor, v: Tensor, is_padding: Tensor | None) -> Iterator[Tensor]:
        """The update of each chunk of images, from tokens ``k`` and ``v``, (1, objects, tokens, dim)."""
        attention = self.attention
        padding = repeat(None) if is_padding is None else is_padding.split(images.chunk, dim=1)
        if not images.is_folded:
            tokens = (x.split(images.chunk, dim=1) for x in (k, v))
            chunks = repeat(images.chunks[0]) if images.is_shared else images.chunks
            for cells, keys, values, is_void in zip(chunks, *tokens, padding, strict=False):
                yield attention(cells + images.pos, keys, values, is_void)
            return
        k, v = split_heads(attention.k_proj(k), self.heads), split_heads(attention.v_proj(v), self.heads)
        # Each head's weights sum to one, so a share of the output's bias can be part of its values.
        values = (v @ self.to_image + attention.o_proj.bias / self.heads).flatten(2, 3).split(images.chunk, dim=1)
        for scores, own, is_void in zip(self._scores(images, k), values, padding, strict=False):
            if is_void is not None:
                scores = scores.masked_fill(is_void[:, :, None, :, None], -torch.inf)
            yield scores.softmax(3).flatten(2, 3).transpose(2, 3) @ own

    def _scores(self, images: Images, k: Tensor) -> Iterator[Tensor]:
        """(1, objects, heads, tokens, h*w) of each chunk, for keys (1, objects, heads, tokens, head_dim)."""
        objects, heads, count = k.shape[1:4]
        k = k * self.head_dim**-0.5
        if images.is_shared:
            q = split_heads(self.attention.q_proj(images.chunks[0][:, 0] + images.pos), heads)
            scores = k.transpose(1, 2).flatten(2, 3) @ q.transpose(2, 3)  # (1, heads, objects * tokens, h*w)
            yield from scores.unflatten(2, (objects, count)).transpose(1, 2).split(images.chunk, dim=1)
            return
        folded, bias = (
            x.flatten(2, 3).split(images.chunk, dim=1) for x in (k @ self.from_queries, k @ self.query_bias)
        )
        for cells, keys, offsets in zip(images.chunks, folded, bias, strict=True):
            yield (keys @ (cells + images.pos).transpose(2, 3) + offsets).unflatten(2, (heads, count))


@dataclass(frozen=True)
class SkipMaps:
    """The finer features of one image beside the cells that they lie in, with the biases of the convolutions."""

    stride4: Tensor  # (1, 1, h*w, 4, 4, dim / 8)
    stride8: Tensor  # (1, 1, h*w, 4, dim / 4)
    map_hw: SizeHW


class CellUpscaling:
    """The decoder's upscaling and the product with the mask weights, for each cell by itself."""

    def __init__(self, decoder: MaskDecoder) -> None:
        self.norm = decoder.upscale_layer_norm
        self.conv1, self.conv2 = _by_part(decoder.upscale_conv1), _by_part(decoder.upscale_conv2)
        self.bias1, self.bias2 = (_bias(conv) for conv in (decoder.upscale_conv1, decoder.upscale_conv2))
        self.finest_dim = decoder.conv_s0.out_channels

    def skip_maps(self, stride4: Tensor, stride8: Tensor) -> SkipMaps:
        """Arrange (1, dim / 8, 4h, 4w) and (1, dim / 4, 2h, 2w) by cell."""
        map_hw = (stride8.shape[-2] // 2, stride8.shape[-1] // 2)
        fine = _by_cell(stride4, map_hw) + self.bias2
        return SkipMaps(fine[:, None], (_by_cell(stride8, map_hw) + self.bias1)[:, None], map_hw)

    def __call__(self, cells: Tensor, mask_weights: Tensor, skips: SkipMaps) -> Tensor:
        """(1, objects, h*w, dim) and (1, objects, masks, dim / 8) to logits (1, objects, masks, 4h, 4w)."""
        h, w = skips.map_hw
        norm = self.norm
        x = (cells @ self.conv1).unflatten(-1, skips.stride8.shape[3:])
        x += skips.stride8  # (1, objects, h*w, 4, dim / 4)
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = (x @ self.conv2).unflatten(-1, skips.stride4.shape[4:])
        x += skips.stride4  # (1, objects, h*w, 4, 4, dim / 8)
        logits = F.gelu(x).flatten(2, 4) @ mask_weights.transpose(2, 3)  # (1, objects, h*w * 16, masks)
        # (1, objects, h, w, 2, 2, 2, 2, masks): the pairs are (down, across) at stride 8, then at stride 4.
        logits = logits.unflatten(2, (h, w, 2, 2, 2, 2)).permute(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return logits.reshape(*mask_weights.shape[:3], 4 * h, 4 * w)


def _of_image(prompts: PromptEmbeddings, number: int) -> PromptEmbeddings:
    """The prompts of one image, as a batch of 1."""
    one = slice(number, number + 1)
    return PromptEmbeddings(
        prompts.tokens[one],
        None if prompts.is_padding is None else prompts.is_padding[one],
        prompts.dense if len(prompts.dense) == 1 else prompts.dense[one],
    )


def _batches(prompts: PromptEmbeddings) -> Iterator[PromptEmbeddings]:
    """The objects of one image, in batches."""
    for start in range(0, prompts.tokens.shape[1], OBJECTS_PER_BATCH):
        chosen = slice(start, start + OBJECTS_PER_BATCH)
        yield PromptEmbeddings(
            prompts.tokens[:, chosen],
            None if prompts.is_padding is None else prompts.is_padding[:, chosen],
            prompts.dense if prompts.dense.shape[1] == 1 else prompts.dense[:, chosen],
        )


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _concatenate(outputs: list[DecodedMasks], dim: int) -> DecodedMasks:
    return DecodedMasks(
        _cat([one.logits for one in outputs], dim),
        _cat([one.iou_scores for one in outputs], dim),
        _cat([one.object_scores for one in outputs], dim),
        _cat([one.mask_tokens for one in outputs], dim),
    )


def _bias(conv: nn.ConvTranspose2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def _by_part(conv: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 transposed convolution's weight as (dim_in, 4 * dim_out): down, across, channel."""
    return conv.weight.detach().permute(0, 2, 3, 1).flatten(1)


def _by_cell(finer: Tensor, map_hw: SizeHW) -> Tensor:
    """(batch, dim, h * 2**n, w * 2**n) to (batch, h*w, 4 [, 4], dim): every part beside the coarse cell it lies in."""
    h, w = map_hw
    if finer.shape[-2] == 2 * h:
        x = finer.unflatten(-1, (w, 2)).unflatten(-3, (h, 2))  # (batch, dim, h, 2, w, 2)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    x = finer.unflatten(-1, (w, 2, 2)).unflatten(-4, (h, 2, 2))  # (batch, dim, h, 2, 2, w, 2, 2)
    return x.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4).flatten(1, 2)
