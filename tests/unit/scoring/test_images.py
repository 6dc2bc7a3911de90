"""F13: an image's size is read from its header, and a graph makes of it the pixels that an executor does."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mirrorspark.scoring.backends.protocol import ArrayType, UnsupportedModelError
from mirrorspark.scoring.input.decoding import decoder_of_images
from mirrorspark.scoring.input.images import ImageLayout, ImageLimits, image_size
from tests.unit.scoring.other_models import pictures, png

PIXELS = pictures(1, 21, 34)[0]


def saved(form: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def with_size(height: int, width: int) -> bytes:
    """Return the header of a PNG of this size, with nothing behind it."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))


IMAGES = {
    "png": saved("PNG"),
    "grey png": saved("PNG", PIXELS[..., 0]),
    "jpeg": saved("JPEG"),
    "progressive jpeg": saved("JPEG", progressive=True),
    "grey jpeg": saved("JPEG", PIXELS[..., 0]),
    # A thumbnail has markers and a size of its own.
    "jpeg with a thumbnail": saved("JPEG", exif=b"Exif\x00\x00" + saved("JPEG", PIXELS[:8, :8])),
    "jpeg with a comment": saved("JPEG", comment=b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"),
    "jpeg with fill bytes": saved("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_the_size_is_in_the_header(image: bytes) -> None:
    assert image_size(image) == (21, 34)
    # Where it is cut off, the size is there or is missed.
    found = set()
    for end in range(len(image)):
        with contextlib.suppress(ValueError):
            found.add(image_size(image[:end]))
    assert found == {(21, 34)}


@pytest.mark.parametrize("value", [b"", b"\x89PNG", b"\xff\xd8", b"GIF89a", saved("BMP"), b"an image" * 9])
def test_what_is_no_jpeg_and_no_png_is_told(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"neither a JPEG nor a PNG|its header of a"):
        image_size(value)


def test_limits_count_before_an_image_is_decoded() -> None:
    """A header of thirty bytes may promise ten gigabytes of pixels."""
    limits = ImageLimits(max_bytes=10_000, max_pixels=21 * 34)
    for image in IMAGES.values():
        limits.check(image)
        assert limits.checked(tf.constant(image)).numpy() == image
    bomb = with_size(60_000, 60_000)
    with pytest.raises(ValueError, match=r"it has 60,000 x 60,000 pixels \(height x width\), more than max_pixels 714"):
        limits.check(bomb)
    with pytest.raises(tf.errors.InvalidArgumentError, match="an image has more pixels than max_pixels"):
        limits.checked(tf.constant(bomb))
    with pytest.raises(ValueError, match="it has 10,001 bytes, more than max_bytes 10,000"):
        limits.check(IMAGES["jpeg"].ljust(10_001, b"\x00"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="an image has more bytes than max_bytes"):
        limits.checked(tf.constant(IMAGES["png"].ljust(10_001, b"\x00")))


@pytest.mark.parametrize("shape", [(8, 9, 3), (3, 8, 9), (8, 9, 1), (1, 8, 9), (8, 9)], ids=str)
@pytest.mark.parametrize("element", ["float", "uint8"])
def test_a_graph_resizes_an_image_as_an_executor_does(shape: tuple[int, ...], element: str) -> None:
    decoder = decoder_of_images(ArrayType("pixels", element, (None, *shape), "a tensor"))
    layout = ImageLayout.of(decoder.shape, decoder.dtype)
    in_graph = tf.function(layout.of_tensor, input_signature=[tf.TensorSpec([], tf.string)])
    for image in (png(PIXELS), IMAGES["jpeg"], IMAGES["grey png"]):
        found = in_graph(tf.constant(image))
        assert (tuple(found.shape), found.dtype.as_numpy_dtype) == (shape, decoder.dtype)
        np.testing.assert_array_equal(found.numpy(), decoder.array(image))


def test_rows_of_an_unknown_size_are_no_images() -> None:
    with pytest.raises(UnsupportedModelError, match="every length but the rows' has to be known"):
        decoder_of_images(ArrayType("pixels", "float", (None, None, None, 3), "a tensor"))
    with pytest.raises(
        UnsupportedModelError, match=r"a row of the model's input has the shape \[12\], which is not an image"
    ):
        decoder_of_images(ArrayType("pixels", "float", (None, 12), "a tensor"))
