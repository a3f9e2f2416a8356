"""masklet video."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.cli.image import parse_numbers
from masklet.cli.options import Device, Dtype, EngineName, Model, Resolution
from masklet.cli.outputs import check_places
from masklet.cli.tables import show_progress, show_table
from masklet.errors import MaskletError, PromptError

if TYPE_CHECKING:
    from masklet.video.session import Direction, VideoSession
    from masklet.video.tracks import FrameResult

PLACE = "[OBJECT@]FRAME:"


def track(
    video: Annotated[Path, typer.Argument(help="Video file, or folder of images in name order.")],
    point: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}X,Y[,LABEL]", help="Click, in pixels; label 0 is beside the object. Repeatable."),
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar=f"{PLACE}X0,Y0,X1,Y1", help="Box, in pixels. Repeatable.")
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}PNG", help="Mask of the video's size, taken as it is. Repeatable."),
    ] = None,
    object: Annotated[str, typer.Option(metavar="NAME", help="Object of the prompts that name none.")] = "1",
    start: Annotated[int | None, typer.Option(help="First frame; the first that was prompted if not given.")] = None,
    end: Annotated[int | None, typer.Option(help="Last frame, included.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Track one frame in so many, and leave out those between.")] = 1,
    reverse: Annotated[bool, typer.Option("--reverse", help="Track backward.")] = False,
    max_objects: Annotated[
        int,
        typer.Option(min=1, help="Objects tracked in one batch; fewer need less memory, and any number may be shown."),
    ] = 16,
    model: Model = "nano",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "auto",
    resolution: Resolution = None,
    out: Annotated[Path | None, typer.Option(metavar="MP4", help="Write the video with the masks on it.")] = None,
    masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a palette PNG for each frame.")] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="JSONL", help="Write a line of JSON for each frame.")] = None,
) -> None:
    """Follow objects through a video, from clicks, boxes or masks on any frame."""
    prompts = {
        **_by_place("--point", point, object, lambda text: parse_numbers("--point", text, (2, 3))),
        **_by_place("--box", box, object, lambda text: parse_numbers("--box", text, (4,))),
        **_by_place("--mask", mask, object, Path),
    }
    if not prompts:
        raise PromptError("nothing to track: give --point, --box or --mask (masklet video --help)")
    check_video_places(video, out, masks, jsonl)
    import masklet

    sam = masklet.load(model, device, dtype, engine=engine)
    session = sam.video(video, resolution=resolution, max_objects=max_objects)
    show_prompts(session, prompts)
    direction: Direction = "backward" if reverse else "forward"
    total = sum(map(len, session.plan(start, end, direction, every=every))) if session.video.count else None
    write_results(session, session.track(start, end, direction, every=every), total, out, masks, jsonl, every=every)


def check_video_places(video: Path, out: Path | None, masks: Path | None, jsonl: Path | None) -> None:
    """Refuse, before the work, what could not be written after it, or would take the place of something else."""
    if masks is not None and masks.resolve() == video.resolve():
        raise MaskletError(f"--masks {masks} is the video itself: expected another folder, or it would be lost")
    first = None if masks is None else masks / "00000.png"
    check_places([("--out", out), ("--json", jsonl), ("--masks", first)], inputs=[video])


def write_results(
    session: VideoSession,
    results: Iterable[FrameResult],
    total: int | None,
    out: Path | None,
    masks: Path | None,
    jsonl: Path | None,
    *,
    every: int = 1,
) -> None:
    """Write what was asked for as it comes, and show how often each object was seen."""
    from masklet.video.outputs import open_writers, refuse_to_overwrite

    video = session.video
    refuse_to_overwrite(video, out, masks, jsonl)
    scores: dict[Any, list[float]] = {name: [] for name in session.object_ids}
    with open_writers(out, masks, jsonl, fps=video.fps / every, size_hw=video.size_hw) as writers:
        for result in show_progress(results, total, unit="frames"):
            writers.write(result)
            for name, score, visible in zip(result.object_ids, result.iou_scores, result.visible, strict=True):
                of_object = scores.setdefault(name, [])
                if visible:
                    of_object.append(float(score))
    show_table(
        ("object", "frames seen", "mean score"),
        [(name, len(seen), f"{sum(seen) / max(len(seen), 1):.3f}") for name, seen in scores.items()],
        title=video.name,
    )


def _by_place(option: str, texts: list[str] | None, default: str, parse: Any) -> dict[tuple[str, str, int], list[Any]]:
    """Values of one option by (option, object, frame)."""
    found: dict[tuple[str, str, int], list[Any]] = {}
    for text in texts or []:
        place, colon, value = text.partition(":")
        name, at, frame = place.rpartition("@")
        if not colon or not frame.isdigit():
            raise PromptError(f"{option} {text!r}: expected {PLACE}…, as in 0:210,350 or cup@0:210,350")
        found.setdefault((option, name if at else default, int(frame)), []).append(parse(value))
    return found


def show_prompts(session: VideoSession, prompts: dict[tuple[str, str, int], list[Any]]) -> None:
    """Give the session its prompts, all those of one object in one frame together."""
    from masklet.cli.image import read_mask

    for name, frame in dict.fromkeys((name, frame) for _, name, frame in prompts):
        points, boxes, masks = (prompts.get((option, name, frame), []) for option in ("--point", "--box", "--mask"))
        if len(boxes) > 1 or len(masks) > 1:
            raise PromptError(f"object {name!r} has several boxes or masks in frame {frame}: expected one")
        session.prompt(
            frame,
            name,
            points=points or None,
            box=boxes[0] if boxes else None,
            mask=read_mask(masks[0]) if masks else None,
        )
