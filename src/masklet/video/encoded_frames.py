"""The features of a video's frames: encoded when they are needed, and the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from masklet.engine import Engine
from masklet.model.neck import Features
from masklet.processing import ImageProcessor
from masklet.video.frames import Video, with_following
from masklet.video.readers import Frame

MAX_ENCODED = 2
"""Frames that are kept: the one that is tracked, and one that is prompted beside it."""


class EncodedFrame(NamedTuple):
    """A frame and its features."""

    features: Features
    image: np.ndarray


def encode_frame(
    engine: Engine, processor: ImageProcessor, image: np.ndarray, staged: Tensor | None = None
) -> Features:
    """The features of one frame, (height, width, 3) uint8; of ``staged``, see ``Frame``, if there is one."""
    with torch.inference_mode():
        if not engine.is_asynchronous:
            return engine.encode(processor.frame_values(image))
        return engine.encode_frame(engine.stage(image) if staged is None else staged, processor.config)


class EncodedFrames:
    """Encodes the frames of a video, and keeps the last ``MAX_ENCODED``."""

    def __init__(self, engine: Engine, processor: ImageProcessor, video: Video) -> None:
        self.engine = engine
        self.processor = processor
        self.video = video
        self._recent: OrderedDict[int, EncodedFrame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def memory_bytes(self) -> int:
        """The size of the kept frames and their features."""
        frames = self._recent.values()
        tensors = sum(tensor.untyped_storage().nbytes() for frame in frames for tensor in frame.features)
        return tensors + sum(frame.image.nbytes for frame in frames)

    def features(self, index: int, at_hand: Frame | None = None) -> Features:
        """The features of a frame.

        Args:
            index: Its number.
            at_hand: A frame that was read already. It is used if it is the one.

        Raises:
            VideoError: There is no such frame, or it cannot be read again.
        """
        if index not in self._recent:
            frame = at_hand if at_hand is not None and at_hand.index == index else self.video[index]
            features = encode_frame(self.engine, self.processor, frame.image, frame.staged)
            self._recent[index] = EncodedFrame(features, frame.image)
        self._recent.move_to_end(index)
        while len(self._recent) > MAX_ENCODED:
            self._recent.popitem(last=False)
        return self._recent[index].features

    def reading(self, frames: range) -> Iterator[tuple[Frame, Frame | None]]:
        """Read frames, each with the one after it if the engine may encode that already."""
        if not frames:
            return iter(())
        start, stop, step = frames.start, frames.stop, frames.step
        if not (self.engine.is_asynchronous and self.video.reads_ahead):
            return ((frame, None) for frame in self.video.frames(start, stop, step))
        return with_following(self.video.frames(start, stop, step, stage=self.engine.stage))

    def start(self, frame: Frame) -> None:
        """Launch the encoding of the frame that comes next, on a device that works on while the caller does."""
        self.features(frame.index, frame)

    def image(self, index: int) -> np.ndarray:
        """(height, width, 3) uint8: a frame, read again only if it is not among the last."""
        return self._recent[index].image if index in self._recent else self.video[index].image
