"""Images and videos as files: uploads, and the folder that is annotated in place."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from masklet.config import SizeHW
from masklet.errors import ImageError, MaskletError
from masklet.images.folder import IMAGE_SUFFIXES
from masklet.images.reading import read_image
from masklet.serve.problems import Problem
from masklet.serve.settings import Limits, Settings
from masklet.serve.state.tables import Media
from masklet.video.frames import open_video

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".gif",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ts",
    ".webm",
    ".wmv",
)
LISTED = 5000
"""Files of the folder that are listed at most."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    kind: str
    size_hw: SizeHW
    frames: int = 1
    fps: float = 0.0


def inspect(path: Path, limits: Limits) -> Content:
    """What a file holds, by its content. The file is read with the limits of the server.

    Raises:
        Problem: It is neither an image nor a video, is damaged, or is beyond a limit.
    """
    content = inspect_image(path, limits)
    if content is None:
        content = inspect_video(path, limits)
    return content


def inspect_image(path: Path, limits: Limits) -> Content | None:
    """An image, or None for a file that is something else. Its size is checked before pixels are decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                frames = getattr(image, "n_frames", 1)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise Problem(413, f"the image has too many pixels: expected at most {limits.pixels:,}") from error
        return None
    check_pixels((height, width), limits)
    if frames > 1:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = read_image(path)
    except ImageError as error:
        raise Problem(422, f"the image cannot be read: {error}") from error
    return Content("image", (pixels.shape[0], pixels.shape[1]))


def inspect_video(path: Path, limits: Limits) -> Content:
    """A video."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            video = open_video(path)
    except MaskletError as error:
        raise Problem(422, "the file is neither an image nor a video that can be read, or it is damaged") from error
    check_pixels(video.size_hw, limits)
    count, fps = video.count or 0, Fraction(video.fps)
    if count > limits.frames or count / fps > limits.duration:
        raise Problem(
            413,
            f"the video has {count:,} frames in {float(count / fps):,.1f} s: expected at most {limits.frames:,} "
            f"frames and {limits.duration:,g} s",
        )
    return Content("video", video.size_hw, count, float(fps))


def check_pixels(size_hw: SizeHW, limits: Limits) -> None:
    """Refuses large images."""
    height, width = size_hw
    if height * width > limits.pixels:
        raise Problem(413, f"{width}×{height} pixels are too many: expected at most {limits.pixels:,}")


def file_of(settings: Settings, media: Media) -> Path:
    """The file of an image or a video.

    Raises:
        Problem: It is gone.
    """
    path = inside(settings.folder, media.path) if media.in_folder else settings.data / "uploads" / media.path
    if path is None or not path.is_file():
        raise Problem(404, f"the file of {media.name} is no longer there")
    return path


def inside(folder: Path | None, relative: str) -> Path | None:
    """The file of a folder with this relative path; None if it is not there, hidden or outside."""
    parts = PurePosixPath(relative.replace("\\", "/")).parts
    if folder is None or not parts or "\0" in relative or any(part.startswith((".", "/")) for part in parts):
        return None
    root, path = folder.resolve(), folder.joinpath(*parts)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return resolved if resolved.is_relative_to(root) and resolved.is_file() else None


def files_in(folder: Path) -> Iterator[str]:
    """Relative paths of the images and videos of a folder, in order; not hidden ones, nor links that lead outside."""
    count = 0
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            relative = (Path(root) / name).relative_to(folder).as_posix()
            if Path(name).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and inside(folder, relative):
                yield relative
                count += 1
                if count == LISTED:
                    return


def display_name(name: str | None) -> str:
    """A file's name as users see it: without folders and control characters."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    printable = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] != "C")
    return printable.strip()[:200] or "untitled"
