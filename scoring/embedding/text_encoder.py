"""Encoders of texts: those that take texts, and those that take token ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirrorspark.scoring.backends import SavedModelBackend, protocol
from mirrorspark.scoring.embedding.buckets import Call, bucket_length, calls
from mirrorspark.scoring.embedding.settings import EncoderSettings
from mirrorspark.scoring.embedding.vectors import called, checked_vectors
from mirrorspark.scoring.embedding.wordpiece import WordPiece

# Names of the inputs of token encoders: those of Hugging Face, and those of TF-Hub.
IDS = ("input_ids", "input_word_ids")
MASKS = ("attention_mask", "input_mask")
SEGMENTS = ("token_type_ids", "input_type_ids")

_SHOWN_CHARACTERS = 80


class StringEncoder:
    """An encoder that takes texts."""

    def __init__(self, backend: protocol.Backend, output: str, settings: EncoderSettings) -> None:
        self._backend = backend
        self._output = output
        self._input = backend.signature.inputs[0].name
        self._batch_size = settings.batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return their vectors, see :class:`scoring.embedding.vectors.Encoder`."""
        size = self._backend.signature.rows or self._batch_size
        # Most pad to their longest text themselves.
        order = np.argsort([len(text) for text in texts], kind="stable")
        column = np.array(texts, object)
        parts = []
        for start in range(0, len(texts), size):
            rows = order[start : start + size]
            values = called(self._backend, {self._input: column[rows]}, self._output, size)
            parts.append(_vectors(values, column[rows].tolist(), self._output))
        return _in_order(parts, order)

    def in_graph(self) -> tuple[Any, Callable[[Any], Any]] | None:
        """Return the encoder as a part of another graph, see :class:`scoring.embedding.vectors.Encoder`."""
        if not isinstance(self._backend, SavedModelBackend) or self._backend.signature.rows:
            return None
        return self._backend.in_graph(self._input, self._output)


class TokenEncoder:
    """An encoder that takes token ids."""

    def __init__(self, backend: protocol.Backend, output: str, settings: EncoderSettings, tokenizer: WordPiece) -> None:
        self._backend = backend
        self._output = output
        self._tokenizer = tokenizer
        self._inputs = backend.signature.inputs
        fixed = {array.shape[1] for array in self._inputs if len(array.shape) == 2} - {None}
        # Where the inputs have a fixed length, all texts are padded to it.
        self._fixed_length = next(iter(fixed), None)
        self._longest = min(settings.max_length, self._fixed_length or settings.max_length)
        self._call_tokens = settings.batch_size * settings.max_length

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return their vectors, see :class:`scoring.embedding.vectors.Encoder`."""
        tokens = [self._tokenizer.ids(text, self._longest) for text in texts]
        lengths = [self._fixed_length or bucket_length(len(ids), self._longest) for ids in tokens]
        parts, order = [], []
        for call in calls(lengths, self._size_at):
            values, mask = self._states([tokens[row] for row in call.rows], call)
            if values.ndim == 3 and values.shape[:2] == mask.shape:
                values = pooled(values, mask)
            parts.append(_vectors(values, [texts[row] for row in call.rows], self._output))
            order.append(call.rows)
        return _in_order(parts, np.concatenate(order))

    def in_graph(self) -> None:
        """Return None: its tokenizer is Python."""

    def _size_at(self, length: int) -> int:
        return self._backend.signature.rows or max(1, self._call_tokens // length)

    def _states(self, tokens: Sequence[Sequence[int]], call: Call) -> tuple[np.ndarray, np.ndarray]:
        """Return the encoder's output for a call, and the mask of its tokens."""
        ids = np.full((len(tokens), call.length), self._tokenizer.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, of_text in enumerate(tokens):
            ids[row, : len(of_text)] = of_text
            mask[row, : len(of_text)] = 1
        arrays = dict.fromkeys(IDS, ids) | dict.fromkeys(MASKS, mask) | dict.fromkeys(SEGMENTS, np.zeros_like(ids))
        inputs = {
            array.name: arrays[array.name].astype(protocol.DTYPES[array.element or "int"]) for array in self._inputs
        }
        return called(self._backend, inputs, self._output, call.size), mask


def _vectors(values: np.ndarray, texts: Sequence[str], output: str) -> np.ndarray:
    return checked_vectors(
        values, len(texts), output, "texts", lambda place: f"text {texts[place][:_SHOWN_CHARACTERS]!r}"
    )


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean of ``states`` ``[texts, tokens, d]`` over the tokens that ``mask`` ``[texts, tokens]`` has as 1.

    The source is Sentence-BERT (Reimers and Gurevych 2019), whose mean includes ``[CLS]`` and ``[SEP]``.
    """
    weights = mask.astype(states.dtype)
    return np.asarray(np.einsum("btd,bt->bd", states, weights) / weights.sum(axis=1, keepdims=True))


def _in_order(parts: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Return the vectors of texts that were encoded in ``order``, in the order of the texts."""
    together = np.concatenate(parts)
    vectors = np.empty_like(together)
    vectors[order] = together
    return vectors
