"""Features of every kind by Spark: proposed, fitted, converted and read (F1-F3, F5, F8, F9)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.any_table import in_memory, read_table
from mirrorspark.data_pipelines.conversion import ConversionOptions, convert
from mirrorspark.data_pipelines.features.column_facts import arrow_facts, column_facts
from mirrorspark.data_pipelines.features.infer import NoKeyError, infer_spec
from mirrorspark.data_pipelines.features.kinds import (
    Bucketed,
    Categorical,
    Date,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    Text,
    Vector,
)
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import RaggedIds, SparseRows
from mirrorspark.data_pipelines.memory_tables import in_arrow
from mirrorspark.data_pipelines.sources import MemorySource
from mirrorspark.training.entry_points.fit_rows import default_spec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS = 2_000


@pytest.fixture(scope="module")
def orders(spark: "SparkSession") -> "DataFrame":
    """Return a table with a column of every kind; a row's values follow from its number."""
    hashed = "pmod(xxhash64(id, {seed}), {size})"
    return (
        spark.range(ROWS)
        .selectExpr(
            "id AS order_id",
            f"{hashed.format(seed=1, size=2)} AS again",
            f"cast({hashed.format(seed=2, size=5)} AS int) AS weekday",
            f"exp({hashed.format(seed=3, size=1000)} / 100.0D) AS amount",
            f"{hashed.format(seed=4, size=1000)} AS age",
            f"concat('c', {hashed.format(seed=5, size=100)}) AS city",
            f"concat('Größe ', {hashed.format(seed=6, size=1800)}, ' fits VERY well!') AS review",
            f"slice(array('a', 'b', 'c', 'd'), 1, cast({hashed.format(seed=7, size=4)} AS int)) AS tags",
            "array('first', 'second', 'third') AS seen",
            "array(timestamp '2024-01-03', timestamp '2024-01-01', timestamp '2024-01-02') AS seen_at",
            f"map(cast({hashed.format(seed=8, size=50)} AS int), 2.0D) AS basket",
            f"array({hashed.format(seed=9, size=90)}, 99L) AS clicked",
            "array(0.5D, 1.0D) AS clicks",
            f"slice(array('toys', 'books', 'food'), 1, cast({hashed.format(seed=10, size=4)} AS int)) AS topics",
            "CASE WHEN id % 5 = 0 THEN 'test' WHEN id % 5 = 1 THEN 'validation' ELSE 'train' END AS split",
        )
        .withColumn("vector", array_to_vector(F.array(F.lit(0.0), F.col("age").cast("double"))))
        .withColumn("picture", F.when(F.col("age") % 2 == 0, F.array(F.lit(0.5), F.col("age").cast("double"))))
    )


SPEC = FeatureSpec(
    (
        Numeric("amount", clip=(0, 5_000), log=True),
        Bucketed("age", buckets=4),
        Categorical("city", min_count=2),
        Categorical("weekday", hash_buckets=10),
        Text("review", max_length=4),
        MultiValued("tags", max_length=2),
        Sequence("seen", time="seen_at", max_length=2),
        Sparse("basket", size=50),
        Sparse("visits", size=100, indices="clicked", values="clicks"),
        Sparse("vector", size=2),
        Vector("picture", size=2),
    ),
    Label("topics", "multi_label"),
    ("order_id",),
)


def test_every_kind_is_fitted_converted_and_read(orders: "DataFrame", tmp_path: Path) -> None:
    dataset = convert(orders, SPEC, tmp_path / "orders", options=ConversionOptions(shards=2))
    tokens = {name: vocabulary.tokens.to_pylist() for name, vocabulary in dataset.features.vocabularies.items()}
    assert tokens["tags"] == ["a", "b", "c"]
    assert tokens["topics"] == ["toys", "books", "food"]
    assert sorted(tokens["seen"]) == ["first", "second", "third"]
    assert {"grösse", "fits", "very", "well"} < set(tokens["review"])
    assert dataset.features.boundaries(SPEC["age"]) == pytest.approx([250, 500, 750], abs=60)  # type: ignore[arg-type]
    third, first = tokens["seen"].index("third") + 2, tokens["seen"].index("first") + 2
    for block in dataset.blocks("train"):
        assert block.features["seen"].tolist() == [[third, first]] * block.rows  # type: ignore[union-attr]
        basket, visits, vector = (block.features[name] for name in ("basket", "visits", "vector"))
        assert isinstance(basket, SparseRows)
        assert basket.values.tolist() == [2.0] * block.rows
        assert isinstance(visits, SparseRows)
        assert visits.indices[1::2].tolist() == [99] * block.rows
        assert isinstance(vector, SparseRows)
        assert set(vector.indices.tolist()) == {1}
        pictures = {tuple(picture) for picture in block.features["picture"].tolist()}  # type: ignore[union-attr]
        assert (0.0, 0.0) in pictures
        assert {half for half, age in pictures - {(0.0, 0.0)} if age % 2 == 0} == {0.5}
        assert isinstance(block.label, RaggedIds)
        assert block.label.multi_hot(dataset.features.classes).shape == (block.rows, 3)
        ages = np.bincount(block.features["age"], minlength=6)[2:]  # type: ignore[arg-type]
        assert (np.abs(ages / block.rows - 0.25) < 0.08).all()


def test_a_spec_is_proposed_for_a_table(orders: "DataFrame", caplog: pytest.LogCaptureFixture) -> None:
    spec = FeatureSpec.infer(orders.drop("topics"), label="again")
    told = [
        record.getMessage() for record in caplog.records if record.name == "mirrorspark.data_pipelines.features.infer"
    ]
    assert told
    assert all("left out: " in line for line in told)  # of the others nothing is a warning
    assert spec.keys == ("order_id",)
    assert spec.label == Label("again")
    proposed = {feature.name: type(feature) for feature in spec}
    assert proposed == {
        "weekday": Numeric,
        "amount": Numeric,
        "age": Numeric,
        "city": Categorical,
        "review": Text,
        "tags": MultiValued,
        "seen": MultiValued,
        "basket": Sparse,
        "clicked": MultiValued,
        "clicks": Vector,
        "vector": Sparse,
        "picture": Vector,
    }
    assert isinstance(orders.schema["vector"].dataType, VectorUDT)
    assert (spec["basket"], spec["vector"]) == (Sparse("basket", size=50), Sparse("vector", size=2))
    assert FeatureSpec.infer(orders, label="topics", keys=["order_id"]).label == Label("topics", "multi_label")


def test_a_table_in_memory_is_measured_as_spark_measures_it(orders: "DataFrame") -> None:
    nothing = "CASE WHEN order_id % 3 < 2 THEN {} END"
    df = orders.drop("vector").selectExpr(
        "*",
        f"{nothing.format('amount')} AS gaps",
        "cast('nan' AS double) AS not_a_number",
        "cast(null AS double) AS empty",
        "cast(null AS map<int, double>) AS no_map",
        f"{nothing.format('cast(age AS decimal(9, 2))')} AS price",
        f"{nothing.format('age > 300')} AS is_old",
        r"concat('\t', repeat('a\u000b b  ', cast(age % 40 AS int)), '  ') AS words",
        f"{nothing.format('array(amount)')} AS one",
        "concat('$', cast(amount AS decimal(9, 2))) AS money",
        "array_repeat(amount, cast(order_id % 2 AS int)) AS one_or_none",
        "named_struct('a', 1) AS struct",
        "7.0D AS same",
    )
    rows = df.toArrow()
    found, expected = arrow_facts(rows, df.schema), column_facts(df)
    assert list(found) == df.columns
    for name, facts in expected.items():
        assert found[name].distinct == pytest.approx(facts.distinct, rel=0.1), name
        if facts.skewness is not None and found[name].skewness is not None:
            assert found[name].skewness == pytest.approx(facts.skewness, rel=1e-6), name
            facts = replace(facts, skewness=found[name].skewness)
        assert replace(found[name], distinct=facts.distinct) == facts
    here, there = infer_spec(MemorySource(rows, df.schema), label="again"), FeatureSpec.infer(df, label="again")
    assert (here, here.reasons) == (there, there.reasons)
    with pytest.raises(NoKeyError, match=r"the values of .*'size'"):
        infer_spec(
            MemorySource(rows.rename_columns({"order_id": "size"}), df.withColumnRenamed("order_id", "size").schema),
            label="again",
        )


def test_orders_and_dates_of_a_table_in_memory_reach_the_features(spark: "SparkSession", tmp_path: Path) -> None:
    """An ordered categorical becomes its rank, a text that is a date a number of days; Spark measures the same."""
    n = np.arange(400)
    days = np.datetime64("2024-01-01") + n % 40
    frame = pd.DataFrame(
        {
            "id": [f"row {i}" for i in n],
            "size": pd.Categorical(np.array(["S", "M", "L"])[n % 3], ["S", "M", "L", "XL"], ordered=True),
            "grade": pd.Categorical(n % 2 + 1, [2, 1], ordered=True),
            "town": pd.Categorical(np.array(["here", "there"])[n % 2]),
            "iso": days.astype(str),
            "german": [f"{day[8:]}.{day[5:7]}.{day[:4]}" for day in days.astype(str)],
            "either": [f"{day % 12 + 1:02}/{day % 11 + 1:02}/2024" for day in n],
            "at": days.astype("datetime64[us]"),
            "y": n % 2,
            "split": np.array(["train", "validation", "test", "train"])[n // 3 % 4],
        }
    )
    rows = in_arrow(frame)
    df = read_table(spark, rows)
    spec = infer_spec(in_memory(rows), label="y", keys="id")
    assert spec == infer_spec(df, label="y", keys="id")
    assert spec.features == (
        Ordinal("size", order=("S", "M", "L", "XL")),
        Ordinal("grade", order=("2", "1")),
        Categorical("town"),
        Date("iso", clip="range"),
        Date("german", order="dmy", clip="range"),
        Categorical("either"),
        Date("at", clip="range"),
    )
    dataset = convert(df, spec, tmp_path / "dates", options=ConversionOptions(accept_errors=True))
    fitted = dataset.features
    assert fitted.categories == ("size", "grade", "town")
    means = {name: statistics.mean for name, statistics in fitted.statistics.items()}
    trained = frame[frame["split"] == "train"]
    assert means["size"] == pytest.approx(trained["size"].cat.codes.mean())
    assert means["grade"] == pytest.approx((trained["grade"] == 1).mean())
    # The first of January 2024 is day 19,723.
    expected = 19_723 + (trained.index.to_numpy() % 40).mean()
    assert [means[name] for name in ("iso", "german", "at")] == pytest.approx([expected] * 3)
    (finding,) = [one for one in dataset.manifest.findings if one["check"] == "dates"]
    assert finding["column"] == "either"
    assert "give the feature the kind date and the order dmy or mdy" in finding["sentence"]


def test_an_ordered_categorical_is_an_ordinal_label_whose_ranks_are_stored(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """The order is that of the table, though most rows have its last class, and none has the first."""
    n = np.arange(300)
    size = pd.Categorical(np.array(["S", "L", "M", "L"])[n % 4], ["XS", "S", "M", "L"], ordered=True)
    frame = pd.DataFrame({"id": [f"row {i}" for i in n], "x": n % 7 / 2, "size": size, "stars": n % 5 - 2})
    frame["split"] = np.array(["train", "validation", "test", "train"])[n // 4 % 4]
    rows = in_arrow(frame)
    df = read_table(spark, rows)
    spec = infer_spec(in_memory(rows), label="size", keys="id", exclude=("split", "stars"))
    assert spec.label == Label("size", "ordinal", classes=("XS", "S", "M", "L"))
    assert spec == infer_spec(df, label="size", keys="id", exclude=("split", "stars"))
    plain = frame.assign(size=frame["size"].astype(str))
    sizes = pa.DictionaryArray.from_arrays(pa.array(size.codes), list(size.categories), ordered=True)
    for other in (
        pl.DataFrame(plain).with_columns(pl.col("size").cast(pl.Enum(list(size.categories)))),
        pa.Table.from_pandas(plain, preserve_index=False).drop_columns("size").append_column("size", sizes),
    ):
        held = in_arrow(other)
        found = default_spec(in_memory(held), "size", keys=("id",), exclude=("stars",))
        assert (found.label, found.keys) == (spec.label, spec.keys)
    given = {"name": "size", "kind": "ordinal"}
    assert default_spec(in_memory(rows), given, keys=("id",), exclude=("stars",)) == spec
    given = {"name": "stars", "kind": "ordinal"}
    stars = default_spec(in_memory(rows), given, keys=("id",), exclude=("size",)).label
    assert stars == Label("stars", "ordinal", classes=("-2", "-1", "0", "1", "2"))
    with pytest.raises(FeatureSpecError, match="'x': classes None is not a list of two or more texts; give all values"):
        default_spec(in_memory(rows), {"name": "x", "kind": "ordinal"}, keys=("id",))
    dataset = convert(df, spec, tmp_path / "sizes", options=ConversionOptions(accept_errors=True))
    assert dataset.features.class_names == ("XS", "S", "M", "L")
    stored = np.concatenate([np.asarray(block.label) for block in dataset.blocks("train")])
    assert np.bincount(stored).tolist() == np.bincount(size.codes[frame["split"] == "train"]).tolist()


def test_an_impossible_proposal_of_features_is_refused(orders: "DataFrame") -> None:
    with pytest.raises(
        FeatureSpecError, match=r"label: the table has no column 'target'; it has \['order_id', 'again'"
    ):
        FeatureSpec.infer(orders, label="target")
    with pytest.raises(
        FeatureSpecError,
        match=r"no single column identifies the rows; give the columns that do as keys \(the values of \[.*'size'.*\] "
        "hardly repeat, but a model can learn from them",
    ):
        FeatureSpec.infer(orders.withColumnRenamed("order_id", "size"), label="again")
    with pytest.raises(FeatureSpecError, match="label 'basket' has type map<int,double>; a label is a number, a class"):
        FeatureSpec.infer(orders.select("order_id", "basket", "age"), label="basket")
    with pytest.raises(
        FeatureSpecError, match="no column can be a feature of 'again': seen_at is left out: no feature"
    ):
        FeatureSpec.infer(orders.select("order_id", "again", "seen_at"), label="again")
    spaced = orders.select("order_id", "again", orders["age"].alias("age in years"))
    names = [feature.name for feature in FeatureSpec.infer(spaced, label="again").features]
    assert names == ["age in years", "again by age in years"]
    with pytest.raises(FeatureSpecError, match="the table has no rows, or no value in any of the columns"):
        FeatureSpec.infer(orders.limit(0), label="again")
