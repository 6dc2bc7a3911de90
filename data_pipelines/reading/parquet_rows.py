"""Rows of Parquet files, read with pyarrow inside a task: the list of row groups, and a share of them for each task."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import repeated_names
from mirrorspark.storage import StoragePath, listing

# Rows that are decoded at a time: more are not faster, fewer are slower. For wide rows, bytes: scoring lists of 100 and
# 200 features takes the same time with 4 or 16 MB, 50 MB more memory with 16, and with 64 MB a tenth and a quarter more
# time and 0.3 GB more memory.
BATCH_ROWS = 32 * 1024
BATCH_BYTES = 8 * 2**20
# Bytes of a value in memory, by its type in the file; for a text, those of its offset.
_DECODED_BYTES = {"INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
# Read-ahead per column of a file on disk.
_DISK_BUFFER_BYTES = 1 << 20
_FOOTERS_AT_A_TIME = 16
_UNREAD_BY_SPARK = frozenset({"BROTLI", "LZO"})
_UTC_TIMESTAMP = pa.timestamp("us", "UTC")
# A task that reads this much makes a file of a good size in block layout.
_TASK_BYTES = 256 * 2**20


class ParquetError(ClearError, ValueError):
    """A file that is not Parquet or does not match the others; the message names it."""


class NotParquetError(ParquetError):
    """A file that is not Parquet; the message names it."""


@dataclass(frozen=True)
class RowGroups:
    """Row groups ``first`` to ``stop`` (not included) of one file."""

    file: listing.DataFile
    first: int
    stop: int


@dataclass(frozen=True)
class ParquetRows:
    """The rows of some Parquet files: a plain value that pickles.

    Attributes:
        schema: The columns to read, including those of partition folders.
        groups: Every row group, in the order of the files.
        group_bytes: The uncompressed size of each row group.
    """

    schema: pa.Schema
    groups: tuple[RowGroups, ...]
    group_bytes: tuple[int, ...]
    group_rows: tuple[int, ...]

    @classmethod
    def of(
        cls, locations: str | Path | StoragePath | Iterable[str | Path | StoragePath], columns: Sequence[str] | None
    ) -> "ParquetRows":
        """Read the files' footers.

        Args:
            locations: Files, folders or globs.
            columns: The columns to read, in this order; all by default.

        Raises:
            FileNotFoundError: There are no files.
            ParquetError: A file is not Parquet, its columns differ from the first file's, or it lacks a requested one.
                Additional columns are an error if all columns are requested.
        """
        return cls.of_files(parquet_files(locations), columns)

    @classmethod
    def of_files(cls, files: Sequence[listing.DataFile], columns: Sequence[str] | None) -> "ParquetRows":
        """Read the footers of files that are already listed; otherwise as :meth:`of`.

        Raises:
            ParquetError: As in :meth:`of`.
        """
        return ParquetFiles.of(files).rows(columns)

    @property
    def rows(self) -> int:
        """The number of rows in all of them."""
        return sum(self.group_rows)

    def divide(self, slots: int) -> tuple[tuple[RowGroups, ...], ...]:
        """Return a share of the row groups for each task: consecutive groups, about equal in bytes.

        Args:
            slots: Tasks that run at the same time; the number of shares is a multiple if there are enough row groups.
        """
        return self.shares(self.groups_per_task(slots))

    def groups_per_task(self, slots: int) -> tuple[int, ...]:
        """Return the number of consecutive row groups that :meth:`divide` gives to each task."""
        total = sum(self.group_bytes)
        tasks = slots * -(-total // (slots * _TASK_BYTES)) if total else 1
        counts = [0] * min(tasks, max(1, len(self.groups)))
        before = 0
        for size in self.group_bytes:
            # By the group's middle, so that a large group goes where most of its bytes belong.
            middle = before + size / 2
            counts[min(len(counts) - 1, int(middle * len(counts) / total)) if total else 0] += 1
            before += size
        return tuple(count for count in counts if count)

    def part(self, first: int, count: int) -> "ParquetRows":
        """Return ``count`` row groups from ``first`` on."""
        own = slice(first, first + count)
        return ParquetRows(self.schema, self.groups[own], self.group_bytes[own], self.group_rows[own])

    def shares(self, groups_per_task: Iterable[int]) -> tuple[tuple[RowGroups, ...], ...]:
        """Return the row groups of each task, given their number per task."""
        groups = iter(self.groups)
        return tuple(_joined(islice(groups, count)) for count in groups_per_task)

    def batches(self, share: Sequence[RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one share, a multiple of ``multiple`` at a time except at the end of row groups.

        A batch has about 32 thousand rows, or fewer if these take more than 8 MB. Long repeated texts take more,
        because the file does not record their length.

        Raises:
            OSError: A file cannot be read; the message names it.
        """
        for groups in share:
            try:
                yield from self._batches(groups, multiple)
            except (pa.ArrowException, OSError) as error:
                raise OSError(f"{groups.file.path} cannot be read: {error}") from error

    def _batches(self, groups: RowGroups, multiple: int) -> Iterator[pa.RecordBatch]:
        folders = dict(groups.file.partition)
        stored = [name for name in self.schema.names if name not in folders]
        numbers = list(range(groups.first, groups.stop))
        with groups.file.path.open_read() as source:
            file = _opened(source, groups.file.path)
            rows = max(multiple, _rows_at_a_time(file.metadata, numbers, stored) // multiple * multiple)
            for batch in file.iter_batches(rows, row_groups=numbers, columns=stored, use_threads=False):
                yield pa.RecordBatch.from_arrays(
                    [
                        listing.partition_column(folders[field.name], field.type, batch.num_rows)
                        if field.name in folders
                        else _as_described(batch.column(field.name), field.type)
                        for field in self.schema
                    ],
                    schema=self.schema,
                )


def largest_share(group_rows: Sequence[int], groups_per_task: Sequence[int]) -> int:
    """Return the rows of the task with the most, given the rows of each row group and the groups of each task."""
    rows = iter(group_rows)
    return max((sum(islice(rows, count)) for count in groups_per_task), default=0)


def _joined(groups: Iterable[RowGroups]) -> tuple[RowGroups, ...]:
    """Return the row groups with consecutive ones of a file merged."""
    joined: list[RowGroups] = []
    for group in groups:
        if joined and joined[-1].file == group.file and joined[-1].stop == group.first:
            joined[-1] = RowGroups(group.file, joined[-1].first, group.stop)
        else:
            joined.append(group)
    return tuple(joined)


def _rows_at_a_time(footer: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Return the number of rows of some columns to decode together."""
    wanted = set(columns)
    rows = size = 0
    for number in groups:
        group = footer.row_group(number)
        rows += group.num_rows
        for place in range(group.num_columns):
            column = group.column(place)
            # A nested column has one entry for each of its leaves.
            if column.path_in_schema.split(".")[0] in wanted:
                # Uncompressed data is still encoded: repeated values take almost nothing.
                decoded = column.num_values * _DECODED_BYTES.get(column.physical_type, 0)
                size += max(column.total_uncompressed_size, decoded)
    return BATCH_ROWS if not size else max(1, min(BATCH_ROWS, BATCH_BYTES * rows // size))


@dataclass(frozen=True)
class _Footer:
    """Facts of a file; ``unread`` has the codecs of its columns that Spark does not read."""

    schema: pa.Schema
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files and their footers.

    Attributes:
        files: At least one.
    """

    files: tuple[listing.DataFile, ...]
    footers: tuple[_Footer, ...]

    @classmethod
    def of(cls, files: Sequence[listing.DataFile]) -> "ParquetFiles":
        """Read the footers.

        Raises:
            NotParquetError: A file is not Parquet.
            ParquetError: A file has two columns of the same name.
        """
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            return cls(tuple(files), tuple(pool.map(_footer, files)))

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the first file, and of all partition folders."""
        return _schema(self.files, self.footers[0], None)

    def of_each_schema(self, columns: Sequence[str]) -> tuple[listing.DataFile, ...]:
        """Return the first file of each distinct schema, as far as ``columns`` go.

        Columns of partition folders are in no file.
        """
        folders = dict(self.files[0].partition)
        # Not a dict: types that differ only in the names of their elements are equal but have different hashes.
        found: list[tuple[list[pa.DataType | None], listing.DataFile]] = []
        for file, footer in zip(self.files, self.footers, strict=True):
            by_name = {field.name: field.type for field in footer.schema}
            types = [by_name.get(name) for name in columns if name not in folders]
            if not any(types == others for others, _ in found):
                found.append((types, file))
        return tuple(file for _, file in found)

    def rows(self, columns: Sequence[str] | None) -> ParquetRows:
        """Return the rows of the requested columns, or of all.

        Raises:
            ParquetError: See :meth:`ParquetRows.of`.
        """
        schema = _schema(self.files, self.footers[0], columns)
        stored = [field for field in schema if field.name not in dict(self.files[0].partition)]
        for file, footer in zip(self.files, self.footers, strict=True):
            _check_columns(file, footer, stored, self.files[0])
            if columns is None:
                _check_no_more_columns(file, footer, self.footers[0], self.files[0])
        return ParquetRows(
            schema,
            groups=tuple(
                RowGroups(file, number, number + 1)
                for file, footer in zip(self.files, self.footers, strict=True)
                for number in range(len(footer.group_bytes))
            ),
            group_bytes=tuple(size for footer in self.footers for size in footer.group_bytes),
            group_rows=tuple(rows for footer in self.footers for rows in footer.group_rows),
        )


def parquet_files(locations: str | Path | StoragePath | Iterable[str | Path | StoragePath]) -> list[listing.DataFile]:
    """Return the files at ``locations``: files, folders or globs.

    Raises:
        FileNotFoundError: There are none.
    """
    files = listing.list_files(locations)
    if not files:
        raise FileNotFoundError(f"there are no Parquet files in {locations}; check the path")
    return files


def _footer(file: listing.DataFile) -> _Footer:
    try:
        with file.path.open_read() as source:
            parquet = _opened(source, file.path)
            found = parquet.metadata
            groups = [found.row_group(number) for number in range(found.num_row_groups)]
            # Without the metadata of pandas and Spark, which may differ between files.
            leaves = iter([parquet.schema.column(place) for place in range(len(parquet.schema))])
            fields = [
                pa.field(field.name, _plain_type(field.type, leaves), field.nullable) for field in parquet.schema_arrow
            ]
            names = [field.name for field in fields]
            repeated = repeated_names(names)
            if repeated:
                raise ParquetError(f"{file.path} has the columns {repeated} twice; leave it out, or rename them")
            return _Footer(
                pa.schema(fields),
                group_rows=tuple(group.num_rows for group in groups),
                group_bytes=tuple(group.total_byte_size for group in groups),
                unread=_unread_by_spark(groups[0]) if groups else (),
            )
    except pa.ArrowNotImplementedError as error:
        # Arrow does not say which column it is.
        raise ParquetError(
            f"{file.path} has a column of a type that is not read: {error}; write it as a text or in fewer digits, in "
            f"Polars by df.with_columns(pl.col(pl.Int128).cast(pl.Decimal(38, 0)))"
        ) from error
    except pa.ArrowInvalid as error:
        raise NotParquetError(f"{file.path} is not a Parquet file: {error}; leave it out") from error


def _unread_by_spark(group: pq.RowGroupMetaData) -> tuple[str, ...]:
    codecs = {group.column(place).compression for place in range(group.num_columns)}
    return tuple(sorted(codecs & _UNREAD_BY_SPARK))


def _plain_type(type_: pa.DataType, leaves: Iterator[pq.ColumnSchema]) -> pa.DataType:
    """Return the type of a column as Spark and this library treat it.

    A category of pandas is a text. The old 96-bit timestamps are in UTC, also within lists, maps and structs, though
    the file does not say so.

    Args:
        type_: As Arrow finds it.
        leaves: The file's leaf columns, in their order; those of this column are consumed.
    """
    if pa.types.is_struct(type_):
        return pa.struct([_plain_field(field, leaves) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_plain_field(type_.key_field, leaves), _plain_field(type_.item_field, leaves))
    if pa.types.is_list(type_):
        return pa.list_(_plain_field(type_.value_field, leaves))
    if pa.types.is_large_list(type_):
        return pa.large_list(_plain_field(type_.value_field, leaves))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_plain_field(type_.value_field, leaves), type_.list_size)
    if next(leaves).physical_type == "INT96":
        return _UTC_TIMESTAMP
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _plain_field(field: pa.Field, leaves: Iterator[pq.ColumnSchema]) -> pa.Field:
    return field.with_type(_plain_type(field.type, leaves))


def _as_described(column: pa.Array, type_: pa.DataType) -> pa.Array:
    return column if column.type == type_ else column.cast(type_)


def _opened(source: pa.NativeFile, path: StoragePath) -> pq.ParquetFile:
    # Reads from a store are slow, so all columns are requested at once, ahead of their use, and held. A disk is read as
    # values are decoded: row groups may be large, and there is a reader per core.
    reading = {"pre_buffer": False, "buffer_size": _DISK_BUFFER_BYTES} if path.is_local else {"pre_buffer": True}
    # Spark writes timestamps in the old 96-bit form by default, which would become nanoseconds.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="us", **reading)


def _schema(files: Sequence[listing.DataFile], footer: _Footer, columns: Sequence[str] | None) -> pa.Schema:
    folders = listing.partition_schema(files)
    fields = {field.name: field for field in [*footer.schema, *folders]}
    wanted = list(fields) if columns is None else list(columns)
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise ParquetError(f"{files[0].path} has no column {missing}; it has {list(fields)}")
    return pa.schema([fields[name] for name in wanted])


def _check_columns(
    file: listing.DataFile, footer: _Footer, expected: Sequence[pa.Field], first: listing.DataFile
) -> None:
    found = {field.name: field.type for field in footer.schema}
    for field in expected:
        if found.get(field.name) != field.type:
            raise ParquetError(
                f"column '{field.name}' is {found.get(field.name, 'missing')} in {file.path} and {field.type} in "
                f"{first.path}; write files of one schema, or read them with Spark"
            )


def _check_no_more_columns(
    file: listing.DataFile, footer: _Footer, first_footer: _Footer, first: listing.DataFile
) -> None:
    known = set(first_footer.schema.names)
    more = [name for name in footer.schema.names if name not in known]
    if more:
        raise ParquetError(
            f"{file.path} has columns {more}, which {first.path} does not have; write files of one schema, or name the "
            f"columns to read"
        )
