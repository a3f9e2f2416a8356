"""SAM 2 for images and videos: a click, a box or a rough mask gives the object's mask.

Names are loaded on first use, so that ``import masklet`` alone is instant and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from masklet.version import __version__

if TYPE_CHECKING:
    from masklet.config import Sam2Config as Sam2Config
    from masklet.config import Sam2EverythingConfig as Sam2EverythingConfig
    from masklet.config import Sam2ImageEncoderConfig as Sam2ImageEncoderConfig
    from masklet.config import Sam2MaskDecoderConfig as Sam2MaskDecoderConfig
    from masklet.config import Sam2MemoryAttentionConfig as Sam2MemoryAttentionConfig
    from masklet.config import Sam2MemoryEncoderConfig as Sam2MemoryEncoderConfig
    from masklet.config import Sam2PromptEncoderConfig as Sam2PromptEncoderConfig
    from masklet.errors import CheckpointError as CheckpointError
    from masklet.errors import ConfigError as ConfigError
    from masklet.errors import DataError as DataError
    from masklet.errors import DeviceError as DeviceError
    from masklet.errors import ImageError as ImageError
    from masklet.errors import MaskletError as MaskletError
    from masklet.errors import PromptError as PromptError
    from masklet.errors import SessionError as SessionError
    from masklet.errors import SpoolError as SpoolError
    from masklet.errors import TrainingError as TrainingError
    from masklet.errors import VideoError as VideoError
    from masklet.image import EncodedImage as EncodedImage
    from masklet.model.sam2 import Sam2Model as Sam2Model
    from masklet.processing import Sam2ImageProcessor as Sam2ImageProcessor
    from masklet.processing import Sam2Processor as Sam2Processor
    from masklet.results import CandidateMasks as CandidateMasks
    from masklet.results import Masks as Masks
    from masklet.segmenter import Segmenter as Segmenter
    from masklet.segmenter import load as load
    from masklet.video.frame_result import FrameResult as FrameResult
    from masklet.video.session import VideoSession as VideoSession
    from masklet.video.stream import VideoStream as VideoStream

_HOMES = {
    "config": (
        "Sam2Config",
        "Sam2EverythingConfig",
        "Sam2ImageEncoderConfig",
        "Sam2MaskDecoderConfig",
        "Sam2MemoryAttentionConfig",
        "Sam2MemoryEncoderConfig",
        "Sam2PromptEncoderConfig",
    ),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DeviceError",
        "VideoError",
        "MaskletError",
        "ImageError",
        "PromptError",
        "SessionError",
        "SpoolError",
        "TrainingError",
    ),
    "image": ("EncodedImage",),
    "model.sam2": ("Sam2Model",),
    "processing": ("Sam2ImageProcessor", "Sam2Processor"),
    "results": ("CandidateMasks", "Masks"),
    "segmenter": ("Segmenter", "load"),
    "video.frame_result": ("FrameResult",),
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
