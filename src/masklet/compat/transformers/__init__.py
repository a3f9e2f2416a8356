"""transformers' SAM 2 and EdgeTAM: models, configurations and processors, with its names, signatures and outputs.

transformers itself is not needed. Where it is installed, ``register()`` makes its Auto classes and its pipeline use the
classes here.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "configuration": (
        "PreTrainedConfig",
        "Sam2Config",
        "Sam2HieraDetConfig",
        "Sam2MaskDecoderConfig",
        "Sam2PromptEncoderConfig",
        "Sam2VisionConfig",
    ),
    "edgetam_configuration": (
        "EdgeTamConfig",
        "EdgeTamMaskDecoderConfig",
        "EdgeTamPromptEncoderConfig",
        "EdgeTamVideoConfig",
        "EdgeTamVideoMaskDecoderConfig",
        "EdgeTamVideoPromptEncoderConfig",
        "EdgeTamVisionConfig",
    ),
    "edgetam_modeling": (
        "EdgeTamModel",
        "EdgeTamPreTrainedModel",
        "EdgeTamVideoInferenceSession",
        "EdgeTamVideoModel",
        "EdgeTamVideoPreTrainedModel",
        "EdgeTamVisionModel",
    ),
    "feature": ("BatchFeature",),
    "image_processing": ("Sam2ImageProcessor",),
    "modeling": ("Sam2Model",),
    "outputs": (
        "ModelOutput",
        "Sam2HieraDetModelOutput",
        "Sam2ImageSegmentationOutput",
        "Sam2VisionEncoderOutput",
    ),
    "pretrained": ("Sam2PreTrainedModel",),
    "processing": ("Sam2Processor",),
    "registration": ("register",),
    "video_configuration": ("Sam2VideoConfig", "Sam2VideoMaskDecoderConfig", "Sam2VideoPromptEncoderConfig"),
    "video_modeling": ("Sam2VideoModel",),
    "video_outputs": ("Sam2VideoSegmentationOutput",),
    "video_processing": ("Sam2VideoProcessor",),
    "video_session": ("Sam2VideoInferenceCache", "Sam2VideoInferenceSession"),
    "video_video_processing": ("Sam2VideoVideoProcessor",),
    "vision": ("Sam2HieraDetModel", "Sam2VisionModel"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
