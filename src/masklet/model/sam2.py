"""Sam2Model: the modules, connected as in the papers' figures.

Source: SAM 2 (arXiv 2408.00714), figure 3.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet import checkpoints
from masklet.checkpoints import HubOptions
from masklet.config import SIDE_MULTIPLE, STRIDE, Sam2Config, SizeHW
from masklet.errors import ImageError
from masklet.model.edgetam.memory_attention import LatentMemoryAttention
from masklet.model.edgetam.spatial_perceiver import SpatialPerceiver
from masklet.model.layers import FeedForward, KeepsFloat32
from masklet.model.mask_decoder import DecodedMasks, MaskDecoder
from masklet.model.memory_attention import Memory, MemoryAttention, MemoryTokens
from masklet.model.memory_encoder import MemoryEncoder
from masklet.model.neck import Features, ImageEncoder
from masklet.model.positions import FourierPositions, sine_positions_1d, sine_positions_2d
from masklet.model.prompt_encoder import NOT_A_POINT, PromptEmbeddings, PromptEncoder, Prompts

MEMORY_SCALE, MEMORY_BIAS = 20.0, -10.0
"""The probabilities of a mask are scaled to the range -10 to 10 before they are encoded as memory."""


class Sam2Model(KeepsFloat32):
    """SAM 2: image encoder, prompt encoder, mask decoder, and the memory that carries masks through a video.

    Attributes are named as the tensors of a transformers model folder, so that such a folder loads as it is.
    """

    def __init__(self, config: Sam2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Sam2Config()
        dim = config.hidden_size
        self.shared_image_embedding = FourierPositions(dim)
        self.vision_encoder = ImageEncoder(config)
        # Checkpoints store this matrix twice; so does the model, so that their tensors load unchanged.
        prompts = config.prompt_encoder
        self.prompt_encoder = PromptEncoder(dim, prompts.mask_input_channels, prompts.hidden_act)
        self.prompt_encoder.shared_embedding.load_state_dict(self.shared_image_embedding.state_dict())
        self.mask_decoder = MaskDecoder(dim, config.mask_decoder)

        self.no_memory_embedding = _learned(1, 1, dim)
        if config.has_memory:
            self._build_memory(config)

    def _build_memory(self, config: Sam2Config) -> None:
        dim, memory_dim = config.hidden_size, config.memory_encoder.output_channels
        attention = (config.memory_attention.feed_forward_hidden_size, config.memory_attention.num_layers)
        if config.perceiver is None:
            self.memory_attention = MemoryAttention(dim, memory_dim, *attention)
        else:
            self.memory_attention = LatentMemoryAttention(dim, memory_dim, *attention, config.perceiver)
            self.spatial_perceiver = SpatialPerceiver(memory_dim, config.perceiver)
        self.memory_encoder = MemoryEncoder(dim, memory_dim)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = FeedForward(dim, dim, dim, num_layers=3)
        self.no_memory_positional_encoding = _learned(1, 1, dim)  # in every checkpoint, but unused
        self.memory_temporal_positional_encoding = _learned(config.num_maskmem, 1, 1, memory_dim)
        self.no_object_pointer = _learned(1, dim)
        if config.is_v2_1:
            self.occlusion_spatial_embedding_parameter = _learned(1, memory_dim)
            self.temporal_positional_encoding_projection_layer = nn.Linear(dim, memory_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, except for norms and position tables, which are never narrower than float32."""
        return self.prompt_encoder.no_mask_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.no_memory_embedding.device

    @classmethod
    @torch.inference_mode(False)  # parameters made in inference mode could never be trained
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        resolution: int | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Sam2Model:
        """Build the network of a checkpoint, float32 on the CPU, in evaluation mode.

        All parameters require gradients, whatever the mode of torch around the call: run inference under
        ``torch.inference_mode()``, as ``Segmenter`` does.

        Args:
            name_or_path: The embedded model's name, a Hub repository, a model folder, or one of Meta's ``.pt`` files.
            resolution: Side of the square input that the weights were trained at, if the checkpoint does not store it
                or stores another; ``save_pretrained`` stores it. ``.pt`` files do not store it: None means 1024.
            revision: Branch, tag or commit of a Hub repository.
            token: Token for a private Hub repository.

        Raises:
            CheckpointError: The checkpoint cannot be found, is damaged, or is of another kind.
            ConfigError: ``resolution`` is not a multiple of 32.
        """
        config, tensors = checkpoints.read(name_or_path, HubOptions(revision=revision, token=token))
        return cls.from_tensors(config if resolution is None else replace(config, image_size=resolution), tensors)

    @classmethod
    @torch.inference_mode(False)
    def from_tensors(cls, config: Sam2Config, tensors: dict[str, Tensor]) -> Sam2Model:
        """Build the network with these weights: all of its tensors and no others; float32 tensors are not copied."""
        with torch.device("meta"):  # spends no time on initial weights
            model = cls(config)
        checkpoints.check_tensors(tensors, {name: tuple(t.shape) for name, t in model.state_dict().items()})
        checkpoints.check_finite(tensors)
        plain = {name: _plain(t) for name, t in tensors.items()}
        # Whole numbers, of batch normalisation, stay whole.
        model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in plain.items()}, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write a model folder that masklet and transformers load. An existing one is replaced whole, or not at all.

        Args:
            folder: Output folder; created if missing.
            dtype: Type of the stored weights; unchanged if None.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        checkpoints.write(folder, self.config, self.state_dict(), dtype=dtype)

    # The four functions of an engine (masklet.engine)

    def encode(self, pixel_values: Tensor, positions: Tensor | None = None) -> Features:
        """Encode images.

        Args:
            pixel_values: (batch, 3, height, width), normalised; sides are multiples of 32.
            positions: Position table of the trunk, if already computed; see ``Hiera``.

        Raises:
            ImageError: ``pixel_values`` has another shape.
        """
        check_pixel_values(pixel_values)
        stride4, stride8, stride16 = self.vision_encoder(pixel_values.to(self.dtype), positions)
        return Features(self.mask_decoder.conv_s0(stride4), self.mask_decoder.conv_s1(stride8), stride16)

    def decode(
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        """Decode prompts to masks.

        Args:
            features: Features of each image.
            prompts: Prompts in pixels of the network's input; None for objects that are tracked without a prompt.
            multimask: True for three candidates, False for one mask, None for the mask and then the candidates.
            conditioned: (batch, dim, h, w), the image embedding conditioned on memory, from ``read_memory``, where each
                object is an image of its own; None to decode without memory.
        """
        image = self.without_memory(features.stride16) if conditioned is None else conditioned
        output = self.mask_decoder(
            features._replace(stride16=image),
            self.shared_image_embedding.grid(features.map_hw),
            self.embed_prompts(prompts, image),
            multimask=multimask,
        )
        pointers = self.object_pointers(output.mask_tokens, output.object_scores)
        return replace(output, object_pointers=pointers)

    def read_memory(self, features: Features, memory: Memory) -> Tensor:
        """Condition a frame on the memory of each object: (objects, dim, h, w).

        Args:
            features: Features of the frame, with a batch of 1.
            memory: The memory of each object that the frame reads.
        """
        map_hw, dim = features.map_hw, features.stride16.shape[1]
        positions = sine_positions_2d(map_hw, dim, features.stride16.device)
        x = features.stride16.flatten(2).transpose(1, 2)  # (1, h*w, dim)
        x = self.memory_attention(x, positions, self.memory_tokens(memory, map_hw), map_hw=map_hw)
        return x.transpose(1, 2).unflatten(2, map_hw)

    def write_memory(self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool) -> Tensor:
        """Encode the masks of objects in a frame as spatial memories: (objects, tokens, memory_dim).

        SAM 2 has a token for each of the h*w cells, EdgeTAM one for each latent of its perceiver.

        Args:
            features: Features of the frame, with a batch of 1.
            logits: (objects, 4h, 4w) masks.
            object_scores: (objects, 1) logits.
            binarize: Whether to binarize masks: on prompted frames, whose masks are certain.
        """
        masks = self.memory_masks(logits, features.map_hw, binarize=binarize)
        memory = self.memory_encoder(features.stride16, masks).flatten(2).transpose(1, 2)
        return self.compress(self.mark_absent(memory, object_scores), features.map_hw)

    # The steps of these functions

    def memory_masks(self, logits: Tensor, map_hw: SizeHW, *, binarize: bool) -> Tensor:
        """(objects, 4h, 4w) logits to masks as the memory encoder takes them, (objects, 1, 16h, 16w)."""
        size_hw = (map_hw[0] * STRIDE, map_hw[1] * STRIDE)
        masks = F.interpolate(logits[:, None], size=size_hw, mode="bilinear", align_corners=False)
        probabilities = (masks > 0).to(masks.dtype) if binarize else masks.sigmoid()
        return probabilities * MEMORY_SCALE + MEMORY_BIAS

    def mark_absent(self, memory: Tensor, object_scores: Tensor) -> Tensor:
        """Mark the memories (objects, h*w, memory_dim) of objects that are not in the image; in SAM 2.1."""
        if not self.config.is_v2_1:
            return memory
        is_absent = (object_scores <= 0)[:, None].to(memory.dtype)  # (objects, 1, 1)
        return memory + is_absent * self.occlusion_spatial_embedding_parameter.to(memory.dtype)

    def compress(self, memory: Tensor, map_hw: SizeHW) -> Tensor:
        """Memories (objects, h*w, memory_dim) to the latents of the perceiver; in EdgeTAM."""
        if self.config.perceiver is None:
            return memory
        return self.spatial_perceiver(memory.transpose(1, 2).unflatten(2, map_hw))

    def without_memory(self, image_embedding: Tensor) -> Tensor:
        """(batch, dim, h, w) plus the learned "no memory" embedding."""
        return image_embedding + self.no_memory_embedding.view(1, -1, 1, 1).to(image_embedding.dtype)

    def embed_prompts(self, prompts: Prompts | None, image: Tensor) -> PromptEmbeddings:
        """Embed prompts for the mask decoder, which expects a point even if none was given."""
        prompts = Prompts() if prompts is None else prompts
        if prompts.points is None and prompts.boxes is None:
            objects = 1 if prompts.masks is None else prompts.masks.shape[1]
            points = torch.zeros(image.shape[0], objects, 1, 2, device=image.device, dtype=torch.float32)
            labels = torch.full(points.shape[:3], NOT_A_POINT, device=image.device)
            prompts = Prompts(points, labels, masks=prompts.masks)
        map_hw = (image.shape[-2], image.shape[-1])
        return self.prompt_encoder(prompts, map_hw=map_hw, input_hw=(map_hw[0] * STRIDE, map_hw[1] * STRIDE))

    def object_pointers(self, mask_tokens: Tensor, object_scores: Tensor) -> Tensor | None:
        """Object pointers for mask tokens (batch, objects, masks, dim), of the same shape; None without memory.

        Args:
            mask_tokens: From the mask decoder.
            object_scores: (batch, objects, 1) logits; objects that are not in the image share one learned pointer.
        """
        if not self.config.has_memory:
            return None
        pointers = self.object_pointer_proj(mask_tokens)
        return torch.where(object_scores[..., None] > 0, pointers, self.no_object_pointer.to(pointers.dtype))

    def memory_tokens(self, memory: Memory, map_hw: SizeHW) -> MemoryTokens:
        """Lay memory out as tokens, with sines for positions in space and learned or projected ones in time."""
        memory_dim = self.config.memory_encoder.output_channels
        maps = memory.maps.to(self.dtype)
        space = self.spatial_positions(map_hw, maps.device)
        time = self.memory_temporal_positional_encoding[:, 0, 0][memory.map_slots]  # (objects, maps, memory_dim)
        map_keys = (maps + (space + time[:, :, None])).to(maps.dtype)
        if memory.map_weights is not None:
            map_keys = (map_keys * memory.map_weights[:, :, None, None]).to(maps.dtype)
        # A pointer is wider than a map: it is split into tokens of the map's width.
        split = memory.pointers.shape[-1] // memory_dim
        pointers = memory.pointers.to(self.dtype).unflatten(-1, (split, memory_dim))
        pointer_positions = self._pointer_positions(memory.pointer_distances)
        pointer_keys = (pointers + pointer_positions[:, :, None]).to(pointers.dtype)
        return MemoryTokens(
            keys=torch.cat([map_keys.flatten(1, 2), pointer_keys.flatten(1, 2)], dim=1),
            values=torch.cat([maps.flatten(1, 2), pointers.flatten(1, 2)], dim=1),
            num_pointers=pointers.shape[1] * split,
            is_empty=None if memory.is_empty is None else _spread(memory, split),
        )

    def spatial_positions(self, map_hw: SizeHW, device: torch.device) -> Tensor:
        """(tokens, memory_dim): the places of the tokens of a spatial memory."""
        if self.config.perceiver is None:
            return sine_positions_2d(map_hw, self.config.memory_encoder.output_channels, device)
        return self.spatial_perceiver.positions(device)

    def _pointer_positions(self, distances: Tensor) -> Tensor:
        """(objects, pointers) to (objects, pointers, memory_dim); zeros in SAM 2.0."""
        if not self.config.is_v2_1:
            return distances.new_zeros(*distances.shape, self.config.memory_encoder.output_channels)
        sines = sine_positions_1d(distances, self.config.hidden_size)
        return self.temporal_positional_encoding_projection_layer(sines.to(self.dtype)).float()


def _spread(memory: Memory, split: int) -> Tensor:
    """Which tokens are empty, (objects, tokens), where a map has a token for each cell and a pointer has ``split``."""
    assert memory.is_empty is not None
    of_maps, of_pointers = memory.is_empty.split([memory.maps.shape[1], memory.pointers.shape[1]], dim=1)
    cells = memory.maps.shape[2]
    return torch.cat([of_maps.repeat_interleave(cells, 1), of_pointers.repeat_interleave(split, 1)], dim=1)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that can be trained if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _learned(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    nn.init.trunc_normal_(parameter, std=0.02)
    return parameter


def check_pixel_values(pixel_values: Tensor) -> None:
    """Raise an ImageError unless this is what the image encoder takes."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3 or any(side == 0 or side % SIDE_MULTIPLE for side in shape[2:]):
        raise ImageError(
            f"pixel_values is {shape}: expected (batch, 3, height, width) with sides that are multiples of "
            f"{SIDE_MULTIPLE}, as the image processor makes them"
        )
