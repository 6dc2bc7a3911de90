"""The file of a microbatch with the distribution of each model's outputs, of which those of a run are the sum."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.fleet.bins import BINS, Distribution
from mirrorspark.fleet.columns import lists_from
from mirrorspark.fleet.counting import counted_outputs, unpacked_counts
from mirrorspark.fleet.layout import Layout
from mirrorspark.storage import StoragePath

COUNTS_FILE = "_counts.parquet"

_FILES_AT_A_TIME = 16


def counts_file(layout: Layout, reports: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of the file, from the reports of a microbatch's tasks."""
    counts, rows = np.zeros((len(layout.models), BINS), np.int64), 0
    for report in reports:
        rows += report["rows"]
        counts += unpacked_counts(report["by_bin"], len(layout.models))
    models, bins = np.nonzero(counts)
    lengths = np.bincount(models, minlength=len(layout.models))
    columns = {
        "model": pa.array(layout.models, pa.string()),
        "output": pa.array(counted_outputs(layout), pa.string()),
        "rows": pa.array([rows] * len(layout.models), pa.int64()),
        "bin": lists_from(lengths, pa.array(bins, pa.int16())),
        "count": lists_from(lengths, pa.array(counts[models, bins], pa.int64())),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()


def read_counts(folders: Iterable[StoragePath]) -> dict[str, Distribution]:
    """Return the distributions of the models of some microbatches; a folder without the file adds nothing."""
    found: dict[str, Distribution] = {}
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        for table in pool.map(_read, folders):
            for row in table.to_pylist() if table is not None else []:
                former = found.get(row["model"])
                counts = np.zeros(BINS, np.int64) if former is None else former.counts.copy()
                counts[np.array(row["bin"], np.int64)] += np.array(row["count"], np.int64)
                rows = row["rows"] + (0 if former is None else former.rows)
                found[row["model"]] = Distribution(row["output"], rows, counts)
    return found


def _read(folder: StoragePath) -> pa.Table | None:
    try:
        with (folder / COUNTS_FILE).open_read() as source:
            return pq.read_table(source)
    except FileNotFoundError:
        return None  # of a run before there were such files
