"""A call of an encoder, and its vectors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.errors import ScoringError


class UnreadableError(ClearError, ValueError):
    """Raised for images that an encoder cannot read.

    Attributes:
        reasons: Reason by place among those that it was given.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class Encoder(Protocol):
    """A loaded encoder of texts or of images."""

    def encode(self, contents: Sequence[Any]) -> np.ndarray:
        """Return the vectors of one text or image or more, float32 ``[contents, d]``.

        Raises:
            ScoringError: The output is not such an array, or has a value that is not finite.
            UnreadableError: Images are larger than the limits, or cannot be decoded.
        """

    def in_graph(self) -> tuple[Any, Callable[[Any], Any]] | None:
        """Return the encoder as a part of another TensorFlow graph, or None if it cannot be one.

        The first value holds its variables and tables, the second gives tensors of vectors ``[batch, d]`` for tensors
        of strings ``[batch]``: texts, or the bytes of images, of which an empty one gives any vector.
        """


def readable_vectors(encoder: Encoder, contents: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
    """Return the vectors of readable contents, float32 ``[readable, d]``, and the errors of the others by position.

    Raises:
        ScoringError: See :meth:`Encoder.encode`.
    """
    try:
        return encoder.encode(contents), {}
    except UnreadableError as error:
        readable = [content for place, content in enumerate(contents) if place not in error.reasons]
        vectors = encoder.encode(readable) if readable else np.zeros((0, 0), np.float32)
        return vectors, error.reasons


def called(backend: protocol.Backend, inputs: Mapping[str, np.ndarray], output: str, size: int) -> np.ndarray:
    """Return the output for a call, padded to ``size`` rows where the encoder has a fixed number or is compiled."""
    rows = len(next(iter(inputs.values())))
    if backend.signature.rows or backend.signature.compiles_each_shape:
        places = np.minimum(np.arange(size), rows - 1)
        inputs = {name: values[places] for name, values in inputs.items()}
    return backend(inputs, [output])[output][:rows]


def checked_vectors(values: np.ndarray, rows: int, output: str, of: str, named: Callable[[int], str]) -> np.ndarray:
    """Return the output of a call as vectors, float32 ``[rows, d]``.

    Args:
        values: The output.
        rows: Number of texts or images of the call.
        output: Name of the output for messages.
        of: Kind of the contents, ``texts`` or ``images``.
        named: Names one by its place.

    Raises:
        ScoringError: The output has another rank or number of rows, or a value is not finite.
    """
    if values.ndim != 2 or len(values) != rows:
        ids = ", or of token ids [texts, tokens, d]" if of == "texts" else ""
        raise ScoringError(
            f"its output '{output}' has the shape {list(values.shape)} for {rows} {of} and has to have [{of}, d]{ids}: "
            f"name another as model_output"
        )
    values = values.astype(np.float32)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        raise ScoringError(
            f"its output '{output}' is not finite for the {named(int(np.argmin(is_finite)))}; check the encoder, or "
            f"leave such {of} out"
        )
    return values
