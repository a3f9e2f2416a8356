"""masklet video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from masklet.cli.image import parse_numbers
from masklet.cli.options import Device, Dtype, EngineName, Model, Resolution
from masklet.cli.outputs import check_places
from masklet.cli.tables import show_progress, show_table
from masklet.errors import MaskletError, PromptError

if TYPE_CHECKING:
    from masklet.video.frame_result import FrameResult
    from masklet.video.plan import Direction
    from masklet.video.session import VideoSession

PLACE = "[OBJECT@]FRAME:"
Prompts: TypeAlias = dict[tuple[str, str, int], list[Any]]
"""Values by option, object and frame."""


def track(
    video: Annotated[Path, typer.Argument(help="Video file, or folder of images in name order.")],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"{PLACE}X,Y[,LABEL]", help="Point on the object, in pixels; label 0 is beside it. Repeatable."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}X0,Y0,X1,Y1", help="Box around the object, in pixels. Repeatable."),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar=f"{PLACE}PNG", help="Mask of the object, of the video's size. Repeatable."),
    ] = None,
    object: Annotated[str, typer.Option(metavar="NAME", help="Object of prompts without a name.")] = "1",
    start: Annotated[int | None, typer.Option(help="First frame. Default: the first prompted frame.")] = None,
    end: Annotated[int | None, typer.Option(help="Last frame, included.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Track every n-th frame and skip the others.")] = 1,
    reverse: Annotated[bool, typer.Option("--reverse", help="Track backward.")] = False,
    max_objects: Annotated[
        int,
        typer.Option(min=1, help="Objects tracked in one batch. Fewer need less memory; any number can be tracked."),
    ] = 16,
    model: Model = "nano",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "auto",
    resolution: Resolution = None,
    out: Annotated[
        Path | None, typer.Option(metavar="MP4", help="Write the video with the masks painted over it.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a palette PNG for each frame.")] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="JSONL", help="Write a line of JSON for each frame.")] = None,
) -> None:
    """Track objects through a video, from points, boxes or masks in any frame.

    A prompt names its frame, counted from 0, and may name its object: 0:210,350 or cup@0:210,350.
    """
    prompts = {
        **_read_prompts("--point", point, object, lambda text: parse_numbers("--point", text, (2, 3))),
        **_read_prompts("--box", box, object, lambda text: parse_numbers("--box", text, (4,))),
        **_read_prompts("--mask", mask, object, Path),
    }
    if not prompts:
        raise PromptError("nothing to track: give --point, --box or --mask (masklet video --help)")
    check_video_places(video, out, masks, jsonl, jsonl_option="--jsonl")
    import masklet

    sam = masklet.load(model, device, dtype, engine=engine)
    session = sam.video(video, resolution=resolution, max_objects=max_objects)
    prompt_all(session, prompts)
    direction: Direction = "backward" if reverse else "forward"
    total = sum(map(len, session.plan(start, end, direction, every=every))) if session.video.count else None
    write_results(session, session.track(start, end, direction, every=every), total, out, masks, jsonl, every=every)


def check_video_places(
    video: Path, out: Path | None, masks: Path | None, jsonl: Path | None, *, jsonl_option: str = "--json"
) -> None:
    """Check, before starting, that the outputs can be written and replace nothing that is read."""
    if masks is not None and masks.resolve() == video.resolve():
        raise MaskletError(f"--masks {masks} is the video itself: expected another folder, or it would be lost")
    first = None if masks is None else masks / "00000.png"
    check_places([("--out", out), (jsonl_option, jsonl), ("--masks", first)], inputs=[video])


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
    """Write results as they come, then show in how many frames each object is visible."""
    from masklet.video.outputs import open_writers, refuse_to_overwrite

    video = session.video
    refuse_to_overwrite(video, out, masks, jsonl)
    scores: dict[Any, list[float]] = {object_id: [] for object_id in session.object_ids}
    with open_writers(out, masks, jsonl, fps=video.fps / every, size_hw=video.size_hw) as writers:
        for result in show_progress(results, total, unit="frames"):
            writers.write(result)
            for object_id, score, is_visible in zip(result.object_ids, result.iou_scores, result.visible, strict=True):
                of_object = scores.setdefault(object_id, [])
                if is_visible:
                    of_object.append(float(score))
    show_table(
        ("object", "visible frames", "mean IoU score"),
        [(object_id, len(found), f"{sum(found) / max(len(found), 1):.3f}") for object_id, found in scores.items()],
        title=video.name,
    )


def _read_prompts(option: str, texts: list[str] | None, default: str, parse: Callable[[str], Any]) -> Prompts:
    """The values of one option."""
    found: Prompts = {}
    for text in texts or []:
        place, colon, value = text.partition(":")
        object_id, at, frame = place.rpartition("@")
        if not colon or not frame.isdigit():
            raise PromptError(f"{option} {text!r}: expected {PLACE}…, as in 0:210,350 or cup@0:210,350")
        found.setdefault((option, object_id if at else default, int(frame)), []).append(parse(value))
    return found


def prompt_all(session: VideoSession, prompts: Prompts) -> None:
    """Prompt the session, with all prompts for one object in one frame together."""
    from masklet.cli.image import read_mask

    for object_id, frame in dict.fromkeys((object_id, frame) for _, object_id, frame in prompts):
        points, boxes, masks = (
            prompts.get((option, object_id, frame), []) for option in ("--point", "--box", "--mask")
        )
        if len(boxes) > 1 or len(masks) > 1:
            raise PromptError(f"object {object_id!r} has several boxes or masks in frame {frame}: expected one")
        session.prompt(
            frame,
            object_id,
            points=points or None,
            box=boxes[0] if boxes else None,
            mask=read_mask(masks[0]) if masks else None,
        )
