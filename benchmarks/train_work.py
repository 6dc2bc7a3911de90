"""Common parts of the training benchmarks: sessions and data, ways to run a training, facts from a run's events."""

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.sql import DataFrame, SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner

from benchmarks.benchmark import Options
from benchmarks.tables import Kind, parquet_files
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration.config import RunConfig, TrainingConfig

if TYPE_CHECKING:  # seconds of imports, for which the parent of the drivers need not wait
    from mirrorspark.training.results.trained import Trained

Result = TypeVar("Result")
Event = Mapping[str, Any]

WORKERS = 2
# Both sides of every comparison: one thread per rank, as Spark gives each task one core.
THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Rows of the recipe's largest table.
FLIGHTS = 336_776
# One row in twenty is for validation, another one for testing.
SPLIT = "CASE key % 20 WHEN 0 THEN 'validation' WHEN 1 THEN 'test' ELSE 'train' END"


def session_with_new_workers() -> SparkSession:
    """Return a local session in which every task gets a Python process of its own.

    What one side leaves in its process, such as TensorFlow's servers and threads, would burden the next.

    Raises:
        RuntimeError: This process has had a session before, whose JVM is still there.
    """
    # Spark's Python workers inherit the environment of the JVM, and that one ours.
    os.environ |= THREADS
    # Read when the JVM starts; `open_session` sets the rest.
    before = os.environ.get("PYSPARK_SUBMIT_ARGS")
    os.environ["PYSPARK_SUBMIT_ARGS"] = "--conf spark.python.worker.reuse=false pyspark-shell"
    try:
        session = open_session(f"local[{WORKERS}]", WORKERS, app_name="mirrorspark-benchmark")
    finally:
        os.environ.pop("PYSPARK_SUBMIT_ARGS")
        if before is not None:
            os.environ["PYSPARK_SUBMIT_ARGS"] = before
    if session.sparkContext.getConf().get("spark.python.worker.reuse") != "false":
        raise RuntimeError(
            "the JVM of an earlier session does not start new workers; do what that was for in a process of its own"
        )
    return session


def usual_session(master: str | None = None) -> SparkSession:
    """Return a session as a user has it: Spark's Python workers live on from task to task.

    Args:
        master: URL of a cluster on this machine; by default a local session.
    """
    os.environ |= THREADS
    if master is not None:
        # As a local session has it: who is on this machine needs no interface but loopback.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return open_session(master or f"local[{WORKERS}]", WORKERS, app_name="mirrorspark-benchmark")


def launch(rank: Callable[[], Result], *, makes_its_strategy: bool) -> Result:
    """Run ``rank`` on all workers in a barrier job of the active session, and return what the first one returns.

    Args:
        rank: Pickles; its module can be imported by Spark's Python workers.
        makes_its_strategy: True if it opens its own strategy; else it takes the runner's.
    """
    # The runner announces each of its steps, and sets its own level.
    logging.getLogger(MirroredStrategyRunner.__name__).addFilter(_is_warning)
    runner = MirroredStrategyRunner(num_slots=WORKERS, use_gpu=False, use_custom_strategy=makes_its_strategy)
    result: Result = runner.run(rank)
    return result


def numbers_dataset(options: Options, rows: int) -> Path:
    """Return a dataset directory of 20 numbers and 20 categorical features, written unless it is there."""
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    from mirrorspark.data_pipelines.conversion import convert
    from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
    from mirrorspark.data_pipelines.features.spec import FeatureSpec

    target = options.scratch / f"dataset-{rows}"
    if target.is_dir():
        return target
    files = parquet_files(options.scratch, Kind.NUMBERS, rows)
    spark = usual_session()
    table = spark.read.parquet(*map(str, files)).withColumn("split", F.expr(SPLIT))
    numbers = [Numeric(name) for name in table.columns if name.startswith("float_")]
    tokens = [Categorical(name, max_size=10_000) for name in table.columns if name.startswith("int_")]
    convert(table, FeatureSpec((*numbers, *tokens), Label("label"), ("key",)), target)
    spark.stop()
    return target


def config_of(output: Path, **knobs: Any) -> TrainingConfig:
    """Return a new training of the ``multi_field`` model to its last epoch, that keeps its files in ``output``."""
    usual = {"name": "benchmark", "workers": WORKERS, "threads_per_worker": 1, "patience": 0, "resume": False}
    return TrainingConfig(**{**usual, "output": str(output), **knobs})


def flights_config(output: Path, **knobs: Any) -> RunConfig:
    """Return the recipe ``flights`` with the workers of all sides, trained to its last epoch and without baseline."""
    usual = {"workers": WORKERS, "threads_per_worker": 1, "patience": 0, "baseline": "none", "resume": False}
    return RunConfig.from_recipe("flights", **{**usual, "output": str(output), **knobs})


def flights_table(spark: SparkSession, config: RunConfig, rows: int) -> DataFrame:
    """Return the recipe's table, or about ``rows`` rows of it, the same ones every time."""
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    from mirrorspark.training.job import recipe_table

    table = recipe_table(spark, config)
    # Not by a limit, which puts all rows into one partition.
    return table if rows >= FLIGHTS else table.where(F.expr(f"pmod(xxhash64(flight_id), {FLIGHTS}) < {rows}"))


@dataclass(frozen=True)
class Supervised:
    """A training between its preflight and its export.

    Attributes:
        folder: The run's.
        run_id: Its MLflow run.
        seconds: From the launch of its first attempt until the last one's ranks had ended.
    """

    folder: Path
    run_id: str
    seconds: float


def trained(dataset: Path, config: TrainingConfig, session: SparkSession | None = None) -> "Trained":
    """Return the result of ``train``, without its display; see :func:`unwatched`."""
    from mirrorspark.data_pipelines.reading.dataset import Dataset
    from mirrorspark.training.entry_points.train_dataset import train

    with unwatched(Path(config.output)):
        return train(Dataset.open(dataset), config, session)


def supervised(
    dataset: Path,
    config: TrainingConfig,
    session: SparkSession,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> Supervised:
    """Train as ``train`` does, and export nothing; see :func:`unwatched`.

    Args:
        dataset: The dataset.
        config: The settings.
        session: The session; the executors of a cluster are waited for.
        listener: Gets every event.
    """
    from mirrorspark.data_pipelines.reading.dataset import Dataset
    from mirrorspark.training.job.prepared_run import PreparedRun, check_cluster
    from mirrorspark.training.job.readiness import preflight
    from mirrorspark.training.job.training_job import open_job
    from mirrorspark.training.run_records.live.view import LiveView
    from mirrorspark.training.run_records.tracking import Tracking

    with unwatched(Path(config.output)):
        preflight.require(check_cluster(session, config))
        view = LiveView(epochs=config.epochs)
        data = Dataset.open(dataset)
        config = config.fitted_to(data.manifest.rows("train"))
        prepared = PreparedRun(config, data, session, Tracking.find(config))
        with open_job(prepared, view, listener=listener) as job:
            begin = time.monotonic()
            job.train()
            seconds = time.monotonic() - begin
    return Supervised(job.folder.path, job.tracked.require_run_id(), seconds)


@contextlib.contextmanager
def unwatched(output: Path) -> Iterator[None]:
    """Let what this process shows of its runs go to ``shown.txt`` in their output folder while the block runs.

    All that is written to standard output and error, by their descriptors: libraries may have kept the streams.
    """
    output.mkdir(parents=True, exist_ok=True)
    streams = {1: sys.stdout, 2: sys.stderr}
    with contextlib.ExitStack() as undo, (output / "shown.txt").open("ab") as file:
        for descriptor, stream in streams.items():
            stream.flush()
            terminal = os.dup(descriptor)
            undo.callback(os.close, terminal)
            undo.callback(os.dup2, terminal, descriptor)
            undo.callback(stream.flush)
            os.dup2(file.fileno(), descriptor)
        yield


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Return the result of ``function`` in a new process: a driver with a JVM and a session of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def read_events(file: Path) -> list[Event]:
    """Return the events of a run so far, without lines that are being written, or that a full disk has cut off."""
    if not file.is_file():
        return []
    events = []
    for line in file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


def first_time(events: Iterable[Event], event: str, **fields: object) -> float:
    """Return the time of the first event of that name whose fields have those values.

    Raises:
        LookupError: There is none.
    """
    for one in events:
        if one["event"] == event and all(one.get(name) == value for name, value in fields.items()):
            return float(one["time"])
    raise LookupError(f"the run reported no event '{event}' with {fields}")


def epoch_times(events: Iterable[Event], attempt: int = 1) -> list[float]:
    """Return when each epoch of an attempt ended."""
    return [
        float(event["time"])
        for event in events
        if event["event"] == "epoch_end" and event.get("rank") == 0 and event.get("attempt") == attempt
    ]


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
