"""The result of ``fit`` on interactions: a recommender, and the lists of its users."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import IntegralType, StructField, StructType

from mirrorspark.data_pipelines import any_table, interactions, table_forms
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.scoring import ScoringError, score
from mirrorspark.scoring.output import VERSION_COLUMN
from mirrorspark.spark_session import versions
from mirrorspark.storage import Location
from mirrorspark.training.results.fit_result import FitResult


@dataclass(frozen=True, repr=False)
class RecommenderResult(FitResult):
    """A trained and registered recommender, its evaluation, and the lists of its users.

    Attributes:
        given: The table of interactions, in Spark.
        columns: Its columns.
        form: The table as it was given, without rows if it was in memory.
    """

    given: DataFrame = field(repr=False, kw_only=True)
    columns: interactions.InteractionColumns = field(kw_only=True)
    form: Any = field(repr=False, kw_only=True)

    @classmethod
    def of_interactions(
        cls,
        result: FitResult,
        given: DataFrame,
        columns: interactions.InteractionColumns,
        form: Any,
    ) -> "RecommenderResult":
        """Return the result of a training as that of a recommender."""
        return cls(
            *(result.trained, result.dataset, result.config, result.table_rows, result.spark),
            given=given,
            columns=columns,
            form=form,
        )

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
            ScoringError: ``k`` is above ``top_k`` or below 1, or ``users`` are neither users nor interactions.
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
        return table_forms.in_form_of(versions.arrow_table(shown).sort_by(self.columns.user), self.form)

    def score(self, table: Any, **options: Any) -> Any:
        """Return the lists of rows with the columns of the training; see :meth:`FitResult.score`.

        Raises:
            ScoringError: The rows have no histories.
        """
        names = table_forms.column_names(table) if table_forms.is_table(table) else getattr(table, "columns", None)
        if names is not None and interactions.HISTORY not in names:
            raise ScoringError(
                f"score takes rows with the items that a user met before, in a column '{interactions.HISTORY}', and "
                f"the table has {list(names)}; result.recommend(table) makes lists from interactions"
            )
        return super().score(table, **options)

    def _histories(self, users: Any) -> DataFrame:
        """Return a row per user with the history."""
        spark, user = self.rows.sparkSession, self.columns.user
        if hasattr(users, "sparkSession") or table_forms.is_table(users) or isinstance(users, Location):
            table = any_table.read_table(spark, users)
            used = (*self.columns.kept[:2], *([self.columns.time] if self.columns.time else ()))
            if missing := [name for name in used if name not in table.columns]:
                raise ScoringError(
                    f"the interactions have no columns {missing}, only {table.columns}; the training read {used}"
                )
            return interactions.user_histories(table, self.columns)
        known = interactions.user_histories(self.given, self.columns)
        if users is None:
            return known
        found = self._wanted(users, known.schema[user]).join(known, on=[user], how="left")
        no_items = F.array().cast(known.schema[interactions.SEEN].dataType)
        lists = (interactions.SEEN, interactions.HISTORY)
        return found.withColumns({name: F.coalesce(name, no_items) for name in lists})

    def _wanted(self, users: Any, column: StructField) -> DataFrame:
        """Return some users, each once."""
        kind: type = int if isinstance(column.dataType, IntegralType) else str
        ids = [] if isinstance(users, kind) or not isinstance(users, Iterable) else [*users]
        plain = [one.item() if isinstance(one, np.generic) else one for one in ids]
        if not plain or not all(isinstance(one, kind) for one in plain):
            raise ScoringError(
                f"users is {users!r}; give a list of {'whole numbers' if kind is int else 'texts'}, as in the column "
                f"'{column.name}' of the training, or a table of interactions"
            )
        rows = [(one,) for one in dict.fromkeys(plain)]
        return self.rows.sparkSession.createDataFrame(rows, StructType([column]))

    def _shown(self, lists: DataFrame, k: int) -> DataFrame:
        """Return the first ``k`` places of each list that have an item, in the type that the items have."""
        kind = interactions.item_type(self.given, self.columns.item)
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
