"""Converts decoded frames to upright RGB pixels that match the same content in an image file."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, ColorTrc

from masklet.errors import VideoError
from masklet.images.values import over_white
from masklet.video.deinterlacing import deinterlace, fields_of
from masklet.video.filters import filtered
from masklet.video.tone_mapping import tone_mapped

LIMITED = 1
"""FFmpeg's number for values from 16 to 235."""
UNSPECIFIED, YCGCO = 2, 8
"""FFmpeg's numbers for a colour matrix that the video does not name, and for YCgCo."""
MATRICES = (0, 1, UNSPECIFIED, 4, 5, 6, 7, 9)
"""FFmpeg's numbers for the matrices that swscale converts; 0 is RGB."""
SIDE_DATA_NUMBERS = 64
"""More than the kinds of side data that FFmpeg has."""


def upright_pixels(frame: VideoFrame) -> np.ndarray:
    """The frame as a viewer displays it.

    Transparency is composited on white, PQ and HLG are tone-mapped to standard range, and the fields of an interlaced
    frame are joined without combs. Rotation and mirroring are applied as the video's metadata state.

    Returns:
        (height, width, 3) uint8.

    Raises:
        VideoError: This PyAV cannot convert the frame's pixel format.
    """
    matrix = display_matrix(frame)
    if frame.interlaced_frame and frame.height > 1:
        pixels = deinterlace(*(rgb8(field) for field in fields_of(frame)))
    else:
        pixels = rgb8(frame)
    if matrix is None:
        return pixels
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y), plus an offset.
    a, b, _, c, d = matrix[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def rgb8(frame: VideoFrame) -> np.ndarray:
    """(height, width, 3) uint8, as stored: neither rotated nor deinterlaced."""
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        return tone_mapped(converted(frame, "rgb48le"), ColorTrc(frame.color_trc), frame.color_primaries)
    if frame.colorspace == YCGCO and not frame.format.is_rgb:
        return from_ycgco(frame)
    if not (frame.format.has_palette or any(component.is_alpha for component in frame.format.components)):
        return full_range(converted(frame, "rgb24"), frame)
    rgba = full_range(converted(frame, "rgba"), frame)
    # Some recorders fill the fourth byte of each pixel with zeros although it is not meant as alpha.
    return over_white(rgba) if rgba[..., 3].any() else np.ascontiguousarray(rgba[..., :3])


def converted(frame: VideoFrame, pix_fmt: str) -> np.ndarray:
    """The frame in another pixel format, with the frame's range and colour matrix, or the usual one."""
    if frame.format.name.startswith("yaf"):  # FFmpeg ends the process
        raise cannot_convert(frame)
    try:
        # A copy, since PyAV returns the memory of FFmpeg's frame, which comes from a pool. In one thread, so that a
        # frame is complete when it is copied.
        return np.array(frame.to_ndarray(format=pix_fmt, src_colorspace=colour_matrix(frame), threads=1))
    except (av.FFmpegError, ValueError) as error:
        raise cannot_convert(frame) from error


def cannot_convert(frame: VideoFrame) -> VideoError:
    """The error for pixels that swscale does not know."""
    return VideoError(
        f"frames of the pixel format {frame.format.name} cannot be converted by this PyAV: convert the video to "
        "yuv420p, for example with ffmpeg -i video -pix_fmt yuv420p -crf 12 new.mp4"
    )


def colour_matrix(frame: VideoFrame) -> int | None:
    """The matrix to convert a frame with, if it is not the one that the frame names.

    Videos that name none, or one that swscale lacks, are treated as players treat them: BT.709 above standard
    definition.
    """
    if frame.format.is_rgb or frame.colorspace in MATRICES and frame.colorspace != UNSPECIFIED:
        return None
    if frame.colorspace == 10:  # BT.2020 with constant luminance, close to the other BT.2020
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601


def full_range(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Greyscale of limited range, which swscale takes for full range, from 0 to 255. Other pixels stay as they are."""
    is_grey = sum(not component.is_alpha for component in frame.format.components) == 1
    if not is_grey or frame.format.has_palette or frame.color_range != LIMITED or frame.format.bits_per_pixel == 1:
        return pixels
    values = np.arange(256)
    pixels[..., :3] = np.rint(((values - 16) * 255 / 219).clip(0, 255)).astype(np.uint8)[pixels[..., :3]]
    return pixels


def from_ycgco(frame: VideoFrame) -> np.ndarray:
    """(height, width, 3) uint8 of a frame in YCgCo, which swscale cannot convert."""
    try:
        same = {"src_colorspace": Colorspace.ITU601, "dst_colorspace": Colorspace.ITU601}
        planes = frame.reformat(format="yuv444p", **same).to_ndarray()
    except (av.FFmpegError, ValueError) as error:
        raise cannot_convert(frame) from error
    y, green, orange = planes.astype(np.float32)
    if frame.color_range == LIMITED:
        y, green, orange = (y - 16) * (255 / 219), (green - 128) * (255 / 224), (orange - 128) * (255 / 224)
    else:
        green, orange = green - 128, orange - 128
    rgb = np.stack([y - green + orange, y + green, y - green - orange], axis=-1)
    return np.rint(rgb.clip(0, 255)).astype(np.uint8)


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The nine numbers by which the frame is to be rotated and mirrored; None if it is upright."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 17 and 18 return no side data at all if one kind, such as EXIF, has no name there. FFmpeg removes those.
        named: set[Any] = {kind.value for kind in SideDataType}
        unnamed = [number for number in range(SIDE_DATA_NUMBERS) if number not in named]
        removed = filtered(frame, *(("sidedata", f"mode=delete:type={number}") for number in unnamed))
        matrix = removed.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)
