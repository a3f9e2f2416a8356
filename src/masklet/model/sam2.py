"""Sam2Model: the boxes joined as in the papers' figures.

Source: SAM 2 (arXiv 2408.00714), figure 3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from masklet import checkpoints
from masklet.config import SIDE_MULTIPLE, STRIDE, STRIDES, Sam2Config
from masklet.errors import ImageError, PromptError
from masklet.model.layers import FeedForward
from masklet.model.mask_decoder import DecodedMasks, LikelyMasks, MaskDecoder
from masklet.model.memory_attention import MemoryAttention
from masklet.model.memory_encoder import MemoryEncoder
from masklet.model.neck import ImageEncoder
from masklet.model.positions import FourierPositions, sine_positions_2d
from masklet.model.prompt_encoder import NOT_A_POINT, PromptEncoder

IGNORED_INPUTS = {"original_sizes", "reshaped_input_sizes", "labels"}
"""What a processor returns for later steps, and ``model(**inputs)`` therefore hands over too."""

MEMORY_SCALE, MEMORY_BIAS = 20.0, -10.0
"""A mask's probabilities are stretched to -10 … 10 before they are remembered."""


@dataclass(frozen=True)
class Sam2ImageSegmentationOutput:
    """What the model says of images and prompts."""

    pred_masks: Tensor  # (batch, objects, masks, height / 4, width / 4) logits
    iou_scores: Tensor  # (batch, objects, masks), predicted IoU, 0 to 1
    object_score_logits: Tensor  # (batch, objects, 1), above 0: the object is in the image
    image_embeddings: list[Tensor]  # three maps, finest first


class Sam2Model(nn.Module):
    """SAM 2: image encoder, prompt encoder, mask decoder, and the memory that carries masks through a video.

    Attributes are called as the tensors of a transformers model folder, so that such a folder loads as it is.
    """

    def __init__(self, config: Sam2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Sam2Config()
        dim = config.hidden_size
        self.shared_image_embedding = FourierPositions(dim)
        self.vision_encoder = ImageEncoder(config)
        # Checkpoints hold the one matrix twice; it is kept twice, so that a file is used as it is.
        self.prompt_encoder = PromptEncoder(dim, config.prompt_encoder.mask_input_channels)
        self.prompt_encoder.shared_embedding.load_state_dict(self.shared_image_embedding.state_dict())
        self.mask_decoder = MaskDecoder(dim, config.mask_decoder)

        self.no_memory_embedding = _learned(1, 1, dim)
        if config.has_memory:
            self._build_memory(config)

    def _build_memory(self, config: Sam2Config) -> None:
        dim, memory_dim = config.hidden_size, config.memory_encoder.output_channels
        self.memory_attention = MemoryAttention(
            dim, memory_dim, config.memory_attention.feed_forward_hidden_size, config.memory_attention.num_layers
        )
        self.memory_encoder = MemoryEncoder(dim, memory_dim)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = FeedForward(dim, dim, dim, num_layers=3)
        self.no_memory_positional_encoding = _learned(1, 1, dim)  # in every checkpoint, used by none
        self.memory_temporal_positional_encoding = _learned(config.num_maskmem, 1, 1, memory_dim)
        self.no_object_pointer = _learned(1, dim)
        if config.is_v2_1:
            self.occlusion_spatial_embedding_parameter = _learned(1, memory_dim)
            self.temporal_positional_encoding_projection_layer = nn.Linear(dim, memory_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.no_memory_embedding.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.no_memory_embedding.device

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Build the network of a checkpoint, float32 on the CPU, ready for inference.

        Args:
            name_or_path: The embedded model's name, a Hub repository, a model folder, or one of Meta's ``.pt`` files.
            revision: Branch, tag or commit of a Hub repository.
            token: For a private Hub repository.

        Raises:
            CheckpointError: It cannot be found, is damaged, or is of another kind.
        """
        config, tensors = checkpoints.read(name_or_path, revision=revision, token=token)
        return cls.from_tensors(config, tensors)

    @classmethod
    def from_tensors(cls, config: Sam2Config, tensors: dict[str, Tensor]) -> Self:
        """Build the network and give it these weights, every one of them and no other; float32 ones are not copied."""
        with torch.device("meta"):  # no time spent on weights that are replaced at once
            model = cls(config)
        checkpoints.check_tensors(tensors, {name: tuple(t.shape) for name, t in model.state_dict().items()})
        model.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write a model folder that masklet and transformers load. An older one there is replaced whole, or not at all.

        Args:
            folder: Where to; made if missing.
            dtype: Of the stored weights; as they are if None.

        Raises:
            CheckpointError: It cannot be written.
        """
        checkpoints.write(folder, self.config, self.state_dict(), dtype=dtype)

    def get_image_features(self, pixel_values: Tensor) -> list[Tensor]:
        """Encode images, as the memory needs them.

        Args:
            pixel_values: (batch, 3, height, width), normalised; sides are multiples of 32.

        Returns:
            Three maps: (batch, dim / 8, height / 4, width / 4), (batch, dim / 4, height / 8, width / 8) and
            (batch, dim, height / 16, width / 16).
        """
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] != 3
            or any(s == 0 or s % SIDE_MULTIPLE for s in pixel_values.shape[2:])
        ):
            raise ImageError(
                f"pixel_values is {tuple(pixel_values.shape)}: expected (batch, 3, height, width) with sides that are "
                f"multiples of {SIDE_MULTIPLE}, as Sam2ImageProcessor makes them"
            )
        return self.vision_encoder(pixel_values.to(self.dtype), (self.mask_decoder.conv_s0, self.mask_decoder.conv_s1))

    def get_image_embeddings(self, pixel_values: Tensor) -> list[Tensor]:
        """Encode images for prompting without memory; the result serves any number of prompts.

        As ``get_image_features``, with the embedding that says "no memory" added to the last map.
        """
        return self.without_memory(self.get_image_features(pixel_values))

    def without_memory(self, features: list[Tensor]) -> list[Tensor]:
        """What ``get_image_features`` returns, as what ``get_image_embeddings`` does."""
        stride4, stride8, stride16 = features
        return [stride4, stride8, stride16 + self.no_memory_embedding.view(1, -1, 1, 1)]

    def condition(
        self,
        features: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        num_pointers: int,
        is_empty: Tensor | None = None,
    ) -> Tensor:
        """A frame's coarsest map, having read what is remembered of each object.

        Args:
            features: (1, dim, h, w), the last of ``get_image_features``.
            memory: (objects, tokens, memory_dim): maps of h*w tokens one after another, then pointer tokens.
            memory_positions: (objects or 1, tokens, memory_dim).
            num_pointers: Tokens at the end that are pointers.
            is_empty: (objects, tokens) bool: slots that hold nothing.

        Returns:
            (objects, dim, h, w), to be decoded in the place of an image embedding.
        """
        _, dim, height, width = features.shape
        cells = features.flatten(2).transpose(1, 2)
        positions = sine_positions_2d((height, width), dim, features.device).to(features.dtype)
        read = self.memory_attention(
            cells,
            positions,
            memory,
            memory_positions,
            map_hw=(height, width),
            num_pointers=num_pointers,
            is_empty=is_empty,
        )
        return read.transpose(1, 2).unflatten(2, (height, width))

    def encode_memory(self, features: Tensor, logits: Tensor, object_scores: Tensor, *, binarize: bool) -> Tensor:
        """What to remember of objects in a frame.

        Args:
            features: (1, dim, h, w), the last of ``get_image_features``.
            logits: (objects, 4h, 4w) masks.
            object_scores: (objects, 1) logits.
            binarize: For frames that a person prompted: their mask is certain.

        Returns:
            (objects, h*w, memory_dim).
        """
        size_hw = (features.shape[-2] * STRIDE, features.shape[-1] * STRIDE)
        masks = F.interpolate(logits[:, None], size=size_hw, mode="bilinear", align_corners=False)
        certainty = (masks > 0).to(masks.dtype) if binarize else masks.sigmoid()
        memory = self.memory_encoder(features, certainty * MEMORY_SCALE + MEMORY_BIAS).flatten(2).transpose(1, 2)
        if self.config.is_v2_1:
            is_absent = (object_scores <= 0)[:, None].to(memory.dtype)  # (objects, 1, 1)
            memory = memory + is_absent * self.occlusion_spatial_embedding_parameter
        return memory

    def point_to_objects(self, mask_tokens: Tensor, object_scores: Tensor) -> Tensor:
        """Object pointers: (objects, dim) mask tokens and (objects, 1) scores to (objects, dim)."""
        pointers = self.object_pointer_proj(mask_tokens)
        return torch.where(object_scores > 0, pointers, self.no_object_pointer)

    def decode(
        self,
        image_embeddings: list[Tensor],
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool | None,
    ) -> DecodedMasks:
        """Prompts on encoded images to masks.

        Args:
            image_embeddings: From ``get_image_embeddings``, or conditioned on memory.
            points: (batch, objects, points, 2), x then y, pixels of the network's input.
            labels: (batch, objects, points), see ``PromptEncoder``.
            boxes: (batch, objects, 4), x0 y0 x1 y1, pixels of the network's input.
            masks: (batch, objects, height / 4, width / 4) logits.
            multimask: Three candidates for each object instead of one mask; None for the mask, then the candidates.
        """
        stride4, stride8, image = image_embeddings
        map_hw = (image.shape[-2], image.shape[-1])
        if points is None and boxes is None:  # only a mask, or nothing: the decoder still expects a point
            objects = 1 if masks is None else masks.shape[1]
            points = torch.zeros(image.shape[0], objects, 1, 2, device=image.device)
            labels = torch.full(points.shape[:3], NOT_A_POINT, device=image.device)
        prompts = self.prompt_encoder(
            points, labels, boxes, masks, map_hw=map_hw, image_hw=(map_hw[0] * STRIDE, map_hw[1] * STRIDE)
        )
        positions = self.shared_image_embedding.grid(map_hw)
        return self.mask_decoder(image, positions, prompts, (stride4, stride8), multimask=multimask)

    def decode_likely(
        self, image_embeddings: list[Tensor], *, points: Tensor, labels: Tensor, iou_threshold: float
    ) -> LikelyMasks:
        """As ``decode`` with three candidates for each object, but only those of a high predicted IoU are drawn.

        Args:
            image_embeddings: Of one image, from ``get_image_embeddings``.
            points: (1, objects, points, 2), x then y, pixels of the network's input.
            labels: (1, objects, points), see ``PromptEncoder``.
            iou_threshold: What the predicted IoU must be above, from 0 to 1.
        """
        stride4, stride8, image = image_embeddings
        map_hw = (image.shape[-2], image.shape[-1])
        prompts = self.prompt_encoder(
            points, labels, None, None, map_hw=map_hw, image_hw=(map_hw[0] * STRIDE, map_hw[1] * STRIDE)
        )
        positions = self.shared_image_embedding.grid(map_hw)
        return self.mask_decoder.likely(image, positions, prompts, (stride4, stride8), iou_threshold=iou_threshold)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: list[Tensor] | None = None,
        multimask_output: bool = True,
        **ignored: object,
    ) -> Sam2ImageSegmentationOutput:
        """Segment prompted objects in images.

        Args:
            pixel_values: (batch, 3, height, width) from the processor; or give ``image_embeddings``.
            input_points: (batch, objects, points, 2), x then y, pixels of the network's input.
            input_labels: (batch, objects, points): 1 foreground, 0 background, -10 padding; all foreground if None.
            input_boxes: (batch, objects, 4), x0 y0 x1 y1, pixels of the network's input.
            input_masks: (batch, objects, height / 4, width / 4) logits, or the same values in any other grouping.
            image_embeddings: From ``get_image_embeddings``.
            multimask_output: Three candidates for each object, or one mask.
            ignored: ``original_sizes``, ``reshaped_input_sizes`` and ``labels``, which processors return as well.

        Raises:
            PromptError: Shapes do not fit each other.
            ImageError: No image, or one of a wrong shape.
        """
        if unknown := ignored.keys() - IGNORED_INPUTS:
            raise TypeError(f"Sam2Model takes no input called {', '.join(sorted(unknown))}")
        if (pixel_values is None) == (image_embeddings is None):
            raise ImageError("expected either pixel_values or image_embeddings, and not both")
        if image_embeddings is None:
            assert pixel_values is not None
            image_embeddings = self.get_image_embeddings(pixel_values)
        _check_prompts(input_points, input_labels, input_boxes, batch=image_embeddings[-1].shape[0])
        if input_points is not None and input_labels is None:
            input_labels = torch.ones(input_points.shape[:3], dtype=torch.long, device=input_points.device)
        if input_masks is not None:
            input_masks = _group_masks(input_masks, image_embeddings, input_points, input_boxes)
        decoded = self.decode(
            image_embeddings,
            points=input_points,
            labels=input_labels,
            boxes=input_boxes,
            masks=input_masks,
            multimask=multimask_output,
        )
        return Sam2ImageSegmentationOutput(decoded.logits, decoded.iou_scores, decoded.object_scores, image_embeddings)


def _learned(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    nn.init.trunc_normal_(parameter, std=0.02)
    return parameter


def _check_prompts(points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, batch: int) -> None:
    for name, value, expected in (
        ("input_points", points, (batch, "objects", "points", 2)),
        ("input_labels", labels, (batch, "objects", "points")),
        ("input_boxes", boxes, (batch, "objects", 4)),
    ):
        if value is not None and not _fits(value.shape, expected):
            words = ", ".join(map(str, expected))
            raise PromptError(f"{name} has shape {tuple(value.shape)}: expected ({words})")
    if labels is not None and (points is None or points.shape[:3] != labels.shape):
        came = "no input_points" if points is None else f"input_points {tuple(points.shape)}"
        raise PromptError(f"input_labels {tuple(labels.shape)} came with {came}: expected one label for each point")
    if points is not None and boxes is not None and points.shape[1] != boxes.shape[1]:
        raise PromptError(f"input_points are of {points.shape[1]} objects, input_boxes of {boxes.shape[1]}")


def _fits(shape: torch.Size, expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )


def _group_masks(masks: Tensor, embeddings: list[Tensor], points: Tensor | None, boxes: Tensor | None) -> Tensor:
    """Any grouping of mask prompts to (batch, objects, 4h, 4w)."""
    batch, _, h, w = embeddings[-1].shape
    scale = STRIDE // STRIDES[0]
    size_hw = (h * scale, w * scale)
    if masks.ndim < 3 or tuple(masks.shape[-2:]) != size_hw:
        raise PromptError(
            f"input_masks has shape {tuple(masks.shape)}: expected (batch, objects, {size_hw[0]}, {size_hw[1]}), a "
            "quarter of the network's input, as pred_masks come; masks of the image's size go to EncodedImage.predict"
        )
    grouped = masks.reshape(-1, *size_hw)
    prompts = points if points is not None else boxes
    objects = len(grouped) // batch if prompts is None else prompts.shape[1]
    if len(grouped) != batch * objects or objects == 0:
        raise PromptError(
            f"input_masks holds {len(grouped)} masks: expected one for each of {objects or 'the'} objects of {batch} "
            "images"
        )
    return grouped.unflatten(0, (batch, objects))
