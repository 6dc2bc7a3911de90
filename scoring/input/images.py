"""Images: their size by their header, and their pixels in the layout of a model's input."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mirrorspark.scoring.backends import library, protocol, start_tensorflow

_CHANNELS = (1, 3, 4)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MODES_OF_LARGER_NUMBERS = ("I", "F")

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Width and height of a PNG are here, big-endian, behind its signature and the length and name of its first chunk.
_PNG_SIZE = slice(16, 24)
# Markers of JPEG (ITU-T T.81, table B.1): frames, which have the size; those without content; and the ends of a header.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_ENDS = frozenset({0xD9, 0xDA})

ReadImage: TypeAlias = Callable[[bytes, int, tuple[int, int] | None], np.ndarray]
"""From bytes, channels, and (height, width) or None to keep the size to pixels ``[height, width, channels]``."""


@dataclass(frozen=True)
class ImageLayout:
    """The layout of an image in a row of a model's input: channels last, channels first, or grey without channels.

    Attributes:
        shape: Shape of the row.
        order: Where the axes of ``[height, width, channels]`` go.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    height: int
    width: int
    channels: int
    order: tuple[int, int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "ImageLayout":
        """Return the layout of an input whose rows have this shape and type.

        Raises:
            UnsupportedModelError: The rows are not images.
        """
        if len(shape) == 3 and shape[2] in _CHANNELS:
            (height, width, channels), order = shape, (0, 1, 2)
        elif len(shape) == 3 and shape[0] in _CHANNELS:
            (channels, height, width), order = shape, (2, 0, 1)
        elif len(shape) == 2:
            (height, width), channels, order = shape, 1, (2, 0, 1)
        else:
            raise protocol.UnsupportedModelError(
                f"a row of the model's input has the shape {list(shape)}, which is not an image's: height and width, "
                f"with {_CHANNELS} channels behind or before them; decode with 'numbers', or a function of yours"
            )
        if dtype == np.bool_:
            raise protocol.UnsupportedModelError(
                "the model's input is boolean, which pixels from 0 to 255 are not; decode with a function of yours"
            )
        return cls(shape, dtype, height, width, channels, order)

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels ``[height, width, channels]`` in this layout."""
        if pixels.dtype != np.uint8 and self.dtype.kind in "iu":
            pixels = np.rint(pixels).astype(self.dtype)  # resizing interpolates
        return pixels.transpose(self.order).reshape(self.shape)

    def of_tensor(self, value: Any) -> Any:
        """Return a tensor of this layout for one of the bytes of an image, which is resized; for a graph."""
        tf = start_tensorflow()
        pixels = _decoded(tf, value, self.channels, (self.height, self.width))
        if self.dtype.kind in "iu":
            pixels = tf.round(pixels)
        return tf.reshape(tf.transpose(tf.cast(pixels, self.dtype), self.order), self.shape)


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded: a file of some kilobytes may have billions of pixels.

    Attributes:
        max_pixels: Height times width.
    """

    max_bytes: int
    max_pixels: int

    def check(self, value: bytes) -> None:
        """Check an image by its header.

        Raises:
            ValueError: It is larger, neither a JPEG nor a PNG, or its header is damaged.
        """
        if len(value) > self.max_bytes:
            raise ValueError(f"it has {len(value):,} bytes, more than max_bytes {self.max_bytes:,}")
        height, width = image_size(value)
        if height * width > self.max_pixels:
            raise ValueError(
                f"it has {height:,} x {width:,} pixels (height x width), more than max_pixels {self.max_pixels:,}"
            )

    def checked(self, value: Any) -> Any:
        """Return a tensor of the bytes of an image which depends on the same checks, for a graph."""
        tf = start_tensorflow()
        size = tf.cond(
            tf.equal(tf.strings.substr(value, 0, len(_PNG)), _PNG),
            lambda: tf.io.decode_raw(tf.strings.substr(value, _PNG_SIZE.start, 8), tf.int32, little_endian=False),
            # Raises an error for bytes that are not a JPEG.
            lambda: tf.image.extract_jpeg_shape(value)[:2],
        )
        found = {"bytes": tf.strings.length(value), "pixels": tf.reduce_prod(tf.cast(size, tf.int64))}
        most = {"bytes": self.max_bytes, "pixels": self.max_pixels}
        checks = [
            tf.debugging.assert_less_equal(
                tf.cast(number, tf.int64),
                tf.constant(most[name], tf.int64),
                f"an image has more {name} than max_{name}",
            )
            for name, number in found.items()
        ]
        with tf.control_dependencies(checks):
            return tf.identity(value)


def image_size(value: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG or PNG by its header.

    Raises:
        ValueError: It is neither, or its header is damaged.
    """
    if value.startswith(_PNG):
        return _png_size(value)
    if value.startswith(_JPEG):
        return _jpeg_size(value)
    raise ValueError("it is neither a JPEG nor a PNG")


def _png_size(value: bytes) -> tuple[int, int]:
    numbers = value[_PNG_SIZE]
    if len(numbers) < 8:
        raise ValueError("its header of a PNG is cut off")
    return int.from_bytes(numbers[4:], "big"), int.from_bytes(numbers[:4], "big")


def _jpeg_size(value: bytes) -> tuple[int, int]:
    place = len(_JPEG)
    # Each segment moves the position forward. Bytes between segments are skipped, as libjpeg does.
    while (place := value.find(b"\xff", place)) >= 0 and place + 1 < len(value):
        marker = value[place + 1]
        if marker in (0x00, 0xFF) or marker in _ALONE:
            place += 1 if marker == 0xFF else 2
        elif marker in _ENDS:
            break
        elif marker in _FRAMES and place + 9 <= len(value):
            return int.from_bytes(value[place + 5 : place + 7], "big"), int.from_bytes(
                value[place + 7 : place + 9], "big"
            )
        else:
            place += 2 + max(2, int.from_bytes(value[place + 2 : place + 4], "big"))
    raise ValueError("its header of a JPEG has no size")


def _decoded(tf: Any, value: Any, channels: int, size: tuple[int, int] | None) -> Any:
    # This reads the first frame of an animated GIF.
    image = tf.io.decode_image(value, channels=channels, expand_animations=False)
    return image if size is None else tf.image.resize(image, size)


def with_tensorflow() -> ReadImage:
    """Return a reader that decodes with TensorFlow, as a model of TensorFlow does in training."""
    tf = start_tensorflow()
    return lambda value, channels, size: np.asarray(_decoded(tf, value, channels, size))


def with_pillow() -> ReadImage:
    """Return a reader that decodes with Pillow, as is usual for models of PyTorch."""
    pillow = library("PIL.Image", "decoding images needs Pillow")

    def read(value: bytes, channels: int, size: tuple[int, int] | None) -> np.ndarray:
        with pillow.open(io.BytesIO(value)) as image:
            # Pillow would clip larger values to 255: https://github.com/python-pillow/Pillow/issues/3011
            if image.mode.startswith(_MODES_OF_LARGER_NUMBERS):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, not of 8 bits; decode it with a function of yours"
                )
            converted = image.convert(_MODES[channels])
        if size is not None:
            converted = converted.resize(size[::-1], pillow.Resampling.BILINEAR)
        return np.asarray(converted).reshape(converted.height, converted.width, channels)

    return read
