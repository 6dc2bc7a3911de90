"""The graph form of the transform gives the bits of the Arrow form on the same rows (F1, F2, F9)."""

import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.embedded_columns import embedded_column
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import (
    UNBOUNDED,
    Bucketed,
    Categorical,
    Date,
    Feature,
    ImageEmbedding,
    Label,
    MultiValued,
    Numeric,
    Ordinal,
    Sequence,
    Sparse,
    TargetEncoding,
    Text,
    TextEmbedding,
    TokenNumber,
    Vector,
)
from mirrorspark.data_pipelines.features.raw_columns import raw_inputs
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.text_rules import single_spaced
from mirrorspark.data_pipelines.features.transform import Encoder, SparseRows
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models.serving import preprocessing
from mirrorspark.models.serving.preprocessing import (
    GraphEncoder,
    encoded_signature,
    encoded_tensors,
    input_tensors,
    model_inputs,
)
from mirrorspark.models.serving.signatures import encoded_names
from tests.conftest import PATIENCE
from tests.unit.models.conftest import raw_tensors

FEATURES = (
    Numeric("standardised"),
    Numeric("imputed", impute=-7.25),
    Numeric("plain", impute=0.1, standardise=False),
    Numeric("constant"),
    Numeric("logarithm", log=True),
    Numeric("clipped", clip=(-2.5, 1e6)),
    Numeric("in_range", clip="range"),
    Numeric("logarithm_in_range", clip="range", log=True, standardise=False, impute=3),
    Numeric("clipped_logarithm", impute=-5, clip=(None, 100), log=True, standardise=False),
    Ordinal("size", order=("S", "M", "L", "known 3")),
    Ordinal("log_size", order=("L", "0"), impute=2, log=True, standardise=False),
    Date("iso"),
    Date("german", order="dmy", standardise=False, impute=19753),
    Date("american", order="mdy"),
    Date("clock", order="time", standardise=False),
    Bucketed("bucket", buckets=6),
    Categorical("token"),
    Categorical("hashed_token", hash_buckets=7),
    MultiValued("heads", max_length=3, truncate="head", vocabulary_of="token"),
    MultiValued("tails", max_length=2, truncate="tail"),
    MultiValued("hashed_list", max_length=3, vocabulary_of="hashed_token"),
    Sequence("visits", time="visited_at", max_length=3, vocabulary_of="token"),
    Sequence("hashed_visits", time="visited_at", max_length=2, hash_buckets=1000),
    Text("title", max_length=4),
    Text("review", max_length=2, truncate="head", pattern=r"\s+", hash_buckets=50),
    Text("subwords", max_length=20, hash_buckets=1000, ngrams=(2, 4)),
    Text("last_subwords", max_length=7, truncate="head", pattern=r"\s+", hash_buckets=1000, ngrams=(3, 3)),
    Sparse("basket", size=40),
    Sparse("clicks", size=2**40, indices="click_ids", values="click_counts"),
    Vector("picture", size=3),
    TargetEncoding("label by token", of=("token",)),
    TargetEncoding("label by both", of=("token", "plain"), numbers=("plain",), standardise=False),
    TargetEncoding("label by nothing", of=("hashed_token",)),
    TokenNumber("token as a number", of="token"),
)
OF_OTHER_COLUMNS = ("label by token", "label by both", "label by nothing", "token as a number")
SPEC = FeatureSpec(FEATURES, Label("label"), ("id",))
EXCLUDED = MultiValued("unbounded", max_length=UNBOUNDED, vocabulary_of="token")

ALPHABET = ["a", "B", " ", "ü", "ß", "日", "🛫", "\u0301", "'", "0", "ﬁ", "Å"]
DENORMAL32, DENORMAL64 = 1e-40, 5e-324


def vocabulary(tokens: list[str]) -> Vocabulary:
    return Vocabulary(pa.array(tokens, pa.string()), pa.array([1] * len(tokens), pa.int64()))


@pytest.fixture(scope="module")
def fitted() -> FittedFeatures:
    rng = np.random.default_rng(17)
    tokens = [f"{''.join(rng.choice(ALPHABET, rng.integers(1, 6)))}{number}" for number in range(200)]
    statistics = {feature.name: NumericStatistics(5.0, 2.0, 0.0, 0.0, 9) for feature in SPEC.numeric} | {
        "standardised": NumericStatistics(1234.567890123, 0.3141592653589793, 0.0, 0.0, 9),
        "imputed": NumericStatistics(-3e-5, 7e4, 0.0, 0.0, 9),
        "constant": NumericStatistics(42.1, 0.0, 42.1, 42.1, 9),
        "in_range": NumericStatistics(1.0, 3.0, -4.5, 42.0, 9),
        "logarithm_in_range": NumericStatistics(0.1, 0.7, -2.0, 5.0, 9),
        "logarithm": NumericStatistics(0.1, 3.7, 0.0, 0.0, 9),
    }
    statistics |= {name: NumericStatistics(-0.3, 0.7, 0.0, 0.0, 9) for name in OF_OTHER_COLUMNS}
    groups = [f"{token}\x1f{number}" for token in tokens[::9] for number in ("", "0", "1", "42")] + ["\x1f", "\x1f0"]
    means = {"label by token": tokens[::7], "label by both": groups, "label by nothing": []}
    return FittedFeatures(
        SPEC,
        {"token": vocabulary(tokens), "tails": vocabulary(tokens), "title": vocabulary(["fi", "å", "ss", "a", "ü"])}
        | {name: vocabulary(of) for name, of in means.items()},
        statistics,
        {"bucket": (-1e30, -DENORMAL64, 0.0, 0.0, 42.1)},
        target_means={name: pa.array(rng.normal(size=len(of) + 2)) for name, of in means.items()},
    )


@pytest.fixture(scope="module")
def encode_in_graph(fitted: FittedFeatures) -> Callable[[dict[str, tf.Tensor]], dict[str, Any]]:
    module = GraphEncoder(fitted, (*FEATURES, EXCLUDED))
    # As a compiled function, because TensorFlow's optimiser may rewrite arithmetic that is exact eagerly.
    return tf.function(module, input_signature=[module.signature()])


TOKENS = st.one_of(
    st.none(),
    st.sampled_from(["7", "-0", "-12", "007", "+3", "1.5", "9" * 15, "9" * 16, "٣"]),
    st.just(""),
    st.integers(0, 199).map(lambda number: f"known {number}"),
    st.text(max_size=4),
    st.text(st.sampled_from(ALPHABET), min_size=5, max_size=200),
)
NUMBERS = st.one_of(
    st.none(),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 42.1, math.inf, -math.inf, 1e300, DENORMAL32, -DENORMAL32, DENORMAL64, 2**-1022]),
    st.floats(-10, 10),
)
LISTS = st.one_of(st.none(), st.lists(TOKENS, max_size=8))
YEARS, MONTHS, DAYS = st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32)
SEPARATORS = st.sampled_from(["-", "/", ".", " "])
CLOCKS = st.sampled_from(
    ["", "T00:00", " 23:59:59.999999999", " 7:05 pm", " 12:30:00AM", ", 18:30 GMT", "T18:30:00,5+0530", "T1:00-01:00"]
)
DATES = st.one_of(
    TOKENS,
    st.builds("{0:04}{3}{1:02}{3}{2:02}{4}".format, YEARS, MONTHS, DAYS, SEPARATORS, CLOCKS),
    st.builds("{2}{3}{1}{3}{0:04}{4}".format, YEARS, MONTHS, DAYS, SEPARATORS, CLOCKS),
    st.builds("{1}{3}{2}{3}{0:04}{4}".format, YEARS, MONTHS, DAYS, SEPARATORS, CLOCKS),
    st.sampled_from(["29 Feb 2023", "Thu, 29 Febr 2024", "29 february 2024", "Sept 3, 1999 3:15 a.m.", "5 MAY 0001"]),
    CLOCKS.map(lambda clock: clock.lstrip("T, ")),
)
VISITS = st.lists(st.tuples(TOKENS, st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**60), 2**60))), max_size=8)
ENTRIES = st.lists(st.tuples(st.integers(0, 39), NUMBERS), max_size=8)
PICTURES = st.one_of(st.none(), st.just([]), st.lists(NUMBERS, min_size=3, max_size=3))
CLICKS = st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 2**40 - 1), st.integers(0, 3)), NUMBERS), max_size=8)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    visits, hashed_visits = draw(VISITS), draw(LISTS)
    # Both sequences share their times, so the second is as the first.
    hashed_visits = [*(hashed_visits or []), *[None] * len(visits)][: len(visits)]
    clicks = draw(st.one_of(st.none(), CLICKS))
    row = {
        "visits": [token for token, _ in visits],
        "hashed_visits": hashed_visits,
        "visited_at": [time for _, time in visits],
        "basket": draw(st.one_of(st.none(), ENTRIES)),
        "click_ids": None if clicks is None else [index for index, _ in clicks],
        "click_counts": None if clicks is None else [count for _, count in clicks],
        "picture": draw(PICTURES),
    }
    for feature in (*FEATURES, EXCLUDED):
        if feature.name in (*row, *OF_OTHER_COLUMNS, "clicks"):
            continue
        if isinstance(feature, Date):
            row[feature.name] = draw(DATES)
        elif isinstance(feature, Ordinal):
            row[feature.name] = draw(st.one_of(TOKENS, st.sampled_from(feature.order)))
        elif isinstance(feature, Numeric | Bucketed):
            row[feature.name] = draw(NUMBERS)
        else:
            row[feature.name] = draw(LISTS if isinstance(feature, MultiValued) else TOKENS)
    return row


def as_table(fitted: FittedFeatures, drawn: list[dict[str, Any]]) -> pa.Table:
    known = fitted.vocabularies["token"].tokens.to_pylist()

    def real(value: Any) -> Any:
        if isinstance(value, list):
            return [real(element) for element in value]
        return known[int(value.removeprefix("known "))] if str(value).startswith("known ") else value

    names = [feature.name for feature in FEATURES if feature.name not in OF_OTHER_COLUMNS]
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.string())
    types |= dict.fromkeys((name for name in names if "number" in SPEC[name].raw.values()), pa.float64())
    lists = (f.name for f in (*FEATURES, EXCLUDED) if isinstance(f, MultiValued | Sequence))
    types |= dict.fromkeys(lists, pa.list_(pa.string()))
    types |= {
        "visited_at": pa.list_(pa.timestamp("us")),
        "basket": pa.map_(pa.int32(), pa.float64()),
        "click_ids": pa.list_(pa.int64()),
        "click_counts": pa.list_(pa.float64()),
        "picture": pa.list_(pa.float64()),
    }
    del types["clicks"]
    return pa.table({name: pa.array([real(row[name]) for row in drawn], kind) for name, kind in types.items()})


def check_same_bits(fitted: FittedFeatures, encode_in_graph: Callable[..., Any], table: pa.Table) -> None:
    features = (*FEATURES, EXCLUDED)
    raw = raw_inputs(table, SPEC).append_column("unbounded", table["unbounded"])
    by_graph = encode_in_graph(raw_tensors(raw))
    by_arrow = Encoder(fitted).encode(table, features)
    padded = Encoder(fitted).encode_padded(table, features)
    assert list(by_graph) == list(by_arrow) == [feature.name for feature in features]
    for feature in features:
        expected = by_arrow[feature.name]
        found = by_graph[feature.name]
        if isinstance(expected, SparseRows):
            row_numbers = np.repeat(np.arange(table.num_rows), expected.row_lengths)
            assert found.indices.numpy().tolist() == np.stack([row_numbers, expected.indices], 1).tolist()
            assert found.dense_shape.numpy().tolist() == [table.num_rows, feature.size]  # type: ignore[union-attr]
            found, expected = found.values, expected.values
        else:
            expected = padded[feature.name]
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape, feature.name
        same = np.array_equal(_bits(found.numpy()), _bits(expected))
        assert same, (feature.name, table[feature.columns[0]].to_pylist(), found.numpy(), expected)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


@settings(max_examples=settings().max_examples // 2)
@given(drawn=st.lists(rows(), max_size=5))
def test_graph_and_arrow_give_the_same_bits(
    fitted: FittedFeatures, encode_in_graph: Callable[..., Any], drawn: list[dict[str, Any]]
) -> None:
    check_same_bits(fitted, encode_in_graph, as_table(fitted, drawn))


def test_graph_and_arrow_give_the_same_bits_for_any_number(
    fitted: FittedFeatures, encode_in_graph: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(3)
    count = 5_000
    numbers = np.concatenate(
        [
            rng.integers(0, 2**64, count, dtype=np.uint64).view(np.float64),  # all exponents alike
            rng.normal(size=count) * 10.0 ** rng.integers(-20, 20, count),
            rng.normal(size=count),
        ]
    )
    missing = as_table(fitted, [])
    columns = {
        name: pa.array(numbers) if pa.types.is_floating(kind.type) else pa.nulls(len(numbers), kind.type)
        for name, kind in zip(missing.column_names, missing.schema, strict=True)
    }
    check_same_bits(fitted, encode_in_graph, pa.table(columns))


def test_the_graph_form_by_hand(fitted: FittedFeatures) -> None:
    first, second = fitted.vocabularies["token"].tokens.to_pylist()[:2]
    module = GraphEncoder(fitted, [SPEC[name] for name in ("token", "heads", "tails", "visits", "title", "basket")])
    encoded = module(
        {
            "token": tf.constant([first, "", "nobody"]),
            "heads": tf.constant([[first, "", second, "x", second], [""] * 5, [second, "", "", "", ""]]),
            "tails": tf.constant([[first, "", second, "x"], [""] * 4, [second, "", "", ""]]),
            "visits": tf.constant([[first, second, "x", "", first], [""] * 5, [second, first, "", "", ""]]),
            "visited_at": tf.constant([[9, 7, 7, 8, 6], [0] * 5, [1, 2, 0, 0, 0]], tf.int64),
            "title": tf.constant(["\uff26\uff29 Ångström FI-å", "", "-"]),
            "basket_indices": tf.constant([[5, 2, -1], [-1] * 3, [39, -1, -1]], tf.int64),
            "basket_values": tf.constant([[0.5, 2.0, 7.0], [0.0] * 3, [math.nan, 0.0, 0.0]], tf.float64),
        }
    )
    assert encoded["token"].numpy().tolist() == [2, 0, 1]
    assert encoded["heads"].numpy().tolist() == [[3, 1, 3], [0, 0, 0], [3, 0, 0]]
    assert encoded["tails"].numpy().tolist() == [[2, 3], [0, 0], [3, 0]]
    # By time: first (6), second (7), x (7), first (9); the last three stay.
    assert encoded["visits"].numpy().tolist() == [[3, 1, 2], [0, 0, 0], [3, 2, 0]]
    assert encoded["title"].numpy().tolist() == [[2, 1, 2, 3], [0] * 4, [0] * 4]
    assert encoded["basket"].indices.numpy().tolist() == [[0, 2], [0, 5]]
    assert encoded["basket"].values.numpy().tolist() == [2.0, 0.5]
    assert encoded["basket"].dense_shape.numpy().tolist() == [3, 40]


def test_a_sparse_index_beyond_its_size_is_refused(fitted: FittedFeatures) -> None:
    raw = {"basket_indices": tf.constant([[40]], tf.int64), "basket_values": tf.constant([[1.0]], tf.float64)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="'basket' has an index that is not below its size 40"):
        GraphEncoder(fitted, [SPEC["basket"]])(raw)


def test_vectors_of_another_size_are_refused(fitted: FittedFeatures) -> None:
    module = GraphEncoder(fitted, [SPEC["picture"]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="'picture' has vectors of a length that is not its size"):
        module({"picture": tf.constant([[1.0, 2.0]], tf.float64)})


def test_a_text_is_embedded_in_the_graph_as_it_is_in_a_table(fitted: FittedFeatures) -> None:
    """A text that is missing has zeros, and white space counts as it does in a conversion."""
    feature = TextEmbedding("note", "encoder", size=2)

    def vectors(texts: Any) -> Any:
        return tf.stack([1 / tf.strings.length(texts), tf.ones_like(tf.strings.length(texts), tf.float64)], axis=1)

    spaces = [chr(code) for code in range(0x10000) if chr(code).isspace()]
    texts = [*(f"{space}a {space}b{space}" for space in spaces), "", "abc"]
    module = GraphEncoder(fitted, [feature], {"note": (tf.Module(), vectors)})
    assert module.signature() == {"note": tf.TensorSpec([None], tf.string, "note")}
    trimmed = single_spaced(pa.array(texts))
    known = np.array([[1 / len(text), 1.0] for text in trimmed.drop_null().to_pylist()], np.float32)
    expected = Encoder(fitted).encode(pa.table({"note": embedded_column(trimmed, known)}), [feature])
    found = tf.function(module)({"note": tf.constant(texts)})
    np.testing.assert_array_equal(found["note"].numpy(), expected["note"])

    without = GraphEncoder(fitted, [feature])
    assert without.signature() == {"note": tf.TensorSpec([None, None], tf.float64, "note")}
    given = without({"note": tf.constant([[0.5, 1.0], [math.nan] * 2], tf.float64)})
    assert given["note"].numpy().tolist() == [[0.5, 1.0], [0.0, 0.0]]


def test_an_image_is_embedded_in_the_graph_by_all_of_its_bytes(fitted: FittedFeatures) -> None:
    """White space is as any other byte, and no bytes are a missing image."""
    feature = ImageEmbedding("photo", "encoder", size=1)

    def vectors(images: Any) -> Any:
        return tf.cast(tf.strings.length(images), tf.float32)[:, tf.newaxis] + 1

    module = GraphEncoder(fitted, [feature], {"photo": (tf.Module(), vectors)})
    assert module.signature() == {"photo": tf.TensorSpec([None], tf.string, "photo")}
    found = tf.function(module)({"photo": tf.constant([b" \xff ", b"", b"\x00"])})
    assert found["photo"].numpy().tolist() == [[4.0], [0.0], [2.0]]


def test_tokens_without_their_times_are_refused(fitted: FittedFeatures) -> None:
    raw = {"visits": tf.constant([["a", "b"]]), "visited_at": tf.constant([[1]], tf.int64)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="'visits': every token needs its time"):
        GraphEncoder(fitted, [SPEC["visits"]])(raw)


def export_encoder(module: GraphEncoder, folder: Path) -> None:
    function = tf.function(lambda **inputs: module(inputs)).get_concrete_function(**module.signature())
    tf.saved_model.save(module, str(folder), signatures=function)


def test_an_exported_encoder_gives_the_same_without_this_package_s_objects(
    fitted: FittedFeatures, tmp_path: Path
) -> None:
    features = [SPEC[name] for name in ("logarithm", "bucket", "hashed_token", "title", "visits")]
    module = GraphEncoder(fitted, features)
    raw = {
        "logarithm": tf.constant([-3.0, math.nan], tf.float64),
        "bucket": tf.constant([-3.0, math.nan], tf.float64),
        "hashed_token": tf.constant(["日本", ""]),
        "title": tf.constant(["ﬁ ẞ", ""]),
        "visits": tf.constant([["a"], [""]]),
        "visited_at": tf.constant([[1], [0]], tf.int64),
    }
    export_encoder(module, tmp_path / "encoder")
    loaded = tf.saved_model.load(str(tmp_path / "encoder")).signatures["serving_default"](**raw)
    for name, expected in module(raw).items():
        assert loaded[name].numpy().tolist() == expected.numpy().tolist(), name


ODD_TOKENS = ["\0", "a b", "a\tb", ' "a",b', "\x0b\x0c\x85", "\u2028", "日本", "a ", "-1", "\ufeff"]


@pytest.mark.process
def test_every_token_of_an_exported_vocabulary_has_its_id_in_another_process(tmp_path: Path) -> None:
    """Tokens with line breaks do not fit into a file of lines; files that are not the model's are removed by then."""
    tokens = {"lines": ODD_TOKENS, "lf": [*ODD_TOKENS, "a\nb"], "cr": [*ODD_TOKENS, "a\rb"]}
    words = {
        name: Vocabulary(pa.chunked_array([some[:3], some[3:]], pa.string()), pa.array([1] * len(some)))
        for name, some in tokens.items()
    }
    spec = FeatureSpec(tuple(map(Categorical, tokens)), Label("label"), ("id",))
    export_encoder(GraphEncoder(FittedFeatures(spec, words, {}), spec.features), tmp_path / "before")
    gc.collect()
    moved = (tmp_path / "before").rename(tmp_path / "after")
    assert [file.name for file in (moved / "assets").iterdir()] == ["lines.txt"]

    asked = [*ODD_TOKENS, "a\nb", "a\rb", "", "ab", "a", "unseen"]
    program = (
        "import sys, json, tensorflow as tf; tokens = tf.constant(json.load(sys.stdin));"
        "ids = tf.saved_model.load(sys.argv[1]).signatures['serving_default'](lines=tokens, lf=tokens, cr=tokens);"
        "print(json.dumps({name: column.numpy().tolist() for name, column in ids.items()}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(moved)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 100,
        check=True,
    )
    assert json.loads(result.stdout) == {name: words[name].ids(pa.array(asked)).tolist() for name in words}


def test_a_vocabulary_that_neither_a_file_nor_a_graph_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MOST_CONSTANT_BYTES", 3)
    spec = FeatureSpec((Categorical("token"),), Label("label"), ("id",))
    with pytest.raises(ValueError, match=r"vocabulary 'token' has tokens with line breaks.* its 4 bytes; replace line"):
        GraphEncoder(FittedFeatures(spec, {"token": vocabulary(["a\nb", "c"])}, {}), spec.features)


def test_signatures_say_what_goes_in_and_what_comes_out(fitted: FittedFeatures) -> None:
    names = ("standardised", "bucket", "token", "heads", "visits", "title", "clicks")
    features: tuple[Feature, ...] = (*(SPEC[name] for name in names), EXCLUDED)
    assert GraphEncoder(fitted, features).signature() == {
        "standardised": tf.TensorSpec([None], tf.float64, "standardised"),
        "bucket": tf.TensorSpec([None], tf.float64, "bucket"),
        "token": tf.TensorSpec([None], tf.string, "token"),
        "heads": tf.TensorSpec([None, None], tf.string, "heads"),
        "visits": tf.TensorSpec([None, None], tf.string, "visits"),
        "visited_at": tf.TensorSpec([None, None], tf.int64, "visited_at"),
        "title": tf.TensorSpec([None], tf.string, "title"),
        "click_ids": tf.TensorSpec([None, None], tf.int64, "click_ids"),
        "click_counts": tf.TensorSpec([None, None], tf.float64, "click_counts"),
        "unbounded": tf.TensorSpec([None, None], tf.string, "unbounded"),
    }
    assert encoded_signature(features) == {
        "standardised": tf.TensorSpec([None], tf.float32, "standardised"),
        "bucket": tf.TensorSpec([None], tf.int64, "bucket"),
        "token": tf.TensorSpec([None], tf.int64, "token"),
        "heads": tf.TensorSpec([None, 3], tf.int64, "heads"),
        "visits": tf.TensorSpec([None, 3], tf.int64, "visits"),
        "title": tf.TensorSpec([None, 4], tf.int64, "title"),
        "clicks_indices": tf.TensorSpec([None], tf.int64, "clicks_indices"),
        "clicks_values": tf.TensorSpec([None], tf.float32, "clicks_values"),
        "clicks_row_lengths": tf.TensorSpec([None], tf.int64, "clicks_row_lengths"),
        "unbounded": tf.TensorSpec([None, None], tf.int64, "unbounded"),
    }
    assert encoded_names(features) == list(encoded_signature(features))


def test_sparse_parts_are_put_together_again() -> None:
    encoded = {
        "token": tf.constant([2, 3, 4], tf.int64),
        "basket_indices": tf.constant([1, 7, 3], tf.int64),
        "basket_values": tf.constant([0.5, 1.0, 2.0]),
        "basket_row_lengths": tf.constant([2, 0, 1], tf.int64),
    }
    inputs = model_inputs((SPEC["token"], SPEC["basket"]), encoded)
    assert inputs["token"] is encoded["token"]
    dense = tf.sparse.to_dense(inputs["basket"]).numpy()
    assert dense.shape == (3, 40)
    assert {(row, column): dense[row, column] for row, column in np.argwhere(dense).tolist()} == {
        (0, 1): 0.5,
        (0, 7): 1.0,
        (2, 3): 2.0,
    }
    again = encoded_tensors((SPEC["token"], SPEC["basket"]), inputs)
    assert {name: again[name].numpy().tolist() for name in again} == {
        name: value.numpy().tolist() for name, value in encoded.items()
    }
    assert again["basket_row_lengths"].dtype == tf.int64


def test_decoded_columns_become_tensors() -> None:
    rows = SparseRows(np.array([1, 7, 3]), np.array([0.5, 1.0, 2.0], np.float32), np.array([2, 0, 1]))
    inputs = input_tensors((SPEC["token"], SPEC["basket"]), {"basket": rows, "token": np.array([2, 3, 4])})
    assert inputs["token"].numpy().tolist() == [2, 3, 4]
    assert inputs["basket"].indices.numpy().tolist() == [[0, 1], [0, 7], [2, 3]]
    assert inputs["basket"].dense_shape.numpy().tolist() == [3, 40]
