"""F13, S4: bytes of a column become the model's arrays; undecodable bytes are a fault of their row."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mirrorspark.scoring.backends.protocol import ArrayType, Signature, UnsupportedModelError
from mirrorspark.scoring.input.decoding import Decoder, decoders
from mirrorspark.scoring.input.inputs import Column, ColumnInputs
from tests.unit.scoring.other_models import pictures, png

HEIGHT, WIDTH = 6, 5
# The two decoders of images: TensorFlow for its own models, Pillow for all others.
BOTH = ("keras", "onnx")


def decoder(name: str, shape: tuple[int | None, ...], element: str = "float", backend: str = "onnx") -> Decoder:
    array = ArrayType("image", element, (None, *shape), "a tensor")
    inputs = ColumnInputs((Column("image", "binary", decode=name),))
    return decoders(inputs, Signature((array,), ()), backend, None)["image"]


def decoded(found: Decoder, *values: bytes | None, fill: float | None = None) -> tuple[np.ndarray, dict[int, str]]:
    return found.arrays(Column("image", "binary", fill=fill, decode="image"), np.array(values, object))


def saved(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_images_are_their_pixels_from_0_to_255(backend: str, form: str) -> None:
    found = pictures(3, HEIGHT, WIDTH)
    arrays, faults = decoded(
        decoder("image", (HEIGHT, WIDTH, 3), backend=backend), *(saved(each, form) for each in found)
    )
    assert (arrays.dtype, faults) == (np.float32, {})
    np.testing.assert_array_equal(arrays, found)


@pytest.mark.parametrize("backend", BOTH)
def test_a_jpeg_is_what_the_library_of_the_model_makes_of_it(backend: str) -> None:
    """Decoders of JPEG differ by some steps of 255; a model gets the one that its library trains with."""
    picture = pictures(1, 16, 16)[0]
    jpeg = saved(np.repeat(np.repeat(picture, 4, 0), 4, 1), "JPEG")
    expected = {"keras": tf.io.decode_image(jpeg).numpy(), "onnx": np.asarray(Image.open(io.BytesIO(jpeg)))}[backend]
    arrays, faults = decoded(decoder("image", (64, 64, 3), "uint8", backend), jpeg)
    assert faults == {}
    np.testing.assert_array_equal(arrays[0], expected)


@pytest.mark.parametrize("backend", BOTH)
def test_an_animation_is_decoded_to_its_first_frame(backend: str) -> None:
    frames = [Image.fromarray(each) for each in pictures(2, HEIGHT, WIDTH)[..., 0]]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    arrays, faults = decoded(decoder("image", (HEIGHT, WIDTH, 3), "uint8", backend), buffer.getvalue())
    assert faults == {}
    np.testing.assert_array_equal(arrays[0], np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("backend", BOTH)
def test_channels_stand_where_the_model_has_them(backend: str) -> None:
    (picture,) = pictures(1, HEIGHT, WIDTH)
    grey = picture[..., 0]
    for pixels, shape, expected in (
        (picture, (3, HEIGHT, WIDTH), picture.transpose(2, 0, 1)),
        (grey, (HEIGHT, WIDTH, 1), grey[..., None]),
        (grey, (1, HEIGHT, WIDTH), grey[None]),
        (grey, (HEIGHT, WIDTH), grey),
        (grey, (HEIGHT, WIDTH, 3), np.repeat(grey[..., None], 3, axis=2)),
        (picture, (HEIGHT, WIDTH, 4), np.dstack([picture, np.full_like(grey, 255)])),
    ):
        arrays, faults = decoded(decoder("image", shape, "uint8", backend), png(pixels))
        assert faults == {}
        np.testing.assert_array_equal(arrays[0], expected)


@pytest.mark.parametrize("backend", BOTH)
def test_an_image_of_another_size_is_a_fault_unless_it_is_to_be_resized(backend: str) -> None:
    (large,) = pictures(1, 2 * HEIGHT, 2 * WIDTH)
    _, faults = decoded(decoder("image", (HEIGHT, WIDTH, 3), backend=backend), png(large))
    assert "the image is 12 x 10 (height x width), the model takes 6 x 5; 'resized_image' would resize it" in faults[0]
    expected: Any = {
        "keras": tf.image.resize(large, (HEIGHT, WIDTH)).numpy(),
        "onnx": np.asarray(Image.fromarray(large).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)),
    }[backend]
    arrays, faults = decoded(decoder("resized_image", (HEIGHT, WIDTH, 3), backend=backend), png(large))
    assert faults == {}
    np.testing.assert_array_equal(arrays[0], expected)
    whole, _ = decoded(decoder("resized_image", (HEIGHT, WIDTH, 3), "uint8", backend), png(large))
    np.testing.assert_array_equal(whole[0], np.rint(expected))


@pytest.mark.parametrize("backend", BOTH)
def test_bytes_that_are_no_image_are_a_fault_of_their_row(backend: str) -> None:
    good = png(pictures(1, HEIGHT, WIDTH)[0])
    arrays, faults = decoded(decoder("image", (HEIGHT, WIDTH, 3), backend=backend), good, b"no image", good[:60], b"")
    assert list(faults) == [1, 2, 3]
    for message in faults.values():
        assert message.startswith("column 'image' has a value that is not decoded by image: ")
        assert "\n" not in message
    np.testing.assert_array_equal(arrays[0], pictures(1, HEIGHT, WIDTH)[0])


def test_pixels_of_16_bits_keep_their_upper_8_or_are_refused() -> None:
    """Pillow alone would make white of all but the darkest."""
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 2000
    value = saved(deep, "PNG")
    arrays, faults = decoded(decoder("image", (HEIGHT, WIDTH), "uint8", "keras"), value)
    assert faults == {}
    np.testing.assert_array_equal(arrays[0], deep >> 8)
    _, faults = decoded(decoder("image", (HEIGHT, WIDTH), "uint8", "onnx"), value)
    assert "its pixels are of mode I;16, not of 8 bits; decode it with a function of yours" in faults[0]


def test_a_number_that_the_model_s_type_does_not_hold_is_a_fault_of_its_row() -> None:
    """Cast, it would be another number."""
    found = Decoder("hook", lambda value: np.array([int(value)]), (1,), np.dtype(np.int32))
    arrays, faults = decoded(found, b"-2147483648", b"2147483648", b"3")
    assert arrays[[0, 2], 0].tolist() == [-(2**31), 3]
    assert list(faults) == [1]
    assert "it becomes an array with 2147483648, the model takes int32" in faults[1]


@pytest.mark.parametrize("fill", [256, -1, 0.5, float("nan")])
def test_a_fill_that_the_model_s_type_does_not_hold_is_refused(fill: float) -> None:
    array = ArrayType("image", "uint8", (None, 2, 2), "a tensor")
    inputs = ColumnInputs((Column("image", "binary", decode="image", fill=fill),))
    with pytest.raises(
        UnsupportedModelError, match=rf"column 'image': fill {fill} is not of type uint8, which the model takes"
    ):
        decoders(inputs, Signature((array,), ()), "onnx", None)


def test_a_missing_value_is_an_array_of_the_fill() -> None:
    arrays, faults = decoded(decoder("image", (2, 2, 1)), None, fill=0.5)
    assert (arrays.tolist(), faults) == ([[[[0.5], [0.5]], [[0.5], [0.5]]]], {})


def test_numbers_stand_one_after_the_other_little_end_first() -> None:
    arrays, faults = decoded(decoder("numbers", (2, 2)), struct.pack("<4f", 1, 2, 3, 4), b"123", b"")
    assert arrays[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert list(faults) == [1, 2]
    assert "3 bytes, where 4 numbers of float32 take 16" in faults[1]
    assert decoded(decoder("numbers", (2,), "bigint"), struct.pack("<2q", 7, -1))[0].tolist() == [[7, -1]]
    assert decoded(decoder("numbers", (), "double"), struct.pack("<d", 0.5))[0].tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "shape", "element", "message"),
    [
        ("image", (8, 6, 5), "float", r"has the shape \[8, 6, 5\], which is not an image's"),
        ("image", (64,), "float", r"has the shape \[64\], which is not an image's.* decode with 'numbers'"),
        ("image", (8, 6), "boolean", "input is boolean, which pixels from 0 to 255 are not; decode with a function"),
        ("image", (None, None, 3), "float", r"of shape \[None, None, None, 3\]: .*every length but the rows' has to"),
        ("numbers", (3,), "string", "decoding gives numbers"),
        ("pixels", (3,), "float", r"decoder 'pixels' is unknown; use one of \['image', 'resized_image', 'numb"),
    ],
)
def test_an_invalid_target_of_decoding_is_refused_before_any_value(
    name: str, shape: tuple[int | None, ...], element: str, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        decoder(name, shape, element)


def missing_library(_: bytes) -> None:
    raise ModuleNotFoundError("No module named 'cv2'", name="cv2")


def test_a_library_that_is_missing_is_no_value_s_fault() -> None:
    """Else every row of the table would be marked, where the executor is to blame."""
    found = Decoder("hook", missing_library, (1,), np.dtype(np.float32))
    with pytest.raises(ModuleNotFoundError, match="cv2"):
        decoded(found, b"x")
