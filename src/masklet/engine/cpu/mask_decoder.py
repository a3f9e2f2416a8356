"""The mask decoder for many objects of one image, arranged for caches.

Cross-attention is folded: a score q . (W x) is (W^T q) . x, and a sum of projected values is the projection of the sum,
so a few tokens, once for each head, are projected instead of thousands of cells. Objects run in small batches, one a
thread.

What reads or writes thousands of cells has its products in the engine's precision. Tokens stay in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.engine.base import ConfidentMasks
from masklet.engine.cpu.products import Linear, attention, layer_norm
from masklet.engine.cpu.threads import for_each
from masklet.engine.cpu.upscaling import CellUpscaling, SkipMaps
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

MOST_OBJECTS = 16
"""Reading the weights costs as much for one token as for a hundred."""
BATCH_CELLS = 2**13
"""Cells of all objects of a batch. More do not fit in the caches, and the allocator does not reuse their memory;
allocating it again costs more than the arithmetic."""


@dataclass(frozen=True)
class Images:
    """The image's cells as updated for each object; at first one image that all objects share."""

    cells: Tensor  # (objects or 1, h*w, dim) float32
    narrow: Tensor  # the same in the precision of products
    with_pos: Tensor  # with positions added, in the precision of products

    @classmethod
    def make(cls, cells: Tensor, pos: Tensor, dtype: torch.dtype) -> Images:
        """From (objects or 1, h*w, dim) and positions (h*w, dim)."""
        return cls(cells, cells.to(dtype), (cells + pos).to(dtype))

    def __getitem__(self, objects: Tensor) -> Images:
        """The images of the objects that a mask (objects,) chooses."""
        return Images(self.cells[objects], self.narrow[objects], self.with_pos[objects])


@dataclass(frozen=True)
class SharedImage:
    """What the first two-way block projects of an image that several objects share, once for all of them."""

    keys: Tensor  # (1, heads, h*w, head_dim), as ``values``
    values: Tensor
    queries: Tensor  # (heads, h*w, head_dim)


@dataclass(frozen=True)
class Objects:
    """A batch of objects of one image as they enter the decoder."""

    tokens: Tensor  # (objects, tokens, dim), the decoder's own first
    is_padding: Tensor | None  # (objects, tokens) bool
    images: Images
    shared: SharedImage | None
    pos: Tensor  # (h*w, dim)


class CpuMaskDecoder:
    """The packed weights of a ``MaskDecoder`` of plain layers."""

    def __init__(self, decoder: MaskDecoder, dtype: torch.dtype) -> None:
        self.decoder = decoder
        self.dtype = dtype
        self.own_tokens = decoder.own_tokens.detach()
        transformer = decoder.transformer
        self.blocks = [CpuTwoWayBlock(cast(TwoWayAttentionBlock, block), dtype) for block in transformer.layers]
        self.final_attention = TokensToImage(transformer.final_attn_token_to_image, dtype)
        self.upscaling = CellUpscaling(decoder, dtype)

    def decode(
        self, features: Features, image_pos: Tensor, prompts: PromptEmbeddings, *, multimask: bool | None
    ) -> DecodedMasks:
        """See ``MaskDecoder.forward``. Images run one by one; no result depends on the other objects, to the bit."""
        skips = self._skip_maps(features)
        batches = [
            (number, batch)
            for number in range(len(features.stride16))
            for batch in self._batches(features.stride16[number], image_pos, _of_image(prompts, number))
        ]
        decoded: list[DecodedMasks | None] = [None] * len(batches)

        def run(index: int) -> None:
            number, batch = batches[index]
            decoded[index] = self._decode(batch, skips[number % len(skips)])

        for_each(run, range(len(batches)))
        return self.decoder.select(_join(decoded, len(features.stride16)), multimask)

    def decode_confident(
        self, features: Features, image_pos: Tensor, prompts: PromptEmbeddings, iou_threshold: float
    ) -> ConfidentMasks:
        """See ``Engine.decode_confident``.

        The IoU is predicted before the mask, by a token of its own: objects without a confident candidate skip the
        final attention of the other tokens, and their masks are not drawn.
        """
        (skips,) = self._skip_maps(features)
        batches = list(self._batches(features.stride16[0], image_pos, prompts))
        found: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(batches)

        def run(index: int) -> None:
            found[index] = self._decode_confident(batches[index], skips, iou_threshold)

        for_each(run, range(len(batches)))
        h, w = features.map_hw
        like = features.stride4
        logits, scores, owners = [like.new_empty(0, 4 * h, 4 * w)], [like.new_empty(0)], [_indices(0)]
        start = 0
        for batch, own in zip(batches, found, strict=True):
            assert own is not None
            logits.append(own[0])
            scores.append(own[1])
            owners.append(start + own[2])
            start += len(batch.tokens)
        return ConfidentMasks(torch.cat(logits), torch.cat(scores), torch.cat(owners))

    def _decode_confident(self, batch: Objects, skips: SkipMaps, iou_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, predicted IoU and objects of the confident candidates of a batch."""
        tokens, images = self._attend(batch)
        of_iou = self._finish(tokens[:, [IOU_TOKEN]], batch.tokens[:, [IOU_TOKEN]], images)
        candidates = self.decoder.iou_prediction_head(of_iou[:, 0]).sigmoid()[:, 1:]  # (objects, masks)
        is_confident = candidates > iou_threshold
        is_drawn = is_confident.any(1)
        h, w = skips.map_hw
        if not is_drawn.any():
            return candidates.new_empty(0, 4 * h, 4 * w), candidates.new_empty(0), _indices(0)
        images = images if is_drawn.all() else images[is_drawn]
        mask_tokens = self._finish(tokens[is_drawn, MASK_TOKENS], batch.tokens[is_drawn, MASK_TOKENS], images)
        weights = self.decoder.mask_weights(mask_tokens[None])[0, :, 1:]
        logits = self.upscaling(images.narrow, weights, skips)[is_confident[is_drawn]]
        return logits, candidates[is_confident], is_confident.nonzero()[:, 0]

    def _decode(self, batch: Objects, skips: SkipMaps) -> DecodedMasks:
        """A batch of objects of one image, all four masks of each."""
        tokens, images = self._attend(batch)
        own = slice(0, MASK_TOKENS.stop)
        tokens = self._finish(tokens[:, own], batch.tokens[:, own], images)[None]
        mask_tokens = tokens[:, :, MASK_TOKENS]
        weights = self.decoder.mask_weights(mask_tokens)[0]
        return DecodedMasks(
            self.upscaling(images.narrow, weights, skips)[None],
            self.decoder.iou_prediction_head(tokens[:, :, IOU_TOKEN]).sigmoid(),
            self.decoder.pred_obj_score_head(tokens[:, :, OBJECT_TOKEN]),
            mask_tokens,
        )

    def _batches(self, image: Tensor, image_pos: Tensor, prompts: PromptEmbeddings) -> Iterator[Objects]:
        """The objects of one image (dim, h, w), in batches."""
        count, dense = prompts.tokens.shape[1], prompts.dense[0]
        tokens = torch.cat([self.own_tokens.expand(count, -1, -1), prompts.tokens[0]], dim=1)
        is_padding = None
        if prompts.is_padding is not None:
            is_padding = F.pad(prompts.is_padding[0], (len(self.own_tokens), 0), value=False)
        size = max(1, min(MOST_OBJECTS, BATCH_CELLS // math.prod(image.shape[1:])))
        shared_images = shared = None
        if len(dense) == 1:
            shared_images = self._images(image, dense, image_pos)
            shared = self.blocks[0].share(shared_images) if count > 1 else None
        for start in range(0, count, size):
            chosen = slice(start, start + size)
            images = shared_images or self._images(image, dense[chosen], image_pos)
            padding = None if is_padding is None else is_padding[chosen]
            yield Objects(tokens[chosen], padding, images, shared, image_pos)

    def _images(self, image: Tensor, dense: Tensor, pos: Tensor) -> Images:
        return Images.make((image + dense).flatten(2).transpose(1, 2).contiguous(), pos, self.dtype)

    def _attend(self, batch: Objects) -> tuple[Tensor, Images]:
        """The two-way blocks: tokens (objects, tokens, dim) and the images."""
        tokens, images, shared = batch.tokens, batch.images, batch.shared
        for block in self.blocks:
            tokens, images = block(tokens, images, batch, shared)
            shared = None
        return tokens, images

    def _finish(self, tokens: Tensor, token_pos: Tensor, images: Images) -> Tensor:
        """The final attention, for the given tokens only."""
        tokens = tokens + self.final_attention(tokens + token_pos, images)
        return self.decoder.transformer.layer_norm_final_attn(tokens)

    def _skip_maps(self, features: Features) -> list[SkipMaps]:
        """Maps of each image; one, where objects share an image."""
        fine = zip(features.stride4.split(1), features.stride8.split(1), strict=True)
        return [self.upscaling.skip_maps(*maps) for maps in fine]


class CpuTwoWayBlock:
    """See ``TwoWayAttentionBlock``."""

    def __init__(self, block: TwoWayAttentionBlock, dtype: torch.dtype) -> None:
        self.block = block
        self.dtype = dtype
        self.tokens_to_image = TokensToImage(block.cross_attn_token_to_image, dtype)
        self.image_to_tokens = ImageToTokens(block.cross_attn_image_to_token, dtype)

    def share(self, images: Images) -> SharedImage:
        """What all objects of one image have in common."""
        keys, values = self.tokens_to_image.share(images)
        return SharedImage(keys, values, self.image_to_tokens.share(images))

    def __call__(
        self, tokens: Tensor, images: Images, batch: Objects, shared: SharedImage | None
    ) -> tuple[Tensor, Images]:
        """Tokens (objects, tokens, dim) and images after they have attended to each other."""
        block, token_pos = self.block, batch.tokens
        padding = None if batch.is_padding is None else batch.is_padding[None]
        if block.is_first:
            tokens = block.self_attn(tokens[None], tokens[None], tokens[None], padding)[0]
        else:
            q = (tokens + token_pos)[None]
            tokens = tokens + block.self_attn(q, q, tokens[None], padding)[0]
        tokens = block.layer_norm1(tokens)
        tokens = block.layer_norm2(tokens + self.tokens_to_image(tokens + token_pos, images, shared))
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        update = self.image_to_tokens(images, tokens + token_pos, tokens, batch.is_padding, shared)
        cells = layer_norm(block.layer_norm4, images.cells + update)
        return tokens, Images.make(cells, batch.pos, self.dtype)


class TokensToImage:
    """Tokens attend to the cells of the image."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.attention = attention
        self.heads = attention.heads
        self.head_dim = attention.q_proj.out_features // attention.heads
        self.key, self.value = Linear.pack(attention.k_proj, dtype), Linear.pack(attention.v_proj, dtype)
        self.from_keys, self.from_values = (
            project.weight.detach().unflatten(0, (self.heads, self.head_dim))
            for project in (attention.k_proj, attention.v_proj)
        )  # (heads, head_dim, dim)

    def share(self, images: Images) -> tuple[Tensor, Tensor]:
        """Keys and values of one image: (1, heads, h*w, head_dim) each."""
        keys, values = self.key(images.with_pos), self.value(images.narrow)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def __call__(self, tokens: Tensor, images: Images, shared: SharedImage | None = None) -> Tensor:
        """(objects, tokens, dim) to the same."""
        objects, count = tokens.shape[:2]
        q = split_heads(self.attention.q_proj(tokens), self.heads)  # (objects, heads, tokens, head_dim)
        if shared is not None:
            # One image, many objects: their tokens are just more queries to it.
            q = q.transpose(0, 1).flatten(1, 2)[None].to(images.narrow.dtype)
            read = attention(q, shared.keys, shared.values)[0].unflatten(1, (objects, count)).transpose(0, 1)
            return self.attention.o_proj(join_heads(read.float()))
        if not _is_folded(count, self.head_dim):
            keys, values = (split_heads(x, self.heads) for x in (self.key(images.with_pos), self.value(images.narrow)))
            read = attention(q.to(keys.dtype), keys.expand(objects, -1, -1, -1), values.expand(objects, -1, -1, -1))
            return self.attention.o_proj(join_heads(read.float()))
        # The keys' bias adds the same to all scores of a query, which the softmax ignores.
        folded = (q * self.head_dim**-0.5 @ self.from_keys).flatten(1, 2).to(images.narrow.dtype)
        weights = (folded @ images.with_pos.transpose(1, 2)).softmax(-1)  # (objects, heads * tokens, h*w)
        sums = (weights @ images.narrow).float().unflatten(1, (self.heads, count))  # (objects, heads, tokens, dim)
        read = sums @ self.from_values.transpose(1, 2)  # the weights sum to one, so the bias can be added after
        return self.attention.o_proj(join_heads(read) + self.attention.v_proj.bias)


class ImageToTokens:
    """Cells of the image attend to the tokens."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.attention = attention
        self.dtype = dtype
        self.heads = heads = attention.heads
        self.head_dim = attention.q_proj.out_features // heads
        self.query, self.out = Linear.pack(attention.q_proj, dtype), Linear.pack(attention.o_proj, dtype)
        self.to_image = attention.o_proj.weight.detach().unflatten(1, (heads, -1)).permute(1, 2, 0).contiguous()
        self.from_queries = attention.q_proj.weight.detach().unflatten(0, (heads, -1))  # (heads, head_dim, dim)
        self.query_bias = attention.q_proj.bias.detach().unflatten(0, (heads, -1, 1))  # (heads, head_dim, 1)

    def share(self, images: Images) -> Tensor:
        """Queries of one image: (heads, h*w, head_dim)."""
        return split_heads(self.query(images.with_pos), self.heads)[0]

    def __call__(
        self, images: Images, k: Tensor, v: Tensor, is_padding: Tensor | None, shared: SharedImage | None
    ) -> Tensor:
        """The update of each object's image, (objects, h*w, dim), from tokens (objects, tokens, dim)."""
        attention = self.attention
        k, v = split_heads(attention.k_proj(k), self.heads), split_heads(attention.v_proj(v), self.heads)
        scores = self._scores(images, k * self.head_dim**-0.5, shared)  # (objects, heads, tokens, h*w)
        if is_padding is not None:
            scores = scores.masked_fill(is_padding[:, None, :, None], -torch.inf)
        weights = scores.softmax(2)
        if not _is_folded(k.shape[2], self.head_dim):
            read = weights.transpose(2, 3) @ v.to(self.dtype)  # (objects, heads, h*w, head_dim)
            return self.out(join_heads(read))
        # Each head's weights sum to one, so a share of the output's bias can be part of its values.
        values = (v @ self.to_image + attention.o_proj.bias / self.heads).flatten(1, 2).to(self.dtype)
        return weights.flatten(1, 2).transpose(1, 2) @ values

    def _scores(self, images: Images, k: Tensor, shared: SharedImage | None) -> Tensor:
        """(objects, heads, tokens, h*w) for keys (objects, heads, tokens, head_dim)."""
        objects, heads, count = k.shape[:3]
        if shared is not None:
            scores = k.transpose(0, 1).flatten(1, 2).to(self.dtype) @ shared.queries.transpose(1, 2)
            return scores.unflatten(1, (objects, count)).transpose(0, 1)
        if not _is_folded(count, self.head_dim):
            q = split_heads(self.query(images.with_pos), heads)  # (objects or 1, heads, h*w, head_dim)
            return k.to(self.dtype) @ q.transpose(2, 3)
        folded, bias = (x.flatten(1, 2).to(self.dtype) for x in (k @ self.from_queries, k @ self.query_bias))
        return (folded @ images.with_pos.transpose(1, 2) + bias).unflatten(1, (heads, count))


def _is_folded(tokens: int, head_dim: int) -> bool:
    """Whether folding saves more than it costs: every head has as many queries as there are tokens."""
    return tokens <= 2 * head_dim


def _of_image(prompts: PromptEmbeddings, number: int) -> PromptEmbeddings:
    """The prompts of one image, as a batch of 1."""
    one = slice(number, number + 1)
    return PromptEmbeddings(
        prompts.tokens[one],
        None if prompts.is_padding is None else prompts.is_padding[one],
        prompts.dense if len(prompts.dense) == 1 else prompts.dense[one],
    )


def _join(decoded: list[DecodedMasks | None], images: int) -> DecodedMasks:
    """The batches of objects, one image after another, as (images, objects, ...)."""
    whole = [batch for batch in decoded if batch is not None]
    joined = (
        torch.cat([getattr(batch, name) for batch in whole], dim=1)[0].unflatten(0, (images, -1))
        for name in ("logits", "iou_scores", "object_scores", "mask_tokens")
    )
    return DecodedMasks(*joined)


def _indices(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.long, device="cpu")
