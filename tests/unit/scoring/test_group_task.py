"""S18: a task scores every row by the model of its group, and gives the rows back in the order that they came in."""

import datetime
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.parquet_rows import BATCH_ROWS
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading import loaded as loaded_model
from mirrorspark.scoring.model.loading.cache import PROCESS_CACHE
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.output.bad_rows import BadRowError
from mirrorspark.scoring.output.forms import Long, Wide
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer, ScoringOptions, ShippedModel
from mirrorspark.scoring.task.counts import Counters, ScoringCounts
from mirrorspark.scoring.task.group_task import GroupTask, Unknown
from tests.unit.scoring.exported_models import export_baskets

# North's model doubles x, south's takes the opposite of y, and reads no x.
DOUBLED, OPPOSITE = {"coefficients": {"x": 2.0}}, {"coefficients": {"y": -1.0}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("linear")
    return {"north": package_model(DOUBLED, folder / "north"), "south": package_model(OPPOSITE, folder / "south")}


class Told:
    """Keeps the reports of a task."""

    def __init__(self) -> None:
        self.counts: list[ScoringCounts] = []

    def add(self, counts: ScoringCounts) -> None:
        self.counts.append(counts)


def task_of(
    models: Mapping[Any, Path], *, unknown: Unknown = "fail", told: Told | None = None, **options: Any
) -> GroupTask:
    asked = ScoringOptions(**options)
    pinned = [resolve(folder) for folder in models.values()]
    return GroupTask(
        group="region",
        keys=("region", "id"),
        scorers=tuple(
            Scorer(ShippedModel(one.digest, one.label, str(one.path), None), asked, cast(Counters | None, told))
            for one in pinned
        ),
        routes={value: place for place, value in enumerate(models)},
        results=asked.schema(ModelDirectory.open(pinned[0].path)),
        unknown=unknown,
    )


def rows_of(regions: list[Any], type_: pa.DataType | None = None) -> pa.RecordBatch:
    numbers = pa.array([float(number) for number in range(len(regions))])
    columns = {"region": pa.array(regions, type_ or pa.string()), "id": pa.array(range(len(regions))), "x": numbers}
    return pa.record_batch({**columns, "y": numbers})


def scored_by(task: GroupTask, *batches: pa.RecordBatch) -> list[dict[str, Any]]:
    return [row for part in task(batches) for row in part.to_pylist()]


@given(
    regions=st.lists(st.sampled_from(["north", "south", "east", None]), min_size=1, max_size=40),
    is_sorted=st.booleans(),
    part_rows=st.integers(1, 50),
)
def test_every_row_has_its_own_model_s_score_in_its_place(
    models: dict[str, Path], regions: list[str | None], is_sorted: bool, part_rows: int
) -> None:
    """The order of groups and the rows scored at once do not matter; a score here takes eight bytes."""
    if is_sorted:
        regions = sorted(regions, key=str)
    versions = {region: resolve(folder).label for region, folder in models.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model, "PART_BYTES", 8 * part_rows)
        found = scored_by(task_of(models, unknown="null", bad_rows="mark"), rows_of(regions))
    assert [(row["region"], row["id"]) for row in found] == [(region, row) for row, region in enumerate(regions)]
    for row in found:
        number, region = row["id"], row["region"]
        assert row["score"] == {"north": 2.0 * number, "south": -1.0 * number}.get(region)
        assert row["error"] == (None if region in models else f"no model is given for region={region!r}")
        assert row["model_version"] == versions.get(region)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([True, False], pa.bool_()),
        ([7, -3], pa.int8()),
        ([2**40, 0], pa.int64()),
        ([datetime.date(2024, 2, 29), datetime.date(1999, 1, 1)], pa.date32()),
        (["ü", ""], pa.large_string()),
    ],
)
def test_groups_are_told_by_values_of_any_type(models: dict[str, Path], values: list[Any], type_: pa.DataType) -> None:
    task = task_of(dict(zip(values, models.values(), strict=True)), unknown="null")
    found = scored_by(task, rows_of([values[0], values[1], None, values[0]], type_))
    assert [row["score"] for row in found] == [0.0, -1.0, None, 6.0]


@pytest.mark.parametrize(("region", "name"), [("east", "'east'"), (None, "None")])
@pytest.mark.parametrize("bad_rows", ["fail", "mark"])
def test_a_row_whose_group_has_no_model_is_named(
    models: dict[str, Path], region: str | None, name: str, bad_rows: str
) -> None:
    """Marking is for rows that a model cannot score: a forgotten model is not to become a column of nulls."""
    message = rf"the row region={name}, id=2 cannot be scored: no model is given for region={name}; give a model for it"
    with pytest.raises(BadRowError, match=message):
        scored_by(task_of(models, bad_rows=bad_rows), rows_of(["south", "north", region, "moon"]))


def test_a_task_reports_its_counters_once_for_all_its_models(models: dict[str, Path]) -> None:
    told = Told()
    found = scored_by(task_of(models, unknown="null", told=told), rows_of(["south", "north", "moon", "south"]))
    assert [row["score"] for row in found] == [0.0, 2.0, None, -3.0]
    (counts,) = told.counts
    assert (counts.rows, counts.bad_rows, counts.calls) == (4, 1, 2)
    scored_by(task_of(models, told=told))
    assert len(told.counts) == 1  # an empty partition reports nothing


@pytest.mark.parametrize(("capacity_bytes", "loads"), [pytest.param(1, 3, marks=pytest.mark.full), (2**30, 2)])
def test_a_task_holds_no_model_that_the_process_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity_bytes: int, loads: int
) -> None:
    """S1, S8: the cache bounds what models take, those of one task too. No batch here is so small that it waits."""
    factors = {"north": 10.0 + loads, "south": 20.0 + loads}
    models = {
        region: package_model({"coefficients": {"x": factor}}, tmp_path / region) for region, factor in factors.items()
    }
    monkeypatch.setattr(PROCESS_CACHE, "_capacity_bytes", capacity_bytes)
    told = Told()
    batches = [rows_of([region] * BATCH_ROWS) for region in ("north", "south", "north")]
    found = scored_by(task_of(models, told=told), *batches)
    assert [row["score"] for row in found[1::BATCH_ROWS]] == [*factors.values(), factors["north"]]
    assert told.counts[0].loads == loads


class CountedRoutes(Mapping[Any, int]):
    """Counts how often it is read from one end to the other."""

    def __init__(self, routes: Mapping[Any, int]) -> None:
        self.routes = routes
        self.reads = 0

    def __getitem__(self, key: Any) -> int:
        return self.routes[key]

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return iter(self.routes)

    def __len__(self) -> int:
        return len(self.routes)


def test_a_task_reads_the_groups_once_however_many_batches_it_has(models: dict[str, Path]) -> None:
    """There may be thousands of them. No batch here is so small that it waits."""
    reads = []
    for batches in (1, 3):
        task = task_of(models)
        routes = CountedRoutes(task.routes)
        found = scored_by(replace(task, routes=routes), *[rows_of(["north"] * BATCH_ROWS)] * batches)
        assert len(found) == batches * BATCH_ROWS
        reads.append(routes.reads)
    assert reads[0] == reads[1]


def test_a_task_carries_little_of_each_of_its_models() -> None:
    """Each gets all of them, and there may be thousands."""
    asked, results = ScoringOptions(), pa.schema([("score", pa.float64())])

    def task_bytes(models: int) -> int:
        shipped = [ShippedModel(f"{number:064}", f"churn/{number}", None, "archive") for number in range(models)]
        scorers = tuple(Scorer(model, asked) for model in shipped)
        routes = {number: number for number in range(models)}
        return len(pickle.dumps(GroupTask("region", ("region",), scorers, routes, results)))

    assert (task_bytes(2_000) - task_bytes(1_000)) / 1_000 < 250


BASKETS = pa.record_batch(
    {
        "region": pa.array(["north", "south", "north", "south", "moon", "north"]),
        "id": pa.array(range(6)),
        "products": pa.array([[3, 1], [5000], [999], [1, 7], [1], []], pa.list_(pa.int64())),
        "counts": pa.array([[1.0, 2.0], [1.0], [0.5], [1.0, 1.0], [1.0], []], pa.list_(pa.float32())),
    }
)
NAMES = {"north": ("tea", "milk", "ü"), "south": ("coffee", "milk")}


@pytest.fixture(scope="module")
def models_of_baskets(baskets_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return models of the labels in ``NAMES``."""
    return {"north": baskets_model, "south": export_baskets(tmp_path_factory.mktemp("south"), tags=NAMES["south"])}


@pytest.mark.parametrize("part_bytes", [1, 2**20])
def test_rows_of_several_labels_come_in_the_order_of_the_table(
    models_of_baskets: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    """S7: of models with different labels, one row that no model may score, and one that its model cannot."""
    monkeypatch.setattr(loaded_model, "PART_BYTES", part_bytes)
    found = scored_by(task_of(models_of_baskets, unknown="null", bad_rows="mark", outputs=Long()), BASKETS)
    expected: list[tuple[int, str | None]] = [(0, name) for name in NAMES["north"]] + [(1, None)]
    expected += [(2, name) for name in NAMES["north"]] + [(3, name) for name in NAMES["south"]]
    expected += [(4, None)] + [(5, name) for name in NAMES["north"]]
    assert [(row["id"], row["label"]) for row in found] == expected
    sound = {region: BASKETS.take(pa.array(rows)) for region, rows in {"north": [0, 2, 5], "south": [3]}.items()}
    scores = {
        region: LoadedModel(models_of_baskets[region]).score(rows)["scores"].ravel() for region, rows in sound.items()
    }
    for region, values in scores.items():
        of_region = [row["score"] for row in found if row["region"] == region and row["label"] is not None]
        assert of_region == pytest.approx(values.tolist(), rel=0, abs=1e-6)
    assert {row["id"]: row["error"].split(";")[0] for row in found if row["error"]} == {
        1: "sparse feature 'basket' has the index 5000",
        4: "no model is given for region='moon'",
    }


def test_equal_labels_in_another_order_are_the_same_columns(tmp_path: Path) -> None:
    """A vocabulary has the most frequent label first, which need not be the same one everywhere."""
    names = {"north": ("tea", "milk"), "south": ("milk", "tea")}
    models = {region: export_baskets(tmp_path / region, tags=tags) for region, tags in names.items()}
    rows = BASKETS.take(pa.array([0, 3, 2]))
    found = list(task_of(models, outputs=Wide())([rows]))
    assert [part.schema.names for part in found] == [["region", "id", "tea", "milk", "model_version"]]
    for place, row in enumerate(found[0].to_pylist()):
        (scores,) = LoadedModel(models[row["region"]]).score(rows.slice(place, 1))["scores"]
        by_name = dict(zip(names[row["region"]], scores.tolist(), strict=True))
        assert {name: row[name] for name in by_name} == pytest.approx(by_name, rel=0, abs=1e-6)
