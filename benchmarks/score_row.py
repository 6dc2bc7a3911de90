"""How long does one row take in a process of one's own: ``Predictor``, next to ``model.predict``?

The predictor takes a mapping of raw values, looks ids up and calls the exported graph. Keras is handed tensors that
are encoded already, by its ``predict`` and by a call of the model.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.score_model import export_model, keras_model
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

PREDICTOR, ARROW, CALL, PREDICT = "Predictor", "the scorer, of an Arrow row", "model(...)", "model.predict(...)"
COLUMNS, ENCODER, GRAPH = "of it: Arrow columns", "of it: ids and numbers", "of it: the graph"
CALLS = 300
# A service that answers below 100 ms has a small part of that for the model.
P99_MARK = 10.0
RATIO_MARK = 5.0


def run(options: Options) -> Report:
    """Score one row after the other in a new process, as there are rounds."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    model = in_new_process(export_model, options.scratch / "model", files[0])
    rounds = [in_new_process(_milliseconds, model, files[0]) for _ in range(options.rounds)]
    by_way = {way: np.concatenate([found[way] for found in rounds]) for way in rounds[0]}
    quantiles = {way: np.percentile(found, [50, 99]) for way, found in by_way.items()}
    rows = tuple((way, f"{p50:.2f}", f"{p99:.2f}") for way, (p50, p99) in quantiles.items())
    note = f"{CALLS:,} rows in each of {options.rounds} rounds, one thread, after 20 that do not count."
    table = Table("Milliseconds for one row of 39 features", ("way", "p50", "p99"), rows, note)
    marks = (
        Mark(f"{PREDICTOR}, p99, ms", float(quantiles[PREDICTOR][1]), P99_MARK, "at most"),
        Mark(f"{PREDICTOR} / {PREDICT}, p50", float(quantiles[PREDICT][0] / quantiles[PREDICTOR][0]), RATIO_MARK),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks)


def _milliseconds(folder: Path, file: Path) -> dict[str, np.ndarray]:
    """Return the milliseconds of each call, by way."""
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    import tensorflow as tf

    from mirrorspark.data_pipelines.features.transform import Encoder
    from mirrorspark.models.serving.signatures import ENCODED_SIGNATURE
    from mirrorspark.scoring.backends.trained_model import TrainedBackend, TrainedGraph
    from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER, ModelDirectory
    from mirrorspark.scoring.model.loading import LoadedModel
    from mirrorspark.scoring.predictor import Predictor

    directory = ModelDirectory.open(folder)
    batch = pq.read_table(file).slice(0, 1)
    (row,) = batch.to_pylist()
    encoder, features = Encoder(directory.features), directory.scored_features
    encoded = encoder.encode_padded(batch, features)
    tensors = {name: tf.constant(values) for name, values in encoded.items()}
    keras, predictor, exported = keras_model(directory.features), Predictor(folder), LoadedModel(folder)
    graph = TrainedBackend(TrainedGraph(folder / SAVED_MODEL_FOLDER, threads=1), ENCODED_SIGNATURE)
    columns = {name: [row[name]] for name in predictor.columns}
    ways: Mapping[str, Callable[[], object]] = {
        PREDICTOR: lambda: predictor.predict(row),
        COLUMNS: lambda: predictor.batch(columns),
        ENCODER: lambda: encoder.encode_padded(batch, features),
        GRAPH: lambda: graph(encoded, ["score"]),
        ARROW: lambda: exported.score(batch),
        CALL: lambda: keras(tensors, training=False).numpy(),
        PREDICT: lambda: keras.predict(tensors, verbose=0),
    }
    return {way: _timed(call) for way, call in ways.items()}


def _timed(call: Callable[[], object]) -> np.ndarray:
    for _ in range(20):
        call()
    milliseconds = np.empty(CALLS)
    for number in range(CALLS):
        begin = time.perf_counter()
        call()
        milliseconds[number] = (time.perf_counter() - begin) * 1e3
    return milliseconds


BENCHMARK = Benchmark("score_row", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
