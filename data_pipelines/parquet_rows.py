"""Rows of Parquet files, read with pyarrow inside a task: which row groups there are, and a share of them for each."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.file_listing import DataFile, list_files, partition_column, partition_schema
from data_pipelines.repeated_names import repeated_names
from data_pipelines.storage import StoragePath

# Rows that are decoded at a time; more do not make it faster, fewer do make it slower. And how many bytes of wide rows:
# lists of 100 and 200 features take as long to be scored by 4 or 16 MB, 50 MB more of memory by 16, and by 64 MB a
# tenth and a quarter longer and 0.3 GB more.
BATCH_ROWS = 32 * 1024
BATCH_BYTES = 8 * 2**20
# What a value takes in memory, by its type in the file, as far as the type tells; of a text that is where it begins.
_DECODED_BYTES = {"INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
# Read ahead of a column of a file on disk.
_DISK_BUFFER_BYTES = 1 << 20
_FOOTERS_AT_A_TIME = 16
_MOMENT = pa.timestamp("us", "UTC")
# A task that reads so much makes a file of a good size, in block layout.
_TASK_BYTES = 256 * 2**20


class ParquetError(ValueError):
    """A file is not Parquet, or does not fit the others; the message says which."""


class NotParquetError(ParquetError):
    """A file is not Parquet; the message says which."""


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
        group_rows: The rows of each row group.
    """

    schema: pa.Schema
    groups: tuple[RowGroups, ...]
    group_bytes: tuple[int, ...]
    group_rows: tuple[int, ...]

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
        return cls.of_files(parquet_files(locations), columns)

    @classmethod
    def of_files(cls, files: Sequence[DataFile], columns: Sequence[str] | None) -> "ParquetRows":
        """Look at the footers of files that are listed already; everything else is as :meth:`of` does it.

        Raises:
            ParquetError: As there.
        """
        return ParquetFiles.of(files).rows(columns)

    @property
    def rows(self) -> int:
        """Rows in all of them."""
        return sum(self.group_rows)

    def dealt(self, slots: int) -> tuple[tuple[RowGroups, ...], ...]:
        """Return a share of the row groups for each task, neighbours together, about equal in bytes.

        Args:
            slots: Tasks that run at the same time; there is a multiple of them where the files have the row groups.
        """
        return self.shares(self.groups_per_task(slots))

    def groups_per_task(self, slots: int) -> tuple[int, ...]:
        """Return how many of the row groups, in their order, :meth:`dealt` gives to each task."""
        total = sum(self.group_bytes)
        tasks = slots * -(-total // (slots * _TASK_BYTES)) if total else 1
        counts = [0] * min(tasks, max(1, len(self.groups)))
        before = 0
        for size in self.group_bytes:
            # By the group's middle, so that one of many bytes goes where most of them would.
            middle = before + size / 2
            counts[min(len(counts) - 1, int(middle * len(counts) / total)) if total else 0] += 1
            before += size
        return tuple(count for count in counts if count)

    def shares(self, groups_per_task: Iterable[int]) -> tuple[tuple[RowGroups, ...], ...]:
        """Return the row groups of each task, of which one has so many and the next so many."""
        groups = iter(self.groups)
        return tuple(_joined(islice(groups, count)) for count in groups_per_task)

    def batches(self, share: Sequence[RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one share, a multiple of ``multiple`` at a time except where row groups end.

        A batch has some 32 thousand rows, or fewer where these take more than 8 MB. Long texts that repeat themselves
        in a file take more: it does not tell how long they are.

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
                        partition_column(folders[field.name], field.type, batch.num_rows)
                        if field.name in folders
                        else _as_described(batch.column(field.name), field.type)
                        for field in self.schema
                    ],
                    schema=self.schema,
                )


def _joined(groups: Iterable[RowGroups]) -> tuple[RowGroups, ...]:
    """Return the same row groups, those of one file that follow each other as one."""
    joined: list[RowGroups] = []
    for group in groups:
        if joined and joined[-1].file == group.file and joined[-1].stop == group.first:
            joined[-1] = RowGroups(group.file, joined[-1].first, group.stop)
        else:
            joined.append(group)
    return tuple(joined)


def _rows_at_a_time(footer: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Return how many rows of some columns are decoded together."""
    wanted = set(columns)
    rows = size = 0
    for number in groups:
        group = footer.row_group(number)
        rows += group.num_rows
        for place in range(group.num_columns):
            column = group.column(place)
            # Of a nested column there is one for each of its leaves.
            if column.path_in_schema.split(".")[0] in wanted:
                # Uncompressed is still encoded: what repeats itself takes next to nothing there.
                decoded = column.num_values * _DECODED_BYTES.get(column.physical_type, 0)
                size += max(column.total_uncompressed_size, decoded)
    return BATCH_ROWS if not size else max(1, min(BATCH_ROWS, BATCH_BYTES * rows // size))


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files, and what their footers say of them.

    Attributes:
        files: At least one.
        footers: The footer of each.
    """

    files: tuple[DataFile, ...]
    footers: tuple[_Footer, ...]

    @classmethod
    def of(cls, files: Sequence[DataFile]) -> "ParquetFiles":
        """Read the footers.

        Raises:
            NotParquetError: A file is not Parquet.
            ParquetError: A file has two columns of one name.
        """
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
            return cls(tuple(files), tuple(pool.map(_footer, files)))

    @property
    def schema(self) -> pa.Schema:
        """The columns of the first file, and of all partition folders."""
        return _schema(self.files, self.footers[0], None)

    def of_each_schema(self, columns: Sequence[str]) -> tuple[DataFile, ...]:
        """Return the first file of each schema that there is among them, as far as ``columns`` go.

        A column of partition folders is in no file.
        """
        folders = dict(self.files[0].partition)
        # Not a dict: types that are equal but for what their elements are called have other hashes.
        found: list[tuple[list[pa.DataType | None], DataFile]] = []
        for file, footer in zip(self.files, self.footers, strict=True):
            by_name = {field.name: field.type for field in footer.schema}
            types = [by_name.get(name) for name in columns if name not in folders]
            if not any(types == others for others, _ in found):
                found.append((types, file))
        return tuple(file for _, file in found)

    def rows(self, columns: Sequence[str] | None) -> ParquetRows:
        """Return the rows of the columns asked for, or of all.

        Raises:
            ParquetError: As for :meth:`ParquetRows.of`.
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


def parquet_files(locations: str | Path | StoragePath | Iterable[str | Path | StoragePath]) -> list[DataFile]:
    """Return the files at ``locations``: files, folders or globs.

    Raises:
        FileNotFoundError: There are none.
    """
    files = list_files(locations)
    if not files:
        raise FileNotFoundError(f"there are no Parquet files in {locations}; check the path")
    return files


def _footer(file: DataFile) -> _Footer:
    try:
        with file.path.open_read() as source:
            parquet = _opened(source, file.path)
            found = parquet.metadata
            groups = [found.row_group(number) for number in range(found.num_row_groups)]
            # Without the notes of pandas and Spark, which need not agree.
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
            )
    except pa.ArrowInvalid as error:
        raise NotParquetError(f"{file.path} is not a Parquet file: {error}; leave it out") from error


def _plain_type(type_: pa.DataType, leaves: Iterator[pq.ColumnSchema]) -> pa.DataType:
    """Return the type of a column as it is to Spark, and here.

    What pandas calls a category is a text. The old 96-bit timestamps are moments, also within lists, maps and structs,
    though the file does not say that they are in UTC.

    Args:
        type_: As Arrow finds it.
        leaves: The file's columns of plain values, in their order; those of this column are taken.
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
        return _MOMENT
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _plain_field(field: pa.Field, leaves: Iterator[pq.ColumnSchema]) -> pa.Field:
    return field.with_type(_plain_type(field.type, leaves))


def _as_described(column: pa.Array, type_: pa.DataType) -> pa.Array:
    return column if column.type == type_ else column.cast(type_)


def _opened(source: pa.NativeFile, path: StoragePath) -> pq.ParquetFile:
    # A read of a store takes long, so all columns are asked for at once, ahead of their use, and held. A disk is read
    # as values are decoded: row groups may be large, and there is a reader per core.
    reading = {"pre_buffer": False, "buffer_size": _DISK_BUFFER_BYTES} if path.is_local else {"pre_buffer": True}
    # Spark's own timestamps, unless told otherwise, are of the old 96-bit kind, which would become nanoseconds.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="us", **reading)


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
    known = set(first_footer.schema.names)
    more = [name for name in footer.schema.names if name not in known]
    if more:
        raise ParquetError(
            f"{file.path} has columns {more}, which {first.path} does not have; write files of one schema, or name the "
            f"columns to read"
        )
