"""Rows of Parquet files, read with pyarrow inside a task: which row groups there are, and a share of them for each."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.file_listing import DataFile, list_files, partition_column, partition_schema
from data_pipelines.storage import StoragePath

# Rows that are decoded at a time; more do not make it faster, fewer do make it slower.
_BATCH_ROWS = 32 * 1024
_FOOTERS_AT_A_TIME = 16
# A task that reads so much makes a file of a good size, in block layout.
_TASK_BYTES = 256 * 2**20


class ParquetError(ValueError):
    """A file is not Parquet, or does not fit the others; the message says which."""


@dataclass(frozen=True)
class RowGroups:
    """Row groups ``first`` to ``stop`` (not included) of one file."""

    file: DataFile
    first: int
    stop: int


@dataclass(frozen=True)
class ParquetRows:
    """The rows of some Parquet files: a plain value that pickles.

    Attributes:
        schema: The columns to read; those of partition folders are among them.
        groups: Every row group, in the order of the files.
        group_bytes: The uncompressed size of each row group.
        rows: Rows in all of them.
    """

    schema: pa.Schema
    groups: tuple[RowGroups, ...]
    group_bytes: tuple[int, ...]
    rows: int

    @classmethod
    def of(
        cls, locations: str | Path | StoragePath | Iterable[str | Path | StoragePath], columns: Sequence[str] | None
    ) -> "ParquetRows":
        """Look at the files' footers.

        Args:
            locations: Files, folders or globs.
            columns: The columns to read, in this order; all by default.

        Raises:
            FileNotFoundError: There are no files.
            ParquetError: A file is not Parquet, has other columns than the first, or has none of a name asked for. More
                columns than the first are an error where all are asked for.
        """
        files = list_files(locations)
        if not files:
            raise FileNotFoundError(f"there are no Parquet files in {locations}; check the path")
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            footers = list(pool.map(_footer, files))
        schema = _schema(files, footers[0], columns)
        stored = [field for field in schema if field.name not in dict(files[0].partition)]
        for file, footer in zip(files, footers, strict=True):
            _check_columns(file, footer, stored, files[0])
            if columns is None:
                _check_no_more_columns(file, footer, footers[0], files[0])
        return cls(
            schema,
            groups=tuple(
                RowGroups(file, number, number + 1)
                for file, footer in zip(files, footers, strict=True)
                for number in range(len(footer.group_bytes))
            ),
            group_bytes=tuple(size for footer in footers for size in footer.group_bytes),
            rows=sum(footer.rows for footer in footers),
        )

    def dealt(self, slots: int) -> tuple[tuple[RowGroups, ...], ...]:
        """Return a share of the row groups for each task, neighbours together, about equal in bytes.

        Args:
            slots: Tasks that run at the same time; there is a multiple of them where the files have the row groups.
        """
        total = sum(self.group_bytes)
        tasks = slots * -(-total // (slots * _TASK_BYTES)) if total else 1
        shares: list[list[RowGroups]] = [[] for _ in range(min(tasks, max(1, len(self.groups))))]
        before = 0
        for group, size in zip(self.groups, self.group_bytes, strict=True):
            # By the group's middle, so that one of many bytes goes where most of them would.
            middle = before + size / 2
            share = shares[min(len(shares) - 1, int(middle * len(shares) / total))] if total else shares[0]
            if share and share[-1].file == group.file and share[-1].stop == group.first:
                share[-1] = RowGroups(group.file, share[-1].first, group.stop)
            else:
                share.append(group)
            before += size
        return tuple(tuple(share) for share in shares if share)

    def batches(self, share: Sequence[RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one share, a multiple of ``multiple`` at a time except where row groups end.

        Raises:
            OSError: A file cannot be read.
        """
        rows = max(multiple, _BATCH_ROWS // multiple * multiple)
        for groups in share:
            folders = dict(groups.file.partition)
            stored = [name for name in self.schema.names if name not in folders]
            with groups.file.path.open_read() as source:
                for batch in _opened(source).iter_batches(
                    rows, row_groups=list(range(groups.first, groups.stop)), columns=stored, use_threads=False
                ):
                    yield pa.RecordBatch.from_arrays(
                        [
                            partition_column(folders[field.name], field.type, batch.num_rows)
                            if field.name in folders
                            else batch.column(field.name)
                            for field in self.schema
                        ],
                        schema=self.schema,
                    )


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    rows: int
    group_bytes: tuple[int, ...]


def _footer(file: DataFile) -> _Footer:
    try:
        with file.path.open_read() as source:
            parquet = _opened(source)
            found = parquet.metadata
            sizes = tuple(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
            # Without the notes of pandas and Spark, which need not agree.
            fields = [pa.field(field.name, field.type, field.nullable) for field in parquet.schema_arrow]
            return _Footer(pa.schema(fields), found.num_rows, sizes)
    except pa.ArrowInvalid as error:
        raise ParquetError(f"{file.path} is not a Parquet file: {error}; leave it out") from error


def _opened(source: pa.NativeFile) -> pq.ParquetFile:
    # Spark's own timestamps, unless told otherwise, are of the old 96-bit kind, which would become nanoseconds.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="us")


def _schema(files: Sequence[DataFile], footer: _Footer, columns: Sequence[str] | None) -> pa.Schema:
    folders = partition_schema(files)
    fields = {field.name: field for field in [*footer.schema, *folders]}
    wanted = list(fields) if columns is None else list(columns)
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise ParquetError(f"{files[0].path} has no column {missing}; it has {list(fields)}")
    return pa.schema([fields[name] for name in wanted])


def _check_columns(file: DataFile, footer: _Footer, expected: Sequence[pa.Field], first: DataFile) -> None:
    found = {field.name: field.type for field in footer.schema}
    for field in expected:
        if found.get(field.name) != field.type:
            raise ParquetError(
                f"column '{field.name}' is {found.get(field.name, 'missing')} in {file.path} and {field.type} in "
                f"{first.path}; write files of one schema, or read them with Spark"
            )


def _check_no_more_columns(file: DataFile, footer: _Footer, first_footer: _Footer, first: DataFile) -> None:
    more = [name for name in footer.schema.names if name not in first_footer.schema.names]
    if more:
        raise ParquetError(
            f"{file.path} has columns {more}, which {first.path} does not have; write files of one schema, or name the "
            f"columns to read"
        )
