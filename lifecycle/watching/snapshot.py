"""The snapshot of a training: in which bins its columns and scores fell, to compare later rows with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines import read_profile
from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.quality import Bins, profiling, raw_value_columns
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.storage import atomic_file

SNAPSHOT_FILE = "snapshot.json"
FORMAT_VERSION = 1

# A larger vocabulary is not kept, and its new tokens are not counted.
_MOST_TOKENS = 20_000
_WATCHED_ROLES = (raw_value_columns.Role.FEATURE, raw_value_columns.Role.LABEL)


class SnapshotError(ClearError, ValueError):
    """A file is not a snapshot, or one of another version."""


@dataclass(frozen=True)
class WatchedColumn:
    """A column as the training saw it.

    Attributes:
        name: The column.
        kind: How its values are counted.
        bins: The bins.
        counts: Training rows by bin, with missing values last.
        vocabulary: Tokens that the model knows; empty where they are too many, and for numbers.
        unknown_share: Share of the training rows' tokens that are not among them.
        missing_share: Share of the training rows without a value.
    """

    name: str
    kind: raw_value_columns.ColumnKind
    bins: Bins
    counts: tuple[int, ...]
    vocabulary: tuple[str, ...] = ()
    unknown_share: float = 0.0
    missing_share: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """The columns that are watched.

    Attributes:
        columns: The columns, and the scores behind them.
        features: Specification of the features in its YAML form.
        at: When it was taken, in ISO format, UTC.
    """

    columns: tuple[WatchedColumn, ...]
    features: Mapping[str, Any]
    at: str

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Self:
        """Return the snapshot of a dataset's training rows, from the profile that the conversion has made.

        Raises:
            DatasetError: The dataset has no profile.
        """
        columns = []
        for column in read_profile(dataset.path).columns:
            train = column.splits[TRAIN_SPLIT]
            if column.role not in _WATCHED_ROLES or not train.bins:
                continue
            known = _vocabulary(dataset, column.name)
            unknown = (train.out_of_vocabulary_share or 0.0) if known else 0.0
            shares = {"unknown_share": unknown, "missing_share": train.missing_share}
            columns.append(WatchedColumn(column.name, column.kind, column.bins, train.bins, known, **shares))
        return cls(tuple(columns), dataset.spec.to_dict(), datetime.now(UTC).isoformat(timespec="seconds"))

    def with_scores(self, scores: ArrayLike, name: str = "score") -> Self:
        """Return the snapshot with the model's scores of labelled rows, in deciles.

        Args:
            scores: Scores, ``[rows]``; NaN is a missing value.
            name: Column of the scores in the rows to come.
        """
        others = tuple(column for column in self.columns if column.name != name)
        return replace(self, columns=(*others, score_column(scores, name)))

    @property
    def spec(self) -> FeatureSpec:
        """The specification of the features."""
        return FeatureSpec.from_dict(self.features)

    def save(self, file: str | Path) -> None:
        """Write the snapshot as JSON, in one step.

        Raises:
            OSError: The file cannot be written.
        """
        atomic_file.write_atomically(Path(file), json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read a file of :meth:`save`.

        Raises:
            OSError: The file cannot be read.
            SnapshotError: It is not a snapshot, or one of another version.
        """
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            if (version := document["format_version"]) != FORMAT_VERSION:
                raise SnapshotError(f"{file} has version {version}, this program reads {FORMAT_VERSION}")
            return cls(tuple(map(_column, document["columns"])), document["features"], document["at"])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise SnapshotError(f"{file} is not a snapshot of a training ({error})") from error


def score_column(scores: ArrayLike, name: str = "score", bins: Bins | None = None) -> WatchedColumn:
    """Return a model's scores as a column that is watched.

    Args:
        scores: Scores, ``[rows]``; NaN is a missing value.
        name: Their column.
        bins: The bins; by default the deciles.
    """
    values = np.asarray(scores, np.float64)
    finite = values[np.isfinite(values)]
    if bins is None:
        bins = Bins(
            edges=tuple(np.unique(np.quantile(finite, profiling.DRIFT_QUANTILES)).tolist()) if len(finite) else ()
        )
    missing = len(values) - len(finite)
    counts = profiling.bin_counts(raw_value_columns.RawValues(len(values), missing, numbers=finite), bins)
    share = missing / len(values) if len(values) else 0.0
    return WatchedColumn(name, raw_value_columns.ColumnKind.NUMBER, bins, counts, missing_share=share)


def _column(document: Mapping[str, Any]) -> WatchedColumn:
    bins = Bins(tuple(document["bins"]["edges"]), tuple(document["bins"]["tokens"]))
    texts = {name: tuple(document[name]) for name in ("counts", "vocabulary")}
    return WatchedColumn(**{**document, "bins": bins, "kind": raw_value_columns.ColumnKind(document["kind"]), **texts})


def _vocabulary(dataset: Dataset, column: str) -> tuple[str, ...]:
    feature = next((one for one in dataset.spec.features if column in one.columns), None)
    if not isinstance(feature, kinds.TokenFeature) or dataset.spec.hash_buckets(feature) is not None:
        return ()
    tokens = dataset.features.vocabulary(feature).tokens
    return tuple(tokens.to_pylist()) if len(tokens) <= _MOST_TOKENS else ()
