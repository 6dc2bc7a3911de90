"""Drift against the snapshot of a training: planted shifts are found, and without any it is quiet (L2)."""

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mlflow.utils.validation import _validate_metric
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from mirrorspark.data_pipelines.quality.profile import Bins
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind
from mirrorspark.lifecycle.gate.facts import MetricEstimate
from mirrorspark.lifecycle.watching.counting import CountTask, counts_by_window
from mirrorspark.lifecycle.watching.drift import ColumnCounts, ColumnDrift, DriftLimits, drift_of
from mirrorspark.lifecycle.watching.live import LiveWindow
from mirrorspark.lifecycle.watching.page import metrics_of, watch_page
from mirrorspark.lifecycle.watching.snapshot import Snapshot, SnapshotError, WatchedColumn
from mirrorspark.lifecycle.watching.watcher import WindowDrift

RANDOM = np.random.default_rng(8)
EDGES = tuple(np.quantile(RANDOM.standard_normal(20_000), np.arange(1, 10) / 10).tolist())
CITIES = ("Oslo", "Rome", "Bern")
NUMBER = WatchedColumn("x", ColumnKind.NUMBER, Bins(edges=EDGES), (1_900,) * 10 + (1_000,), missing_share=0.05)
TOKEN = WatchedColumn("city", ColumnKind.TOKEN, Bins(tokens=CITIES), (5_000, 3_000, 1_900, 100, 0), CITIES, 0.01)
FEATURES = {
    "features": {"x": {"kind": "numeric"}, "city": {"kind": "categorical"}},
    "label": {"name": "y", "kind": "binary"},
    "keys": ["id"],
}
SNAPSHOT = Snapshot((NUMBER, TOKEN), FEATURES, "2026-01-01T00:00:00+00:00")
START = datetime(2026, 1, 5, tzinfo=UTC)


def counted(numbers: Any, cities: list[str | None], start: datetime | None = START) -> dict[str, ColumnCounts]:
    """Return the counts of a task, as the driver merges them."""
    table = pa.table(
        {
            "x": pa.array(numbers, pa.float64()),
            "city": pa.array(cities, pa.string()),
            "__mirrorspark_start": pa.array([start] * len(cities), pa.timestamp("us", "UTC")),
            "__mirrorspark_time": pa.array([start] * len(cities), pa.timestamp("us", "UTC")),
        }
    )
    task = CountTask(tuple(enumerate(SNAPSHOT.columns)), {one.name: one for one in SNAPSHOT.spec.features})
    rows = [row for batch in task(table.to_batches(max_chunksize=700)) for row in batch.to_pylist()]
    (found,) = counts_by_window([{**row, "start": row["time"]} for row in rows], SNAPSHOT).values()
    return found


def week(rows: int = 2_000, *, shift: float = 0.0, missing: float = 0.05, new: float = 0.01) -> list[ColumnDrift]:
    numbers = RANDOM.standard_normal(rows) + shift
    numbers[RANDOM.random(rows) < missing] = np.nan
    shares = np.array([0.5, 0.3, 0.19, 0.01]) * (1 - new) / 0.99
    shares[3] = new
    cities = RANDOM.choice([*CITIES, "Linz"], rows, p=shares).tolist()
    return list(drift_of(SNAPSHOT, counted(numbers, cities), DriftLimits()))


def test_two_hundred_weeks_without_a_shift_are_quiet() -> None:
    alarms = [problem for rows in (150, 2_000) for _ in range(100) for one in week(rows) for problem in one.problems]

    assert len(alarms) <= 2, alarms  # 1% of the weeks


@pytest.mark.parametrize(
    ("planted", "column", "problem"),
    [
        ({"shift": 0.7}, "x", "index 0."),
        ({"missing": 0.3}, "x", "% missing, 5.0% in the training"),
        ({"new": 0.12}, "city", "% of the tokens are unknown, 1.0% in the training"),
    ],
)
def test_a_planted_shift_is_found_in_its_column_alone(planted: dict[str, float], column: str, problem: str) -> None:
    for _ in range(20):
        found = {one.column: one for one in week(**planted)}
        assert any(problem in words for words in found.pop(column).problems), found
        assert [one.problems for one in found.values()] == [()]


def test_measures_are_those_of_scipy() -> None:
    before = RANDOM.standard_normal(5_000)
    now = RANDOM.standard_normal(3_000) * 1.5 + 0.2
    places = {
        name: np.bincount(np.searchsorted(EDGES, of, "left"), minlength=10)
        for name, of in {"now": now, "before": before}.items()
    }
    snapshot = replace(SNAPSHOT, columns=(replace(NUMBER, counts=(*places["before"].tolist(), 0)),))

    (found,) = drift_of(snapshot, {"x": ColumnCounts((*places["now"].tolist(), 0), 3_000)}, DriftLimits())

    assert found.js == pytest.approx(jensenshannon(places["now"], places["before"], base=2) ** 2, abs=1e-12)
    # At the edges of bins it is a lower bound, near the exact distance.
    exact = ks_2samp(now, before).statistic
    assert exact - 0.03 < found.ks <= exact
    p, q = (places[name] / places[name].sum() for name in ("now", "before"))
    assert found.psi == pytest.approx(float(np.sum((p - q) * np.log(p / q))), rel=0.01)


def test_every_limit_can_be_an_alarm_and_a_small_window_is_not_judged() -> None:
    numbers = RANDOM.standard_normal(2_000) + 1
    counts = counted(numbers, ["Oslo"] * 2_000)
    limits = DriftLimits(psi=0.1, ks=0.1, js=0.01)

    number, city = drift_of(SNAPSHOT, counts, limits)

    assert [words.split()[0] for words in number.problems] == ["index", "distance", "divergence"]
    assert math.isnan(city.ks)
    assert [words.split()[0] for words in city.problems] == ["index", "divergence"]
    assert not any(one.problems for one in drift_of(SNAPSHOT, counts, replace(limits, min_rows=2_001)))


def test_counts_of_windows_do_not_depend_on_batches() -> None:
    weeks = [START, START + timedelta(days=7)]
    starts = [weeks[number % 2] for number in range(1_000)]
    table = pa.table(
        {
            "city": pa.array([CITIES[number % 3] for number in range(999)] + [None]),
            "__mirrorspark_start": pa.array(starts, pa.timestamp("us", "UTC")),
            "__mirrorspark_time": pa.array(
                [one + timedelta(seconds=place) for place, one in enumerate(starts)], pa.timestamp("us", "UTC")
            ),
        }
    )
    task = CountTask(((1, TOKEN),), {})
    sums: list[Counter[Any]] = []
    for size in (1_000, 37):
        rows = [row for batch in task(table.to_batches(max_chunksize=size)) for row in batch.to_pylist()]
        assert {row["time"] for row in rows} == {weeks[0] + timedelta(seconds=998), weeks[1] + timedelta(seconds=999)}
        counts: Counter[Any] = Counter()
        for row in rows:
            if row["bin"] >= 0:
                counts[row["time"], row["bin"]] += row["rows"]
        sums.append(counts)
    assert sums[0] == sums[1]
    assert sum(sums[0].values()) == 1_000


def test_hours_have_steps_of_their_own_and_what_is_logged_again_is_the_latest() -> None:
    hours = [START, START + timedelta(hours=1)]
    live = [
        LiveWindow(hour, 10, 10, {"auc": MetricEstimate(0.7), "calibration": MetricEstimate(math.nan)})
        for hour in hours
    ]
    windows = [WindowDrift(hour, tuple(week(200))) for hour in hours]

    once, again = (metrics_of(windows, live, START + timedelta(days=days)) for days in (1, 2))

    assert {metric.key for metric in once} == {"drift.alarms", "drift.psi.x", "drift.psi.city", "live.auc"}
    assert {metric.step for metric in once} == {int(hour.timestamp()) for hour in hours}
    for first, second in zip(once, again, strict=True):
        assert (first.key, first.step) == (second.key, second.step)
        assert first.timestamp < second.timestamp
    page = watch_page(windows, live, title="buyers")
    assert all(text in page for text in ("<td>2026-01-05</td>", "<td>2026-01-05 01:00</td>"))


def test_columns_of_any_name_have_metrics_of_their_own_that_mlflow_takes() -> None:
    (drift, *_) = week(200)
    names = [
        "\u5e74\u9f62",
        "\u6027\u5225",
        "a@b",
        "a#b",
        "a//b",
        "../b",
        "a:b",
        "\U0001f3ac",
        "x" * 300,
        "x" * 301,
        "a.b c/d",
    ]
    live = LiveWindow(START, 10, 10, {f"auc_{name}": MetricEstimate(0.7) for name in names}, ())
    drifts = tuple(replace(drift, column=name) for name in names)
    keys = [metric.key for metric in metrics_of([WindowDrift(START, drifts)], [live], START)]
    assert len(set(keys)) == len(keys) == 1 + 2 * len(names)
    for key in keys:
        _validate_metric(key, 0.5, 1, 1)
    page = watch_page([WindowDrift(START, (replace(drift, column="<b>\u5e74&"),))], [live], title="buyers")
    assert "&lt;b&gt;\u5e74&amp;" in page


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = SNAPSHOT.with_scores([0.1, 0.2, math.nan, *np.linspace(0, 1, 500)])
    known.save(tmp_path / "snapshot.json")

    assert Snapshot.load(tmp_path / "snapshot.json") == known
    assert known.columns[-1].name == "score"
    assert known.columns[-1].counts[-1] == 1
    assert sum(known.columns[-1].counts) == 503
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SnapshotError, match=r"other\.json is not a snapshot of a training"):
        Snapshot.load(tmp_path / "other.json")
