"""Normalised text and its tokens: golden cases, the promises of the definition, patterns and bad input (F2)."""

import hashlib
import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.text_rules import (
    ASSIGNED_LATER,
    CODE_POINTS,
    DEFAULT_SEPARATORS,
    SeparatorPatternError,
    normalise,
    normalise_text,
    single_spaced,
    spelled_out,
    split_tokens,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "text.json").read_text("utf-8"))
GOLDEN_BYTES = [case["text"].encode() if "text" in case else bytes.fromhex(case["utf8"]) for case in GOLDEN]

# Characters that normalising changes or puts in order, with ones that it does not.
LIVELY = [
    chr(code_point)
    for code_point in range(0x30000)
    if not 0xD800 <= code_point < 0xE000
    and (
        unicodedata.normalize("NFKD", chr(code_point)).casefold() != chr(code_point)
        or unicodedata.combining(chr(code_point))
    )
]
# Unicode's white space; Python counts four separators among the control characters, too.
SPACES = [chr(code) for code in range(0x10000) if chr(code).isspace() and code not in range(0x1C, 0x20)]
TEXTS = st.text(st.sampled_from(LIVELY) | st.characters(exclude_categories=["Cs"]), max_size=12)


def normalised(*texts: str | bytes | None) -> list[str | None]:
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return normalise(pa.array(encoded, pa.binary())).to_pylist()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_golden_texts_are_normalised_and_split_as_written_down() -> None:
    texts = normalise(pa.array(GOLDEN_BYTES, pa.binary()))
    found = [
        {"case": case["case"], "normalised": text, "tokens": tokens}
        for case, text, tokens in zip(GOLDEN, texts.to_pylist(), split_tokens(texts).to_pylist(), strict=True)
    ]
    assert found == [{key: case[key] for key in ("case", "normalised", "tokens")} for case in GOLDEN]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array([b"A", None, b"\xc3\x89\xff"]),
        pa.array([b"A", None, b"\xc3\x89\xff"], pa.large_binary()),
        pa.array([b"A", None, b"\xc3\x89\xff"]).view(pa.string()),
        pa.array([b"A", None, b"\xc3\x89\xff"], pa.large_binary()).view(pa.large_string()),
        pa.array([b"x", b"A", None, b"\xc3\x89\xff", b"\xc3\x89"]).slice(1, 3),
    ],
    ids=["binary", "large binary", "string", "large string", "slice"],
)
def test_every_form_of_text_is_taken_and_null_stays_null(texts: pa.Array) -> None:
    found = normalise(texts)
    found.validate(full=True)
    assert found.type == pa.string()
    assert found.to_pylist() == ["a", None, "\u00e9\ufffd"]


def test_columns_without_a_text_are_taken() -> None:
    assert normalise(pa.nulls(2)).to_pylist() == [None, None]
    assert normalise(pa.array([None, None], pa.string())).to_pylist() == [None, None]
    assert normalise(pa.array([], pa.string())).to_pylist() == []
    assert split_tokens(pa.nulls(2)).to_pylist() == [None, None]
    assert split_tokens(pa.array([], pa.string())).type == pa.list_(pa.string())


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="type int64; cast them to string"):
        normalise(pa.array([1]))


@given(st.lists(TEXTS, max_size=8))
def test_normalising_twice_changes_nothing(texts: list[str]) -> None:
    once = normalised(*texts)
    assert normalised(*once) == once


@given(TEXTS)
def test_texts_that_unicode_calls_equivalent_become_one(text: str) -> None:
    # The forms of what this Python knows are those of the pinned version only without characters of later ones.
    text = "".join(
        character for character in text if not any(first <= ord(character) <= last for first, last in ASSIGNED_LATER)
    )
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert set(normalised(*forms)) == {normalise_text(text)}


@given(st.lists(st.binary(max_size=8) | st.none(), max_size=8))
def test_a_column_is_normalised_as_its_texts_are(texts: list[bytes | None]) -> None:
    expected = [None if text is None else normalise_text(text.decode("utf-8", "replace")) for text in texts]
    assert normalised(*texts) == expected


def test_every_python_normalises_and_splits_by_the_same_version_of_unicode() -> None:
    # The digests come from Python 3.11 as it is (Unicode 14.0); 3.12 has 15.0, and 3.13 has 15.1.
    code_points = [code_point for code_point in range(CODE_POINTS) if not 0xD800 <= code_point < 0xE000]
    texts = "\n".join(normalise_text(chr(code_point)) for code_point in code_points)
    assert sha256(texts) == "d841d5d3e69b584772534bee88cf7d83084699f4a81aa018eb331fa20f98a615"
    separators = spelled_out(DEFAULT_SEPARATORS)
    assert sha256(separators) == "82111b0c5eedfdeed667bc953e36aff6d298d2c33fc5ac947d98d745b5bef58a"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\uff9e\u0316"])
def test_a_long_run_of_marks_is_put_in_order_in_linear_time(marks: str) -> None:
    # Python's own sorting takes minutes for this many.
    (found,) = normalised("a" + marks * 200_000)
    assert found is not None
    classes = [unicodedata.combining(character) for character in found[1:]]
    assert classes == sorted(classes)


@given(st.text(st.sampled_from(LIVELY), min_size=1, max_size=30))
def test_a_long_text_is_normalised_as_its_parts_are(text: str) -> None:
    # A plain letter on both sides keeps the parts from joining.
    assert normalised(f"b{text}b" * 500) == [normalise_text(f"b{text}b") * 500]


def test_characters_of_later_versions_stand_for_themselves() -> None:
    later = [chr(code_point) for first, last in ASSIGNED_LATER for code_point in range(first, last + 1)]
    assert normalised(*later) == later
    assert split_tokens(pa.array(later)).flatten().to_pylist() == []


@pytest.mark.parametrize(
    ("pattern", "text", "tokens"),
    [
        (r"\s+", " a b\tc-d  ", ["a", "b", "c-d"]),
        (",", "a,,b c,", ["a", "b c"]),
        (r"[^\p{Ll}\d]", "ab1 c\u0662\u00e9", ["ab1", "c", "\u00e9"]),
        (r"\pP|\p{Z}", "a.b c\u00a0d+e", ["a", "b", "c", "d+e"]),
        (r"\p{^L}+", "a1b", ["a", "b"]),
        (r"[\PL]+", "a1b", ["a", "b"]),
        (r"[]\pN]", "a]b1c", ["a", "b", "c"]),
        (r"\Q\pL[\E", r"a\pL[b", ["a", "b"]),
        (r"\\p", r"a\pb", ["a", "b"]),
        (r"[[:digit:]\p{Zs}]", "a1b c", ["a", "b", "c"]),
        ("\u3002|\uff0c", "\u6771\u3002\u4eac\uff0c\u90fd", ["\u6771", "\u4eac", "\u90fd"]),
        ("", "a\u00e9\U0001f600", ["a", "\u00e9", "\U0001f600"]),
        ("x*", "axxb", ["a", "b"]),
        (r"\b", "ab cd", ["ab", " ", "cd"]),
    ],
)
def test_patterns_split_as_re2_reads_them(pattern: str, text: str, tokens: list[str]) -> None:
    assert split_tokens(pa.array([text, None, ""]), pattern).to_pylist() == [tokens, None, []]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\p{Greek}", r"class '\\p{Greek}'; use a general category.*\\x\{370\}-\\x\{3ff\}"),
        (r"\p{Cn}", r"class '\\p{Cn}'"),
        ("(?i)x", r"leave it out and write lower case"),
        ("(?si:x)", r"leave it out and write lower case"),
        (r"a\C", r"use '\.' instead"),
        ("(", r"not an RE2 pattern: .*missing \)"),
        (r"a\1", r"not an RE2 pattern"),
    ],
)
def test_patterns_that_could_differ_between_libraries_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(SeparatorPatternError, match=message) as caught:
        split_tokens(pa.array(["x"]), pattern)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


def test_a_range_that_the_refusal_of_a_script_proposes_works() -> None:
    assert split_tokens(pa.array(["a\u03b1b"]), r"[\x{370}-\x{3ff}]").to_pylist() == [["a", "b"]]


def test_the_syntax_of_case_folding_is_literal_in_brackets() -> None:
    assert split_tokens(pa.array(["a?b(c"]), "[(?i]").to_pylist() == [["a", "b", "c"]]


@given(st.lists(TEXTS, max_size=8))
def test_default_tokens_are_runs_of_letters_marks_and_numbers(texts: list[str]) -> None:
    later = {code_point for first, last in ASSIGNED_LATER for code_point in range(first, last + 1)}
    expected = [
        "".join(
            character if unicodedata.category(character)[0] in "LMN" and ord(character) not in later else " "
            for character in text
        ).split(" ")
        for text in texts
    ]
    assert split_tokens(pa.array(texts, pa.string())).to_pylist() == [
        [token for token in row if token] for row in expected
    ]


def test_tokens_are_right_in_a_slice_and_beside_nulls() -> None:
    texts = pa.array(["zz zz", "a b", None, "", "c", "zz"]).slice(1, 4)
    tokens = split_tokens(texts)
    tokens.validate(full=True)
    assert tokens.to_pylist() == [["a", "b"], None, [], ["c"]]
    assert np.array_equal(tokens.offsets.to_numpy(), [0, 2, 2, 2, 3])


def test_white_space_counts_as_one_space_within_a_text_and_not_at_its_ends() -> None:
    texts = pa.array([f"{space}a{space} {space}b{space}" for space in SPACES] + ["a\x1cb", " ", "", None])
    found = single_spaced(texts).to_pylist()
    assert set(found[: len(SPACES)]) == {"a b"}
    assert found[len(SPACES) :] == ["a\x1cb", None, None, None]
