"""Mask decoder: tokens and the image embedding look at each other, then the tokens draw masks.

Source: SAM (arXiv 2304.02643), appendix A, "lightweight mask decoder"; SAM 2 (2408.00714), section 4 and appendix C.

All objects of an image share its embedding. The image side keeps an ``objects`` axis of length 1 for as long as it is
the same for every object, so that what is common is computed once and never copied.

A CPU takes a second way to the same masks: see ``TokenToImageAttention`` and ``draw_by_cell``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import NUM_MULTIMASK_OUTPUTS, Sam2MaskDecoderConfig
from masklet.model.layers import FeedForward, LayerNorm2d, join_heads, split_heads
from masklet.model.prompt_encoder import PromptEmbeddings

NUM_LAYERS = 2
NARROWING = 2
"""Cross-attention works at this fraction of the width."""
NUM_MASK_TOKENS = NUM_MULTIMASK_OUTPUTS + 1
OBJECT_TOKEN, IOU_TOKEN, MASK_TOKENS = 0, 1, slice(2, 2 + NUM_MASK_TOKENS)
"""Where the decoder's own tokens are; those of the prompts follow."""
STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98
CPU_TOGETHER = 16
"""Objects decoded together on a CPU: reading the weights costs as much for one token as for a hundred."""
CPU_ELEMENTS = 2**22
"""Size up to which the images of some of them are worked on together: larger maps fall out of its caches, and out of
the memory that the allocator keeps, whose return costs more than the arithmetic."""


Decoded = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits, predicted IoU, object scores and tokens of all four masks."""


@dataclass(frozen=True)
class DecodedMasks:
    """What the decoder says of every object."""

    logits: Tensor  # (batch, objects, masks, 4h, 4w)
    iou_scores: Tensor  # (batch, objects, masks), 0 to 1
    object_scores: Tensor  # (batch, objects, 1) logits: above 0 the object is in the image
    mask_tokens: Tensor  # (batch, objects, masks, dim): what object pointers are made of


@dataclass(frozen=True)
class LikelyMasks:
    """Those candidates for the objects of one image that the decoder believes in."""

    logits: Tensor  # (masks, 4h, 4w)
    iou_scores: Tensor  # (masks,), 0 to 1
    objects: Tensor  # (masks,) int64: the object each is a candidate for


@dataclass(frozen=True)
class Way:
    """How the decoder works: the results are the same."""

    at_once: int
    """Objects whose images are worked on together."""
    folded: bool = False
    """See ``TokenToImageAttention``."""


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


def _each(image: list[Tensor]) -> Iterable[Tensor]:
    """The parts of an image; if it is one, that for all parts of what looks at it."""
    return image if len(image) > 1 else repeat(image[0])


class TokenToImageAttention(Attention):
    """Tokens look at the cells of the image.

    Folded, the queries are projected to where the image is: a score q·(W x) is (Wᵀ q)·x, and a sum of projected values
    is the projection of the sum. A few tokens, once for each head, are then projected instead of thousands of cells.
    """

    def forward(  # type: ignore[override]
        self, tokens: Tensor, image: list[Tensor], image_pos: Tensor, way: Way
    ) -> Tensor:
        """(batch, objects, tokens, dim); the image, its positions and the rest as in ``TwoWayAttentionBlock``."""
        own = [tokens] if len(image) == 1 else tokens.split(image[0].shape[1], dim=1)
        return torch.cat([self._read(*both, image_pos, way) for both in zip(own, image, strict=True)], dim=1)

    def _read(self, tokens: Tensor, image: Tensor, image_pos: Tensor, way: Way) -> Tensor:
        placed = image + image_pos
        if not way.folded or image.shape[1] < tokens.shape[1]:  # a shared image is projected once for all anyway
            return super().forward(tokens, placed, image)
        q = split_heads(self.q_proj(tokens), self.heads)  # (batch, objects, heads, tokens, head_dim)
        heads, count, head_dim = q.shape[2:]
        from_keys, from_values = (
            project.weight.unflatten(0, (heads, head_dim)) for project in (self.k_proj, self.v_proj)
        )  # (heads, head_dim, dim)
        # The keys' bias adds the same to all scores of a query, which the softmax ignores.
        scores = (q * head_dim**-0.5 @ from_keys).flatten(2, 3) @ placed.transpose(2, 3)
        weights = scores.softmax(-1)  # (batch, objects, heads * tokens, h*w)
        sums = (weights @ image).unflatten(2, (heads, count))  # (batch, objects, heads, tokens, dim)
        values = sums @ from_values.transpose(1, 2)  # the weights sum to one, so the bias comes through as it is
        return self.o_proj(join_heads(values) + self.v_proj.bias)


class ImageToTokenAttention(Attention):
    """Cells of the image look at the tokens. Folded, the tokens are projected to where the image is, as above."""

    def forward(  # type: ignore[override]
        self, image: list[Tensor], image_pos: Tensor, k: Tensor, v: Tensor, is_padding: Tensor | None, way: Way
    ) -> Iterator[Tensor]:
        """What is to be added to the image, in parts of ``way.at_once`` objects; see ``TwoWayAttentionBlock``."""
        padding = repeat(None) if is_padding is None else is_padding.split(way.at_once, dim=1)
        if not way.folded:
            told = (x.split(way.at_once, dim=1) for x in (k, v))
            for part, keys, tokens, is_void in zip(_each(image), *told, padding, strict=False):
                yield super().forward(part + image_pos, keys, tokens, is_void)
            return
        k, v = split_heads(self.k_proj(k), self.heads), split_heads(self.v_proj(v), self.heads)
        to_image = self.o_proj.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)  # (heads, head_dim, dim)
        # Each head's weights sum to one, so its share of the bias may ride on its values.
        values = (v @ to_image + self.o_proj.bias / self.heads).flatten(2, 3).split(way.at_once, dim=1)
        for scores, to_add, is_void in zip(self._scores(image, image_pos, k, way), values, padding, strict=False):
            if is_void is not None:
                scores = scores.masked_fill(is_void[:, :, None, :, None], -torch.inf)
            yield scores.softmax(3).flatten(2, 3).transpose(2, 3) @ to_add

    def _scores(self, image: list[Tensor], image_pos: Tensor, k: Tensor, way: Way) -> Iterator[Tensor]:
        """(batch, objects, heads, tokens, h*w), in parts, of keys (batch, objects, heads, tokens, head_dim)."""
        objects, heads, count, head_dim = k.shape[1:]
        k = k * head_dim**-0.5
        if image[0].shape[1] < objects and len(image) == 1:  # shared, so it is projected once for all
            q = split_heads(self.q_proj(image[0][:, 0] + image_pos), heads)  # (batch, heads, h*w, head_dim)
            scores = k.transpose(1, 2).flatten(2, 3) @ q.transpose(2, 3)
            yield from scores.unflatten(2, (objects, count)).transpose(1, 2).split(way.at_once, dim=1)
            return
        from_queries = self.q_proj.weight.unflatten(0, (heads, head_dim))  # (heads, head_dim, dim)
        bias = k @ self.q_proj.bias.unflatten(0, (heads, head_dim, 1))
        folded, of_bias = (x.flatten(2, 3).split(way.at_once, dim=1) for x in (k @ from_queries, bias))
        for part, keys, offsets in zip(image, folded, of_bias, strict=True):
            yield (keys @ (part + image_pos).transpose(2, 3) + offsets).unflatten(2, (heads, count))


class TwoWayAttentionBlock(nn.Module):
    """Tokens look at each other and at the image, then the image looks at the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(dim, heads)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenToImageAttention(dim, heads, NARROWING)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_dim, dim, num_layers=2)
        self.layer_norm3 = nn.LayerNorm(dim)
        self.layer_norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = ImageToTokenAttention(dim, heads, NARROWING)

    def forward(
        self,
        tokens: Tensor,
        image: list[Tensor],
        token_pos: Tensor,
        image_pos: Tensor,
        is_padding: Tensor | None,
        way: Way,
    ) -> tuple[Tensor, list[Tensor]]:
        """Both sides after they have looked at each other.

        Args:
            tokens: (batch, objects, tokens, dim).
            image: (batch, objects, h*w, dim) in parts of ``way.at_once`` objects, or one part that all objects share.
            token_pos: As ``tokens``.
            image_pos: (h*w, dim).
            is_padding: (batch, objects, tokens).
            way: How to work.
        """
        if self.is_first:
            # The tokens are their own positions yet, so none is added and nothing is kept.
            tokens = self.self_attn(tokens, tokens, tokens, is_padding)
        else:
            placed = tokens + token_pos
            tokens = tokens + self.self_attn(placed, placed, tokens, is_padding)
        tokens = self.layer_norm1(tokens)
        tokens = self.layer_norm2(tokens + self.cross_attn_token_to_image(tokens + token_pos, image, image_pos, way))
        tokens = self.layer_norm3(tokens + self.mlp(tokens))
        written = self.cross_attn_image_to_token(image, image_pos, tokens + token_pos, tokens, is_padding, way)
        return tokens, [self.layer_norm4(part + to_add) for part, to_add in zip(_each(image), written, strict=False)]


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(dim, heads, mlp_dim, is_first=index == 0) for index in range(NUM_LAYERS)
        )
        self.final_attn_token_to_image = TokenToImageAttention(dim, heads, NARROWING)
        self.layer_norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pos: Tensor, is_padding: Tensor | None, way: Way
    ) -> tuple[Tensor, list[Tensor]]:
        """The two blocks; the tokens given are also their positions. The image comes back in parts."""
        token_pos, parts = tokens, [*image.split(way.at_once, dim=1)]
        for layer in self.layers:
            tokens, parts = layer(tokens, parts, token_pos, image_pos, is_padding, way)
        return tokens, parts

    def last_look(self, tokens: Tensor, token_pos: Tensor, image: list[Tensor], image_pos: Tensor, way: Way) -> Tensor:
        """Tokens, any of them, after a look at the image as the blocks left it."""
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pos, image, image_pos, way)
        return self.layer_norm_final_attn(tokens)


class MaskDecoder(nn.Module):
    """Prompts and an image embedding to masks, their predicted IoU and whether the object is there."""

    def __init__(self, dim: int, config: Sam2MaskDecoderConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.head_dim = dim // NARROWING // heads  # of cross-attention
        self.replaces_unstable = config.dynamic_multimask_via_stability
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.transformer = TwoWayTransformer(dim, heads, config.mlp_dim)
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
        multimask: bool | None,
    ) -> DecodedMasks:
        """Decode every object of every image.

        Args:
            image: (batch, dim, h, w) image embedding; objects that were conditioned on memory are a batch each.
            image_pos: (h * w, dim) Fourier positions of its cells.
            prompts: (batch, objects, ...) as the prompt encoder made them.
            fine_maps: (batch or 1, dim / 8, 4h, 4w) and (batch or 1, dim / 4, 2h, 2w).
            multimask: Three candidates instead of one mask; None for the mask, then the candidates.
        """
        if image.device.type == "cpu" and not torch.is_grad_enabled():
            decoded = self._decode_in_parts(image, image_pos, prompts, fine_maps)
        else:
            drawing = self._drawing(fine_maps, (image.shape[-2], image.shape[-1]))
            decoded = self._decode(image[:, None], image_pos, prompts, drawing)
        logits, ious, object_scores, mask_tokens = decoded
        if multimask is None:
            return DecodedMasks(*decoded)
        if multimask:
            return DecodedMasks(logits[:, :, 1:], ious[:, :, 1:], object_scores, mask_tokens[:, :, 1:])
        if self.replaces_unstable and not self.training:
            logits, ious = _replace_unstable(logits, ious)
        return DecodedMasks(logits[:, :, :1], ious[:, :, :1], object_scores, mask_tokens[:, :, :1])

    def likely(
        self,
        image: Tensor,
        image_pos: Tensor,
        prompts: PromptEmbeddings,
        fine_maps: tuple[Tensor, Tensor],
        *,
        iou_threshold: float,
    ) -> LikelyMasks:
        """The candidates of one image whose predicted IoU is above a threshold; for inference.

        The prediction is made before the mask, by a token of its own: objects without a likely candidate are spared
        the last look of the other tokens, and are not drawn.

        Args:
            image: (1, dim, h, w); it and what follows as in ``forward``.
            image_pos: (h * w, dim).
            prompts: (1, objects, ...).
            fine_maps: (1, dim / 8, 4h, 4w) and (1, dim / 4, 2h, 2w).
            iou_threshold: From 0 to 1.
        """
        map_hw, objects = (image.shape[-2], image.shape[-1]), prompts.tokens.shape[1]
        draw, together, way = self._drawing(fine_maps, map_hw), objects, Way(objects)
        if image.device.type == "cpu":
            together, way = CPU_TOGETHER, self._cpu_way(prompts, map_hw)
        logits, ious, owners = [image.new_empty(0, 4 * map_hw[0], 4 * map_hw[1])], [image.new_empty(0)], []
        for start in range(0, objects, together):
            some = prompts.select(0, slice(start, start + together))
            tokens, token_pos, parts = self._look(image[:, None], image_pos, some, way)
            of_iou = self.transformer.last_look(
                tokens[:, :, [IOU_TOKEN]], token_pos[:, :, [IOU_TOKEN]], parts, image_pos, way
            )
            candidates = self.iou_prediction_head(of_iou[0, :, 0]).sigmoid()[:, 1:]  # (objects, masks)
            is_likely = candidates > iou_threshold
            ious.append(candidates[is_likely])
            owners.append(start + is_likely.nonzero()[:, 0])
            for cells, its, its_pos, likely in zip(
                parts, *(x.split(way.at_once) for x in (tokens[0], token_pos[0], is_likely)), strict=True
            ):
                if (is_drawn := likely.any(1)).any():
                    cells, chosen = cells[:, is_drawn], (None, is_drawn, MASK_TOKENS)
                    mask_tokens = self.transformer.last_look(its[chosen], its_pos[chosen], [cells], image_pos, way)
                    logits.append(draw(cells, self._kernels(mask_tokens)[:, :, 1:])[0][likely[is_drawn]])
        return LikelyMasks(torch.cat(logits), torch.cat(ious), torch.cat(owners))

    def _drawing(self, fine_maps: tuple[Tensor, Tensor], map_hw: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
        """How masks are drawn from cells and kernels on these maps."""
        if fine_maps[0].device.type != "cpu":
            return partial(self.draw, fine_maps=fine_maps)
        return partial(self.draw_by_cell, parts_of_cells=self._parts_of_cells(fine_maps, map_hw), map_hw=map_hw)

    def _cpu_way(self, prompts: PromptEmbeddings, map_hw: tuple[int, int]) -> Way:
        tokens = MASK_TOKENS.stop + prompts.tokens.shape[2]
        finest = math.prod(map_hw) * 16 * self.conv_s0.out_channels
        # With more tokens, folding costs more than it saves.
        return Way(max(1, CPU_ELEMENTS // finest), folded=tokens <= 2 * self.head_dim)

    def _decode_in_parts(
        self, image: Tensor, image_pos: Tensor, prompts: PromptEmbeddings, fine_maps: tuple[Tensor, Tensor]
    ) -> Decoded:
        """As ``_decode``, by what a CPU works on together; for inference."""
        map_hw = (image.shape[-2], image.shape[-1])
        way = self._cpu_way(prompts, map_hw)
        fine_parts = zip(*(maps.split(1) for maps in fine_maps), strict=True)
        drawings = [self._drawing(of_image, map_hw) for of_image in fine_parts]
        images = []
        # One after another, so that no object of a video changes a bit of another.
        for b, draw in zip(range(len(image)), cycle(drawings), strict=False):
            decoded = []
            for start in range(0, prompts.tokens.shape[1], CPU_TOGETHER):
                some = prompts.select(b, slice(start, start + CPU_TOGETHER))
                decoded.append(self._decode(image[b : b + 1, None], image_pos, some, draw, way))
            images.append(_joined(decoded, 1))
        return _joined(images, 0)

    def _decode(
        self,
        image: Tensor,
        image_pos: Tensor,
        prompts: PromptEmbeddings,
        draw: Callable[[Tensor, Tensor], Tensor],
        way: Way | None = None,
    ) -> Decoded:
        way = way or Way(prompts.tokens.shape[1])
        tokens, token_pos, parts = self._look(image, image_pos, prompts, way)
        own = slice(0, MASK_TOKENS.stop)
        tokens = self.transformer.last_look(tokens[:, :, own], token_pos[:, :, own], parts, image_pos, way)
        mask_tokens = tokens[:, :, MASK_TOKENS]
        kernels = self._kernels(mask_tokens).split(way.at_once, dim=1)
        drawn = [draw(*both) for both in zip(parts, kernels, strict=True)]
        logits = drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=1)
        ious = self.iou_prediction_head(tokens[:, :, IOU_TOKEN]).sigmoid()
        return logits, ious, self.pred_obj_score_head(tokens[:, :, OBJECT_TOKEN]), mask_tokens

    def _look(
        self, image: Tensor, image_pos: Tensor, prompts: PromptEmbeddings, way: Way
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens and image before the tokens' last look.

        Args:
            image: (batch, objects or 1, dim, h, w).
            image_pos: (h*w, dim).
            prompts: (batch, objects, ...).
            way: How to work.

        Returns:
            Tokens (batch, objects, tokens, dim), those of the prompts last, their positions, and cells
            (batch, objects, h*w, dim) in parts.
        """
        own_tokens = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        token_pos = torch.cat([own_tokens.expand(*prompts.tokens.shape[:2], -1, -1), prompts.tokens], dim=2)
        is_padding = None
        if prompts.is_padding is not None:
            is_padding = F.pad(prompts.is_padding, (len(own_tokens), 0), value=False)
        cells = (image + prompts.dense).flatten(3).transpose(2, 3)  # (batch, objects or 1, h*w, dim)
        tokens, parts = self.transformer(token_pos, cells.contiguous(), image_pos, is_padding, way)
        return tokens, token_pos, parts

    def _kernels(self, mask_tokens: Tensor) -> Tensor:
        """(batch, objects, masks, dim / 8), with which ``draw`` draws, of (batch, objects, masks, dim)."""
        mlps = enumerate(self.output_hypernetworks_mlps)
        return torch.stack([mlp(mask_tokens[:, :, index]) for index, mlp in mlps], dim=2)

    def draw(self, cells: Tensor, kernels: Tensor, fine_maps: tuple[Tensor, Tensor]) -> Tensor:
        """Upscale the image and take its dot product with each mask's kernel.

        Args:
            cells: (batch, objects, h*w, dim).
            kernels: (batch, objects, masks, dim / 8).
            fine_maps: As in ``forward``.

        Returns:
            (batch, objects, masks, 4h, 4w) logits.
        """
        stride4, stride8 = fine_maps
        leading = cells.shape[:2]
        h, w = stride8.shape[-2] // 2, stride8.shape[-1] // 2
        x = cells.transpose(2, 3).flatten(0, 1).unflatten(-1, (h, w))
        x = self.upscale_conv1(x).unflatten(0, leading) + stride8[:, None]
        x = F.gelu(self.upscale_layer_norm(x.flatten(0, 1)))
        x = self.upscale_conv2(x).unflatten(0, leading) + stride4[:, None]
        x = F.gelu(x)  # (batch, objects, dim / 8, 4h, 4w)
        return (kernels @ x.flatten(3)).unflatten(-1, x.shape[-2:])

    def _parts_of_cells(self, fine_maps: tuple[Tensor, Tensor], map_hw: tuple[int, int]) -> list[Tensor]:
        """The fine maps as ``draw_by_cell`` takes them."""
        return [
            _by_cell(finer, map_hw) + _bias(conv)
            for finer, conv in zip(fine_maps, (self.upscale_conv2, self.upscale_conv1), strict=True)
        ]

    def draw_by_cell(
        self, cells: Tensor, kernels: Tensor, parts_of_cells: list[Tensor], map_hw: tuple[int, int]
    ) -> Tensor:
        """As ``draw``: the stride of a 2x2 transposed convolution is its size, so it is one product for each cell.

        The four parts of a cell stay beside it until the end, where only the logits have to be put in their place.

        Args:
            cells: (batch, objects, h*w, dim).
            kernels: (batch, objects, masks, dim / 8).
            parts_of_cells: (batch, h*w, 4, 4, dim / 8) and (batch, h*w, 4, dim / 4), biases included.
            map_hw: (h, w).
        """
        fine, middle = (parts[:, None] for parts in parts_of_cells)
        x = (cells @ _by_part(self.upscale_conv1)).unflatten(-1, middle.shape[3:])
        x += middle  # (batch, objects, h*w, 4, dim / 4)
        norm = self.upscale_layer_norm
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = (x @ _by_part(self.upscale_conv2)).unflatten(-1, fine.shape[4:])
        x += fine  # (batch, objects, h*w, 4, 4, dim / 8)
        logits = F.gelu(x).flatten(2, 4) @ kernels.transpose(2, 3)  # (batch, objects, h*w * 16, masks)
        # (batch, objects, h, w, 2, 2, 2, 2, masks): the pairs are (down, across) at stride 8, then at stride 4.
        logits = logits.unflatten(2, (*map_hw, 2, 2, 2, 2)).permute(0, 1, 8, 2, 4, 6, 3, 5, 7)
        return logits.reshape(*kernels.shape[:3], 4 * map_hw[0], 4 * map_hw[1])


def _joined(decoded: list[Decoded], dim: int) -> Decoded:
    if len(decoded) == 1:
        return decoded[0]
    logits, ious, object_scores, mask_tokens = (torch.cat(column, dim) for column in zip(*decoded, strict=True))
    return logits, ious, object_scores, mask_tokens


def _bias(conv: nn.ConvTranspose2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _by_part(conv: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 transposed convolution's weight as (dim_in, 4 * dim_out): down, across, channel."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


def _by_cell(finer: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """(batch, dim, h * 2**n, w * 2**n) to (batch, h*w, 4 [, 4], dim): every part beside the coarse cell it lies in."""
    h, w = map_hw
    if (scale := finer.shape[-2] // h) == 2:
        x = finer.unflatten(-1, (w, 2)).unflatten(-3, (h, 2))  # (batch, dim, h, 2, w, 2)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    assert scale == 4
    x = finer.unflatten(-1, (w, 2, 2)).unflatten(-4, (h, 2, 2))  # (batch, dim, h, 2, 2, w, 2, 2)
    return x.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4).flatten(1, 2)


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
