"""Decoding of bytes to arrays: images, raw numbers, or by a function of the model's hooks."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.input.images import ImageLayout, ReadImage, with_pillow, with_tensorflow
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, RowErrors
from mirrorspark.scoring.model import Hooks
from mirrorspark.storage import without_credentials

IMAGE, RESIZED_IMAGE, NUMBERS = "image", "resized_image", "numbers"
BUILT_IN = (IMAGE, RESIZED_IMAGE, NUMBERS)

_REASON_CHARACTERS = 200
# These backends decode images with TensorFlow, as in training; all others use Pillow, as is usual for PyTorch models.
_BACKENDS_OF_TENSORFLOW = ("keras", "keras3", "saved_model")

Decode: TypeAlias = Callable[[bytes], Any]


@dataclass(frozen=True)
class Decoder:
    """Decodes each value of a column to an array.

    Attributes:
        name: Name of the decoder for messages.
        decode: Returns the array of one value; may raise any exception.
        shape: Shape of the array of one value.
        dtype: Type of the model's input.
    """

    name: str
    decode: Decode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of the array of one value."""
        return math.prod(self.shape) * self.dtype.itemsize

    def arrays(self, column: Column, values: np.ndarray) -> tuple[np.ndarray, RowErrors]:
        """Return arrays ``[rows, *shape]``, and the rows whose value cannot be decoded.

        Args:
            column: The column with its fill for None. Without a fill, rows with None are bad rows already.
            values: Bytes or None of each row.
        """
        arrays = np.empty((len(values), *self.shape), self.dtype)
        row_errors: RowErrors = {}
        for row, value in enumerate(values):
            if value is None:
                arrays[row] = 0 if column.fill is None else column.fill
                continue
            try:
                arrays[row] = self.array(value)
            except ValueError as error:
                row_errors[row] = f"column '{column.name}' has a value that is not decoded by {self.name}: {error}"
        return arrays, row_errors

    def array(self, value: bytes) -> np.ndarray:
        """Return the array of one value.

        Raises:
            ValueError: The value cannot be decoded, or its array does not fit the model.
            ModuleNotFoundError: The decoder needs a library that is not installed here.
        """
        try:
            array = np.asarray(self.decode(value))
        except MemoryError:
            raise  # not caused by the value, like the next error
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{self.name} needs the module '{error.name}', which {sys.executable} does not have; install it in the "
                f"Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
                name=error.name,
            ) from error
        except Exception as error:  # any error of a decoder concerns these bytes
            raise ValueError(_reason(error)) from error
        if array.shape != self.shape:
            raise ValueError(f"it becomes an array of shape {list(array.shape)}, the model takes {list(self.shape)}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise ValueError(f"it becomes an array of {array.dtype}, the model takes {self.dtype}")
        outside = protocol.number_outside(array, self.dtype)
        if outside is not None:
            raise ValueError(f"it becomes an array with {outside}, the model takes {self.dtype}")
        return array


def _reason(error: Exception) -> str:
    # A decoder may be a function of the user's, and the reason becomes part of the scores.
    lines = without_credentials(str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return kind + lines[0][:_REASON_CHARACTERS]


def decoders(
    inputs: ColumnInputs, signature: protocol.Signature, backend: str, hooks: Hooks | None
) -> dict[str, Decoder]:
    """Return the decoders of the decoded columns by name.

    Args:
        inputs: The columns.
        signature: Signature of the model.
        backend: Name of the backend.
        hooks: The model's hooks, if any.

    Raises:
        UnsupportedModelError: The decoded array does not fit the model.
        HookError: A decoding function does not exist.
        ModuleNotFoundError: A decoding library is not installed here.
    """
    arrays = {array.name: array for array in signature.inputs}
    found: dict[str, Decoder] = {}
    for column in inputs.given:
        if column.decode is not None:
            array = arrays.get(inputs.matrix.name if inputs.matrix is not None else column.name)
            found[column.name] = _decoder(column.name, column.decode, array, backend, hooks)
            if column.fill is not None and not _holds(found[column.name].dtype, column.fill):
                raise protocol.UnsupportedModelError(
                    f"column '{column.name}': fill {column.fill!r} is not of type {found[column.name].dtype}, which "
                    f"the model takes; give one"
                )
    return found


def decoder_of_images(array: protocol.ArrayType) -> Decoder:
    """Return a decoder by TensorFlow of images that are resized to the rows of a model's input.

    Raises:
        UnsupportedModelError: The rows are not images of a known size.
        ModuleNotFoundError: TensorFlow is not installed here.
    """
    return _decoder("image", RESIZED_IMAGE, array, _BACKENDS_OF_TENSORFLOW[0], None)


def _holds(dtype: np.dtype[Any], fill: Any) -> bool:
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return float(fill).is_integer() and bool(limits.min <= fill <= limits.max)


def _decoder(column: str, name: str, array: protocol.ArrayType | None, backend: str, hooks: Hooks | None) -> Decoder:
    if array is None:
        raise protocol.UnsupportedModelError(
            f"column '{column}' is to be decoded, and the model has no input of that name; give a column of an input's "
            f"name, or have preprocess decode it"
        )
    shape = tuple(length for length in array.shape[1:] if length is not None)
    dtype = np.dtype(protocol.DTYPES.get(array.element or "", np.object_))
    if dtype == np.object_ or not array.has_rows or len(shape) < len(array.shape) - 1:
        raise protocol.UnsupportedModelError(
            f"column '{column}' cannot be decoded to '{array.name}', which is {array.called} of shape "
            f"{list(array.shape)}: decoding gives numbers, and every length but the rows' has to be known; "
            f"export the model so"
        )
    if name == NUMBERS:
        return Decoder(name, _numbers(shape, dtype), shape, dtype)
    if name in BUILT_IN:
        layout = ImageLayout.of(shape, dtype)
        read = with_tensorflow() if backend in _BACKENDS_OF_TENSORFLOW else with_pillow()
        return Decoder(name, _image(read, layout, resize=name == RESIZED_IMAGE), shape, dtype)
    if hooks is None:
        raise protocol.UnsupportedModelError(
            f"column '{column}': decoder '{name}' is unknown; use one of {list(BUILT_IN)}, or a function of a "
            f"file given as hooks"
        )
    return Decoder(f"{name} of {hooks.file.name}", hooks.function(name), shape, dtype)


def _numbers(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Decode:
    """Return a decoder of consecutive little-endian numbers."""
    stored, count = dtype.newbyteorder("<"), math.prod(shape)

    def decode(value: bytes) -> np.ndarray:
        if len(value) != count * stored.itemsize:
            raise ValueError(f"{len(value)} bytes, where {count} numbers of {dtype} take {count * stored.itemsize}")
        return np.frombuffer(value, stored).reshape(shape)

    return decode


def _image(read: ReadImage, layout: ImageLayout, *, resize: bool) -> Decode:
    """Return a decoder of images to this layout."""
    height, width = layout.height, layout.width

    def decode(value: bytes) -> np.ndarray:
        pixels = read(value, layout.channels, (height, width) if resize else None)
        if pixels.shape[:2] != (height, width):
            raise ValueError(
                f"the image is {pixels.shape[0]} x {pixels.shape[1]} (height x width), the model takes {height} x "
                f"{width}; '{RESIZED_IMAGE}' would resize it"
            )
        return layout.of_pixels(pixels)

    return decode
