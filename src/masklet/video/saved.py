"""A session as a file: all that is needed to continue it, here or on another device, with the same masks.

A zip archive, uncompressed, that is written and read one mask at a time:

- ``session.json``: format, model, video, how its images are read, policy, resolution, ids of the objects;
- ``tensors.safetensors``: clicks, times, and which frames were tracked in which direction;
- ``results/0``, ``results/1`` …: the packed results of each object, one frame after the other; ``results/0.1`` … are
  those of further hypotheses;
- ``history/0``, ``history/0.1`` …: if the memory policy keeps records, a line of JSON for each frame.

Memory maps are not saved: they follow from the video and the rest.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from masklet.atomic import replacing
from masklet.config import SizeHW
from masklet.errors import SessionError, SpoolError
from masklet.images.options import ImageOptions
from masklet.model.fingerprint import fingerprint
from masklet.model.sam2 import Sam2Model
from masklet.numbers import shown
from masklet.version import __version__
from masklet.video.frame_column import FrameColumn
from masklet.video.frames import Video, VideoSource, open_video, width_by_height
from masklet.video.history import read_record
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ResultSpool
from masklet.video.policies import policy_from_json, policy_to_json
from masklet.video.policy import MemoryPolicy
from masklet.video.saved_header import check_header, check_result_tensors, check_times, check_track_tensors
from masklet.video.track import Track
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Tracks

FORMAT = "masklet-session-"
VERSION = "2"


def save_session(
    path: str | os.PathLike[str], tracks: Tracks, video: Video, times: FrameColumn[float], remaining: list[range]
) -> None:
    """Write the file, whole or not at all.

    Args:
        path: Path of the file.
        tracks: The objects, of a video that can go back.
        video: The video they are tracked through. It is not saved.
        times: Seconds from the beginning of the video, of every tracked frame.
        remaining: Frames that are still to be tracked.

    Raises:
        SessionError: The file cannot be written; an object's id or the policy cannot be saved. An older file is left as
            it was.
    """
    check_can_save(tracks)
    seconds = torch.tensor(list(times.values()), dtype=torch.float64, device="cpu")
    tensors = {"times.frames": torch.tensor(list(times), dtype=torch.int64, device="cpu"), "times.seconds": seconds}
    for place, track in enumerate(tracks.objects.values()):
        tensors |= {f"{place}.{key}": value.cpu().contiguous() for key, value in track_tensors(track).items()}
        for name, bank in other_banks(track, place):
            tensors |= {f"{name}.{key}": value for key, value in result_tensors(bank).items()}
    try:
        header = {
            "format": FORMAT + VERSION,
            "masklet": __version__,
            "model": model_identity(tracks.engine.model),
            "video": video_identity(video),
            "image_options": video.image_options.to_json(),
            "input_hw": tracks.input_hw,
            "policy": policy_to_json(tracks.policy),
            "max_objects": tracks.max_objects,
            "object_ids": [int(one) if isinstance(one, Integral | float) else one for one in tracks.objects],
            **({"labels": labels} if any(labels := [track.label for track in tracks.objects.values()]) else {}),
            "remaining": [[frames.start, frames.stop, frames.step] for frames in remaining],
        }
        with replacing(path) as unfinished, ZipFile(unfinished, "w") as archive:
            archive.writestr("session.json", json.dumps(header, indent=1))
            archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))
            for place, track in enumerate(tracks.objects.values()):
                for name, bank in [(str(place), track.bank), *other_banks(track, place)]:
                    _write_bank(archive, name, bank)
    except OSError as error:
        raise SessionError(f"cannot save the session to {path}: {error}") from error


def _write_bank(archive: ZipFile, name: str, bank: ObjectMemory) -> None:
    with archive.open(f"results/{name}", "w", force_zip64=True) as file:
        for frame in bank.frames:
            file.write(result_spool(bank).read(frame))
    if bank.records:
        with archive.open(f"history/{name}", "w", force_zip64=True) as file:
            for frame, record in bank.records.items():
                file.write(json.dumps({"frame": frame, **asdict(record)}).encode() + b"\n")


def other_banks(track: Track, place: int) -> list[tuple[str, ObjectMemory]]:
    """The banks of the hypotheses after the first, and the names that they have in the file."""
    return [(f"{place}.{row}", bank) for row, bank in enumerate(track.other_banks, start=1)]


def check_can_save(tracks: Tracks) -> None:
    """Refuse objects that cannot be saved."""
    for object_id in tracks.objects:
        is_whole = isinstance(object_id, float) and object_id.is_integer()  # as tables hold ids
        if not is_whole and not isinstance(object_id, str | Integral):
            raise SessionError(f"object {object_id!r} cannot be saved: expected ids that are text or whole numbers")


def track_tensors(track: Track) -> dict[str, Tensor]:
    """Everything of one object but its results and its history."""
    clicks = {
        f"clicks.{frame}.{name}": values
        for frame, prompt in track.clicks.items()
        for name, values in (("points", prompt.points), ("labels", prompt.labels))
        if values is not None
    }
    return {
        **result_tensors(track.bank),
        "number": torch.tensor(track.number, device="cpu"),
        "tracked_steps": torch.tensor(list(track.tracked_steps.items()), dtype=torch.int64, device="cpu").view(-1, 2),
        **clicks,
    }


def result_tensors(bank: ObjectMemory) -> dict[str, Tensor]:
    """The frames of a bank, and the lengths of its packed results."""
    frames, spool = bank.frames, result_spool(bank)
    return {
        "frames": torch.tensor(frames, device="cpu"),
        "is_prompted": torch.tensor([frame in bank.prompted for frame in frames], device="cpu"),
        "result_bytes": torch.tensor([spool.packed_bytes(frame) for frame in frames], device="cpu"),
    }


def result_spool(bank: ObjectMemory) -> ResultSpool:
    """Where the results of a video that can go back are."""
    assert bank.spool is not None
    return bank.spool


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


# What zipfile, json and safetensors were observed to raise for damaged files.
_DAMAGE = (EOFError, LookupError, RuntimeError, ValueError, OverflowError, SafetensorError, struct.error, zlib.error)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[ZipFile]:
    """The archive to read from. Errors become a SessionError."""
    damaged = f"{path} is damaged or was cut off: expected a whole saved session. Copy it again, or use an older one"
    try:
        with ZipFile(path) as archive:
            # Nothing in it is larger than the file then.
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
                raise BadZipFile
            yield archive
    except FileNotFoundError as error:
        raise SessionError(f"there is no saved session at {path} (looked in {os.getcwd()})") from error
    except BadZipFile as error:
        raise SessionError(damaged if starts_as_archive(path) else not_a_session(path)) from error
    except SpoolError:
        raise
    except SessionError as error:
        raise SessionError(f"{damaged} ({error})") from error
    except _DAMAGE as error:
        raise SessionError(damaged) from error
    except OSError as error:
        raise SessionError(f"cannot read {path}: {error.strerror or error}") from error


def read_saved(path: str | os.PathLike[str]) -> SavedSession:
    """Open what ``save_session`` wrote.

    Raises:
        SessionError: The file is missing, damaged, of another version, or not a session.
    """
    with opened(path) as archive:
        names = archive.namelist()
        header = json.loads(archive.read("session.json")) if "session.json" in names else None
    form = header.get("format") if isinstance(header, dict) else None
    if not isinstance(header, dict) or not isinstance(form, str) or not form.startswith(FORMAT):
        raise SessionError(not_a_session(path))
    version = form.removeprefix(FORMAT)
    if version != VERSION:
        raise SessionError(
            f"{path} was saved in version {version[:20]} of the format by masklet {str(header.get('masklet'))[:20]}: "
            f"masklet {__version__} reads version {VERSION}. Continue with the masklet that saved it"
        )
    with opened(path):
        check_header(header)
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
        """Size of the network's input."""
        height, width = self.header["input_hw"]
        return height, width

    def policy(self, own: MemoryPolicy | None = None) -> MemoryPolicy:
        """The memory policy; one without a name has to be passed.

        Raises:
            SessionError: It is unknown, or another one than it was saved with.
        """
        try:
            return policy_from_json(self.header["policy"], own)
        except SessionError as error:
            raise SessionError(f"{self.path} cannot be resumed: {error}") from error

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
        if (
            not isinstance(slots := self.header["policy"].get("num_maskmem", 0), int)
            or slots > model.config.num_maskmem
            or model_identity(model) != self.header["model"]
        ):
            raise SessionError(
                f"{self.path} was saved with another model, or with this one in another dtype: load the model it was "
                f"saved with, in {self.header['model'].split()[0]}; its masks would not fit together with this one's"
            )

    def open_video(self, source: VideoSource | None) -> Video:
        """Open the video from ``source``, or from where it was, and check that it is the same."""
        options = ImageOptions.from_json(self.header.get("image_options", {}))
        video = open_video(self._saved_source() if source is None else source, options)
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
            check_times(tensors)
            labels = self.header.get("labels", [None] * len(self.header["object_ids"]))
            for place, object_id in enumerate(self.header["object_ids"]):
                track = tracks.new_track()
                track.label = labels[place]
                own = _named(tensors, str(place))
                check_track_tensors(own, tensors["times.frames"])
                restore_track(track, own, tracks.engine.device)
                for name, bank in [(str(place), track.bank), *other_banks(track, place)]:
                    self._restore_bank(archive, name, bank, _named(tensors, name))
                if tracks.policy.choose is not None and track.bank.records.keys() != set(track.bank.frames):
                    raise SessionError(f"history/{place} does not hold the frames of its object")
                tracks.add(object_id, track)
        times: FrameColumn[float] = FrameColumn("d")
        times.update(zip(tensors["times.frames"].tolist(), tensors["times.seconds"].tolist(), strict=True))
        return times

    def _restore_bank(self, archive: ZipFile, name: str, bank: ObjectMemory, tensors: dict[str, Tensor]) -> None:
        """Fill a new bank from its ``result_tensors``, packed results and records."""
        results_bytes = archive.getinfo(f"results/{name}").file_size
        check_result_tensors(tensors, results_bytes, result_spool(bank).least_bytes, self.header["video"]["count"])
        columns = [tensors[key].tolist() for key in ("frames", "is_prompted", "result_bytes")]
        with archive.open(f"results/{name}") as results:
            for frame, is_prompted, size in zip(*columns, strict=True):
                result_spool(bank).write(frame, results.read(size))
                if is_prompted:
                    bank.prompted.add(frame)
        if f"history/{name}" in archive.namelist():
            with archive.open(f"history/{name}") as lines:
                for line in lines:
                    values = json.loads(line)
                    frame = values.pop("frame", None) if isinstance(values, dict) else None
                    if type(frame) is not int or frame not in bank:
                        raise SessionError(f"history/{name} has frame {shown(frame)}: expected frames with a result")
                    bank.records[frame] = read_record(values)


def _named(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one object or bank."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def restore_track(track: Track, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Fill a new track from its ``track_tensors``, but for its results."""
    track.number = int(tensors["number"])
    clicks: dict[int, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        if key.startswith("clicks."):
            _, frame, name = key.split(".")
            clicks.setdefault(int(frame), {})[name] = values.to(device)
    track.clicks = {frame: FramePrompt(**prompt) for frame, prompt in clicks.items()}
    track.tracked_steps.update(tensors["tracked_steps"].tolist())


def extent(video: dict[str, Any]) -> str:
    """The size of a video, for messages."""
    count = "frames" if video["count"] is None else f"{video['count']} frames"
    return f"{count} of {width_by_height(tuple(video['size_hw']))}"
