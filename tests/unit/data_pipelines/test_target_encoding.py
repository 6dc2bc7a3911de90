"""Means of the label as features: no training row's own label is in its mean, and all other rows get one mean (F3)."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.any_table import in_memory
from mirrorspark.data_pipelines.conversion import ConversionOptions, convert
from mirrorspark.data_pipelines.features import FeatureSpecError, kinds, target_encoding
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.infer import encoded_spec
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric, TargetEncoding, TokenNumber
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.target_encoding import FOLDS, TargetSums
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.reading import Dataset

SMOOTHING = 5.0


def _table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    town = rng.choice(["Bonn", "Köln", "", "Ulm", "Jena"], rows, p=[0.4, 0.3, 0.1, 0.15, 0.05])
    return pa.table(
        {
            "id": np.arange(rows),
            "row": np.arange(rows),
            "town": pa.array(town, mask=rng.random(rows) < 0.1),
            "hour": pa.array(rng.integers(0, 24, rows), mask=rng.random(rows) < 0.1),
            "weight": rng.integers(0, 3, rows).astype(np.float64),
            "late": rng.integers(0, 2, rows),
            "delay": rng.normal(10, 30, rows),
            "split": rng.choice(["train", "validation", "test"], rows, p=[0.7, 0.15, 0.15]),
        }
    )


def _converted(table: pa.Table, label: Label, folder: Path, **options: Any) -> Dataset:
    features = (
        Numeric("row", standardise=False),
        Categorical("town"),
        Numeric("hour"),
        TargetEncoding("by town", of=("town",), standardise=False),
        TargetEncoding("by both", of=("town", "hour"), numbers=("hour",), standardise=False, **options),
    )
    spec = FeatureSpec(features, label, keys=("id",), weight="weight")
    convert(in_memory(table), spec, folder, options=ConversionOptions(shards=3))
    return Dataset.open(folder)


def _token(value: Any) -> str:
    return "" if value is None else str(value)


@pytest.mark.parametrize("label", [Label("late"), Label("delay", "numeric")], ids=["binary", "numeric"])
def test_a_training_row_gets_the_mean_of_the_other_folds_and_other_rows_that_of_all(
    label: Label, tmp_path: Path
) -> None:
    table = _table(900)
    dataset = _converted(table, label, tmp_path / "dataset")
    rows = {row["id"]: row for row in table.to_pylist()}
    # A row's fold is its place in its shard, from the shard's number on, modulo the folds.
    folds = np.concatenate(
        [
            (int(Path(shard.path).stem.removeprefix("part-")) + np.arange(shard.rows)) % FOLDS
            for shard in dataset.manifest.splits["train"]
        ]
    )
    blocks = {split: list(dataset.blocks(split)) for split in ("train", "test")}
    ids = [[int(row) for block in of for row in block.features["row"]] for of in blocks.values()]
    learnt = [(rows[key], fold) for key, fold in zip(ids[0], folds, strict=True)]

    def mean(groups: tuple[str, ...], row: dict[str, Any], left_out: int | None) -> float:
        """Return the smoothed mean by definition."""
        known = [(other, other["weight"]) for other, fold in learnt if fold != left_out]
        weighted = ((other[label.name] * other["weight"], other["weight"]) for other, _ in learnt)
        label_sum, weights = (sum(of) for of in zip(*weighted, strict=True))
        prior = (label_sum + 0.5) / (weights + 1) if label.form == "binary" else label_sum / weights
        of = [part for part in known if all(_token(part[0][name]) == _token(row[name]) for name in groups)]
        found = (sum(other[label.name] * weight for other, weight in of) + SMOOTHING * prior) / (
            sum(weight for _, weight in of) + SMOOTHING
        )
        return float(np.log(found / (1 - found))) if label.form == "binary" else found

    for name, groups in (("by town", ("town",)), ("by both", ("town", "hour"))):
        found = np.concatenate([block.features[name] for block in blocks["train"]])
        expected = [mean(groups, row, fold) for row, fold in learnt]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
        found = np.concatenate([block.features[name] for block in blocks["test"]])
        np.testing.assert_allclose(found, [mean(groups, rows[key], None) for key in ids[1]], rtol=1e-6, atol=1e-5)
        statistics = dataset.features.statistics[name]
        assert (statistics.count, statistics.mean) == (len(learnt), pytest.approx(np.mean(expected)))
        assert len(dataset.features.quantiles[name]) > 1


def test_groups_of_too_few_rows_have_one_mean(tmp_path: Path) -> None:
    dataset = _converted(_table(300), Label("late"), tmp_path / "dataset", min_count=10_000)
    found = np.concatenate([block.features["by both"] for block in dataset.blocks("test")])
    assert len(np.unique(found)) == 1
    assert len(np.unique(np.concatenate([block.features["by town"] for block in dataset.blocks("test")]))) > 3


def test_labels_of_one_kind_outside_a_row_s_fold_have_finite_means() -> None:
    """One row is late: without its fold none is."""
    spec = FeatureSpec((TargetEncoding("by town", of=("town",)),), Label("late"), keys=("id",))
    fitted = FittedFeatures(spec, {"by town": Vocabulary(pa.array(["Bonn"]), pa.array([9]))}, {})
    rows = pa.table({"town": ["Bonn"] * 9, "late": [0] * 8 + [1]}).to_batches()[0]
    sums = TargetSums(fitted)
    sums.add(rows, 0)
    found, held_out = target_encoding.with_target_means(fitted, sums)
    assert np.isfinite(found.target_means["by town"].to_numpy()).all()
    assert np.isfinite(held_out.of["by town"]).all()


def test_sums_of_parts_are_those_of_the_whole() -> None:
    spec = FeatureSpec((TargetEncoding("by town", of=("town",)),), Label("late"), keys=("id",))
    towns = Vocabulary(pa.array(["Bonn", "Köln", "Ulm"]), pa.array([3, 2, 1]))
    fitted, (whole,) = FittedFeatures(spec, {"by town": towns}, {}), _table(500).combine_chunks().to_batches()
    sums, merged = TargetSums(fitted), TargetSums(fitted)
    sums.add(whole, 0)
    for start in (0, 123, 400):
        part = TargetSums(fitted)
        part.add(whole.slice(start, {0: 123, 123: 277, 400: 100}[start]), start)
        merged.merge(part.to_bytes())
    np.testing.assert_array_equal(merged.of["by town"], sums.of["by town"])
    assert sums.of["by town"][0].sum() == 500


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (lambda: TargetEncoding("x"), "give the columns whose values group the rows"),
        (lambda: TargetEncoding("x", of=("a", "a")), "names a column twice"),
        (lambda: TargetEncoding("x", of=("a",), numbers=("b",)), r"numbers \['b'\] are not among its columns"),
        (lambda: TargetEncoding("x", of=("a",), smoothing=0), "smoothing is 0; use a number above 0"),
        (lambda: TargetEncoding("x", of=("a",), log=True), "impute, clip and log are for numbers of the table"),
        (lambda: TargetEncoding("x", of=("a",), impute=0), "impute, clip and log are for numbers of the table"),
        (lambda: TokenNumber("x"), "give the column of the tokens"),
        (
            lambda: FeatureSpec((TargetEncoding("x", of=("a",)),), Label("y", "multi_class"), ("id",)),
            "is the mean of a label that is binary or numeric; 'y' is multi_class",
        ),
        (
            lambda: FeatureSpec((Numeric("a"), TargetEncoding("x", of=("a",))), Label("y"), ("id",)),
            "feature 'x' takes column 'a' as token, 'a' as number",
        ),
    ],
)
def test_a_wrong_encoding_is_refused(feature: Any, message: str) -> None:
    with pytest.raises(FeatureSpecError, match=message):
        feature()


def _identifiers(rows: int, seed: int = 5) -> pa.Table:
    """Return a table in which only the day (month and day) and the age of an account (its number) decide the label."""
    rng = np.random.default_rng(seed)
    month, day, account = rng.integers(1, 13, rows), rng.integers(1, 29, rows), rng.integers(1, 900, rows)
    chance = rng.random((13, 29))[month, day] * 0.6 + 0.4 * (account > 450)
    columns = {"id": np.arange(rows), "month": month, "day": day, "account_id": account, "noise": rng.random(rows)}
    late = rng.random(rows) < chance
    return pa.table(
        columns | {"late": late.astype(np.int64), "random": rng.integers(0, 2, rows), "amount": late * 1e-6}
    )


def _encoded(table: pa.Table, label: Label, *features: kinds.Feature) -> FeatureSpec:
    known = (Categorical("month"), Categorical("day"), Categorical("account_id"), Numeric("noise"))
    features = features or tuple(each for each in known if each.name in table.column_names)
    return encoded_spec(in_memory(table), FeatureSpec(features, label, ("id",)))


@pytest.mark.parametrize("label", [Label("late"), Label("amount", "numeric")], ids=["binary", "tiny amounts"])
def test_columns_together_and_the_order_of_numbers_are_found(label: Label) -> None:
    spec = _encoded(_identifiers(20_000), label)
    encodings = spec.target_encodings
    assert ("month", "day") in [each.of for each in encodings]
    assert ("account_id",) in [each.of for each in encodings]
    # Days are among the columns of few whole numbers (test_infer.py), whatever is found of them.
    assert "account_id" in [each.of for each in spec if isinstance(each, TokenNumber)]
    assert spec.reasons["account_id as a number"] == "the label depends on the order of account_id"
    assert not any("noise" in each.columns for each in encodings)
    # Accounts have some 22 rows each, months and days have few values.
    assert {each.name: each.min_count for each in spec.categorical} == {"month": 1, "day": 1, "account_id": 10}


def test_a_label_that_depends_on_nothing_gets_no_columns_together() -> None:
    """Also where a table is larger than its sample, in which equal rows must not come or stay away together."""
    for seed, rows in ((1, 20_000), (2, 20_000), (3, 120_000)):
        spec = _encoded(_identifiers(rows, seed).drop_columns(["noise"]), Label("random"))
        assert [each.of for each in spec.target_encodings] == [("account_id",)]
        assert not any(isinstance(each, TokenNumber) for each in spec)


def test_values_that_are_rare_in_the_sample_alone_keep_their_embedding() -> None:
    table = _identifiers(400_000)
    table = table.append_column("user", pa.array(np.arange(400_000) % 12_000))
    spec = _encoded(table, Label("late"), Categorical("user"))
    assert [(each.name, each.min_count) for each in spec.categorical] == [("user", 10)]
    rare = table.append_column("visit", pa.array(np.arange(400_000) // 2))
    spec = _encoded(rare, Label("late"), Categorical("visit"), Categorical("user"))
    assert "visit" in {column for each in spec for column in each.columns}


def test_training_rows_alone_choose_and_names_that_are_taken_are_numbered() -> None:
    table = _identifiers(20_000)
    # The account decides the label of the test rows alone.
    is_test = np.arange(20_000) % 2 == 0
    late = np.where(is_test, table["account_id"].to_numpy() % 2, table["random"].to_numpy())
    table = table.append_column("split", pa.array(np.where(is_test, "test", "train"))).append_column(
        "odd", pa.array(late)
    )
    features = (Categorical("account_id"), Numeric("odd by account_id"), Numeric("noise"))
    table = table.append_column("odd by account_id", table["noise"])
    spec = _encoded(table, Label("odd"), *features)
    assert [each.name for each in spec.target_encodings] == ["odd by account_id 2"]
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(20_000)))
    assert _encoded(shuffled, Label("odd"), *features) == spec


@pytest.mark.parametrize(
    ("table", "label"),
    [
        (_identifiers(1_000), Label("late")),
        (_identifiers(5_000).drop_columns(["account_id"]), Label("late")),
        (_identifiers(5_000).drop_columns(["month"]), Label("day", "multi_class")),
    ],
    ids=["few rows", "few values", "several classes"],
)
def test_tables_without_columns_of_many_values_get_no_encodings(table: pa.Table, label: Label) -> None:
    features = tuple(Categorical(name) for name in ("month", "account_id") if name in table.column_names)
    assert _encoded(table, label, *features).target_encodings == ()


def test_folds_are_by_the_place_in_a_file() -> None:
    assert target_encoding.folds_of(6, 4).tolist() == [6, 7, 0, 1]
