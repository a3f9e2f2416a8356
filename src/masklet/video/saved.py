"""A session as a file: all that is needed to continue it, here or on another device, with the same masks.

A zip archive, uncompressed, that is written and read one mask at a time:

- ``session.json``: format, model, video, policy, resolution, ids of the objects;
- ``tensors.safetensors``: clicks, times, and which frames were tracked in which direction;
- ``results/0``, ``results/1`` …: the packed results of each object, one frame after the other.

Memory maps are not saved: they follow from the video and the rest.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import safetensors.torch
import torch
from torch import Tensor

from masklet.atomic import replacing
from masklet.config import SizeHW
from masklet.errors import MaskletError, SessionError
from masklet.model.fingerprint import fingerprint
from masklet.model.sam2 import Sam2Model
from masklet.version import __version__
from masklet.video.frame_column import FrameColumn
from masklet.video.frames import Video, VideoSource, open_video, width_by_height
from masklet.video.object_frame import ResultSpool
from masklet.video.policy import PaperPolicy
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Track, Tracks

FORMAT = "masklet-session-"
VERSION = "2"


def save_session(
    path: str | os.PathLike[str], tracks: Tracks, video: Video, times: FrameColumn[float], remaining: list[range]
) -> None:
    """Write the file, whole or not at all.

    Args:
        path: Of the file.
        tracks: The objects, of a video that can go back.
        video: The video they are tracked through. It is not saved.
        times: Seconds from the beginning of the video, of every tracked frame.
        remaining: Frames that are still to be tracked.

    Raises:
        SessionError: The file cannot be written; an object's id or the policy cannot be saved. An older file is left as
            it was.
    """
    policy = check_can_save(tracks)
    seconds = torch.tensor(list(times.values()), dtype=torch.float64)
    tensors = {"times.frames": torch.tensor(list(times)), "times.seconds": seconds}
    for place, track in enumerate(tracks.objects.values()):
        tensors |= {f"{place}.{key}": value.cpu().contiguous() for key, value in track_tensors(track).items()}
    try:
        header = {
            "format": FORMAT + VERSION,
            "masklet": __version__,
            "model": model_identity(tracks.engine.model),
            "video": video_identity(video),
            "input_hw": tracks.input_hw,
            "policy": asdict(policy),
            "max_objects": tracks.max_objects,
            "object_ids": [int(one) if isinstance(one, Integral) else one for one in tracks.objects],
            "remaining": [[frames.start, frames.stop, frames.step] for frames in remaining],
        }
        with replacing(path) as unfinished, ZipFile(unfinished, "w") as archive:
            archive.writestr("session.json", json.dumps(header, indent=1))
            archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))
            for place, track in enumerate(tracks.objects.values()):
                with archive.open(f"results/{place}", "w", force_zip64=True) as file:
                    for frame in track.bank.frames:
                        file.write(result_spool(track).read(frame))
    except OSError as error:
        raise SessionError(f"cannot save the session to {path}: {error}") from error


def check_can_save(tracks: Tracks) -> PaperPolicy:
    """Refuse objects and policies that cannot be saved; returns the policy."""
    if not isinstance(policy := tracks.policy, PaperPolicy):
        raise SessionError(f"a session whose memory policy is {policy!r} cannot be saved: expected a PaperPolicy")
    for object_id in tracks.objects:
        if not isinstance(object_id, str | Integral):
            raise SessionError(f"object {object_id!r} cannot be saved: expected ids that are text or whole numbers")
    return policy


def track_tensors(track: Track) -> dict[str, Tensor]:
    """Everything of one object but its results."""
    frames, spool = track.bank.frames, result_spool(track)
    clicks = {
        f"clicks.{frame}.{name}": values
        for frame, prompt in track.clicks.items()
        for name, values in (("points", prompt.points), ("labels", prompt.labels))
        if values is not None
    }
    return {
        "frames": torch.tensor(frames),
        "is_prompted": torch.tensor([frame in track.bank.prompted for frame in frames]),
        "result_bytes": torch.tensor([spool.packed_bytes(frame) for frame in frames]),
        "number": torch.tensor(track.number),
        "tracked_steps": torch.tensor(list(track.tracked_steps.items()), dtype=torch.int64).view(-1, 2),
        **clicks,
    }


def result_spool(track: Track) -> ResultSpool:
    """Where the results of a video that can go back are."""
    assert track.bank.spool is not None
    return track.bank.spool


def model_identity(model: Sam2Model) -> str:
    """Differs between models whose masks differ, and is the same on every device."""
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
    """The archive to read from. Errors become a SessionError."""
    damaged = f"{path} is damaged or was cut off: expected a whole saved session. Copy it again, or use an older one"
    try:
        with ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise SessionError(f"there is no saved session at {path} (looked in {os.getcwd()})") from error
    except BadZipFile as error:
        raise SessionError(damaged if starts_as_archive(path) else not_a_session(path)) from error
    except (EOFError, KeyError, NotImplementedError, zlib.error) as error:  # the archive's table of contents is wrong
        raise SessionError(damaged) from error
    except OSError as error:
        if isinstance(error, MaskletError):
            raise
        raise SessionError(f"cannot read {path}: {error.strerror or error}") from error


def read_saved(path: str | os.PathLike[str]) -> SavedSession:
    """Open what ``save_session`` wrote.

    Raises:
        SessionError: The file is missing, damaged, of another version, or not a session.
    """
    with opened(path) as archive:
        if "session.json" not in archive.namelist():
            raise SessionError(not_a_session(path))
        header = json.loads(archive.read("session.json"))
    version = str(header.get("format", "")).removeprefix(FORMAT)
    if version != VERSION:
        raise SessionError(
            f"{path} was saved in version {version} of the format by masklet {header.get('masklet')}: masklet "
            f"{__version__} reads version {VERSION}. Continue with the masklet that saved it"
        )
    return SavedSession(Path(path), header)


def not_a_session(path: str | os.PathLike[str]) -> str:
    """The message for another kind of file."""
    return f"{path} is not a saved session: expected a file that VideoSession.save or track(autosave=…) wrote"


def starts_as_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file that is not a zip archive begins like one."""
    with Path(path).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


@dataclass(frozen=True)
class SavedSession:
    """The header of a saved session. Made by ``read_saved``."""

    path: Path
    header: dict[str, Any]

    @property
    def input_hw(self) -> SizeHW:
        """Of the network's input."""
        height, width = self.header["input_hw"]
        return height, width

    @property
    def policy(self) -> PaperPolicy:
        """The memory policy."""
        return PaperPolicy(**self.header["policy"])

    @property
    def max_objects(self) -> int:
        """The largest batch of objects."""
        return self.header["max_objects"]

    @property
    def remaining(self) -> list[range]:
        """Frames that are still to be tracked."""
        return [range(*frames) for frames in self.header["remaining"]]

    def check_model(self, model: Sam2Model) -> None:
        """Refuse a model that would give other masks."""
        if model_identity(model) != self.header["model"]:
            raise SessionError(
                f"{self.path} was saved with another model, or with this one in another dtype: load the model it was "
                f"saved with, in {self.header['model'].split()[0]}; its masks would not fit together with this one's"
            )

    def open_video(self, source: VideoSource | None) -> Video:
        """Open the video from ``source``, or from where it was, and check that it is the same."""
        video = open_video(self._saved_source() if source is None else source)
        saved, found = self.header["video"], video_identity(video)
        if found["checksum"] not in (None, saved["checksum"]) and saved["checksum"] is not None:
            raise SessionError(
                f"{video.name} is not the video that {self.path} was saved from, or has changed since: its checksum is "
                f"{found['checksum'][:12]}, expected {saved['checksum'][:12]}, of {saved['name']}"
            )
        # Images in memory have no checksum: whoever passes them has to know that they are the same.
        counts = {found["count"], saved["count"]} - {None}
        if found["size_hw"] != saved["size_hw"] or len(counts) > 1:
            raise SessionError(f"{video.name} has {extent(found)}, but {self.path} was saved from {extent(saved)}")
        return video

    def _saved_source(self) -> str:
        saved, call = self.header["video"], f"sam.resume({str(self.path)!r}, video=…)"
        if saved["path"] is None:
            raise SessionError(f"{self.path} was saved from {saved['name']}, not from a file: pass them, {call}")
        if not Path(saved["path"]).exists():
            raise SessionError(f"the video of {self.path} is no longer at {saved['path']}: pass its new place, {call}")
        return saved["path"]

    def restore(self, tracks: Tracks) -> FrameColumn[float]:
        """Add the saved objects to ``tracks``, which has none yet.

        Returns:
            ``times``, see ``save_session``.

        Raises:
            SessionError: The file is damaged.
        """
        with opened(self.path) as archive:
            tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
            for place, object_id in enumerate(self.header["object_ids"]):
                prefix = f"{place}."
                own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                with archive.open(f"results/{place}") as results:
                    tracks.add(object_id, restore_track(tracks, own, results))
        times: FrameColumn[float] = FrameColumn("d")
        times.update(zip(tensors["times.frames"].tolist(), tensors["times.seconds"].tolist(), strict=True))
        return times


def restore_track(tracks: Tracks, tensors: dict[str, Tensor], results: IO[bytes]) -> Track:
    """One object, from its ``track_tensors`` and packed results."""
    track = tracks.new_track(int(tensors["number"]))
    columns = [tensors[key].tolist() for key in ("frames", "is_prompted", "result_bytes")]
    for frame, is_prompted, size in zip(*columns, strict=True):
        result_spool(track).write(frame, results.read(size))
        if is_prompted:
            track.bank.prompted.add(frame)
    clicks: dict[int, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        if key.startswith("clicks."):
            _, frame, name = key.split(".")
            clicks.setdefault(int(frame), {})[name] = values.to(tracks.engine.device)
    track.clicks = {frame: FramePrompt(**prompt) for frame, prompt in clicks.items()}
    track.tracked_steps.update(tensors["tracked_steps"].tolist())
    return track


def extent(video: dict[str, Any]) -> str:
    """The size of a video, for messages."""
    count = "frames" if video["count"] is None else f"{video['count']} frames"
    return f"{count} of {width_by_height(tuple(video['size_hw']))}"
