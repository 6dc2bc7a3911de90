"""A Spark table becomes a dataset directory: the same rows, the same bytes each time, or nothing (T1, T2, F1)."""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.conversion import (
    ConversionOptions,
    DatasetExistsError,
    convert,
    dataset_address,
    read_profile,
)
from mirrorspark.data_pipelines.dataset.cache import DatasetCache
from mirrorspark.data_pipelines.dataset.manifest import SPLITS, DatasetError, check_directory
from mirrorspark.data_pipelines.dataset.staging import stage
from mirrorspark.data_pipelines.features.fitting import EmptySplitError, fit_features
from mirrorspark.data_pipelines.features.kinds import Bucketed, Categorical, Label, MultiValued, Numeric, Sparse
from mirrorspark.data_pipelines.features.labels import LabelError
from mirrorspark.data_pipelines.features.raw_columns import ColumnError, column_plans
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder
from mirrorspark.data_pipelines.quality import without_null_labels
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.sources import MemorySource, SparkSource
from mirrorspark.data_pipelines.tables import SourceError, find_tables, package_folder, query, register_tables
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCHEMA = (
    "id string, day int, distance double, carrier string, earlier array<string>, late int, importance double, "
    "split string"
)
SPEC = FeatureSpec(
    features=(
        Numeric("distance"),
        Categorical("carrier"),
        MultiValued("earlier", max_length=2, truncate="tail", vocabulary_of="carrier"),
    ),
    label=Label("late"),
    keys=("id", "day"),
    weight="importance",
)
OPTIONS = ConversionOptions(shards=3, rows_per_block=16)
CARRIERS = ("UA", "AA", "DL", "ü")


def row(number: int) -> dict[str, Any]:
    return {
        "id": f"flight-{number}",
        "day": number % 11,
        "distance": None if number % 13 == 5 else float("nan") if number % 13 == 6 else number / 7,
        "carrier": (*CARRIERS, "", None)[number % 6],
        "earlier": None if number % 7 == 4 else list(CARRIERS[: number % 4]),
        "late": number // 4 % 2,
        "importance": 1.0 + number % 3,
        # 120 rows to learn from, 40 for validation, 40 to test.
        "split": SPLITS[max(0, number % 5 - 2)],
    }


ROWS = [row(number) for number in range(200)]


def table(spark: "SparkSession", rows: list[dict[str, Any]], schema: str = SCHEMA) -> "DataFrame":
    return spark.createDataFrame([tuple(row.values()) for row in rows], schema)


def changed(number: int, **columns: Any) -> list[dict[str, Any]]:
    return [row | columns if position == number else row for position, row in enumerate(ROWS)]


def decoded(dataset: Dataset, split: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the stored rows by their keys."""
    rows = {}
    for block in dataset.blocks(split, keys=True):
        assert block.label is not None
        for position, key in enumerate(zip(block.keys["id"], block.keys["day"], strict=True)):
            values = {name: column[position].tolist() for name, column in block.features.items()}
            rows[key] = values | {"late": block.label[position], "importance": block.weight[position]}
    return rows


def checksums(dataset: Dataset) -> dict[str, int]:
    return {shard.path: shard.crc32c for shards in dataset.manifest.splits.values() for shard in shards}


@pytest.fixture(scope="module")
def converted(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the dataset of all rows."""
    path = tmp_path_factory.mktemp("converted") / "dataset"
    return convert(table(spark, ROWS), SPEC, path, source={"of": "http://ann:s3cret@tests"}, options=OPTIONS)


def test_every_split_has_its_rows_in_whole_shards(converted: Dataset) -> None:
    assert {split: converted.manifest.rows(split) for split in SPLITS} == {"train": 120, "validation": 40, "test": 40}
    assert [len(converted.manifest.splits[split]) for split in SPLITS] == [3, 3, 3]
    check_directory(converted.path, checksums=True)
    for shard in converted.manifest.splits["train"]:
        assert max(shard.block_rows) <= 16
        assert sum(shard.block_rows) == shard.rows


def test_the_stored_values_are_those_of_the_table(spark: "SparkSession", converted: Dataset) -> None:
    rows = table(spark, ROWS).toArrow()
    encoded = Encoder(converted.features).encode_padded(rows)
    for split in SPLITS:
        stored = decoded(converted, split)
        wanted = [number for number, one in enumerate(ROWS) if one["split"] == split]
        assert stored.keys() == {(ROWS[number]["id"], ROWS[number]["day"]) for number in wanted}
        for number in wanted:
            expected = {name: column[number].tolist() for name, column in encoded.items()}
            expected |= {"late": ROWS[number]["late"], "importance": ROWS[number]["importance"]}
            assert stored[ROWS[number]["id"], ROWS[number]["day"]] == expected


def test_features_are_fitted_on_the_training_rows_alone(converted: Dataset) -> None:
    training = [one for one in ROWS if one["split"] == "train"]
    numbers = np.array([one["distance"] for one in training if one["distance"] is not None])
    numbers = numbers[~np.isnan(numbers)]
    distance = converted.features.statistics["distance"]
    assert (distance.mean, distance.standard_deviation) == pytest.approx((numbers.mean(), numbers.std()), rel=1e-9)
    assert (distance.minimum, distance.maximum, distance.count) == (numbers.min(), numbers.max(), len(numbers))
    # The vocabulary is that of carrier; "earlier" uses it and adds nothing to its counts.
    vocabulary = converted.features.vocabularies["carrier"]
    counted = {token: sum(one["carrier"] == token for one in training) for token in CARRIERS}
    assert dict(zip(vocabulary.tokens.to_pylist(), vocabulary.counts.to_pylist(), strict=True)) == counted
    assert set(converted.features.vocabularies) == {"carrier"}


def test_the_manifest_tells_what_is_missing_and_where_it_comes_from(converted: Dataset) -> None:
    manifest = converted.manifest
    missing = sum(one["split"] == "train" and one["distance"] in (None,) for one in ROWS)
    missing += sum(one["split"] == "train" and one["distance"] != one["distance"] for one in ROWS)
    assert manifest.statistics["distance"]["train_missing"] == missing
    assert manifest.statistics["carrier"]["vocabulary"] == 4
    assert manifest.statistics["label"]["test_positive"] == sum(one["late"] for one in ROWS if one["split"] == "test")
    assert manifest.source == {"of": "http://tests"}
    assert manifest.options == {"split_column": "split", "shards": 3, "rows_per_block": 16, "accept_errors": False}
    assert {"python", "pyspark", "pyarrow", "numpy"} <= set(manifest.versions)


def test_tensorflow_reads_the_shards_without_us(converted: Dataset) -> None:
    import tensorflow as tf

    files = [str(converted.path / shard.path) for shard in converted.manifest.splits["train"]]
    features = {
        "distance": tf.io.RaggedFeature(tf.float32),
        "carrier": tf.io.RaggedFeature(tf.int64),
        "earlier": tf.io.RaggedFeature(tf.int64, partitions=[tf.io.RaggedFeature.RowLengths("earlier/row_lengths")]),
        "label/late": tf.io.RaggedFeature(tf.float32),
        "key/id": tf.io.RaggedFeature(tf.string),
    }
    found = {}
    for batch in tf.data.TFRecordDataset(files).batch(2):
        columns = tf.io.parse_example(batch, features)
        names = ("distance", "carrier", "label/late", "key/id")
        distance, carrier, late, key = (columns[name].flat_values.numpy().tolist() for name in names)
        earlier = columns["earlier"].merge_dims(0, 1).to_list()
        found |= {name.decode(): one for name, *one in zip(key, distance, carrier, late, earlier, strict=True)}
    stored = decoded(converted, "train")
    assert len(found) == len(stored) == 120
    for (name, _), values in stored.items():
        distance, carrier, late, earlier = found[name]
        assert (distance, carrier, late) == (values["distance"], values["carrier"], values["late"])
        assert earlier == [id_ for id_ in values["earlier"] if id_]


def test_the_same_rows_in_another_order_give_the_same_bytes(
    spark: "SparkSession", converted: Dataset, tmp_path: Path
) -> None:
    shuffled = table(spark, ROWS[::-1]).repartition(7, "distance")
    again = convert(shuffled, SPEC, tmp_path / "again", source={"of": "http://ann:s3cret@tests"}, options=OPTIONS)
    assert checksums(again) == checksums(converted)
    assert again.features.hash == converted.features.hash
    assert again.manifest == converted.manifest


def test_training_rows_of_equal_keys_are_ordered_by_their_columns(spark: "SparkSession", tmp_path: Path) -> None:
    rows = [one | {"id": "same", "day": 1} if one["split"] == "train" else one for one in ROWS]
    one = convert(table(spark, rows).repartition(4, "distance"), SPEC, tmp_path / "one", options=OPTIONS)
    other = convert(table(spark, rows[::-1]), SPEC, tmp_path / "other", options=OPTIONS)
    assert checksums(one) == checksums(other)
    # All in one shard: the others are not there.
    assert [len(one.manifest.splits[split]) for split in SPLITS] == [1, 3, 3]


def test_the_address_of_a_dataset_is_that_of_its_inputs() -> None:
    address = dataset_address({"sql": "a"}, SPEC, OPTIONS)
    reordered = FeatureSpec(SPEC.features[::-1], SPEC.label, SPEC.keys, SPEC.weight)
    others = [
        dataset_address({"sql": "b"}, SPEC, OPTIONS),
        dataset_address({"sql": "a"}, reordered, OPTIONS),
        dataset_address({"sql": "a"}, SPEC, ConversionOptions(shards=4, rows_per_block=16)),
    ]
    assert dataset_address({"sql": "a"}, SPEC, ConversionOptions(shards=3, rows_per_block=16)) == address
    assert len({address, *others}) == 4


def without(column: str) -> Callable[["SparkSession"], "DataFrame"]:
    return lambda spark: table(spark, ROWS).drop(column)


def cast(column: str, type_name: str) -> Callable[["SparkSession"], "DataFrame"]:
    return lambda spark: table(spark, ROWS).withColumn(column, F.col(column).cast(type_name))


def rows(made: list[dict[str, Any]]) -> Callable[["SparkSession"], "DataFrame"]:
    return lambda spark: table(spark, made)


REFUSED: Mapping[str, tuple[Callable[["SparkSession"], "DataFrame"], type[Exception], str]] = {
    "a missing column": (without("carrier"), ColumnError, r"lacks the columns \['carrier'\]; it has \['id', 'day'"),
    "no split column": (without("split"), ColumnError, r"lacks the columns \['split'\]"),
    "a number that is text": (
        cast("distance", "string"),
        ColumnError,
        "column 'distance' has type string, which a numeric feature cannot take; cast it",
    ),
    "a token that is a double": (cast("carrier", "double"), ColumnError, "column 'carrier' has type double"),
    "a list that is text": (cast("earlier", "string"), ColumnError, "column 'earlier' has type string"),
    "a label that is text": (cast("late", "string"), LabelError, "label 'late' has type string"),
    "a test split of one class": (
        rows([one | {"late": one["late"] * (one["split"] != "test")} for one in ROWS]),
        DatasetError,
        r"one class only \(0\) in all 40 rows of split 'test'",
    ),
    "an unknown split": (
        rows(changed(33, split="tset")),
        DatasetError,
        r"^column 'split' has the value 'tset'; use one of \['train', 'validation', 'test'\]$",
    ),
    "two rows of one key in the test split": (
        # In the source they are far apart, and between them, by their columns, is a training row of that key.
        rows(
            [
                one | ({"id": "twice", "day": 3, "distance": float(number)} if number in (4, 55, 199) else {})
                for number, one in enumerate(ROWS)
            ]
        ),
        DatasetError,
        r"^the key id = 'twice', day = 3 occurs in more than one row of split 'test'; a key identifies one row: filter",
    ),
    "no validation rows": (
        rows([one for one in ROWS if one["split"] != "validation"]),
        EmptySplitError,
        "split 'validation' has no rows; check the table or the rule",
    ),
    "no training rows": (
        rows([one for one in ROWS if one["split"] != "train"]),
        EmptySplitError,
        "there are no training rows; check the table or the rule",
    ),
    "a vocabulary of nothing": (
        rows([one | {"carrier": ""} for one in ROWS]),
        EmptySplitError,
        "feature 'carrier' has no token that occurs 1 times or more in the training rows",
    ),
    "an infinite number": (
        rows(changed(30, distance=float("inf"))),
        ColumnError,
        "column 'distance' holds an infinite number; replace it",
    ),
    "a query that fails while it runs": (
        lambda spark: table(spark, ROWS).withColumn(
            "distance", F.when(F.col("id") == "flight-7", F.raise_error(F.lit("no such flight"))).otherwise(1.0)
        ),
        DatasetError,
        "the table cannot be converted: .*no such flight",
    ),
}


# Others are found at the same places of the code as one of these.
USUALLY_REFUSED = ("a missing column", "a number that is text", "a label that is text", "a test split of one class")
USUALLY_REFUSED += ("two rows of one key in the test split", "no validation rows", "an infinite number")
USUALLY_REFUSED += ("a query that fails while it runs",)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(*case, marks=() if name in USUALLY_REFUSED else pytest.mark.full, id=name)
        for name, case in REFUSED.items()
    ],
)
def test_a_table_that_cannot_be_learnt_from_leaves_one_message_and_nothing_else(
    spark: "SparkSession",
    tmp_path: Path,
    make: Callable[["SparkSession"], "DataFrame"],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        convert(make(spark), SPEC, tmp_path / "dataset", options=OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_exists_is_left_alone(spark: "SparkSession", tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    path.mkdir()
    (path / "mine.txt").write_text("keep")
    with pytest.raises(
        DatasetError, match=f"{path} exists already and is not a dataset; choose another path"
    ) as raised:
        convert(table(spark, ROWS), SPEC, path, options=OPTIONS)
    assert not isinstance(raised.value, DatasetExistsError)
    assert [file.name for file in tmp_path.rglob("*")] == ["dataset", "mine.txt"]


def test_a_dataset_that_exists_is_left_alone_by_an_error_of_its_own(spark: "SparkSession", converted: Dataset) -> None:
    with pytest.raises(DatasetExistsError, match=f"{converted.path} exists already; open it with load_dataset, or del"):
        convert(table(spark, ROWS), SPEC, converted.path, options=OPTIONS)
    check_directory(converted.path, checksums=True)


def test_the_next_conversion_removes_the_files_of_a_killed_one(spark: "SparkSession", tmp_path: Path) -> None:
    begin = (
        "import sys; from mirrorspark.storage.paths import StoragePath; "
        "from mirrorspark.storage.publish import SaveMode, WriteJob; "
        "print(WriteJob.begin(StoragePath.of(sys.argv[1]), SaveMode.ERROR).staging.name)"
    )
    target = tmp_path / "dataset"
    command = [sys.executable, "-c", begin, str(target)]
    job = WriteJob.begin(StoragePath.of(target), SaveMode.ERROR)
    running = job.staging
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 60, check=True).stdout.strip()
    for name in (ended, running.name):
        (tmp_path / name / "raw").mkdir(parents=True, exist_ok=True)
    convert(table(spark, ROWS), SPEC, target, options=OPTIONS)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted([running.name, "dataset"])
    job.abort()
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.full
def test_a_dataset_on_an_object_store_is_whole_or_not_there_and_a_refused_table_can_be_tried_again(
    spark: "SparkSession", tmp_path: Path, s3_bucket: str, converted: Dataset
) -> None:
    """T1: against a server that speaks S3's protocol."""
    target = StoragePath.of(f"s3a://{s3_bucket}") / "lake" / uuid4().hex
    cache = DatasetCache(tmp_path / "cache")
    telling = [one | {"carrier": str(one["late"])} for one in ROWS]
    with pytest.raises(DatasetError, match=r"'carrier' determines the label.*See .*\.refused\.html") as refused:
        convert(table(spark, telling), SPEC, str(target), options=OPTIONS, cache=cache)
    page = str(refused.value).rpartition("See ")[2].partition(". Fix")[0]
    assert b"determines the label" in StoragePath.of(page).read_bytes()
    assert [file.path.name for file in target.files()] == []

    dataset = convert(table(spark, ROWS), SPEC, str(target), source={"of": "tests"}, options=OPTIONS, cache=cache)
    assert checksums(dataset) == checksums(converted)
    assert decoded(dataset, "test") == decoded(converted, "test")
    assert not StoragePath.of(page).exists()
    with pytest.raises(DatasetExistsError):
        convert(table(spark, ROWS), SPEC, str(target), options=OPTIONS, cache=cache)


def test_the_table_is_evaluated_once(spark: "SparkSession", tmp_path: Path) -> None:
    """Fit and shards see the same rows even of a query that answers differently each time."""
    random = table(spark, ROWS).withColumn("carrier", F.expr("uuid()"))
    dataset = convert(random, SPEC, tmp_path / "dataset", options=OPTIONS)
    # Every token of the training rows was seen there once; another evaluation would have made others.
    assert dataset.manifest.statistics["carrier"]["train_out_of_vocabulary"] == 0
    assert dataset.manifest.statistics["carrier"]["vocabulary"] == 120


def test_errors_that_are_accepted_and_rows_of_two_splits_are_told(spark: "SparkSession", tmp_path: Path) -> None:
    """F10: in the manifest, and on the page."""
    twice = [one | {"split": "train"} for one in ROWS if one["split"] == "test"]
    telling = [one | {"carrier": str(one["late"])} for one in [*ROWS, *twice]]
    options = ConversionOptions(shards=3, rows_per_block=16, accept_errors=True)
    dataset = convert(table(spark, telling), SPEC, tmp_path / "dataset", options=options)
    sentences = {finding["check"]: finding["sentence"] for finding in dataset.manifest.findings}
    assert sentences["repeated rows"].startswith("at least 40 rows are equal, in every column, to a row of another")
    page = (dataset.path / "dataset.html").read_text()
    assert "determines the label" in page
    assert "40 rows are equal, in every column" in page


def test_one_infinite_value_of_a_test_row_is_found_wherever_it_stands(spark: "SparkSession", tmp_path: Path) -> None:
    number = next(place for place, one in enumerate(ROWS) if one["split"] == "test")
    with pytest.raises(DatasetError, match="'distance' is infinite"):
        convert(table(spark, changed(number, distance=float("-inf"))), SPEC, tmp_path / "number", options=OPTIONS)
    spec = FeatureSpec((Sparse("basket", size=9),), Label("late"), ("id",))
    baskets = table(spark, ROWS).withColumn(
        "basket", F.expr(f"map(1, if(id = 'flight-{number}', 1e300, 1.0), 2, double(day))")
    )
    with pytest.raises(DatasetError, match="'basket' is infinite, or beyond what a 32-bit float holds, 1 times"):
        convert(baskets, spec, tmp_path / "sparse", options=OPTIONS)


def test_a_later_dataset_is_compared_with_a_former_one(
    spark: "SparkSession", tmp_path: Path, converted: Dataset
) -> None:
    moved = [one | {"distance": (one["distance"] or 0.0) + 100} for one in ROWS]
    reference = read_profile(converted.path)
    dataset = convert(table(spark, moved), SPEC, tmp_path / "dataset", options=OPTIONS, reference=reference)
    assert any(finding["column"] == "distance" and "drift" in finding["check"] for finding in dataset.manifest.findings)
    with pytest.raises(DatasetError, match=r"is not a profile of a dataset .*give the directory of a former dataset"):
        read_profile(tmp_path)


def test_training_rows_alone_teach_quantiles_and_every_kind_of_number(spark: "SparkSession", tmp_path: Path) -> None:
    features = (Numeric("distance", clip=(0, 20), log=True), Bucketed("day", buckets=4))
    spec = FeatureSpec(features, Label("late"), ("id",))
    # Test rows far outside: they must move no boundary and no mean.
    rows = [one | ({"distance": 1e6, "day": 1000} if one["split"] == "test" else {}) for one in ROWS]
    dataset = convert(table(spark, rows), spec, tmp_path / "dataset", options=OPTIONS)
    train = [one for one in ROWS if one["split"] == "train"]
    logs = [np.log1p(min(one["distance"], 20)) for one in train if one["distance"] == one["distance"] is not None]
    assert dataset.features.statistics["distance"].mean == pytest.approx(np.mean(logs))
    boundaries = dataset.features.quantiles["day"]
    assert boundaries == tuple(sorted({sorted(one["day"] for one in train)[120 * n // 4] for n in (1, 2, 3)}))


def test_a_retrieval_keeps_its_exclusions(spark: "SparkSession", tmp_path: Path) -> None:
    spec = FeatureSpec(
        (Categorical("user"), Categorical("movie")), Label("movie", kind="candidate"), ("number",), exclude="seen"
    )
    made = [(n, f"u{n % 5}", f"m{n % 4}", [f"m{i}" for i in range(n % 6)], SPLITS[n % 3]) for n in range(60)]
    df = spark.createDataFrame(made, "number int, user string, movie string, seen array<string>, split string")
    dataset = convert(df, spec, tmp_path / "dataset", options=OPTIONS)
    tokens = dataset.features.vocabularies["movie"].tokens.to_pylist()
    assert sorted(tokens) == ["m0", "m1", "m2", "m3"]
    ids = {token: id_ for id_, token in enumerate(tokens, 2)}
    for block in dataset.blocks("test", keys=True):
        assert block.label is None
        assert block.excluded is not None
        for number, excluded, movie in zip(block.keys["number"], block.excluded, block.features["movie"], strict=True):
            # m4 and beyond were nobody's choice in training: unknown.
            wanted = [ids.get(f"m{i}", 1) for i in range(number % 6)]
            assert excluded.tolist() == wanted + [0] * (len(excluded) - len(wanted))
            assert movie == ids[f"m{number % 4}"]


def test_lists_of_candidates_are_a_training_row_each_and_one_row_of_validation_and_test(
    spark: "SparkSession", tmp_path: Path
) -> None:
    """#55: by Spark and in this process, with the candidates and the order of a table with a row for each of them."""
    spec = FeatureSpec(
        (Categorical("user"), Categorical("movie"), MultiValued("seen", max_length=3, vocabulary_of="movie")),
        Label("movie", kind="candidate"),
        ("number",),
    )
    made: list[dict[str, Any]] = [
        {
            "number": n,
            "user": f"u{n % 5}",
            "movie": [f"m{i}" for i in range(n % 4, n % 4 + 1 + n % 3)] + [None] * (n % 2),
            "seen": [f"m{i}" for i in range(n % 6)],
            "split": SPLITS[n // 3 % 3],
        }
        for n in range(63)
    ]
    given = pa.Table.from_pylist(made)
    schema = "number long, user string, movie array<string>, seen array<string>, split string"
    sources = {"spark": spark.createDataFrame(made, schema), "memory": MemorySource.of(given)}
    found = {name: convert(source, spec, tmp_path / name, options=OPTIONS) for name, source in sources.items()}
    assert len({dataset.manifest.content_hash for dataset in found.values()}) == 1
    dataset = found["memory"]
    assert dataset.spec == replace(spec, label=replace(spec.label, lists=True))
    wanted = {split: [one for one in made if one["split"] == split] for split in SPLITS}
    assert dataset.manifest.rows("train") == sum(1 + one["number"] % 3 for one in wanted["train"])
    exploded = [one | {"movie": movie} for one in made for movie in one["movie"] if movie]
    # A row per item has to have a key of its own outside the training rows.
    first = [
        one | {"number": one["number"] if one["split"] == "train" else place} for place, one in enumerate(exploded, 100)
    ]
    by_item = convert(MemorySource.of(pa.Table.from_pylist(first)), spec, tmp_path / "by item", options=OPTIONS)
    for mine, other in zip(dataset.blocks("train", keys=True), by_item.blocks("train", keys=True), strict=True):
        assert mine.held_back is not None
        assert mine.held_back.values.tolist() == mine.features["movie"].tolist()  # type: ignore[union-attr]
        for name in ("user", "movie", "seen"):
            np.testing.assert_array_equal(mine.features[name], other.features[name])  # type: ignore[arg-type]
    ids = {token: id_ for id_, token in enumerate(dataset.features.vocabularies["movie"].tokens.to_pylist(), 2)}
    for block in dataset.blocks("test", keys=True):
        assert block.held_back is not None
        ends = block.held_back.row_lengths.cumsum()
        for number, movies in zip(block.keys["number"], np.split(block.held_back.values, ends[:-1]), strict=True):
            assert movies.tolist() == [ids.get(movie, 1) for movie in made[number]["movie"] if movie]
    nothing = [one | ({"movie": [None]} if one["number"] == 4 else {}) for one in made]
    empty = MemorySource.of(pa.Table.from_pylist(nothing))
    with pytest.raises(DatasetError, match=r"label 'movie' has the value \[None\] in a row of validation or test"):
        convert(empty, spec, tmp_path / "refused", options=OPTIONS)
    for table in (empty, spark.createDataFrame(nothing, schema)):
        kept = convert(without_null_labels(table, spec.label), spec, tmp_path / uuid4().hex, options=OPTIONS)
        assert kept.manifest.rows("validation") == dataset.manifest.rows("validation") - 1
    rated = replace(spec, label=replace(spec.label, rating="stars"))
    with pytest.raises(LabelError, match=r"label 'movie' has lists of candidates .*, but the rating 'stars' is one of"):
        convert(MemorySource.of(given.append_column("stars", pa.array([1.0] * 63))), rated, tmp_path / "rated")


VOCABULARY_TOKENS = {"é": 5, "b": 3, "a": 3, "B": 3, "🛫": 3, "zz": 2, "y": 1, "x": 1}


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        # Ties go by the bytes of UTF-8: capitals, small letters, then everything beyond ASCII.
        ({}, ["é", "B", "a", "b", "🛫", "zz", "x", "y"]),
        pytest.param({"min_count": 2}, ["é", "B", "a", "b", "🛫", "zz"], marks=pytest.mark.full),
        ({"min_count": 3, "max_size": 3}, ["é", "B", "a"]),
        pytest.param({"max_size": 7}, ["é", "B", "a", "b", "🛫", "zz", "x"], marks=pytest.mark.full),
    ],
    ids=["all", "min_count", "both", "max_size"],
)
def test_a_vocabulary_is_ordered_by_count_then_bytes_and_cut(
    spark: "SparkSession", tmp_path: Path, options: dict[str, int], tokens: list[str]
) -> None:
    spread = [token for token, count in VOCABULARY_TOKENS.items() for _ in range(count)] + ["", None]
    made = [(number, token, 0, "train") for number, token in enumerate(spread)]
    df = spark.createDataFrame(made, "id int, x string, y int, split string")
    spec = FeatureSpec((Categorical("x", **options),), Label("y"), ("id",))
    folder = StoragePath.of(tmp_path)
    plans = column_plans(df.limit(0).toArrow().schema, spec.read_features)
    source = SparkSource(df)
    staged = stage(source, spec, plans, "split", 5, folder / "raw")
    fitted = fit_features(source, staged.measured, spec, plans, staged.sample("train"), folder, folder / "features")
    vocabulary = fitted.vocabularies["x"]
    assert vocabulary.tokens.to_pylist() == tokens
    assert vocabulary.counts.to_pylist() == [VOCABULARY_TOKENS[token] for token in tokens]
    assert vocabulary.tokens.type == pa.string()


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


SCHEMAS = {"flights": "carrier string, distance double"}


def read_csv(
    spark: "SparkSession", path: Path, unpacked: Path, schema: str = SCHEMAS["flights"]
) -> list[tuple[Any, ...]]:
    register_tables(spark, {"flights": path}, {"flights": schema}, unpacked=unpacked, csv_null="NA")
    return [tuple(one) for one in query(spark, "SELECT * FROM flights", "table.sql").collect()]


def test_a_zipped_csv_file_is_read_like_a_plain_one(spark: "SparkSession", tmp_path: Path) -> None:
    text = "carrier,distance\nUA,1.5\nü,NA\nNA,3\n"
    plain = write_csv(tmp_path / "flights.csv", text)
    with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as archive:
        archive.writestr("data/flights.csv", text)
    expected = [("UA", 1.5), ("ü", None), (None, 3.0)]
    assert read_csv(spark, plain, tmp_path / "unpacked") == expected
    for _ in range(2):
        assert read_csv(spark, tmp_path / "flights.csv.zip", tmp_path / "unpacked") == expected
    assert len(list((tmp_path / "unpacked").iterdir())) == 1


def test_tables_of_a_recipe_are_read_wherever_they_are(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(T1, H1, H16) By a name of the catalog, a path of this process, a pattern, a URI; or in the data folder."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data [2024]"
    for day, carrier in ((1, "UA"), (2, "AA")):
        (data / "flights" / f"day={day}").mkdir(parents=True)
        write_csv(data / "flights" / f"day={day}" / "a.csv", f"carrier,distance\n{carrier},{day}.5\n")
    write_csv(data / "flights" / "README.md", "not a part of it")
    write_csv(data / "list.json", '[{"carrier": "UA", "distance": 1.5},\n {"carrier": "AA", "distance": 2.5}]')
    write_csv(tmp_path / "flights.csv", "carrier;distance\nUA;1,5\nAA;2,5\n")
    spark.createDataFrame([("UA", 1.5), ("AA", 2.5)], SCHEMAS["flights"]).createOrReplaceTempView("in_catalog")
    places = {
        "by_name": "`in_catalog`",
        "by_path": "./flights.csv",
        "by_pattern": "./data*/flights/*/a.csv",
        "by_uri": f"file://{data}/list.json".replace(" ", "%20"),
        "flights": "carrier string, distance double, day int",
        "list": "",
    }
    files = find_tables(f"file://{data}", places)
    register_tables(spark, files, places, unpacked=tmp_path)
    for name in places:
        found = spark.table(name).select("carrier", "distance").orderBy("distance")
        assert [tuple(one) for one in found.collect()] == [("UA", 1.5), ("AA", 2.5)], name
    assert [one.day for one in query(spark, "SELECT day FROM flights ORDER BY day", "table.sql").collect()] == [1, 2]
    with pytest.raises(SourceError, match=r"table 'lost' cannot be read: there is no table or view 'main\.shop\.lost'"):
        register_tables(spark, {"lost": "main.shop.lost"}, {"lost": "main.shop.lost"}, unpacked=tmp_path)


@pytest.mark.parametrize(
    ("header", "schema", "message"),
    [
        (
            "carrier",
            SCHEMAS["flights"],
            r"'flights' cannot be read: .*flights\.csv lacks the columns \['distance'\]; its header has",
        ),
        ("carrier,distance", "carrier strong", "table 'flights' .* cannot be read: .*(?i:strong)"),
    ],
    ids=["missing column", "unknown type"],
)
def test_a_csv_file_that_is_not_as_the_recipe_says_is_refused(
    spark: "SparkSession", tmp_path: Path, header: str, schema: str, message: str
) -> None:
    path = write_csv(tmp_path / "flights.csv", f"{header}\n1,2\n")
    with pytest.raises(SourceError, match=message):
        read_csv(spark, path, tmp_path / "unpacked", schema)


def test_columns_of_a_csv_file_are_found_by_name(spark: "SparkSession", tmp_path: Path) -> None:
    path = write_csv(tmp_path / "flights.csv", "remark,distance,carrier\nnone,1.5,UA\n")
    assert read_csv(spark, path, tmp_path / "unpacked") == [("UA", 1.5)]


def test_a_value_that_does_not_fit_its_column_is_named_with_its_file(spark: "SparkSession", tmp_path: Path) -> None:
    path = write_csv(tmp_path / "flights.csv", "id,distance,late,split\n0,far,1,train\n1,2,0,train\n")
    schema = {"flights": "id string, distance double, late int, split string"}
    register_tables(spark, {"flights": path}, schema, unpacked=tmp_path)
    df = query(spark, "SELECT * FROM flights", "table.sql")
    spec = FeatureSpec((Numeric("distance"),), Label("late"), ("id",))
    with pytest.raises(
        DatasetError,
        match=r"table cannot be converted: .*flights\.csv: column .distance. is double, .*.far.",
    ):
        convert(df, spec, tmp_path / "dataset", options=OPTIONS)
    assert [file.name for file in tmp_path.iterdir()] == ["flights.csv"]


def test_a_query_for_a_column_that_is_not_there_is_refused(spark: "SparkSession", tmp_path: Path) -> None:
    path = write_csv(tmp_path / "flights.csv", "carrier,distance\nUA,1\n")
    register_tables(spark, {"flights": path}, SCHEMAS, unpacked=tmp_path)
    with pytest.raises(SourceError, match=r"table\.sql cannot be run: .*(?i:tailnum)"):
        query(spark, "SELECT tailnum FROM flights", "table.sql")


@pytest.mark.full
def test_the_flights_recipe_builds_one_row_per_flight_from_what_is_known_before_it_departs(
    spark: "SparkSession", tmp_path: Path
) -> None:
    recipe = yaml.safe_load((RECIPES / "flights" / "recipe.yaml").read_text())
    files = find_tables(package_folder(recipe["data_package"], recipe["data_package_folder"]), recipe["tables"])
    register_tables(spark, files, recipe["tables"], unpacked=tmp_path, csv_null=recipe["csv_null"])
    flights = query(spark, (RECIPES / "flights" / "table.sql").read_text(), "table.sql")
    spec = FeatureSpec.from_dict({part: recipe[part] for part in ("features", "label", "keys")})

    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"} & set(flights.columns)
    assert set(flights.columns) == {*spec.columns, "split"}
    found = flights.agg(
        F.count_distinct(*spec.keys).alias("keys"),
        *(F.count_if(F.col("split") == split).alias(split) for split in SPLITS),
        F.avg("late").alias("late"),
        *(F.count_if(F.col(name).isNull()).alias(name) for name in ("carrier", "hour", "distance", "temp")),
    ).first()
    assert found is not None
    assert (found["train"], found["validation"], found["test"]) == (244_737, 28_618, 53_991)
    assert found["keys"] == 327_346 == 244_737 + 28_618 + 53_991
    # Nearly a quarter is late, all have their carrier and their schedule, nearly all their weather.
    assert 0.2 < found["late"] < 0.25
    assert (found["carrier"], found["hour"], found["distance"]) == (0, 0, 0)
    assert found["temp"] < 0.01 * 327_346
