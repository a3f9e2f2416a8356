"""masklet video."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from masklet.cli.groups import grouped
from masklet.cli.live import (
    LiveOptions,
    check_parts,
    ended_by_signals,
    open_live,
    save_snapshot,
    show_received,
    track_live,
)
from masklet.cli.options import JSON, OUT, PROMPT_FILE, ModelOptions, PixelOptions, Policy, WordOptions
from masklet.cli.outputs import STANDARD, check_places, write
from masklet.cli.prompts import parse_numbers
from masklet.cli.tables import show_progress, show_table
from masklet.errors import MaskletError, PromptError

if TYPE_CHECKING:
    from masklet.video.frame_result import FrameResult
    from masklet.video.outputs import Writers
    from masklet.video.plan import Direction
    from masklet.video.session import VideoSession

PLACE = "[OBJECT@]FRAME:"
Prompts: TypeAlias = dict[tuple[str, str, int], list[Any]]
"""Values by option, object and frame."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The prompts of a video."""

    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"{PLACE}X,Y[,LABEL]", help="Point on the object, in pixels; label 0 means not on it. Repeatable."
        ),
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}X0,Y0,X1,Y1", help="Box around the object, in pixels. Repeatable."),
    ] = None
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}PNG", help="Mask of the object, of the video's size. Repeatable."),
    ] = None
    object: Annotated[str, typer.Option(metavar="NAME", help="Name of the object for prompts without a name.")] = "1"

    prompts: Annotated[str | None, typer.Option(metavar="FILE", help=PROMPT_FILE)] = None

    def read(self, *, is_live: bool) -> Prompts:
        """Parse them, see ``read_prompts``."""
        given = {"--point": self.point or [], "--box": self.box or [], "--mask": self.mask or []}
        return read_prompts(given, self.object, is_live=is_live)


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """Which frames of a file are tracked."""

    start: Annotated[int | None, typer.Option(help="First frame. Default: the first prompted frame.")] = None
    end: Annotated[int | None, typer.Option(help="Last frame, inclusive.")] = None
    every: Annotated[int, typer.Option(min=1, help="Track every n-th frame and skip the others.")] = 1
    reverse: Annotated[bool, typer.Option("--reverse", help="Track backward.")] = False


@dataclass(frozen=True, kw_only=True)
class VideoOutputOptions:
    """Where the masks of a video are written."""

    out: Annotated[
        Path | None,
        typer.Option(
            *OUT,
            metavar="MP4",
            help="Write the video with the masks painted over it: .mp4, .mkv or .mov; without --live, also .gif or "
            ".webp.",
        ),
    ] = None
    masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a palette PNG for each frame.")] = None
    json: Annotated[
        Path | None,
        typer.Option(*JSON, metavar="JSONL", help="Write a line of JSON for each frame; - for the standard output."),
    ] = None


@dataclass(frozen=True)
class Request:
    """What to track in which video, and what to write."""

    video: str
    prompts: Prompts
    prompt_file: str | None
    output: VideoOutputOptions
    tracking: dict[str, Any]
    """Keyword arguments of ``Segmenter.video`` and ``Segmenter.stream``."""
    model: ModelOptions
    words: dict[str, Any]
    """Keyword arguments of ``VideoSession.prompt``; none without words."""


@grouped
def track(
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO", help="Video file, or folder of images in name order; with --live, a camera or a URL."
        ),
    ],
    *,
    prompt: PromptOptions,
    words: WordOptions,
    output: VideoOutputOptions,
    part: PartOptions,
    max_objects: Annotated[
        int,
        typer.Option(min=1, help="Objects tracked in one batch. Fewer need less memory; any number can be tracked."),
    ] = 16,
    policy: Policy = "paper",
    live: LiveOptions,
    pixels: PixelOptions,
    model: ModelOptions,
) -> None:
    """Track objects through a video, from points, boxes or masks in any frame, or from words.

    A prompt names its frame, counted from 0, and may name its object: 0:210,350 or cup@0:210,350.

    Words prompt what a detector finds in frame --start, or 0.

    With --live, frame 0 is the newest frame when tracking starts, and only this frame can be prompted.
    """
    live.check()
    tracking = {"max_objects": max_objects, "policy": policy, **pixels.keywords}
    if live.live and words.keywords:
        raise MaskletError("--text is for files: expected points or boxes with --live")
    request = Request(video, prompt.read(is_live=live.live), prompt.prompts, output, tracking, model, words.keywords)
    if live.live:
        if prompt.prompts is not None:
            raise PromptError("--prompts is for files: expected --point, --box or --mask with --live")
        if part != PartOptions():
            raise MaskletError("--start, --end, --every and --reverse are for files: expected none of them with --live")
        track_source(request, live)
    else:
        track_file(request, part)


def track_file(request: Request, part: PartOptions) -> None:
    """Track the objects of a file or folder."""
    from masklet.video.address import is_live_address, without_secrets

    video, output = Path(request.video), request.output
    if is_live_address(request.video):
        raise MaskletError(f"{without_secrets(request.video)} is a camera or a stream: add --live to track it live")
    prompts = by_object(request.prompts)
    if request.prompt_file is not None:
        prompts |= prompts_in_file(request.prompt_file, video.name)
    if not prompts and not request.words:
        raise PromptError("nothing to track: give --point, --box, --mask, --prompts or --text (masklet video --help)")
    check_video_places(video, output.out, output.masks, output.json)
    session = request.model.load().video(video, **request.tracking)
    for (object_id, frame), prompt in prompts.items():
        session.prompt(frame, object_id, **prompt)
    if request.words and not len(session.prompt(part.start or 0, **request.words)) and not prompts:
        found = ", ".join(request.words["text"])
        raise PromptError(
            f"nothing to track: no {found} was found in frame {part.start or 0}: give --start, or other words"
        )
    direction: Direction = "backward" if part.reverse else "forward"
    plan = session.plan(part.start, part.end, direction, every=part.every)
    total = sum(map(len, plan)) if session.video.count else None
    tracked = session.track(part.start, part.end, direction, every=part.every)
    results = final_results(session, tracked, total, with_images=output.out is not None)
    # A video is written in its own order, so after tracking if that goes backward.
    now, later = (None, output.out) if part.reverse and not session.decides_late else (output.out, None)
    write_results(session, results, total, now, output.masks, output.json, every=part.every)
    if later is not None:
        session.write(later)


def final_results(
    session: VideoSession, results: Iterable[FrameResult], total: int | None, *, with_images: bool
) -> Iterable[FrameResult]:
    """The same results; if the memory policy decides late, those of the end, after all frames were tracked."""
    if not session.decides_late:
        return results
    for _ in show_progress(results, total, unit="frames"):
        pass
    return session.results(with_images=with_images)


def track_source(request: Request, live: LiveOptions) -> None:
    """Track the objects of a camera or a stream, until it ends or is ended."""
    from masklet.video.address import without_secrets
    from masklet.video.outputs import open_writers

    out, masks, json = request.output.out, request.output.masks, request.output.json
    if not request.prompts and live.snapshot is None:
        raise PromptError(
            "nothing to track: give --point, --box or --mask in pixels of the first frame. To look them up, write it "
            f"with masklet video {without_secrets(request.video)} --live --snapshot frame.png"
        )
    prompts: dict[Hashable, dict[str, Any]] = {
        object_id: prompt for (object_id, _), prompt in by_object(request.prompts).items()
    }
    source = [Path(request.video)] if os.path.isfile(request.video) else []
    check_places([("--snapshot", live.snapshot)], inputs=source)
    check_video_places(Path(request.video), out, masks, json, live=True)
    check_parts(out, json)
    with open_live(request.video, live) as camera:
        if live.snapshot is not None:
            save_snapshot(camera, live.snapshot)
        if not prompts:
            return
        stream = request.model.load().stream(**request.tracking)
        lines = None if json == STANDARD else json
        with (
            ended_by_signals(camera.stop, live.duration),
            open_writers(out, masks, lines, fps=camera.fps, size_hw=camera.size_hw, live=True) as writers,
        ):
            before = camera.received - 1  # the newest one is the first to be tracked
            results = track_live(camera, stream, prompts, live)
            scores = write_each(writers, results, live.frames, prints=json == STANDARD)
        show_received(camera, camera.received - before, stream.count)
    if not stream.count:
        if live.duration is None:
            raise typer.Abort  # Ctrl-C
        raise MaskletError(f"no frame came within --duration {live.duration:g}: expected more seconds")
    if json != STANDARD:
        show_scores(scores, title=camera.name)


def check_video_places(
    video: Path, out: Path | None, masks: Path | None, json: Path | None, *, live: bool = False
) -> None:
    """Check, before starting, that the outputs can be written and replace nothing that is read."""
    if masks is not None and masks.resolve() == video.resolve():
        raise MaskletError(f"--masks {masks} is the video itself: expected another folder, or it would be lost")
    for option, path in (("--out", out), ("--masks", masks)):
        if path == STANDARD:
            raise MaskletError(f"{option} -: expected a name, since only JSON goes to the standard output")
    if out is not None:
        from masklet.video.writer import check_suffix

        check_suffix(out, live=live)
    first = None if masks is None else masks / "00000.png"
    check_places([("--out", out), ("--json", json), ("--masks", first)], inputs=[video])


def write_results(
    session: VideoSession,
    results: Iterable[FrameResult],
    total: int | None,
    out: Path | None,
    masks: Path | None,
    json: Path | None,
    *,
    every: int = 1,
) -> None:
    """Write results as they come, then show in how many frames each object is visible."""
    from masklet.video.outputs import open_writers, refuse_to_overwrite

    video, prints = session.video, json == STANDARD
    lines = None if prints else json
    refuse_to_overwrite(video, out, masks, lines)
    with open_writers(out, masks, lines, fps=video.fps / every, size_hw=video.size_hw) as writers:
        found = write_each(writers, results, total, prints=prints)
    if not prints:
        show_scores({**dict.fromkeys(session.object_ids, ()), **found}, title=video.name)


def write_each(
    writers: Writers, results: Iterable[FrameResult], total: int | None, *, prints: bool
) -> dict[Any, list[float]]:
    """Write results as they come, also to the standard output if ``prints``.

    Returns:
        The predicted IoU of each object, in the frames where it is visible.
    """
    from masklet.video.outputs import json_line

    scores: dict[Any, list[float]] = {}
    for result in show_progress(results, total, unit="frames"):
        writers.write(result)
        if prints:
            write(STANDARD, f"{json_line(result)}\n".encode())
        for object_id, score, is_visible in zip(result.object_ids, result.iou_scores, result.visible, strict=True):
            scores.setdefault(object_id, []).extend([float(score)] * bool(is_visible))
    return scores


def show_scores(scores: Mapping[Any, Sequence[float]], *, title: str) -> None:
    """Show in how many frames each object is visible."""
    show_table(
        ("object", "visible frames", "mean IoU score"),
        [(object_id, len(found), f"{sum(found) / max(len(found), 1):.3f}") for object_id, found in scores.items()],
        title=title,
    )


def read_prompts(texts: Mapping[str, Sequence[str]], default: str, *, is_live: bool) -> Prompts:
    """Parse the values of --point, --box and --mask. Those of live video need no frame.

    Raises:
        PromptError: One of them cannot be read, or names a later frame of live video.
    """
    parse: dict[str, Callable[[str], Any]] = {
        "--point": lambda value: parse_numbers("--point", value, (2, 3)),
        "--box": lambda value: parse_numbers("--box", value, (4,)),
        "--mask": Path,
    }
    found: Prompts = {}
    for option, text in ((option, text) for option, values in texts.items() for text in values):
        place, colon, value = text.partition(":")
        object_id, at, frame = place.rpartition("@")
        if not (colon and frame.isdecimal()):
            if not is_live:
                raise PromptError(f"{option} {text!r}: expected {PLACE}…, as in 0:210,350 or cup@0:210,350")
            frame, (object_id, at, value) = "0", text.rpartition("@")
        if is_live and int(frame):
            raise PromptError(f"{option} {text!r}: expected frame 0, the only one of live video that can be prompted")
        found.setdefault((option, object_id if at else default, int(frame)), []).append(parse[option](value))
    return found


def prompts_in_file(address: str, name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The prompts of a video from a file, as ``by_object`` returns them."""
    from masklet.batch.prompt_files import read_prompt_file

    prompts = read_prompt_file(address).of(name)
    if not prompts:
        raise PromptError(f"{address} has no prompts for {name}: expected a row with this name, or without one")
    return {(str(prompt.object), prompt.frame): prompt.keywords() for prompt in prompts}


def by_object(prompts: Prompts) -> dict[tuple[str, int], dict[str, Any]]:
    """The arguments of ``VideoSession.prompt`` for each object and frame: all prompts there together."""
    from masklet.mask_prompts import read_mask_file  # slow: imports torch

    keywords = {}
    for object_id, frame in dict.fromkeys((object_id, frame) for _, object_id, frame in prompts):
        points, boxes, masks = (
            prompts.get((option, object_id, frame), []) for option in ("--point", "--box", "--mask")
        )
        if len(boxes) > 1 or len(masks) > 1:
            raise PromptError(f"object {object_id!r} has several boxes or masks in frame {frame}: expected one")
        keywords[object_id, frame] = {
            "points": points or None,
            "box": boxes[0] if boxes else None,
            "mask": read_mask_file(masks[0]) if masks else None,
        }
    return keywords
