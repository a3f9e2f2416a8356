"""The objects of a video and their tracks: what a video session and a live stream have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.config import STRIDE, STRIDES, SizeHW
from masklet.engine import Engine
from masklet.errors import CheckpointError, ImageError, PromptError
from masklet.model.neck import Features
from masklet.video.frame_column import FrameColumn
from masklet.video.frame_result import FrameResult, make_frame_result, no_such_object
from masklet.video.frames import width_by_height
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame, ResultPacking, ResultSpool
from masklet.video.policy import MAX_POINTERS, MemoryPolicy, MemorySelection, MemoryShape, check_selection
from masklet.video.prompts import read_frame_prompt
from masklet.video.spool import FrameSpool, Spool, TensorPacking
from masklet.video.tracker import FramePrompt, memory_maps, read_memory, track_object, track_objects

FeaturesOf = Callable[[int], Features]
"""Returns the features of a frame, encoding it if necessary."""


@dataclass
class Track:
    """One object: its prompts, and its memory."""

    number: int
    """From 0, in the order in which objects were added. It chooses the colour; label images hold it plus 1."""
    bank: ObjectMemory
    conditioned: MutableMapping[int, Tensor]
    """Frames that were corrected since tracking last advanced, each conditioned on the memory from before."""
    clicks: dict[int, FramePrompt] = field(default_factory=dict)
    """Points and boxes of each prompted frame, which later clicks add to. Masks are not kept: they are results."""
    tracked_steps: FrameColumn[int] = field(default_factory=lambda: FrameColumn("q"))
    """Frames that tracking has reached, with its step: 1 forward, -1 backward."""

    def copy(self) -> Track:
        """An independent copy. Results that lie in a spool cannot be copied."""
        return Track(
            self.number, self.bank.copy(), dict(self.conditioned), dict(self.clicks), self.tracked_steps.copy()
        )

    def clear(self) -> None:
        """Forget everything, and free the space in the spool."""
        self.bank.clear()
        self.conditioned.clear()


def check_can_track(engine: Engine, max_objects: int) -> None:
    """Check that objects can be tracked.

    Raises:
        PromptError: ``max_objects`` is less than 1.
        CheckpointError: The model has no memory.
    """
    if max_objects < 1:
        raise PromptError(f"max_objects is {max_objects}: expected at least 1, the objects tracked in one batch")
    if not engine.config.has_memory:
        raise CheckpointError(
            "this model was saved without its memory (model_type sam2): it segments images and cannot track objects "
            "through videos. Load the whole checkpoint (sam2_video)"
        )


class Tracks:
    """Objects by id, each with a memory of its own: prompts for one object do not change another.

    Args:
        engine: Of a model with memory.
        policy: Chooses the frames whose memories a frame reads.
        max_objects: The largest batch of objects.
        size_hw: Of the video.
        input_hw: Of the network's input.
        spool: Where past results are kept; in memory if None, for videos that cannot go back.
        can_rewind: Whether past frames can be encoded again.
    """

    def __init__(
        self,
        engine: Engine,
        policy: MemoryPolicy,
        *,
        max_objects: int,
        size_hw: SizeHW,
        input_hw: SizeHW,
        spool: Spool | None,
        can_rewind: bool,
    ) -> None:
        check_can_track(engine, max_objects)
        self.engine = engine
        self.policy = policy
        self.max_objects = max_objects
        self.fixed_shapes = engine.pads_memory
        self.size_hw = size_hw
        self.input_hw = input_hw
        self.spool = spool
        self.can_rewind = can_rewind
        self.objects: dict[Hashable, Track] = {}
        self._next_number = 0

    def copy(self) -> Tracks:
        """An independent copy of objects whose results are kept in memory."""
        copied = copy.copy(self)
        copied.objects = {object_id: track.copy() for object_id, track in self.objects.items()}
        return copied

    def new_track(self, number: int | None = None) -> Track:
        """A track without prompts, not yet among the objects; by default with the next number."""
        number = self._next_number if number is None else number
        if self.spool is None:
            return Track(number, ObjectMemory(), {})
        dim, dtype, device = self.engine.config.hidden_size, self.engine.dtype, self.engine.device
        height, width = self.input_hw
        results = ResultPacking((height // STRIDES[0], width // STRIDES[0]), dim, dtype, device)
        conditioned = TensorPacking((1, dim, height // STRIDE, width // STRIDE), dtype, device)
        return Track(number, ObjectMemory(ResultSpool(self.spool, results)), FrameSpool(self.spool, conditioned))

    def add(self, object_id: Hashable, track: Track) -> None:
        """Put a track among the objects, or back in its place."""
        self.objects[object_id] = track
        self._next_number = max(self._next_number, track.number + 1)  # a number is never used again

    @torch.inference_mode()
    def prompt(self, object_id: Hashable, frame: int, features_of: FeaturesOf, prompt: FramePrompt) -> ObjectFrame:
        """Prompt or correct an object: see ``VideoSession.prompt``. A refused prompt changes nothing."""
        track = self.objects.get(object_id) or self.new_track()
        bank = track.bank
        if frame in track.clicks:
            prompt = prompt.after(track.clicks[frame])
        previous = bank[frame].logits if frame in bank else None
        conditioned = self._condition(track, frame, features_of) if prompt.mask is None else None
        result, memory = track_object(self.engine, features_of(frame), prompt, conditioned, previous)
        if prompt.mask is not None and not (result.logits > 0).any():
            raise PromptError(
                f"mask of {int(prompt.mask.sum())} pixels at the network's input of {width_by_height(self.input_hw)} "
                "is too small: prompt a larger part, or open the video with a larger resolution="
            )
        bank.put(frame, result, memory, is_prompted=True)
        bank.keep_maps(self.policy.keeps(frame, bank.prompted, step=track.tracked_steps.get(frame, 1)))
        track.clicks.pop(frame, None)
        if prompt.mask is None:
            track.clicks[frame] = prompt
        self.add(object_id, track)
        return result

    def _condition(self, track: Track, frame: int, features_of: FeaturesOf) -> Tensor | None:
        """The conditioned map of a frame that tracking has reached. Elsewhere a prompt starts from the frame alone.

        All clicks of a frame read the same memory, since a click must not read the answer that it corrects.
        """
        if frame not in track.tracked_steps:
            return None
        if frame in track.conditioned:
            return track.conditioned[frame]
        selection = self._select(track.bank, frame, track.tracked_steps[frame])
        self._restore_maps([(track.bank, selection)], features_of)
        conditioned = read_memory(self.engine, features_of(frame), [track.bank], [selection])
        track.conditioned[frame] = conditioned
        return conditioned

    @torch.inference_mode()
    def advance(
        self, frame: int, features_of: FeaturesOf, step: int, object_ids: Collection[Hashable] | None = None
    ) -> dict[Hashable, ObjectFrame]:
        """Track these objects, or all, into a frame. An object that was prompted in it keeps that result."""
        chosen = list(self.objects) if object_ids is None else object_ids
        advancing = {object_id: self.objects[object_id] for object_id in chosen}
        to_track = {object_id: track.bank for object_id, track in advancing.items() if frame not in track.bank.prompted}
        results = self._track(frame, features_of, step, to_track)
        for track in advancing.values():
            track.tracked_steps[frame] = step
            track.conditioned.clear()
            track.bank.keep_maps(self.policy.keeps(frame, track.bank.prompted, step=step))
        return {
            object_id: results[object_id] if object_id in results else track.bank[frame]
            for object_id, track in advancing.items()
        }

    def _track(
        self, frame: int, features_of: FeaturesOf, step: int, banks: Mapping[Hashable, ObjectMemory]
    ) -> dict[Hashable, ObjectFrame]:
        """Track objects into a frame in batches, and put the results into their banks."""
        selections = {object_id: self._select(bank, frame, step) for object_id, bank in banks.items()}
        self._restore_maps([(banks[object_id], selection) for object_id, selection in selections.items()], features_of)
        results = {}
        for batch in self._batches(selections):
            tracked = track_objects(
                self.engine,
                features_of(frame),
                [banks[object_id] for object_id in batch],
                [selections[object_id] for object_id in batch],
                fixed_shapes=self.fixed_shapes,
            )
            for object_id, (result, memory) in zip(batch, tracked, strict=True):
                banks[object_id].put(frame, result, memory, is_prompted=False)
                results[object_id] = result
        return results

    def _batches(self, selections: Mapping[Hashable, MemorySelection]) -> Iterator[list[Hashable]]:
        """Objects whose selections have one shape, at most ``max_objects`` in a batch."""
        by_shape: dict[MemoryShape, list[Hashable]] = {}
        for object_id, selection in selections.items():
            by_shape.setdefault(selection.shape(fixed=self.fixed_shapes), []).append(object_id)
        for object_ids in by_shape.values():
            for start in range(0, len(object_ids), self.max_objects):
                yield object_ids[start : start + self.max_objects]

    def _select(self, bank: ObjectMemory, frame: int, step: int) -> MemorySelection:
        selection = self.policy(frame, bank.prompted, bank, step=step)
        check_selection(selection, frame, bank, self.policy)
        held = tuple(entry for entry in selection.maps if entry[0] in bank.maps)
        # What is neither held nor can be computed again is left out, unless nothing would be left.
        return selection if self.can_rewind or not held else replace(selection, maps=held)

    def _restore_maps(
        self, selections: Iterable[tuple[ObjectMemory, MemorySelection]], features_of: FeaturesOf
    ) -> None:
        """Compute again the selected maps that were dropped. A frame is encoded once for all objects."""
        missing: dict[int, list[ObjectMemory]] = {}
        for bank, selection in selections:
            for frame, _ in selection.maps:
                if frame not in bank.maps:
                    missing.setdefault(frame, []).append(bank)
        for frame, banks in missing.items():
            for bank in banks:
                (bank.maps[frame],) = memory_maps(
                    self.engine, features_of(frame), [bank[frame]], is_prompted=frame in bank.prompted
                )

    def remove(self, object_id: Hashable) -> None:
        """Forget an object."""
        if object_id not in self.objects:
            raise no_such_object(object_id, self.objects)
        self.objects.pop(object_id).clear()

    def remove_prompt(self, object_id: Hashable, frame: int) -> None:
        """Undo all prompts for an object in one frame, which is then tracked as any other."""
        track = self.objects.get(object_id)
        if track is None or frame not in track.bank.prompted:
            where = "nowhere" if track is None else ", ".join(map(str, sorted(track.bank.prompted)))
            raise PromptError(f"object {object_id!r} was not prompted in frame {frame}: it was in {where}")
        if len(track.bank.prompted) == 1:
            raise PromptError(f"frame {frame} holds the only prompt of object {object_id!r}: remove the object instead")
        track.bank.discard(frame)
        track.clicks.pop(frame, None)
        track.tracked_steps.pop(frame, None)
        track.conditioned.clear()  # they may have read its memory

    def forget_before(self, frame: int) -> None:
        """Forget everything that no frame from ``frame`` on will read."""
        recent = set(range(frame - MAX_POINTERS, frame + 1))
        for track in self.objects.values():
            kept = self.policy.keeps(frame, track.bank.prompted, step=1) | recent
            track.bank.forget_all_but(kept, latest=frame)
            for frames in (track.clicks, track.tracked_steps):
                for other in frames.keys() - kept:
                    del frames[other]

    def check_size(self, size_hw: SizeHW, frame: int) -> None:
        """Raise an ImageError if a frame has another size than the video."""
        if size_hw != self.size_hw:
            raise ImageError(
                f"frame {frame} is {width_by_height(size_hw)}, the frames before it {width_by_height(self.size_hw)}: "
                "expected one size throughout. Resize the frames, or start a new video where the size changes"
            )

    def results_in(self, frame: int) -> dict[Hashable, ObjectFrame]:
        """The results of a frame, by object."""
        return {object_id: track.bank[frame] for object_id, track in self.objects.items() if frame in track.bank}

    @torch.inference_mode()
    def frame_result(
        self,
        frame: int,
        time: float,
        results: Mapping[Hashable, ObjectFrame],
        image: np.ndarray | None,
        *,
        packed: bool = False,
    ) -> FrameResult:
        """What callers get of a frame: see ``make_frame_result``."""
        return make_frame_result(
            frame,
            time,
            results,
            [self.objects[object_id].number for object_id in results],
            input_hw=self.input_hw,
            size_hw=self.size_hw,
            image=image,
            packed=packed,
        )

    def read(self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> FramePrompt:
        """A prompt for one object: see ``read_frame_prompt``."""
        return read_frame_prompt(
            points, labels, box, mask, size_hw=self.size_hw, input_hw=self.input_hw, device=self.engine.device
        )
