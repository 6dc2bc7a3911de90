"""S15: sparse vectors as servers take them: a text with JSON where the protocol has no objects."""

import json

import pytest

from mirrorspark.lifecycle.serve.errors import RequestError
from mirrorspark.lifecycle.serve.fields import SPARSE_VECTOR, Field
from mirrorspark.lifecycle.serve.invocations_api import csv_rows
from mirrorspark.lifecycle.serve.tensors import tensor_rows

BASKET = Field("basket", SPARSE_VECTOR)


def tensor(*texts: str | None) -> dict[str, object]:
    values = {"name": "basket", "datatype": BASKET.datatype, "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [values]}


def test_a_sparse_vector_is_a_text_in_a_tensor_and_in_csv() -> None:
    texts = ['{"7": 2.0, "1": null}', None, "{}"]
    expected = [{"7": 2.0, "1": None}, None, {}]
    assert tensor_rows(tensor(*texts), [BASKET], lambda rows: None).columns == {"basket": expected}
    csv = '"basket",n\n' + '"{""7"": 2.0, ""1"": null}",1\n,2\n{},3\n'
    assert csv_rows(csv.encode(), [BASKET], lambda rows: None).columns == {"basket": expected}


@pytest.mark.parametrize("text", ["7:2", "[7]", "nan"])
def test_what_is_no_sparse_vector_is_told(text: str) -> None:
    with pytest.raises(RequestError, match="is no JSON object of indices and values"):
        tensor_rows(tensor(text), [BASKET], lambda rows: None)
    with pytest.raises(RequestError, match=r"row\[0\]: column 'basket' is .*, which is no map<bigint,double>"):
        csv_rows(f"basket\n{json.dumps(text)}\n".encode(), [BASKET], lambda rows: None)
