"""Differences between versions of PySpark, without a session."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from mirrorspark.spark_session import MissingCapabilityError, versions


def test_large_lists_are_lists_to_spark_wherever_they_are() -> None:
    """PySpark 3.5 does not know them; a table of Polars has them."""
    items = pa.struct({"tags": pa.large_list(pa.large_string())})
    found = versions.from_arrow_schema(pa.schema({"x": pa.large_list(pa.int64()), "items": pa.list_(items)}))
    assert found.simpleString() == "struct<x:array<bigint>,items:array<struct<tags:array<string>>>>"


@pytest.mark.parametrize(
    ("require", "words"),
    [
        (versions.require_python_sources, "no formats in Python, such as tfrecord; use mirrorspark.write_tfrecords"),
        (versions.require_connect, "no Spark Connect that we can use; use a classic session"),
    ],
)
def test_what_pyspark_3_5_lacks_is_refused_with_the_remedy(
    require: Callable[[], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "HAS_PYTHON_SOURCES", True)
    require()
    monkeypatch.setattr(versions, "HAS_PYTHON_SOURCES", False)
    with pytest.raises(MissingCapabilityError, match=words) as refused:
        require()
    assert str(refused.value).endswith("or Spark 4.0 or later")
