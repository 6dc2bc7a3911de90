"""How many rows per second does one core look up in an embedding of a million rows of 64 numbers, hashed or not?

And how long does it take to get there: from a million distinct tokens to the ids that are looked up.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Timing, interleave
from benchmarks.report import Report, megabytes, timing_table

VOCABULARY = 1_000_000
BUCKETS = 100_000
DIMENSION = 64
BATCH_ROWS = 4_096
NUMPY = "numpy take"
DICTIONARY = "Python dict"


def run(options: Options) -> Report:
    """Time look-ups of rows, and of tokens, on one core."""
    lookups, weights = on_one_core(_measure_rows, options.rows, options.rounds)
    tokens = on_one_core(_measure_tokens, options.rows, options.rounds)
    note = "Weights: " + ", ".join(f"{name} {megabytes(size)}" for name, size in weights.items()) + "."
    where = f"{options.rows:,} of {VOCABULARY:,}, one core"
    tables = (
        timing_table(f"Rows of {DIMENSION} float32, {where}", options.rows, lookups, NUMPY, note=note),
        timing_table(f"Tokens to ids: {where}", options.rows, tokens, DICTIONARY),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tables)


def _measure_rows(rows: int, rounds: int) -> tuple[dict[str, Timing], dict[str, int]]:
    """Return times of look-ups in batches, and the bytes of the tables."""
    import tensorflow as tf

    from mirrorspark.models.layers.input import Field, FieldEmbeddings

    ids = np.random.default_rng(1).integers(2, VOCABULARY + 2, rows)
    batches = [ids[start : start + BATCH_ROWS] for start in range(0, rows, BATCH_ROWS)]
    plain = np.zeros((VOCABULARY + 2, DIMENSION), np.float32) + 1
    variable = tf.Variable(plain)
    # Input and output of a layer are what a model sees; the ids are tensors already.
    tensors = [tf.constant(batch) for batch in batches]
    hashed = [tf.constant(batch % BUCKETS + 2) for batch in batches]
    gather = tf.function(lambda batch: tf.nn.embedding_lookup(variable, batch))
    ways: dict[str, Callable[[], object]] = {
        NUMPY: partial(_each, plain.__getitem__, batches),
        "tf.nn.embedding_lookup": partial(_each, gather, tensors),
    }
    layers = {
        f"FieldEmbeddings, {VOCABULARY:,} ids": (VOCABULARY + 2, tensors),
        f"FieldEmbeddings, hashed to {BUCKETS:,}": (BUCKETS + 2, hashed),
    }
    weights = {NUMPY: plain.nbytes}
    for name, (size, inputs) in layers.items():
        layer = FieldEmbeddings((Field("id", 0, 1),), size, DIMENSION)
        # One traced function per layer, as a model has it.
        ways[name] = partial(_each, tf.function(lambda batch, layer=layer: layer({"id": batch})), inputs)
        weights[name] = size * DIMENSION * 4
    return interleave([Contender(name, work) for name, work in ways.items()], rounds), weights


def _each(function: Callable[[Any], object], batches: Sequence[Any]) -> None:
    for batch in batches:
        function(batch)


def _measure_tokens(rows: int, rounds: int) -> dict[str, Timing]:
    """Return times from a column of tokens to ids: an Arrow column in, an int64 array out."""
    from mirrorspark.data_pipelines.features.farmhash import fingerprint64
    from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

    numbers = np.random.default_rng(2).permutation(VOCABULARY)
    tokens = [f"user-{number}" for number in numbers]
    vocabulary = Vocabulary(pa.array(tokens), pa.array(np.ones(VOCABULARY, np.int64)))
    ids = {token: number + 2 for number, token in enumerate(tokens)}
    column = pa.array(
        np.array(tokens, dtype=object)[np.random.default_rng(3).integers(0, VOCABULARY, rows)], pa.string()
    )
    ways: dict[str, Callable[[], object]] = {
        DICTIONARY: lambda: np.array([ids.get(token, 1) for token in column.to_pylist()]),
        "Vocabulary.ids": partial(vocabulary.ids, column),
        f"fingerprint to {BUCKETS:,} buckets": lambda: fingerprint64(column) % BUCKETS + 2,
    }
    return interleave([Contender(name, work) for name, work in ways.items()], rounds)


BENCHMARK = Benchmark("lookup_rows", question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
