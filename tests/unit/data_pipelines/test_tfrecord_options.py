"""The options of the JVM connectors are understood, others are refused by name (T1)."""

import pytest

from data_pipelines.tfrecord.arrow_schema import RecordType
from data_pipelines.tfrecord_options import Layout, OnDamage, OptionError, ReadOptions, WriteOptions


def test_connector_options_arrive_in_lower_case() -> None:
    options = WriteOptions.of(
        {"path": "/x", "recordtype": "SequenceExample", "codec": "org.apache.hadoop.io.compress.GzipCodec"}
    )

    assert options == WriteOptions(record_type=RecordType.SEQUENCE_EXAMPLE, codec="gzip")


def test_our_own_options_are_read() -> None:
    written = WriteOptions.of({"layout": "BLOCK", "rowsPerBlock": "64", "maxRecordsPerFile": "100"})
    read = ReadOptions.of({"onDamage": "skip", "verifyChecksums": "false", "sampleFiles": "3", "basePath": "/x"})

    assert written == WriteOptions(layout=Layout.BLOCK, rows_per_block=64, max_rows_per_file=100)
    assert read == ReadOptions(on_damage=OnDamage.SKIP, verify_checksums=False, sample_files=3, base_path="/x")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("", "none"), ("GZIP", "gzip"), ("deflate", "zlib"), ("org.apache.hadoop.io.compress.DefaultCodec", "zlib")],
)
def test_codecs_by_name_and_by_hadoops_class(name: str, codec: str) -> None:
    assert WriteOptions(codec=name).codec == codec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recordtype": "Exmaple"}, "recordType 'Exmaple' is none of Example, SequenceExample, ByteArray"),
        ({"codec": "snappy"}, "codec 'snappy' is none that TFRecord readers know; use none, gzip or zlib"),
        ({"layuot": "block"}, "unknown option layuot; the options are codec"),
        ({"rowsperblock": "0"}, "rows_per_block is 0"),
        ({"rowsperblock": "many"}, "'many' is no whole number"),
        ({"layout": "block", "recordtype": "ByteArray"}, "a block is an Example"),
    ],
)
def test_what_a_write_cannot_do_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WriteOptions.of(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ondamage": "ignore"}, "on_damage 'ignore' is none of fail, skip"),
        ({"verifychecksums": "maybe"}, "'maybe' is neither true nor false"),
        ({"samplefiles": "-1"}, "'-1' is no whole number"),
        ({"partitionby": "day"}, "unknown option partitionby"),
    ],
)
def test_what_a_read_cannot_do_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ReadOptions.of(options)
