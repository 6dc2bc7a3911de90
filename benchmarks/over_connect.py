"""Are scoring and a gang of workers over Spark Connect as fast as on a classic session of the same cluster?

One Spark serves both sides: a process has the classic session, whose JVM is also the server, and another process is its
client. They take turns. ``score`` reads Parquet files, by our tasks or by Spark, and drops the scores; a gang runs a
function that returns at once on all workers, supervised, with its run in MLflow.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.connect_server import connect_server
from benchmarks.measure import Contender, Mark, interleave, speed_ratio
from benchmarks.report import Report, Table, rate
from benchmarks.score_model import export_model
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import WORKERS, in_new_process, unwatched
from mirrorspark.scoring.batch import score
from mirrorspark.training.entry_points.launch import run_train_fn

CLASSIC, CONNECT = "classic", "Spark Connect"
SCORING_MARK, GANG_MARK = 0.9, 1.5

Work = Callable[[], float]

# Of a process that has one of the two sessions.
_serving = ExitStack()


def run(options: Options) -> Report:
    """Time each piece of work on both sides."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    model = in_new_process(export_model, options.scratch / "model", files[0])
    works: dict[str, Work] = {
        "score, read by our tasks": partial(_score, files, model, "tasks"),
        "score, read by Spark": partial(_score, files, model, "spark"),
        "a gang that returns at once": partial(_gang, options.scratch / "runs"),
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as classic, ProcessPoolExecutor(1, context) as client:
        url = classic.submit(_serve).result()
        client.submit(_connect, url).result()
        timings = {
            name: interleave(
                [Contender(side, _in(pool, work)) for side, pool in ((CLASSIC, classic), (CONNECT, client))],
                options.rounds,
            )
            for name, work in works.items()
        }
        for pool in (client, classic):
            pool.submit(_stop).result()
    rows, marks = [], []
    for name, sides in timings.items():
        is_gang = name.startswith("a gang")
        shown = [
            f"{sides[side].median:.2f} s" if is_gang else rate(options.rows / sides[side].median) for side in sides
        ]
        speed = speed_ratio(sides, CONNECT, CLASSIC)
        rows.append((name, *shown, f"{speed:.2f}", f"{max(one.spread for one in sides.values()):.0%}"))
        if is_gang:
            marks.append(Mark(f"{name}: seconds over Spark Connect / classic", 1 / speed, GANG_MARK, "at most"))
        else:
            marks.append(Mark(f"{name}: speed over Spark Connect / classic", speed, SCORING_MARK))
    table = Table("Rows per second, and seconds", ("work", CLASSIC, CONNECT, "ratio of speeds", "spread"), tuple(rows))
    conditions = {"rounds": f"median of {options.rounds}, the sides in turns"}
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), tuple(marks), conditions=conditions)


def _in(pool: ProcessPoolExecutor, work: Work) -> Work:
    return lambda: pool.submit(work).result()


def _serve() -> str:
    return _serving.enter_context(connect_server(spark_work.session(WORKERS)))


def _connect(url: str) -> None:
    SparkSession.builder.remote(url).getOrCreate()


def _stop() -> None:
    _serving.close()
    _session().stop()


def _session() -> SparkSession:
    session = SparkSession.getActiveSession()
    assert session is not None
    return session


def _score(files: Sequence[Path], model: Path, reader: Literal["tasks", "spark"]) -> float:
    begin = time.perf_counter()
    spark_work.drain(score(spark_work.table(_session(), files), model, keys="key", reader=reader))
    return time.perf_counter() - begin


def _gang(output: Path) -> float:
    def nothing() -> None:
        """Return at once; it pickles by value, whatever the name of this module is here."""

    with unwatched(output):
        begin = time.perf_counter()
        run_train_fn(nothing, WORKERS, name="gang", output=output, use_custom_strategy=True, resume=False)
        return time.perf_counter() - begin


BENCHMARK = Benchmark("over_connect", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
