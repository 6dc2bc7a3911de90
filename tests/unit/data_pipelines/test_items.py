"""Tables of items: all their keys become candidates, and their features are found by the candidates' ids (R1)."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import FeatureMismatchError, FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.item_rows import (
    compared_items,
    encoded_items,
    ids_without_item,
    with_catalogue,
    with_items,
)
from mirrorspark.data_pipelines.features.kinds import (
    Categorical,
    FeatureSpecError,
    Label,
    MultiValued,
    Numeric,
    Sparse,
    Vector,
)
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

ITEMS = FeatureSpec.of_items(
    "id",
    [
        MultiValued("genres", max_length=2),
        Numeric("year", impute=2001),
        Vector("poster", size=2),
        Sparse("words", size=9),
    ],
)
SPEC = FeatureSpec((Categorical("user"), Categorical("movie")), Label("movie", "candidate"), ("user",), items=ITEMS)
TABLE = pa.table(
    {
        "id": [7, 30, 4, 1],
        "genres": [["war"], ["noir", "war"], None, ["new"]],
        "year": [2003.0, None, 1999.0, 2001.0],
        "poster": [[1.0, 2.0], None, [0.5, 0.0], [3.0, 4.0]],
        "words": pa.array([[(8, 0.5), (1, 0.25)], None, [(3, 1.0)], []], pa.map_(pa.int64(), pa.float64())),
    }
)


def vocabulary(tokens: list[str], counts: list[int]) -> Vocabulary:
    return Vocabulary(pa.array(tokens), pa.array(counts))


def fitted_with_items(table: pa.Table = TABLE) -> FittedFeatures:
    """Return features whose movies were watched 5, 3 and 1 times: 30 = 2, 7 = 3, 99 = 4."""
    own = FittedFeatures(
        ITEMS,
        {"id": vocabulary(["1", "30", "4", "7"], [1] * 4), "genres": vocabulary(["war", "noir"], [2, 1])},
        {"year": NumericStatistics(2001.0, 2.0, 1999.0, 2003.0, 3)},
    )
    users, movies = vocabulary(["u"], [9]), vocabulary(["30", "7", "99"], [5, 3, 1])
    return with_items(FittedFeatures(SPEC, {"user": users, "movie": movies}, {}), own, table)


def catalogue_of(keys: list[int]) -> pa.Table:
    """Return a table of items with these keys, which have no features."""
    nothing = {name: pa.nulls(len(keys), TABLE.schema.field(name).type) for name in TABLE.column_names[1:]}
    return pa.table({"id": keys, **nothing})


def test_items_without_a_training_row_follow_the_other_candidates() -> None:
    movies = fitted_with_items().vocabulary(SPEC.candidate)
    assert movies.tokens.to_pylist() == ["30", "7", "99", "1", "4"]
    assert movies.counts.to_pylist() == [5, 3, 1, 0, 0]


def test_the_features_of_an_item_are_at_the_id_of_its_candidate() -> None:
    items = fitted_with_items().items
    assert items is not None
    encoded = encoded_items(items)
    words = encoded.pop("words")
    assert isinstance(words, SparseRows)
    assert words.row_lengths.tolist() == [0, 0, 0, 2, 0, 0, 1]
    assert (words.indices.tolist(), words.values.tolist()) == ([1, 8, 3], [0.25, 0.5, 1.0])
    found = {name: np.asarray(values).tolist() for name, values in encoded.items()}
    # Missing, out of vocabulary, 30, 7, 99 (not an item), 1, 4.
    assert found == {
        "genres": [[0, 0], [0, 0], [3, 2], [2, 0], [0, 0], [1, 0], [0, 0]],
        "year": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0],
        "poster": [[0, 0], [0, 0], [0, 0], [1, 2], [0, 0], [3, 4], [0.5, 0]],
    }


def test_items_survive_saving_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    fitted = fitted_with_items()
    fitted.save(tmp_path)
    loaded = FittedFeatures.load(tmp_path)
    assert loaded.hash == fitted.hash
    assert loaded.items is not None
    assert loaded.items.rows.equals(fitted.items.rows)  # type: ignore[union-attr]
    file = tmp_path / "items" / "items.arrow"
    content = file.read_bytes()
    file.unlink()  # it is mapped
    file.write_bytes(content.replace(b"noir", b"jazz"))
    with pytest.raises(FeatureMismatchError, match="convert the data again"):
        FittedFeatures.load(tmp_path)


def test_the_order_of_the_rows_changes_nothing_and_a_value_does() -> None:
    hashes = {fitted_with_items(table).hash for table in (TABLE, TABLE.take([3, 1, 0, 2]))}
    assert len(hashes) == 1
    years = pa.array([2003.0, 2000.0, 1999.0, 2001.0])
    assert fitted_with_items(TABLE.set_column(2, "year", years)).hash not in hashes


def test_a_later_catalogue_keeps_the_ids_of_the_training_alone() -> None:
    trained = fitted_with_items()
    later = with_catalogue(trained, catalogue_of([88, 4, 30]), trained=5)
    assert later.vocabulary(SPEC.candidate).tokens.to_pylist() == ["30", "7", "99", "1", "4", "88"]
    # 7, 99 and 1 have no item any more.
    assert ids_without_item(later).tolist() == [3, 4, 5]
    latest = with_catalogue(later, catalogue_of([7, 20]), trained=5)
    assert latest.vocabulary(SPEC.candidate).tokens.to_pylist() == ["30", "7", "99", "1", "4", "20"]
    assert ids_without_item(latest).tolist() == [2, 4, 5, 6]
    # The features keep their state from the training.
    assert latest.items is not None
    assert trained.items is not None
    assert latest.items.features.statistics == trained.items.features.statistics
    assert latest.hash != later.hash


def test_changed_items_are_those_of_both_tables_with_other_features() -> None:
    trained = fitted_with_items()
    table = TABLE.set_column(2, "year", pa.array([2003.0, 1999.0, 1999.0, 2001.0])).slice(0, 3)
    later = with_catalogue(trained, table, trained=5)
    assert trained.items is not None
    assert later.items is not None
    # 30 has a year now; neither the missing 1 nor the order of the rows counts as a change.
    assert compared_items(trained.items, later.items).changed == 1
    words = [[(1, 0.25), (8, 0.75)], [(2, 1.0)], [(3, 1.0)], []]
    reworded = TABLE.set_column(4, "words", pa.array(words, TABLE.schema.field("words").type))
    rewritten = with_catalogue(trained, reworded, trained=5)
    assert rewritten.items is not None
    assert compared_items(trained.items, rewritten.items).changed == 2
    found = compared_items(trained.items, rewritten.items)
    # 4 and 1 of both tables, the reserved ids, and 99, which neither table has.
    assert (sorted(zip(*found.kept.tolist(), strict=True)), found.unknown) == ([(i, i) for i in (0, 1, 4, 5, 6)], 2)
    given = compared_items(trained.items, rewritten.items, pa.array(["7", "4"]))
    assert (given.changed, given.unknown) == (1, 1)
    same = with_catalogue(trained, TABLE.take([3, 1, 0, 2]), trained=5)
    assert same.items is not None
    assert compared_items(trained.items, same.items).changed == 0
    assert same.items.digest == trained.items.digest


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([7, 30, None, 1], "the key 'id' of the items is null or empty in a row"),
        (["7", "30", "", "1"], "the key 'id' of the items is null or empty in a row"),
        ([7, 30, 7, 1], "the item '7' has more than one row in the table of items; keep one row per 'id'"),
    ],
)
def test_keys_that_name_no_item_or_two_are_refused(keys: list[object], message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        fitted_with_items(TABLE.set_column(0, "id", pa.array(keys)))


def test_a_spec_with_items_survives_yaml_and_without_them_keeps_its_form(tmp_path: Path) -> None:
    assert FeatureSpec.from_dict(SPEC.to_dict()) == SPEC
    assert SPEC.to_dict()["items"]["key"] == "id"
    SPEC.save(tmp_path / "spec.yaml")
    assert FeatureSpec.load(tmp_path / "spec.yaml") == SPEC
    without = dataclasses.replace(SPEC, items=None)
    assert "items" not in without.to_dict()
    assert without.hash != SPEC.hash


def test_items_that_cannot_be_are_refused() -> None:
    with pytest.raises(FeatureSpecError, match="items need a label of kind candidate; 'late' is not"):
        dataclasses.replace(SPEC, label=Label("late"))
    with pytest.raises(FeatureSpecError, match=r"items have the features \['id'\]; give one or more in addition"):
        FeatureSpec.of_items("id", [Sparse("id", size=9)])
    with pytest.raises(FeatureSpecError, match=r"items have the parts \['features'\]; give key and features"):
        FeatureSpec.from_dict(SPEC.to_dict() | {"items": {"features": {}}})
