"""M1, M2, M3, M4: the kernels agree with a plain loop over models, in every layout."""

import itertools
import math
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.fleet import compiled, scorer
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.columns import FLEET_SCHEMA
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import OUTPUTS, Layout
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.scoring.errors import ScoringError

Row = Mapping[str, Any]

NUMBERS, TEXT, WHOLE = ("a", "b", "c"), "text", "whole"
# Sums of terms in float32, against the same in float64: relative to the sizes of the terms.
TOLERANCE = 1e-5
LARGEST = float(np.finfo(np.float32).max) / 2

# Eighths are exact in float32, so that no value crosses the edge of a bin.
eighths = st.integers(-40, 40).map(lambda number: number / 8)
fills = st.none() | eighths
numeric = st.fixed_dictionaries(
    {
        "column": st.sampled_from(NUMBERS),
        "coefficient": eighths,
        "missing": fills,
        "log": st.sampled_from([None, True]),
    },
    optional={"clip_low": eighths.map(lambda value: min(value, 0)), "clip_high": eighths.map(abs)},
)
bins = st.builds(
    lambda column, coefficient, missing, edges: {
        "column": column,
        "coefficient": coefficient,
        "missing": missing,
        "at_least": edges[0],
        "below": edges[1],
    },
    st.sampled_from(NUMBERS),
    eighths,
    fills,
    st.tuples(eighths, eighths).filter(lambda edges: edges[0] != edges[1]).map(lambda edges: tuple(sorted(edges)))
    | st.tuples(st.none(), eighths)
    | st.tuples(eighths, st.none()),
)
categories = st.fixed_dictionaries(
    {"coefficient": eighths, "missing": fills},
    optional={},
).flatmap(
    lambda term: st.sampled_from([(TEXT, "x"), (TEXT, "y"), (WHOLE, "1"), (WHOLE, "7")]).map(
        lambda column: term | {"column": column[0], "category": column[1]}
    )
)
TRANSFORM = ("column", "clip_low", "clip_high", "log", "category", "at_least", "below")
terms_of_a_model = st.lists(
    numeric | bins | categories, max_size=9, unique_by=lambda term: tuple(term.get(name) for name in TRANSFORM)
)
models = st.lists(
    st.fixed_dictionaries(
        {"terms": terms_of_a_model, "link": st.sampled_from(["identity", "logit", "log"]), "intercept": eighths},
        optional={"threshold": st.sampled_from([0.25, 0.5]), "cut_points": st.just([0.125, 0.5, 0.75])},
    ),
    min_size=1,
    max_size=7,
)
values = st.sampled_from([None, math.nan, math.inf, -math.inf]) | eighths
rows_of = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(NUMBERS, values)
        | {TEXT: st.sampled_from(["x", "y", "z", "", None]), WHOLE: st.sampled_from([1, 7, 8, None])}
    ),
    min_size=1,
    max_size=6,
)


def fleet_of(described: Sequence[Mapping[str, Any]]) -> Fleet:
    names = [f"model{number}" for number in range(len(described))]
    schema = pa.schema(
        [
            ("model", pa.string()),
            *(
                pa.field(name, FLEET_SCHEMA.field(name).type.value_type)
                for name in (*TRANSFORM, "coefficient", "missing")
            ),
        ]
    )
    terms = [{"model": name, **term} for name, one in zip(names, described, strict=True) for term in one["terms"]]
    # A model of nothing but an intercept has a term for that.
    terms += [
        {"model": name, "column": "(Intercept)", "coefficient": one["intercept"]}
        for name, one in zip(names, described, strict=True)
    ]
    fields = ("link", "threshold", "cut_points")
    of_models = pa.table(
        {"model": names}
        | {name: pa.array([one.get(name) for one in described], FLEET_SCHEMA.field(name).type) for name in fields}
    )
    return fleet_from_coefficients(pa.Table.from_pylist(terms, schema=schema), of_models)


def table_of(rows: Sequence[Row]) -> pa.RecordBatch:
    types = {name: pa.float64() for name in NUMBERS} | {TEXT: pa.string(), WHOLE: pa.int32()}
    columns = {name: pa.array([row[name] for row in rows], type_) for name, type_ in types.items()}
    return pa.RecordBatch.from_pydict({"key": pa.array(range(len(rows))), **columns})


def value_of(term: Row, row: Row) -> float | None:
    """Return a term's input from its column; None if the value is missing and the term has no replacement."""
    value, missing = row[term["column"]], term.get("missing")
    if term.get("category") is not None:
        return missing if value is None or value == "" else float(str(value) == term["category"])
    if value is None or math.isnan(value):
        return missing
    if term.get("clip_low") is not None:
        value = max(value, term["clip_low"])
    if term.get("clip_high") is not None:
        value = min(value, term["clip_high"])
    if math.isinf(value):
        return missing
    if term.get("at_least") is not None or term.get("below") is not None:
        at_least = -math.inf if term.get("at_least") is None else term["at_least"]
        below = math.inf if term.get("below") is None else term["below"]
        return float(at_least <= value < below)
    return math.copysign(math.log1p(abs(value)), value) if term.get("log") else value


def predictor(model: Row, row: Row) -> tuple[float | None, float]:
    """Return the linear predictor of a model for a row, and how far a sum in float32 may be from it."""
    total, size = model["intercept"], 1 + abs(model["intercept"])
    for term in model["terms"]:
        value = value_of(term, row)
        if value is None:
            return None, 0.0
        total += term["coefficient"] * value
        size += abs(term["coefficient"] * value) + abs(term["coefficient"]) * (abs(term.get("missing") or 0) + 1)
    return total, TOLERANCE * size


def inverse(link: str, value: float) -> float:
    if link == "logit":
        return 1 / (1 + math.exp(-value))
    return math.exp(value) if link == "log" else value


def check(model: Row, row: Row, found: Row) -> None:
    """Compare one model's outputs for one row with those of the plain loop."""
    expected, slack = predictor(model, row)
    if expected is None:
        assert set(found.values()) == {None}
        return
    low, high = (inverse(model["link"], expected + sign * slack) for sign in (-1, 1))
    most = high if high < LARGEST else math.inf
    assert low * (1 - 1e-6) - 1e-6 <= found["score"] <= most * (1 + 1e-6) + 1e-6
    if model.get("threshold") is None:
        assert found["binary"] is None
    elif not low <= model["threshold"] <= high:
        assert found["binary"] == int(low > model["threshold"])
    if model.get("cut_points") is None:
        assert found["Rank"] is None
    elif not any(low <= cut <= high for cut in model["cut_points"]):
        assert found["Rank"] == 1 + sum(cut > high for cut in model["cut_points"])


def outputs_of(fleet: Fleet, rows: pa.RecordBatch, layout: str = "long") -> pa.Table:
    wanted = [name for name in OUTPUTS if name == "score" or _has(fleet, name)]
    ours = FleetScorer(fleet, Layout.of(fleet, layout, wanted))
    ours.check(rows.schema)
    return pa.Table.from_batches([batch for batch, _ in ours.batches(rows, ["key"])])


def _has(fleet: Fleet, output: str) -> bool:
    field = {"binary": "threshold", "Rank": "cut_points"}[output]
    return any(value not in (None, []) for value in fleet.table[field].to_pylist())


@given(models, rows_of, st.sampled_from([1, 63, 64, 65, 150]), st.sampled_from([3, 4096]))
def test_linear_models_agree_with_a_plain_loop(
    described: list[dict[str, Any]], examples: list[dict[str, Any]], count: int, tile_features: int
) -> None:
    rows = [examples[number % len(examples)] for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_MOST_FEATURES", tile_features)
        found = outputs_of(fleet_of(described), table_of(rows)).to_pylist()
    assert len(found) == len(rows) * len(described)
    for number, entry in enumerate(found):
        key, model = divmod(number, len(described))
        assert (entry.pop("key"), entry.pop("model")) == (key, f"model{model}")
        check(described[model], rows[key], {"score": None, "binary": None, "Rank": None} | entry)


@given(models, rows_of)
def test_wide_and_packed_outputs_are_the_long_ones(
    described: list[dict[str, Any]], examples: list[dict[str, Any]]
) -> None:
    fleet, rows = fleet_of(described), table_of(examples)
    long = outputs_of(fleet, rows).to_pylist()
    wide = outputs_of(fleet, rows, "wide").to_pylist()
    packed = outputs_of(fleet, rows, "packed").to_pylist()
    names = [name for name in long[0] if name not in ("key", "model")]
    unpivoted = [
        {"key": row["key"], "model": model} | {name: row.get(f"{model}_{name}") for name in names}
        for row in wide
        for model in fleet.names
    ]
    unpacked = [
        {"key": row["key"], "model": model} | {name: row[name][place] for name in names}
        for row in packed
        for place, model in enumerate(fleet.names)
    ]
    assert unpivoted == unpacked == long


def networks(shapes: Sequence[tuple[int, ...]], activations: Sequence[str], link: str = "identity") -> Fleet:
    """Return networks with random weights over the columns in0, in1, ..., and a linear model among them."""
    random = np.random.default_rng(len(shapes))
    rows = []
    for number, shape in enumerate(shapes):
        terms = {field.name: [None] * shape[0] for field in FLEET_SCHEMA if field.name in (*TRANSFORM, "missing")}
        size = sum(after * (before + 1) for before, after in itertools.pairwise(shape))
        terms |= {"column": [f"in{place}" for place in random.permutation(shape[0])], "coefficient": [1.0] * shape[0]}
        model = {"model": f"network{number}", "group": "", "link": link, "intercept": 0.0, "threshold": 0.5}
        weights = {"layer_sizes": list(shape), "weights": random.normal(size=size).tolist()}
        rows.append(
            model | terms | weights | {"activations": [activations[number % len(activations)]] * (len(shape) - 2)}
        )
    linear = rows[0] | {"model": "linear", "layer_sizes": [], "weights": [], "activations": []}
    return Fleet.of(pa.Table.from_pylist([rows[0], linear, *rows[1:]], schema=FLEET_SCHEMA))


ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def forward(model: Row, inputs: np.ndarray) -> np.ndarray:
    """Return the output of a network for ``inputs`` float64 ``[rows, inputs]``, layer by layer."""
    flat, hidden = np.array(model["weights"]), inputs
    sizes = model["layer_sizes"]
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        matrix, bias, flat = np.split(flat, [before * after, before * after + after])[0:3]
        hidden = hidden @ matrix.reshape(after, before).T + bias
        if layer < len(sizes) - 2:
            hidden = ACTIVATIONS[model["activations"][layer]](hidden)
    return hidden[:, 0]


@pytest.mark.parametrize("link", ["identity", "logit"])
def test_networks_agree_with_a_plain_loop(link: str) -> None:
    fleet = networks([(3, 4, 1), (5, 1), (3, 4, 1), (4, 3, 2, 1)] * 3, list(ACTIVATIONS), link)
    inputs = np.random.default_rng(1).normal(size=(2_100, 5))
    rows = pa.RecordBatch.from_pydict({"key": range(2_100)} | {f"in{place}": inputs[:, place] for place in range(5)})
    found = outputs_of(fleet, rows, "packed")
    scores = np.array(found["score"].to_pylist())
    for place, model in enumerate(fleet.table.to_pylist()):
        own = inputs[:, [int(name.removeprefix("in")) for name in model["column"]]]
        expected = forward(model, own) if model["layer_sizes"] else own.sum(axis=1)
        if link == "logit":
            expected = 1 / (1 + np.exp(-expected))
        np.testing.assert_allclose(scores[:, place], expected, rtol=1e-4, atol=1e-5)


def test_networks_read_missing_values_bins_and_categories_as_linear_models_do() -> None:
    terms = [
        {"column": "a", "coefficient": 2.0, "clip_low": 0.0, "missing": 5.0},
        {"column": "b", "coefficient": 1.0, "at_least": 0.0, "below": 2.0, "missing": 0.5},
        {"column": TEXT, "coefficient": 3.0, "category": "x", "missing": 0.0},
        {"column": "c", "coefficient": 1.0, "log": True},
    ]
    linear = fleet_of([{"terms": terms, "link": "identity", "intercept": 0.25, "threshold": 3.0}])
    (row,) = linear.table.to_pylist()
    # One layer of ones computes the same as the linear model.
    network = row | {"model": "network", "layer_sizes": [4, 1], "weights": [1.0] * 4 + [0.0], "activations": []}
    fleet = linear.with_models(Fleet.of(pa.Table.from_pylist([network], schema=FLEET_SCHEMA)))
    rows = table_of(
        [
            {"a": -1.0, "b": 0.0, "c": 1.0, TEXT: "x", WHOLE: 1},
            {"a": None, "b": math.inf, "c": -2.0, TEXT: None, WHOLE: 1},
            {"a": 4.0, "b": 2.0, "c": None, TEXT: "y", WHOLE: 1},
        ]
    )
    one, other = zip(*(row["score"] for row in outputs_of(fleet, rows, "packed").to_pylist()), strict=True)
    assert one == pytest.approx([0.25 + 1 + 3 + math.log(2), 0.25 + 10 + 0.5 - math.log(3), None])
    assert other == pytest.approx(list(one))


def test_equal_scores_at_a_cut_point_or_threshold_get_the_better_output() -> None:
    terms = [{"column": "a", "coefficient": 1.0}]
    described = {"terms": terms, "link": "identity", "intercept": 0.0, "threshold": 0.5, "cut_points": [0.25, 0.5]}
    rows = [{"a": value, "b": 0.0, "c": 0.0, TEXT: "x", WHOLE: 1} for value in (0.125, 0.25, 0.375, 0.5, 9.0)]
    found = outputs_of(fleet_of([described]), table_of(rows), "wide")
    assert found["model0_Rank"].to_pylist() == [3, 2, 2, 1, 1]
    assert found["model0_binary"].to_pylist() == [0, 0, 0, 1, 1]
    assert [str(type_) for type_ in found.schema.types] == ["int64", "float", "int8", "int16"]


def test_a_column_of_nothing_but_nulls_is_missing_whatever_its_type() -> None:
    terms = [
        {"column": "a", "coefficient": 2.0, "missing": 3.0},
        {"column": TEXT, "coefficient": 1.0, "category": "x", "missing": 0.5},
    ]
    fleet = fleet_of([{"terms": terms, "link": "identity", "intercept": 0.0}])
    for types in ((pa.null(), pa.null()), (pa.float64(), pa.string())):
        rows = pa.RecordBatch.from_arrays([pa.array([1]), *(pa.nulls(1, type_) for type_ in types)], ["key", "a", TEXT])
        assert outputs_of(fleet, rows)["score"].to_pylist() == [6.5]


@pytest.mark.parametrize(
    ("spellings", "rows", "expected"),
    [
        (("TRUE", "true", "1"), pa.array([True, False, None]), [(1, 1, 1), (0, 0, 0), (5, 5, 5)]),
        (("07", "7", "0x7"), pa.array([7, 8, None], pa.int32()), [(1, 1, 1), (0, 0, 0), (5, 5, 5)]),
        (("07", "7", "TRUE"), pa.array(["7", "07", "TRUE"]), [(0, 1, 0), (1, 0, 0), (0, 0, 1)]),
    ],
)
def test_models_may_spell_a_category_in_different_ways(
    spellings: tuple[str, ...], rows: pa.Array, expected: list[tuple[int, ...]]
) -> None:
    term = {"column": TEXT, "coefficient": 1.0, "missing": 5.0}
    fleet = fleet_of(
        [{"terms": [term | {"category": name}], "link": "identity", "intercept": 0.0} for name in spellings]
    )
    table = pa.RecordBatch.from_pydict({"key": range(3), TEXT: rows})
    assert outputs_of(fleet, table, "packed")["score"].to_pylist() == [list(row) for row in expected]


@pytest.mark.parametrize("layout", ["wide", "packed", "long"])
def test_memory_does_not_grow_with_models_or_rows(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_bytes, count, models = 2**23, 8_000, 2_000
    monkeypatch.setattr(scorer, "_BATCH_BYTES", batch_bytes)
    names = [f"m{number}" for number in range(models)]
    terms = {"model": names, "column": ["a"] * models, "coefficient": [1.0] * models}
    fleet = fleet_from_coefficients(pa.table(terms))
    rows = pa.RecordBatch.from_pydict({"key": range(count), "a": np.zeros(count)})
    ours = FleetScorer(fleet, Layout.of(fleet, layout, ["score"]))
    tracemalloc.start()
    try:
        assert sum(len(batch) for batch, _ in ours.batches(rows, ["key"])) >= count
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All outputs at once are 64 MB and more; two batches are held while one follows the other.
    assert most < 3 * batch_bytes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["1"]}, "column 'a' has type string, and model 'model0' reads numbers"),
        ({"a": None}, "lacks 1 of the 3 columns of the fleet: 'a'; model 'model0' reads 'a'"),
        ({TEXT: [0.5]}, f"column '{TEXT}' has type double, and model 'model0' reads categories"),
        ({WHOLE: [True]}, f"column '{WHOLE}' has type bool, and models know categories that it cannot have"),
    ],
)
def test_columns_that_models_cannot_read_are_refused(columns: Mapping[str, Any], message: str) -> None:
    terms = [
        {"column": "a", "coefficient": 1.0},
        {"column": TEXT, "coefficient": 1.0, "category": "x"},
        {"column": WHOLE, "coefficient": 1.0, "category": "7"},
    ]
    fleet = fleet_of([{"terms": terms, "link": "identity", "intercept": 0.0}])
    given_columns = {"key": [1], "a": [1.0], TEXT: ["x"], WHOLE: [7]} | columns
    rows = pa.RecordBatch.from_pydict({name: values for name, values in given_columns.items() if values is not None})
    with pytest.raises(ColumnError, match=message):
        outputs_of(fleet, rows)


@pytest.mark.parametrize(
    ("layout", "outputs", "message"),
    [
        ("tall", None, "layout 'tall' is unknown; use wide, packed, long"),
        ("wide", ["rank"], "output 'rank' is unknown; use some of score, binary, Rank"),
        ("wide", ["Rank"], "no model has cut-points"),
        ("wide", [], "outputs is empty"),
        ("wide", ["score"], "would have the columns .*'a_score'.* twice for Spark"),
    ],
)
def test_layouts_that_cannot_be_are_refused(layout: str, outputs: list[str] | None, message: str) -> None:
    terms = pa.table({"model": ["a", "A"], "column": ["x", "x"], "coefficient": [1.0, 2.0]})
    with pytest.raises(ScoringError, match=message):
        Layout.of(fleet_from_coefficients(terms), layout, outputs)


def test_models_that_give_no_output_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    terms = pa.table({"model": ["a", "b"], "column": ["x", "x"], "coefficient": [1.0, 2.0]})
    layout = Layout.of(
        fleet_from_coefficients(terms, pa.table({"model": ["a", "b"], "threshold": [0.5, None]})), "wide", None
    )
    layout.check_outputs({"a"})
    assert not caplog.messages
    layout.check_outputs({"a", "b"})
    (message,) = caplog.messages
    assert message.startswith(
        "1 of the 2 models have nothing for the outputs ['binary'] and are scored for nothing: 'b'"
    )
    with pytest.raises(ScoringError, match=r"1 of the 1 models .*: 'b'; add 'score' to outputs, or give them"):
        layout.check_outputs({"b"})
