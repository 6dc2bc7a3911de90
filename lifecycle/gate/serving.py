"""A candidate as its callers see it: inputs and outputs, size, and the answers and times of single rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pyspark.sql import DataFrame

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.lifecycle.gate.single_rows import ANSWERS_FILE, ROWS_FILE
from mirrorspark.models.index import CANDIDATES
from mirrorspark.scoring import score
from mirrorspark.scoring.input import ColumnInputs
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel, model_files
from mirrorspark.scoring.parity import ParityReport, parity_check
from mirrorspark.spark_session import session_of, versions
from mirrorspark.training.executor import Tail, child_process

_ROW = "sample_row"
_MODULE = "mirrorspark.lifecycle.gate.single_rows"


class SingleRowsError(ClearError, RuntimeError):
    """Raised when single rows could not be scored; the message has the last line of the process that tried."""


def schema_changes(candidate: ModelDirectory, champion: ModelDirectory) -> tuple[str, ...]:
    """Return in words how the candidate's inputs, outputs and labels differ from the champion's."""
    sides = [_schema(candidate), _schema(champion)]
    words: list[str] = []
    for kind, new in sides[0].items():
        old = sides[1][kind]
        words += [
            f"the candidate has the {kind} {name} ({new[name]}), the champion has not"
            for name in new
            if name not in old
        ]
        words += [f"the candidate lacks the {kind} {name} ({old[name]})" for name in old if name not in new]
        words += [
            f"the {kind} {name} is {new[name]}, and {old[name]} in the champion"
            for name in new
            if name in old and new[name] != old[name]
        ]
    return tuple(words)


def _schema(directory: ModelDirectory) -> Mapping[str, Mapping[str, str]]:
    """Return types by name of inputs and outputs, and labels by output."""
    description = directory.description
    if isinstance(description, ModelDescription):
        types = dict(description.columns or directory.feature_inputs.column_types)
        inputs = {name: types.get(name, "any") for name in directory.inputs.columns}
    elif isinstance(directory.inputs, ColumnInputs):
        inputs = {column.name: column.type for column in directory.inputs.given}
    else:
        inputs = dict.fromkeys(directory.inputs.columns, "any")
    labels = {name: ", ".join(of) for name, of in directory.labels.items()}
    return {"input": inputs, "output": dict(description.outputs), "list of labels of": labels}


def model_bytes(model: PinnedModel) -> int:
    """Return the size of a model's files."""
    return sum(path.stat().st_size for _, path in model_files(model.path))


@dataclass(frozen=True)
class SingleRows:
    """Single rows as a service scores them.

    Attributes:
        p99_ms: 99th percentile of their time in milliseconds.
        parity: Their scores compared with those of the same rows in a table.
    """

    p99_ms: float
    parity: ParityReport


def score_single_rows(
    table: DataFrame, model: PinnedModel, output: str, rows: int, scoring: Mapping[str, Any]
) -> SingleRows:
    """Score some rows of a table one by one, in a process of their own, and as a table on Spark.

    Args:
        table: The table; which of its rows are taken is up to Spark.
        model: The model.
        output: Its column of scores.
        rows: Number of rows.
        scoring: More arguments of :func:`scoring.score`.

    Raises:
        SingleRowsError: The process failed.
    """
    columns = [name for name in ModelDirectory.open(model.path).inputs.columns if name in table.columns]
    sample = versions.arrow_table(table.select(*map(quoted, columns)).limit(rows))
    numbered = sample.append_column(_ROW, pa.array(range(sample.num_rows), pa.int64()))
    given = session_of(table.sparkSession).table_of(numbered)
    of_table = versions.arrow_table(score(given, model, keys=_ROW, outputs="columns", **scoring))
    with tempfile.TemporaryDirectory(prefix="mirrorspark-rows-") as folder:
        with ipc.new_file(str(Path(folder) / ROWS_FILE), sample.schema) as file:
            file.write_table(sample)
        plan = {
            "model": {name: str(getattr(model, name)) for name in ("uri", "name", "version", "digest", "path")},
            "folder": folder,
            "other_versions": scoring.get("other_versions", "refuse"),
            "trust": scoring.get("trust", False),
        }
        p99_ms = float(_in_a_process(plan)["p99_ms"])
        with ipc.open_file(str(Path(folder) / ANSWERS_FILE)) as file:
            answers = file.read_all()
    answers = answers.append_column(_ROW, pa.array(range(answers.num_rows), pa.int64()))
    ids = CANDIDATES if CANDIDATES in answers.column_names and output != CANDIDATES else None
    report = parity_check(lambda _: of_table, lambda _: answers, None, keys=_ROW, output=output, ids=ids)
    return SingleRows(p99_ms, report)


def _in_a_process(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of a process that owns the model's library, which the driver never loads."""
    process = child_process.start(_MODULE, child_process.tensorflow_environment(1, verbose=False))
    tail = Tail(process.stderr, echo=False)
    try:
        child_process.send(process, json.dumps(plan))
        answer = child_process.answer(process, lambda doing, done, total: None)
        if status := process.wait():
            raise SingleRowsError(f"single rows cannot be scored: {child_process.why_it_failed(status, tail)}")
        return answer
    finally:
        child_process.end(process, tail)
