"""The video model: transformers' names, signatures and outputs over the tracker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from masklet.compat.transformers.modeling import Sam2Model
from masklet.compat.transformers.video_configuration import Sam2VideoConfig
from masklet.compat.transformers.video_outputs import Sam2VideoSegmentationOutput
from masklet.compat.transformers.video_session import Sam2VideoInferenceSession
from masklet.compat.transformers.video_tracking import SessionFeatures, SessionTracker
from masklet.engine import Engine, make_engine
from masklet.errors import PromptError
from masklet.model import sam2


class Sam2VideoModel(Sam2Model):
    """SAM 2 for videos: tracks the objects of a ``Sam2VideoInferenceSession``.

    Args:
        config: Configuration of the model; SAM 2.1 tiny if None.
        corrections_are_kept: Whether a prompt in a frame that was tracked already is kept when the video is propagated
            again, and counts as a prompted frame. False loses it, as transformers does. The configuration may say it
            too, as ``corrections_are_kept``.
        pad_attends: Whether padding of ragged points takes part, as in transformers: see ``Sam2Model``.
        network: A plain network whose weights it takes; a new one if None.

    Raises:
        ConfigError: The configuration asks for a network that this package cannot build.
    """

    config_class: ClassVar[type[Any]] = Sam2VideoConfig
    base_model_prefix = "sam2_video"
    has_memory: ClassVar[bool] = True
    ignored_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: Any = None,
        *,
        corrections_are_kept: bool | None = None,
        pad_attends: bool | None = None,
        network: sam2.Sam2Model | None = None,
    ) -> None:
        super().__init__(config or Sam2VideoConfig(), pad_attends=pad_attends, network=network)
        if corrections_are_kept is not None:
            self.config.corrections_are_kept = corrections_are_kept
        self._engine: tuple[tuple[object, ...], Engine] | None = None

    @property
    def engine(self) -> Engine:
        """The engine for tracking; recreated when the network has moved to another device or precision."""
        key = (self.device, self.dtype, *map(id, self._modules.values()))
        if self._engine is None or self._engine[0] != key:
            self._engine = key, make_engine(self.network)
        return self._engine[1]

    def forward(  # type: ignore[override]
        self,
        inference_session: Sam2VideoInferenceSession,
        frame_idx: int | None = None,
        frame: Tensor | None = None,
        reverse: bool = False,
        run_mem_encoder: bool = True,
        *,
        return_dict: bool | None = None,
    ) -> Any:
        """Runs the new prompts of a frame, and tracks all other objects into it.

        A frame in which an object was prompted, without a new prompt, has its stored result.

        Args:
            inference_session: The video, with at least one object.
            frame_idx: The frame's number; with ``frame``, None for the next one.
            frame: (3, side, side) prepared frame of a stream.
            reverse: Whether to read the memory of later frames, as backward tracking does.
            run_mem_encoder: Without effect: the memory of a frame that a later one reads is always encoded.
            return_dict: False for a tuple.

        Returns:
            ``Sam2VideoSegmentationOutput``. Objects that were not prompted yet have masks of -1024.

        Raises:
            ValueError: The session has no objects, or neither a frame nor its number was given.
            KeyError: There is no such frame.
        """
        session = inference_session
        if not session.obj_ids:
            raise PromptError("the session has no objects: call add_inputs_to_inference_session first")
        if frame is not None:
            frame_idx = session.add_new_frame(frame, frame_idx)
        if frame_idx is None:
            raise PromptError("neither frame nor frame_idx: expected a frame of a stream, or the number of a frame")
        output = self._run(session, frame_idx, -1 if reverse else 1, is_stream=frame is not None)
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    def propagate_in_video_iterator(
        self,
        inference_session: Sam2VideoInferenceSession,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
        show_progress_bar: bool = False,
    ) -> Iterator[Sam2VideoSegmentationOutput]:
        """Tracks all objects through the video.

        Args:
            inference_session: The video, with at least one object.
            start_frame_idx: First frame; None for the earliest one that ``forward`` ran with a prompt.
            max_frame_num_to_track: How many frames after the first; None for all.
            reverse: Backward. From frame 0, nothing is tracked.
            show_progress_bar: Whether to draw a bar on standard error.

        Yields:
            As ``forward`` returns, for each frame.

        Raises:
            ValueError: ``start_frame_idx`` is None, and ``forward`` has not run.
        """
        session = inference_session
        frames = _frames_to_track(session, start_frame_idx, max_frame_num_to_track, reverse=reverse)
        read = session.read_frames(frames)
        for frame_idx, pixels in _with_bar(read, len(frames)) if show_progress_bar else read:
            yield self._run(session, frame_idx, frames.step, at_hand={frame_idx: pixels})

    @torch.inference_mode()
    def _run(
        self,
        session: Sam2VideoInferenceSession,
        frame_idx: int,
        step: int,
        *,
        at_hand: dict[int, Any] | None = None,
        is_stream: bool = False,
    ) -> Sam2VideoSegmentationOutput:
        """The output of one frame."""
        engine = self.engine
        tracker = SessionTracker(
            session,
            session.tracks_of(engine, is_stream=is_stream),
            SessionFeatures(session, engine, at_hand or {}),
            corrections_are_kept=getattr(self.config, "corrections_are_kept", True),
            pad_attends=self._wants("pad_attends", None),
        )
        results = tracker.run(frame_idx, step)
        return Sam2VideoSegmentationOutput(
            object_ids=[*session.obj_ids],
            pred_masks=torch.stack([result.logits for result in results])[:, None],
            object_score_logits=torch.stack([result.object_score for result in results])[:, None],
            frame_idx=frame_idx,
        )


def _frames_to_track(
    session: Sam2VideoInferenceSession, start: int | None, count: int | None, *, reverse: bool
) -> range:
    """The frames from the first through ``count`` frames after it."""
    if start is None:
        prompted = [f for outputs in session.output_dict_per_obj.values() for f in outputs["cond_frame_outputs"]]
        if not prompted:
            raise PromptError(
                "no frame to start from: expected start_frame_idx, or an earlier call of the model in a prompted frame"
            )
        start = min(prompted)
    length = session.num_frames or 0
    count = length if count is None else count
    if reverse:
        return range(start, max(start - count, 0) - 1, -1) if start > 0 else range(0)
    return range(start, min(start + count, length - 1) + 1)


def _with_bar(frames: Iterator[Any], length: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    yield from track(frames, "propagate in video", length, console=Console(stderr=True))
