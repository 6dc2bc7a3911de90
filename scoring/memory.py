"""Scoring of a table in this process's memory, whose result has the caller's form, order and index.

A few rows are scored in this process: by the model, the calls and the single thread of a task, so that the scores are
those of Spark's tasks, without the seconds of a first job.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines import any_table, memory_tables, table_forms
from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder import exported_with
from mirrorspark.scoring.model.loading import PROCESS_CACHE, check_versions, load_once
from mirrorspark.scoring.plan import ExtraColumns, ScoringPlan, SentColumns
from mirrorspark.scoring.task import Counters, Scorer, ScoringCounts, ShippedModel
from mirrorspark.spark_session import local_slots, open_session, versions

_LOGGER = logging.getLogger(__name__)

MOST_ROWS = 100_000
"""Rows up to which this process scores a table: some seconds. More rows are for Spark's slots."""


def session_to_score(spark: SparkSession | None) -> SparkSession:
    """Return the session that is given, else the active one, else a local one."""
    return spark or open_session(None, local_slots())


def score_in_memory(
    table: Any,
    plan: ScoringPlan,
    by_tasks: Callable[[DataFrame, ScoringPlan], DataFrame],
    *,
    extra_columns: ExtraColumns = "ignore",
    counters: Counters | None = None,
    spark: SparkSession | None = None,
    in_this_process: bool = True,
) -> Any:
    """Return the keys and the scores of every row, in the form of ``table``.

    Args:
        table: A pandas or Polars DataFrame, or a PyArrow table.
        plan: The plan; its keys may be levels of a pandas index, and there may be none.
        by_tasks: Scores a table of Spark by a plan, for rows that this process does not score.
        extra_columns: See :func:`scoring.score`.
        counters: Collects the counters of this process.
        spark: The session for tasks; by default the active one, or a local one.
        in_this_process: Score a small table without tasks.

    Raises:
        TableError: ``table`` is not a table.
        ScoringError: See :func:`scoring.score`.
        ColumnError: See :func:`scoring.score`.
        BadRowError: A row cannot be scored, and bad rows are not marked.
    """
    if not table_forms.is_table(table):
        memory_tables.in_arrow(table)  # raises
    names = table_forms.column_names(table)
    keys = keys_among_columns(plan.keys, names, table_forms.index_names(table))
    plan = replace(plan, keys=keys)
    plan.check_names(names, needs_keys=False)
    plan.check_extra(names, extra_columns)
    kept = table_forms.selected(table, keys)
    rows = _without_types_of_nothing(
        memory_tables.in_arrow(table_forms.selected(table, plan.columns), plan.inputs.columns)
    )
    why = _needs_tasks(rows, plan) if in_this_process else "its result is not that of the model alone"
    if why is None:
        scored, places = _scored_here(_as_sent(rows, plan), plan, counters)
    else:
        _LOGGER.info("Spark scores the table: %s", why)
        scored, places = scored_by_tasks(
            rows, plan.results.names, lambda df, number: by_tasks(df, replace(plan, keys=(number,))), spark
        )
    return table_forms.with_columns(kept, scored, None if plan.options.outputs.keeps_rows else places)


def keys_among_columns(keys: Sequence[str], columns: Sequence[str], index: Sequence[str]) -> tuple[str, ...]:
    """Return the keys that are columns; those of the index stay there.

    Raises:
        ScoringError: A key is in neither.
    """
    missing = [key for key in keys if key not in columns and key not in index]
    if missing:
        hint = raw_columns.meant(missing[0], [name for name in columns if isinstance(name, str)])
        raise ScoringError(f"key columns {missing} are missing; the table has {list(columns)}{hint}")
    return tuple(key for key in keys if key in columns)


def _without_types_of_nothing(rows: pa.Table) -> pa.Table:
    """Return rows whose columns without any value have no type, because pandas has its own for them."""
    for place, column in enumerate(rows.columns):
        if 0 < rows.num_rows == column.null_count:
            rows = rows.set_column(place, rows.column_names[place], pa.nulls(rows.num_rows))
    return rows


def _needs_tasks(rows: pa.Table, plan: ScoringPlan) -> str | None:
    """Return the reason why the rows are scored by Spark; None if this process scores them."""
    if rows.num_rows > MOST_ROWS:
        return f"it has more than {MOST_ROWS:,} rows"
    zoned = [
        field.name
        for field in rows.schema
        if field.name in plan.inputs.columns and "timestamp" in str(field.type) and "tz=" not in str(field.type)
    ]
    if zoned:  # Their moment depends on the time zone of the session.
        return f"the columns {zoned} have times without a zone, which are those of the session's"
    return None


def _as_sent(rows: pa.Table, plan: ScoringPlan) -> pa.Table:
    """Return the rows with the types in which Spark sends them to tasks, after the checks of these."""
    sent = SentColumns.of(versions.from_arrow_schema(rows.schema))
    plan.check_types(sent.schema(plan.inputs.columns))
    return pa.table(
        {name: rows[name].cast(sent.fields[name].type) for name in rows.column_names if name in sent.fields}
    )


def _scored_here(rows: pa.Table, plan: ScoringPlan, counters: Counters | None) -> tuple[pa.Table, np.ndarray]:
    """Return the scores and the row of each."""
    pinned, options = plan.pinned, plan.options
    if options.other_versions == "refuse":
        check_versions(exported_with(pinned.path), pinned.label)
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, str(pinned.path), None), options, counters)
    counts = ScoringCounts()
    counts.pause()
    model = load_once(pinned.path, pinned.digest, threads=1, cache=PROCESS_CACHE)
    counts.begin(loads=0, threads=model.threads)
    scored, places, first = [plan.results.empty_table()], [np.zeros(0, np.int64)], 0
    keys = [key for key in plan.keys if key in rows.column_names]
    for batch in rows.combine_chunks().to_batches():
        for part in model.parts(batch, batch_size=options.batch_size):
            found = scorer.scored_rows(model, part, counts, keys)
            scored.append(pa.Table.from_batches([found.batch.select(plan.results.names)]).cast(plan.results))
            places.append(first + (np.arange(part.num_rows) if found.rows is None else found.rows))
            first += part.num_rows
    scorer.report(counts)
    return pa.concat_tables(scored), np.concatenate(places)


def scored_by_tasks(
    rows: pa.Table,
    results: Sequence[str],
    by_tasks: Callable[[DataFrame, str], DataFrame],
    spark: SparkSession | None,
) -> tuple[pa.Table, np.ndarray]:
    """Return the scores and the row of each, in the order of the rows.

    Args:
        rows: The table.
        results: Names of the columns of scores.
        by_tasks: Scores the table as one of Spark; the column with this name identifies a row.
        spark: The session; by default the active one, or a local one.
    """
    number = memory_tables.ROW_NUMBER
    while number in {*rows.column_names, *results}:
        number += "_"
    numbered = rows.append_column(number, pa.array(np.arange(rows.num_rows)))
    scored = by_tasks(any_table.read_table(session_to_score(spark), numbered), number)
    found = versions.arrow_table(scored).sort_by(number)
    return found.drop_columns([number]), found[number].to_numpy()
