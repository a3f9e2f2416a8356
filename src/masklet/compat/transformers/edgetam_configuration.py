"""EdgeTAM's configurations: as those of SAM 2, but for the trunk and the memory."""

from __future__ import annotations

from typing import ClassVar

from masklet.checkpoints.transformers import config_to_json
from masklet.compat.transformers.configuration import (
    PreTrainedConfig,
    Sam2Config,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.config import edgetam_config

_DEFAULTS = config_to_json(edgetam_config())
_NOT_OF_MEMORY = ("architectures", "model_type", "everything")


class EdgeTamBackboneConfig(PreTrainedConfig):
    """The trunk, timm's ``repvit_m1``: what transformers keeps in a ``TimmWrapperConfig``. timm is not needed."""

    model_type = "timm_wrapper"
    defaults = _DEFAULTS["vision_config"]["backbone_config"]


class EdgeTamVisionConfig(PreTrainedConfig):
    """The image encoder: ``backbone_config``, and the feature pyramid."""

    model_type = "edgetam_vision_model"
    defaults = {k: v for k, v in _DEFAULTS["vision_config"].items() if k != "backbone_config"}
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"backbone_config": EdgeTamBackboneConfig}


class EdgeTamPromptEncoderConfig(Sam2PromptEncoderConfig):
    """The prompt encoder."""

    model_type = "edgetam_prompt_encoder"


class EdgeTamMaskDecoderConfig(Sam2MaskDecoderConfig):
    """The mask decoder."""

    model_type = "edgetam_mask_decoder"


class EdgeTamConfig(Sam2Config):
    """The image half of an EdgeTAM; arguments as in ``Sam2Config``."""

    model_type = "edgetam"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": EdgeTamVisionConfig,
        "prompt_encoder_config": EdgeTamPromptEncoderConfig,
        "mask_decoder_config": EdgeTamMaskDecoderConfig,
    }


class EdgeTamVideoPromptEncoderConfig(EdgeTamPromptEncoderConfig):
    """The prompt encoder."""

    model_type = "edgetam_video_prompt_encoder"


class EdgeTamVideoMaskDecoderConfig(EdgeTamMaskDecoderConfig):
    """The mask decoder."""

    model_type = "edgetam_video_mask_decoder"


class EdgeTamVideoConfig(Sam2Config):
    """A whole EdgeTAM; settings of the memory stand beside the three sections. See ``Sam2VideoConfig``."""

    model_type = "edgetam_video"
    defaults = {
        name: value for name, value in _DEFAULTS.items() if name not in _NOT_OF_MEMORY and not name.endswith("_config")
    } | {"corrections_are_kept": True, "pad_attends": False}
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": EdgeTamVisionConfig,
        "prompt_encoder_config": EdgeTamVideoPromptEncoderConfig,
        "mask_decoder_config": EdgeTamVideoMaskDecoderConfig,
    }
