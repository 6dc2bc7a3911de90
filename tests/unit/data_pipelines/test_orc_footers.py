"""Footers of ORC files, and the zone of their writer in them."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.orc
import pytest

from mirrorspark.data_pipelines.orc_footers import OrcError, known_zone, read_footer
from mirrorspark.storage import StoragePath

TIME = pa.array([datetime(2024, 1, 15, 12)], pa.timestamp("us"))
# As many columns as make it worth while to pack the footers.
MANY = {f"one of the many columns of a table, {number}": [number] for number in range(200)}


@pytest.mark.parametrize("compression", ["uncompressed", "zlib", "snappy", "zstd", "lz4"])
def test_the_zone_of_a_writer_is_read_from_footers_packed_in_any_way(tmp_path: Path, compression: str) -> None:
    pyarrow.orc.write_table(pa.table({"t": TIME, **MANY}), tmp_path / "t.orc", compression=compression)
    footer = read_footer(StoragePath.of(tmp_path / "t.orc"))
    assert (footer.zone, footer.is_of_spark, list(footer.times)) == ("UTC", False, ["t"])


def test_a_writer_without_a_zone_or_with_one_that_is_not_known_has_none(tmp_path: Path) -> None:
    path = tmp_path / "t.orc"
    pyarrow.orc.write_table(pa.table({"t": TIME}), path, compression="uncompressed")
    written = path.read_bytes()
    for field in (b"\x1a\x03X/Y", b"\x22\x03GMT"):
        path.write_bytes(written.replace(b"\x1a\x03GMT", field))
        assert path.read_bytes() != written
        assert read_footer(StoragePath.of(path)).zone is None


def test_times_with_a_zone_and_files_without_rows_ask_for_no_zone(tmp_path: Path) -> None:
    lists = pa.array([[[None]]], pa.list_(pa.list_(TIME.type)))
    columns = {"moment": TIME.cast(pa.timestamp("us", "UTC")), "lists": lists}
    pyarrow.orc.write_table(pa.table(columns), tmp_path / "rows.orc")
    assert list(read_footer(StoragePath.of(tmp_path / "rows.orc")).times) == ["lists"]
    pyarrow.orc.write_table(pa.table({"t": TIME}).slice(1), tmp_path / "none.orc")
    assert read_footer(StoragePath.of(tmp_path / "none.orc")).zone == "UTC"


def test_a_file_that_is_not_orc_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.orc").write_bytes(b"ORC no")
    with pytest.raises(OrcError, match=r"t\.orc is not an ORC file: .*; leave it out"):
        read_footer(StoragePath.of(tmp_path / "t.orc"))


@pytest.mark.parametrize(
    ("name", "zone"),
    [("GMT", "UTC"), ("Europe/Berlin", "Europe/Berlin"), ("GMT+01:00", None), ("../etc", None), ("", None)],
)
def test_a_zone_goes_by_one_name_if_it_is_known(name: str, zone: str | None) -> None:
    assert known_zone(name) == zone
