"""The tests' tiny network as a segmenter, and a video for it."""

from __future__ import annotations

import numpy as np
from tiny_network import make_tiny_model

from masklet.engine import make_engine
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter


def tiny_segmenter(engine: str = "auto") -> Segmenter:
    """A network of random weights whose objects stay visible."""
    model = make_tiny_model()
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    return Segmenter(make_engine(model, engine), ImageProcessor(model.config.image_size))


def moving_rectangles(count: int) -> list[np.ndarray]:
    """Frames (48, 80, 3) uint8 with a bright rectangle that moves on noise."""
    frames = np.random.default_rng(0).integers(0, 90, (count, 48, 80, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[10:32, (4 + 3 * index) % 60 :][:, :20] += 150
    return list(frames)
