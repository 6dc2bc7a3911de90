"""The result of ``fit`` with items: a recommender, and the lists of its users."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import IntegralType

from mirrorspark.data_pipelines import any_table, interactions, table_forms
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.scoring import ScoringError, score
from mirrorspark.scoring.output import VERSION_COLUMN
from mirrorspark.training.results.fit_result import FitResult


@dataclass(frozen=True, repr=False)
class RecommenderResult(FitResult):
    """A trained and registered recommender, its evaluation, and the lists of its users.

    Attributes:
        given: The table of interactions, in Spark.
        columns: Its columns.
        form: The table as it was given, without rows if it was in memory.
    """

    given: DataFrame = field(repr=False)
    columns: interactions.InteractionColumns
    form: Any = field(repr=False)

    @classmethod
    def of_interactions(
        cls,
        result: FitResult,
        given: DataFrame,
        columns: interactions.InteractionColumns,
        form: Any,
    ) -> "RecommenderResult":
        """Return the result of a training as that of a recommender."""
        return cls(result.trained, result.dataset, result.config, result.rows, given, columns, form)

    def recommend(self, users: Any = None, *, k: int | None = None) -> Any:
        """Return the best items for users: ``candidates`` and ``scores``, best first, and ``model_version``.

        Items that a user has met are in no list. A user without interactions gets a list, too.

        Args:
            users: Some users, or a table of interactions to recommend from in place of those of the training, in any
                form that ``fit`` takes; by default all users.
            k: Items per user, up to the setting ``top_k`` of the training, which is the default.

        Returns:
            A table in the form of that of ``fit``: pandas, Polars or PyArrow, ordered by user, or a DataFrame of Spark.

        Raises:
            ScoringError: ``k`` is above ``top_k`` or below 1.
        """
        most = self.config.top_k
        if k is not None and not 1 <= k <= most:
            raise ScoringError(
                f"k is {k}, and the lists of this model have 1 to {most} items; give fit top_k={max(k, 1)}, or use "
                f"ms.recommend(table, result.model, k=…)"
            )
        lists = score(self._histories(users), self.model, keys=self.columns.user, outputs="columns")
        shown = self._shown(lists, k or most)
        if not table_forms.is_table(self.form):
            return shown
        return table_forms.in_form_of(shown.toArrow().sort_by(self.columns.user), self.form)

    def _histories(self, users: Any) -> DataFrame:
        """Return a row per user with the history."""
        spark, user = self.rows.sparkSession, self.columns.user
        is_table = hasattr(users, "sparkSession") or table_forms.is_table(users) or isinstance(users, str)
        if is_table:
            return interactions.user_histories(any_table.read_table(spark, users), self.columns)
        known = interactions.user_histories(self.given, self.columns)
        if users is None:
            return known
        kind = known.schema[user].dataType
        wanted = spark.createDataFrame([(one,) for one in _plain(users)], "user string").select(
            F.col("user").cast(kind).alias(user)
        )
        found = wanted.dropDuplicates().join(known, on=[user], how="left")
        no_items = F.array().cast(known.schema[interactions.SEEN].dataType)
        return found.withColumns(
            {name: F.coalesce(name, no_items) for name in (interactions.SEEN, interactions.HISTORY)}
        )

    def _shown(self, lists: DataFrame, k: int) -> DataFrame:
        """Return the first ``k`` places of each list that have an item, in the type that the items have."""
        kind = self.given.schema[self.columns.item].dataType
        filled = F.least(F.size(F.filter(CANDIDATES, lambda one: one != "")), F.lit(k))
        candidates = F.slice(CANDIDATES, F.lit(1), filled)
        if isinstance(kind, IntegralType):
            candidates = candidates.cast(f"array<{kind.simpleString()}>")
        return lists.select(
            quoted(self.columns.user),
            candidates.alias(CANDIDATES),
            F.slice(SCORES, F.lit(1), filled).alias(SCORES),
            VERSION_COLUMN,
        )


def _plain(users: Iterable[Any]) -> list[str]:
    return [str(one) for one in users]
