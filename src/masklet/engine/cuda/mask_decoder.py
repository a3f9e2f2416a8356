"""The mask decoder with few operators: all that reads one input is one product, and all heads are one batch.

Each object's image map has the dtype of the products. Masks are drawn cell by cell: a 2x2 transposed convolution of
stride 2 is one matrix product for each cell.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.engine.cuda.constants import BySize
from masklet.engine.cuda.fused import add_norm, draw_masks
from masklet.engine.cuda.products import Affine, Norm, Product, affine
from masklet.model.layers import FeedForward, join_heads, split_heads
from masklet.model.mask_decoder import (
    IOU_TOKEN,
    MASK_TOKENS,
    NUM_MASK_TOKENS,
    OBJECT_TOKEN,
    Attention,
    TwoWayAttentionBlock,
)
from masklet.model.sam2 import Sam2Model


class Heads:
    """Perceptrons that read a token each, in one batch: the hypernetworks, the predicted IoU and the object score."""

    def __init__(self, heads: list[FeedForward], dtype: torch.dtype) -> None:
        layers = [[affine(layer) for layer in (head.proj_in, *head.layers, head.proj_out)] for head in heads]
        self.layers = []
        for same_depth in zip(*layers, strict=True):
            width = max(len(bias) for _, bias in same_depth)
            weights = [F.pad(weight, (0, 0, 0, width - len(weight))).T for weight, _ in same_depth]
            biases = [F.pad(bias, (0, width - len(bias)))[None] for _, bias in same_depth]
            self.layers.append((torch.stack(weights).to(dtype), torch.stack(biases).to(dtype)))

    def __call__(self, tokens: Tensor) -> Tensor:
        """(objects, heads, dim) to (heads, objects, the widest output)."""
        x = tokens.transpose(0, 1).to(self.layers[0][0].dtype)
        for number, (weight, bias) in enumerate(self.layers):
            x = torch.baddbmm(bias, F.relu(x) if number else x, weight)
        return x


class Layer:
    """The packed weights of a ``TwoWayAttentionBlock``."""

    def __init__(self, block: TwoWayAttentionBlock, dtype: torch.dtype) -> None:
        self.is_first = block.is_first
        self.dtype = dtype
        own, to_image, to_tokens = (
            block.self_attn,
            block.cross_attn_token_to_image,
            block.cross_attn_image_to_token,
        )
        self.own_heads, self.heads = own.heads, to_image.heads
        self.own_inputs = Product.pack([affine(own.q_proj), affine(own.k_proj)], dtype)
        self.own_value = Product.pack([affine(own.v_proj)], dtype)
        self.own_output = Product.pack([affine(own.o_proj)], dtype)
        self.query = Product.pack([affine(to_image.q_proj)], dtype)
        self.image_places = Product.pack([affine(to_image.k_proj), affine(to_tokens.q_proj)], dtype)
        self.image_value = Product.pack([affine(to_image.v_proj)], dtype)
        self.output = Product.pack([affine(to_image.o_proj)], dtype)
        self.mlp_in, self.mlp_out = (Product.pack([affine(part)], dtype) for part in _two_layers(block.mlp))
        self.token_key, self.token_value, self.image_output = (
            Product.pack([affine(part)], dtype) for part in (to_tokens.k_proj, to_tokens.v_proj, to_tokens.o_proj)
        )
        self.norms = [Norm.pack(norm) for norm in (block.layer_norm1, block.layer_norm2, block.layer_norm3)]
        self.image_norm = Norm.pack(block.layer_norm4)

    def __call__(
        self, tokens: Tensor, image: Tensor, token_pos: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (objects, tokens, dim), float32, and the image (objects or 1, h*w, dim) to those of each object."""
        tokens = self.norms[0](self._attend_to_tokens(tokens, token_pos, mask))
        key, query = self.image_places(image + positions).chunk(2, -1)
        read = _attend(self.query(tokens + token_pos), key, self.image_value(image), self.heads)
        tokens = self.norms[1](tokens + self.output(read))
        tokens = self.norms[2](tokens + self.mlp_out(F.relu(self.mlp_in(tokens))))
        key, value = self.token_key(tokens + token_pos), self.token_value(tokens)
        read = _attend(query, key, value, self.heads, mask)
        return tokens, add_norm(self.image_output(read), image, self.image_norm)

    def _attend_to_tokens(self, tokens: Tensor, token_pos: Tensor, mask: Tensor | None) -> Tensor:
        # In the first layer the tokens are still their own positions: none is added, and there is no residual.
        q, k = self.own_inputs(tokens if self.is_first else tokens + token_pos).chunk(2, -1)
        attended = self.own_output(_attend(q, k, self.own_value(tokens), self.own_heads, mask))
        return attended if self.is_first else tokens + attended


class CudaMaskDecoder:
    """The packed weights of a mask decoder of plain layers, and of the projection to object pointers."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        decoder = model.mask_decoder
        transformer = decoder.transformer
        self.dtype = dtype
        self.own_tokens = decoder.own_tokens.detach().float()
        self.layers = [Layer(cast(TwoWayAttentionBlock, block), dtype) for block in transformer.layers]
        final: Attention = transformer.final_attn_token_to_image
        self.heads = final.heads
        self.query, self.key, self.value, self.output = (
            Product.pack([affine(part)], dtype) for part in (final.q_proj, final.k_proj, final.v_proj, final.o_proj)
        )
        self.norm = Norm.pack(transformer.layer_norm_final_attn)
        self.upscale1 = Product.pack([_by_part(decoder.upscale_conv1)], dtype)
        self.upscale2 = Product.pack([_by_part(decoder.upscale_conv2)], dtype)
        self.upscale_norm = Norm.pack(decoder.upscale_layer_norm)
        hypernetworks = [cast(FeedForward, mlp) for mlp in decoder.output_hypernetworks_mlps]
        self.token_heads = Heads([decoder.pred_obj_score_head, decoder.iou_prediction_head, *hypernetworks], dtype)
        self.pointer_layers: list[Product] = []
        if model.config.has_memory:
            mlp = model.object_pointer_proj
            self.pointer_layers = [
                Product.pack([affine(part)], dtype) for part in (mlp.proj_in, *mlp.layers, mlp.proj_out)
            ]
            self.no_pointer = model.no_object_pointer.detach().float()
        self.positions: BySize[Tensor] = BySize()
        """Positions (h*w, dim) of maps, in the type of products."""

    def __call__(
        self,
        positions: Tensor,
        image: Tensor,
        stride4: Tensor,
        stride8: Tensor,
        dense: Tensor,
        prompt_tokens: Tensor,
        is_padding: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Decode objects.

        Args:
            positions: (h*w, dim), in the type of products.
            image: (objects or 1, dim, h, w).
            stride4: (objects or 1, dim / 8, 4h, 4w), as in ``Features``.
            stride8: (objects or 1, dim / 4, 2h, 2w).
            dense: (objects or 1, dim, h or 1, w or 1), added to the image.
            prompt_tokens: (objects, tokens, dim).
            is_padding: (objects, tokens) bool.

        Returns:
            Of all four masks: logits (objects, 4, 4h, 4w), predicted IoU (objects, 4), object scores (objects, 1), mask
            tokens (objects, 4, dim) and, with memory, object pointers (objects, 4, dim); float32.
        """
        objects, own = len(prompt_tokens), len(self.own_tokens)
        token_pos = torch.cat([self.own_tokens.expand(objects, -1, -1), prompt_tokens], 1)
        mask = None if is_padding is None else ~F.pad(is_padding, (own, 0), value=False)[:, None, None]
        x = (image + dense).flatten(2).transpose(1, 2).to(self.dtype).contiguous()
        tokens = token_pos
        for layer in self.layers:
            tokens, x = layer(tokens, x, token_pos, positions, mask)
        read = _attend(self.query(tokens + token_pos), self.key(x + positions), self.value(x), self.heads)
        tokens = self.norm(tokens + self.output(read))
        heads = self.token_heads(tokens[:, :own])  # (heads, objects, widest output)
        logits = self._draw(x, stride4, stride8, heads[MASK_TOKENS])
        iou_scores = heads[IOU_TOKEN, :, :NUM_MASK_TOKENS].float().sigmoid()
        object_scores = heads[OBJECT_TOKEN, :, :1].float()
        mask_tokens = tokens[:, MASK_TOKENS]
        outputs = (logits, iou_scores, object_scores, mask_tokens)
        return (*outputs, self._pointers(mask_tokens, object_scores)) if self.pointer_layers else outputs

    def _draw(self, image: Tensor, stride4: Tensor, stride8: Tensor, weights: Tensor) -> Tensor:
        """Image (objects, h*w, dim) and mask weights (masks, objects, channels) to logits (objects, masks, 4h, 4w)."""
        h, w = stride4.shape[-2] // 4, stride4.shape[-1] // 4
        # The quadrants of each cell (down, across), and theirs.
        skip8 = stride8.unflatten(-1, (w, 2)).unflatten(-3, (h, 2)).permute(0, 2, 4, 3, 5, 1)
        skip4 = stride4.unflatten(-1, (w, 2, 2)).unflatten(-4, (h, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
        skip8, skip4 = (skip.to(self.dtype, memory_format=torch.contiguous_format) for skip in (skip8, skip4))
        x = self.upscale1(image).view(len(image), 4 * h * w, -1)
        x = add_norm(x, skip8.flatten(1, -2), self.upscale_norm, gelu=True)
        x = self.upscale2(x).view(len(x), h * w, 2, 2, 2, 2, -1)
        weights = weights[..., : x.shape[-1]].transpose(0, 1)  # (objects, masks, channels)
        return draw_masks(x, skip4.flatten(1, 2), weights, w)

    def _pointers(self, mask_tokens: Tensor, object_scores: Tensor) -> Tensor:
        x = mask_tokens.contiguous()
        for number, product in enumerate(self.pointer_layers):
            x = product(F.relu(x) if number else x)
        return torch.where(object_scores[..., None] > 0, x, self.no_pointer)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(objects or 1, queries, width) attends to (objects or 1, keys, width): (objects, queries, width)."""
    objects, queries = max(len(q), len(k)), q.shape[1]
    q, k, v = (split_heads(x, heads) for x in (q, k, v))  # (objects, heads, tokens, head_dim)
    if len(k) == 1 and objects > 1:
        # One image, many objects: their tokens are just more queries to it.
        assert mask is None
        q = q.transpose(0, 1).flatten(1, 2)[None]  # (1, heads, objects * queries, head_dim)
        read = F.scaled_dot_product_attention(q, k, v)[0].unflatten(1, (objects, queries)).transpose(0, 1)
    else:
        read = F.scaled_dot_product_attention(q.expand(objects, -1, -1, -1), k, v, attn_mask=mask)
    return join_heads(read)


def _two_layers(mlp: FeedForward) -> tuple[nn.Module, nn.Module]:
    assert not len(mlp.layers)
    return mlp.proj_in, mlp.proj_out


def _by_part(conv: nn.ConvTranspose2d) -> Affine:
    """A 2x2 transposed convolution as a product: (4 * dim_out, dim_in), ordered down, across, channel."""
    assert conv.bias is not None
    return conv.weight.detach().float().permute(2, 3, 1, 0).flatten(0, 2), conv.bias.detach().float().repeat(4)
