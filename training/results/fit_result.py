"""The result of ``fit``: views of the trained model, and the actions on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines import memory_tables, table_forms
from mirrorspark.data_pipelines.features import FeatureSpec, quoted
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.data_pipelines.spark import collected
from mirrorspark.pages import beside_the_result
from mirrorspark.scoring import ScoringError, score
from mirrorspark.scoring.embedding import ModelEncoders
from mirrorspark.scoring.model.loading import LoadedModel
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.spark_session import local_slots, open_session, require_running
from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.results.evaluation import (
    REPEATS,
    SAMPLE_ROWS,
    Explanation,
    Tested,
    explain,
    paired_differences,
)
from mirrorspark.training.results.report import (
    REPORT_FILE,
    PagePath,
    RunComparison,
    leaderboard_table,
    metrics_table,
    report_facts,
    trained_html,
    trained_text,
    write_report,
)
from mirrorspark.training.results.trained import Trained

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained and registered model, its evaluation, and the table that it was trained on.

    Attributes:
        trained: The training's result.
        dataset: The converted table.
        config: The training's settings.
        table_rows: The table with its split, where its rows were converted.
        spark: The session; None where the training needed none.
        reasons: Why features are as they are, by their names, where an inference says so.
    """

    trained: Trained
    dataset: Dataset
    config: TrainingConfig
    table_rows: DataFrame | MemorySource = field(repr=False)
    spark: SparkSession | None = field(default=None, repr=False)
    reasons: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        trained: Trained,
        dataset: Dataset,
        config: TrainingConfig,
        rows: DataFrame | MemorySource,
        spark: SparkSession | None,
        reasons: Mapping[str, str],
    ) -> "FitResult":
        """Return the result, and save the spec with the run's other files."""
        result = cls(trained, dataset, config, rows, spark, reasons)
        result.spec.save(trained.run_folder / "features.yaml")
        return result

    @cached_property
    def rows(self) -> DataFrame:
        """The table with its split."""
        if not isinstance(self.table_rows, MemorySource):
            return self.table_rows
        return self.table_rows.to_spark(self.spark or open_session(None, local_slots()))

    @property
    def spec(self) -> FeatureSpec:
        """The feature specification; ``spec.save(path)`` writes it, to be edited and given to the next ``fit``."""
        return replace(self.dataset.spec, reasons=self.reasons)

    @property
    def model(self) -> PinnedModel:
        """The registered version, for ``ms.score``, ``ms.register_sql`` and ``ms.Predictor``."""
        return self.trained.model

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by split."""
        return {split: dict(values) for split, values in self.trained.verdict.metrics.items()}

    @property
    def table(self) -> "pd.DataFrame":
        """The metrics as a table: a row per metric, a column per split, and one for the baseline."""
        return metrics_table(self.trained.verdict.metrics, self.trained.verdict.baseline)

    @property
    def leaderboard(self) -> "pd.DataFrame":
        """The models that the registered one was chosen from or compared with, and itself, the best one first.

        ``validation_…`` is the metric that chose, ``test_…`` the same one of the test rows, ``difference`` that of the
        registered model to this one on the test rows, with its 95% interval from ``low`` to ``high``; ``share`` is a
        model's part in a blend, and ``seconds`` the time of its training.
        """
        return leaderboard_table(self.trained.leaderboard)

    @property
    def plots(self) -> "dict[str, Figure]":
        """The plots by name; of a run that had finished before, their images."""
        return dict(self.trained.verdict.figures)

    @property
    def report(self) -> PagePath:
        """The run on one HTML page, which is also in MLflow: a path, and in a notebook a link."""
        return self.trained.report

    def score(self, table: Any, **options: Any) -> Any:
        """Return keys and scores of another table, in the form in which it is given.

        Args:
            table: Anything that ``fit`` takes. It needs the model's columns, but no label. A table in memory need not
                have the keys: its scores have the order of its rows, and the index of pandas.
            options: Options of :func:`scoring.score`; ``keys`` are by default those of the training.

        Returns:
            A pandas or Polars DataFrame or a PyArrow table for one of these, else a DataFrame of Spark. The classes of
            the label are columns.
        """
        if "keys" not in options:
            table, options["keys"] = self._keyed(table)
        return score(table, self.model, spark=self._known_session, **options)

    @property
    def _known_session(self) -> SparkSession | None:
        return self.spark if isinstance(self.table_rows, MemorySource) else self.table_rows.sparkSession

    def _keyed(self, table: Any) -> tuple[Any, list[str]]:
        """Return the table and its keys; a table in memory gets the number of the row, if that was the key."""
        keys, is_in_memory = list(self.spec.keys), memory_tables.is_in_memory(table)
        if not is_in_memory:
            if keys == [memory_tables.ROW_NUMBER] and memory_tables.ROW_NUMBER not in getattr(table, "columns", ()):
                raise ScoringError(
                    "the model's key is the number of the row, which only a table in memory has; name the columns that "
                    "identify a row: result.score(table, keys=…)"
                )
            return table, keys
        names = {*table_forms.column_names(table), *table_forms.index_names(table)}
        if keys == [memory_tables.ROW_NUMBER] and names and memory_tables.ROW_NUMBER not in names:
            return table_forms.numbered(table, memory_tables.ROW_NUMBER), keys
        return table, [key for key in keys if key in names]

    def compare(self, other: "FitResult") -> RunComparison:
        """Return the test metrics of this and another result side by side, and which is better beyond the noise.

        Each row is paired with the same one of the other's test rows, by the keys; the two may have other features.
        ``from`` and ``to`` are the 95% interval of the difference, by a bootstrap of the rows, or of the users of a
        retrieval model. Only where it excludes 0 is one of them ``better``. Metrics without an interval, such as
        ``base_rate``, have no verdict.

        Raises:
            ValueError: The two predict labels of different names or kinds, or were tested on different rows.
        """
        labels = [of.spec.label for of in (self, other)]
        if (labels[0].name, labels[0].kind) != (labels[1].name, labels[1].kind):
            ours, theirs = (f"{label.name} ({label.kind})" for label in labels)
            raise ValueError(f"this model predicts {ours}, the other {theirs}; compare two models of one label")
        names = (_label(self), _label(other))
        if names[0] == names[1]:
            names = (f"{names[0]} (this)", f"{names[1]} (other)")
        tested = [
            Tested(name, of.dataset, of.trained.predictions["test"])
            for name, of in zip(names, (self, other), strict=True)
        ]
        return RunComparison.of(names, (self.table["test"], other.table["test"]), paired_differences(*tested))

    def explain(self, *, rows: int = SAMPLE_ROWS, repeats: int = REPEATS, seed: int = 1) -> Explanation:
        """Measure the importance of the features, and add it to the report.

        The test rows are scored in this process, once per feature and repetition.

        Args:
            rows: The most test rows to use.
            repeats: Number of times that each feature is shuffled.
            seed: Fixes the shuffling.

        Raises:
            ExplanationError: The model retrieves candidates.
        """
        # Texts are embedded once, and not for each shuffling.
        encoders = ModelEncoders(self.model.path, self.dataset.spec.features)
        sample = encoders.embedded(self._test_rows(rows))
        explanation = explain(sample, self.dataset.features, self._predict, repeats=repeats, seed=seed)
        with beside_the_result(f"the explanation on the page {REPORT_FILE}"):
            facts = report_facts(self.trained, self.dataset, self.config, explanation=explanation)
            self._log_report(write_report(facts, self.report))
        return explanation

    def _test_rows(self, most: int) -> pa.Table:
        """Return some test rows, the same each time: those with the smallest hashes of their keys."""
        if isinstance(self.table_rows, MemorySource):
            test = self.table_rows.where(SPLIT_COLUMN, "test")
            smallest = np.argsort(test.hashes(*map(test.column, self.spec.keys)), kind="stable")[:most]
            return test.rows.select(self.spec.columns).take(smallest)
        require_running(self.rows.sparkSession)
        test_rows = self.rows.where(F.col(SPLIT_COLUMN) == "test")
        chosen = test_rows.orderBy(F.xxhash64(*map(quoted, self.spec.keys))).limit(most)
        return collected(chosen.select(*map(quoted, self.spec.columns)))

    @cached_property
    def _loaded(self) -> LoadedModel:
        return LoadedModel(self.model.path)

    def _predict(self, table: pa.Table) -> np.ndarray:
        outputs = self._loaded.score(table)
        return np.asarray(next(iter(outputs.values())))

    def _log_report(self, page: str) -> None:
        from mlflow import MlflowClient

        MlflowClient(self.trained.tracking_uri).log_text(self.trained.run_id, page, REPORT_FILE)

    def __repr__(self) -> str:
        return trained_text(self.trained, self.spec.label.prediction)

    def _repr_html_(self) -> str:
        return trained_html(self.trained, self.spec.label.prediction)


def _label(result: FitResult) -> str:
    return result.trained.version_uri
