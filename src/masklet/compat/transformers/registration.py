"""Makes transformers' Auto classes and pipelines find the classes here."""

from __future__ import annotations

from masklet.compat.transformers.configuration import PreTrainedConfig, Sam2Config
from masklet.compat.transformers.edgetam_configuration import EdgeTamConfig, EdgeTamVideoConfig
from masklet.compat.transformers.edgetam_modeling import EdgeTamModel, EdgeTamVideoModel
from masklet.compat.transformers.image_processing import Sam2ImageProcessor
from masklet.compat.transformers.modeling import Sam2Model
from masklet.compat.transformers.processing import Sam2Processor
from masklet.compat.transformers.video_configuration import Sam2VideoConfig
from masklet.compat.transformers.video_modeling import Sam2VideoModel
from masklet.compat.transformers.video_processing import Sam2VideoProcessor
from masklet.compat.transformers.video_video_processing import Sam2VideoVideoProcessor


def register() -> None:
    """Registers the classes here for SAM 2 and EdgeTAM, of images and of videos, in place of transformers' own.

    Afterwards ``AutoConfig``, ``AutoModel``, ``AutoModelForMaskGeneration``, ``AutoProcessor``, ``AutoImageProcessor``,
    ``AutoVideoProcessor`` and ``pipeline("mask-generation")`` use them, in this process. May be called again.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModel,
            AutoModelForMaskGeneration,
            AutoProcessor,
            BaseImageProcessor,
        )
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
        from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
    except ImportError as error:
        raise ImportError("register() needs transformers: pip install transformers") from error
    image_processor = _as_theirs(Sam2ImageProcessor, BaseImageProcessor)
    backends = {"pil": image_processor, "torchvision": image_processor}
    for config, model, image_model, processor in _CLASSES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        # Its method of registration refuses an image model for the configuration of videos.
        AutoModelForMaskGeneration._model_mapping.register(config, image_model, exist_ok=True)  # type: ignore[arg-type]
        AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)
        # Processors are looked up by the name of their class, and transformers' own come first.
        PROCESSOR_MAPPING_NAMES.pop(config.model_type, None)
        AutoProcessor.register(config, processor, exist_ok=True)  # type: ignore[no-untyped-call]
    # AutoVideoProcessor itself refuses to be used without torchvision.
    frames = {"torchvision": Sam2VideoVideoProcessor}
    for video_config in (Sam2VideoConfig, EdgeTamVideoConfig):
        VIDEO_PROCESSOR_MAPPING.register(video_config, frames, exist_ok=True)  # type: ignore[arg-type]


_CLASSES: tuple[tuple[type[PreTrainedConfig], type, type, type], ...] = (
    (Sam2Config, Sam2Model, Sam2Model, Sam2Processor),
    (Sam2VideoConfig, Sam2VideoModel, Sam2Model, Sam2VideoProcessor),
    (EdgeTamConfig, EdgeTamModel, EdgeTamModel, Sam2Processor),
    (EdgeTamVideoConfig, EdgeTamVideoModel, EdgeTamModel, Sam2VideoProcessor),
)
"""Classes of each model type: configuration, model, model that generates masks, and processor."""


def _as_theirs(ours: type, theirs: type) -> type:
    """Our class as a subclass of theirs, which they ask for; nothing of theirs is used."""
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__})
