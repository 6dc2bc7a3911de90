"""How many times faster is `train_fleet` than a loop of Keras' `fit`, for 200 logistic models over one table?

The table has 100 columns. The time of `train_fleet` includes the conversion of the rows and the start of two workers.
The loop fits the same models one after the other on arrays in memory; five are measured, and the time is extrapolated.
Batch, learning rate, patience and the limit of epochs are the same. Another training over the same table, with a
penalty, does not convert it again. On two real data sets with many targets, the errors are compared with those of
models that Keras trains one by one on the same standardised rows, as means over seeds, each of which splits the rows
anew.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import REPOSITORY, Report, Table, significant, timing_table

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.features.transform import SparseRows
    from mirrorspark.data_pipelines.reading.dataset import Dataset
    from mirrorspark.fleet.training.trained import TrainedFleet

Result = TypeVar("Result")

COLUMNS, MODELS, LOOPED = 100, 200, 5
BATCH, RATE, PATIENCE, EPOCHS = 1_024, 0.01, 5, 20
SMALL_BATCH, SMALL_EPOCHS, SMALL_PENALTY = 64, 200, 0.02
SEEDS = (1, 2, 3)
OES97_TARGETS, YEAST_TARGETS = 16, 14

FLEET, AGAIN = f"train_fleet, {MODELS} models", "the same table again, another penalty"
LOOP = f"a loop of Keras' fit ({LOOPED} models, times {MODELS // LOOPED})"
# Errors differ by less than this only because the rows come in another order.
SPEED_MARK, ERROR_MARK = 20, 1.01


def run(options: Options) -> Report:
    """Time the fleet and the loop, and compare errors."""
    timings = _times(options)
    title = f"{options.rows:,} rows, {MODELS} models, {spark_work.SLOTS} cores"
    tables = [timing_table(title, options.rows, timings, LOOP)]
    marks = [Mark(f"{FLEET} / {LOOP}", speed_ratio(timings, FLEET, LOOP), SPEED_MARK)]
    data = Path(os.environ.get("MIRRORSPARK_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if data.is_dir():
        errors = {name: _errors(name, read(data), options.scratch) for name, read in SETS.items()}
        spark_work.session().stop()
        cells = tuple((name, *map(significant, pair)) for name, pair in errors.items())
        tables.append(Table("Mean error of the test rows", ("set and error", "train_fleet", "each alone"), cells))
        marks += [
            Mark(f"{name}, train_fleet / each alone", ours / theirs, ERROR_MARK, "at most")
            for name, (ours, theirs) in errors.items()
        ]
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def _times(options: Options) -> dict[str, Timing]:
    from mirrorspark.fleet.training.train import train_fleet

    file, numbers = options.scratch / "table.parquet", itertools.count()
    pq.write_table(made_up(options.rows), file)
    session = spark_work.session()

    def trained(output: Path, penalty: float = 0.0) -> None:
        train_fleet(
            str(file),
            [f"y{number}" for number in range(MODELS)],
            columns=[f"c{number}" for number in range(COLUMNS)],
            keys="key",
            global_batch_size=BATCH,
            learning_rate=RATE,
            patience=PATIENCE,
            epochs=EPOCHS,
            workers=spark_work.SLOTS,
            penalty=penalty,
            output=output,
            spark=session,
        )

    def ours() -> None:
        # Another folder in each round: rows are converted once, and MLflow keeps its stores open.
        trained(options.scratch / f"output-{next(numbers)}")

    def again() -> None:
        trained(options.scratch / "output-0", penalty=1e-6 * next(numbers))

    def theirs() -> float:
        targets = tuple(f"y{number}" for number in range(LOOPED))
        return _in_own_process(keras_loop, str(file), targets) * MODELS / LOOPED

    found = interleave(
        [Contender(FLEET, ours), Contender(AGAIN, again), Contender(LOOP, theirs)], options.rounds, warm_ups=0
    )
    session.stop()
    return found


def made_up(rows: int) -> pa.Table:
    """Return standard normal columns, and targets of logistic models of them."""
    random = np.random.default_rng(0)
    values = random.standard_normal((rows, COLUMNS), np.float32)
    weights = random.normal(0, 0.2, (COLUMNS, MODELS)).astype(np.float32)
    labels = random.random((rows, MODELS), np.float32) < 1 / (1 + np.exp(2 - values @ weights))
    columns = {f"c{number}": values[:, number] for number in range(COLUMNS)}
    targets = {f"y{number}": labels[:, number].astype(np.int8) for number in range(MODELS)}
    return pa.table({"key": np.arange(rows), **columns, **targets})


def keras_loop(file: str, targets: tuple[str, ...]) -> float:
    """Return the seconds in which Keras fits a logistic model of each target; needs a process of its own."""
    names = [f"c{number}" for number in range(COLUMNS)]
    table = pq.read_table(file, columns=[*names, *targets])
    values = np.stack([table[name].to_numpy() for name in names], axis=1)
    train, stop = int(0.8 * len(values)), int(0.9 * len(values))
    keras_alone(values[:BATCH], np.zeros(BATCH), values[:BATCH], np.zeros(BATCH), "logit", 0.0, BATCH, 1)  # compiles it
    begin = time.perf_counter()
    for target in targets:
        labels = table[target].to_numpy().astype(np.float32)
        keras_alone(values[:train], labels[:train], values[train:stop], labels[train:stop], "logit", 0.0, BATCH, EPOCHS)
    return time.perf_counter() - begin


def keras_alone(
    train: np.ndarray,
    train_labels: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    link: str,
    penalty: float,
    batch: int,
    epochs: int,
) -> Any:
    """Return a linear or logistic model as one would train it: early stopping, and the weights of the best epoch."""
    import tf_keras

    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(
                1,
                "sigmoid" if link == "logit" else None,
                kernel_initializer="zeros",
                # The loss of a fleet is half the squared error.
                kernel_regularizer=tf_keras.regularizers.L2(penalty / 2 if link == "logit" else penalty),
                input_shape=train.shape[1:],
            )
        ]
    )
    model.compile(tf_keras.optimizers.Adam(RATE), "binary_crossentropy" if link == "logit" else "mse")
    stopping = tf_keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    model.fit(
        train,
        train_labels,
        batch,
        epochs,
        validation_data=(held, held_labels),
        validation_batch_size=4096,
        callbacks=[stopping],
        verbose=0,
    )
    return model


def oes97(data: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the employment survey of 1997: 334 cities with counts of 279 occupations, of which 16 are targets."""
    _, rows = read_arff(data / "oes97_multitarget" / "oes97.arff")
    names = [f"o{number}" for number in range(rows.shape[1])]
    table = pa.table(dict(zip(names, rows.T, strict=True)))
    columns = {name: {"kind": "numeric", "log": True} for name in names[:-OES97_TARGETS]}
    return table, {"models": names[-OES97_TARGETS:], "columns": columns, "link": "identity"}


def yeast(data: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the genes of yeast: 103 numbers, and 14 classes that each gene has or has not."""
    folder = data / "yeast_multitarget"
    parts = [read_arff(folder / f"yeast-{split}.arff") for split in ("train", "test")]
    names = parts[0][0]
    table = pa.table(dict(zip(names, np.concatenate([rows for _, rows in parts]).T, strict=True)))
    return table, {"models": names[-YEAST_TARGETS:], "columns": names[:-YEAST_TARGETS], "link": "logit"}


SETS: dict[str, Callable[[Path], tuple[pa.Table, dict[str, Any]]]] = {
    "oes97, relative root mean squared error": oes97,
    "yeast, log loss": yeast,
}


def read_arff(file: Path) -> tuple[list[str], np.ndarray]:
    """Return the attributes and the rows, float64, of a dense ARFF file of numbers."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    names = [line.split()[1] for line in lines if line.lower().startswith("@attribute")]
    rows = [line.split(",") for line in lines if line and line[0] not in "@%"]
    return names, np.array(rows, np.float64)


def _errors(name: str, given: tuple[pa.Table, dict[str, Any]], scratch: Path) -> tuple[float, float]:
    """Return the mean error of a data set's test rows by models of a fleet, and by models that were trained alone."""
    found = [_errors_of_seed(name, given, scratch, seed) for seed in SEEDS]
    ours, theirs = np.mean(found, axis=0)
    return float(ours), float(theirs)


def _errors_of_seed(name: str, given: tuple[pa.Table, dict[str, Any]], scratch: Path, seed: int) -> tuple[float, float]:
    from mirrorspark.fleet.training.train import train_fleet

    table, arguments = given
    trained = train_fleet(
        table,
        **arguments,
        penalty=SMALL_PENALTY,
        global_batch_size=SMALL_BATCH,
        epochs=SMALL_EPOCHS,
        learning_rate=RATE,
        patience=PATIENCE,
        seed=seed,
        workers=1,
        name=name.partition(",")[0],
        output=scratch / "errors",
        spark=spark_work.session(),
    )
    alone = _in_own_process(errors_alone, str(trained.dataset), arguments["link"], len(arguments["models"]), seed)
    return _mean_error(trained, arguments["link"]), alone


def _mean_error(trained: "TrainedFleet", link: str) -> float:
    if link == "logit":
        return float(np.mean(trained.report["test_loss"].to_numpy()))
    return float(np.mean(np.sqrt(1 - trained.report["test_metric"].to_numpy())))


def errors_alone(dataset: str, link: str, targets: int, seed: int) -> float:
    """Return the mean error of the test rows by models that Keras trains one by one; needs a process of its own."""
    import tf_keras

    from mirrorspark.data_pipelines.reading.dataset import load_dataset

    tf_keras.utils.set_random_seed(seed)
    opened = load_dataset(dataset)
    train, held, test = (_arrays(opened, split) for split in ("train", "validation", "test"))
    errors = []
    for target in range(targets):
        mean, scale = (train[1][:, target].mean(), train[1][:, target].std()) if link == "identity" else (0.0, 1.0)
        labels = [(labels[:, target] - mean) / scale for _, labels in (train, held, test)]
        model = keras_alone(train[0], labels[0], held[0], labels[1], link, SMALL_PENALTY, SMALL_BATCH, SMALL_EPOCHS)
        predicted = model.predict(test[0], verbose=0)[:, 0]
        errors.append(_log_loss(labels[2], predicted) if link == "logit" else _relative_error(labels[2], predicted))
    return float(np.mean(errors))


def _log_loss(labels: np.ndarray, predicted: np.ndarray) -> float:
    chance = np.clip(predicted.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(labels > 0.5, np.log(chance), np.log1p(-chance))))


def _relative_error(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((labels - predicted) ** 2) / np.var(labels)))


def _arrays(dataset: "Dataset", split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of a split as they were stored, float32 ``[rows, …]``."""
    from mirrorspark.fleet.training.plan import TARGETS

    blocks = list(dataset.blocks(split))
    names = [feature.name for feature in dataset.spec.numeric]
    inputs = np.concatenate([np.stack([_dense(block.features[name]) for name in names], axis=1) for block in blocks])
    return inputs, np.concatenate([_dense(block.features[TARGETS]) for block in blocks])


def _dense(values: "np.ndarray | SparseRows") -> np.ndarray:
    assert isinstance(values, np.ndarray)  # the tables of this page have numbers alone
    return values


def _in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Return the result of a function in a new process, because TensorFlow is not loaded next to a Spark session."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(partial(function, *arguments)).result()


BENCHMARK = Benchmark("train_fleet", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
