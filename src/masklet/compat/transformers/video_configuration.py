"""The configuration of the video model: that of the image model, and the memory's."""

from __future__ import annotations

from typing import ClassVar

from masklet import config
from masklet.checkpoints.transformers import config_to_json
from masklet.compat.transformers.configuration import (
    PreTrainedConfig,
    Sam2Config,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

_NOT_OF_MEMORY = ("architectures", "model_type", "everything")


class Sam2VideoPromptEncoderConfig(Sam2PromptEncoderConfig):
    """The prompt encoder."""


class Sam2VideoMaskDecoderConfig(Sam2MaskDecoderConfig):
    """The mask decoder."""


class Sam2VideoConfig(Sam2Config):
    """A whole SAM 2; settings of the memory stand beside the three sections.

    ``corrections_are_kept`` and ``pad_attends`` are masklet's own: see ``Sam2VideoModel``.
    """

    model_type = "sam2_video"
    defaults = {
        name: value
        for name, value in config_to_json(config.Sam2Config()).items()
        if name not in _NOT_OF_MEMORY and not name.endswith("_config")
    } | {"corrections_are_kept": True, "pad_attends": False}
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": Sam2VisionConfig,
        "prompt_encoder_config": Sam2VideoPromptEncoderConfig,
        "mask_decoder_config": Sam2VideoMaskDecoderConfig,
    }
