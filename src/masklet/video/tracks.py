"""The objects of a film and how they are followed from frame to frame: what a file and a live stream have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDES
from masklet.errors import CheckpointError, PictureError, PromptError
from masklet.masks import upscale_logits
from masklet.model.sam2 import Sam2Model
from masklet.prompts import SizeHW, read_prompts
from masklet.results import Masks
from masklet.video.memory import MAX_POINTERS, MemoryPolicy, MemoryShape, ObjectFrame, ObjectMemory, Reading, Spool
from masklet.video.tracker import FramePrompt, memory_maps, track_object, track_objects

FeaturesOf = Callable[[int], list[Tensor]]
"""Encodes the frame of a number, again if need be."""


@dataclass(frozen=True)
class FrameResult:
    """All objects in one frame."""

    index: int
    """The frame's number, from 0."""
    time: float
    """Seconds from the film's beginning."""
    objects: tuple[Hashable, ...]
    """Their names, in the order of ``masks``."""
    masks: Masks
    """One mask an object, at the film's size, with predicted IoU, box and area."""
    object_scores: np.ndarray
    """(objects,) logits: above 0 the object is in the frame."""

    @property
    def scores(self) -> np.ndarray:
        """(objects,) predicted IoU, 0 to 1."""
        return self.masks.scores

    @property
    def visible(self) -> np.ndarray:
        """(objects,) whether the object is in the frame."""
        return self.object_scores > 0

    def __getitem__(self, name: Hashable) -> Masks:
        """The mask of one object."""
        return self.masks[self.objects.index(name)]


@dataclass
class Track:
    """One object: what it was shown by, and what is remembered of it."""

    bank: ObjectMemory
    prompts: dict[int, FramePrompt] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    """Frames that tracking went through, and which way: 1 forward, -1 backward."""


class Tracks:
    """Named objects, each with a memory of its own: what one is told changes no other.

    Args:
        model: With its memory.
        policy: Which frames' memories a frame reads.
        max_objects: Objects in one batch at most.
        size_hw: Of the film.
        input_hw: Of the network's input.
        spool: Where past results are kept; None for films that never come back to them.
    """

    def __init__(
        self,
        model: Sam2Model,
        policy: MemoryPolicy,
        *,
        max_objects: int,
        size_hw: SizeHW,
        input_hw: SizeHW,
        spool: Spool | None,
    ) -> None:
        if max_objects < 1:
            raise PromptError(f"max_objects is {max_objects}: expected at least 1, the objects tracked in one batch")
        if not model.config.has_memory:
            raise CheckpointError(
                "this model was saved without its memory (model_type sam2): it segments pictures, and cannot follow "
                "objects through films. Load the whole checkpoint (sam2_video)"
            )
        self.model = model
        self.policy = policy
        self.max_objects = max_objects
        self.fixed_shapes = model.device.type != "cpu"  # a CPU would compute what is empty, too
        self.size_hw = size_hw
        self.input_hw = input_hw
        self.spool = spool
        self.objects: dict[Hashable, Track] = {}

    @torch.inference_mode()
    def prompt(self, name: Hashable, frame: int, features_of: FeaturesOf, **prompts: Any) -> ObjectFrame:
        """Show an object, or correct it: see ``Session.prompt``. What makes no sense changes nothing."""
        told = self._read(**prompts)
        track = self.objects.get(name, Track(ObjectMemory(self.spool)))
        if frame in track.prompts:
            told = told.after(track.prompts[frame])
        bank = track.bank
        previous = bank[frame].logits if frame in bank else None
        # A frame that tracking went through is corrected with what is remembered; another one starts from the prompt.
        reading = self._prepare(bank, frame, features_of, track.passed[frame]) if frame in track.passed else None
        seen, memory = track_object(self.model, features_of(frame), bank, reading, told, previous)
        bank.put(frame, seen, memory, is_prompted=True)
        track.prompts[frame] = told
        self.objects[name] = track
        return seen

    @torch.inference_mode()
    def advance(self, frame: int, features_of: FeaturesOf, step: int) -> dict[Hashable, ObjectFrame]:
        """Every object in a frame. Where it was prompted that result stands; elsewhere it is tracked."""
        results = {name: track.bank[frame] for name, track in self.objects.items() if frame in track.bank.prompted}
        batches: dict[MemoryShape, list[tuple[Hashable, ObjectMemory, Reading]]] = {}
        for name, track in self.objects.items():
            if name not in results:
                reading = self._prepare(track.bank, frame, features_of, step)
                batches.setdefault(reading.shape(fixed=self.fixed_shapes), []).append((name, track.bank, reading))
        for batch in batches.values():
            for first in range(0, len(batch), self.max_objects):
                names, banks, readings = zip(*batch[first : first + self.max_objects], strict=True)
                tracked = track_objects(self.model, features_of(frame), banks, readings, fixed_shapes=self.fixed_shapes)
                for name, bank, (seen, memory) in zip(names, banks, tracked, strict=True):
                    bank.put(frame, seen, memory, is_prompted=False)
                    results[name] = seen
        for track in self.objects.values():
            track.passed[frame] = step
            track.bank.drop_maps(self.policy.keeps(frame, track.bank.prompted, step=step))
        return {name: results[name] for name in self.objects}

    def seen(self, frame: int) -> dict[Hashable, ObjectFrame]:
        """Results that are there for a frame, by object."""
        return {name: track.bank[frame] for name, track in self.objects.items() if frame in track.bank}

    def remove(self, name: Hashable) -> None:
        """Follow an object no longer, and forget it."""
        if name not in self.objects:
            known = ", ".join(map(repr, self.objects)) or "none yet"
            raise PromptError(f"no object {name!r}: the film's objects are {known}")
        del self.objects[name]

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

    def check_size(self, size_hw: SizeHW, frame: int) -> None:
        """Raise a PictureError if a frame is of another size than the film."""
        if size_hw != self.size_hw:
            (height, width), (first_height, first_width) = size_hw, self.size_hw
            raise PictureError(
                f"frame {frame} is {width}×{height}, the frames before it {first_width}×{first_height}: expected one "
                "size throughout. Resize the frames, or start a new film where the size changes"
            )

    def _prepare(self, bank: ObjectMemory, frame: int, features_of: FeaturesOf, step: int) -> Reading:
        """What the frame reads, with its maps in place: those that were let go are made again."""
        reading = self.policy(frame, bank.prompted, bank.tracked - {frame}, step=step)
        for other, _ in reading.maps:
            if other not in bank.maps:
                (bank.maps[other],) = memory_maps(
                    self.model, features_of(other), [bank[other]], is_prompted=other in bank.prompted
                )
        return reading

    def forget_before(self, frame: int) -> None:
        """Let go of all that no frame from ``frame`` on will read."""
        for track in self.objects.values():
            keep = self.policy.keeps(frame, track.bank.prompted, step=1) | set(range(frame - MAX_POINTERS, frame + 1))
            track.bank.forget(keep, latest=frame)
            track.prompts = {f: told for f, told in track.prompts.items() if f in keep}
            track.passed = {f: step for f, step in track.passed.items() if f in keep}

    @torch.inference_mode()
    def result(
        self, frame: int, seconds: float, seen: dict[Hashable, ObjectFrame], picture: np.ndarray | None
    ) -> FrameResult:
        """What people get of a frame: masks of the film's size."""
        if not seen:
            h, w = (side // STRIDES[0] for side in self.input_hw)
            nothing = np.zeros((0, *self.size_hw), bool), np.zeros((0, h, w), np.float32), np.zeros(0, np.float32)
            return FrameResult(frame, seconds, (), Masks(*nothing, np.zeros(0, int), picture), np.zeros(0, np.float32))
        logits = torch.stack([one.logits for one in seen.values()]).float()
        masks = Masks(
            masks=(upscale_logits(logits, self.size_hw) > 0).cpu().numpy(),
            logits=logits.cpu().numpy(),
            scores=torch.stack([one.iou for one in seen.values()]).float().cpu().numpy(),
            objects=np.array([list(self.objects).index(name) for name in seen]),
            picture=picture,
        )
        scores = torch.stack([one.score for one in seen.values()]).float().cpu().numpy()
        return FrameResult(frame, seconds, tuple(seen), masks, scores)

    def _read(self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> FramePrompt:
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
        return FramePrompt(prompts.points[0, 0].to(self.model.device), prompts.labels[0, 0].to(self.model.device))

    def _read_mask(self, mask: Any) -> Tensor:
        values = torch.as_tensor(np.array(mask))
        if tuple(values.shape) != self.size_hw:
            raise PromptError(
                f"mask has shape {tuple(values.shape)}: expected {self.size_hw}, the film's (height, width)"
            )
        inside = values > 0
        if not inside.any():
            raise PromptError("mask is empty: expected at least one pixel of the object")
        share = F.interpolate(inside[None, None].float(), size=self.input_hw, mode="bilinear", antialias=True)
        return (share[0, 0] >= 0.5).to(self.model.device)
