"""The state of a video: its frames, the prompts and the results, with the attributes of transformers' class."""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masklet.compat.live_mapping import LiveMapping, by_place, tracked_frames
from masklet.compat.transformers.video_frames import ArrivedFrames, VideoFrames
from masklet.compat.transformers.video_outputs import output_of
from masklet.engine import Engine
from masklet.errors import PromptError, SessionError
from masklet.segmenter import MAX_OBJECTS
from masklet.video.policy import PaperPolicy
from masklet.video.spool import Spool
from masklet.video.track import Track
from masklet.video.tracks import Tracks

Inputs = dict[int, dict[int, Any]]
"""Inputs by the object's place, then by frame."""
COND, NON_COND = "cond_frame_outputs", "non_cond_frame_outputs"


class Sam2VideoInferenceCache:
    """The features of the last encoded frames.

    Args:
        inference_device: Where features are used.
        inference_state_device: Where they are kept.
        max_vision_features_cache_size: How many frames are kept.
    """

    def __init__(
        self,
        inference_device: torch.device | str = "cpu",
        inference_state_device: torch.device | str = "cpu",
        max_vision_features_cache_size: int = 1,
    ) -> None:
        self.inference_device = inference_device
        self.inference_state_device = inference_state_device
        self.max_vision_features_cache_size = max_vision_features_cache_size
        self._vision_features: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def cache_vision_features(self, frame_idx: int, features: dict[str, Any]) -> None:
        """Keeps the features of a frame: tensors, or lists of tensors, by name."""
        self._vision_features.pop(frame_idx, None)
        self._vision_features[frame_idx] = _moved(features, self.inference_state_device)
        while len(self._vision_features) > self.max_vision_features_cache_size:
            self._vision_features.popitem(last=False)

    def get_vision_features(self, frame_idx: int) -> dict[str, Any] | None:
        """The features of a frame, or None if they are not kept."""
        kept = self._vision_features.get(frame_idx)
        return None if kept is None else _moved(kept, self.inference_device)

    def clear_all(self) -> None:
        """Forgets all features."""
        self._vision_features.clear()


class Sam2VideoInferenceSession:
    """A video, its objects, and what a model found. ``Sam2VideoProcessor.init_video_session`` makes one.

    ``processed_frames`` reads the frames of a video when it is indexed. Of a stream the last frames are in memory, and
    earlier ones in a temporary file. Results lie in a file as well: ``output_dict_per_obj`` and
    ``frames_tracked_per_obj`` are read-only views of what the tracker holds.

    Args:
        video: (frames, 3, side, side) prepared frames, or a mapping of them; None for a stream.
        video_height: Height of the original frames.
        video_width: Width of the original frames.
        inference_device: Device of the model.
        inference_state_device: Device of features in ``cache`` and of results read from ``output_dict_per_obj``.
        video_storage_device: Device of ``processed_frames``.
        dtype: Dtype of ``processed_frames``: a torch type, or its name.
        max_vision_features_cache_size: How many frames' features are kept.
    """

    def __init__(
        self,
        video: Tensor | Mapping[int, Tensor] | None = None,
        video_height: int | None = None,
        video_width: int | None = None,
        inference_device: torch.device | str = "cpu",
        inference_state_device: torch.device | str = "cpu",
        video_storage_device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        max_vision_features_cache_size: int = 1,
    ) -> None:
        self.video_height = video_height
        self.video_width = video_width
        self.inference_device = inference_device
        self.inference_state_device = inference_state_device
        self.video_storage_device = video_storage_device
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.max_vision_features_cache_size = max_vision_features_cache_size
        self.cache = Sam2VideoInferenceCache(inference_device, inference_state_device, max_vision_features_cache_size)
        self.palette: Tensor | None = None
        """(3, 256): what 8-bit pixels become, so that the frames of a stream take little space in its file."""
        self.processed_frames: Mapping[int, Tensor] | None = None
        if isinstance(video, Tensor):
            self.processed_frames = dict(enumerate(video.to(video_storage_device, self.dtype)))
        elif video is not None:
            self.processed_frames = video
        self.obj_ids: list[Any] = []
        self.point_inputs_per_obj: Inputs = {}
        self.mask_inputs_per_obj: Inputs = {}
        self.obj_with_new_inputs: list[Any] = []
        self._taken: Inputs = {}  # the inputs that a model has run
        self._stored: dict[tuple[int, str, int], dict[str, Any]] = {}  # outputs from store_output, not yet tracked
        self._tracks: Tracks | None = None

    # Frames

    @property
    def num_frames(self) -> int | None:
        """How many frames there are; None before the first one of a stream."""
        return None if self.processed_frames is None else len(self.processed_frames)

    def add_new_frame(self, pixel_values: Tensor, frame_idx: int | None = None) -> int:
        """Adds a frame of a stream.

        Args:
            pixel_values: (3, side, side) or (1, 3, side, side), from a processor.
            frame_idx: Its number; None for the next.

        Returns:
            Its number.

        Raises:
            ValueError: It has another shape.
        """
        frame = pixel_values[0] if pixel_values.ndim == 4 and len(pixel_values) == 1 else pixel_values
        if frame.ndim != 3 or frame.shape[0] != 3:
            raise PromptError(
                f"a frame has shape {tuple(pixel_values.shape)}: expected (3, height, width), or a batch of one"
            )
        frames = self._arriving()
        frame_idx = len(frames) if frame_idx is None else frame_idx
        frames[frame_idx] = frame.to(self.video_storage_device, self.dtype)
        return frame_idx

    def get_frame(self, frame_idx: int) -> Tensor:
        """(3, side, side): a prepared frame.

        Raises:
            KeyError: There is no such frame, or it is no longer kept.
        """
        if self.processed_frames is None:
            raise KeyError(f"there is no frame {frame_idx}: the session has no frames yet")
        return self.processed_frames[frame_idx].to(self.inference_device)

    def read_frames(self, frames: range) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """The numbers of frames, and what reads each. The frames of a video file are read one after another."""
        if isinstance(self.processed_frames, VideoFrames):
            for frame_idx, pixels in self.processed_frames.read(frames):
                yield frame_idx, partial(pixels.to, self.inference_device)
        else:
            for frame_idx in frames:
                yield frame_idx, partial(self.get_frame, frame_idx)

    def _arriving(self) -> MutableMapping[int, Tensor]:
        """The frames, to which new ones can be added."""
        if not isinstance(self.processed_frames, MutableMapping):
            arrived = ArrivedFrames(self.palette, self.dtype, torch.device(self.video_storage_device))
            known = self.processed_frames
            self.processed_frames = arrived if known is None else ChainMap(arrived, known)  # type: ignore[arg-type]
        return self.processed_frames

    # Objects and their prompts

    def obj_id_to_idx(self, obj_id: Any) -> int:
        """The place of an object in ``obj_ids``; a new object gets the next one."""
        if obj_id not in self.obj_ids:
            self.obj_ids.append(obj_id)
            for inputs in (self.point_inputs_per_obj, self.mask_inputs_per_obj, self._taken):
                inputs[len(self.obj_ids) - 1] = {}
        return self.obj_ids.index(obj_id)

    def obj_idx_to_id(self, obj_idx: int) -> Any:
        """The id of the object in a place.

        Raises:
            KeyError: There is none.
        """
        if not 0 <= obj_idx < len(self.obj_ids):
            raise KeyError(f"there is no object in place {obj_idx}: {len(self.obj_ids)} were added")
        return self.obj_ids[obj_idx]

    def get_obj_num(self) -> int:
        """How many objects there are."""
        return len(self.obj_ids)

    def add_point_inputs(self, obj_idx: int, frame_idx: int, inputs: dict[str, Tensor]) -> None:
        """Keeps the points of an object in a frame: ``point_coords`` (1, 1, points, 2), ``point_labels``."""
        self.point_inputs_per_obj[obj_idx][frame_idx] = _moved(inputs, self.inference_device)

    def remove_point_inputs(self, obj_idx: int, frame_idx: int) -> None:
        """Forgets the points of an object in a frame."""
        self.point_inputs_per_obj[obj_idx].pop(frame_idx, None)

    def add_mask_inputs(self, obj_idx: int, frame_idx: int, inputs: Tensor) -> None:
        """Keeps the mask (1, 1, side, side) of an object in a frame."""
        self.mask_inputs_per_obj[obj_idx][frame_idx] = inputs.to(self.inference_device)

    def remove_mask_inputs(self, obj_idx: int, frame_idx: int) -> None:
        """Forgets the mask of an object in a frame."""
        self.mask_inputs_per_obj[obj_idx].pop(frame_idx, None)

    def new_inputs(self, obj_idx: int, frame_idx: int) -> Any:
        """The mask or the points of an object in a frame that no model has run yet, or None."""
        inputs = self._inputs(obj_idx, frame_idx)
        return None if inputs is self._taken[obj_idx].get(frame_idx) else inputs

    def take_inputs(self, obj_idx: int, frame_idx: int) -> None:
        """Notes that a model has run the inputs of an object in a frame."""
        self._taken[obj_idx][frame_idx] = self._inputs(obj_idx, frame_idx)
        frames = self.point_inputs_per_obj[obj_idx].keys() | self.mask_inputs_per_obj[obj_idx].keys()
        if all(self.new_inputs(obj_idx, frame) is None for frame in frames):
            self.obj_with_new_inputs = [one for one in self.obj_with_new_inputs if one != self.obj_ids[obj_idx]]

    def take_all_inputs(self, obj_idx: int) -> None:
        """Notes so for all frames."""
        for frame in self.point_inputs_per_obj[obj_idx].keys() | self.mask_inputs_per_obj[obj_idx].keys():
            self.take_inputs(obj_idx, frame)

    def _inputs(self, obj_idx: int, frame_idx: int) -> Any:
        mask = self.mask_inputs_per_obj[obj_idx].get(frame_idx)
        return self.point_inputs_per_obj[obj_idx].get(frame_idx) if mask is None else mask

    # Results

    @property
    def output_dict_per_obj(self) -> LiveMapping:
        """By the object's place, ``cond_frame_outputs`` and ``non_cond_frame_outputs``, each by frame."""
        return by_place(
            self.get_obj_num, lambda obj_idx: {kind: self._outputs(obj_idx, kind) for kind in (COND, NON_COND)}
        )

    @property
    def frames_tracked_per_obj(self) -> LiveMapping:
        """By the object's place, frames that were tracked: ``{frame: {"reverse": False}}``."""

        def tracked(obj_idx: int) -> dict[int, dict[str, bool]]:
            track = self._track(obj_idx)
            return {} if track is None else tracked_frames(track)

        return by_place(self.get_obj_num, tracked)

    def store_output(
        self,
        obj_idx: int,
        frame_idx: int,
        output_key: str | None = None,
        output_value: Any = None,
        is_conditioning_frame: bool = True,
    ) -> None:
        """Stores the output of an object in a frame, or one value of it. The next forward pass tracks it.

        Args:
            obj_idx: The object's place.
            frame_idx: The frame's number.
            output_key: The name of one value, in an output that is there already; None for a whole output.
            output_value: The value; or ``pred_masks``, ``object_pointer`` and ``object_score_logits``, by name.
            is_conditioning_frame: Whether the frame counts as prompted.

        Raises:
            KeyError: There is no such object, or no output that the value belongs to.
        """
        kind = COND if is_conditioning_frame else NON_COND
        outputs = self._outputs(obj_idx, kind)
        if output_key is None and isinstance(output_value, Mapping):
            self._stored[obj_idx, kind, frame_idx] = dict(output_value)
        else:
            self._stored[obj_idx, kind, frame_idx] = {**outputs[frame_idx], str(output_key): output_value}

    def get_output(self, obj_idx: int, frame_idx: int, output_key: str, is_conditioning_frame: bool = True) -> Any:
        """One value of an output, or None if the frame has no such output.

        Raises:
            KeyError: There is no such object, or no such value.
        """
        outputs = self._outputs(obj_idx, COND if is_conditioning_frame else NON_COND)
        return outputs[frame_idx][output_key] if frame_idx in outputs else None

    def reset_tracking_data(self) -> None:
        """Forgets all objects, their prompts and results; keeps the frames and the cached features."""
        if self._tracks is not None:
            for object_id in [*self._tracks.objects]:
                self._tracks.remove(object_id)
        self._tracks = None
        self.obj_ids.clear()
        self.obj_with_new_inputs.clear()
        for inputs in (self.point_inputs_per_obj, self.mask_inputs_per_obj, self._taken, self._stored):
            inputs.clear()

    def reset_inference_session(self) -> None:
        """As ``reset_tracking_data``, and forgets the cached features, for another model."""
        self.reset_tracking_data()
        self.cache.clear_all()

    # For the model

    def tracks_of(self, engine: Engine, *, is_stream: bool) -> Tracks:
        """What tracks the objects, made at the first call.

        Args:
            engine: Engine of the model.
            is_stream: Whether the length of the video is unknown: distances in time do not depend on it then.

        Raises:
            SessionError: The results are of another model.
        """
        policy = PaperPolicy(engine.config.num_maskmem, length=None if is_stream else self.num_frames)
        tracks = self._tracks
        if tracks is None or not tracks.objects:
            side = engine.config.image_size
            self._tracks = tracks = Tracks(
                engine,
                policy,
                max_objects=MAX_OBJECTS,
                size_hw=(self.video_height or side, self.video_width or side),
                input_hw=(side, side),
                spool=Spool(),
                can_rewind=True,
            )
        elif any(getattr(engine, name) != getattr(tracks.engine, name) for name in ("dtype", "device", "config")):
            raise SessionError(
                "the session has results of another model, or of this one before it was moved: "
                "call reset_inference_session() first"
            )
        tracks.engine, tracks.policy = engine, policy
        return tracks

    def pop_stored(self) -> Iterator[tuple[Any, bool, int, dict[str, Any]]]:
        """Object, whether the frame counts as prompted, frame and output of each call of ``store_output``."""
        while self._stored:
            (obj_idx, kind, frame), output = self._stored.popitem()
            yield self.obj_ids[obj_idx], kind == COND, frame, output

    def _track(self, obj_idx: int) -> Track | None:
        object_id = self.obj_idx_to_id(obj_idx)
        return None if self._tracks is None else self._tracks.objects.get(object_id)

    def _outputs(self, obj_idx: int, kind: str) -> LiveMapping:
        """The outputs of an object, by frame."""
        track = self._track(obj_idx)

        def frames() -> list[int]:
            bank = None if track is None else track.bank
            found = set() if bank is None else bank.prompted if kind == COND else bank.tracked
            return sorted(found | {f for i, k, f in self._stored if (i, k) == (obj_idx, kind)})

        def output(frame: int) -> Mapping[str, Any]:
            if (stored := self._stored.get((obj_idx, kind, frame))) is not None:
                return stored
            assert self._tracks is not None
            assert track is not None
            mask = self.mask_inputs_per_obj[obj_idx].get(frame) if kind == COND else None
            return output_of(self._tracks, track, frame, mask, torch.device(self.inference_state_device))

        return LiveMapping(frames, output)


def _moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A copy of a dict of tensors, or of lists of tensors, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [move(one) for one in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in values.items()}
