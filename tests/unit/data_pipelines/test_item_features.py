"""#52: the features of a table of items are inferred."""

import logging

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.item_features import infer_items
from mirrorspark.data_pipelines.features.kinds import Bucketed, Categorical, FeatureSpecError, Numeric, Sparse, Text

ROWS = 200
ITEMS = pa.table(
    {
        "sku": [f"s{row}" for row in range(ROWS)],
        "title": [f"Film {row}" for row in range(ROWS)],
        "genres": [("Action|Drama", "Drama", "Action|Children|Sci-Fi")[row % 3] for row in range(ROWS)],
        "price": [row * 1.5 for row in range(ROWS)],
        "shop": [f"shop {row % 4}" for row in range(ROWS)],
        "code": [f"c{row}" for row in range(ROWS)],
        "note": pa.nulls(ROWS, pa.string()),
        "secret": [row % 3 for row in range(ROWS)],
        "words": pa.array([[(row % 50, 0.5)] for row in range(ROWS)], pa.map_(pa.int64(), pa.float64())),
    }
)


def test_lists_titles_numbers_and_categories_of_items_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mirrorspark.data_pipelines.features.item_features"):
        spec = infer_items(ITEMS, "sku", exclude=["secret"])
    assert spec.query_features == (
        Text("title", max_length=2),
        Text("genres", max_length=3, pattern="[|]"),
        Numeric("price", clip="range"),
        Categorical("shop"),
        Sparse("words", size=50),
    )
    assert spec.label.name == "sku"
    assert "column genres of items: values with | between them" in caplog.messages
    assert "column code of items: left out: its 200 different values identify single rows" in caplog.messages
    assert "column note of items: left out: it has no value" in caplog.messages
    assert not any(isinstance(feature, Bucketed) for feature in spec)


def test_items_without_a_feature_are_refused() -> None:
    with pytest.raises(
        FeatureSpecError, match="no column of items can be a feature: code is left out: its 200 different"
    ):
        infer_items(ITEMS.select(["sku", "code"]), "sku")
    with pytest.raises(FeatureSpecError, match="no column of items can be a feature: it has the key 'sku' alone"):
        infer_items(ITEMS.select(["sku"]), "sku")
