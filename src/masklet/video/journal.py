"""A session in parts: the result of one object in one frame, for programs that store each as it comes.

``VideoSession.save`` writes a whole session. A server stores what each call has changed, and rebuilds the session
from all parts: masks are the same to the bit as if it had never been closed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import safetensors.torch

from masklet.config import STRIDE
from masklet.engine import Engine
from masklet.processing import ImageProcessor
from masklet.video.frames import Video
from masklet.video.policy import MemoryPolicy, PaperPolicy
from masklet.video.saved import result_spool
from masklet.video.session import VideoSession
from masklet.video.spool import TensorPacking
from masklet.video.tracker import FramePrompt


@dataclass(frozen=True)
class StoredFrame:
    """One object in one frame."""

    object_id: Hashable
    number: int
    """Number of the object, from 0, in the order in which objects were prompted."""
    frame: int
    packed: bytes
    """The result, without loss."""
    object_score: float
    """Logit: above 0 the object is in the frame."""
    is_prompted: bool
    step: int | None
    """With which tracking has reached the frame; None if it has not."""
    time: float | None
    """Seconds from the beginning of the video, of a tracked frame."""
    clicks: bytes | None
    """Points and boxes that later clicks add to."""
    conditioned: bytes | None
    """The frame conditioned on memory, of a correction that more clicks may follow."""


def stored_frame(session: VideoSession, object_id: Hashable, frame: int) -> StoredFrame:
    """What is to be stored of an object in a frame, which must have a result."""
    track = session._tracks.objects[object_id]
    clicks, packed = track.clicks.get(frame), result_spool(track.bank).read(frame)
    conditioned = track.conditioned.get(frame)
    return StoredFrame(
        object_id,
        track.number,
        frame,
        packed,
        object_score=float(track.bank[frame].object_score),
        is_prompted=frame in track.bank.prompted,
        step=track.tracked_steps.get(frame),
        time=session._times.get(frame),
        clicks=None if clicks is None or clicks.points is None else pack_clicks(clicks),
        conditioned=None if conditioned is None else conditioned_packing(session).pack(conditioned),
    )


def remaining_frames(session: VideoSession) -> list[range]:
    """The frames that are still to be tracked."""
    return list(session._remaining)


def restored_session(
    engine: Engine,
    processor: ImageProcessor,
    video: Video,
    policy: MemoryPolicy,
    frames: Iterable[StoredFrame],
    remaining: Sequence[range],
    *,
    max_objects: int,
) -> VideoSession:
    """The session whose parts were stored.

    Args:
        engine: Engine of the same model.
        processor: As when it was stored.
        video: The same video.
        policy: As when it was stored.
        frames: All that were stored, of each object and frame the last one, in the order of the objects' numbers.
        remaining: The result of ``remaining_frames``.
        max_objects: As in ``Segmenter.video``.
    """
    session = VideoSession(engine, processor, video, policy, max_objects=max_objects)
    tracks, packing = session._tracks, conditioned_packing(session)
    for stored in frames:
        if stored.object_id not in tracks.objects:
            tracks.add(stored.object_id, tracks.new_track(stored.number))
        track = tracks.objects[stored.object_id]
        result_spool(track.bank).write(stored.frame, stored.packed)
        if stored.is_prompted:
            track.bank.prompted.add(stored.frame)
        if stored.step is not None:
            track.tracked_steps[stored.frame] = stored.step
        if stored.time is not None:
            session._times[stored.frame] = stored.time
        if stored.clicks is not None:
            tensors = safetensors.torch.load(stored.clicks)
            track.clicks[stored.frame] = FramePrompt(**{name: t.to(engine.device) for name, t in tensors.items()})
        if stored.conditioned is not None:
            track.conditioned[stored.frame] = packing.unpack(stored.conditioned)
    session._remaining = list(remaining)
    return session


def pack_clicks(clicks: FramePrompt) -> bytes:
    """Points and labels as bytes."""
    tensors = {"points": clicks.points, "labels": clicks.labels}
    return safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items() if t is not None})


def conditioned_packing(session: VideoSession) -> TensorPacking:
    """How conditioned maps of a session are stored."""
    (height, width), engine = session.processor.input_hw, session.engine
    shape = (1, engine.config.hidden_size, height // STRIDE, width // STRIDE)
    return TensorPacking(shape, engine.dtype, engine.device)


def forget_tracked(session: VideoSession) -> None:
    """Drops the results of tracked frames that further tracking does not read, for programs that have stored them.

    The session and its saved file then stop growing with the video, and the remaining frames get the same masks. Does
    nothing with policies other than "paper", since these may read any frame.
    """
    policy = session._tracks.policy
    if type(policy) is not PaperPolicy:
        return
    reach = range(1, max(policy.num_maskmem, policy.max_pointers))
    kept = {frames.start - back * frames.step for frames in session._remaining for back in reach}
    for track in session._tracks.objects.values():
        for frame in track.bank.tracked - kept:
            track.discard(frame)
            track.tracked_steps.pop(frame, None)
    tracked = {frame for track in session._tracks.objects.values() for frame in track.tracked_steps}
    for frame in [frame for frame in session._times if frame not in tracked]:
        del session._times[frame]
