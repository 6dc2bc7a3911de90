"""Ids of tokens: exact for any vocabulary, saved and mapped back (F1)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features import farmhash
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary


def vocabulary(tokens: list[str]) -> Vocabulary:
    return Vocabulary(pa.array(tokens, pa.string()), pa.array(range(len(tokens), 0, -1), pa.int64()))


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.none() | st.text()))
def test_ids_are_those_of_a_dictionary(tokens: list[str], looked_up: list[str | None]) -> None:
    looked_up = [*looked_up, *tokens]
    by_token = {token: number + 2 for number, token in enumerate(tokens)} | {"": 0, None: 0}
    ids = vocabulary(tokens).ids(pa.array(looked_up, pa.string()))
    assert ids.dtype == np.int64
    assert ids.tolist() == [by_token.get(token, 1) for token in looked_up]


INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)
# Texts that look like a number, but that Arrow does not write, or that do not fit int64.
NEARLY = st.sampled_from(["07", "+7", "-0", " 7", "7.0", "", "9223372036854775808", "-9223372036854775809", "1" * 30])


@given(st.lists(INTEGERS.map(str) | NEARLY, unique=True), st.lists(st.none() | INTEGERS))
def test_integers_have_the_ids_of_their_texts(tokens: list[str], looked_up: list[int | None]) -> None:
    known = [int(token) for token in tokens if token.strip() and token[-2:] != ".0" and abs(int(token)) < 2**63]
    numbers = pa.array([*looked_up, *known], pa.int64())
    known_tokens = vocabulary([token for token in tokens if token])
    ids = known_tokens.ids_of_integers(numbers)
    assert ids.dtype == np.int64
    assert ids.tolist() == known_tokens.ids(numbers.cast(pa.string())).tolist()


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64()])
def test_integers_of_any_width_have_the_ids_of_their_texts(type_: pa.DataType) -> None:
    numbers = pa.array([7, None, 100, 0], type_)
    assert vocabulary(["100", "7"]).ids_of_integers(numbers.slice(0, 3)).tolist() == [3, 0, 2]
    assert vocabulary(["a"]).ids_of_integers(numbers).tolist() == [1, 0, 1, 1]


def test_a_token_that_shares_a_fingerprint_is_still_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_letter(strings: pa.Array) -> np.ndarray:
        return np.array([ord(text[0]) if text else 0 for text in strings.to_pylist()], np.uint64)

    monkeypatch.setattr(farmhash, "fingerprint64", first_letter)
    tokens = ["apple", "avocado", "banana", "apricot"]
    looked_up = pa.array(["apricot", "apple", "almond", "banana", "blueberry", "avocado", "", None])
    assert vocabulary(tokens).ids(looked_up).tolist() == [5, 2, 1, 4, 1, 3, 0, 0]


def test_a_saved_vocabulary_comes_back(tmp_path: Path) -> None:
    tokens = [f"token-{number}" for number in range(5_000)]
    vocabulary(tokens).save(tmp_path / "v.arrow")
    loaded = Vocabulary.load(tmp_path / "v.arrow")
    assert loaded.tokens.to_pylist() == tokens
    assert loaded.counts.to_pylist() == list(range(5_000, 0, -1))
    assert loaded.ids(pa.array(["token-4999", "token-0", "token-5000"])).tolist() == [5001, 2, 1]


def test_tokens_in_pieces_are_one_vocabulary() -> None:
    tokens = pa.chunked_array([["a", "b"], [], ["c"]], pa.string())
    pieces = Vocabulary(tokens, pa.chunked_array([[3, 2], [], [1]], pa.int64()))
    assert pieces.ids(pa.array(["c", "a", "x", "b"])).tolist() == [4, 2, 1, 3]


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert vocabulary([]).ids(pa.array(["a", "", None])).tolist() == [1, 0, 0]
    assert vocabulary(["a"]).ids(pa.array([], pa.string())).tolist() == []


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    table = pa.table({"words": ["a"]})
    with pa.ipc.new_file(str(tmp_path / "v.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(pa.ArrowInvalid, match="has the columns \\['words'\\], not \\['tokens', 'counts'\\]"):
        Vocabulary.load(tmp_path / "v.arrow")
