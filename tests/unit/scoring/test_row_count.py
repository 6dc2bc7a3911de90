"""S7, S18: a task that loses rows fails; the forms here are broken, as ours must not become."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.scoring.batch import BatchTask
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.output.forms import Form, Labels, Shaped
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel
from mirrorspark.scoring.task.batches import RowCountError
from mirrorspark.scoring.task.group_task import GroupTask

Task = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

REGIONS = {"a batch": "nnnn", "groups one after the other": "nnss", "groups in any order": "nsns"}


@dataclass(frozen=True)
class WithoutTheFirst:
    """A form that leaves the first row out."""

    keeps_rows: ClassVar[bool] = True

    def fields(self, outputs: pa.Schema, labels: Labels) -> pa.Schema:
        return outputs

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        rows = len(next(iter(outputs.values())))
        return Shaped({name: column.slice(1) for name, column in outputs.items()}, np.arange(1, rows))


@dataclass(frozen=True)
class Twice(WithoutTheFirst):
    """A form that has every row twice."""

    def shaped(self, outputs: Mapping[str, pa.Array], labels: Labels) -> Shaped:
        places = np.repeat(np.arange(len(next(iter(outputs.values())))), 2)
        return Shaped({name: column.take(pa.array(places)) for name, column in outputs.items()}, places)


@dataclass(frozen=True)
class TwiceAndSaysSo(Twice):
    """The same as a form that does not keep rows, as ``Long`` does not."""

    keeps_rows: ClassVar[bool] = False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_model({"coefficients": {"x": 2.0}}, tmp_path_factory.mktemp("linear") / "model")


def task_of(model: Path, form: Form, way: str) -> Task:
    pinned, asked = resolve(model), ScoringOptions(outputs=form)
    scorer = Scorer(ShippedModel(pinned.digest, pinned.label, str(pinned.path), None), asked)
    if way == "a batch":
        return BatchTask(("region", "id"), scorer)
    results = asked.schema(ModelDirectory.open(pinned.path))
    return GroupTask("region", ("region", "id"), (scorer, scorer), {"n": 0, "s": 1}, results)


def rows_of(way: str) -> pa.RecordBatch:
    regions = list(REGIONS[way])
    columns: dict[str, Any] = {"region": regions, "id": range(4), "x": [0.0, 1.0, 2.0, 3.0]}
    return pa.record_batch({name: pa.array(values) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("way", "form", "given"),
    [
        ("a batch", WithoutTheFirst(), 3),
        ("groups one after the other", WithoutTheFirst(), 2),
        ("groups in any order", WithoutTheFirst(), 2),
        ("a batch", Twice(), 8),
        ("groups one after the other", Twice(), 8),
        ("groups in any order", Twice(), 8),
    ],
)
def test_a_task_that_does_not_give_as_many_rows_as_it_took_fails(model: Path, way: str, form: Form, given: int) -> None:
    message = rf"read 4 rows and returned {given} rows of scores, though the form {type(form).__name__}\(\) has one"
    with pytest.raises(RowCountError, match=message):
        list(task_of(model, form, way)([rows_of(way)]))


@pytest.mark.parametrize("way", REGIONS)
def test_forms_that_do_not_keep_rows_give_as_many_as_they_like(model: Path, way: str) -> None:
    scored = list(task_of(model, TwiceAndSaysSo(), way)([rows_of(way)]))
    assert sum(part.num_rows for part in scored) == 8


@pytest.mark.parametrize("way", REGIONS)
def test_a_task_that_is_stopped_has_not_lost_what_it_did_not_give(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Spark stops a task so for a query with a limit; here after one of several parts."""
    monkeypatch.setattr("mirrorspark.scoring.model.loading.loaded.PART_BYTES", 8)
    scored = task_of(model, Twice(), way)([rows_of(way)])
    next(scored)
    scored.close()  # type: ignore[attr-defined]
