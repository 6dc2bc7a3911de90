"""S5, S8: what tasks say of themselves, and what it adds up to."""

import os
import socket
from types import SimpleNamespace

import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.scoring.task import counts as counts_module
from mirrorspark.scoring.task.counts import JobCounters, ScoringCounts, TaskCounts

BATCH = pa.record_batch({"x": pa.array([1, 2, 3, 4], pa.int64())})


def test_a_task_tells_what_it_scored_and_which_scores_are_nan() -> None:
    counts = ScoringCounts()
    counts.begin(loads=1, threads=2)
    lists = pa.array([[0.5, float("nan")], [float("nan"), 1.0], None, []], pa.list_(pa.float32()))
    outputs = {"score": pa.array([0.5, float("nan"), None, 1.0]), "scores": lists, "names": pa.array(list("abcd"))}
    counts.count_call()
    counts.count_call()
    counts.add(BATCH, outputs, bad_rows=1)
    report = counts.report()
    assert report.pop("peak_memory_bytes") > 10e6
    assert report.pop("seconds") > 0
    assert report == {
        **dict.fromkeys(("read_seconds", "score_seconds", "write_seconds"), 0.0),
        "loads": 1,
        "threads": 2,
        "traces": 0,
        "rows": 4,
        "bad_rows": 1,
        "calls": 2,
        "bytes": 32,
        "nans": 3,
        "process": f"{socket.gethostname()}/{os.getpid()}",
    }


def test_a_graph_that_is_made_while_rows_are_scored_is_counted() -> None:
    """Of a function that is traced anew for each shape, which is what must not happen."""
    counts = ScoringCounts()
    counts.begin(loads=0, threads=1)
    double = tf.function(lambda x: x * 2.0)
    double(tf.zeros([3]))
    first = counts.report()["traces"]
    assert first > 0
    double(tf.zeros([3]))
    assert counts.report()["traces"] == first
    double(tf.zeros([4]))
    assert counts.report()["traces"] > first


def test_graphs_traced_by_scoring_are_counted_and_those_of_loading_are_not() -> None:
    counts = ScoringCounts()
    counts.begin(loads=1, threads=2)
    of_scoring = tf.function(lambda x: x * 3.0)
    of_scoring(tf.zeros([3]))
    scored = counts.report()["traces"]
    assert scored > 0
    counts.pause()
    of_loading = tf.function(lambda x: x * 5.0)
    of_loading(tf.zeros([3]))
    counts.begin(loads=1, threads=1)
    assert (counts.report()["traces"], counts.loads, counts.threads) == (scored, 2, 2)


def test_a_task_without_rows_has_traced_nothing() -> None:
    tf.function(lambda x: x + 1.0)(tf.zeros([2]))
    assert ScoringCounts().report()["traces"] == 0


def test_each_second_of_a_task_is_of_one_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 11.0, 13.0, 16.0, 20.0, 30.0])
    monkeypatch.setattr(counts_module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    counts = TaskCounts()
    for work in ("score", "read", "score", "write"):
        counts.end_of(work)
    assert (counts.read_seconds, counts.score_seconds, counts.write_seconds) == (2.0, 1.0 + 3.0, 4.0)
    assert counts.report()["seconds"] == 20.0


def test_tasks_of_one_process_add_up_to_one_process() -> None:
    reports = [ScoringCounts(loads=1, rows=5, calls=1).report(), ScoringCounts(rows=7, calls=2, nans=1).report()]
    other = ScoringCounts(loads=1, rows=1).report() | {"process": "elsewhere/1", "peak_memory_bytes": 2**40}
    found = JobCounters.of([*reports, other])
    assert (found.tasks, found.processes, found.loads, found.rows, found.calls, found.nans) == (3, 2, 2, 13, 3, 1)
    assert found.peak_memory_bytes == 2**40
    assert JobCounters.of([]).peak_memory_bytes == 0
