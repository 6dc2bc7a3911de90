"""How long do the flights take from their table to a trained model, next to the plain pattern?

Ours: ``convert`` and ``train``. The plain pattern: row TFRecords written by Spark, a parse of every single example, and
``fit`` under the runner. Same table, same model, same epochs with a validation each; from the query to the end of the
last epoch. The later work of ours (export, evaluation, registry) does not count; its checkpoints and MLflow do.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, Table, timing_table
from benchmarks.train_plain import SPLITS, PlainRank, fit_encoding, write_examples
from benchmarks.train_work import (
    FLIGHTS,
    WORKERS,
    flights_config,
    flights_table,
    in_new_process,
    launch,
    read_events,
    trained,
    usual_session,
)
from mirrorspark.models.multi_field import Settings

PLAIN = "the plain pattern"
OURS = "convert and train"
EPOCHS = 10
SPEED_MARK = 3.0


def run(options: Options) -> Report:
    """Go both ways in turns, each time in a new driver with a session of its own."""
    aucs: dict[str, list[float]] = {PLAIN: [], OURS: []}
    folder = options.scratch / "work"

    def contender(name: str, way: Callable[[int, Path], tuple[float, float]]) -> Contender:
        def work() -> float:
            seconds, auc = in_new_process(way, options.rows, folder)
            aucs[name].append(auc)
            return seconds

        return Contender(name, work, partial(shutil.rmtree, folder, ignore_errors=True))

    timings = interleave([contender(PLAIN, _plain), contender(OURS, _ours)], options.rounds)
    tables = (_seconds(options.rows, timings), _quality(aucs))
    mark = Mark(f"{OURS} / {PLAIN}", speed_ratio(timings, OURS, PLAIN), SPEED_MARK)
    return Report(BENCHMARK.name, BENCHMARK.question, tables, (mark,))


def _seconds(rows: int, timings: Mapping[str, Timing]) -> Table:
    note = (
        "Rows are those of the table; an epoch trains on about 0.73 of them. The plain pattern does not cache what it "
        "has parsed: a table that needs a cluster does not fit into the memory of a worker."
    )
    return timing_table(f"{rows:,} flights, {EPOCHS} epochs, {WORKERS} workers", rows, timings, PLAIN, note=note)


def _quality(aucs: Mapping[str, list[float]]) -> Table:
    rows = tuple((name, f"{min(found):.4f}", f"{max(found):.4f}") for name, found in aucs.items())
    return Table("AUC of the last validation", ("way", "lowest", "highest"), rows)


def _ours(rows: int, folder: Path) -> tuple[float, float]:
    """Return the seconds until the last epoch ended, and its validation AUC."""
    from mirrorspark.data_pipelines.conversion import convert

    spark, config = usual_session(), flights_config(folder / "output", epochs=EPOCHS)
    start = time.time()
    dataset = convert(flights_table(spark, config, rows), config.spec, folder / "dataset", options=config.conversion)
    run_folder = trained(dataset.path, config, spark).run_folder
    spark.stop()
    events = read_events(run_folder / "events.jsonl")
    last = [event for event in events if event["event"] == "epoch_end" and event.get("rank") == 0][-1]
    return float(last["time"]) - start, float(last["logs"]["val_auc"])


def _plain(rows: int, folder: Path) -> tuple[float, float]:
    """Return the seconds until the last epoch ended, and its validation AUC."""
    spark, config = usual_session(), flights_config(folder / "output", epochs=EPOCHS)
    start = time.time()
    # Read several times; the query is run once.
    table = flights_table(spark, config, rows).cache()
    encoding = fit_encoding(table.where("split = 'train'"), config.spec)
    counts = {row.split: row["count"] for row in table.groupBy("split").count().collect()}
    for split in SPLITS:
        write_examples(table.where(F.col("split") == split), encoding, folder / split)
    table.unpersist()
    config = config.fitted_to(counts["train"])
    settings = Settings(**{key: value for key, value in config.model_settings.items() if key != "name"})
    rank = PlainRank(
        encoding,
        folder,
        {split: -(-counts[split] // config.global_batch_size) for split in SPLITS},
        EPOCHS,
        config.global_batch_size,
        config.learning_rate,
        settings.embedding_dim,
        settings.hidden_units,
        settings.dropout,
    )
    end, auc = launch(rank, makes_its_strategy=False)
    spark.stop()
    return end - start, auc


BENCHMARK = Benchmark("train_end_to_end", question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
