"""Encoders of images, which are decoded and resized to the encoder's input where it runs."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirrorspark.scoring.backends import SavedModelBackend, protocol, start_tensorflow
from mirrorspark.scoring.embedding.settings import ImageSettings
from mirrorspark.scoring.embedding.vectors import UnreadableError, called, checked_vectors
from mirrorspark.scoring.input import ImageLayout, ImageLimits, decoder_of_images


class ImageEncoder:
    """An encoder that takes one array of images."""

    def __init__(self, backend: protocol.Backend, output: str, settings: ImageSettings) -> None:
        """Prepare the decoding; imports TensorFlow.

        Raises:
            UnsupportedModelError: The encoder takes no images of a known size.
            ModuleNotFoundError: TensorFlow is not installed here.
        """
        (array,) = backend.signature.inputs
        self._backend = backend
        self._input, self._output = array.name, output
        self._decoder = decoder_of_images(array)
        self._limits = ImageLimits(settings.max_bytes, settings.max_pixels)
        self._batch_size = settings.batch_size

    def encode(self, images: Sequence[bytes]) -> np.ndarray:
        """Return their vectors, see :class:`scoring.embedding.vectors.Encoder`."""
        size = self._backend.signature.rows or self._batch_size
        reasons: dict[int, str] = {}
        parts = []
        for start in range(0, len(images), size):
            chosen, pixels = images[start : start + size], []
            for place, image in enumerate(chosen, start):
                try:
                    pixels.append(self._pixels(image))
                except ValueError as error:
                    reasons[place] = str(error)
            # After the first unreadable image, the others are only decoded to find further unreadable ones.
            if not reasons:
                # Decoded pixels are float32 where the encoder takes other floats.
                inputs = {self._input: np.stack(pixels, dtype=self._decoder.dtype, casting="same_kind")}
                values = called(self._backend, inputs, self._output, size)
                parts.append(_vectors(values, chosen, self._output))
        if reasons:
            raise UnreadableError(reasons)
        return np.concatenate(parts)

    def in_graph(self) -> tuple[Any, Callable[[Any], Any]] | None:
        """Return encoder and decoding as a part of another graph, see :class:`scoring.embedding.vectors.Encoder`."""
        if not isinstance(self._backend, SavedModelBackend) or self._backend.signature.rows:
            return None
        part = self._backend.in_graph(self._input, self._output)
        if part is None:
            return None
        module, encode = part
        tf, layout = start_tensorflow(), ImageLayout.of(self._decoder.shape, self._decoder.dtype)

        def decoded(image: Any) -> Any:
            return tf.cond(
                tf.equal(image, ""),
                lambda: tf.zeros(layout.shape, layout.dtype),
                lambda: layout.of_tensor(self._limits.checked(image)),
            )

        def vectors(images: Any) -> Any:
            return encode(tf.map_fn(decoded, images, fn_output_signature=tf.TensorSpec(layout.shape, layout.dtype)))

        return module, vectors

    def _pixels(self, image: bytes) -> np.ndarray:
        """Return the array of an image.

        Raises:
            ValueError: It is larger than the limits, or cannot be decoded.
        """
        self._limits.check(image)
        return self._decoder.array(image)


def _vectors(values: np.ndarray, images: Sequence[bytes], output: str) -> np.ndarray:
    return checked_vectors(values, len(images), output, "images", lambda place: f"image {key_of(images[place])}")


def key_of(image: bytes) -> str:
    """Return the SHA-256 of an image in hexadecimal digits, as Spark's ``sha2(image, 256)`` does."""
    return hashlib.sha256(image).hexdigest()
