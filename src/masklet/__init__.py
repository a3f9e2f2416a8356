"""SAM 2 for images and videos: a click, a box or a rough mask gives the object's mask.

Names are loaded on first use, so that ``import masklet`` alone is instant and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from masklet.version import __version__

if TYPE_CHECKING:
    from masklet.compat.transformers.configuration import Sam2Config as Sam2Config
    from masklet.compat.transformers.configuration import Sam2HieraDetConfig as Sam2HieraDetConfig
    from masklet.compat.transformers.configuration import Sam2MaskDecoderConfig as Sam2MaskDecoderConfig
    from masklet.compat.transformers.configuration import Sam2PromptEncoderConfig as Sam2PromptEncoderConfig
    from masklet.compat.transformers.configuration import Sam2VisionConfig as Sam2VisionConfig
    from masklet.compat.transformers.image_processing import Sam2ImageProcessor as Sam2ImageProcessor
    from masklet.compat.transformers.modeling import Sam2Model as Sam2Model
    from masklet.compat.transformers.pretrained import Sam2PreTrainedModel as Sam2PreTrainedModel
    from masklet.compat.transformers.processing import Sam2Processor as Sam2Processor
    from masklet.compat.transformers.video_configuration import Sam2VideoConfig as Sam2VideoConfig
    from masklet.compat.transformers.video_modeling import Sam2VideoModel as Sam2VideoModel
    from masklet.compat.transformers.video_processing import Sam2VideoProcessor as Sam2VideoProcessor
    from masklet.compat.transformers.video_session import Sam2VideoInferenceSession as Sam2VideoInferenceSession
    from masklet.compat.transformers.video_video_processing import Sam2VideoVideoProcessor as Sam2VideoVideoProcessor
    from masklet.compat.transformers.vision import Sam2HieraDetModel as Sam2HieraDetModel
    from masklet.compat.transformers.vision import Sam2VisionModel as Sam2VisionModel
    from masklet.config import Sam2EverythingConfig as Sam2EverythingConfig
    from masklet.config import Sam2ImageEncoderConfig as Sam2ImageEncoderConfig
    from masklet.config import Sam2MemoryAttentionConfig as Sam2MemoryAttentionConfig
    from masklet.config import Sam2MemoryEncoderConfig as Sam2MemoryEncoderConfig
    from masklet.detection import load_detector as load_detector
    from masklet.errors import CheckpointError as CheckpointError
    from masklet.errors import ConfigError as ConfigError
    from masklet.errors import DataError as DataError
    from masklet.errors import DetectorError as DetectorError
    from masklet.errors import DeviceError as DeviceError
    from masklet.errors import ImageError as ImageError
    from masklet.errors import MaskletError as MaskletError
    from masklet.errors import PromptError as PromptError
    from masklet.errors import SessionError as SessionError
    from masklet.errors import SpoolError as SpoolError
    from masklet.errors import TrainingError as TrainingError
    from masklet.errors import VideoError as VideoError
    from masklet.image import EncodedImage as EncodedImage
    from masklet.loading import load as load
    from masklet.results import CandidateMasks as CandidateMasks
    from masklet.results import Masks as Masks
    from masklet.segmenter import Segmenter as Segmenter
    from masklet.video.frame_result import FrameResult as FrameResult
    from masklet.video.live import LiveVideo as LiveVideo
    from masklet.video.session import VideoSession as VideoSession
    from masklet.video.stream import VideoStream as VideoStream

_HOMES = {
    "compat.transformers.configuration": (
        "Sam2Config",
        "Sam2HieraDetConfig",
        "Sam2MaskDecoderConfig",
        "Sam2PromptEncoderConfig",
        "Sam2VisionConfig",
    ),
    "compat.transformers.image_processing": ("Sam2ImageProcessor",),
    "compat.transformers.modeling": ("Sam2Model",),
    "compat.transformers.pretrained": ("Sam2PreTrainedModel",),
    "compat.transformers.processing": ("Sam2Processor",),
    "compat.transformers.video_configuration": ("Sam2VideoConfig",),
    "compat.transformers.video_modeling": ("Sam2VideoModel",),
    "compat.transformers.video_processing": ("Sam2VideoProcessor",),
    "compat.transformers.video_session": ("Sam2VideoInferenceSession",),
    "compat.transformers.video_video_processing": ("Sam2VideoVideoProcessor",),
    "compat.transformers.vision": ("Sam2HieraDetModel", "Sam2VisionModel"),
    "config": (
        "Sam2EverythingConfig",
        "Sam2ImageEncoderConfig",
        "Sam2MemoryAttentionConfig",
        "Sam2MemoryEncoderConfig",
    ),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DetectorError",
        "DeviceError",
        "VideoError",
        "MaskletError",
        "ImageError",
        "PromptError",
        "SessionError",
        "SpoolError",
        "TrainingError",
    ),
    "detection": ("load_detector",),
    "image": ("EncodedImage",),
    "loading": ("load",),
    "results": ("CandidateMasks", "Masks"),
    "segmenter": ("Segmenter",),
    "video.frame_result": ("FrameResult",),
    "video.live": ("LiveVideo",),
    "video.session": ("VideoSession",),
    "video.stream": ("VideoStream",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'masklet' has no attribute {name!r}")
    return getattr(import_module(f"masklet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
