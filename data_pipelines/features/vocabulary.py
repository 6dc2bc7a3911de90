"""Vocabularies: the tokens of a feature and their ids, in a hash table for millions of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, MISSING_ID, OUT_OF_VOCABULARY_ID

VOCABULARY_SCHEMA = pa.schema([("tokens", pa.string()), ("counts", pa.int64())])
"""One row per token, the most frequent first; stored as an Arrow IPC file, which readers map instead of copying."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a feature.

    Attributes:
        tokens: Arrow strings, distinct, the most frequent first; token ``i`` has id ``i + 2``.
        counts: The number of times each token occurs in the training rows (Arrow int64).
    """

    tokens: pa.ChunkedArray | pa.StringArray
    counts: pa.ChunkedArray | pa.Int64Array

    def __len__(self) -> int:
        return len(self.tokens)

    def ids(self, tokens: pa.StringArray) -> npt.NDArray[np.int64]:
        """Return int64 ``[tokens]``: 0 for null and ``""``, 1 for an unknown token, or else the token's id."""
        # Each distinct token is looked up once: columns of tokens have many repetitions.
        encoded = tokens.dictionary_encode()
        distinct = np.empty(len(encoded.dictionary) + 1, np.int64)
        distinct[:-1] = self._distinct_ids(encoded.dictionary)
        distinct[-1] = MISSING_ID
        return distinct[encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()]

    def ids_of_integers(self, numbers: pa.Array) -> npt.NDArray[np.int64]:
        """Return the ids of whole numbers as tokens (``7``, ``-3``), without converting them to text.

        Args:
            numbers: Arrow integers that fit into int64.
        """
        from mirrorspark.data_pipelines.features.vocabulary_kernels import ids_of_integers

        whole = numbers.cast(pa.int64())
        # Nulls are looked up as 0 and get their own id afterwards.
        values = (whole.fill_null(0) if whole.null_count else whole).to_numpy()
        ids = np.asarray(ids_of_integers(values, *self._integer_table))
        if numbers.null_count:
            ids[numbers.is_null().to_numpy(zero_copy_only=False)] = MISSING_ID
        return ids

    def save(self, path: Path) -> None:
        """Write the vocabulary as an Arrow IPC file."""
        table = pa.table([self.tokens, self.counts], schema=VOCABULARY_SCHEMA)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, VOCABULARY_SCHEMA) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Map a saved vocabulary into memory, so that processes on a host share its pages.

        Raises:
            FileNotFoundError: There is no such file.
            pyarrow.ArrowInvalid: It is not an Arrow file, or has other columns.
        """
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if not table.schema.equals(VOCABULARY_SCHEMA):
            raise pa.ArrowInvalid(f"{path} has the columns {table.schema.names}, not {VOCABULARY_SCHEMA.names}")
        return cls(table["tokens"], table["counts"])

    def pieces(self) -> Iterator[pa.StringArray]:
        """Yield the tokens array by array."""
        yield from self.tokens.chunks if isinstance(self.tokens, pa.ChunkedArray) else (self.tokens,)

    def _distinct_ids(self, tokens: pa.StringArray) -> npt.NDArray[np.int64]:
        from mirrorspark.data_pipelines.features.farmhash import fingerprint64
        from mirrorspark.data_pipelines.features.vocabulary_kernels import find

        ids = np.full(len(tokens), OUT_OF_VOCABULARY_ID, np.int64)
        keys, positions, colliding = self._table
        candidates = find(fingerprint64(tokens), keys, positions)
        found = np.flatnonzero(candidates >= 0)
        # A fingerprint almost certainly identifies a token; comparing the bytes makes it certain.
        is_same = pc.equal(pc.take(self.tokens, pa.array(candidates[found])), tokens.take(pa.array(found)))
        same = found[np.asarray(is_same, bool)]
        ids[same] = candidates[same] + FIRST_VOCABULARY_ID
        for position in colliding:
            ids[np.asarray(pc.equal(tokens, self.tokens[int(position)]), bool)] = position + FIRST_VOCABULARY_ID
        ids[np.asarray(pc.equal(tokens, ""), bool)] = MISSING_ID
        return ids

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Fingerprints and positions by slot, and the positions of tokens with the fingerprint of an earlier token.

        For ten million tokens, the expected number of such pairs is 0.000003, and the table takes 200 MB; a dict would
        take 1.5 GB.
        """
        from mirrorspark.data_pipelines.features.farmhash import fingerprint64
        from mirrorspark.data_pipelines.features.vocabulary_kernels import build

        fingerprints = [fingerprint64(piece) for piece in self.pieces()]
        return build(np.concatenate([np.empty(0, np.uint64), *fingerprints]))

    @cached_property
    def _integer_table(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Mixed numbers and positions by slot, as :attr:`_table`, and the token of each position.

        Only tokens in Arrow's notation of numbers are in it: ``7``, but not ``07`` or ``+7``.
        """
        from mirrorspark.data_pipelines.features.vocabulary_kernels import build, mixed

        tokens = self.tokens.combine_chunks() if isinstance(self.tokens, pa.ChunkedArray) else self.tokens
        are_numbers = pc.match_substring_regex(tokens, r"^(0|-?[1-9]\d{0,17})$")
        are_long = pc.match_substring_regex(tokens, r"^-?[1-9]\d{18}$")
        short, long = (np.flatnonzero(np.asarray(chosen, bool)) for chosen in (are_numbers, are_long))
        # Some numbers of 19 digits are too large for int64, and so for any column of numbers.
        exact = {int(place): int(tokens[int(place)].as_py()) for place in long}
        exact = {place: number for place, number in exact.items() if -(2**63) <= number < 2**63}
        values = np.concatenate(
            [tokens.take(pa.array(short)).cast(pa.int64()).to_numpy(), np.array(list(exact.values()), np.int64)]
        )
        places = np.concatenate([short, np.array(list(exact), np.int64)])
        keys, positions, _ = build(mixed(values))
        return keys, positions, places
