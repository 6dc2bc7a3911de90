"""M1, M2: a fleet is plain data: checked, selected, merged, and saved so that a change rewrites what it must."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines import TableError
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.columns import FLEET_SCHEMA, FleetError
from mirrorspark.fleet.fleet import Fleet

TERMS = pd.DataFrame(
    [
        ("A", "(Intercept)", -1.5, None, None, None),
        ("A", "age", 0.02, 18.0, None, 40.0),
        ("B", "income", 0.25, None, None, None),
        ("A", "state", 0.75, None, "CA", 0.0),
    ],
    columns=["model", "column", "coefficient", "clip_low", "category", "missing"],
)
MODELS = pd.DataFrame(
    {
        "model": ["B", "A"],
        "group": ["spring", None],
        "link": [None, "logit"],
        "threshold": [np.nan, 0.5],
        "cut_points": [None, [0.25, 0.5]],
    }
)
YAML = """
models:
  - {model: B, group: spring, terms: [{column: income, coefficient: 0.25}]}
  - model: A
    link: logit
    intercept: -1.5
    threshold: 0.5
    cut_points: [0.25, 0.5]
    terms:
      - {column: age, coefficient: 0.02, clip_low: 18, missing: 40}
      - {column: state, coefficient: 0.75, category: CA, missing: 0}
"""


@pytest.fixture
def fleet() -> Fleet:
    return fleet_from_coefficients(TERMS, MODELS)


def many(models: int, first: int = 0, coefficient: float = 1.0) -> Fleet:
    """Return a fleet of models with two terms each."""
    names = [f"model {number}" for number in range(first, first + models) for _ in "ab"]
    terms = {"model": names, "column": ["a", "b"] * models, "coefficient": [coefficient, 2.0] * models}
    return fleet_from_coefficients(pa.table(terms))


def test_a_table_of_terms_and_one_of_models_make_a_fleet(fleet: Fleet) -> None:
    assert fleet.names == ("B", "A")
    assert fleet.groups == ("spring", "")
    assert fleet.columns == ("income", "age", "state")
    b, a = fleet.table.to_pylist()
    assert (b["link"], b["intercept"], b["threshold"], b["coefficient"]) == ("identity", 0.0, None, [0.25])
    assert (a["link"], a["intercept"], a["threshold"], a["cut_points"]) == ("logit", -1.5, 0.5, [0.25, 0.5])
    assert (a["column"], a["clip_low"], a["category"]) == (["age", "state"], [18.0, None], [None, "CA"])
    assert repr(fleet) == f"<Fleet of 2 models in 2 groups over 3 columns, {fleet.digest[:12]}>"


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "yaml"])
def test_every_kind_of_file_gives_the_same_fleet(fleet: Fleet, kind: str, tmp_path: Path) -> None:
    given = [tmp_path / f"terms.{kind}", tmp_path / f"models.{kind}"]
    if kind == "yaml":
        given[0].write_text(YAML, encoding="utf-8-sig")
        given.pop()
    elif kind == "csv":
        TERMS.to_csv(given[0], index=False, sep=";", encoding="utf-16")
        cuts = [None if cuts is None else " ".join(map(str, cuts)) for cuts in MODELS["cut_points"]]
        MODELS.assign(cut_points=cuts).to_csv(given[1], index=False)
    else:
        for table, file in zip((TERMS, MODELS), given, strict=True):
            arrow = pa.Table.from_pandas(table, preserve_index=False)
            if kind == "parquet":
                pq.write_table(arrow, file)
            else:
                with pa.ipc.new_file(file, arrow.schema) as writer:
                    writer.write_table(arrow)
    assert fleet_from_coefficients(*given).digests == fleet.digests


def test_a_quote_that_does_not_end_is_no_model_of_many_lines(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text('model,column,coefficient\nA,x,1\n"B,x,2\nC,x,3\n')
    with pytest.raises(TableError, match=r"terms\.csv: the quote that begins a cell in line 3 does not end"):
        fleet_from_coefficients(tmp_path / "terms.csv")


def test_a_category_of_a_csv_file_may_be_called_na(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("model,column,coefficient,category,missing\nA,region,1,NA,0\nA,x,2,,\n")
    (model,) = fleet_from_coefficients(tmp_path / "terms.csv").table.to_pylist()
    assert (model["category"], model["missing"]) == (["NA", None], [0.0, None])


def test_a_model_may_be_an_intercept_alone() -> None:
    models = pd.DataFrame({"model": ["A", "B", "constant"], "intercept": [None, None, 2.0]})
    fleet = fleet_from_coefficients(TERMS, models)
    assert fleet.select(["constant"]).columns == ()
    assert fleet.table.to_pylist()[2]["intercept"] == 2.0


def test_digests_are_of_what_a_model_computes_and_not_of_how_it_is_stored(fleet: Fleet) -> None:
    shuffled = fleet_from_coefficients(TERMS.assign(at_least=np.nan).iloc[[2, 0, 1, 3]], MODELS.iloc[::-1])
    assert sorted(shuffled.digests) == sorted(fleet.digests)
    assert shuffled.digest != fleet.digest
    other = fleet_from_coefficients(TERMS.assign(coefficient=TERMS["coefficient"].replace(0.02, 0.03)), MODELS)
    assert [one == before for one, before in zip(other.digests, fleet.digests, strict=True)] == [True, False]


def test_models_are_selected_replaced_added_and_left_out(fleet: Fleet) -> None:
    other = fleet_from_coefficients(
        pd.DataFrame({"model": ["B", "C"], "column": ["x", "y"], "coefficient": [1.0, 2.0]})
    )
    merged = fleet.with_models(other)
    assert merged.names == ("B", "A", "C")
    assert merged.columns == ("x", "age", "state", "y")
    assert merged.digests == (other.digests[0], fleet.digests[1], other.digests[1])
    assert fleet.group("spring").names == fleet.without(["A"]).names == fleet.select(["B"]).names == ("B",)
    assert fleet.select(["A", "B"]).digests == fleet.digests[::-1]
    for call in (lambda: fleet.select(["a"]), lambda: fleet.without(["A", "B"]), lambda: fleet.group("Spring")):
        with pytest.raises(FleetError, match=r"did you mean '(A|spring)'|at least one model"):
            call()


def test_models_share_the_time_that_they_take_together_by_their_sizes() -> None:
    linear, network, trees = {"column": ["a", "b"]}, {"weights": [1.0] * 6}, {"node_features": [0, 1, -1, -1]}
    fleet = Fleet(pa.Table.from_pylist([linear, network, trees], schema=FLEET_SCHEMA), ("", "", ""))
    assert fleet.shares(np.arange(3)).tolist() == pytest.approx([3 / 15, 7 / 15, 5 / 15])
    assert fleet.shares(np.array([2, 0])).tolist() == [5 / 8, 3 / 8]


def test_a_saved_fleet_is_loaded_as_it_was(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.save(tmp_path / "fleet") == 2
    loaded = Fleet.load(tmp_path / "fleet")
    assert loaded.digests == fleet.digests
    assert loaded.table.equals(fleet.table)


def test_a_change_of_ten_models_writes_ten(tmp_path: Path) -> None:
    fleet = many(3_000)
    assert fleet.save(tmp_path) == 3_000
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("models-*")}
    assert len(before) == 3
    changed = fleet.with_models(many(10, first=2_995, coefficient=3.0))
    assert changed.save(tmp_path) == 10
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("models-*")}
    assert before.items() < after.items()
    assert len(after) == 4
    loaded = Fleet.load(tmp_path)
    assert loaded.digests == changed.digests
    assert loaded.names == changed.names
    assert loaded.table.equals(changed.table)


def test_files_that_are_hardly_used_are_written_anew_and_removed_later(tmp_path: Path) -> None:
    fleet = many(1_000)
    fleet.save(tmp_path)
    few = fleet.select(fleet.names[:400])
    assert few.save(tmp_path) == 400
    # A process that has just read the former list still finds its file.
    assert len(list(tmp_path.glob("models-*"))) == 2
    assert few.save(tmp_path) == 0
    assert len(list(tmp_path.glob("models-*"))) == 1
    assert Fleet.load(tmp_path).digests == few.digests


def test_many_small_changes_do_not_leave_many_files(tmp_path: Path) -> None:
    fleet = many(1)
    fleet.save(tmp_path)
    for number in range(1, 70):
        fleet = fleet.with_models(many(1, first=number))
        fleet.save(tmp_path)
    assert len(list(tmp_path.glob("models-*"))) <= 65
    assert Fleet.load(tmp_path).digests == fleet.digests


def test_damaged_and_foreign_folders_are_refused_and_damaged_ones_repaired_by_saving(
    fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for call in (lambda: Fleet.load(tmp_path / "other"), lambda: fleet.save(tmp_path / "other")):
        with pytest.raises(FleetError, match=r"holds (no fleet|.file. and no fleet)"):
            call()
    (tmp_path / "ships").mkdir()
    with pa.ipc.new_file(tmp_path / "ships" / "fleet.arrow", pa.schema([("ship", pa.string())])):
        pass
    for call in (lambda: Fleet.load(tmp_path / "ships"), lambda: fleet.save(tmp_path / "ships")):
        with pytest.raises(FleetError, match="some other table; name another folder"):
            call()
    # A process that was killed, or one that runs at the same time, leaves it before the list.
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "models-0123456789abcdef.arrow").touch()
    fleet.save(tmp_path / "fleet")
    (models,) = (tmp_path / "fleet").glob("models-*")
    content = bytearray(models.read_bytes())
    content[len(content) // 2] ^= 1
    models.write_bytes(content)
    with pytest.raises(FleetError, match=f"damaged: {models.name} is missing or not as it was written"):
        Fleet.load(tmp_path / "fleet")
    assert fleet.save(tmp_path / "fleet") == 2
    assert Fleet.load(tmp_path / "fleet").digests == fleet.digests
    models.unlink()
    assert fleet.save(tmp_path / "fleet") == 2
    (tmp_path / "fleet" / "fleet.arrow").write_bytes(b"damaged")
    with pytest.raises(FleetError, match=r"is not a file of a fleet: .*; save the fleet again"):
        Fleet.load(tmp_path / "fleet")
    assert fleet.save(tmp_path / "fleet") == 2
    assert Fleet.load(tmp_path / "fleet").digests == fleet.digests


@pytest.mark.parametrize("terms", ["", "{column: income}", "[income]"])
def test_terms_of_a_yaml_file_are_a_list(terms: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(f"models:\n- model: B\n  intercept: 1\n  terms: {terms}\n")
    with pytest.raises(FleetError, match=r"'terms' of model 'B' in .*fleet.yaml must be a list, .* leave it out"):
        fleet_from_coefficients(tmp_path / "fleet.yaml")


def test_a_group_is_never_null(fleet: Fleet) -> None:
    place = fleet.table.schema.get_field_index("group")
    with pytest.raises(FleetError, match=r"group is null in 1 model \('B'\); give its name"):
        Fleet.of(fleet.table.set_column(place, fleet.table.schema.field("group"), pa.array([None, ""], pa.string())))


def changed(**values: Any) -> Callable[[], Fleet]:
    """Return a function that makes the fleet with other values in the second term, of A's age."""
    terms = TERMS.copy()
    for name, value in values.items():
        column = terms[name].astype(object) if name in terms else pd.Series([None] * len(terms), dtype=object)
        column[1] = value
        terms[name] = column
    return lambda: fleet_from_coefficients(terms, MODELS)


def of_models(**values: Any) -> Callable[[], Fleet]:
    """Return a function that makes the fleet with other values for the models B and A."""
    return lambda: fleet_from_coefficients(TERMS, MODELS.assign(**values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed(coefficient=np.nan), r"a coefficient that is NaN.* in 1 model \('A'\)"),
        (changed(coefficient=1e39), "a coefficient that is NaN, infinite"),
        (changed(column=""), "a term without a column"),
        (changed(clip_low=float("inf")), "clip_low is not a finite number"),
        (changed(clip_high=17.0), "clip_low above clip_high"),
        (changed(category="x"), "more than one of a bin, a category, and a clip"),
        (changed(clip_low=None, at_least=2.0, below=2.0), "at_least is not below"),
        (changed(model="C"), "the table of models lacks 'C'"),
        (changed(column="state", clip_low=None, category="CA"), "the same term twice in 1 model"),
        (changed(clip_lo=1.0), r"'clip_lo', which no fleet has \(did you mean 'clip_low'"),
        (
            lambda: fleet_from_coefficients(TERMS.assign(coefficient="much")),
            "column 'coefficient' of the table of coefficients cannot become double",
        ),
        (of_models(link=["identity", "logistic"]), r"unknown link 'logistic' in 1 model \('A'\).*has the link logit"),
        (of_models(threshold=[1.0, 1.5]), r"threshold is not a value that the score can have in 1 model \('A'\)"),
        (of_models(cut_points=[None, [0.5, 0.25]]), "cut-points do not ascend"),
        (of_models(cut_points=[[1.0, 2.0], [0.5, 2.0]]), r"not values that the score can have in 1 model \('A'\)"),
        (of_models(intercept=[0.0, 1.0]), "several intercepts are given for 'A'"),
        (of_models(intercept=[np.inf, None]), "an intercept is not a finite number in 1 model"),
        (of_models(model=["A", "C"]), "lacks 'B', which has coefficients"),
        (lambda: fleet_from_coefficients(TERMS, pd.concat([MODELS, MODELS])), "several models have the name 'B', 'A'"),
        (
            lambda: fleet_from_coefficients(TERMS.assign(model="C"), MODELS.assign(model=["C", "D"])),
            "no coefficients and no intercept for 'D'",
        ),
        (lambda: fleet_from_coefficients(TERMS.drop(columns="column")), r"lacks the columns \['column'\]"),
        (lambda: fleet_from_coefficients(TERMS.head(0)), "at least one model"),
        (lambda: fleet_from_coefficients("terms.txt"), "not a file of a known kind"),
    ],
)
def test_models_that_cannot_be_computed_are_refused_by_name(make: Callable[[], Fleet], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        make()


def test_a_thousand_bad_models_are_one_line() -> None:
    names = [f"m{number}" for number in range(1_000)]
    terms = pa.table({"model": names, "column": ["x"] * 1_000, "coefficient": [float("nan")] * 1_000})
    with pytest.raises(FleetError, match=r"in 1,000 models \('m0', 'm1', 'm2' and 997 more\)") as caught:
        fleet_from_coefficients(terms)
    assert "\n" not in str(caught.value)


def test_coefficients_of_r_have_factors_whose_levels_are_categories(tmp_path: Path) -> None:
    # write.csv(data.frame(model = "m", column = names(coef(m)), coefficient = coef(m)), row.names = FALSE)
    file = tmp_path / "glm.csv"
    file.write_text('"model","column","coefficient"\n"m","(Intercept)",-1.5\n"m","age",0.02\n"m","stateCA",0.7\n')
    (model,) = fleet_from_coefficients(file, link="logit", factors={"state": ["AL", "CA"]}).table.to_pylist()
    assert (model["intercept"], model["link"], model["coefficient"]) == (-1.5, "logit", [0.02, 0.7])
    assert (model["column"], model["category"]) == (["age", "state"], [None, "CA"])
    file.write_text(file.read_text() + '"m","age:stateCA",0.1\n')
    with pytest.raises(FleetError, match="'age:stateCA' is an interaction"):
        fleet_from_coefficients(file, factors={"state": ["AL", "CA"]})
    with pytest.raises(FleetError, match=r"'ab' is a level of 'ab?' and of 'ab?'"):
        fleet_from_coefficients(file, factors={"a": ["b"], "ab": [""]})
