"""Live video on the command line: a camera or a stream, tracked until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.atomic import check_no_part
from masklet.cli.outputs import STANDARD, check_image_suffix, naming, write_image
from masklet.errors import MaskletError

if TYPE_CHECKING:
    from masklet.video.frame_result import FrameResult
    from masklet.video.live import LiveVideo
    from masklet.video.stream import VideoStream

LIVE = "Live video"
"""A panel of the help."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Options of live video."""

    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Track a camera or a stream live. VIDEO is 0 for the first camera, or an address such as rtsp://… or "
            "http://…. Frames that come too fast are dropped. Ctrl-C ends tracking.",
            rich_help_panel=LIVE,
        ),
    ] = False
    snapshot: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="Write the first frame, to look up coordinates. Without prompts, nothing else is done.",
            rich_help_panel=LIVE,
        ),
    ] = None
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End after this time.", show_default="never", rich_help_panel=LIVE),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="End after N tracked frames.", show_default="never", rich_help_panel=LIVE
        ),
    ] = None
    reconnect: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Give up a source that sends no frame for this long; until then, reconnect. inf: never give up.",
            show_default="60",
            rich_help_panel=LIVE,
        ),
    ] = None
    input_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="FFmpeg option for the source, such as video_size=1280x720. Repeatable.",
            rich_help_panel=LIVE,
        ),
    ] = None

    def check(self) -> None:
        """Refuse options that have no effect, and invalid values."""
        others = {name.replace("_", "-"): value for name, value in vars(self).items() if name != "live"}
        if not self.live and (given := [name for name, value in others.items() if value is not None]):
            raise MaskletError(f"--{given[0]} is for live video: give --live as well")
        if self.duration is not None and not self.duration > 0:
            raise MaskletError(f"--duration {self.duration:g}: expected a positive number of seconds")
        if self.snapshot is not None:
            check_image_suffix("--snapshot", self.snapshot)

    @property
    def input_options(self) -> dict[str, str]:
        """The values of --input-option."""
        pairs = [text.partition("=") for text in self.input_option or []]
        if wrong := next(("".join(pair) for pair in pairs if not (pair[0] and pair[1])), None):
            raise MaskletError(f"--input-option {wrong}: expected NAME=VALUE, as in video_size=1280x720")
        return {name: value for name, _, value in pairs}


def check_parts(*paths: Path | None) -> None:
    """Refuse to replace what an earlier run recorded before it was killed."""
    for path in paths:
        if path is not None and path != STANDARD:
            with naming(path):
                check_no_part(path)


def open_live(address: str, options: LiveOptions) -> LiveVideo:
    """Connect to a camera or a stream."""
    from masklet.video.live import LiveVideo

    reconnect = 60.0 if options.reconnect is None else options.reconnect
    return LiveVideo(address, reconnect=reconnect, options=options.input_options)


def save_snapshot(camera: LiveVideo, path: Path) -> None:
    """Write a frame as an image."""
    from PIL import Image

    for frame in camera:
        write_image(path, Image.fromarray(frame.image))
        height, width = camera.size_hw
        print(f"masklet: {path}: {width}×{height} pixels of {camera.name}", file=sys.stderr)
        return


def track_live(
    camera: LiveVideo, stream: VideoStream, prompts: Mapping[Hashable, Mapping[str, Any]], options: LiveOptions
) -> Iterator[FrameResult]:
    """Track the objects that are prompted in the first frame. Times count from this frame."""
    start = 0.0
    for frame in camera:
        if stream.count == 0:
            start = frame.time
        yield stream.push(frame.image, prompts if stream.count == 0 else None, time=frame.time - start)
        if stream.count == options.frames:
            return


@contextmanager
def ended_by_signals(stop: Callable[[], None], duration: float | None) -> Iterator[None]:
    """Ctrl-C, a request to terminate and ``duration`` call ``stop``. A second Ctrl-C ends the program at once."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    timer = None if duration is None else threading.Timer(duration, stop)
    is_main = threading.current_thread() is threading.main_thread()
    # A shell lets its background jobs ignore Ctrl-C.
    handled = [one for one in (signal.SIGINT, signal.SIGTERM) if is_main and signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def show_received(camera: LiveVideo, received: int, tracked: int) -> None:
    """Print how many of the received frames were tracked."""
    again = f", connected again {camera.reconnects} times" if camera.reconnects else ""
    print(f"masklet: {tracked} of {received} frames tracked, the others dropped{again}", file=sys.stderr)
