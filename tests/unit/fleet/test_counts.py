"""M15: outputs are counted in bins that can be added, from which quantiles and drift are computed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.fleet.bins import BINS, SIDE, Distribution, bin_edges, grouped
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.counting import counted_outputs, packed_counts, unpacked_counts
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.runs.counts import COUNTS_FILE, counts_file, read_counts
from mirrorspark.fleet.score import FleetCounters
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.fleet.task import FleetCounts
from mirrorspark.storage.paths import StoragePath

ROWS = 3_000
MODELS = ("ranked", "decided", "scored")


def counted(name: str, outputs: tuple[str, ...], values: np.ndarray) -> tuple[Layout, np.ndarray]:
    """Return the layout of three models' outputs for some values, and the counts of these."""
    terms = [(model, "x", slope) for model, slope in zip(MODELS, (1.0, -2.0, 300.0), strict=True)]
    models = {"model": MODELS, "threshold": [None, 0.5, None], "cut_points": [[-1.0, 0.0, 1.0], None, None]}
    fleet = fleet_from_coefficients(pd.DataFrame(terms, columns=["model", "column", "coefficient"]), pa.table(models))
    scorer, counts = FleetScorer(fleet, Layout.of(fleet, name, outputs)), np.zeros((len(MODELS), BINS), np.int32)
    for _ in scorer.batches(pa.RecordBatch.from_pydict({"x": values}), [], counts):
        pass
    return scorer.layout, counts


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    found = np.random.default_rng(3).normal(size=ROWS)
    found[:30] = np.nan
    return found


@pytest.mark.parametrize("name", ["wide", "packed", "long"])
def test_the_finest_output_of_each_model_is_counted_in_every_layout(name: str, values: np.ndarray) -> None:
    layout, counts = counted(name, ("binary", "Rank"), values)
    assert counted_outputs(layout) == ["Rank", "binary", ""]
    ranks = 1 + sum(np.where(np.isnan(values), np.nan, values < cut) for cut in (-1.0, 0.0, 1.0))
    assert counts[0].tolist()[:6] == [0, *(int(np.sum(ranks == rank)) for rank in (1, 2, 3, 4)), 0]
    ones = int(np.sum(-2 * values >= 0.5))
    assert counts[1].tolist()[:3] == [ROWS - 30 - ones, ones, 0]
    assert not counts[2].any()
    layout, counts = counted(name, ("score", "binary", "Rank"), values)
    assert counted_outputs(layout) == ["score"] * 3
    edges = np.concatenate([[-np.inf], bin_edges()[1:-1], [np.inf]]).astype(np.float32)
    for model, slope in enumerate((1.0, -2.0, 300.0)):
        scores = (values * slope)[30:].astype(np.float32)
        # Bins of negative scores have their lower edge beyond, those of positive ones their upper edge.
        mirrored = np.histogram(np.abs(scores[scores < 0]), edges[SIDE + 1 :])[0][::-1]
        positive = np.histogram(scores[scores > 0], edges[SIDE + 1 :])[0]
        assert counts[model][:SIDE].tolist() == mirrored.tolist()
        assert counts[model][SIDE + 1 :].tolist() == positive.tolist()
        assert counts[model].sum() == ROWS - 30


def test_scores_beyond_the_bins_are_in_the_outermost_ones() -> None:
    values = np.array([np.inf, 1e30, -1e30, 1e-9, -1e-9, 0.0, -0.0, np.nan])
    counts = counted("wide", ("score",), values)[1][0]
    assert (counts[0], counts[SIDE], counts[BINS - 1]) == (1, 4, 1)  # an infinite value is missing


def test_files_of_microbatches_add_up_to_the_distribution_of_all_rows(values: np.ndarray, tmp_path: Path) -> None:
    layout, counts = counted("wide", ("score",), values)
    for each in (counts, np.arange(counts.size, dtype=np.int32).reshape(counts.shape) * 1_000_003):
        assert unpacked_counts(packed_counts(each), len(MODELS)).tolist() == each.tolist()
    parts = [counted("wide", ("score",), part)[1] for part in np.array_split(values, 4)]
    for number, some in enumerate((parts[:3], parts[3:])):
        (tmp_path / str(number)).mkdir()
        reports = [{"rows": ROWS // 4, "by_bin": packed_counts(part)} for part in some]
        (tmp_path / str(number) / COUNTS_FILE).write_bytes(counts_file(layout, [*reports, {"rows": 0, "by_bin": ""}]))
    found = read_counts(StoragePath.of(tmp_path / name) for name in ("0", "1", "not there"))
    assert list(found) == list(MODELS)
    assert {(one.output, one.rows, one.nulls) for one in found.values()} == {("score", ROWS, 30)}
    assert [one.counts.tolist() for one in found.values()] == counts.tolist()
    for share in (0.1, 0.5, 0.9):
        exact = float(np.quantile(values[30:] * 300, share, method="inverted_cdf"))
        assert found["scored"].quantile(share) == pytest.approx(exact, rel=1 / 16)


def test_drift_is_measured_in_tenths_of_the_former_scores_and_of_rows_without_an_output() -> None:
    random = np.random.default_rng(4)

    def distribution(values: np.ndarray) -> Distribution:
        return Distribution("score", len(values), counted("wide", ("score",), values)[1][0].astype(np.int64))

    former, same, moved = (distribution(random.normal(at, 1, ROWS)) for at in (0, 0, 1))
    now, last = grouped(same, former)
    assert sum(now) == sum(last) == ROWS
    assert len(last) == 11
    assert min(last[:10]) > 0.05 * ROWS
    index, by_chance = same.drift_from(former) or (1.0, 0.0)
    assert index < by_chance
    index, by_chance = moved.drift_from(former) or (0.0, 1.0)
    assert index > by_chance + 0.5  # of two normal distributions, one standard deviation apart, it is 1
    lost = Distribution("score", 2 * ROWS, former.counts)
    assert (lost.drift_from(former) or (0.0, 0.0))[0] > 0.25
    assert Distribution("Rank", ROWS, former.counts).drift_from(former) is None
    assert Distribution("score", 0, np.zeros(BINS, np.int64)).quantile(0.5) is None


def test_counters_of_tasks_are_added_up_and_the_slowest_task_is_known() -> None:
    """Texts and lists of the reports are for the manifest alone."""
    tasks = [FleetCounts(rows=rows, nulls=1, write_seconds=0.5, model_seconds=[1.0]) for rows in (3, 4, 5)]
    seconds = (2.0, 9.0, 4.0)
    reports = [task.report() | {"seconds": each} for task, each in zip(tasks, seconds, strict=True)]
    found = FleetCounters.of([*reports[:2], reports[2] | {"process": "elsewhere/1", "peak_memory_bytes": 2**40}])
    assert (found.tasks, found.processes, found.rows, found.nulls, found.write_seconds) == (3, 2, 12, 3, 1.5)
    assert (found.task_seconds, found.slowest_seconds, found.median_seconds) == (15.0, 9.0, 4.0)
    assert found.peak_memory_bytes == 2**40
    assert FleetCounters.of([]).slowest_seconds == 0
