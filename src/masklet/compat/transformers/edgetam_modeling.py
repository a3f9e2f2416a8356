"""EdgeTAM's models: those of SAM 2 with another image encoder and another memory."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from masklet.compat.transformers.edgetam_configuration import EdgeTamConfig, EdgeTamVideoConfig, EdgeTamVisionConfig
from masklet.compat.transformers.modeling import Sam2Model
from masklet.compat.transformers.pretrained import Sam2PreTrainedModel
from masklet.compat.transformers.video_modeling import Sam2VideoModel
from masklet.compat.transformers.video_session import Sam2VideoInferenceSession
from masklet.compat.transformers.vision import checked_pixels, encoder_output, smallest_network
from masklet.errors import ConfigError
from masklet.model.edgetam.repvit import RepVitTrunk
from masklet.model.neck import ImageEncoder

EdgeTamVideoInferenceSession = Sam2VideoInferenceSession
"""The same as SAM 2's, as are the processors."""


class EdgeTamPreTrainedModel(Sam2PreTrainedModel):
    """What EdgeTAM's models have in common."""

    base_model_prefix = "edgetam"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, except for norms and position tables, which are never narrower than float32."""
        return self.get_input_embeddings().weight.dtype


class EdgeTamVisionModel(EdgeTamPreTrainedModel):
    """The image encoder: RepViT and feature pyramid."""

    config_class = EdgeTamVisionConfig
    weights_prefix = "vision_encoder."

    backbone: RepVitTrunk
    neck: Any

    def __init__(self, config: EdgeTamVisionConfig | None = None, *, network: ImageEncoder | None = None) -> None:
        super().__init__()
        self.config = config or EdgeTamVisionConfig()
        self.network_config = smallest_network(EdgeTamConfig(vision_config=self.config))
        self._adopt(network or ImageEncoder(self.network_config))

    @property
    def network(self) -> ImageEncoder:
        """The plain network, which shares the weights."""
        return self._viewed_as(ImageEncoder)

    def get_input_embeddings(self) -> Any:
        """The first convolution."""
        return self.backbone.timm_model.stem.conv1.c

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
            output_hidden_states: Whether to return the map after each stage, (batch, h, w, dim).
            output_attentions: Not available: RepViT is convolutional.
            return_dict: False for a tuple.

        Returns:
            ``Sam2VisionEncoderOutput``, whose maps are (batch, dim, h, w).

        Raises:
            ImageError: ``pixel_values`` is missing or has another shape.
            ConfigError: ``output_attentions`` is set.
        """
        pixel_values = checked_pixels(pixel_values, self.dtype)
        if self._wants("output_attentions", output_attentions):
            raise ConfigError("output_attentions is set, but the trunk of EdgeTAM has no attention: expected False")
        stages = self.backbone(pixel_values)
        shows_states = self._wants("output_hidden_states", output_hidden_states)
        output = encoder_output(stages[-1], tuple(stages) if shows_states else None, None, self.neck(stages))
        return output if self._wants("return_dict", return_dict) else output.to_tuple()


class EdgeTamModel(EdgeTamPreTrainedModel, Sam2Model):
    """EdgeTAM for images; arguments as in ``Sam2Model``."""

    config_class = EdgeTamConfig
    vision_class: ClassVar[type[Any]] = EdgeTamVisionModel


class EdgeTamVideoPreTrainedModel(EdgeTamPreTrainedModel):
    """What EdgeTAM's video models have in common."""

    base_model_prefix = "edgetam_video"


class EdgeTamVideoModel(EdgeTamVideoPreTrainedModel, Sam2VideoModel):
    """EdgeTAM for videos; arguments and methods as in ``Sam2VideoModel``."""

    config_class = EdgeTamVideoConfig
    vision_class: ClassVar[type[Any]] = EdgeTamVisionModel
    ignored_weights: ClassVar[tuple[str, ...]] = ()
