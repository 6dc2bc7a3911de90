"""S15, Q5: rows as servers take them: sparse vectors, texts in base64, and requests that no client should send."""

import json
import re
from typing import Any

import pytest

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import SPARSE_VECTOR, Field
from mirrorspark.serving.invocations_api import csv_rows
from mirrorspark.serving.rows import document_of, predicted_rows, with_texts
from mirrorspark.serving.tensors import tensor_rows, wanted_outputs

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
    with pytest.raises(RequestError, match="is not a JSON object of indices and values"):
        tensor_rows(tensor(text), [BASKET], lambda rows: None)
    with pytest.raises(RequestError, match=r"row\[0\]: column 'basket' is .*, which is not of type map<bigint,double>"):
        csv_rows(f"basket\n{json.dumps(text)}\n".encode(), [BASKET], lambda rows: None)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            '{"a": [0, 0, 0, 0]}',
            413,
            "has 6 values, at most 5 may be (--max-values)",
        ),  # an object, a list, four numbers
        ('{"a": ' + "[" * 31 + "]" * 31 + "}", None, ""),
        ('{"a": ' + "[" * 32 + "]" * 32 + "}", 400, "lists or objects on 33 levels; 32 may be"),
        ('{"a": "' + "[,{" * 99 + '"}', None, ""),  # brackets and commas of a text are neither
        (r'{"a": "\\\"' + "[" * 99 + '"}', None, ""),  # nor behind an escaped backslash and an escaped quote
        (r'{"a": "\\", "b": ' + "[" * 99, 400, "on 100 levels"),  # where the text has ended, they are
        ('{"a": ' + "9" * 311 + "}", 400, "it has a number of 311 digits"),
        ('{"a": 1}'.encode("utf-16"), 400, "the body is not JSON in UTF-8"),
    ],
)
def test_json_is_counted_before_it_is_read(body: str | bytes, status: int | None, message: str) -> None:
    text = body if isinstance(body, bytes) else body.encode()
    limit = 5 if status == 413 else 200
    if status is None:
        assert document_of(text, limit) == json.loads(text)
        return
    with pytest.raises(RequestError, match=re.escape(message)) as error:
        document_of(text, limit)
    assert error.value.status == status


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": [[[["x"]]]], "shape": [1, 1]},
            "input 'a' has lists on more levels than its shape [1, 1] has dimensions",
        ),
        ({"shape": [1] * 9}, "input 'a' has the shape [1, 1, 1, 1, 1, 1, 1, 1, 1]; give [rows]"),
        ({"shape": [10**400]}, "input 'a' has the shape [1000"),
        ({"datatype": "FP32", "data": [10**309]}, "row[0]: input 'a' has 1000"),
        ({"name": ["a"]}, "'inputs' lacks the column 'a'; the model reads ['a']"),
        ({"name": {"a": 1}}, "'inputs' lacks the column 'a'"),
        ({"name": "A"}, "'inputs' lacks the column 'a' (did you mean 'A'? Upper and lower case count); the model"),
    ],
)
def test_a_tensor_that_no_model_reads_is_refused_by_its_name(change: dict[str, Any], message: str) -> None:
    given = {"name": "a", "shape": [1], "datatype": "BYTES", "data": ["x"]} | change
    with pytest.raises(RequestError, match=re.escape(message)) as error:
        tensor_rows({"inputs": [given]}, [Field("a", "string")], lambda rows: None)
    assert error.value.status == 400


@pytest.mark.parametrize("outputs", [[{"name": ["score"]}], [{"name": "other"}], {"name": "score"}, ["score"], 7])
def test_outputs_that_the_model_does_not_have_are_refused(outputs: Any) -> None:
    with pytest.raises(RequestError, match=re.escape("name some of ['score']")):
        wanted_outputs({"outputs": outputs}, [Field("score", "float")])


def test_an_output_that_is_asked_for_again_and_again_is_answered_once() -> None:
    fields = [Field("score", "float"), Field("rank", "int")]
    assert wanted_outputs({"outputs": [{"name": "rank"}] * 9}, fields) == (fields[1],)


def test_texts_may_come_as_base64_as_tensorflow_servings_clients_send_them() -> None:
    fields = [Field("a", "string"), Field("tags", "array<string>"), Field("picture", "binary")]
    row = {"a": {"b64": "VUE="}, "tags": [{"b64": "VUE="}, "b", None], "picture": {"b64": "/w=="}}
    rows = with_texts(predicted_rows({"instances": [row]}, [field.name for field in fields]), fields)
    assert rows.columns == {"a": ["UA"], "tags": [["UA", "b", None]], "picture": [b"\xff"]}
    for value, message in (
        ({"b64": "/w=="}, "instances[0]: column 'a' has bytes that are not text in UTF-8"),
        ({"b64": "?"}, "instances[0]: column 'a': '?' is not base64"),
        ({"b64": [1]}, "instances[0]: column 'a': [1] is not base64"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            with_texts(predicted_rows({"instances": [row | {"a": value}]}, [field.name for field in fields]), fields)


def test_cells_and_entries_of_vectors_have_the_limit_of_values() -> None:
    assert csv_rows(b"n\n1\n", [Field("n", "int")], lambda rows: None, 3).columns == {"n": [1]}
    with pytest.raises(RequestError, match="has 4 values, at most 3 may be"):
        csv_rows(b"n,m\n1,1", [Field("n", "int")], lambda rows: None, 3)
    entries = json.dumps({str(number): 1 for number in range(6)})
    with pytest.raises(RequestError, match="has 12 values, at most 11 may be"):
        tensor_rows(tensor(entries, entries), [BASKET], lambda rows: None, 11)
