"""Length buckets: texts of similar length share a call of the encoder, which keeps padding low."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Buckets per doubling of the length: a text is padded by a quarter of its tokens at most, or to an even number.
_STEPS = 4


def bucket_length(tokens: int, longest: int) -> int:
    """Return the length that a text of ``tokens`` tokens is padded to, at most ``longest``.

    It depends on nothing but the text's own length, so that its vector does not depend on the other texts of a call.
    """
    step = max(2, (1 << (tokens - 1).bit_length()) // (2 * _STEPS))
    return min(-(-tokens // step) * step, longest)


@dataclass(frozen=True)
class Call:
    """A call of an encoder.

    Attributes:
        rows: int64 ``[rows]``, places of the texts.
        length: Number of tokens that each is padded to.
        size: Most rows of a call of this length.
    """

    rows: np.ndarray
    length: int
    size: int


def calls(lengths: Sequence[int], size_at: Callable[[int], int]) -> Iterator[Call]:
    """Yield the calls for one text or more that are padded to these lengths, each text in one, short ones first.

    Args:
        lengths: Length of each text, :func:`bucket_length` of its tokens.
        size_at: Returns the most rows of a call whose texts have a length.
    """
    order = np.argsort(lengths, kind="stable")
    buckets, starts = np.unique(np.asarray(lengths, np.int64)[order], return_index=True)
    for length, rows in zip(buckets.tolist(), np.split(order, starts[1:]), strict=True):
        size = size_at(length)
        for start in range(0, len(rows), size):
            yield Call(rows[start : start + size], length, size)
