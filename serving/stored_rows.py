"""A store of precomputed rows that answers like a model: the key goes in, the row comes out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mirrorspark.scoring.model import Catalogue
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import Field, spark_type
from mirrorspark.serving.precomputed import (
    INTEGER,
    INTEGERS,
    DamagedStoreError,
    PrecomputedScores,
    StoreIdentity,
    is_in_utf8,
)
from mirrorspark.serving.rows import Rows, problems_text, shown
from mirrorspark.serving.servable import Outputs

_LOGGER = logging.getLogger(__name__)

IS_FALLBACK = "is_fallback"
"""Output that says whether a key is unknown and the row is the store's fallback."""


class StoredRows:
    """The rows of a store as it is now, even if its file is replaced later.

    Its one input is the key. Its outputs are the other columns, and ``is_fallback``.
    """

    task: str | None = None
    catalogues: Mapping[str, Catalogue] = MappingProxyType({})

    def __init__(self, name: str, file: str | Path) -> None:
        """Open a store.

        Args:
            name: Name in requests.
            file: The file that ``precompute`` wrote.

        Raises:
            FileNotFoundError, StoreError: As in :meth:`PrecomputedScores.open`.
        """
        self._scores = PrecomputedScores(file, follows=False)
        metadata = self._scores.metadata
        self.name = name
        self.labels: Mapping[str, Sequence[str]] = {}
        self._is_integer = metadata.key_type == INTEGER
        self.columns: tuple[str, ...] = (metadata.key,)
        self.inputs: tuple[Field, ...] = (Field(metadata.key, "bigint" if self._is_integer else "string"),)
        outputs = {one: spark_type(type_) for one, type_ in metadata.columns.items() if one != metadata.key}
        self.outputs = tuple(Field(one, type_) for one, type_ in (outputs | {IS_FALLBACK: "boolean"}).items())

    @property
    def version(self) -> str:
        """When the store was written: time in UTC, in ISO 8601."""
        return self._scores.metadata.created

    @property
    def digest(self) -> str:
        """Mark of its file among all files."""
        return digest_of(self._scores.identity)

    @property
    def example(self) -> Mapping[str, Sequence[Any]] | None:
        """A key in place of a real one, which nobody is shown; the store may lack it."""
        return {self.columns[0]: [0 if self._is_integer else "KEY"]}

    def compute(self, requests: Sequence[Rows]) -> list[Outputs | Exception]:
        """Return the rows of each request; one with an unknown key has the status 404, with no key 400."""
        return [self._rows(one) for one in requests]

    def _rows(self, request: Rows) -> Outputs | Exception:
        name = self.columns[0]
        keys = request.columns[name]
        if wrong := [row for row, key in enumerate(keys) if not self._is_key(key)]:
            kind = "a whole number of 64 bits" if self._is_integer else "a text that UTF-8 can hold"
            texts = [f"{request.name(row)}: column '{name}' is {shown(keys[row])}; give {kind}" for row in wrong]
            return RequestError(400, problems_text(texts))
        try:
            found = self._scores.get_many(keys)
        except DamagedStoreError:
            _LOGGER.exception("store %s is damaged", self.name)
            return RequestError(503, "the store is damaged; the log of the server says more")
        if unknown := [f"{request.name(row)}: key {shown(keys[row])}" for row, one in enumerate(found) if one is None]:
            return RequestError(404, f"{problems_text(unknown)} is unknown, and the store has no fallback")
        rows = [{**one, IS_FALLBACK: one.is_fallback} for one in found if one is not None]
        return {field.name: [row[field.name] for row in rows] for field in self.outputs}

    def warm_up(self, rows: Mapping[str, Sequence[Any]] | None = None) -> bool:
        """Read the first and the last row.

        Raises:
            DamagedStoreError: They cannot be read.
        """
        self._scores.check()
        return True

    def _is_key(self, key: Any) -> bool:
        if self._is_integer:
            return type(key) is int and key in INTEGERS
        return isinstance(key, str) and is_in_utf8(key)


def digest_of(identity: StoreIdentity) -> str:
    """Return the digest of the store whose file has that identity."""
    return "-".join(map(str, identity))
