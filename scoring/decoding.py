"""Bytes become arrays: images, raw numbers, or what a function that travels with the model makes of them."""

import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from scoring.backends.libraries import BACKENDS_EXTRA, library
from scoring.backends.protocol import DTYPES, ArrayType, Signature, UnsupportedModelError, number_outside
from scoring.backends.tensorflow_runtime import start_tensorflow
from scoring.hooks import Hooks
from scoring.inputs import Column, ColumnInputs, Faults

IMAGE, RESIZED_IMAGE, NUMBERS = "image", "resized_image", "numbers"
BUILT_IN = (IMAGE, RESIZED_IMAGE, NUMBERS)

_REASON_CHARACTERS = 200
_CHANNELS = (1, 3, 4)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MODES_OF_LARGER_NUMBERS = ("I", "F")
# What these compute gets its images from TensorFlow, as in training; all else from Pillow, as PyTorch's models do.
_BACKENDS_OF_TENSORFLOW = ("keras", "saved_model")

Decode: TypeAlias = Callable[[bytes], Any]
# Bytes, channels, and (height, width) where it is to be resized -> [height, width, channels].
_ReadImage: TypeAlias = Callable[[bytes, int, tuple[int, int] | None], np.ndarray]


@dataclass(frozen=True)
class Decoder:
    """Makes one array of each value of a column.

    Attributes:
        name: What decodes, for messages.
        decode: Returns the array of one value, or raises anything.
        shape: Of the array of one value.
        dtype: Of what the model takes.
    """

    name: str
    decode: Decode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of the array of one value."""
        return math.prod(self.shape) * self.dtype.itemsize

    def arrays(self, column: Column, values: np.ndarray) -> tuple[np.ndarray, Faults]:
        """Return ``[rows, *shape]``, and the rows whose value cannot be decoded.

        Args:
            column: Says what stands in for None; where it does not, such a row is at fault already.
            values: Bytes of each row, or None.
        """
        arrays = np.empty((len(values), *self.shape), self.dtype)
        faults: Faults = {}
        for row, value in enumerate(values):
            if value is None:
                arrays[row] = 0 if column.fill is None else column.fill
                continue
            try:
                arrays[row] = self._array(value)
            except ValueError as error:
                faults[row] = f"column '{column.name}' has a value that is not decoded by {self.name}: {error}"
        return arrays, faults

    def _array(self, value: bytes) -> np.ndarray:
        try:
            array = np.asarray(self.decode(value))
        except MemoryError:
            raise  # no fault of the value, as in the next case
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{self.name} needs the module '{error.name}', which {sys.executable} does not have; install it in the "
                f"Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
                name=error.name,
            ) from error
        except Exception as error:  # whatever a decoder raises, it is about these bytes
            raise ValueError(_reason(error)) from error
        if array.shape != self.shape:
            raise ValueError(f"it becomes an array of shape {list(array.shape)}, the model takes {list(self.shape)}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise ValueError(f"it becomes an array of {array.dtype}, the model takes {self.dtype}")
        outside = number_outside(array, self.dtype)
        if outside is not None:
            raise ValueError(f"it becomes an array with {outside}, the model takes {self.dtype}")
        return array


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return kind + lines[0][:_REASON_CHARACTERS]


def decoders(inputs: ColumnInputs, signature: Signature, backend: str, hooks: Hooks | None) -> dict[str, Decoder]:
    """Return what decodes each column that is decoded.

    Args:
        inputs: The columns.
        signature: What the model takes.
        backend: What computes the model, by its name.
        hooks: The functions that travel with it.

    Raises:
        UnsupportedModelError: What a column is decoded to is not what the model takes.
        HookError: There is no such function.
        ModuleNotFoundError: A library that decodes is not installed here.
    """
    arrays = {array.name: array for array in signature.inputs}
    found: dict[str, Decoder] = {}
    for column in inputs.given:
        if column.decode is not None:
            array = arrays.get(inputs.matrix.name if inputs.matrix is not None else column.name)
            found[column.name] = _decoder(column.name, column.decode, array, backend, hooks)
            if column.fill is not None and not _holds(found[column.name].dtype, column.fill):
                raise UnsupportedModelError(
                    f"column '{column.name}': fill {column.fill!r} is no {found[column.name].dtype}, which the model "
                    f"takes; give one"
                )
    return found


def _holds(dtype: np.dtype[Any], fill: Any) -> bool:
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return float(fill).is_integer() and bool(limits.min <= fill <= limits.max)


def _decoder(column: str, name: str, array: ArrayType | None, backend: str, hooks: Hooks | None) -> Decoder:
    if array is None:
        raise UnsupportedModelError(
            f"column '{column}' is to be decoded, and the model has no input of that name; give a column of an input's "
            f"name, or have preprocess decode it"
        )
    shape = tuple(length for length in array.shape[1:] if length is not None)
    dtype = np.dtype(DTYPES.get(array.element or "", np.object_))
    if dtype == np.object_ or not array.has_rows or len(shape) < len(array.shape) - 1:
        raise UnsupportedModelError(
            f"column '{column}' cannot be decoded to '{array.name}', which is {array.called} of shape "
            f"{list(array.shape)}: what is decoded are numbers, and every length but the rows' has to be known; "
            f"export the model so"
        )
    if name == NUMBERS:
        return Decoder(name, _numbers(shape, dtype), shape, dtype)
    if name in BUILT_IN:
        read = _with_tensorflow() if backend in _BACKENDS_OF_TENSORFLOW else _with_pillow()
        return Decoder(name, _image(read, shape, dtype, resize=name == RESIZED_IMAGE), shape, dtype)
    if hooks is None:
        raise UnsupportedModelError(
            f"column '{column}': there is no '{name}' that decodes; use one of {list(BUILT_IN)}, or a function of a "
            f"file given as hooks"
        )
    return Decoder(f"{name} of {hooks.file.name}", hooks.function(name), shape, dtype)


def _numbers(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Decode:
    """Return what reads numbers that stand one after the other, little end first."""
    stored, count = dtype.newbyteorder("<"), math.prod(shape)

    def decode(value: bytes) -> np.ndarray:
        if len(value) != count * stored.itemsize:
            raise ValueError(f"{len(value)} bytes, where {count} numbers of {dtype} take {count * stored.itemsize}")
        return np.frombuffer(value, stored).reshape(shape)

    return decode


def _image(read: _ReadImage, shape: tuple[int, ...], dtype: np.dtype[Any], *, resize: bool) -> Decode:
    """Return what reads an image into an array of this shape: its channels last, first, or, of grey ones, none."""
    if len(shape) == 3 and shape[2] in _CHANNELS:
        (height, width, channels), order = shape, (0, 1, 2)
    elif len(shape) == 3 and shape[0] in _CHANNELS:
        (channels, height, width), order = shape, (2, 0, 1)
    elif len(shape) == 2:
        (height, width), channels, order = shape, 1, (2, 0, 1)
    else:
        raise UnsupportedModelError(
            f"a row of the model's input has the shape {list(shape)}, which is no image's: height and width, with "
            f"{_CHANNELS} channels behind or before them; decode with 'numbers', or a function of yours"
        )
    if dtype == np.bool_:
        raise UnsupportedModelError(
            "the model's input is boolean, which pixels from 0 to 255 are not; decode with a function of yours"
        )
    size = (height, width) if resize else None

    def decode(value: bytes) -> np.ndarray:
        pixels = read(value, channels, size)
        if pixels.dtype != np.uint8 and dtype.kind in "iu":
            pixels = np.rint(pixels).astype(dtype)  # between pixels when it is resized
        if size is None and pixels.shape[:2] != (height, width):
            raise ValueError(
                f"the image is {pixels.shape[0]} x {pixels.shape[1]} (height x width), the model takes {height} x "
                f"{width}; '{RESIZED_IMAGE}' would resize it"
            )
        ordered = pixels.transpose(order)
        return ordered if len(shape) == 3 else ordered[0]

    return decode


def _with_tensorflow() -> _ReadImage:
    tf = start_tensorflow()

    def read(value: bytes, channels: int, size: tuple[int, int] | None) -> np.ndarray:
        # Of an animated GIF the first frame.
        image = tf.io.decode_image(value, channels=channels, expand_animations=False)
        return np.asarray(image if size is None else tf.image.resize(image, size))

    return read


def _with_pillow() -> _ReadImage:
    pillow = library("PIL.Image", "to decode images takes Pillow", BACKENDS_EXTRA)

    def read(value: bytes, channels: int, size: tuple[int, int] | None) -> np.ndarray:
        with pillow.open(io.BytesIO(value)) as image:
            # Pillow would make 255 of all that is larger. https://github.com/python-pillow/Pillow/issues/3011
            if image.mode.startswith(_MODES_OF_LARGER_NUMBERS):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, not of 8 bits; decode it with a function of yours"
                )
            converted = image.convert(_MODES[channels])
        if size is not None:
            converted = converted.resize(size[::-1], pillow.Resampling.BILINEAR)
        return np.asarray(converted).reshape(converted.height, converted.width, channels)

    return read
