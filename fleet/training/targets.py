"""Measurement of the targets by split in one pass over the rows, and the check that models can learn from them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from scipy.special import xlogy  # type: ignore[import-untyped]

from mirrorspark.data_pipelines import quoted
from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN
from mirrorspark.data_pipelines.spark import portable
from mirrorspark.fleet.checks import NamedModels

_TRAIN, _VALIDATION, _ = SPLITS


@dataclass(frozen=True)
class TargetSums:
    """Sums over the labels of each target, float64 ``[targets]``.

    Attributes:
        rows: Rows with a label of any target.
        labels: Rows with a label of this target.
        total: Sum of the finite labels.
        squares: Sum of their squares.
        logs: Sum of ``y log(y)`` over finite labels ``y`` above 0.
        least: Smallest label, inf for none.
        most: Largest label, -inf for none.
        others: Labels other than 0 and 1.
    """

    rows: np.ndarray
    labels: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    logs: np.ndarray
    least: np.ndarray
    most: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "TargetSums":
        """Measure float64 ``[rows, targets]``, NaN where a label is missing."""
        is_label = ~np.isnan(values)
        finite = np.where(np.isfinite(values), values, 0.0)
        return cls(
            np.full(values.shape[1], np.count_nonzero(is_label.any(axis=1)), np.float64),
            is_label.sum(axis=0, dtype=np.float64),
            finite.sum(axis=0),
            (finite**2).sum(axis=0),
            xlogy(np.maximum(finite, 0), np.maximum(finite, 0)).sum(axis=0),
            np.where(is_label, values, np.inf).min(axis=0, initial=np.inf),
            np.where(is_label, values, -np.inf).max(axis=0, initial=-np.inf),
            (is_label & (values != 0) & (values != 1)).sum(axis=0, dtype=np.float64),
        )

    def merged(self, other: "TargetSums") -> "TargetSums":
        """Return the sums over the rows of both."""
        joined = {"least": np.minimum, "most": np.maximum}
        return TargetSums(
            *(
                joined.get(field.name, np.add)(getattr(self, field.name), getattr(other, field.name))
                for field in fields(self)
            )
        )

    def at(self, places: np.ndarray) -> "TargetSums":
        """Return the sums of some targets."""
        return TargetSums(*(values[places] for values in astuple(self)))


@dataclass(frozen=True)
class TargetsTask:
    """Body of a task that measures the targets of its rows by split."""

    targets: int

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row per split of ``batches``, whose columns are the split and the targets."""
        found: dict[str, TargetSums] = {}
        for batch in batches:
            values = np.empty((batch.num_rows, self.targets), order="F")
            for place, column in enumerate(batch.columns[1:]):
                values[:, place] = column.to_numpy(zero_copy_only=False)  # NaN for null
            for split in batch.column(0).unique().drop_null().to_pylist():
                is_own = pc.equal(batch.column(0), split).fill_null(False).to_numpy(zero_copy_only=False)
                of_split = TargetSums.of(values[is_own])
                found[split] = found[split].merged(of_split) if split in found else of_split
        columns = [np.concatenate(astuple(sums)) for sums in found.values()]
        yield pa.RecordBatch.from_arrays(
            [pa.array(list(found), pa.string()), pa.array(columns, pa.list_(pa.float64()))], names=["split", "sums"]
        )


def labels_of(targets: Sequence[str]) -> Column:
    """Return the labels of a row as an array of doubles, null where the target is null or NaN."""
    # One text: an expression per target is some ten calls into the JVM, seconds for 200 targets.
    labels = (f"nullif(cast({quoted(name)} AS double), double('NaN'))" for name in targets)
    return F.expr(f"array({', '.join(labels)})")


def measure_targets(rows: DataFrame, targets: Sequence[str]) -> dict[str, TargetSums]:
    """Return the sums of each split.

    Args:
        rows: The table with its split.
        targets: Columns of numbers or booleans.
    """
    none = TargetSums.of(np.empty((0, len(targets))))
    found = dict.fromkeys(SPLITS, none)
    task = portable(TargetsTask(len(targets)))
    # Separate columns: compiling an array of them would take Spark about the time of all the rest.
    numbers = (f"cast({quoted(name)} AS double) AS target_{number}" for number, name in enumerate(targets))
    measured = rows.selectExpr(f"cast({quoted(SPLIT_COLUMN)} AS string) AS split", *numbers)
    for part in measured.mapInArrow(task, "split string, sums array<double>").collect():
        sums = TargetSums(*np.array(part.sums).reshape(len(fields(TargetSums)), -1))
        found[part.split] = found.get(part.split, none).merged(sums)
    return found


def check_targets(sums: Mapping[str, TargetSums], links: Sequence[str], names: Sequence[str]) -> None:
    """Check that every model can learn from its labels.

    Args:
        sums: By split, of the targets of the models in their order.
        links: Link of each model.
        names: Name of each model.

    Raises:
        FleetError: Some cannot; the message gives one reason, and names them.
    """
    models, train = NamedModels(list(names)), sums[_TRAIN]
    every = train
    for split in SPLITS[1:]:
        every = every.merged(sums[split])
    is_logit, is_log = (np.array([link == kind for link in links]) for kind in ("logit", "log"))
    give = "give such rows a label, or leave the model out"
    models.refuse(every.labels == 0, "a target that is null in every row", give)
    is_infinite = np.isinf(every.least) | np.isinf(every.most)
    models.refuse(is_infinite, "an infinite label", "make it null, or a finite number")
    unusual = "labels other than 0 and 1"
    models.refuse(is_logit & (every.others > 0), unusual, "use 0, 1 and null, or the link identity or log")
    models.refuse(is_log & (every.least < 0), "negative labels with the link log", "counts and amounts are 0 or more")
    models.refuse(train.labels == 0, "no label in any training row", give)
    models.refuse(sums[_VALIDATION].labels == 0, "no label in any validation row", give)
    problem = "a target with one class only in the training rows"
    models.refuse(is_logit & (train.least == train.most), problem, "a model needs rows of both classes")
    problem = "a target with the same number in all training rows"
    models.refuse(~is_logit & (train.least == train.most), problem, "there is nothing to learn")
