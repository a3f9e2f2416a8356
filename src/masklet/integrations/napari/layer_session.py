"""The image of a layer and its objects: changed prompts are segmented again, and tracking continues from them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet import EncodedImage, Segmenter, VideoSession
from masklet.config import SizeHW
from masklet.integrations.napari.prompts import Key, LayerPrompt
from masklet.video.plan import Direction


@dataclass(frozen=True)
class FrameMasks:
    """The masks of some objects in one frame."""

    frame: int
    masks: Mapping[int, np.ndarray]
    """Mask of each object id, (height, width) bool."""


class LayerSession:
    """An image or a stack of frames, and its objects. Use it from one thread at a time.

    Args:
        segmenter: The model.
        data: The data of an image layer: (height, width[, 3 or 4]), or with frames before; also dask, zarr and memory
            maps, which are read frame by frame.
        has_frames: Whether the first axis counts frames.
        value_range: The values that become black and white, or None for images in 8 bits; see ``Segmenter.image``.
    """

    def __init__(
        self, segmenter: Segmenter, data: Any, *, has_frames: bool, value_range: tuple[float, float] | None = None
    ) -> None:
        self.session: VideoSession | None = None
        self.image: EncodedImage | None = None
        if has_frames:
            self.session = segmenter.video(data, value_range=value_range)
        else:
            self.image = segmenter.image(np.asarray(data), value_range=value_range)
        self._done: dict[Key, LayerPrompt] = {}

    @property
    def size_hw(self) -> SizeHW:
        """Size of a frame."""
        return self.session.video.size_hw if self.image is None else self.image.size_hw  # type: ignore[union-attr]

    def segment(self, wanted: Mapping[Key, LayerPrompt]) -> Generator[FrameMasks]:
        """Segment new and changed prompts, and undo prompts that are gone, frame by frame."""
        for key in [key for key in self._done if key not in wanted]:
            yield FrameMasks(key.frame, {key.object_id: self._undo(key)})
        for key, prompt in wanted.items():
            if self._done.get(key) != prompt:
                yield FrameMasks(key.frame, {key.object_id: self._prompt(key, prompt)})

    def track(
        self, direction: Direction, start: int | None, changed: Callable[[], Mapping[Key, LayerPrompt]]
    ) -> Generator[FrameMasks]:
        """Track all objects, and meanwhile segment prompts that change.

        Args:
            direction: See ``VideoSession.track``.
            start: The first frame, or None for the first prompted one.
            changed: Gives the prompts as they are now. It is called between two frames.

        Raises:
            PromptError: Nothing was prompted.
        """
        assert self.session is not None
        for result in self.session.track(start, None, direction):
            masks = result.masks.without_overlap().masks
            yield FrameMasks(result.index, {int(key): mask for key, mask in zip(result.object_ids, masks, strict=True)})  # type: ignore[call-overload]
            yield from self.segment(changed())

    def _prompt(self, key: Key, prompt: LayerPrompt) -> np.ndarray:
        if self.image is not None:
            mask = self.image.predict(**prompt.keywords).masks[0]
        else:
            assert self.session is not None
            self._forget(key)
            mask = self.session.prompt(key.frame, key.object_id, **prompt.keywords).masks[0]
        self._done[key] = prompt
        return mask

    def _undo(self, key: Key) -> np.ndarray:
        self._forget(key)
        return np.zeros(self.size_hw, bool)

    def _forget(self, key: Key) -> None:
        """Take back a prompt: points of a frame would add up otherwise."""
        if self._done.pop(key, None) is None or self.session is None:
            return
        has_others = any(other.object_id == key.object_id for other in self._done)
        self.session.remove(key.object_id, key.frame if has_others else None)
