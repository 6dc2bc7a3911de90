"""M2: models of PMML predict what their formulas do."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.scoring.fleet.columns import FleetError
from mirrorspark.scoring.fleet.imports.pmml import fleet_from_pmml
from mirrorspark.scoring.fleet.layout import Layout
from mirrorspark.scoring.fleet.scorer import FleetScorer

HEAD = """<?xml version="1.0"?><PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4"><Header/><DataDictionary>
<DataField name="x" optype="continuous" dataType="double"/><DataField name="z" optype="continuous" dataType="double"/>
<DataField name="state" optype="categorical" dataType="string"/><DataField name="y" optype="categorical"
dataType="string"><Value value="no"/><Value value="yes"/></DataField></DataDictionary>"""
SCHEMA = """<MiningSchema><MiningField name="y" usageType="target"/><MiningField name="x"/>
<MiningField name="z" missingValueReplacement="2"/><MiningField name="state"/></MiningSchema>"""


def simple(field: str, operator: str, value: str = "") -> str:
    return f'<SimplePredicate field="{field}" operator="{operator}" value="{value}"/>'


def tree(top: str, options: str = "") -> str:
    return f'<TreeModel functionName="regression" {options}>{SCHEMA}{top}</TreeModel>'


REGRESSION = f"""<RegressionModel functionName="classification" normalizationMethod="logit">{SCHEMA}
<RegressionTable targetCategory="yes" intercept="0.5"><NumericPredictor name="x" coefficient="2"/>
<NumericPredictor name="z" coefficient="-1"/><CategoricalPredictor name="state" value="CA" coefficient="0.7"/>
</RegressionTable><RegressionTable targetCategory="no" intercept="0"/></RegressionModel>"""
CARD = f"""<Scorecard functionName="regression" initialScore="100">{SCHEMA}<Characteristics>
<Characteristic><Attribute partialScore="-5">{simple("x", "isMissing")}</Attribute>
<Attribute partialScore="10">{simple("x", "lessOrEqual", "0")}</Attribute>
<Attribute partialScore="20"><CompoundPredicate booleanOperator="and">{simple("x", "greaterThan", "0")}
{simple("z", "lessThan", "3")}</CompoundPredicate></Attribute><Attribute partialScore="30"><True/></Attribute>
</Characteristic><Characteristic><Attribute partialScore="1"><SimpleSetPredicate field="state" booleanOperator="isIn">
<Array type="string" n="2">CA "NY"</Array></SimpleSetPredicate></Attribute>
<Attribute partialScore="2"><True/></Attribute></Characteristic></Characteristics></Scorecard>"""
TOP = f"""<Node score="9" defaultChild="b"><True/><Node id="a" score="1">{simple("x", "lessThan", "0")}</Node>
<Node id="b" score="2">{simple("x", "greaterOrEqual", "0")}</Node></Node>"""
AVERAGE = f"""<MiningModel functionName="regression">{SCHEMA}<Segmentation multipleModelMethod="average">
<Segment><True/>{tree(TOP, 'missingValueStrategy="defaultChild"')}</Segment>
<Segment><True/>{tree(TOP, 'missingValueStrategy="lastPrediction"')}</Segment></Segmentation></MiningModel>"""
MODELS = {"card": CARD, "average": AVERAGE, "null": tree(TOP), "regression": REGRESSION}


def files_of(folder: Path, models: dict[str, str]) -> dict[str, Path]:
    for name, text in models.items():
        (folder / name).write_text(f"{HEAD}{text}</PMML>")
    return {name: folder / name for name in models}


def test_models_of_pmml_predict_their_formulas(tmp_path: Path) -> None:
    fleet = fleet_from_pmml(files_of(tmp_path, MODELS))
    rows = pa.RecordBatch.from_pydict(
        {"x": [-1.0, 1.0, 1.0, None], "z": [5.0, 1.0, None, 1.0], "state": ["CA", "TX", None, "NY"]}
    )
    found = FleetScorer(fleet, Layout.of(fleet, "wide", ["score"])).batches(rows, [])
    outputs = next(found)[0]
    # With z = 2 where it is missing; a missing state is in no set, and has no coefficient.
    assert outputs["card_score"].to_pylist() == [111.0, 122.0, 122.0, 96.0]
    assert outputs["average_score"].to_pylist() == [1.0, 2.0, 2.0, 5.5]
    assert outputs["null_score"].to_pylist() == [1.0, 2.0, 2.0, None]
    predictors = np.array([0.5 - 2 - 5 + 0.7, 0.5 + 2 - 1, 0.5 + 2 - 2])
    *known, missing = outputs["regression_score"].to_pylist()
    assert missing is None
    assert known == pytest.approx(1 / (1 + np.exp(-predictors)), rel=1e-6)


NOT_IN = """<SimpleSetPredicate field="state" booleanOperator="isNotIn"><Array type="string">O'Brien "New York"</Array>
</SimpleSetPredicate>"""
PARTS = [simple("x", "lessThan", "0"), NOT_IN, simple("w", "greaterThan", "0")]
CONDITIONS: dict[str, Callable[[list[bool | None]], bool | None]] = {
    "and": lambda truths: False if False in truths else None if None in truths else True,
    "or": lambda truths: True if True in truths else None if None in truths else False,
    "surrogate": lambda truths: next((truth for truth in truths if truth is not None), None),
}


def compound(operator: str, *parts: str) -> str:
    return f'<CompoundPredicate booleanOperator="{operator}">{"".join(parts)}</CompoundPredicate>'


def test_conditions_are_true_false_or_unknown(tmp_path: Path) -> None:
    conditions = {name: compound(name, *PARTS) for name in CONDITIONS}
    conditions |= {f"{name}_of_or": compound(name, PARTS[0], compound("or", *PARTS[1:])) for name in CONDITIONS}
    conditions["long"] = compound("and", *(simple("x", "greaterThan", str(-place)) for place in range(1, 41)))
    node = "<Node score='9'><True/><Node score='1'>{}</Node><Node score='2'><True/></Node></Node>"
    text = {
        f"{strategy}_{name}": tree(node.format(condition), f'missingValueStrategy="{strategy}"')
        for name, condition in conditions.items()
        for strategy in ("none", "lastPrediction", "nullPrediction")
    }
    files = files_of(tmp_path, text)
    for file in files.values():
        file.write_text(file.read_text().replace('"z"', '"w"').replace('missingValueReplacement="2"', ""))
    fleet = fleet_from_pmml(files)
    values = list(product([-1.0, 1.0, None], ["New York", "O'Brien", "TX", None], [-1.0, 1.0, None]))
    x, state, w = zip(*values, strict=True)
    rows = pa.RecordBatch.from_pydict({"x": x, "state": state, "w": w})
    outputs, _ = next(FleetScorer(fleet, Layout.of(fleet, "wide", ["score"])).batches(rows, []))
    for place, (x_, state_, w_) in enumerate(values):
        truths: list[Any] = [x_ and x_ < 0, state_ and state_ not in ("New York", "O'Brien"), w_ and w_ > 0]
        expected = {name: decide(truths) for name, decide in CONDITIONS.items()}
        either = CONDITIONS["or"](truths[1:])
        expected |= {f"{name}_of_or": decide([truths[0], either]) for name, decide in CONDITIONS.items()}
        expected["long"] = x_ and x_ > -1
        for name, truth in expected.items():
            for strategy, unknown in (("none", 2.0), ("lastPrediction", 9.0), ("nullPrediction", None)):
                found = outputs[f"{strategy}_{name}_score"][place].as_py()
                assert found == {True: 1.0, False: 2.0, None: unknown}[truth], (strategy, name, values[place])


def test_trees_of_classes_give_the_probability_of_the_second_one(tmp_path: Path) -> None:
    shares = """<ScoreDistribution value="no" recordCount="3" {}/><ScoreDistribution value="yes" recordCount="1" {}/>"""
    nodes = f"""<Node score="no"><True/><Node score="no">{simple("x", "lessThan", "0")}{shares.format("", "")}</Node>
<Node score="no">{simple("x", "lessThan", "1")}{shares.format('probability="0.6"', 'probability="0.4"')}</Node>
<Node score="yes"><True/></Node></Node>"""
    text = tree(nodes).replace("regression", "classification")
    fleet = fleet_from_pmml(files_of(tmp_path, {"m": text}))
    rows = pa.RecordBatch.from_pydict({"x": [-1.0, 0.5, 2.0]})
    outputs, _ = next(FleetScorer(fleet, Layout.of(fleet, "wide", ["score"])).batches(rows, []))
    assert outputs["m_score"].to_pylist() == pytest.approx([0.25, 0.4, 1.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD.replace("isMissing", "matches"), "operator matches"),
        (AVERAGE.replace("average", "max"), "method max"),
        (REGRESSION.replace("logit", "probit"), "normalization probit"),
        (tree(TOP, 'missingValueStrategy="aggregateNodes"'), "aggregateNodes"),
        (REGRESSION.replace('"no" intercept="0"', '"no" intercept="1"'), "coefficients of both classes"),
        (REGRESSION.replace("<RegressionTable", "<Targets/><RegressionTable", 1), "Targets"),
        (CARD.replace('partialScore="2"', ""), "an Attribute without a partialScore"),
        (CARD.replace('partialScore="2"', 'partialScore="two"'), "not as its library writes it .ValueError"),
        (tree(TOP.replace("<True/>", "", 1)), "a node without a condition"),
    ],
)
def test_pmml_that_a_fleet_does_not_have_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        fleet_from_pmml(files_of(tmp_path, {"m": text}))


def test_a_document_type_or_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m"
    for text, message in (("<!DOCTYPE a [<!ENTITY b 'c'>]><PMML/>", "DOCTYPE"), ("<PMML>", "no XML"), ("<a/>", "no P")):
        file.write_text(text)
        with pytest.raises(FleetError, match=message):
            fleet_from_pmml({"m": file})
