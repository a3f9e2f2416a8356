"""The layouts of an export: which graphs it has, and what their inputs and outputs are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from masklet.config import STRIDE, STRIDES, SizeHW
from masklet.export import modules
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from masklet.model.sam2 import Sam2Model

LAYOUTS = ("masklet", "transformersjs", "samexporter")
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
"""Suffixes of the files that transformers.js searches for, by precision."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """One graph to export."""

    file: str
    """Path in the folder."""
    build: Callable[[Sam2Model, SizeHW], nn.Module]
    example: Callable[[Sam2Model, SizeHW], Inputs]
    """Inputs by name, in order: random, of the shapes that the graph takes."""
    outputs: tuple[str, ...]
    dynamic: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Axes of inputs that may have any length."""
    takes_half: bool = False
    """Whether it may compute in float16: elsewhere errors would add up from frame to frame."""
    takes_boxes: bool = False
    """Whether points and boxes are separate inputs, see ``boxes``."""

    @property
    def name(self) -> str:
        """The name of the file, without folder and suffix."""
        return self.file.rpartition("/")[2].partition(".")[0]


def graphs_of(layout: str, precision: str, *, has_memory: bool) -> list[Graph]:
    """The graphs of a layout."""
    if layout == "transformersjs":
        return _transformersjs(SUFFIXES[precision])
    if layout == "samexporter":
        return _samexporter()
    image = [
        Graph(
            "image_encoder.onnx",
            modules.ImageEncoder,
            _pixels("pixel_values"),
            ("stride4", "stride8", "stride16", "image_embedding"),
            {"pixel_values": (0,)},
            takes_half=True,
        ),
        Graph(
            "prompt_decoder.onnx",
            modules.PromptDecoder,
            _prompts,
            ("logits", "iou_scores", "object_scores", "object_pointers"),
            {"image_embedding": (0,), "points": (0, 1, 2), "labels": (0, 1, 2)},
        ),
    ]
    memory = [
        Graph(
            "memory_attention.onnx",
            modules.MemoryAttention,
            _memory,
            ("conditioned",),
            {name: (0, 1) for name in ("maps", "map_slots", "pointers", "pointer_distances", "is_empty")},
            takes_half=True,
        ),
        Graph(
            "memory_encoder.onnx",
            modules.MemoryEncoder,
            _masks,
            ("memory",),
            {"logits": (0,), "object_scores": (0,)},
        ),
    ]
    return image + memory if has_memory else image


def _transformersjs(suffix: str) -> list[Graph]:
    embeddings = tuple(f"image_embeddings.{level}" for level in range(3))

    def example(model: Sam2Model, input_hw: SizeHW) -> Inputs:
        of = _prompts(model, input_hw)
        finer = (torch.cat([of[name], of[name]]) for name in ("stride4", "stride8"))  # one for each image
        maps = (*finer, of["image_embedding"])
        return {"input_points": of["points"], "input_labels": of["labels"], **dict(zip(embeddings, maps, strict=True))}

    return [
        Graph(
            f"onnx/vision_encoder{suffix}.onnx",
            modules.EmbeddingEncoder,
            _pixels("pixel_values"),
            embeddings,
            {"pixel_values": (0,)},
            takes_half=True,
        ),
        Graph(
            f"onnx/prompt_encoder_mask_decoder{suffix}.onnx",
            modules.BoxDecoder,
            example,
            ("iou_scores", "pred_masks", "object_score_logits"),
            {"input_points": (0, 1, 2), "input_labels": (0, 1, 2), **{name: (0,) for name in embeddings}},
            takes_boxes=True,
        ),
    ]


def _samexporter() -> list[Graph]:
    def example(model: Sam2Model, input_hw: SizeHW) -> Inputs:
        of = _prompts(model, input_hw)
        return {
            "image_embed": of["image_embedding"][:1],
            "high_res_feats_0": of["stride4"],
            "high_res_feats_1": of["stride8"],
            "point_coords": of["points"][0],
            "point_labels": of["labels"][0].float(),
            "mask_input": of["mask_input"],
            "has_mask_input": of["has_mask"],
        }

    def image(model: Sam2Model, input_hw: SizeHW) -> Inputs:
        return {"image": _pixels("image")(model, input_hw)["image"][:1]}

    return [
        Graph(
            "encoder.onnx",
            modules.EmbeddingEncoder,
            image,
            ("high_res_feats_0", "high_res_feats_1", "image_embed"),
            takes_half=True,
        ),
        Graph(
            "decoder.onnx",
            modules.LabelDecoder,
            example,
            ("masks", "iou_predictions"),
            {"point_coords": (0, 1), "point_labels": (0, 1)},
        ),
    ]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), device="cpu")


def _pixels(name: str) -> Callable[[Sam2Model, SizeHW], Inputs]:
    return lambda model, input_hw: {name: _random(2, 3, *input_hw)}


def _prompts(model: Sam2Model, input_hw: SizeHW) -> Inputs:
    """Two images of three objects, with a box and two clicks, some of which are padding."""
    dim, (height, width) = model.config.hidden_size, input_hw
    labels = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, FOREGROUND, PADDING], device="cpu").expand(2, 3, -1).clone()
    points = torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), device="cpu")
    points = points * torch.tensor([width, height], device="cpu")
    return {
        "stride4": _random(1, dim // 8, height // STRIDES[0], width // STRIDES[0]),
        "stride8": _random(1, dim // 4, height // STRIDES[1], width // STRIDES[1]),
        "image_embedding": _random(2, dim, height // STRIDE, width // STRIDE),
        "points": points,
        "labels": labels,
        "mask_input": 5 * _random(1, 1, height // STRIDES[0], width // STRIDES[0]),
        "has_mask": torch.ones(1, dtype=torch.float32, device="cpu"),
    }


def _memory(model: Sam2Model, input_hw: SizeHW) -> Inputs:
    """Two objects with three maps and five pointers; some slots are empty."""
    config, (height, width) = model.config, input_hw
    maps, pointers = 3, 5
    tokens = config.tokens_per_memory((height // STRIDE, width // STRIDE))
    is_empty = torch.zeros(2, maps + pointers, dtype=torch.bool, device="cpu")
    is_empty[0, 2] = is_empty[1, -1] = True
    return {
        "stride16": _random(1, config.hidden_size, height // STRIDE, width // STRIDE),
        "maps": _random(2, maps, tokens, config.memory_encoder.output_channels),
        "map_slots": torch.tensor([[config.num_maskmem - 1, 0, 0]], device="cpu").expand(2, -1).clone(),
        "pointers": _random(2, pointers, config.hidden_size),
        "pointer_distances": torch.rand(2, pointers, generator=torch.Generator().manual_seed(1), device="cpu"),
        "is_empty": is_empty,
    }


def _masks(model: Sam2Model, input_hw: SizeHW) -> Inputs:
    height, width = input_hw
    return {
        "stride16": _random(1, model.config.hidden_size, height // STRIDE, width // STRIDE),
        "logits": 5 * _random(2, height // STRIDES[0], width // STRIDES[0]),
        "object_scores": torch.tensor([[3.0], [-3.0]], dtype=torch.float32, device="cpu"),
        "is_prompted": torch.zeros(1, dtype=torch.float32, device="cpu"),
    }
