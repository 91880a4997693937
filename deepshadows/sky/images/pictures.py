"""JPEG and PNG pictures of one object as pixels; what is too large or no picture is refused. No Ray, no torch."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepshadows.outcomes import InputError

MAX_SIDE_PIX = 4096
"""A header that declares more is not believed: nothing is unpacked."""
MAX_PICTURE_BYTES = 64 << 20
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def is_picture(data: bytes) -> bool:
    """Whether these bytes begin as a JPEG or PNG does."""
    return data.startswith(_MAGIC)


def decode_picture(data: bytes, where: str) -> NDArray[np.uint8]:
    """The picture, uint8 (H, W, 3).

    Raises
    ------
    InputError
        It is damaged, too large, or not of three colours.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) > MAX_SIDE_PIX:
                raise InputError(f"{where}: declares {picture.width} x {picture.height} pixels; no cut-out has so many")
            pixels = np.array(picture)
            mode = picture.mode
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: no readable JPEG or PNG: {error}") from error
    if mode == "RGBA" and (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    if mode != "RGB":
        raise InputError(f"{where}: a picture of mode {mode}; RGB is needed")
    return pixels
