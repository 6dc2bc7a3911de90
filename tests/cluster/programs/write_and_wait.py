"""Appends to a folder of TFRecord files and waits in the middle, to be killed: arguments FOLDER FLAG WAY."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mirrorspark.data_pipelines.spark.tfrecord_source import TFRecordSource
from mirrorspark.data_pipelines.tfrecords import write_tfrecords
from mirrorspark.spark_session.start import open_session


def main() -> None:
    """Write more than is buffered on the way, then wait until the flag exists."""
    folder, flag, way = sys.argv[1:]

    def give(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            while rows > 80_000 and not Path(flag).exists():
                threading.Event().wait(0.05)
            yield batch

    spark = open_session(master="local[1]", workers=1)
    df = spark.range(0, 100_000, 1, 1).mapInArrow(give, "id long")
    if way == "functions":
        write_tfrecords(df, folder, mode="append")
    else:
        spark.dataSource.register(TFRecordSource)
        df.write.format("tfrecord").mode("append").save(folder)


if __name__ == "__main__":
    main()
