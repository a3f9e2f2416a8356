"""The prepared frames of a session: read when they are needed, or kept in a file after they arrived."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.video.frames import Video
from masklet.video.readers import Frame
from masklet.video.spool import FrameSpool, Spool

RECENT_FRAMES = 2
"""Frames of a stream that stay in memory: the last, and one that is prompted beside it."""
STREAM_BYTES = 4 * 2**30
"""Space on disk for the frames of a stream; beyond it the oldest are dropped."""


class VideoFrames(Mapping[int, Tensor]):
    """The frames of a video as (3, side, side) tensors, prepared each time that they are read.

    Args:
        source: A video, or its images.
        prepare: Makes a tensor of an image.
    """

    def __init__(self, source: Video | Sequence[Any] | np.ndarray | Tensor, prepare: Callable[[Any], Tensor]) -> None:
        self.source = source
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __contains__(self, frame: object) -> bool:
        return isinstance(frame, int) and 0 <= frame < len(self)

    def __getitem__(self, frame: int) -> Tensor:
        if frame not in self:
            raise KeyError(f"there is no frame {frame}: the video has the frames 0 to {len(self) - 1}")
        read = self.source[frame]
        return self._prepare(read.image if isinstance(read, Frame) else read)

    def read(self, frames: range) -> Iterator[tuple[int, Tensor]]:
        """Frames one after another, which for a video file is much faster than one by one."""
        if isinstance(self.source, Video):
            for frame in self.source.frames(frames.start, frames.stop, frames.step):
                yield frame.index, self._prepare(frame.image)
        else:
            for index in frames:
                yield index, self[index]


@dataclass(frozen=True)
class FramePacking:
    """Prepared frames as bytes, without loss: as 8-bit pixels where they are made of those, otherwise as they are."""

    palette: Tensor | None
    """(3, 256): the value of each 8-bit pixel, by channel; ascending."""
    dtype: torch.dtype
    device: torch.device

    def pack(self, value: Tensor) -> bytes:  # noqa: D102
        codes = None if self.palette is None else _codes(value, self.palette)
        stored = value.contiguous() if codes is None else codes
        header = np.array([codes is not None, *value.shape], np.int32).tobytes()
        return header + stored.cpu().flatten().view(torch.uint8).numpy().tobytes()

    def unpack(self, data: bytes) -> Tensor:  # noqa: D102
        is_coded, *shape = np.frombuffer(data, np.int32, 4).tolist()
        stored = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=16)
        if not is_coded:
            return stored.view(self.dtype).view(shape).to(self.device)
        assert self.palette is not None
        values = self.palette.to("cpu", self.dtype).gather(1, stored.view(shape[0], -1).long())
        return values.view(shape).to(self.device)


def _codes(value: Tensor, palette: Tensor) -> Tensor | None:
    """The 8-bit pixels of a frame, or None if it is not made of them."""
    palette = palette.to(value.device, value.dtype)
    if value.shape[0] != len(palette):
        return None
    flat = value.flatten(1)
    codes = torch.stack([torch.bucketize(channel, steps) for channel, steps in zip(flat, palette, strict=True)]).clamp_(
        max=palette.shape[1] - 1
    )
    return codes.to(torch.uint8) if torch.equal(palette.gather(1, codes), flat) else None


class ArrivedFrames(MutableMapping[int, Tensor]):
    """The frames of a stream: the last ones in memory, earlier ones in a temporary file, which is read when indexed.

    Args:
        palette: See ``FramePacking``.
        dtype: Dtype of the frames.
        device: Device of the frames.
    """

    def __init__(self, palette: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
        self._recent: OrderedDict[int, Tensor] = OrderedDict()
        self._earlier = FrameSpool(Spool(), FramePacking(palette, dtype, device))
        self._earlier_bytes = 0
        self._numbers: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __contains__(self, frame: object) -> bool:
        return frame in self._numbers

    def __getitem__(self, frame: int) -> Tensor:
        if frame in self._recent:
            return self._recent[frame]
        if frame in self._earlier:
            return self._earlier[frame]
        known = f"{len(self)} frames arrived so far" if frame not in self else "it arrived too long ago to be kept"
        raise KeyError(f"there is no frame {frame}: {known}")

    def __setitem__(self, frame: int, value: Tensor) -> None:
        self._forget(frame)
        self._numbers[frame] = None
        self._recent[frame] = value
        while len(self._recent) > RECENT_FRAMES:
            earlier, pixels = self._recent.popitem(last=False)
            self._earlier[earlier] = pixels
            self._earlier_bytes += self._earlier.packed_bytes(earlier)
        while self._earlier_bytes > STREAM_BYTES:
            self._forget(next(iter(self._earlier)))

    def __delitem__(self, frame: int) -> None:
        del self._numbers[frame]
        self._forget(frame)

    def _forget(self, frame: int) -> None:
        self._recent.pop(frame, None)
        if frame in self._earlier:
            self._earlier_bytes -= self._earlier.packed_bytes(frame)
            del self._earlier[frame]
