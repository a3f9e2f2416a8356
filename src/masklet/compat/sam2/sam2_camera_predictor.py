"""SAM2CameraPredictor: frames as they arrive, with the methods of the forks for live video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.compat.sam2.tracked_objects import prompt_object, prompt_of
from masklet.compat.sam2.tracking_predictor import FrameOutput, TrackingPredictor
from masklet.compat.sam2.utils.transforms import rgb_pixels
from masklet.errors import PromptError
from masklet.model.neck import Features
from masklet.segmenter import MAX_OBJECTS
from masklet.video.policies import make_policy
from masklet.video.policy import MAX_PROMPTED
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Tracks


class SAM2CameraPredictor(TrackingPredictor):
    """Tracks objects through frames that arrive one at a time, without end and in bounded memory.

    The constructor's arguments are those of ``TrackingPredictor``.
    """

    frame_idx = -1
    """The number of the last frame."""
    _tracks: Tracks | None = None
    _features: Features | None = None

    def load_first_frame(self, img: Any) -> None:
        """Starts with a frame: (height, width, 3) uint8 RGB, or a PIL image. Earlier objects are forgotten."""
        pixels = rgb_pixels(img)
        processor, engine = self.image_processor, self.engine
        max_prompted = self.max_prompted or MAX_PROMPTED
        policy = make_policy("paper", num_maskmem=engine.config.num_maskmem, max_prompted=max_prompted)
        self._tracks = Tracks(
            engine,
            policy,
            max_objects=MAX_OBJECTS,
            size_hw=(pixels.shape[0], pixels.shape[1]),
            input_hw=processor.input_hw,
            spool=None,
            can_rewind=False,
        )
        self.frame_idx = -1
        self._encode(pixels)

    def add_conditioning_frame(self, img: Any) -> None:
        """Adds a frame that is prompted next, without tracking into it."""
        self._started()
        self._encode(rgb_pixels(img))

    def add_new_prompt(
        self,
        frame_idx: int,
        obj_id: Any,
        points: Any = None,
        labels: Any = None,
        bbox: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
    ) -> FrameOutput:
        """Prompts an object in the last frame: see ``SAM2VideoPredictor.add_new_points_or_box``."""
        prompt = prompt_of(points, labels, bbox, self._started(), normalize_coords=normalize_coords)
        return self._prompt(frame_idx, obj_id, prompt, replaces=clear_old_points)

    def add_new_points(self, *args: Any, **kwargs: Any) -> FrameOutput:
        """Another name of ``add_new_prompt``."""
        return self.add_new_prompt(*args, **kwargs)

    def add_new_mask(self, frame_idx: int, obj_id: Any, mask: Any) -> FrameOutput:
        """Prompts an object with its mask (height, width) in the last frame."""
        return self._prompt(frame_idx, obj_id, self._started().read(mask=mask), replaces=True)

    def track(self, img: Any) -> tuple[list[Any], Tensor]:
        """Tracks all objects into the next frame.

        Returns:
            The ids of all objects, and their logits (objects, 1, height, width).

        Raises:
            ImageError: The frame has another size than the first.
        """
        tracks = self._started()
        self._encode(rgb_pixels(img))
        tracks.advance(self.frame_idx, self._features_of, 1)
        return self.frame_output(tracks, self.frame_idx)[1:]

    def reset_state(self) -> None:
        """Forgets all objects and frames."""
        self._tracks = self._features = None
        self.frame_idx = -1

    def _started(self) -> Tracks:
        if self._tracks is None:
            raise RuntimeError("no frame was loaded: call load_first_frame(image) first")
        return self._tracks

    def _encode(self, pixels: np.ndarray) -> None:
        tracks = self._started()
        tracks.check_size((pixels.shape[0], pixels.shape[1]), self.frame_idx + 1)
        with torch.inference_mode():
            self._features = self.engine.encode(self.image_processor.frame_values(pixels))
        self.frame_idx += 1
        tracks.forget_before(self.frame_idx)

    def _features_of(self, index: int) -> Features:
        if index != self.frame_idx or self._features is None:
            raise PromptError(f"frame {index} is past: expected {self.frame_idx}, the last one")
        return self._features

    def _prompt(self, frame_idx: int, obj_id: Any, prompt: FramePrompt, *, replaces: bool) -> FrameOutput:
        tracks = self._started()
        prompt_object(tracks, obj_id, frame_idx, self._features_of, prompt, replaces=replaces, is_kept=True)
        return self.frame_output(tracks, self.frame_idx)
