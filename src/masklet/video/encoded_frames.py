"""The features of a video's frames: encoded when they are needed, and the last ones kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch

from masklet.engine import Engine
from masklet.model.neck import Features
from masklet.processing import Sam2ImageProcessor
from masklet.video.frames import Video
from masklet.video.readers import Frame

MAX_ENCODED = 2
"""Frames that are kept: the one that is tracked, and one that is prompted beside it."""


class EncodedFrame(NamedTuple):
    """A frame and its features."""

    features: Features
    image: np.ndarray


class EncodedFrames:
    """Encodes the frames of a video, and keeps the last ``MAX_ENCODED``."""

    def __init__(self, engine: Engine, processor: Sam2ImageProcessor, video: Video) -> None:
        self.engine = engine
        self.processor = processor
        self.video = video
        self._recent: OrderedDict[int, EncodedFrame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

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
            with torch.inference_mode():
                features = self.engine.encode(self.processor.frame_values(frame.image))
            self._recent[index] = EncodedFrame(features, frame.image)
        self._recent.move_to_end(index)
        while len(self._recent) > MAX_ENCODED:
            self._recent.popitem(last=False)
        return self._recent[index].features

    def image(self, index: int) -> np.ndarray:
        """(height, width, 3) uint8: a frame, read again only if it is not among the last."""
        return self._recent[index].image if index in self._recent else self.video[index].image
