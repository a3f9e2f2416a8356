"""The objects of a video and their tracks: what a video session and a live stream have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.config import STRIDE, STRIDES, SizeHW
from masklet.engine import Engine
from masklet.errors import PromptError
from masklet.video.candidates import candidates_of_result, record_of
from masklet.video.frame_result import (
    FrameResult,
    check_can_unprompt,
    check_known,
    check_object_id,
    make_frame_result,
)
from masklet.video.frame_step import FeaturesOf, FrameStep
from masklet.video.frames import width_by_height
from masklet.video.memory import ObjectMemory
from masklet.video.memory_slots import MemorySlots
from masklet.video.object_frame import ObjectFrame, ResultPacking, ResultSpool
from masklet.video.pathways import parent_of
from masklet.video.policy import MAX_POINTERS, FrameRecord, MemoryPolicy
from masklet.video.prompts import read_frame_prompt
from masklet.video.result_fetch import PackingWorker
from masklet.video.spool import FrameSpool, Spool, TensorPacking
from masklet.video.stream_frames import check_frame_size
from masklet.video.track import Row, Track, check_can_track
from masklet.video.tracker import FramePrompt, mask_logits, prompt_objects, readable_memory, track_object


class Tracks:
    """Objects by id, each with a memory of its own: prompts for one object do not change another.

    Args:
        engine: Engine of a model with memory.
        policy: Chooses the frames whose memories a frame reads.
        max_objects: The largest batch of objects.
        size_hw: Size of the video.
        input_hw: Size of the network's input.
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
        self.max_objects = check_can_track(engine, max_objects, input_hw)
        self.engine = engine
        self.policy = policy
        self.fixed_shapes = engine.pads_memory
        self.slots = MemorySlots() if engine.batches_memory else None
        self.worker = PackingWorker() if engine.is_asynchronous else None
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
        number, others = self._next_number if number is None else number, range(1, self.policy.hypotheses)
        if self.spool is None:
            return Track(number, ObjectMemory(), {}, other_banks=[ObjectMemory() for _ in others])
        dim, dtype, device = self.engine.config.hidden_size, self.engine.dtype, self.engine.device
        height, width = self.input_hw
        results = ResultPacking((height // STRIDES[0], width // STRIDES[0]), dim, dtype, device)
        conditioned = TensorPacking((1, dim, height // STRIDE, width // STRIDE), dtype, device)
        bank, *other_banks = (ObjectMemory(ResultSpool(self.spool, results, self.worker)) for _ in (0, *others))
        return Track(number, bank, FrameSpool(self.spool, conditioned), other_banks=other_banks)

    def add(self, object_id: Hashable, track: Track) -> None:
        """Put a track among the objects, or back in its place."""
        self.objects[object_id] = track
        self._next_number = max(self._next_number, track.number + 1)  # a number is never used again

    @torch.inference_mode()
    def prompt(
        self,
        object_id: Hashable,
        frame: int,
        features_of: FeaturesOf,
        prompt: FramePrompt,
        *,
        replaces: bool = False,
    ) -> ObjectFrame:
        """Prompt or correct an object: see ``VideoSession.prompt``. A refused prompt changes nothing.

        ``replaces`` leaves out the earlier points and boxes of the frame, to which a prompt is added otherwise.
        """
        check_object_id(object_id)
        track = self.objects.get(object_id) or self.new_track()
        self.check_prompt(prompt)
        if frame in track.clicks and not replaces:
            prompt = prompt.after(track.clicks[frame])
        previous = track.result(frame).logits if frame in track.bank else None
        conditioned = self.condition(track, frame, features_of)  # also for a mask, which clicks may correct later
        result, memory = track_object(self.engine, features_of(frame), prompt, conditioned, previous)
        self._take_prompt(object_id, track, frame, features_of, prompt, result, memory)
        return result

    @torch.inference_mode()
    def prompt_new(
        self, frame: int, features_of: FeaturesOf, prompts: Mapping[Hashable, FramePrompt]
    ) -> dict[Hashable, ObjectFrame]:
        """Prompt objects that do not exist yet, in batches of ``max_objects``: see ``prompt_objects``."""
        each = iter(prompts.items())
        results: dict[Hashable, ObjectFrame] = {}
        while batch := list(islice(each, self.max_objects)):
            found = prompt_objects(self.engine, features_of(frame), [prompt for _, prompt in batch])
            for (object_id, prompt), (result, memory) in zip(batch, found, strict=True):
                self._take_prompt(object_id, self.new_track(), frame, features_of, prompt, result, memory)
                results[object_id] = result
        return results

    def check_prompt(self, prompt: FramePrompt) -> None:
        """Raise a PromptError if nothing of a mask is left at the size of the network's output."""
        if prompt.mask is not None and not (mask_logits(self.engine, prompt.mask) > 0).any():
            raise PromptError(
                f"mask of {int(prompt.mask.sum())} pixels at the network's input of {width_by_height(self.input_hw)} "
                "is too small: prompt a larger part, or open the video with a larger resolution="
            )

    def _take_prompt(
        self,
        object_id: Hashable,
        track: Track,
        frame: int,
        features_of: FeaturesOf,
        prompt: FramePrompt,
        result: ObjectFrame,
        memory: Tensor,
    ) -> None:
        """Keep what a prompt gave, and its points for later ones."""
        record = self._record_of_prompt(track, frame, result, features_of)
        self.take(object_id, track, frame, result, memory, record)
        track.clicks.pop(frame, None)
        if prompt.points is not None:
            track.clicks[frame] = replace(prompt, mask=None)

    def take(
        self,
        object_id: Hashable,
        track: Track,
        frame: int,
        result: ObjectFrame,
        memory: Tensor,
        record: FrameRecord | None = None,
    ) -> None:
        """Keep a result, its memory map and its record as those of a prompted frame."""
        track.put(frame, [(result, memory, record)], is_prompted=True)
        self._drop_maps(track, frame, track.tracked_steps.get(frame, 1))
        self.add(object_id, track)

    def _record_of_prompt(
        self, track: Track, frame: int, result: ObjectFrame, features_of: FeaturesOf
    ) -> FrameRecord | None:
        """The record of a prompted frame, if the policy keeps records."""
        if self.policy.choose is None:
            return None
        step = track.tracked_steps.get(frame, 0)
        row = self._corrected_row(track, frame, step or 1)
        candidates = candidates_of_result(result, features_of(frame), row)
        (choice,) = self._step_into(frame, features_of, step or 1).choose([candidates])
        parent = parent_of(track.banks, frame, track.final_row(frame)) if frame in track.bank else None
        return replace(record_of(candidates, choice, step), parent=0 if parent is None else parent[1])

    def _corrected_row(self, track: Track, frame: int, step: int) -> Row:
        """The hypothesis that the result of a frame continues."""
        rows = track.rows(frame, step)
        parent = parent_of(track.banks, frame, track.final_row(frame)) if len(rows) > 1 else None
        return rows[0 if parent is None else parent[1]]

    def _drop_maps(self, track: Track, frame: int, step: int) -> None:
        """Drop the maps that no frame nearby may read."""
        track.keep_maps(self._kept_frames(track, frame, step))

    def _kept_frames(self, track: Track, frame: int, step: int) -> set[int]:
        # The histories that end in this frame, for what comes next.
        rows = track.rows(frame + step, step)
        return set().union(*(self.policy.keeps(frame, row, step=step) for row in rows))

    def condition(self, track: Track, frame: int, features_of: FeaturesOf) -> Tensor | None:
        """The conditioned map of a frame that tracking has reached. Elsewhere a prompt starts from the frame alone.

        All clicks of a frame read the same memory, since a click must not read the answer that it corrects.
        """
        if frame not in track.tracked_steps:
            return None
        if frame in track.conditioned:
            return track.conditioned[frame]
        row = self._corrected_row(track, frame, track.tracked_steps[frame])
        into = self._step_into(frame, features_of, track.tracked_steps[frame])
        selection = into.select(row)
        into.restore_maps([(row, selection)])
        features = features_of(frame)
        conditioned = self.engine.read_memory(features, readable_memory(self.engine, features, [row], [selection]))
        track.conditioned[frame] = conditioned
        return conditioned

    @torch.inference_mode()
    def advance(
        self, frame: int, features_of: FeaturesOf, step: int, object_ids: Collection[Hashable] | None = None
    ) -> dict[Hashable, ObjectFrame]:
        """Track these objects, or all, into a frame. An object that was prompted in it keeps that result."""
        if self.worker is not None:
            self.worker.flush()
        chosen = list(self.objects) if object_ids is None else object_ids
        advancing = {object_id: self.objects[object_id] for object_id in chosen}
        to_track = {object_id: track for object_id, track in advancing.items() if frame not in track.bank.prompted}
        results = self._step_into(frame, features_of, step).track(to_track)
        for track in advancing.values():
            track.tracked_steps[frame] = step
            track.conditioned.clear()
            self._drop_maps(track, frame, step)
        return {
            object_id: results[object_id] if object_id in results else track.bank[frame]
            for object_id, track in advancing.items()
        }

    def _step_into(self, frame: int, features_of: FeaturesOf, step: int) -> FrameStep:
        return FrameStep(
            frame=frame,
            step=step,
            features_of=features_of,
            engine=self.engine,
            policy=self.policy,
            max_objects=self.max_objects,
            can_rewind=self.can_rewind,
            fixed_shapes=self.fixed_shapes,
            slots=self.slots,
        )

    def remove(self, object_id: Hashable) -> None:
        """Forget an object."""
        check_known(object_id, self.objects)
        self.objects.pop(object_id).clear()

    def remove_prompt(self, object_id: Hashable, frame: int) -> None:
        """Undo all prompts for an object in one frame, which is then tracked as any other."""
        check_object_id(object_id)
        track = self.objects.get(object_id)
        check_can_unprompt(object_id, frame, () if track is None else track.bank.prompted)
        assert track is not None
        track.discard(frame)
        track.clicks.pop(frame, None)
        track.tracked_steps.pop(frame, None)
        track.conditioned.clear()  # they may have read its memory

    def forget_before(self, frame: int) -> None:
        """Forget everything that no frame from ``frame`` on will read."""
        recent = set(range(frame - MAX_POINTERS, frame + 1))
        for track in self.objects.values():
            kept = self._kept_frames(track, frame, 1) | recent
            for bank in track.banks:
                bank.forget_all_but(kept, latest=frame)
            for frames in (track.clicks, track.tracked_steps):
                for other in frames.keys() - kept:
                    del frames[other]

    def check_size(self, size_hw: SizeHW, frame: int) -> None:
        """Raise an ImageError if a frame has another size than the video."""
        check_frame_size(size_hw, self.size_hw, frame)

    def results_in(self, frame: int) -> dict[Hashable, ObjectFrame]:
        """The results of a frame, by object."""
        return {object_id: track.result(frame) for object_id, track in self.objects.items() if frame in track.bank}

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
        return self.start_result(frame, time, results, image, packed=packed)()

    @torch.inference_mode()
    def start_result(
        self,
        frame: int,
        time: float,
        results: Mapping[Hashable, ObjectFrame],
        image: np.ndarray | None,
        *,
        packed: bool = False,
    ) -> Callable[[], FrameResult]:
        """As ``frame_result``, which the function that is returned gives. The device copies the results meanwhile."""
        fetch = None
        if self.worker is not None and results:
            fetch = self.worker.fetch(list(results.values()), None if packed else self.size_hw)
        return partial(
            make_frame_result,
            frame,
            time,
            results,
            [self.objects[object_id].number for object_id in results],
            input_hw=self.input_hw,
            size_hw=self.size_hw,
            image=image,
            packed=packed,
            labels=[self.objects[object_id].label for object_id in results],
            fetch=fetch,
        )

    def read(self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> FramePrompt:
        """A prompt for one object: see ``read_frame_prompt``."""
        return read_frame_prompt(
            points, labels, box, mask, size_hw=self.size_hw, input_hw=self.input_hw, device=self.engine.device
        )
