"""Images: encoded bytes to normalised pixels, bounded in memory whatever the bytes are.

Called by training, evaluation and replicas through `transforms.build({"name": "image", …})`, and by dataset import, which
opens every image once so that no unreadable one gets into a dataset. Only PNG and JPEG are decoded: each further codec is a
further attack surface.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, model_validator

from modelyard.data.transforms import check_engine, classification_outputs, classify, needed
from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.tensors import Array, Signature, TensorSpec

MAX_PIXELS = 40_000_000  # of one image, checked in its header: at most 120 MB once decoded
MAX_CALL_PIXELS = 1_000_000_000  # of all images of one call: some seconds of decoding
MAX_BATCH_BYTES = 1 << 29  # of the pixels one call may turn into
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
T = TypeVar("T")


class ImageOptions(Config):
    """Sizes in pixels; `mean` and `std` on the 0–1 scale, one value or one a channel;
    `input`/`output` are the engine's tensor names."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    labels: tuple[str, ...] = Field(min_length=1)
    input: str = "pixels"
    output: str = "logits"

    @model_validator(mode="after")
    def _per_channel(self) -> ImageOptions:
        if not {len(self.mean), len(self.std)} <= {1, self.channels} or min(self.std) <= 0:
            raise ValueError(f"mean and std take 1 or {self.channels} values each, std above 0")
        return self


class ImageTransform:
    """`image` BYTES [n] (PNG or JPEG: raw, as base64 text or as a data: URL) → FP32 [n, channels, height, width];
    logits → `label` and `scores`."""

    options: type[Config] = ImageOptions

    def __init__(self, options: ImageOptions, folder: Path | None = None) -> None:
        self.config: dict[str, Any] = {"name": "image", **options.model_dump(mode="json")}
        self._options = options
        self._mean = np.array(options.mean, np.float32).reshape(-1, 1, 1)
        self._std = np.array(options.std, np.float32).reshape(-1, 1, 1)

    def signature(self, engine: Signature) -> Signature:
        o = self._options
        check_engine("image", engine, TensorSpec(o.input, "FP32", (-1, o.channels, o.height, o.width)), o.output, o.labels)
        return Signature((TensorSpec("image", "BYTES", (-1,)),), classification_outputs(o.labels))

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        o, images = self._options, needed(inputs, "image").reshape(-1)
        most = MAX_BATCH_BYTES // (4 * o.channels * o.height * o.width)
        if len(images) > most:
            raise Invalid(f"{len(images)} images in one call; this model takes at most {most}: send them in parts.")
        files = list(_each(as_image_bytes, images))
        # By their headers, before one is decoded: too much is refused at once, not after seconds of work.
        if (whole := sum(_each(lambda file: math.prod(_opened(file).size), files))) > MAX_CALL_PIXELS:
            raise Invalid(f"The images of one call may have {MAX_CALL_PIXELS:,} pixels, not {whole:,}: send them in parts.")
        pixels = np.empty((len(files), o.channels, o.height, o.width), np.float32)
        for row, found in enumerate(_each(lambda file: _pixels(decode(file), o), files)):
            pixels[row] = found
        pixels /= 255
        return {o.input: (pixels - self._mean) / self._std}

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return classify(needed(outputs, self._options.output), self._options.labels)


def _each(work: Callable[[Any], T], rows: Iterable[Any]) -> Iterator[T]:
    """`work` on one row after another; what is wrong with one says which."""
    for row, data in enumerate(rows):
        try:
            yield work(data)
        except Invalid as error:
            raise Invalid(f"Row {row} of 'image': {error.message}") from error


def _pixels(image: Image.Image, options: ImageOptions) -> Array:
    """Channels first, 0–255, at the model's size."""
    image = image.convert("L" if options.channels == 1 else "RGB")
    if image.size != (options.width, options.height):
        image = image.resize((options.width, options.height), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.float32)
    return array[None] if options.channels == 1 else array.transpose(2, 0, 1)


def as_image_bytes(data: Any) -> bytes:
    """An image file's bytes from what clients send: the file itself, its base64 text, or a data: URL of it."""
    raw = data.encode() if isinstance(data, str) else bytes(data)
    if raw.startswith(_MAGIC):
        return raw
    text = raw.partition(b",")[2] if raw[:5].lower() == b"data:" else raw
    try:
        decoded = base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded.startswith(_MAGIC):
        raise Invalid(f"{len(raw)} bytes that are neither a PNG nor a JPEG file, nor base64 text or a data: URL of one.")
    return decoded


def decode(data: bytes) -> Image.Image:
    """A decoded image, upright, in mode L, RGB or what converts to them. Raises `Invalid` on bombs, truncation and nonsense."""
    image = _opened(data)
    with _sound():
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright, np.uint16) >> 8).astype(np.uint8))
    return upright


def _opened(data: bytes) -> Image.Image:
    """An image of which nothing but the header was read. Raises `Invalid` on bombs and nonsense."""
    with _sound():
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Invalid(f"{width} × {height} pixels are more than the {MAX_PIXELS:,} an image may have.")
    return image


@contextmanager
def _sound() -> Iterator[None]:
    """What Pillow says of a bomb or of nonsense is raised as `Invalid`."""
    try:
        yield
    except _BOMB as error:
        raise Invalid(f"More than the {MAX_PIXELS:,} pixels an image may have.") from error
    except _BROKEN as error:
        raise Invalid(f"A truncated or broken image: {error}.") from error
