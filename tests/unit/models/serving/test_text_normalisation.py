"""The graph form of text gives the bytes of the Arrow form, for any text and any bytes (F2)."""

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.text_rules import (
    CODE_POINTS,
    DEFAULT_SEPARATORS,
    normalise,
    spelled_out,
    split_tokens,
)
from mirrorspark.models.serving.text_normalisation import GraphNormaliser, graph_split
from tests.conftest import PATIENCE

GOLDEN = json.loads((Path(__file__).parents[2] / "data_pipelines" / "golden" / "text.json").read_text("utf-8"))
CHARACTERS = [chr(code_point) for code_point in range(CODE_POINTS) if not 0xD800 <= code_point < 0xE000]
MARKS = [character for character in CHARACTERS if unicodedata.combining(character)]
LIVELY = [
    character
    for character in CHARACTERS
    if not 0xAC00 <= ord(character) < 0xD7A4 and unicodedata.normalize("NFKD", character).casefold() != character
]
# Both parts of every pair that composes, and jamo with syllables that they lengthen.
PARTS = sorted(
    {
        chr(int(part, 16))
        for character in CHARACTERS
        for part in unicodedata.decomposition(character).split()
        if not part.startswith("<")
    }
)
HANGUL = [
    chr(code_point) for block in ((0x1100, 0x1200), (0xAC00, 0xAC3A), (0xFFA0, 0xFFDD)) for code_point in range(*block)
]
GREEK = [*map(chr, range(0x370, 0x400)), *map(chr, range(0x1F00, 0x2000)), *"\u0300\u0301\u0308\u0313\u0342\u0345" * 20]
ALPHABETS = [
    LIVELY,
    PARTS + MARKS,
    MARKS + list("aeq "),
    HANGUL + MARKS[:9],
    GREEK,
    list("aZ\u00e4\u00df\u0130 \u0307"),
]
TEXTS = st.one_of(
    *[st.text(st.sampled_from(alphabet), max_size=12) for alphabet in ALPHABETS],
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
# Bytes that begin, continue, lengthen and end characters, with pieces of surrogates.
BYTES = st.lists(
    st.sampled_from(
        [b"A", b"\x80", b"\xbf", b"\xc0", b"\xc3", b"\xe0", b"\xa0", b"\xed\xa0", b"\xef\xbb\xbf", b"\xcc\x81"]
    )
    | st.sampled_from([b"\xf0", b"\x90", b"\xf4", b"\x8f", b"\xf5", b"\xff", b"\xe1\x84\x80", b"\xe1\x85\xa1"])
    | st.binary(max_size=3),
    max_size=9,
).map(b"".join)


@pytest.fixture(scope="module")
def normaliser() -> GraphNormaliser:
    return GraphNormaliser()


def expected_bytes(texts: list[bytes]) -> list[bytes]:
    return normalise(pa.array(texts, pa.binary())).view(pa.binary()).to_pylist()


def graph_bytes(normaliser: GraphNormaliser, texts: list[bytes]) -> list[bytes]:
    return normaliser(tf.constant(texts, tf.string, [len(texts)])).numpy().tolist()


def differences(normaliser: GraphNormaliser, texts: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    triples = zip(texts, expected_bytes(texts), graph_bytes(normaliser, texts), strict=True)
    return [(text, expected, found) for text, expected, found in triples if expected != found]


def test_golden_texts_become_what_is_written_down(normaliser: GraphNormaliser) -> None:
    texts = [case["text"].encode() if "text" in case else bytes.fromhex(case["utf8"]) for case in GOLDEN]
    found = normaliser(tf.constant(texts))
    assert [text.decode() for text in found.numpy()] == [case["normalised"] for case in GOLDEN]
    tokens = [[token.decode() for token in row] for row in graph_split(found).to_list()]
    assert tokens == [case["tokens"] for case in GOLDEN]


@pytest.mark.full
def test_every_code_point_in_one_batch(normaliser: GraphNormaliser) -> None:
    texts = [chr(code_point).encode("utf-8", "surrogatepass") for code_point in range(CODE_POINTS)]
    assert differences(normaliser, texts) == []


def test_every_pair_that_composes_alone_and_across_marks(normaliser: GraphNormaliser) -> None:
    pairs = [unicodedata.normalize("NFD", character) for character in CHARACTERS]
    texts = [text for text in pairs if len(text) > 1]
    spread = [text[:-1] + mark + text[-1] for text in texts[:2500] for mark in "\u0334\u05b0\u0323\u0301\u0345"]
    assert len(texts) > 12_000
    assert differences(normaliser, [text.encode() for text in texts + spread]) == []


def test_every_mark_among_marks_of_other_classes(normaliser: GraphNormaliser) -> None:
    # The shape of part 2 of Unicode's own NormalizationTest.txt: classes 232, 230 and 228 next to the mark.
    texts = [f"a\u0315\u0300\u05ae{mark}b" for mark in MARKS] + [f"a{mark}\u0315\u0300\u05aeb" for mark in MARKS]
    assert differences(normaliser, [text.encode() for text in texts]) == []


@given(st.lists(TEXTS, max_size=12))
def test_any_texts(normaliser: GraphNormaliser, texts: list[str]) -> None:
    assert differences(normaliser, [text.encode() for text in texts]) == []


@given(st.lists(BYTES, max_size=12))
def test_any_bytes(normaliser: GraphNormaliser, texts: list[bytes]) -> None:
    assert differences(normaliser, texts) == []


def test_many_random_texts(normaliser: GraphNormaliser) -> None:
    rng = random.Random(20)
    texts = ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.randrange(16))) for _ in range(50_000)]
    assert differences(normaliser, [text.encode() for text in texts]) == []


def test_marks_at_the_start_do_not_join_the_text_before(normaliser: GraphNormaliser) -> None:
    texts = ["e", "\u0301", "\u1100", "\u1161", "q\u0307", "\u0323", ""]
    assert graph_bytes(normaliser, [text.encode() for text in texts]) == [text.encode() for text in texts]


def test_any_shape_keeps_its_shape(normaliser: GraphNormaliser) -> None:
    assert normaliser(tf.constant("\u00c9")).numpy() == "\u00e9".encode()
    assert normaliser(tf.constant([["A"], ["\u00c9"]])).numpy().tolist() == [[b"a"], ["\u00e9".encode()]]
    assert normaliser(tf.zeros([0, 3], tf.string)).shape == (0, 3)


@pytest.mark.parametrize("text", ["a" + "\u0301\u0316" * 100_000, "\ufdfa" * 20_000], ids=["marks", "expanding"])
def test_one_monstrous_text_among_short_ones(normaliser: GraphNormaliser, text: str) -> None:
    # Memory of rows times the longest text would be some 10 GB here.
    texts = [b"\xc3\x89 a"] * 50_000 + [text.encode()]
    assert differences(normaliser, texts) == []
    normal = expected_bytes(texts)
    assert graph_split(tf.constant(normal)).row_lengths().numpy().tolist() == [
        len(tokens) for tokens in split_tokens(pa.array(normal).view(pa.string())).to_pylist()
    ]


@pytest.mark.parametrize("pattern", [DEFAULT_SEPARATORS, r"\s+", r"[\pP\p{Z}]", "", r"\b", "a|e*", r"\p{^Ll}"])
def test_tokens_are_those_of_the_arrow_form(pattern: str) -> None:
    rng = random.Random(7)
    alphabet = [*" .,-_aeiz\n\t09", "\u00e9", "\u0301", "\u3002", "\u0663", "\u00ad", "\U0001f600", "\U0001e030"]
    texts = ["".join(rng.choices(alphabet + rng.choice(ALPHABETS)[:9], k=rng.randrange(20))) for _ in range(3_000)]
    expected = split_tokens(pa.array(texts), pattern).to_pylist()
    found = graph_split(tf.constant(texts), pattern)
    assert [[token.decode() for token in row] for row in found.to_list()] == expected


def test_classes_of_characters_are_the_same_in_both_libraries_and_in_python() -> None:
    # TensorFlow 2.20's RE2 has Unicode 15.0 and that of pyarrow 25 has 15.1: the classes as they come would differ.
    arrow, graph = pa.array(CHARACTERS), tf.constant(CHARACTERS)
    for name in ("L", "M", "N", "P", "S", "Z", "C", "Lu", "Mn", "Nd", "Cf", "Co"):
        spelled = spelled_out(rf"\p{{{name}}}")
        by_arrow = pc.match_substring_regex(arrow, f"^{spelled}$").to_numpy(zero_copy_only=False)
        by_graph = tf.strings.regex_full_match(graph, spelled).numpy()
        np.testing.assert_array_equal(by_arrow, by_graph, err_msg=name)
        assert 0 < by_arrow.sum() < len(CHARACTERS)


def test_composing_takes_three_rounds_at_most() -> None:
    # The loop is short for this reason: no composite is made of more than three compositions one after the other.
    def compositions(character: str) -> int:
        parts = unicodedata.decomposition(character).split()
        is_pair = len(parts) == 2 and not parts[0].startswith("<")
        return 1 + compositions(chr(int(parts[0], 16))) if is_pair else 0

    assert max(map(compositions, CHARACTERS)) == 3


@pytest.mark.process
def test_a_saved_model_runs_in_a_process_without_this_package(normaliser: GraphNormaliser, tmp_path: Path) -> None:
    class Tokeniser(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normaliser = normaliser

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.string)])
        def __call__(self, titles: tf.Tensor, others: tf.Tensor) -> dict[str, tf.Tensor]:
            # Two inputs share one copy of the tables.
            tokens = graph_split(self.normaliser(titles))
            return {
                "tokens": tokens.flat_values,
                "lengths": tokens.row_lengths(),
                "others": self.normaliser(others),
            }

    tf.saved_model.save(Tokeniser(), str(tmp_path / "model"))
    model_bytes = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*") if file.is_file())
    assert model_bytes < 500_000, "the tables are small and stored once"
    texts = [case["text"] for case in GOLDEN if "text" in case]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    program = """
import json, sys, tensorflow as tf
texts = tf.constant(json.load(open("texts.json")))
found = tf.saved_model.load("model")(texts, texts[:2])
assert not {"models", "data_pipelines"} & set(sys.modules)
json.dump([token.decode() for token in found["tokens"].numpy()], open("tokens.json", "w"))
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True, timeout=PATIENCE * 100
    )
    expected = [token for case in GOLDEN if "text" in case for token in case["tokens"]]
    assert json.loads((tmp_path / "tokens.json").read_text()) == expected
