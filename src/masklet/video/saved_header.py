"""What a saved session must hold: checked before any of it is used, since a file may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from masklet.errors import SessionError
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT
from masklet.numbers import LARGEST, shown, size_of, whole_number

TEXT, OBJECT, LIST = "text", "an object", "a list"
KINDS: dict[str, tuple[type, ...]] = {TEXT: (str,), OBJECT: (dict,), LIST: (list,)}


def check_header(header: Mapping[str, Any]) -> None:
    """Check the content of ``session.json``.

    Raises:
        SessionError: A value is missing, or cannot be what ``save_session`` wrote; the error names it.
    """
    for name, kind in (
        ("model", TEXT),
        ("video", OBJECT),
        ("input_hw", LIST),
        ("policy", OBJECT),
        ("object_ids", LIST),
        ("remaining", LIST),
    ):
        _check_kind(name, header.get(name), kind)
    if len(header["model"].split()) != 2:
        raise SessionError(f"model is {shown(header['model'])}: expected the type and the fingerprint of its weights")
    _check_size("input_hw", header["input_hw"])
    whole_number("max_objects", header.get("max_objects"), SessionError, least=1)
    _check_video(header["video"])
    object_ids = header["object_ids"]
    if not all(isinstance(one, str | int) for one in object_ids) or len(set(object_ids)) < len(object_ids):
        raise SessionError(f"object_ids is {shown(object_ids)}: expected texts and whole numbers, each once")
    labels = header.get("labels", [None] * len(object_ids))
    if (
        not isinstance(labels, list)
        or [type(one) for one in labels if one is not None and type(one) is not str]
        or len(labels) != len(object_ids)
    ):
        raise SessionError(f"labels is {shown(labels)}: expected a text or null for each object")
    for frames in header["remaining"]:
        _check_kind("a range of frames", frames, LIST)
        if (
            not all(type(number) is int for number in frames)
            or len(frames) != 3
            or min(frames[:2]) < -1
            or not 0 < abs(frames[2]) <= LARGEST
        ):
            raise SessionError(f"remaining has {shown(frames)}: expected [start, stop, step]")


def _check_video(video: Mapping[str, Any]) -> None:
    """Check what a session knows of its video."""
    _check_kind("the name of the video", video.get("name"), TEXT)
    for name in ("path", "checksum", "count"):
        if name not in video:
            raise SessionError(f"the video has no {name}: expected one, or null")
    for name in ("path", "checksum"):
        if video[name] is not None:
            _check_kind(f"the {name} of the video", video[name], TEXT)
    if "\0" in (video.get("path") or ""):
        raise SessionError(f"the path of the video is {shown(video['path'])}: expected a path")
    _check_size("the size of the video", video.get("size_hw"))
    if video["count"] is not None:
        whole_number("the number of frames", video["count"], SessionError, least=1)


def _check_size(name: str, value: Any) -> None:
    _check_kind(name, value, LIST)
    if list(size_of(name, value, SessionError)) != value or float in map(type, value):
        raise SessionError(f"{name} is {shown(value)}: expected [height, width]")


def _check_kind(name: str, value: Any, kind: str) -> None:
    if not isinstance(value, KINDS[kind]):
        raise SessionError(f"{name} is {shown(value)}: expected {kind}")


def check_times(tensors: Mapping[str, Tensor]) -> None:
    """Check the times of tracked frames.

    Raises:
        SessionError: They cannot be what ``save_session`` wrote.
    """
    frames = _column(tensors, "times.frames")
    seconds = _column(tensors, "times.seconds", is_whole=False)
    _check_that(len(frames) == len(seconds), "times.seconds", "one for each frame")
    _check_that(bool((frames >= 0).all()), "times.frames", "numbers from 0")
    _check_that(bool(seconds.isfinite().all()), "times.seconds", "finite numbers")


def check_result_tensors(
    tensors: Mapping[str, Tensor], results_bytes: int, least_bytes: int, count: int | None
) -> None:
    """Check what says where the results of an object, or of one of its hypotheses, lie: see ``result_tensors``.

    Args:
        tensors: Tensors by name.
        results_bytes: The length of the packed results.
        least_bytes: The length of the shortest packed result.
        count: Frames of the video, if known.

    Raises:
        SessionError: One of them cannot be what ``save_session`` wrote; the error names it.
    """
    frames, sizes, prompted = (_column(tensors, name) for name in ("frames", "result_bytes", "is_prompted"))
    _check_that(len(frames) == len(sizes) == len(prompted), "frames", "as many as results")
    is_rising = bool((frames.diff() > 0).all()) and bool((frames >= 0).all())
    _check_that(is_rising and bool((frames < (count or LARGEST)).all()), "frames", "rising numbers of frames")
    # One by one, since a sum of damaged numbers may be anything.
    lengths = sizes.tolist()
    _check_that(all(least_bytes <= size <= results_bytes for size in lengths), "result_bytes", "lengths of results")
    _check_that(sum(lengths) == results_bytes, "result_bytes", f"lengths that add up to {results_bytes} bytes")


def check_track_tensors(tensors: Mapping[str, Tensor], times: Tensor) -> None:
    """Check the other tensors of one object, see ``track_tensors``.

    Args:
        tensors: Tensors by name.
        times: (frames,), those whose time is known.

    Raises:
        SessionError: One of them cannot be what ``save_session`` wrote; the error names it.
    """
    steps = tensors.get("tracked_steps")
    number = tensors.get("number", torch.zeros(0, device="cpu"))
    _check_that(number.ndim == 0 and number.dtype == torch.int64, "number", "a whole number")
    _check_that(0 <= number.item() < 2**31, "number", "a number from 0")
    is_pairs = steps is not None and steps.dtype == torch.int64 and steps.ndim == 2 and steps.shape[1] == 2
    _check_that(is_pairs, "tracked_steps", "pairs of whole numbers")
    assert steps is not None
    has_time = torch.isin(steps[:, 0], times) if len(steps) else steps
    _check_that(
        bool(has_time.all()) and bool((steps[:, 1] != 0).all()), "tracked_steps", "frames with a time, and steps"
    )
    for name in (name for name in tensors if name.startswith("clicks.")):
        _check_clicks(name, tensors)


def _check_clicks(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Check the points or the labels of one frame."""
    _, _, rest = name.partition(".")
    frame, _, kind = rest.partition(".")
    _check_that(frame.isdecimal() and len(frame) < 19 and kind in ("points", "labels"), name, "clicks.FRAME.points")
    points, labels = (
        tensors.get(f"clicks.{frame}.{kind}", torch.zeros(0, device="cpu")) for kind in ("points", "labels")
    )
    is_points = points.ndim == 2 and points.shape[1] == 2 and points.dtype == torch.float32
    _check_that(is_points and bool(points.isfinite().all()), name, "finite points (x, y)")
    is_labels = labels.shape == points.shape[:1] and labels.dtype == torch.int64
    _check_that(
        is_labels and bool(((labels >= 0) & (labels <= BOX_BOTTOM_RIGHT)).all()), name, "a label for each point"
    )


def _column(tensors: Mapping[str, Tensor], name: str, *, is_whole: bool = True) -> Tensor:
    """A tensor of one number for each frame. A list without frames was saved as floats."""
    column = tensors.get(name, torch.zeros(1, 1, device="cpu"))
    kinds = (torch.int64, torch.bool) if is_whole else (torch.float64,)
    _check_that(column.ndim == 1 and (not len(column) or column.dtype in kinds), name, "a number for each frame")
    return column


def _check_that(is_right: bool, name: str, expected: str) -> None:
    if not is_right:
        raise SessionError(f"its {name} cannot be right: expected {expected}")
