"""Columns of embedded texts and images, taken apart into contents and vectors."""

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.embedded_columns import IMAGE, as_contents, embedded_column, unembedded_type


def test_an_embedded_text_is_its_text_or_its_vector() -> None:
    texts = pa.array(["a film", None, "a b"])
    table = pa.table({"x": embedded_column(texts, np.array([[1, -2], [3, 1e-40]], np.float32)), "y": [1, 2, 3]})
    assert as_contents(table)["x"].to_pylist() == texts.to_pylist()
    assert as_contents(table, vectors_of=["x"])["x"].to_pylist() == [[1.0, -2.0], None, [3.0, pytest.approx(1e-40)]]
    assert [unembedded_type(field.type) for field in table.schema] == [pa.string(), pa.int64()]


def test_an_embedded_image_is_its_digest_with_its_vector() -> None:
    table = pa.table({"x": embedded_column(pa.array(["a1", None]), np.array([[1, -2]], np.float32), IMAGE)})
    assert as_contents(table)["x"].to_pylist() == ["a1", None]
    assert unembedded_type(table["x"].type) == pa.binary()
