"""Mask decoder: tokens and the image embedding attend to each other, then the mask tokens become masks.

Source: SAM (arXiv 2304.02643), appendix A, "lightweight mask decoder"; SAM 2 (2408.00714), section 4 and appendix C.

All objects of an image share its embedding. The image side keeps an ``objects`` axis of length 1 for as long as it is
the same for every object, so that what they share is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import NUM_MULTIMASK_OUTPUTS, Sam2MaskDecoderConfig
from masklet.model.layers import FeedForward, LayerNorm, LayerNorm2d, join_heads, split_heads
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEmbeddings

NUM_LAYERS = 2
CROSS_ATTENTION_NARROWING = 2
"""Cross-attention works at the width of the embeddings divided by this."""
NUM_MASK_TOKENS = NUM_MULTIMASK_OUTPUTS + 1
OBJECT_TOKEN, IOU_TOKEN, MASK_TOKENS = 0, 1, slice(2, 2 + NUM_MASK_TOKENS)
"""Indices of the decoder's own tokens; the prompt tokens follow."""
STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


@dataclass(frozen=True)
class DecodedMasks:
    """What the network predicts for every prompted or tracked object."""

    logits: Tensor  # (batch, objects, masks, 4h, 4w)
    iou_scores: Tensor  # (batch, objects, masks), predicted IoU, 0 to 1
    object_scores: Tensor  # (batch, objects, 1) logits: above 0 the object is in the image
    mask_tokens: Tensor  # (batch, objects, masks, dim): what object pointers are projected from
    object_pointers: Tensor | None = None  # (batch, objects, masks, dim); None without memory

    def masks(self, chosen: slice) -> DecodedMasks:
        """The chosen masks of every object."""
        return DecodedMasks(
            self.logits[:, :, chosen], self.iou_scores[:, :, chosen], self.object_scores, self.mask_tokens[:, :, chosen]
        )


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
        that nothing attends to.
        """
        q, k, v = (
            split_heads(project(x), self.heads)  # (batch, objects, heads, tokens, head_dim)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.o_proj(join_heads(attend(q, k, v, is_padding)))


def attend(q: Tensor, k: Tensor, v: Tensor, is_padding: Tensor | None) -> Tensor:
    """Attention of (batch, objects, heads, tokens, head_dim); see ``Attention``."""
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
    """Tokens attend to each other and to the image, then the image attends to the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(dim, heads)
        self.layer_norm1 = LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, CROSS_ATTENTION_NARROWING)
        self.layer_norm2 = LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_dim, dim, num_layers=2)
        self.layer_norm3 = LayerNorm(dim)
        self.layer_norm4 = LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, CROSS_ATTENTION_NARROWING)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pos: Tensor, image_pos: Tensor, is_padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update both sides.

        Args:
            tokens: (batch, objects, tokens, dim).
            image: (batch, objects or 1, h*w, dim).
            token_pos: As ``tokens``.
            image_pos: (h*w, dim).
            is_padding: (batch, objects, tokens).

        Returns:
            Tokens, and an image for each object.
        """
        if self.is_first:
            # The tokens are still their own positions, so none is added and there is no residual.
            tokens = self.self_attn(tokens, tokens, tokens, is_padding)
        else:
            q = tokens + token_pos
            tokens = tokens + self.self_attn(q, q, tokens, is_padding)
        tokens = self.layer_norm1(tokens)

        image_with_pos = (image + image_pos).to(image.dtype)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pos, image_with_pos, image)
        tokens = self.layer_norm2(tokens)

        tokens = self.layer_norm3(tokens + self.mlp(tokens))

        image = image + self.cross_attn_image_to_token(image_with_pos, tokens + token_pos, tokens, is_padding)
        return tokens, self.layer_norm4(image)


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then a final attention from tokens to image."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(dim, heads, mlp_dim, is_first=index == 0) for index in range(NUM_LAYERS)
        )
        self.final_attn_token_to_image = Attention(dim, heads, CROSS_ATTENTION_NARROWING)
        self.layer_norm_final_attn = LayerNorm(dim)

    def forward(
        self, token_pos: Tensor, image: Tensor, image_pos: Tensor, is_padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Arguments and results as in the blocks; the tokens are also their positions."""
        tokens = token_pos
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pos, image_pos, is_padding)
        image_with_pos = (image + image_pos).to(image.dtype)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pos, image_with_pos, image)
        return self.layer_norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Prompts and an image embedding to masks, their predicted IoU, and whether the object is in the image."""

    def __init__(self, dim: int, config: Sam2MaskDecoderConfig) -> None:
        super().__init__()
        self.replaces_unstable = config.dynamic_multimask_via_stability
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.transformer = TwoWayTransformer(dim, config.num_attention_heads, config.mlp_dim)
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
        features: Features,
        image_pos: Tensor,
        prompts: PromptEmbeddings,
        *,
        multimask: bool | None,
    ) -> DecodedMasks:
        """Decode every object of every image.

        Args:
            features: Features of each image; where ``stride16`` is conditioned on memory, each object is its own image,
                and the finer maps may be shared, with a batch of 1.
            image_pos: (h*w, dim), Fourier positions of the cells of the image embedding.
            prompts: (batch, objects, ...) from the prompt encoder.
            multimask: True for three candidates, False for one mask, None for the mask and then the candidates.
        """
        own_tokens = self.own_tokens.expand(*prompts.tokens.shape[:2], -1, -1)
        token_pos = torch.cat([own_tokens, prompts.tokens], dim=2)
        is_padding = None
        if prompts.is_padding is not None:
            is_padding = F.pad(prompts.is_padding, (own_tokens.shape[2], 0), value=False)
        image = (features.stride16[:, None] + prompts.dense).flatten(3).transpose(2, 3).contiguous()
        tokens, image = self.transformer(token_pos, image, image_pos, is_padding)

        mask_tokens = tokens[:, :, MASK_TOKENS]
        upscaled = self.upscale(image, features)  # (batch, objects, dim / 8, 4h, 4w)
        logits = (self.mask_weights(mask_tokens) @ upscaled.flatten(3)).unflatten(-1, upscaled.shape[-2:])
        output = DecodedMasks(
            logits,
            self.iou_prediction_head(tokens[:, :, IOU_TOKEN]).sigmoid(),
            self.pred_obj_score_head(tokens[:, :, OBJECT_TOKEN]),
            mask_tokens,
        )
        return self.select(output, multimask)

    @property
    def own_tokens(self) -> Tensor:
        """(6, dim): the tokens of the object score, the IoU and the four masks."""
        return torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])

    def mask_weights(self, mask_tokens: Tensor) -> Tensor:
        """(batch, objects, masks, dim) to (batch, objects, masks, dim / 8): the hypernetworks' output for all masks."""
        mlps = enumerate(self.output_hypernetworks_mlps)
        return torch.stack([mlp(mask_tokens[:, :, index]) for index, mlp in mlps], dim=2)

    def upscale(self, image: Tensor, features: Features) -> Tensor:
        """(batch, objects, h*w, dim) to (batch, objects, dim / 8, 4h, 4w), with skip connections to the finer maps."""
        leading = image.shape[:2]
        x = image.flatten(0, 1).transpose(1, 2).unflatten(-1, features.map_hw)
        x = self.upscale_conv1(x).unflatten(0, leading) + features.stride8[:, None]
        x = F.gelu(self.upscale_layer_norm(x.flatten(0, 1)))
        x = self.upscale_conv2(x).unflatten(0, leading) + features.stride4[:, None]
        return F.gelu(x)

    def select(self, output: DecodedMasks, multimask: bool | None) -> DecodedMasks:
        """Select the requested masks of all four; see ``forward``."""
        if multimask is None:
            return output
        if multimask:
            return output.masks(slice(1, None))
        single = output.masks(slice(0, 1))
        if not self.replaces_unstable or self.training:
            return single
        logits, iou_scores = _replace_unstable(output.logits, output.iou_scores)
        return DecodedMasks(logits, iou_scores, single.object_scores, single.mask_tokens)


def _replace_unstable(logits: Tensor, iou_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the single mask by the best of the three where its area depends too much on the threshold.

    Source: SAM 2, appendix C ("dynamic multimask").
    """
    single = logits[:, :, 0].flatten(-2)
    strict = (single > STABILITY_DELTA).sum(-1, dtype=torch.float32)
    loose = (single > -STABILITY_DELTA).sum(-1, dtype=torch.float32)
    is_stable = torch.where(loose > 0, strict / loose.clamp(min=1), 1.0) >= STABILITY_THRESHOLD  # (batch, objects)
    choice = torch.where(is_stable, 0, 1 + iou_scores[:, :, 1:].argmax(-1))[..., None]  # (batch, objects, 1)
    pixels = choice[..., None, None].expand(-1, -1, -1, *logits.shape[-2:])
    return logits.gather(2, pixels), iou_scores.gather(2, choice)
