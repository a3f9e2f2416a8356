"""Addresses of live video: cameras of this machine, streams of a network, and files played as if they were live."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field

import av

SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
CAMERA = re.compile(r"\d+|/dev/video\d+|video=.+", re.DOTALL)
CAMERA_FORMATS = {"darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's name for cameras, by platform; others have Video4Linux."""


@dataclass(frozen=True)
class Address:
    """What PyAV opens. Made by ``read_address``."""

    url: str = field(repr=False)
    name: str
    """For messages, without passwords."""
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def is_live_address(text: str) -> bool:
    """Whether it names a camera or a network address: ``0``, ``/dev/video0``, ``rtsp://…``."""
    is_stored = os.path.isfile(text) or os.path.isdir(text)
    return not is_stored and bool(SCHEME.match(text) or CAMERA.fullmatch(text))


def read_address(text: str) -> Address:
    """Read an address, as ``LiveVideo`` takes it."""
    if os.path.isfile(text):
        return Address(os.path.abspath(text), text)  # an absolute path is never taken for a URL
    if CAMERA.fullmatch(text):
        format = CAMERA_FORMATS.get(sys.platform, "v4l2")
        return Address(_camera_name(text, format), f"camera {text}", format)
    # Over UDP, which FFmpeg tries first, packets get lost and leave damaged frames.
    options = {"rtsp_flags": "prefer_tcp"} if text.lower().startswith("rtsp") else {}
    return Address(text, without_secrets(text), options=options)


def without_secrets(url: str) -> str:
    """The URL without user, password and query, which may hold a token."""
    return re.sub(r"\?.*", "?***", re.sub(r"(?<=://).*@", "***@", url, flags=re.DOTALL), flags=re.DOTALL)


def _camera_name(text: str, format: str) -> str:
    """The camera's name for FFmpeg. A number counts the cameras of the machine, from 0."""
    if not text.isdigit() or format == "avfoundation":
        return text
    if format == "v4l2":
        return f"/dev/video{int(text)}"
    cameras = [device.name for device in av.enumerate_input_devices(format) if "video" in device.media_types]
    return f"video={cameras[int(text)]}" if int(text) < len(cameras) else f"video={text}"
