"""The body of a request as an image: bounded in bytes, in pixels and in time."""

import asyncio

from fastapi import Request
from PIL import Image

from dpfpl_client.data.decode import MAX_PIXELS, UnreadableImageError, decode_image

__all__ = ["RequestProblem", "decode_body", "read_body"]

BODY_SECONDS = 60.0
TYPES = ("image/", "application/octet-stream")
"""Types that a page of another origin cannot send unasked: a browser asks first, and is not allowed to."""


class RequestProblem(Exception):  # noqa: N818  (an answer to the caller, not a fault of the program)
    """What is wrong with a request: HTTP status, stable code, message and advice."""

    def __init__(self, status: int, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.advice = status, code, message, advice


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        RequestProblem: it is of another type, empty, larger than ``max_bytes`` or too slow; nothing more is read then.
    """
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith(TYPES):
        raise RequestProblem(
            415,
            "WRONG_TYPE",
            f"The content type is {kind[:100] or 'missing'!r}.",
            "Send the image file's bytes as the body, with Content-Type: image/png, image/jpeg or the like.",
        )
    too_large = RequestProblem(
        413, "IMAGE_TOO_LARGE", f"The file is larger than {max_bytes:,} bytes.", "Send a smaller version of the image."
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestProblem(
            408, "TOO_SLOW", f"The image did not arrive within {BODY_SECONDS:.0f} seconds.", "Try again."
        ) from None
    if not body:
        raise RequestProblem(400, "NO_IMAGE", "The request has no body.", "Send the image file's bytes as the body.")
    return bytes(body)


def decode_body(body: bytes) -> Image.Image:
    """The image as RGB; its size in pixels is checked before they are unpacked.

    Raises:
        RequestProblem: it is no image, damaged, or has too many pixels.
    """
    try:
        return decode_image(body)
    except UnreadableImageError as error:
        raise RequestProblem(
            422,
            "CORRUPT_IMAGE",
            f"The image cannot be used: {error}.",
            f"Send a PNG, JPEG, BMP, WebP, TIFF or GIF file of at most {MAX_PIXELS:,} pixels.",
        ) from None
