"""How many inferences per second and core does a fleet of 500 models make over one wide table, next to other ways?

A model reads 100 of 2,000 columns and gives two outputs, by a threshold and by nine cut-points. In memory,
`FleetScorer` makes Arrow columns of the outputs on one core, next to NumPy's bare matrix product over the same block,
which gives only the linear predictors. From files to files, `score_fleet` works next to one job of `predict_batch_udf`
per model, of 20 models, and next to a `mapInPandas` that has all models stacked in one matrix; with 100 models of 100
trees each, next to a `mapInPandas` that calls LightGBM's `predict` for each.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ByteType, ShortType, StructField, StructType

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, Table, megabytes, rate, significant

if TYPE_CHECKING:
    import pandas as pd

    from mirrorspark.fleet.fleet import Fleet

COLUMNS, TERMS, MODELS, MANY, LOOPED = 2_000, 100, 500, 4_500, 20
HIDDEN = 32
BOOSTED, TREES, TREE_COLUMNS, FITTED, FIT_ROWS = 100, 100, 20, 5, 4_000
THRESHOLD, CUTS = 0.5, tuple(tenth / 10 for tenth in range(1, 10))
MOST_IN_MEMORY = 16_384
FILES, ROW_GROUP_ROWS, BATCH_ROWS = 4, 8_192, 2_048

GEMM, LOOP = "NumPy, bare matrix product over the block", "NumPy, a model at a time"
KERNEL, WITH_SCORES, PACKED = "FleetScorer", "FleetScorer, with scores", "FleetScorer, packed"
SAME, SAME_GEMM = f"FleetScorer, models of the same {TERMS} columns", f"NumPy, bare matrix product over these {TERMS}"
OF_MANY, NETWORKS = f"FleetScorer, packed, {MANY:,} models", f"FleetScorer, {MODELS} networks {TERMS}-{HIDDEN}-1"
WIDE, PACKED_FILES, NETWORK_FILES = "score_fleet, wide", "score_fleet, packed", f"score_fleet, {MODELS} networks"
UDF_LOOP = f"predict_batch_udf, a job per model ({LOOPED} models, times {MODELS // LOOPED})"
STACKED = "mapInPandas, models stacked in one matrix"
BOOSTED_FILES = f"score_fleet, {BOOSTED} models of {TREES} trees"
BOOSTED_LOOP = f"mapInPandas, LightGBM's predict for {BOOSTED} models"
TREES_MARK = 3
INFERENCES_MARK, NETWORKS_MARK, GEMM_MARK, LOOP_MARK, STACKED_MARK, MANY_MARK = 4e6, 2e6, 0.5, 20, 5, 0.8


@dataclass(frozen=True)
class Coefficients:
    """Random logistic models.

    Attributes:
        columns: int64 ``[models, terms]``: the columns of each model.
        values: float32 ``[models, terms]``.
    """

    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, models: int) -> "Coefficients":
        """Return some models, each of columns of its own."""
        random = np.random.default_rng(1)
        columns = np.stack([random.permutation(COLUMNS)[:TERMS] for _ in range(models)])
        return cls(columns, random.normal(0, 0.2, (models, TERMS)).astype(np.float32))

    def stacked(self) -> np.ndarray:
        """Return float32 ``[columns, models]``, mostly zeros."""
        matrix = np.zeros((COLUMNS, len(self.columns)), np.float32)
        np.put_along_axis(matrix.T, self.columns, self.values, axis=1)
        return matrix

    def fleet(self) -> "Fleet":
        """Return the models as a fleet."""
        from mirrorspark.fleet.coefficients import fleet_from_coefficients

        names = [f"m{number}" for number in range(len(self.columns))]
        terms = pa.table(
            {
                "model": np.repeat(names, TERMS),
                "column": np.char.add("c", self.columns.ravel().astype(str)),
                "coefficient": self.values.ravel().astype(np.float64),
                "missing": np.zeros(self.values.size),
            }
        )
        models = {"model": names, "threshold": [THRESHOLD] * len(names), "cut_points": [list(CUTS)] * len(names)}
        return fleet_from_coefficients(terms, pa.table(models), link="logit")


def networks() -> "Fleet":
    """Return random networks over the columns of the logistic models."""
    from mirrorspark.fleet.columns import FLEET_SCHEMA
    from mirrorspark.fleet.fleet import Fleet

    linear = Coefficients.of(MODELS).fleet().table
    weights = np.random.default_rng(2).normal(0, 0.1, (MODELS, HIDDEN * (TERMS + 1) + HIDDEN + 1)).astype(np.float32)
    of_networks = {
        "coefficient": pa.array([[1.0] * TERMS] * MODELS),
        "layer_sizes": pa.array([[TERMS, HIDDEN, 1]] * MODELS, FLEET_SCHEMA.field("layer_sizes").type),
        "activations": pa.array([["relu"]] * MODELS),
        "weights": pa.array(list(weights), FLEET_SCHEMA.field("weights").type),
    }
    columns = [of_networks.get(name, linear[name].combine_chunks()) for name in FLEET_SCHEMA.names]
    return Fleet.of(pa.Table.from_arrays(columns, schema=FLEET_SCHEMA))


@dataclass(frozen=True)
class Boosted:
    """Gradient-boosted models, each of columns of its own; a few are fitted, and read other columns each time.

    Attributes:
        texts: Models of LightGBM.
        columns: The columns of each model.
    """

    texts: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, models: int) -> "Boosted":
        """Fit some models to random rows."""
        import lightgbm

        random, texts = np.random.default_rng(3), []
        for _ in range(FITTED):
            rows = random.standard_normal((FIT_ROWS, TREE_COLUMNS), np.float32)
            labels = rows[:, 0] * rows[:, 1] + rows[:, 2] + random.normal(size=FIT_ROWS) > 0
            fitted = lightgbm.LGBMClassifier(n_estimators=TREES, n_jobs=1, verbose=-1).fit(rows, labels)
            texts.append(fitted.booster_.model_to_string())
        columns = (random.permutation(COLUMNS)[:TREE_COLUMNS] for _ in range(models))
        return cls(tuple(texts), tuple(tuple(f"c{number}" for number in own) for own in columns))

    def models(self) -> list[tuple[str, Any]]:
        """Return each model's name and booster."""
        import lightgbm

        loaded = [lightgbm.Booster(model_str=text) for text in self.texts]
        return [(f"m{number}", loaded[number % len(loaded)]) for number in range(len(self.columns))]

    def fleet(self) -> "Fleet":
        """Return the models as a fleet."""
        from mirrorspark.fleet.fleet import Fleet
        from mirrorspark.fleet.imports.lightgbm import fleet_from_lightgbm

        pairs = zip(self.models(), self.columns, strict=True)
        return Fleet.of(pa.concat_tables([fleet_from_lightgbm({name: one}, own).table for (name, one), own in pairs]))


def block_of(rows: int, seed: int) -> pa.RecordBatch:
    """Return random float32 columns."""
    values = np.random.default_rng(seed).standard_normal((COLUMNS, rows), np.float32)
    return pa.RecordBatch.from_arrays(list(map(pa.array, values)), [f"c{number}" for number in range(COLUMNS)])


def run(options: Options) -> Report:
    """Time both, in memory on one core and from files to files on two."""
    in_memory = min(options.rows, MOST_IN_MEMORY)
    of_memory = on_one_core(_in_memory, in_memory, options.rounds)
    of_files, sizes = _files(options)
    inferences = options.rows * MODELS / spark_work.SLOTS
    many_ratio = speed_ratio(of_memory, OF_MANY, PACKED) * MANY / MODELS
    marks = (
        Mark(f"{WIDE}, inferences/s/core", inferences / of_files[WIDE].median, INFERENCES_MARK),
        Mark(f"{KERNEL} / {GEMM}", speed_ratio(of_memory, KERNEL, GEMM), GEMM_MARK),
        Mark(f"{WIDE} / {UDF_LOOP}", speed_ratio(of_files, WIDE, UDF_LOOP), LOOP_MARK),
        Mark(f"{WIDE} / {STACKED}", speed_ratio(of_files, WIDE, STACKED), STACKED_MARK),
        Mark(f"{NETWORK_FILES}, inferences/s/core", inferences / of_files[NETWORK_FILES].median, NETWORKS_MARK),
        Mark(f"{OF_MANY}, per inference / {PACKED}", many_ratio, MANY_MARK),
        Mark(f"{BOOSTED_FILES} / {BOOSTED_LOOP}", speed_ratio(of_files, BOOSTED_FILES, BOOSTED_LOOP), TREES_MARK),
    )
    tables = (
        _table(f"In memory: {in_memory:,} rows, one core", in_memory, of_memory, 1),
        _table(
            f"Files to files: {options.rows:,} rows, {spark_work.SLOTS} cores", options.rows, of_files, spark_work.SLOTS
        ),
        Table("Size of the outputs", ("layout", "files", "bytes per inference"), sizes),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks)


def _table(title: str, rows: int, timings: Mapping[str, Timing], cores: int) -> Table:
    """Return medians, and inferences per second and core."""
    models = {OF_MANY: MANY, BOOSTED_FILES: BOOSTED, BOOSTED_LOOP: BOOSTED}
    cells = tuple(
        (
            name,
            f"{timing.median:.3f}",
            rate(rows * models.get(name, MODELS) / timing.median / cores),
            f"{timing.spread:.0%}",
        )
        for name, timing in timings.items()
    )
    return Table(title, ("way", "median seconds", "inferences/s/core", "spread"), cells)


def _in_memory(rows: int, rounds: int) -> dict[str, Timing]:
    from mirrorspark.fleet.layout import Layout
    from mirrorspark.fleet.scorer import FleetScorer

    block = block_of(rows, 0)
    coefficients = Coefficients.of(MODELS)
    values = np.stack([column.to_numpy() for column in block.columns])
    matrix = np.ascontiguousarray(coefficients.stacked().T)

    def scorer(
        fleet: "Fleet", layout: str = "wide", outputs: tuple[str, ...] = ("binary", "Rank")
    ) -> Callable[[], object]:
        found = FleetScorer(fleet, Layout.of(fleet, layout, outputs))

        def score() -> None:
            for _ in found.batches(block, []):
                pass  # as a writer would take them, one after the other

        return score

    fleet = coefficients.fleet()
    of_same = Coefficients(np.tile(np.arange(TERMS), (MODELS, 1)), coefficients.values)
    ways: dict[str, Callable[[], object]] = {
        GEMM: lambda: matrix @ values,
        LOOP: partial(_a_model_at_a_time, coefficients, values),
        KERNEL: scorer(fleet),
        SAME_GEMM: lambda: of_same.values @ values[:TERMS],
        SAME: scorer(of_same.fleet()),
        WITH_SCORES: scorer(fleet, outputs=("score", "binary", "Rank")),
        PACKED: scorer(fleet, "packed"),
        OF_MANY: scorer(Coefficients.of(MANY).fleet(), "packed"),
        NETWORKS: scorer(networks()),
    }
    return interleave([Contender(name, work) for name, work in ways.items()], rounds)


def _a_model_at_a_time(coefficients: Coefficients, values: np.ndarray) -> None:
    """Gather, multiply, apply the inverse link, and decide, for each model."""
    for columns, own in zip(coefficients.columns, coefficients.values, strict=True):
        _outputs(own @ values[columns])


def _outputs(predictors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``binary`` and ``Rank`` as one would write them oneself."""
    scores = 1 / (1 + np.exp(-predictors))
    return (scores >= THRESHOLD).astype(np.int8), (len(CUTS) + 1 - np.digitize(scores, CUTS)).astype(np.int16)


def _files(options: Options) -> tuple[dict[str, Timing], tuple[tuple[str, ...], ...]]:
    from mirrorspark.fleet.score import score_fleet

    folder, target = options.scratch / "wide", options.scratch / "scores"
    write_wide(folder, options.rows)
    session = spark_work.session()
    coefficients = Coefficients.of(MODELS)
    fleet, of_networks, boosted = coefficients.fleet(), networks(), Boosted.of(BOOSTED)
    of_trees = boosted.fleet()
    sizes: dict[str, tuple[str, ...]] = {}

    def ours(models: "Fleet", layout: str) -> None:
        scored = score_fleet(folder, models, target, keys="key", layout=layout, spark=session)
        if models is fleet:
            sizes[layout] = (layout, megabytes(scored.bytes), significant(scored.bytes_per_inference))

    table = session.read.parquet(str(folder))
    ways: dict[str, Callable[[], object]] = {
        WIDE: partial(ours, fleet, "wide"),
        PACKED_FILES: partial(ours, fleet, "packed"),
        NETWORK_FILES: partial(ours, of_networks, "wide"),
        UDF_LOOP: partial(_udf_loop, table, coefficients, target),
        STACKED: partial(_stacked, session, table, coefficients, target),
        BOOSTED_FILES: partial(ours, of_trees, "wide"),
        BOOSTED_LOOP: partial(_boosted_loop, table, boosted, target),
    }
    timings = interleave(
        [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()], options.rounds
    )
    session.stop()
    looped = timings[UDF_LOOP]
    timings[UDF_LOOP] = Timing(UDF_LOOP, tuple(seconds * MODELS / LOOPED for seconds in looped.seconds))
    return timings, tuple(sizes.values())


def write_wide(folder: Path, rows: int) -> None:
    """Write a table of random columns with keys, in some files."""
    folder.mkdir()
    of_file = -(-rows // FILES)
    for number in range(FILES):
        count = min(of_file, rows - number * of_file)
        with pq.ParquetWriter(folder / f"part-{number}.parquet", _schema(), use_dictionary=False) as writer:
            for first in range(0, count, ROW_GROUP_ROWS):
                block = block_of(min(ROW_GROUP_ROWS, count - first), number * rows + first)
                keys = pa.array(np.arange(first, first + block.num_rows) + number * of_file)
                writer.write_table(pa.table([keys, *block.columns], _schema()))


def _schema() -> pa.Schema:
    return pa.schema([("key", pa.int64()), *((f"c{number}", pa.float32()) for number in range(COLUMNS))])


def _udf_loop(table: DataFrame, coefficients: Coefficients, target: Path) -> None:
    for number in range(LOOPED):
        names = [f"c{column}" for column in coefficients.columns[number]]
        udf = predict_batch_udf(
            partial(_predictor, coefficients.values[number]),
            return_type=StructType([StructField("binary", ByteType()), StructField("Rank", ShortType())]),
            batch_size=BATCH_ROWS,
            input_tensor_shapes=[[TERMS]],
        )
        table.select("key", udf(F.array(*names)).alias("outputs")).write.parquet(str(target / f"m{number}"))


def _predictor(values: np.ndarray) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    def predict(rows: np.ndarray) -> Mapping[str, np.ndarray]:
        binaries, ranks = _outputs(rows @ values)
        return {"binary": binaries, "Rank": ranks}

    return predict


def _stacked(session: SparkSession, table: DataFrame, coefficients: Coefficients, target: Path) -> None:
    matrix = session.sparkContext.broadcast(coefficients.stacked())
    names = [f"m{number}" for number in range(MODELS)]
    columns = [f"c{number}" for number in range(COLUMNS)]

    def score(batches: "Iterator[pd.DataFrame]") -> "Iterator[pd.DataFrame]":
        import pandas as pd

        for rows in batches:
            binaries, ranks = _outputs(rows[columns].to_numpy(np.float32) @ matrix.value)
            outputs: dict[str, Any] = {"key": rows["key"]}
            for place, name in enumerate(names):
                outputs |= {f"{name}_binary": binaries[:, place], f"{name}_Rank": ranks[:, place]}
            yield pd.DataFrame(outputs)

    schema = "key long, " + ", ".join(f"{name}_binary tinyint, {name}_Rank smallint" for name in names)
    table.mapInPandas(score, schema).write.parquet(str(target))


def _boosted_loop(table: DataFrame, boosted: Boosted, target: Path) -> None:
    def score(batches: "Iterator[pd.DataFrame]") -> "Iterator[pd.DataFrame]":
        import pandas as pd

        models = boosted.models()
        for rows in batches:
            outputs: dict[str, Any] = {"key": rows["key"]}
            for (name, model), columns in zip(models, boosted.columns, strict=True):
                predicted = model.predict(rows[list(columns)].to_numpy(np.float32), num_threads=1)
                outputs[f"{name}_score"] = predicted.astype(np.float32)
            yield pd.DataFrame(outputs)

    schema = "key long, " + ", ".join(f"m{number}_score float" for number in range(len(boosted.columns)))
    needed = sorted({column for own in boosted.columns for column in own})
    table.select("key", *needed).mapInPandas(score, schema).write.parquet(str(target))


BENCHMARK = Benchmark("fleet", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
