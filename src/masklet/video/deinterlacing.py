"""Joins the two fields of an interlaced frame, which show two moments, without combs where something moves.

Each frame is processed on its own, so it is the same in sequence and at random access. Filters such as yadif need the
frames before and after it.
"""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageFilter

from masklet.video.filters import filtered

COMB = 10
"""By how much, of 255, a row must be brighter or darker than the rows above and below it to be part of a comb."""
REACH_ROWS, REACH_COLUMNS = 2, 8
"""How far, in rows of a field and in columns, a comb is removed around what was found, since its ends are faint."""


def fields_of(frame: VideoFrame) -> tuple[VideoFrame, VideoFrame]:
    """The even rows and the odd rows of a frame. Each has colours of its own: converted together they would mix."""
    return filtered(frame, ("field", "type=top")), filtered(frame, ("field", "type=bottom"))


def deinterlace(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Join two fields. Where they form a comb, odd rows are made of the even rows above and below.

    Still parts keep all rows, and so does a progressive video that is flagged as interlaced.

    Args:
        even: (rows, width, 3) uint8, the even rows of the frame.
        odd: The odd rows, in the same form; one row fewer if the frame's height is odd.

    Returns:
        (height, width, 3) uint8.
    """
    pixels = np.empty((len(even) + len(odd), *even.shape[1:]), np.uint8)
    pixels[::2], pixels[1::2] = even, odd
    below = np.concatenate([even[1:], even[-1:]])[: len(odd)]
    is_combed = surroundings(combs(odd, even[: len(odd)], below))
    if is_combed.any():
        between = ((even[: len(odd)].astype(np.uint16) + below + 1) // 2).astype(np.uint8)
        pixels[1::2] = np.where(is_combed[..., None], between, odd)
    return pixels


def combs(rows: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Where rows of a field differ from the other field's rows above and below, and resemble those of their own field.

    Returns:
        (rows, width) bool, true in at least three rows one below the other: what is less may be a thin line.
    """
    rows, above, below = (values.astype(np.int16) for values in (rows, above, below))
    brighter = np.minimum(rows - above, rows - below)  # than both
    darker = np.minimum(above - rows, below - rows)
    own = np.pad(rows, ((1, 1), (0, 0), (0, 0)), mode="edge")
    # By how much the own field's rows are nearer to this row than the other field's are, four times.
    nearer = 2 * (own[:-2] + own[2:]) - 2 * rows - above - below
    is_comb = (((brighter > COMB) & (nearer > 0)) | ((darker > COMB) & (nearer < 0))).any(-1)
    padded = np.pad(is_comb, ((2, 2), (0, 0)))
    thrice = padded[:-2] & padded[1:-1] & padded[2:]
    return thrice[:-2] | thrice[1:-1] | thrice[2:]


def surroundings(is_comb: np.ndarray) -> np.ndarray:
    """(rows, width) bool: what is within reach of a comb."""
    blur = ImageFilter.BoxBlur((REACH_COLUMNS, REACH_ROWS))
    return np.asarray(Image.fromarray(is_comb.astype(np.uint8) * np.uint8(255)).filter(blur)) > 0
