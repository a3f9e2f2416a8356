"""SAM2VideoPredictor: prompt objects in a video, and propagate them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator
from functools import partial
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor

from masklet.compat.live_mapping import LiveMapping, by_place, tracked_frames
from masklet.compat.sam2.tracked_objects import prompt_object, prompt_of, remove_prompts, stored_outputs
from masklet.compat.sam2.tracking_predictor import FrameOutput, TrackingPredictor
from masklet.errors import PromptError
from masklet.numbers import whole_number
from masklet.processing import ImageProcessor
from masklet.segmenter import MAX_OBJECTS
from masklet.video.encoded_frames import EncodedFrames
from masklet.video.frames import Video, open_video
from masklet.video.object_frame import ObjectFrame
from masklet.video.policies import make_policy
from masklet.video.readers import Frame
from masklet.video.spool import Spool
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Tracks


class SAM2VideoPredictor(TrackingPredictor):
    """Tracks objects through a video. The state of a video is a dict that ``init_state`` returns.

    Frames are read when they are needed and results lie in a file, so that memory does not grow with the video. A
    correction of a frame that was tracked stays when the video is propagated again; Meta's predictor loses it, and so
    does this one with ``++model.add_all_frames_to_correct_as_cond=false``.

    The constructor's arguments are those of ``TrackingPredictor``.
    """

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """A predictor for a Hub repository, a model folder, or any name that ``masklet.load`` takes.

        Args:
            model_id: Its name.
            kwargs: Arguments of ``build_sam2_video_predictor``.
        """
        from masklet.compat.sam2.build_sam import build_sam2_video_predictor_hf

        return build_sam2_video_predictor_hf(model_id, **kwargs)

    def init_state(
        self,
        video_path: Any,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> InferenceState:
        """Opens a video.

        Args:
            video_path: A video file, a folder of images, or anything that ``masklet.video.frames.open_video`` takes.
            offload_video_to_cpu: No difference: frames are read when they are needed.
            offload_state_to_cpu: No difference: results lie in a file.
            async_loading_frames: No difference: frames are read ahead in a thread.

        Raises:
            VideoError: It is not a video.
        """
        return InferenceState(self, open_video(video_path))

    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: Any,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> FrameOutput:
        """Prompts an object in a frame.

        Args:
            inference_state: From ``init_state``.
            frame_idx: The frame's number.
            obj_id: The object's id; a new one adds an object.
            points: (points, 2), x and y in pixels of the video.
            labels: (points,): 1 on the object, 0 beside it.
            clear_old_points: Whether earlier points of the frame are forgotten.
            normalize_coords: False if coordinates are from 0 to 1.
            box: (4,), x0 y0 x1 y1, or None.

        Returns:
            The frame's number, the ids of all objects, and their logits (objects, 1, height, width), -1024 for those
            without a result in this frame.

        Raises:
            ValueError: Neither points nor a box; points without labels; a box beside earlier points.
        """
        if box is not None and not clear_old_points:
            raise ValueError("a box came with clear_old_points=False: a box must be the first prompt of its frame")
        state = inference_state
        prompt = prompt_of(points, labels, box, state.tracks, normalize_coords=normalize_coords)
        return state.prompt(frame_idx, obj_id, prompt, replaces=clear_old_points)

    def add_new_points(self, *args: Any, **kwargs: Any) -> FrameOutput:
        """The older name of ``add_new_points_or_box``."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(self, inference_state: InferenceState, frame_idx: int, obj_id: Any, mask: Any) -> FrameOutput:
        """Prompts an object with its mask (height, width), which is taken as it is. Returns as the other prompts."""
        prompt = inference_state.tracks.read(mask=mask)
        return inference_state.prompt(frame_idx, obj_id, prompt, replaces=True)

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Checks that every object was prompted.

        Raises:
            RuntimeError: One was not, or there are no objects.
        """
        objects = inference_state.tracks.objects
        empty = [object_id for object_id, track in objects.items() if not track.bank.prompted]
        if empty or not objects:
            what = f"object {empty[0]!r} has no prompts" if empty else "no object was prompted"
            raise RuntimeError(f"{what}: call add_new_points_or_box or add_new_mask first")

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Generator[FrameOutput]:
        """Tracks all objects.

        Args:
            inference_state: From ``init_state``.
            start_frame_idx: First frame; None for the earliest prompted one.
            max_frame_num_to_track: How many frames after the first; None for all.
            reverse: Backward. From frame 0, nothing is tracked.

        Yields:
            As the prompts return.
        """
        state = inference_state
        self.propagate_in_video_preflight(state)
        prompted = min(min(track.bank.prompted) for track in state.tracks.objects.values())
        start = prompted if start_frame_idx is None else whole_number("start_frame_idx", start_frame_idx, PromptError)
        last = len(state.video) if max_frame_num_to_track is None else max_frame_num_to_track
        frames = (
            range(start, max(start - last, 0) - 1, -1)
            if reverse
            else range(start, min(start + last + 1, len(state.video)))
        )
        if reverse and start == 0:
            return
        for frame in state.video.frames(frames.start, frames.stop, frames.step):
            results = state.tracks.advance(frame.index, partial(state.features_of, at_hand=frame), frames.step)
            yield state.output(frame.index, results)

    def clear_all_prompts_in_frame(
        self, inference_state: InferenceState, frame_idx: int, obj_id: Any, need_output: bool = True
    ) -> FrameOutput | None:
        """Undoes the prompts of an object in a frame; an object without other prompts starts again.

        Raises:
            RuntimeError: There is no such object.
        """
        track = inference_state.tracks.objects.get(obj_id)
        if track is None:
            raise RuntimeError(f"no object {obj_id!r}: expected one of {inference_state['obj_ids']}")
        remove_prompts(track, frame_idx)
        return inference_state.output(frame_idx) if need_output else None

    def remove_object(
        self, inference_state: InferenceState, obj_id: Any, strict: bool = False, need_output: bool = True
    ) -> tuple[list[Any], list[tuple[int, Tensor]]]:
        """Removes an object.

        Args:
            inference_state: From ``init_state``.
            obj_id: The object's id.
            strict: Whether an unknown id is an error.
            need_output: Whether to return the frames in which it was prompted.

        Returns:
            The remaining ids, and for each of these frames its number and the logits of the remaining objects.

        Raises:
            RuntimeError: There is no such object, and ``strict`` is set.
        """
        state = inference_state
        if obj_id not in state.tracks.objects:
            if strict:
                raise RuntimeError(f"no object {obj_id!r}: expected one of {state['obj_ids']}")
            return [*state["obj_ids"]], []
        frames = sorted(state.tracks.objects[obj_id].bank.prompted)
        state.tracks.remove(obj_id)
        state.changed()
        if not need_output or not state.tracks.objects:
            return [*state["obj_ids"]], []
        return [*state["obj_ids"]], [(frame, state.output(frame)[2]) for frame in frames]

    def reset_state(self, inference_state: InferenceState) -> None:
        """Removes all objects."""
        for object_id in inference_state["obj_ids"]:
            inference_state.tracks.remove(object_id)
        inference_state.changed()


class InferenceState(dict[str, Any]):
    """A video and its objects, with the keys of Meta's state.

    Most values are read-only views of what the tracker holds: ``obj_id_to_idx``, ``obj_idx_to_id``,
    ``output_dict_per_obj``, ``frames_tracked_per_obj``, ``point_inputs_per_obj`` and ``mask_inputs_per_obj``.
    ``images`` reads frames when it is indexed.
    """

    def __init__(self, predictor: SAM2VideoPredictor, video: Video) -> None:
        engine, processor = predictor.engine, predictor.image_processor
        policy = make_policy(
            "paper", num_maskmem=engine.config.num_maskmem, max_prompted=predictor.max_prompted, length=video.count
        )
        self.predictor = predictor
        self.video = video
        self.tracks = Tracks(
            engine,
            policy,
            max_objects=MAX_OBJECTS,
            size_hw=video.size_hw,
            input_hw=processor.input_hw,
            spool=Spool(),
            can_rewind=True,
        )
        self._encoded = EncodedFrames(engine, processor, video)
        super().__init__(
            obj_ids=[],
            images=FrameTensors(video, processor),
            num_frames=len(video),
            video_height=video.size_hw[0],
            video_width=video.size_hw[1],
            device=engine.device,
            storage_device=torch.device("cpu"),
            constants={},
            cached_features={},
            obj_id_to_idx=LiveMapping(lambda: self["obj_ids"], lambda object_id: self["obj_ids"].index(object_id)),
            obj_idx_to_id=self._by_place(lambda object_id: object_id),
            output_dict_per_obj=self._by_place(lambda one: stored_outputs(self.tracks, self.tracks.objects[one])),
            temp_output_dict_per_obj=self._by_place(lambda _: {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}),
            frames_tracked_per_obj=self._by_place(lambda object_id: tracked_frames(self.tracks.objects[object_id])),
            point_inputs_per_obj=self._by_place(self._points),
            mask_inputs_per_obj=self._by_place(self._masks),
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("the state of a video has open files and cannot be copied or pickled: call init_state again")

    def changed(self) -> None:
        """Brings ``obj_ids`` up to date, in place."""
        self["obj_ids"][:] = self.tracks.objects

    def prompt(self, frame: int, object_id: Any, prompt: FramePrompt, *, replaces: bool) -> FrameOutput:
        """Prompts an object in a frame; ``replaces`` forgets its earlier points there."""
        frame = whole_number("frame_idx", frame, PromptError)
        is_kept = self.predictor.corrections_are_kept
        prompt_object(self.tracks, object_id, frame, self.features_of, prompt, replaces=replaces, is_kept=is_kept)
        self.changed()
        return self.output(frame)

    def features_of(self, index: int, at_hand: Frame | None = None) -> Any:
        """The features of a frame."""
        if not 0 <= index < len(self.video):
            raise PromptError(f"frame_idx is {index}: the video has the frames 0 to {len(self.video) - 1}")
        return self._encoded.features(index, at_hand)

    def output(self, frame: int, results: dict[Hashable, ObjectFrame] | None = None) -> FrameOutput:
        """What predictors return for a frame."""
        return self.predictor.frame_output(self.tracks, frame, results)

    def _by_place(self, value: Callable[[Any], Any]) -> LiveMapping:
        """A mapping from an object's place in ``obj_ids`` to a function of its id."""
        return by_place(lambda: len(self["obj_ids"]), lambda place: value(self["obj_ids"][place]))

    def _points(self, object_id: Any) -> dict[int, dict[str, Tensor]]:
        clicks = self.tracks.objects[object_id].clicks
        return {
            frame: {"point_coords": prompt.points[None], "point_labels": prompt.labels[None]}
            for frame, prompt in clicks.items()
            if prompt.points is not None and prompt.labels is not None
        }

    def _masks(self, object_id: Any) -> dict[int, Tensor]:
        track = self.tracks.objects[object_id]
        return {frame: track.bank[frame].logits[None, None] > 0 for frame in track.bank.prompted - track.clicks.keys()}


class FrameTensors:
    """The frames of a video as (3, side, side) normalised tensors, read when they are indexed."""

    def __init__(self, video: Video, processor: ImageProcessor) -> None:
        self.video = video
        self.processor = processor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(frames, 3, height, width)."""
        return len(self), 3, *self.processor.input_hw

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int | slice) -> Tensor:
        if isinstance(index, slice):
            return torch.stack([self[one] for one in range(*index.indices(len(self)))])
        return self.processor.frame_values(self.video[range(len(self))[index]].image)[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.processor.frame_values(frame.image)[0] for frame in self.video.frames())
