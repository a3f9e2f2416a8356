"""One frame of a session: prompts that are new in it, then tracking, in transformers' order."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from masklet.compat.transformers.prompts import embed_prompts
from masklet.compat.transformers.video_outputs import result_of
from masklet.compat.transformers.video_session import Sam2VideoInferenceSession
from masklet.config import STRIDES, SizeHW
from masklet.engine import Engine
from masklet.engine.base import ABSENT_LOGIT
from masklet.model.neck import Features
from masklet.model.prompt_encoder import NOT_A_POINT, PADDING, Prompts
from masklet.video.object_frame import ObjectFrame
from masklet.video.track import Track
from masklet.video.tracker import (
    CERTAIN_LOGIT,
    FramePrompt,
    choose,
    mask_logits,
    memory_maps,
    track_object,
)
from masklet.video.tracks import Tracks


@dataclass
class SessionFeatures:
    """Features of a session's frames, from its cache or encoded."""

    session: Sam2VideoInferenceSession
    engine: Engine
    at_hand: dict[int, Callable[[], Tensor]] = field(default_factory=dict)
    """Reads frames that need not be looked up."""
    _used: dict[int, Features] = field(default_factory=dict)

    def __call__(self, frame: int) -> Features:
        """See ``tracks.FeaturesOf``."""
        if frame not in self._used:
            self._used[frame] = self._cached(frame) or self._encoded(frame)
        return self._used[frame]

    def _encoded(self, frame: int) -> Features:
        pixels = self.at_hand[frame]() if frame in self.at_hand else self.session.get_frame(frame)
        features = self.engine.encode(pixels[None])
        maps = [level.flatten(2).permute(2, 0, 1) for level in features]  # (h*w, 1, channels), as in transformers
        self.session.cache.cache_vision_features(frame, {"vision_feats": maps})
        return features

    def _cached(self, frame: int) -> Features | None:
        if (cached := self.session.cache.get_vision_features(frame)) is None:
            return None
        maps = [level.permute(1, 2, 0).to(self.engine.device) for level in cached["vision_feats"]]
        return Features(*(level.unflatten(2, _square(level.shape[2])) for level in maps))


@dataclass(frozen=True)
class SessionTracker:
    """Runs the frames of a session.

    Args:
        session: It is changed.
        tracks: Tracks of this session.
        features_of: Features of its frames.
        corrections_are_kept: See ``Sam2VideoModel``.
        pad_attends: See ``Sam2VideoModel``.
    """

    session: Sam2VideoInferenceSession
    tracks: Tracks
    features_of: SessionFeatures
    corrections_are_kept: bool
    pad_attends: bool

    @torch.inference_mode()
    def run(self, frame: int, step: int) -> list[ObjectFrame]:
        """The results of all objects in a frame, in the order of ``obj_ids``."""
        session, objects = self.session, self.tracks.objects
        self._take_stored()
        results: dict[Hashable, ObjectFrame] = {}
        for obj_idx, object_id in enumerate(session.obj_ids):
            if (inputs := session.new_inputs(obj_idx, frame)) is not None:
                results[object_id] = self._prompt(object_id, frame, inputs, step)
                session.take_inputs(obj_idx, frame)
            elif object_id in objects and frame in objects[object_id].bank.prompted:
                results[object_id] = objects[object_id].bank[frame]
            if not self.corrections_are_kept and object_id in results:
                session.take_all_inputs(obj_idx)
        tracked = [one for one in session.obj_ids if one in objects and one not in results]
        if tracked:
            results |= self.tracks.advance(frame, self.features_of, step, tracked)
        return [results[one] if one in results else self._absent() for one in session.obj_ids]

    def _prompt(self, object_id: Hashable, frame: int, inputs: Any, step: int) -> ObjectFrame:
        """Prompts an object. In a frame that was tracked, points read the memory of earlier frames."""
        tracks = self.tracks
        track = tracks.objects.get(object_id) or tracks.new_track()
        was_tracked = frame in track.tracked_steps
        if was_tracked:
            track.tracked_steps[frame] = step
        if isinstance(inputs, Tensor):
            result, memory = take_mask(tracks.engine, self.features_of(frame), inputs)
        else:
            prompt, conditioned = self._read(inputs), tracks.condition(track, frame, self.features_of)
            run = decode_padded if self.pad_attends else track_object
            result, memory = run(tracks.engine, self.features_of(frame), prompt, conditioned)
        tracks.take(object_id, track, frame, result, memory)
        if was_tracked and not self.corrections_are_kept:
            track.bank.prompted.discard(frame)
        return result

    def _read(self, inputs: dict[str, Tensor]) -> FramePrompt:
        """The points of one object. Padding is left out, unless it attends as in transformers."""
        device = self.tracks.engine.device
        points, labels = inputs["point_coords"].reshape(-1, 2), inputs["point_labels"].reshape(-1).long()
        if not self.pad_attends:
            points, labels = points[labels != PADDING], labels[labels != PADDING]
        if not len(labels):
            points, labels = points.new_zeros(1, 2), labels.new_full((1,), NOT_A_POINT)
        return FramePrompt(points.to(device), labels.to(device))

    def _take_stored(self) -> None:
        """Puts outputs that were stored by hand into the memory of their objects."""
        for object_id, is_prompted, frame, output in self.session.pop_stored():
            tracks = self.tracks
            track: Track = tracks.objects.get(object_id) or tracks.new_track()
            result, memory = result_of(output, tracks, frame), output.get("maskmem_features")
            if memory is None:
                (memory,) = memory_maps(tracks.engine, self.features_of(frame), [result], is_prompted=is_prompted)
            tracks.add(object_id, track)
            track.bank.put(frame, result, memory.to(tracks.engine.device).flatten(0, -2), is_prompted=is_prompted)

    def _absent(self) -> ObjectFrame:
        """The result of an object that was prompted in no frame so far."""
        engine = self.tracks.engine
        size_hw = [side // STRIDES[0] for side in self.tracks.input_hw]
        zero = torch.zeros((), device=engine.device, dtype=engine.dtype)
        logits = zero.new_full(size_hw, ABSENT_LOGIT)
        return ObjectFrame(logits, zero, zero - CERTAIN_LOGIT, zero.new_zeros(engine.config.hidden_size))


def take_mask(engine: Engine, features: Features, mask: Tensor) -> tuple[ObjectFrame, Tensor]:
    """The result and the memory map of a mask (1, 1, side, side) of ones and zeros, as transformers takes it.

    Unlike the tracker's own way, which is Meta's, the mask is remembered at its full size, the pointer is that of the
    best of three candidates, and an empty mask says that the object is not in the frame.
    """
    inside = mask.to(engine.device, engine.dtype)
    prompts = Prompts(masks=engine.downsample_mask(inside))
    decoded = engine.decode(features, prompts, multimask=True, conditioned=features.stride16)
    assert decoded.object_pointers is not None
    best = decoded.iou_scores[0, 0].argmax()
    pointer, absent = decoded.object_pointers[0, 0, best], engine.model.no_object_pointer[0]
    is_present = inside.any()
    certain = CERTAIN_LOGIT * (2 * inside - 1)
    score = torch.where(is_present, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(engine.dtype)
    result = ObjectFrame(
        mask_logits(engine, inside[0, 0]),
        torch.ones((), device=engine.device, dtype=engine.dtype),
        score,
        torch.where(is_present, pointer, absent.to(pointer.dtype)),
    )
    (memory,) = engine.write_memory(features, certain[0], score.reshape(1, 1), binarize=True)
    return result, memory.to(torch.bfloat16)


def decode_padded(
    engine: Engine, features: Features, prompt: FramePrompt, conditioned: Tensor | None
) -> tuple[ObjectFrame, Tensor]:
    """As ``track_object`` for points whose padding takes part, and counts as points, as in transformers."""
    network = engine.model
    assert prompt.points is not None
    assert prompt.labels is not None
    image = network.without_memory(features.stride16) if conditioned is None else conditioned
    prompts = Prompts(prompt.points[None, None], prompt.labels[None, None], has_padding=True)
    embedded = embed_prompts(network, prompts, image, pad_attends=True)
    decoded = network.mask_decoder(
        features._replace(stride16=image),
        network.shared_image_embedding.grid(features.map_hw),
        embedded,
        multimask=len(prompt.labels) <= 1,
    )
    (result,) = choose(
        replace(decoded, object_pointers=network.object_pointers(decoded.mask_tokens, decoded.object_scores))
    )
    (memory,) = memory_maps(engine, features, [result], is_prompted=True)
    return result, memory


def _square(cells: int) -> SizeHW:
    side = round(cells**0.5)
    return side, side
