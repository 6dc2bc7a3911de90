"""Encodings by the label's mean: sums of the training rows by fold, and the means that leave a row's own fold out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.features import labels
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.fitting import bin_boundaries, rounded
from mirrorspark.data_pipelines.features.kinds import Feature, TargetEncoding
from mirrorspark.data_pipelines.features.raw_columns import numeric_values, plain_column, raw_column
from mirrorspark.data_pipelines.features.transform import Encoded, Encoder, token_ids

FOLDS = 8
"""Parts of the training rows: a row's mean is that of the other parts."""

# As many values as the quantiles of other numbers are found from.
_SAMPLED_MEANS = 20_000

_SUMS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("fold", pa.int8()),
        ("id", pa.int64()),
        ("rows", pa.int64()),
        ("weight", pa.float64()),
        ("label", pa.float64()),
    ]
)
_NUMBERS = ("rows", "weight", "label")


def folds_of(first: int, rows: int) -> npt.NDArray[np.int64]:
    """Return the fold of each of some rows, given the place of the first.

    Places count from the number of the shard on, so that the folds of small shards differ.
    """
    return np.arange(first, first + rows) % FOLDS


class TargetSums:
    """Sums over training rows by fold and id, for each encoding by the label's mean.

    Attributes:
        of: Per encoding, float64 ``[3, FOLDS, ids]``: rows, their weight, and the weighted sum of the label.
    """

    def __init__(self, fitted: FittedFeatures) -> None:
        self._fitted = fitted
        self._features = fitted.spec.target_encodings
        self.of = {each.name: np.zeros((3, FOLDS, fitted.id_count(each))) for each in self._features}

    def add(self, rows: pa.RecordBatch, first: int) -> None:
        """Add rows, of which the first has the place ``first`` (:func:`folds_of`)."""
        label, spec, folds = labels.encode_label(rows, self._fitted), self._fitted.spec, folds_of(first, rows.num_rows)
        assert isinstance(label, np.ndarray)  # noqa: S101 - the spec has checked the label's kind
        weight = np.ones(rows.num_rows)
        if spec.weight is not None:  # Wrong ones are refused when the rows are encoded.
            weight = np.nan_to_num(numeric_values(plain_column(rows, spec.weight)))
        numbers = np.ones(rows.num_rows), weight, weight * label
        for feature in self._features:
            sums, ids = self.of[feature.name], token_ids(self._fitted, feature, raw_column(rows, feature))
            places = folds * sums.shape[2] + ids
            for total, values in zip(sums, numbers, strict=True):
                np.add.at(total.reshape(-1), places, values)

    def to_bytes(self) -> pa.Buffer:
        """Return the sums that are not empty as an Arrow file."""
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, _SUMS_SCHEMA) as writer:
            for name, sums in self.of.items():
                folds, ids = np.nonzero(sums[0])
                columns = dict(zip(_NUMBERS, sums[:, folds, ids], strict=True))
                named = {"name": [name] * len(ids), "fold": folds.astype(np.int8), "id": ids, **columns}
                named["rows"] = columns["rows"].astype(np.int64)
                writer.write_table(pa.table(named, schema=_SUMS_SCHEMA))
        return content.getvalue()

    def merge(self, content: bytes) -> None:
        """Add the sums that :meth:`to_bytes` returned."""
        reader = pa.ipc.open_file(content)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            if not batch.num_rows:
                continue
            folds, ids = (batch[name].to_numpy() for name in ("fold", "id"))
            self.of[batch["name"][0].as_py()][:, folds, ids] += [batch[name].to_numpy() for name in _NUMBERS]


@dataclass(frozen=True)
class HeldOutMeans:
    """Means of the label for training rows.

    Attributes:
        of: Per encoding, float64 ``[FOLDS, ids]``: the mean of each group over all folds but one.
    """

    of: Mapping[str, npt.NDArray[np.float64]]

    def to_bytes(self) -> bytes:
        """Return the means as a file of NumPy."""
        content = io.BytesIO()
        np.savez(content, *self.of.values())  # By place, as a name may have any characters.
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, fitted: FittedFeatures) -> HeldOutMeans:
        """Return the means that :meth:`to_bytes` returned."""
        with np.load(io.BytesIO(content)) as file:
            return cls(dict(zip((each.name for each in fitted.spec.target_encodings), file.values(), strict=True)))


def with_target_means(fitted: FittedFeatures, sums: TargetSums) -> tuple[FittedFeatures, HeldOutMeans]:
    """Return the features with the means of all training rows, and the means for the training rows themselves."""
    means, held_out, statistics, quantiles = {}, {}, {}, {}
    for feature in fitted.spec.target_encodings:
        rows, weight, label = sums.of[feature.name]
        is_binary = fitted.spec.label.form == "binary"
        # One for all folds: that of the others would differ from fold to fold, and by the labels of the fold.
        prior = _prior(float(label.sum()), float(weight.sum()), is_binary=is_binary)
        means[feature.name] = pa.array(_smoothed(feature, weight.sum(0), label.sum(0), prior, is_binary=is_binary))
        weight_left, label_left = (total.sum(0) - total for total in (weight, label))
        held_out[feature.name] = _smoothed(feature, weight_left, label_left, prior, is_binary=is_binary)
        statistics[feature.name] = _statistics(held_out[feature.name], rows)
        quantiles[feature.name] = bin_boundaries(_sampled(held_out[feature.name], rows))
    fitted = replace(
        fitted,
        target_means=means,
        statistics={**fitted.statistics, **statistics},
        quantiles={**fitted.quantiles, **quantiles},
    )
    return fitted, HeldOutMeans(held_out)


def _prior(label: float, weight: float, *, is_binary: bool) -> float:
    """Return the mean of all rows; of a binary label with half a row more of either kind, so that it has log-odds."""
    if is_binary:
        return (label + 0.5) / (weight + 1)
    return label / weight if weight else 0.0


def _smoothed(
    feature: TargetEncoding,
    weight: npt.NDArray[np.float64],
    label: npt.NDArray[np.float64],
    prior: float,
    *,
    is_binary: bool,
) -> npt.NDArray[np.float64]:
    """Return the means of groups drawn towards that of all rows; of a binary label as log-odds."""
    means = (label + feature.smoothing * prior) / (weight + feature.smoothing)
    return _rounded(np.log(means / (1 - means)) if is_binary else means)


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values without their last digits, which depend on the batches in which rows were summed."""
    size = np.abs(values)
    scale = 10.0 ** (9 - np.floor(np.log10(np.where(size > 0, size, 1.0))))
    return np.round(values * scale) / scale


def _statistics(means: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> NumericStatistics:
    present, count = means[rows > 0], float(rows.sum())
    mean = float((means * rows).sum() / count)
    deviation = float(np.sqrt((rows * (means - mean) ** 2).sum() / count))
    return NumericStatistics(
        rounded(mean), rounded(deviation), rounded(float(present.min())), rounded(float(present.max())), int(count)
    )


def _sampled(means: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of rows in equal distances in the order of their means."""
    order = np.argsort(means, axis=None, kind="stable")
    ends = np.cumsum(rows.ravel()[order])
    places = np.arange(min(_SAMPLED_MEANS, int(ends[-1]))) * ends[-1] // min(_SAMPLED_MEANS, int(ends[-1]))
    return means.ravel()[order][np.searchsorted(ends, places, side="right")]


class TrainingEncoder(Encoder):
    """Encoder of the training rows of one staged file, in their order.

    Args:
        fitted: The fitted features.
        means: The means without each fold.
        first: Place of the first row (:func:`folds_of`).
    """

    def __init__(self, fitted: FittedFeatures, means: HeldOutMeans, first: int) -> None:
        super().__init__(fitted)
        self._inputs = {
            of.name: fitted.standardised_means(of, means.of[of.name]) for of in fitted.spec.target_encodings
        }
        self._rows = first

    def encode(self, table: pa.Table | pa.RecordBatch, features: Iterable[Feature] | None = None) -> dict[str, Encoded]:
        """Return the inputs as :meth:`Encoder.encode` does, with means that leave each row's own fold out."""
        features = tuple(self.fitted.spec.features if features is None else features)
        encoded = super().encode(table, [each for each in features if not isinstance(each, TargetEncoding)])
        folds = folds_of(self._rows, table.num_rows)
        for feature in features:
            if isinstance(feature, TargetEncoding):
                ids = token_ids(self.fitted, feature, raw_column(table, feature))
                encoded[feature.name] = self._inputs[feature.name][folds, ids]
        self._rows += table.num_rows
        return {feature.name: encoded[feature.name] for feature in features}
