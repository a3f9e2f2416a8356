"""The image encoder's models: the trunk, and the trunk with the feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from masklet.compat.transformers.configuration import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2VisionConfig,
    network_config,
)
from masklet.compat.transformers.outputs import Sam2HieraDetModelOutput, Sam2VisionEncoderOutput
from masklet.compat.transformers.pretrained import Sam2PreTrainedModel
from masklet.compat.transformers.recording import recording
from masklet.config import Sam2Config as NetworkConfig
from masklet.config import Sam2ImageEncoderConfig
from masklet.errors import ImageError
from masklet.model import sam2
from masklet.model.hiera import Hiera
from masklet.model.neck import ImageEncoder
from masklet.model.positions import sine_positions_2d


class Sam2HieraDetModel(Sam2PreTrainedModel):
    """The trunk of the image encoder."""

    config_class = Sam2HieraDetConfig
    weights_prefix = "vision_encoder.backbone."

    patch_embed: Any
    blocks: Any

    def __init__(self, config: Sam2HieraDetConfig | None = None, *, network: Hiera | None = None) -> None:
        super().__init__()
        self.config = config or Sam2HieraDetConfig()
        self.network_config = _config_with_trunk(self.config)
        trunk = self.network_config.image_encoder
        assert isinstance(trunk, Sam2ImageEncoderConfig)
        network = network or Hiera(trunk)
        self.stage_ends = network.stage_ends
        self._adopt(network)

    @property
    def network(self) -> Hiera:
        """The plain network, which shares the weights."""
        return self._viewed_as(Hiera, stage_ends=self.stage_ends)

    def get_input_embeddings(self) -> Any:
        """The module that embeds patches."""
        return self.patch_embed

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images.

        Args:
            pixel_values: (batch, 3, height, width), normalised; sides are multiples of 32.
            output_hidden_states: Whether to return the input of the first block and the output of every block.
            output_attentions: Whether to return the output of the attention of every block.
            return_dict: False for a tuple.

        Returns:
            ``Sam2HieraDetModelOutput``.

        Raises:
            ImageError: ``pixel_values`` is missing or has another shape.
        """
        pixel_values = checked_pixels(pixel_values, self.dtype)
        shows_states = self._wants("output_hidden_states", output_hidden_states)
        shows_attentions = self._wants("output_attentions", output_attentions)
        with (
            recording(self.blocks, wanted=shows_states, with_first_input=True) as states,
            recording([block.attn for block in self.blocks], wanted=shows_attentions) as attentions,
        ):
            maps = self.network(pixel_values)
        output = Sam2HieraDetModelOutput(
            maps[-1],
            tuple(maps),
            tuple(states) if shows_states else None,
            tuple(attentions) if shows_attentions else None,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()


class Sam2VisionModel(Sam2PreTrainedModel):
    """The image encoder: trunk and feature pyramid."""

    config_class = Sam2VisionConfig
    weights_prefix = "vision_encoder."

    backbone: Sam2HieraDetModel
    neck: Any

    def __init__(self, config: Sam2VisionConfig | None = None, *, network: ImageEncoder | None = None) -> None:
        super().__init__()
        self.config = config or Sam2VisionConfig()
        self.network_config = _config_with_encoder(self.config)
        network = network or ImageEncoder(self.network_config)
        self.backbone = Sam2HieraDetModel(self.config.backbone_config, network=network.backbone)
        self.neck = network.neck

    @property
    def network(self) -> ImageEncoder:
        """The plain network, which shares the weights."""
        return self._viewed_as(ImageEncoder, modules={"backbone": self.backbone.network})

    def get_input_embeddings(self) -> Any:
        """The module that embeds patches."""
        return self.backbone.get_input_embeddings()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images; arguments as in ``Sam2HieraDetModel``.

        Returns:
            ``Sam2VisionEncoderOutput``, whose maps are (batch, dim, h, w).
        """
        trunk: Sam2HieraDetModelOutput = self.backbone(
            pixel_values,
            output_hidden_states=self._wants("output_hidden_states", output_hidden_states),
            output_attentions=self._wants("output_attentions", output_attentions),
            return_dict=True,
        )
        maps = self.neck(list(trunk.intermediate_hidden_states or ()))
        output = encoder_output(trunk.last_hidden_state, trunk.hidden_states, trunk.attentions, maps)
        return output if self._wants("return_dict", return_dict) else output.to_tuple()


def checked_pixels(pixel_values: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Images (batch, 3, height, width) in the type of the weights.

    Raises:
        ImageError: They are missing or have another shape.
    """
    if pixel_values is None:
        raise ImageError("pixel_values is None: expected (batch, 3, height, width)")
    sam2.check_pixel_values(pixel_values)
    return pixel_values.to(dtype)


def encoder_output(
    last: Tensor | None,
    states: tuple[Tensor, ...] | None,
    attentions: tuple[Tensor, ...] | None,
    maps: Sequence[Tensor],
) -> Sam2VisionEncoderOutput:
    """The output of an image encoder, given that of its trunk and the maps of its neck, finest first."""
    return Sam2VisionEncoderOutput(last, states, attentions, tuple(maps), tuple(map(sine_maps, maps)))


def sine_maps(level: Tensor) -> Tensor:
    """Sines of the positions of a map (batch, dim, h, w), of its shape."""
    batch, dim, height, width = level.shape
    sines = sine_positions_2d((height, width), dim, level.device)
    return sines.T.unflatten(1, (height, width)).to(level.dtype).expand(batch, -1, -1, -1)


def _config_with_encoder(vision: Any) -> NetworkConfig:
    whole = Sam2Config(vision_config=vision)
    whole.prompt_encoder_config.image_size = vision.backbone_config.image_size
    return smallest_network(whole)


def smallest_network(whole: Any) -> NetworkConfig:
    """A network with the image encoder of this configuration; the rest is as small as its width allows."""
    width = whole.vision_config.fpn_hidden_size
    whole.prompt_encoder_config.hidden_size = whole.mask_decoder_config.hidden_size = width
    whole.mask_decoder_config.iou_head_hidden_dim = width
    whole.mask_decoder_config.num_attention_heads = 1
    return network_config(whole, has_memory=False)


def _config_with_trunk(trunk: Any) -> NetworkConfig:
    return _config_with_encoder(
        Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=trunk.embed_dim_per_stage[::-1])
    )
