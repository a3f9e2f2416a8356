"""Mask decoder: tokens and the image embedding look at each other, then the tokens draw masks.

Source: SAM (arXiv 2304.02643), appendix A, "lightweight mask decoder"; SAM 2 (2408.00714), section 4 and appendix C.

All objects of a picture share its embedding. The image side keeps an ``objects`` axis of length 1 for as long as it is
the same for every object, so that what is common is computed once and never copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import NUM_MULTIMASK_OUTPUTS
from masklet.model.layers import FeedForward, LayerNorm2d, join_heads, split_heads
from masklet.model.prompt_encoder import PromptEmbeddings

NUM_LAYERS = 2
NARROWING = 2
"""Cross-attention works at this fraction of the width."""
NUM_MASK_TOKENS = NUM_MULTIMASK_OUTPUTS + 1
STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


@dataclass(frozen=True)
class DecodedMasks:
    """What the decoder says of every object."""

    logits: Tensor  # (batch, objects, masks, 4h, 4w)
    ious: Tensor  # (batch, objects, masks), 0 to 1
    object_scores: Tensor  # (batch, objects, 1) logits: above 0 the object is in the picture
    mask_tokens: Tensor  # (batch, objects, masks or 1, dim): what object pointers are made of


class Attention(nn.Module):
    """Multi-head attention, in a projection that may be narrower than the embeddings."""

    def __init__(self, dim: int, heads: int, narrowing: int = 1) -> None:
        super().__init__()
        inner = dim // narrowing
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.o_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """(batch, objects, queries, dim) attends to (batch, objects, keys, dim).

        Either side may have one object where the other has many. ``is_padding``: (batch, objects, keys) bool, keys
        that nobody attends to.
        """
        q, k, v = (
            split_heads(project(x), self.heads)  # (batch, objects, heads, tokens, head_dim)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.o_proj(join_heads(_attend(q, k, v, is_padding)))


def _attend(q: Tensor, k: Tensor, v: Tensor, is_padding: Tensor | None) -> Tensor:
    objects, queries = q.shape[1], q.shape[3]
    if k.shape[1] == 1 and objects > 1:
        # One image, many objects: their tokens are just more queries to it.
        assert is_padding is None
        q = q.transpose(1, 2).flatten(2, 3)  # (batch, heads, objects * queries, head_dim)
        out = F.scaled_dot_product_attention(q, k[:, 0], v[:, 0])
        return out.unflatten(2, (objects, queries)).transpose(1, 2)
    batch, objects = k.shape[:2]
    mask = None if is_padding is None else ~is_padding.flatten(0, 1)[:, None, None]
    q = q.expand(-1, objects, -1, -1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(q, k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    return out.unflatten(0, (batch, objects))


class TwoWayAttentionBlock(nn.Module):
    """Tokens look at each other and at the image, then the image looks at the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(dim, heads)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, NARROWING)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_dim, dim, num_layers=2)
        self.layer_norm3 = nn.LayerNorm(dim)
        self.layer_norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, NARROWING)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pos: Tensor, image_pos: Tensor, is_padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(batch, objects, tokens, dim) and (batch, objects or 1, h*w, dim), with their positions; both come back."""
        if self.is_first:
            # The tokens are their own positions yet, so none is added and nothing is kept.
            tokens = self.self_attn(tokens, tokens, tokens, is_padding)
        else:
            placed = tokens + token_pos
            tokens = tokens + self.self_attn(placed, placed, tokens, is_padding)
        tokens = self.layer_norm1(tokens)
        tokens = self.layer_norm2(tokens + self.cross_attn_token_to_image(tokens + token_pos, image + image_pos, image))
        tokens = self.layer_norm3(tokens + self.mlp(tokens))
        image = self.layer_norm4(
            image + self.cross_attn_image_to_token(image + image_pos, tokens + token_pos, tokens, is_padding)
        )
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(dim, heads, mlp_dim, is_first=index == 0) for index in range(NUM_LAYERS)
        )
        self.final_attn_token_to_image = Attention(dim, heads, NARROWING)
        self.layer_norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pos: Tensor, is_padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As in a block; the tokens given are also their positions."""
        token_pos = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pos, image_pos, is_padding)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pos, image + image_pos, image)
        return self.layer_norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Prompts and an image embedding to masks, their predicted IoU and whether the object is there."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.transformer = TwoWayTransformer(dim, heads, mlp_dim)
        self.upscale_conv1 = nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2)
        self.upscale_conv2 = nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2)
        self.upscale_layer_norm = LayerNorm2d(dim // 4)
        self.output_hypernetworks_mlps = nn.ModuleList(
            FeedForward(dim, dim, dim // 8, num_layers=3) for _ in range(NUM_MASK_TOKENS)
        )
        self.iou_prediction_head = FeedForward(dim, dim, NUM_MASK_TOKENS, num_layers=3)
        self.pred_obj_score_head = FeedForward(dim, dim, 1, num_layers=3)
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)

    def forward(
        self,
        image: Tensor,
        image_pos: Tensor,
        prompts: PromptEmbeddings,
        fine_maps: tuple[Tensor, Tensor],
        *,
        multimask: bool,
    ) -> DecodedMasks:
        """Decode every object of every picture.

        Args:
            image: (batch, dim, h, w) image embedding; objects that were conditioned on memory are a batch each.
            image_pos: (h * w, dim) Fourier positions of its cells.
            prompts: (batch, objects, ...) as the prompt encoder made them.
            fine_maps: (batch, dim / 8, 4h, 4w) and (batch, dim / 4, 2h, 2w).
            multimask: Three candidates instead of one mask.
        """
        objects = prompts.tokens.shape[1]
        own_tokens = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(*prompts.tokens.shape[:2], -1, -1), prompts.tokens], dim=2)
        is_padding = None
        if prompts.is_padding is not None:
            is_padding = F.pad(prompts.is_padding, (len(own_tokens), 0), value=False)
        prompted = image[:, None] + prompts.dense  # (batch, objects or 1, dim, h, w)
        tokens, cells = self.transformer(tokens, prompted.flatten(3).transpose(2, 3), image_pos, is_padding)

        mask_tokens = tokens[:, :, 2 : 2 + NUM_MASK_TOKENS]
        cells = cells.expand(-1, objects, -1, -1)
        kernels = torch.stack(
            [mlp(mask_tokens[:, :, index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=2
        )  # (batch, objects, masks, dim / 8)
        logits = self.draw(cells, kernels, fine_maps)
        ious = self.iou_prediction_head(tokens[:, :, 1]).sigmoid()
        object_scores = self.pred_obj_score_head(tokens[:, :, 0])
        if multimask:
            return DecodedMasks(logits[:, :, 1:], ious[:, :, 1:], object_scores, mask_tokens[:, :, 1:])
        if not self.training:
            logits, ious = _replace_unstable(logits, ious)
        return DecodedMasks(logits[:, :, :1], ious[:, :, :1], object_scores, mask_tokens[:, :, :1])

    def draw(self, cells: Tensor, kernels: Tensor, fine_maps: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, objects, h*w, dim) and kernels (batch, objects, masks, dim / 8) to logits (batch, objects, masks, 4h, 4w)."""
        stride4, stride8 = fine_maps
        batch, objects = cells.shape[:2]
        h, w = stride8.shape[-2] // 2, stride8.shape[-1] // 2
        x = cells.transpose(2, 3).flatten(0, 1).unflatten(-1, (h, w))
        x = self.upscale_conv1(x).unflatten(0, (batch, objects)) + stride8[:, None]
        x = F.gelu(self.upscale_layer_norm(x.flatten(0, 1)))
        x = self.upscale_conv2(x).unflatten(0, (batch, objects)) + stride4[:, None]
        x = F.gelu(x)  # (batch, objects, dim / 8, 4h, 4w)
        return (kernels @ x.flatten(3)).unflatten(-1, x.shape[-2:])


def _replace_unstable(logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """Where the single mask would change much with its cut-off, the best of the three takes its place.

    Source: SAM 2, appendix C ("dynamic multimask").
    """
    single = logits[:, :, 0].flatten(-2)
    strict = (single > STABILITY_DELTA).sum(-1, dtype=torch.float32)
    loose = (single > -STABILITY_DELTA).sum(-1, dtype=torch.float32)
    is_stable = torch.where(loose > 0, strict / loose.clamp(min=1), 1.0) >= STABILITY_THRESHOLD  # (batch, objects)
    choice = torch.where(is_stable, 0, 1 + ious[:, :, 1:].argmax(-1))[..., None]  # (batch, objects, 1)
    pixels = choice[..., None, None].expand(-1, -1, -1, *logits.shape[-2:])
    return logits.gather(2, pixels), ious.gather(2, choice)
