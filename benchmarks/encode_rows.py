"""How much faster do kernels encode rows, one tf.train.Example each, than a loop over tf.train.Example on one core?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, interleave, speed_ratio
from benchmarks.report import Report, Table, timing_table
from benchmarks.tables import DATA_PATH_KINDS, Kind, make_table

LOOP = "tf.train.Example loop"
KERNEL = "RowEncoder"
LOOP_ROWS = 10_000
BATCH_ROWS = 10_000
NOWHERE = Path("/dev/null")
SPEED_MARK = 60.0


def run(options: Options) -> Report:
    """Encode each table both ways, framed with both checksums, into a file."""
    return on_one_core(_run, options)


def _run(options: Options) -> Report:
    tables: list[Table] = []
    marks: list[Mark] = []
    for kind in DATA_PATH_KINDS:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        found = _measure(options, kind, rows)
        tables.append(found[0])
        if kind is Kind.NUMBERS:
            marks.append(Mark(f"{KERNEL} / {LOOP}, {kind}", found[1], SPEED_MARK))
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def _measure(options: Options, kind: Kind, rows: int) -> tuple[Table, float]:
    content = make_table(kind, rows)
    looped = content.slice(0, LOOP_ROWS)
    examples = looped.to_pylist()
    loop = _loop(examples, looped.schema, NOWHERE)
    kernel = _kernel(content, NOWHERE)
    times_all = rows / len(examples)

    contenders = [Contender(LOOP, lambda: _seconds(loop) * times_all), Contender(KERNEL, kernel)]
    timings = interleave(contenders, options.rounds)
    by_loop, by_kernel = options.scratch / "loop.tfrecord", options.scratch / "kernel.tfrecord"
    _loop(examples, looped.schema, by_loop)()
    _kernel(looped, by_kernel)()
    assert by_loop.read_bytes() == by_kernel.read_bytes(), f"{kind}: the two files differ; the comparison means nothing"
    note = (
        f"The loop encodes {len(examples):,} of the rows, its time is scaled to all; the files of these rows are equal "
        f"byte for byte. Both write framed records with both checksums, to {NOWHERE}: disks are left out."
    )
    title = f"{kind}: {rows:,} rows, {content.num_columns} columns, one core"
    return timing_table(title, rows, timings, LOOP, note=note), speed_ratio(timings, KERNEL, LOOP)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _kernel(content: pa.Table, path: Path) -> Callable[[], None]:
    from mirrorspark.data_pipelines.tfrecord.row_encoder import RowEncoder

    encoder = RowEncoder(content.schema)
    batches = content.to_batches(max_chunksize=BATCH_ROWS)

    def work() -> None:
        with path.open("wb") as file:
            for batch in batches:
                file.write(encoder.encode(batch).content.data)

    return work


def _loop(examples: list[dict[str, Any]], schema: pa.Schema, path: Path) -> Callable[[], None]:
    """Return the loop that people write: a dict per row becomes a message, which becomes a record."""
    import tensorflow as tf

    to_feature = {field.name: _feature_of(field.type) for field in schema}

    def work() -> None:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in examples:
                features = {name: to_feature[name](value) for name, value in row.items()}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                # Deterministic: keys sorted, so that bytes can be compared. It costs the loop little.
                writer.write(example.SerializeToString(deterministic=True))

    return work


def _feature_of(column: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_list(column):
        return _list_of(column.value_type)
    as_list = _list_of(column)
    return lambda value: as_list([value])


def _list_of(column: pa.DataType) -> Callable[[list[Any]], Any]:
    import tensorflow as tf

    feature = tf.train.Feature
    if pa.types.is_integer(column):
        return lambda values: feature(int64_list=tf.train.Int64List(value=values))
    if pa.types.is_floating(column):
        return lambda values: feature(float_list=tf.train.FloatList(value=values))
    return lambda values: feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))


BENCHMARK = Benchmark("encode_rows", question_of(__doc__), 500_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
