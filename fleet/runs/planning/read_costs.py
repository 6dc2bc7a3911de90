"""Reads of a fleet's steps from a table, by the footers of its files."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from math import ceil
from operator import add
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.fleet.columns import array
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.runs.plan import Step

# Arrow requests adjacent columns at once, up to this number of bytes.
_RANGE_BYTES = 32 * 2**20
# Row groups and steps whose bytes are taken: all row groups are much alike, and so are all steps.
_MOST_GROUPS, _MOST_STEPS = 8, 100


@dataclass(frozen=True)
class ReadCosts:
    """Reads of steps from a table, by the footers of its files.

    Attributes:
        stored: The columns of a file, in their order.
        bytes_per_row: By column, for some row groups from the whole table.
        group_rows: Rows of a row group, in the mean.
    """

    keys: tuple[str, ...]
    stored: tuple[str, ...]
    bytes_per_row: Mapping[str, float]
    group_rows: float

    @classmethod
    def of(cls, table: parquet_rows.ParquetRows, stored: Sequence[str], keys: Sequence[str]) -> "ReadCosts":
        """Read some footers of a table that has rows."""
        filled = [place for place, rows in enumerate(table.group_rows) if rows]
        some = filled[:: ceil(len(filled) / _MOST_GROUPS)]
        rows = sum(table.group_rows[place] for place in some)
        found = reduce(add, (stored_bytes(table.groups[place]) for place in some))
        per_row = {name: size / rows for name, size in found.items()}
        return cls(tuple(keys), tuple(stored), per_row, table.rows / len(table.groups))

    def of_steps(self, fleet: Fleet, steps: Sequence[Step]) -> tuple[float, float]:
        """Return ``read_bytes_per_row`` and ``gets_per_row_group`` of :class:`Workload`, the means of the steps."""
        lists, places = array(fleet.table, "column"), {name: place for place, name in enumerate(fleet.names)}
        sizes, runs = [], []
        for step in steps[:: ceil(len(steps) / _MOST_STEPS)]:
            own = lists.take(pa.array([places[name] for name in step.digests])).flatten().unique().to_pylist()
            columns = {*self.keys, *own}
            sizes.append(sum(self.bytes_per_row.get(name, 0.0) for name in columns))
            runs.append(_runs(self.stored, columns))
        return mean(sizes), mean(runs) + mean(sizes) * self.group_rows / _RANGE_BYTES


def stored_bytes(group: parquet_rows.RowGroups) -> Counter[str]:
    """Return the bytes in the file of each column of a row group."""
    found = Counter[str]()
    with group.file.path.open_read() as source:
        of_group = pq.ParquetFile(source).metadata.row_group(group.first)
        for place in range(of_group.num_columns):
            column = of_group.column(place)
            found[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    return found


def _runs(stored: Sequence[str], columns: Set[str]) -> int:
    """Return the number of runs of adjacent columns that ``columns`` form in a file."""
    is_read = [name in columns for name in stored]
    return sum(now and not before for now, before in zip(is_read, [False, *is_read], strict=False))
