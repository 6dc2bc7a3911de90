"""H10, S5: the queries of the page about SQL run as they are written."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyspark.errors import PySparkException

import mirrorspark as ms
from mirrorspark.spark_session import task_message

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sql.md"


def test_every_query_of_the_page_gives_scores(spark: "SparkSession", tmp_path: Path) -> None:
    coefficients = {"distance": 0.001}
    model = ms.package_model({"coefficients": coefficients, "link": "logit"}, tmp_path / "linear")
    flights = "flight_id BIGINT, carrier STRING, origin STRING, dest STRING, month INT, distance DOUBLE"
    spark.createDataFrame([(1, "AA", "JFK", "SFO", 12, 2586.0)], flights).createOrReplaceTempView("all_flights")
    partner = "id BIGINT, airline STRING, miles DOUBLE, origin STRING, dest STRING"
    spark.createDataFrame([(1, "AA", 2586.0, "JFK", "SFO")], partner).createOrReplaceTempView("partner_flights")
    ms.register_sql(spark, "late_risk", model)
    queries = [query for block in blocks() for query in block.split("\n\n") if "SELECT" in query]
    assert len(queries) == 5
    for query in queries:
        (row,) = spark.sql(query[query.index("SELECT") :]).collect()
        score = row["risk"] if "risk" in row else row[-1]
        assert 0.9 < score < 1, query


def blocks() -> list[str]:
    """Return the indented blocks of the page that are SQL."""
    found = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [text for text in map(textwrap.dedent, found) if text.startswith(("SELECT", "CREATE"))]


def test_a_missing_column_is_an_error_when_the_query_runs(spark: "SparkSession", tmp_path: Path) -> None:
    """Spark plans a call of a scorer without a look at the fields of its struct."""
    model = ms.package_model({"coefficients": {"distance": 0.001}, "link": "logit"}, tmp_path / "linear")
    ms.register_sql(spark, "of_distance", model)
    planned = spark.sql("SELECT of_distance(named_struct('miles', 2586.0D)).score")
    with pytest.raises(PySparkException) as raised:
        planned.collect()
    assert re.search(r"column 'distance' .* missing|no column 'distance'|lacks.*distance", task_message(raised.value))
