"""The options of the JVM connectors are understood, others are refused by name (T1)."""

from typing import Any

import pytest

from mirrorspark.data_pipelines.spark.tfrecord_options import Layout, OnDamage, OptionError, ReadOptions, WriteOptions
from mirrorspark.data_pipelines.tfrecord.arrow_schema import RecordType


def test_connector_options_arrive_in_lower_case() -> None:
    options = WriteOptions.of(
        {
            "path": "/x",
            "recordtype": "SequenceExample",
            "codec": "org.apache.hadoop.io.compress.GzipCodec",
            "writelocality": "distributed",
        }
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
        ({"codec": "snappy"}, "codec 'snappy' is not a codec of TFRecord readers; use none, gzip or zlib"),
        ({"layuot": "block"}, "unknown option layuot; the options are codec"),
        ({"rowsperblock": "0"}, "rowsPerBlock is 0; it is a whole number from 1 on"),
        ({"rowsperblock": "many"}, "rowsPerBlock is 'many'; it is a whole number"),
        ({"layout": "block", "recordtype": "ByteArray"}, "a block is an Example"),
        ({"writelocality": "local"}, "writeLocality 'local' is not 'distributed'.*give a folder that .* share"),
    ],
)
def test_unsupported_options_of_a_write_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WriteOptions.of(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ondamage": "ignore"}, "onDamage 'ignore' is none of fail, skip"),
        ({"verifychecksums": "maybe"}, "verifyChecksums is 'maybe'; it is true or false"),
        ({"samplefiles": "-1"}, "sampleFiles is '-1'; it is a whole number"),
        ({"partitionby": "day"}, "unknown option partitionby; write with ms.write_tfrecords"),
        ({"ignoreCorruptFiles": "true"}, "unknown option ignoreCorruptFiles; give onDamage=skip; the options are"),
    ],
)
def test_unsupported_options_of_a_read_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ReadOptions.of(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_block": "5"}, "rows_per_block is '5'; it is a whole number from 1 on"),
        ({"rows_per_block": True}, "rows_per_block is True; it is a whole number from 1 on"),
        ({"max_rows_per_file": 2.5}, r"max_rows_per_file is 2\.5; it is a whole number from 0 on"),
        ({"codec": None}, "codec None is not a codec of TFRecord readers"),
        ({"layout": None}, "layout None is none of row, block"),
        ({"record_type": 3}, "record_type 3 is none of Example"),
    ],
)
def test_values_of_other_types_are_refused_under_the_names_of_the_functions(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        WriteOptions(**options)


def test_values_of_other_types_are_refused_for_reads_too() -> None:
    with pytest.raises(OptionError, match="verify_checksums is 'no'; it is true or false"):
        ReadOptions(verify_checksums="no")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="base_path is 3; it is a path"):
        ReadOptions(base_path=3)  # type: ignore[arg-type]
