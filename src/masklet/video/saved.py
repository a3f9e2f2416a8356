"""A session as a file: all that is needed to go on, here or on another device, with the same masks.

A zip archive, not compressed again, that is written and read one mask at a time:

- ``session.json``: format, model, video, policy, resolution, names of the objects;
- ``tensors.safetensors``: prompts, scores, pointers, and which frames were passed which way;
- ``masks/0``, ``masks/1`` …: the packed logits of each object, one frame after the other.

Memory maps are not in it: they follow from the video and the rest.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from time import monotonic
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import safetensors.torch
import torch
from torch import Tensor

from masklet.atomic import replacing
from masklet.config import STRIDES, SizeHW
from masklet.errors import MaskletError, SessionError
from masklet.model.fingerprint import fingerprint
from masklet.model.sam2 import Sam2Model
from masklet.version import __version__
from masklet.video.frames import Video, VideoSource, open_video, width_by_height
from masklet.video.memory import ObjectMemory, PackedAs, PaperPolicy
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import FrameResult, Track, Tracks

FORMAT = "masklet-session-"
VERSION = "1"
PROMPT_PARTS = ("points", "labels", "mask")


def save_session(
    path: str | os.PathLike[str], tracks: Tracks, video: Video, times: dict[int, float], ahead: list[range]
) -> None:
    """Write the file, whole or not at all.

    Args:
        path: Where to.
        tracks: The objects, of a video that can be gone back to.
        video: What they are followed through; it stays where it is.
        times: Seconds from the video's beginning, of every frame that was tracked.
        ahead: Frames that tracking has yet to go through.

    Raises:
        SessionError: It cannot be written, or an object's name or the policy cannot; an older file there is as it was.
    """
    spool = tracks.spool
    assert spool is not None
    if not isinstance(policy := tracks.policy, PaperPolicy):
        raise SessionError(f"a session whose memory policy is {policy!r} cannot be saved: expected a PaperPolicy")
    check_names(tracks)
    seconds = torch.tensor(list(times.values()), dtype=torch.float64)
    tensors = {"times.frames": torch.tensor(list(times)), "times.seconds": seconds}
    for number, track in enumerate(tracks.objects.values()):
        tensors |= {f"{number}.{key}": value.cpu().contiguous() for key, value in object_tensors(track).items()}
    try:
        header = {
            "format": FORMAT + VERSION,
            "masklet": __version__,
            "model": model_identity(tracks.engine.model),
            "video": video_identity(video),
            "input_hw": tracks.input_hw,
            "policy": asdict(policy),
            "max_objects": tracks.max_objects,
            "objects": [int(name) if isinstance(name, Integral) else name for name in tracks.objects],
            "ahead": [[stretch.start, stretch.stop, stretch.step] for stretch in ahead],
        }
        with replacing(path) as unfinished, ZipFile(unfinished, "w") as archive:
            archive.writestr("session.json", json.dumps(header, indent=1))
            archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))
            for number, track in enumerate(tracks.objects.values()):
                with archive.open(f"results/{number}", "w", force_zip64=True) as results:
                    for frame in frames_of(track):
                        results.write(track.bank.packed(frame))
    except OSError as error:
        raise SessionError(f"cannot save the session to {path}: {error}") from error


def check_names(tracks: Tracks) -> None:
    """Refuse objects whose names no file can hold."""
    for name in tracks.objects:
        if not isinstance(name, str | Integral):
            raise SessionError(f"object {name!r} cannot be saved: expected names that are text or whole numbers")


def frames_of(track: Track) -> list[int]:
    """Frames that have a result, in the order in which they are saved."""
    return sorted(track.bank.prompted | track.bank.tracked)


def object_tensors(track: Track) -> dict[str, Tensor]:
    """All of one object but its results."""
    frames = frames_of(track)
    told = {
        f"prompts.{frame}.{part}": values
        for frame, prompt in track.prompts.items()
        for part in PROMPT_PARTS
        if (values := getattr(prompt, part)) is not None
    }
    return {
        "frames": torch.tensor(frames),
        "is_prompted": torch.tensor([frame in track.bank.prompted for frame in frames]),
        "result_bytes": torch.tensor([track.bank.packed_bytes(frame) for frame in frames]),
        "number": torch.tensor(track.number),
        "passed": torch.tensor(list(track.passed.items()), dtype=torch.int64).view(-1, 2),  # (frame, step)
        **told,
    }


def model_identity(model: Sam2Model) -> str:
    """Differs between models whose masks differ; the same on every device."""
    return f"{model.dtype} {fingerprint(model.config, model.state_dict().values())}"


def video_identity(video: Video) -> dict[str, Any]:
    """Where the video is, and what it is recognised by."""
    return {
        "name": video.name,
        "path": None if video.path is None else str(video.path.absolute()),
        "checksum": video.checksum(),
        "size_hw": list(video.size_hw),
        "count": video.count,
    }


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[ZipFile]:
    """The file to read from; what goes wrong with it is told as a SessionError."""
    damaged = f"{path} is damaged or was cut off: expected a whole saved session. Copy it again, or take an older one"
    try:
        with ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise SessionError(f"there is no saved session at {path} (looked in {os.getcwd()})") from error
    except BadZipFile as error:
        raise SessionError(damaged if starts_as_archive(path) else not_a_session(path)) from error
    except (EOFError, KeyError, NotImplementedError, zlib.error) as error:  # an archive whose table of contents lies
        raise SessionError(damaged) from error
    except OSError as error:
        if isinstance(error, MaskletError):
            raise
        raise SessionError(f"cannot read {path}: {error.strerror or error}") from error


def read_saved(path: str | os.PathLike[str]) -> SavedSession:
    """Open what ``save_session`` wrote.

    Raises:
        SessionError: It is not there, not such a file, of another version, or damaged.
    """
    with opened(path) as archive:
        if "session.json" not in archive.namelist():
            raise SessionError(not_a_session(path))
        header = json.loads(archive.read("session.json"))
    version = str(header.get("format", "")).removeprefix(FORMAT)
    if version != VERSION:
        raise SessionError(
            f"{path} was saved in version {version} of the format by masklet {header.get('masklet')}: masklet "
            f"{__version__} reads version {VERSION}. Go on with the masklet that saved it"
        )
    return SavedSession(Path(path), header)


def not_a_session(path: str | os.PathLike[str]) -> str:
    """What to say of another kind of file."""
    return f"{path} is not a saved session: expected a file that VideoSession.save or track(autosave=…) wrote"


def starts_as_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file that is no zip archive began as one."""
    with Path(path).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


@dataclass(frozen=True)
class SavedSession:
    """What the beginning of a session's file says. Made by ``read_saved``."""

    path: Path
    header: dict[str, Any]

    @property
    def input_hw(self) -> SizeHW:
        """Of the network's input."""
        height, width = self.header["input_hw"]
        return height, width

    @property
    def policy(self) -> PaperPolicy:
        """What frames read."""
        return PaperPolicy(**self.header["policy"])

    @property
    def max_objects(self) -> int:
        """Tracked in one batch."""
        return self.header["max_objects"]

    @property
    def ahead(self) -> list[range]:
        """Frames that tracking had yet to go through."""
        return [range(*stretch) for stretch in self.header["ahead"]]

    def check_model(self, model: Sam2Model) -> None:
        """Refuse a model that would track otherwise."""
        if model_identity(model) != self.header["model"]:
            raise SessionError(
                f"{self.path} was saved with another model, or with this one in another dtype: load the model it was "
                f"saved with, in {self.header['model'].split()[0]}; its masks would not fit together with this one's"
            )

    def open_video(self, source: VideoSource | None) -> Video:
        """The video, from ``source`` or from where it was."""
        saved = self.header["video"]
        if source is None:
            call = f"sam.resume({str(self.path)!r}, video=…)"
            if saved["path"] is None:
                raise SessionError(f"{self.path} was saved from {saved['name']}, not from a file: pass them, {call}")
            if not Path(saved["path"]).exists():
                raise SessionError(
                    f"the video of {self.path} was at {saved['path']} and is gone: say where it is, {call}"
                )
            source = saved["path"]
        video = open_video(source)
        found = video_identity(video)
        if found["checksum"] not in (None, saved["checksum"]) and saved["checksum"] is not None:
            raise SessionError(
                f"{video.name} is not the video that {self.path} was saved from, or has changed since: its checksum is "
                f"{found['checksum'][:12]}, expected {saved['checksum'][:12]}, of {saved['name']}"
            )
        # Images have no checksum: that they are the same is for whoever passes them to know.
        counts = {found["count"], saved["count"]} - {None}
        if found["size_hw"] != saved["size_hw"] or len(counts) > 1:
            raise SessionError(f"{video.name} has {extent(found)}, but {self.path} was saved from {extent(saved)}")
        return video

    def restore(self, tracks: Tracks) -> dict[int, float]:
        """Put the objects into ``tracks``, which has none yet; returns ``times``, see ``save_session``.

        Raises:
            SessionError: The file is damaged.
        """
        with opened(self.path) as archive:
            tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
            for number, name in enumerate(self.header["objects"]):
                prefix = f"{number}."
                own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                with archive.open(f"results/{number}") as results:
                    tracks.objects[name] = read_track(tracks, own, results)
        return dict(zip(tensors["times.frames"].tolist(), tensors["times.seconds"].tolist(), strict=True))


def read_track(tracks: Tracks, tensors: dict[str, Tensor], results: IO[bytes]) -> Track:
    """One object, from its ``object_tensors`` and packed results."""
    model, bank = tracks.engine, ObjectMemory(tracks.spool)
    size_hw = (tracks.input_hw[0] // STRIDES[0], tracks.input_hw[1] // STRIDES[0])
    like = PackedAs(size_hw, model.config.hidden_size, model.dtype, model.device)
    columns = [tensors[key].tolist() for key in ("frames", "is_prompted", "result_bytes")]
    for frame, is_prompted, size in zip(*columns, strict=True):
        bank.restore(frame, results.read(size), like, is_prompted=is_prompted)
    told: dict[int, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        if key.startswith("prompts."):
            _, frame, part = key.split(".")
            told.setdefault(int(frame), {})[part] = values.to(model.device)
    prompts = {frame: FramePrompt(**parts) for frame, parts in told.items()}
    return Track(int(tensors["number"]), bank, prompts, dict(tensors["passed"].tolist()))


def extent(video: dict[str, Any]) -> str:
    """A video's size, as people say it."""
    count = "frames" if video["count"] is None else f"{video['count']} frames"
    return f"{count} of {width_by_height(tuple(video['size_hw']))}"


def autosaving(results: Generator[FrameResult], save: Callable[[], None], seconds: float) -> Generator[FrameResult]:
    """The same results; ``save`` is called at most every so many seconds, and when they end, however that comes."""
    due = monotonic() + seconds
    try:
        with closing(results):
            for result in results:
                if (started := monotonic()) >= due:
                    save()
                    # A long video takes long to write: nine tenths of the time are for tracking.
                    due = monotonic() + max(seconds, 9 * (monotonic() - started))
                yield result
    except BaseException:
        with suppress(SessionError):  # what broke tracking off is what people have to know
            save()
        raise
    save()
