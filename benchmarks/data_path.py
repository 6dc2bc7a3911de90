"""Runs all benchmarks of the data path one after the other, each in a process of its own, and lists their marks."""

from benchmarks.suite import Suite, main

SUITE = Suite(
    name="data_path",
    title="Benchmarks of the data path",
    benchmarks=(
        "encode_rows",
        "dataframe_to_rows",
        "dataframe_to_blocks",
        "parquet_to_blocks",
        "dataframe_from_tfrecords",
        "read_batches",
        "file_sizes",
        "writer_memory",
        "cost_per_row",
        "lookup_rows",
        "jvm_connector",
    ),
    page="index.md",
    command="make benchmarks",
)

if __name__ == "__main__":
    main(SUITE, __doc__)
