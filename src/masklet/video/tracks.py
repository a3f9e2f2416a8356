"""The objects of a video and their tracks: what a video file and a live stream have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDES, SizeHW
from masklet.engine import Engine
from masklet.errors import CheckpointError, ImageError, PromptError
from masklet.masks import upscale_logits
from masklet.model.neck import Features
from masklet.prompts import read_prompts
from masklet.results import Masks
from masklet.video.frames import width_by_height
from masklet.video.memory import MAX_POINTERS, MemoryPolicy, MemorySelection, MemoryShape, ObjectFrame, ObjectMemory
from masklet.video.spool import Spool
from masklet.video.tracker import FramePrompt, memory_maps, read_memory, track_object, track_objects

FeaturesOf = Callable[[int], Features]
"""Encodes the frame of a number, again if need be."""


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All objects in one frame."""

    index: int
    """The frame's number, from 0."""
    time: float
    """Seconds from the video's beginning."""
    object_ids: tuple[Hashable, ...]
    """Their names, in the order of ``masks``."""
    masks: Masks
    """One mask an object, at the video's size, with predicted IoU, box and area."""
    object_scores: np.ndarray
    """(objects,) logits: above 0 the object is in the frame."""

    @property
    def iou_scores(self) -> np.ndarray:
        """(objects,) predicted IoU, 0 to 1."""
        return self.masks.iou_scores

    @property
    def visible(self) -> np.ndarray:
        """(objects,) whether the object is in the frame."""
        return self.object_scores > 0

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the frame with its masks."""
        return self.masks._repr_png_()

    def _repr_html_(self) -> str:
        return self.masks._repr_html_()

    def __getitem__(self, name: Hashable) -> Masks:
        """The mask of one object.

        Raises:
            PromptError: There is no such object.
        """
        if name not in self.object_ids:
            raise no_such_object(name, self.object_ids)
        return self.masks[self.object_ids.index(name)]


def no_such_object(name: Hashable, objects: Iterable[Hashable]) -> PromptError:
    """What to say of a name that nobody has."""
    return PromptError(f"no object {name!r}: the video's objects are {', '.join(map(repr, objects)) or 'none yet'}")


@dataclass
class Track:
    """One object: what it was shown by, and what is remembered of it."""

    number: int
    """From 0, in the order in which objects came; its colour and its number in images of labels, minus 1."""
    bank: ObjectMemory
    prompts: dict[int, FramePrompt] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    """Frames that tracking went through, and by which step: 1 forward, -1 backward."""
    corrected: dict[int, Tensor] = field(default_factory=dict)
    """Coarsest maps, with what was remembered before, of frames corrected since tracking last went anywhere."""


class Tracks:
    """Named objects, each with a memory of its own: what one is told changes no other.

    Args:
        engine: Of a model with memory.
        policy: Which frames' memories a frame reads.
        max_objects: Objects in one batch at most.
        size_hw: Of the video.
        input_hw: Of the network's input.
        spool: Where past results are kept; None for videos that never come back to them.
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
    ) -> None:
        if max_objects < 1:
            raise PromptError(f"max_objects is {max_objects}: expected at least 1, the objects tracked in one batch")
        if not engine.config.has_memory:
            raise CheckpointError(
                "this model was saved without its memory (model_type sam2): it segments images, and cannot follow "
                "objects through videos. Load the whole checkpoint (sam2_video)"
            )
        self.engine = engine
        self.policy = policy
        self.max_objects = max_objects
        self.fixed_shapes = engine.pads_memory
        self.size_hw = size_hw
        self.input_hw = input_hw
        self.spool = spool
        self.objects: dict[Hashable, Track] = {}
        self._next_number = 0

    @torch.inference_mode()
    def prompt(self, name: Hashable, frame: int, features_of: FeaturesOf, told: FramePrompt) -> ObjectFrame:
        """Show an object, or correct it: see ``VideoSession.prompt``. What makes no sense changes nothing."""
        track = self.objects.get(name)
        if track is None:
            taken = (other.number for other in self.objects.values())  # restored objects brought theirs along
            track = Track(max(self._next_number, 1 + max(taken, default=-1)), ObjectMemory(self.spool))
        if frame in track.prompts:
            told = told.after(track.prompts[frame])
        bank = track.bank
        previous = bank[frame].logits if frame in bank else None
        # A frame that tracking went through is corrected with what is remembered; another one starts from the prompt.
        if told.mask is None and frame in track.passed and frame not in track.corrected:
            reading = self.policy(frame, bank.prompted, bank, step=track.passed[frame])
            self._restore_maps([(bank, reading)], features_of)
            # For the next clicks as well, or they would read the answer that they correct as what is certain.
            track.corrected[frame] = read_memory(self.engine, features_of(frame), [bank], [reading])
        seen, memory = track_object(self.engine, features_of(frame), told, track.corrected.get(frame), previous)
        if told.mask is not None and not (seen.logits > 0).any():
            raise PromptError(
                f"mask of {int(told.mask.sum())} pixels at the network's input of {width_by_height(self.input_hw)} is "
                "too small for it to see: show a larger part, or give the video a larger resolution="
            )
        bank.put(frame, seen, memory, is_prompted=True)
        bank.drop_maps(self.policy.keeps(frame, bank.prompted, step=track.passed.get(frame, 1)))
        track.prompts[frame] = told
        self.objects[name] = track
        self._next_number = max(self._next_number, track.number + 1)  # none is given twice, also after a removal
        return seen

    @torch.inference_mode()
    def advance(
        self, frame: int, features_of: FeaturesOf, step: int, names: Iterable[Hashable] | None = None
    ) -> dict[Hashable, ObjectFrame]:
        """These objects, or all, in a frame. Where one was prompted that result stands; elsewhere it is tracked."""
        followed = {name: self.objects[name] for name in (self.objects if names is None else names)}
        results = {name: track.bank[frame] for name, track in followed.items() if frame in track.bank.prompted}
        coming = {
            name: (track.bank, self.policy(frame, track.bank.prompted, track.bank, step=step))
            for name, track in followed.items()
            if name not in results
        }
        self._restore_maps(coming.values(), features_of)
        batches: dict[MemoryShape, list[tuple[Hashable, ObjectMemory, MemorySelection]]] = {}
        for name, (bank, reading) in coming.items():
            batches.setdefault(reading.shape(fixed=self.fixed_shapes), []).append((name, bank, reading))
        for batch in batches.values():
            for first in range(0, len(batch), self.max_objects):
                names, banks, readings = zip(*batch[first : first + self.max_objects], strict=True)
                tracked = track_objects(
                    self.engine, features_of(frame), banks, readings, fixed_shapes=self.fixed_shapes
                )
                for name, bank, (seen, memory) in zip(names, banks, tracked, strict=True):
                    bank.put(frame, seen, memory, is_prompted=False)
                    results[name] = seen
        for track in followed.values():
            track.passed[frame] = step
            track.corrected.clear()
            track.bank.drop_maps(self.policy.keeps(frame, track.bank.prompted, step=step))
        return {name: results[name] for name in followed}

    def seen(self, frame: int) -> dict[Hashable, ObjectFrame]:
        """Results that are there for a frame, by object."""
        return {name: track.bank[frame] for name, track in self.objects.items() if frame in track.bank}

    def remove(self, name: Hashable) -> None:
        """Follow an object no longer, and forget it."""
        if name not in self.objects:
            raise no_such_object(name, self.objects)
        self.objects.pop(name).bank.discard_all()

    def remove_prompt(self, name: Hashable, frame: int) -> None:
        """Take back all that was said of an object in one frame, which is then tracked as any other."""
        track = self.objects.get(name)
        if track is None or frame not in track.prompts:
            shown = "nowhere" if track is None else ", ".join(map(str, sorted(track.prompts)))
            raise PromptError(f"object {name!r} was not prompted in frame {frame}: it was in {shown}")
        if len(track.prompts) == 1:
            raise PromptError(f"frame {frame} holds the only prompt of object {name!r}: remove the object instead")
        track.bank.discard(frame)
        del track.prompts[frame]
        track.passed.pop(frame, None)
        track.corrected.clear()  # they may have read it

    def check_size(self, size_hw: SizeHW, frame: int) -> None:
        """Raise a ImageError if a frame is of another size than the video."""
        if size_hw != self.size_hw:
            (height, width), (first_height, first_width) = size_hw, self.size_hw
            raise ImageError(
                f"frame {frame} is {width}×{height}, the frames before it {first_width}×{first_height}: expected one "
                "size throughout. Resize the frames, or start a new video where the size changes"
            )

    def _restore_maps(self, readings: Iterable[tuple[ObjectMemory, MemorySelection]], features_of: FeaturesOf) -> None:
        """Make those maps again that are read and were let go; a frame is encoded once for all objects."""
        missing: dict[int, list[ObjectMemory]] = {}
        for bank, reading in readings:
            for other, _ in reading.maps:
                if other not in bank.maps:
                    missing.setdefault(other, []).append(bank)
        for other, banks in missing.items():
            for bank in banks:
                (bank.maps[other],) = memory_maps(
                    self.engine, features_of(other), [bank[other]], is_prompted=other in bank.prompted
                )

    def forget_before(self, frame: int) -> None:
        """Let go of all that no frame from ``frame`` on will read."""
        for track in self.objects.values():
            keep = self.policy.keeps(frame, track.bank.prompted, step=1) | set(range(frame - MAX_POINTERS, frame + 1))
            track.bank.forget(keep, latest=frame)
            track.prompts = {f: told for f, told in track.prompts.items() if f in keep}
            track.passed = {f: step for f, step in track.passed.items() if f in keep}

    @torch.inference_mode()
    def result(
        self, frame: int, seconds: float, seen: dict[Hashable, ObjectFrame], image: np.ndarray | None
    ) -> FrameResult:
        """What people get of a frame: masks of the video's size."""
        if not seen:
            h, w = (side // STRIDES[0] for side in self.input_hw)
            nothing = np.zeros((0, *self.size_hw), bool), np.zeros((0, h, w), np.float32), np.zeros(0, np.float32)
            return FrameResult(frame, seconds, (), Masks(*nothing, np.zeros(0, int), image), np.zeros(0, np.float32))
        logits = torch.stack([one.logits for one in seen.values()]).float()
        masks = Masks(
            masks=(upscale_logits(logits, self.size_hw) > 0).cpu().numpy(),
            logits=logits.cpu().numpy(),
            iou_scores=torch.stack([one.iou for one in seen.values()]).float().cpu().numpy(),
            object_ids=np.array([self.objects[name].number for name in seen]),
            image=image,
        )
        scores = torch.stack([one.score for one in seen.values()]).float().cpu().numpy()
        return FrameResult(frame, seconds, tuple(seen), masks, scores)

    def read(self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> FramePrompt:
        """One object's prompt, checked, in pixels of the network's input."""
        if mask is not None:
            if points is not None or box is not None:
                raise PromptError("a mask came with points or a box: a mask is taken as it is, so give it alone")
            return FramePrompt(mask=self._read_mask(mask))
        boxes = None if box is None else [box]
        prompts = read_prompts(points, labels, boxes, size_hw=self.size_hw, input_hw=self.input_hw)
        if len(prompts) != 1:
            raise PromptError(f"points for {len(prompts)} objects: expected one list, since a prompt is for one object")
        assert prompts.points is not None
        assert prompts.labels is not None
        return FramePrompt(prompts.points[0, 0].to(self.engine.device), prompts.labels[0, 0].to(self.engine.device))

    def _read_mask(self, mask: Any) -> Tensor:
        values = torch.as_tensor(np.array(mask))
        if tuple(values.shape) != self.size_hw:
            raise PromptError(
                f"mask has shape {tuple(values.shape)}: expected {self.size_hw}, the video's (height, width)"
            )
        inside = values > 0
        if not inside.any():
            raise PromptError("mask is empty: expected at least one pixel of the object")
        share = F.interpolate(inside[None, None].float(), size=self.input_hw, mode="bilinear", antialias=True)
        return (share[0, 0] >= 0.5).to(self.engine.device)
