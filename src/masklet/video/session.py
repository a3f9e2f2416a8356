"""A film: prompt, track, correct, go back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from masklet.errors import PromptError
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.video.frames import Film, Frame
from masklet.video.memory import PaperPolicy, Spool
from masklet.video.tracks import FrameResult, Tracks

Direction = Literal["forward", "backward", "both"]

FEATURES_KEPT = 2
"""Encoded frames at hand: the one that is tracked, and one that is looked at or prompted beside it."""


class Session:
    """A film and the objects that are followed through it. Made by ``Segmenter.video``."""

    def __init__(self, model: Sam2Model, processor: Sam2ImageProcessor, film: Film, policy: PaperPolicy) -> None:
        self.model = model
        self.processor = processor
        self.film = film
        self._tracks = Tracks(model, policy, size_hw=film.size_hw, input_hw=processor.input_hw, spool=Spool())
        self._features: OrderedDict[int, list[Tensor]] = OrderedDict()

    @property
    def objects(self) -> tuple[Hashable, ...]:
        """Names of the objects."""
        return tuple(self._tracks.objects)

    def prompt(
        self,
        frame: int,
        object: Hashable = 1,
        *,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
    ) -> Masks:
        """Show an object in a frame; on a frame that was tracked, correct it there.

        All clicks of a frame add up; a new box or mask takes the place of an earlier one. The frame keeps this result
        when the film is tracked again, and steers the frames around it. Other objects are not touched.

        Args:
            frame: Its number, from 0.
            object: The object's name, anything hashable.
            points: [(x, y), …] on the object; (x, y, 0) is beside it. Pixels of the film, x right and y down.
            labels: 1 on the object, 0 beside it; all 1 if None.
            box: (x0, y0, x1, y1) around it.
            mask: Its mask, (height, width), taken as it is.

        Returns:
            The object's mask in this frame.

        Raises:
            PromptError: The prompt makes no sense, or the film has no such frame.
        """
        prompts = {"points": points, "labels": labels, "box": box, "mask": mask}
        seen = self._tracks.prompt(object, frame, self._features_of, **prompts)
        picture = None
        return self._tracks.result(frame, 0.0, {object: seen}, picture).masks

    def remove(self, object: Hashable) -> None:
        """Follow an object no longer. Other objects are not touched."""
        self._tracks.remove(object)

    def reset(self) -> None:
        """Forget all objects."""
        for name in self.objects:
            self._tracks.remove(name)

    def track(
        self, start: int | None = None, end: int | None = None, direction: Direction = "forward"
    ) -> Iterator[FrameResult]:
        """Follow all objects through the film, yielding each frame as it is done.

        Args:
            start: First frame; the first that was prompted if None, or the last one when going backward.
            end: Last frame, included; the film's end if None, or its beginning when going backward.
            direction: ``"forward"``, ``"backward"``, or ``"both"``: first forward from ``start``, then backward.

        Raises:
            PromptError: Nothing was prompted.
        """
        if direction not in ("forward", "backward", "both"):
            raise PromptError(f"direction is {direction!r}: expected forward, backward or both")
        prompted = {frame for track in self._tracks.objects.values() for frame in track.bank.prompted}
        if not prompted:
            raise PromptError("nothing to track: show an object first, film.prompt(frame=0, points=[(x, y)])")
        if direction in ("forward", "both"):
            yield from self._go(min(prompted) if start is None else start, end, step=1)
        if direction == "backward":
            yield from self._go(max(prompted) if start is None else start, end, step=-1)
        if direction == "both":
            first = min(prompted) if start is None else start
            yield from self._go(first - 1, None, step=-1)

    def _go(self, start: int, end: int | None, step: int) -> Iterator[FrameResult]:
        if start < 0:
            return
        stop = None if end is None else end + step
        if stop is not None and stop < 0:
            stop = None
        for frame in self.film.frames(start, stop, step):
            seen = self._tracks.advance(frame.index, partial(self._features_of, at_hand=frame), step)
            yield self._tracks.result(frame.index, frame.time, seen, frame.picture)

    def _features_of(self, index: int, at_hand: Frame | None = None) -> list[Tensor]:
        if index not in self._features:
            frame = at_hand if at_hand is not None and at_hand.index == index else self.film[index]
            with torch.inference_mode():
                pixels = self.processor.frame_values(frame.picture).to(self.model.device)
                self._features[index] = self.model.get_image_features(pixels)
        self._features.move_to_end(index)
        while len(self._features) > FEATURES_KEPT:
            self._features.popitem(last=False)
        return self._features[index]
