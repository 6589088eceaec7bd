import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from modelyard.data import images
from modelyard.data.images import ImageTransform, as_image_bytes, decode
from modelyard.data.transforms import build
from modelyard.errors import Invalid

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
OPTIONS = {"name": "image", "height": 8, "width": 8, "channels": 1, "labels": ["a", "b"]}


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def before(*rows, **options) -> np.ndarray:
    array = np.empty(len(rows), object)
    array[:] = rows
    return build({**OPTIONS, **options}).before({"image": array})["pixels"]


PNG = encoded(Image.fromarray(GREY))
NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)))


def test_pixels_are_scaled_then_normalised():
    assert np.allclose(before(PNG, mean=[0.25], std=[0.5])[0, 0], (GREY / 255 - 0.25) / 0.5, atol=1e-6)


def test_raw_base64_and_data_url_are_the_same_image():
    text = base64.b64encode(PNG)
    wrapped = b"\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    rows = before(PNG, text, wrapped, text.decode(), b"data:image/png;base64," + text)
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_colour_and_size_are_made_to_fit():
    photo = encoded(Image.new("RGB", (31, 17), (255, 0, 0)), "JPEG")
    pixels = before(photo, PNG, channels=3, height=4, width=6)
    assert pixels.shape == (2, 3, 4, 6)
    assert pixels[0, 0].mean() > 0.95
    assert pixels[0, 1:].mean() < 0.05


def test_a_turned_photo_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)
    assert decode(photo).size == (10, 20)


def test_sixteen_bits_keep_their_brightness():
    deep = encoded(Image.fromarray(GREY.astype(np.uint16) * 257))
    assert np.array_equal(before(deep), before(PNG))


@pytest.mark.parametrize("length", [20, 40, len(NOISE) // 2, len(NOISE) - 25])
def test_a_truncated_image_names_its_row(length):
    with pytest.raises(Invalid, match="Row 1 of 'image': A truncated or broken image"):
        before(PNG, NOISE[:length])


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"GIF89a" + bytes(40), base64.b64encode(b"hello"), b"data:image/png;base64,%%%"]
)
def test_what_is_no_image_names_its_row(data):
    with pytest.raises(Invalid, match=r"Row 0 of 'image': .*neither a PNG nor a JPEG"):
        before(data)


def bomb(side: int) -> bytes:
    """A PNG header that promises `side` × `side` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


@pytest.mark.parametrize("side", [7_000, 10_000, 50_000])
def test_a_bomb_is_refused_by_its_header(side):
    with pytest.raises(Invalid, match=r"Row 0 of 'image': .*40,000,000"):
        before(bomb(side))


def test_a_call_is_bounded_in_memory(monkeypatch):
    monkeypatch.setattr(images, "MAX_BATCH_BYTES", 3 * 8 * 8 * 4)
    before(PNG, PNG, PNG)
    with pytest.raises(Invalid, match="4 images in one call; this model takes at most 3"):
        before(PNG, PNG, PNG, PNG)


def test_random_damage_is_always_an_invalid():
    draw = np.random.default_rng(0)
    photo = encoded(Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)), "JPEG")
    refused = 0
    for _ in range(300):
        data = bytearray(NOISE if draw.random() < 0.5 else photo)
        for _ in range(draw.integers(1, 6)):
            data[draw.integers(3, len(data))] = draw.integers(0, 256)
        try:
            pixels = before(bytes(data))
        except Invalid:
            refused += 1
        else:
            assert pixels.shape == (1, 1, 8, 8)
    assert 0 < refused < 300


def test_options_are_checked():
    for wrong in ({"mean": [0.1, 0.2]}, {"std": [0.0]}, {"channels": 2}, {"height": 0}, {"labels": []}):
        with pytest.raises(Invalid, match="options of transform 'image' are wrong"):
            build({**OPTIONS, **wrong})
    assert ImageTransform.options.model_validate({k: v for k, v in OPTIONS.items() if k != "name"})


def test_bytes_of_an_image_pass_unchanged():
    assert as_image_bytes(PNG) is not None
    assert as_image_bytes(bytearray(PNG)) == PNG


def test_too_many_pixels_are_refused_by_their_headers_before_one_is_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_CALL_PIXELS", 127)
    with pytest.raises(Invalid, match="may have 127 pixels, not 128"):
        before(PNG[:-30], PNG)  # the first one could not be decoded
    assert before(PNG).shape == (1, 1, 8, 8)
