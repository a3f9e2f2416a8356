"""The objects of a video, and their memory, without torch: the same steps as ``masklet.video.tracks``.

Source: SAM 2 (arXiv 2408.00714), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from masklet.config import STRIDES, SizeHW
from masklet.errors import CheckpointError, PromptError
from masklet.export.runtime.image import masks_of
from masklet.export.runtime.network import Decoded, ImageFeatures, OnnxNetwork
from masklet.export.runtime.track import FramePrompt, ObjectResult, ResultBytes, Track
from masklet.mask_prompts import check_frame_mask
from masklet.masks import join_chunks
from masklet.masks.resizing import reduced
from masklet.numbers import whole_number
from masklet.results import Masks
from masklet.video.frame_prompts import check_clicks
from masklet.video.frame_result import FrameResult, check_can_unprompt, check_known, check_object_id
from masklet.video.frames import width_by_height
from masklet.video.policy import MAX_POINTERS, MemorySelection, PaperPolicy
from masklet.video.selection import batches_of, memory_columns, select_memory
from masklet.video.spool import FrameSpool, Spool

ABSENT_LOGIT, CERTAIN_LOGIT, PREVIOUS_LIMIT = -1024.0, 10.0, 32.0
"""As in ``masklet.video.tracker``."""

FeaturesOf = Callable[[int], ImageFeatures]


class ArrayTracks:
    """Objects by id, each with a memory of its own.

    Args:
        network: With memory.
        policy: Chooses the frames whose memories a frame reads.
        max_objects: The largest batch of objects.
        size_hw: Size of the video.
        spool: Where past results are kept; in memory if None, for videos that cannot go back.
        can_rewind: Whether past frames can be encoded again.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        policy: PaperPolicy,
        *,
        max_objects: int,
        size_hw: SizeHW,
        spool: Spool | None,
        can_rewind: bool,
    ) -> None:
        self.max_objects = check_can_track(network, max_objects)
        self.network, self.policy, self.size_hw = network, policy, size_hw
        self.spool, self.can_rewind = spool, can_rewind
        self.objects: dict[Hashable, Track] = {}
        self._next_number = 0

    @property
    def logits_hw(self) -> SizeHW:
        """(height, width) of the logits."""
        height, width = self.network.manifest.input_hw
        return height // STRIDES[0], width // STRIDES[0]

    def copy(self) -> ArrayTracks:
        """An independent copy of objects whose results are in memory."""
        copied = ArrayTracks(
            self.network,
            self.policy,
            max_objects=self.max_objects,
            size_hw=self.size_hw,
            spool=None,
            can_rewind=self.can_rewind,
        )
        copied.objects = {object_id: track.copy() for object_id, track in self.objects.items()}
        copied._next_number = self._next_number
        return copied

    def read(self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> FramePrompt:
        """Checks a prompt for one object: see ``masklet.video.prompts.read_frame_prompt``."""
        input_hw = self.network.manifest.input_hw
        inside = None
        if mask is not None:
            inside = reduced(check_frame_mask(mask, self.size_hw).astype(np.float32), input_hw) >= 0.5
            if not (self._mask_logits(inside) > 0).any():
                raise PromptError(
                    f"mask of {int(inside.sum())} pixels at the network's input of {width_by_height(input_hw)} is too "
                    "small: prompt a larger part, or export the model at a larger resolution"
                )
            if points is None and labels is None and box is None:
                return FramePrompt(mask=inside)
        points, labels = check_clicks(points, labels, box, size_hw=self.size_hw, input_hw=input_hw)
        return FramePrompt(points, labels, inside)

    def prompt(self, object_id: Hashable, frame: int, features_of: FeaturesOf, prompt: FramePrompt) -> ObjectResult:
        """Prompt or correct an object: see ``VideoSession.prompt``. A refused prompt changes nothing."""
        check_object_id(object_id)
        track = self.objects.get(object_id) or self._new_track()
        if frame in track.clicks:
            prompt = prompt.after(track.clicks[frame])
        previous = track.results[frame].logits if frame in track.results else None
        conditioned = self._condition(track, frame, features_of)
        features = features_of(frame)
        if prompt.mask is not None and prompt.points is None:
            result = self._take_mask(features, prompt.mask)
        else:
            previous = previous if prompt.mask is None else self._mask_logits(prompt.mask)
            result = self._decode(features, prompt, conditioned, previous)
        track.put(frame, result, self._memory_map(features, result, is_prompted=True), is_prompted=True)
        track.keep_maps(self.policy.keeps(frame, track, step=track.tracked_steps.get(frame, 1)))
        self.objects[object_id] = track
        self._next_number = max(self._next_number, track.number + 1)
        track.clicks.pop(frame, None)
        if prompt.points is not None:
            track.clicks[frame] = replace(prompt, mask=None)
        return result

    def advance(self, frame: int, features_of: FeaturesOf, step: int) -> dict[Hashable, ObjectResult]:
        """Track all objects into a frame. An object that was prompted in it keeps that result."""
        to_track = {name: track for name, track in self.objects.items() if frame not in track.prompted}
        selections = {name: self._select(track, frame, step) for name, track in to_track.items()}
        self._restore_maps([(to_track[name], selection) for name, selection in selections.items()], features_of)
        for batch in batches_of(selections, self.max_objects, fixed=self.network.pads_memory):
            tracks = [to_track[name] for name in batch]
            features = features_of(frame)
            conditioned = self._read_memory(features, tracks, [selections[name] for name in batch])
            decoded = self.network.decode(features, None, None, multimask=True, conditioned=conditioned)
            for track, result in zip(tracks, choose(decoded), strict=True):
                memory = self._memory_map(features, result, is_prompted=False)
                track.put(frame, result, memory, is_prompted=False)
        for track in self.objects.values():
            track.tracked_steps[frame] = step
            track.conditioned.clear()
            track.keep_maps(self.policy.keeps(frame, track, step=step))
        return {name: track.results[frame] for name, track in self.objects.items()}

    def remove(self, object_id: Hashable) -> None:
        """Forget an object."""
        check_known(object_id, self.objects)
        self.objects.pop(object_id).results.clear()

    def remove_prompt(self, object_id: Hashable, frame: int) -> None:
        """Undo all prompts for an object in one frame, which is then tracked as any other."""
        check_object_id(object_id)
        track = self.objects.get(object_id)
        check_can_unprompt(object_id, frame, () if track is None else track.prompted)
        assert track is not None
        del track.results[frame]
        track.prompted.discard(frame)
        for kept in (track.maps, track.clicks, track.tracked_steps):
            kept.pop(frame, None)
        track.conditioned.clear()

    def forget_before(self, frame: int) -> None:
        """Forget everything that no frame from ``frame`` on will read."""
        recent = set(range(frame - MAX_POINTERS, frame + 1))
        for track in self.objects.values():
            kept = self.policy.keeps(frame, track, step=1) | recent
            track.keep_maps(kept)
            track.prompted &= kept
            for frames in (track.results, track.clicks, track.tracked_steps):
                for other in frames.keys() - kept:
                    del frames[other]
            for other, result in track.results.items():
                if other != frame and len(result.logits):
                    track.results[other] = replace(result, logits=result.logits[:0].copy())

    def results_in(self, frame: int) -> dict[Hashable, ObjectResult]:
        """The results of a frame, by object."""
        return {name: track.results[frame] for name, track in self.objects.items() if frame in track}

    def frame_result(
        self,
        frame: int,
        time: float,
        results: Mapping[Hashable, ObjectResult],
        image: np.ndarray | None,
        *,
        packed: bool = False,
    ) -> FrameResult:
        """What callers get of a frame: the masks of its objects at the video's size."""
        found = list(results.values())
        logits = np.stack([one.logits for one in found]) if found else np.zeros((0, *self.logits_hw), np.float32)
        masks: Any = join_chunks(masks_of(logits, self.size_hw), len(found), self.size_hw, packed=packed)
        numbers = np.array([self.objects[name].number for name in results], int)
        scores = np.array([one.iou_score for one in found], np.float32)
        kept = np.zeros((len(found), 0, 0), np.float32) if packed else logits
        object_scores = np.array([one.object_score for one in found], np.float32)
        return FrameResult(frame, time, tuple(results), Masks(masks, kept, scores, numbers, image), object_scores)

    def _new_track(self) -> Track:
        dim = self.network.manifest.hidden_size
        results = {} if self.spool is None else FrameSpool(self.spool, ResultBytes(self.logits_hw, dim))
        return Track(self._next_number, dim, results)

    def _mask_logits(self, mask: np.ndarray) -> np.ndarray:
        return reduced(CERTAIN_LOGIT * (2 * mask.astype(np.float32) - 1), self.logits_hw)

    def _decode(
        self, features: ImageFeatures, prompt: FramePrompt, conditioned: np.ndarray | None, previous: np.ndarray | None
    ) -> ObjectResult:
        assert prompt.points is not None
        assert prompt.labels is not None
        decoded = self.network.decode(
            features,
            prompt.points[None, None],
            prompt.labels[None, None],
            multimask=len(prompt.labels) <= 1,
            mask_input=None if previous is None else previous.clip(-PREVIOUS_LIMIT, PREVIOUS_LIMIT),
            conditioned=conditioned,
        )
        return choose(decoded)[0]

    def _take_mask(self, features: ImageFeatures, mask: np.ndarray) -> ObjectResult:
        """The mask of a prompt is the result. The network only makes a pointer of it."""
        decoded = self.network.decode(
            features,
            None,
            None,
            multimask=False,
            mask_input=self.network.downsample_mask(mask),
            conditioned=features.stride16,  # without the embedding that says "no memory", as the reference does it
        )
        return ObjectResult(self._mask_logits(mask), 1.0, CERTAIN_LOGIT, decoded.object_pointers[0, 0, 0].copy())

    def _memory_map(self, features: ImageFeatures, result: ObjectResult, *, is_prompted: bool) -> np.ndarray:
        score = np.array([[result.object_score]], np.float32)
        memory = self.network.write_memory(features, result.logits[None], score, is_prompted=is_prompted)[0]
        return rounded_to_bfloat16(memory) if self.network.manifest.rounds_memory else memory

    def _condition(self, track: Track, frame: int, features_of: FeaturesOf) -> np.ndarray | None:
        """The conditioned map of a frame that tracking has reached: see ``Tracks.condition``."""
        if frame not in track.tracked_steps:
            return None
        if frame not in track.conditioned:
            selection = self._select(track, frame, track.tracked_steps[frame])
            self._restore_maps([(track, selection)], features_of)
            track.conditioned[frame] = self._read_memory(features_of(frame), [track], [selection])
        return track.conditioned[frame]

    def _select(self, track: Track, frame: int, step: int) -> MemorySelection:
        return select_memory(self.policy, frame, track, step=step, can_rewind=self.can_rewind)

    def _restore_maps(self, selections: Sequence[tuple[Track, MemorySelection]], features_of: FeaturesOf) -> None:
        """Compute again the selected maps that were dropped, frame by frame."""
        wanted = ((frame, track) for track, selection in selections for frame, _ in selection.maps)
        missing = [(frame, track) for frame, track in wanted if frame not in track.maps]
        for frame, track in sorted(missing, key=lambda entry: entry[0]):
            track.maps[frame] = self._memory_map(
                features_of(frame), track.results[frame], is_prompted=frame in track.prompted
            )

    def _read_memory(
        self, features: ImageFeatures, tracks: Sequence[Track], selections: Sequence[MemorySelection]
    ) -> np.ndarray:
        """The frame conditioned on the memory of each object. All selections have one shape."""
        columns = memory_columns(selections, fixed=self.network.pads_memory)
        shape, count, manifest = columns.shape, len(tracks), self.network.manifest
        tokens = manifest.memory_tokens or math.prod(features.stride16.shape[-2:])
        maps = np.zeros((count, shape.maps, tokens, manifest.memory_channels), np.float32)
        pointers = np.zeros((count, shape.pointers, manifest.hidden_size), np.float32)
        for row, (track, selection) in enumerate(zip(tracks, selections, strict=True)):
            for column, (frame, _) in enumerate(selection.maps):
                maps[row, column] = track.maps[frame]
            for column, (frame, _) in enumerate(selection.pointers):
                pointers[row, column] = track.pointer(frame)
        return self.network.read_memory(
            features, maps, columns.map_slots, pointers, columns.pointer_distances, columns.is_empty
        )


def check_can_track(network: OnnxNetwork, max_objects: Any) -> int:
    """Check that objects can be tracked: see ``masklet.video.tracks.check_can_track``."""
    if not network.manifest.has_memory:
        raise CheckpointError(
            f"{network.folder} was exported from a model without memory: it segments images and cannot track objects "
            "through videos. Export the whole checkpoint (sam2_video)"
        )
    return whole_number("max_objects", max_objects, PromptError, least=1)


def choose(decoded: Decoded) -> list[ObjectResult]:
    """The candidate of the best predicted IoU for each object of (objects, 1, candidates, ...)."""
    results = []
    for logits, scores, object_score, pointers in zip(
        decoded.logits[:, 0],
        decoded.iou_scores[:, 0],
        decoded.object_scores[:, 0, 0],
        decoded.object_pointers[:, 0],
        strict=True,
    ):
        best = int(scores.argmax())
        mask = logits[best].copy() if object_score > 0 else np.full(logits.shape[1:], ABSENT_LOGIT, np.float32)
        results.append(ObjectResult(mask, float(scores[best]), float(object_score), pointers[best].copy()))
    return results


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bfloat16, ties to even: the reference stores memories so."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
