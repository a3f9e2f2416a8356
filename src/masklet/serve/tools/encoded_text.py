"""Images as text in JSON: base64, with or without the beginning of a data address."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from PIL import Image

from masklet.errors import ImageError


def image_bytes(text: str) -> bytes:
    """The content of the image file.

    Raises:
        ImageError: It is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("the image is not base64: expected the content of an image file in base64") from error
    if not content:
        raise ImageError("the image is empty: expected the content of an image file in base64")
    return content


def png_text(pixels: np.ndarray) -> str:
    """A PNG in base64.

    Args:
        pixels: (height, width[, channels]) uint8.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
