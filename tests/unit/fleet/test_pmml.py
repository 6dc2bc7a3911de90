"""M2: models of PMML predict what their formulas do."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.neural_network import MLPClassifier, MLPRegressor

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.imports.pmml import fleet_from_pmml
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer

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


Layer = tuple[Any, Any, str]


def norm(field: str, points: Mapping[float, float], options: str = "") -> str:
    parts = "".join(f'<LinearNorm orig="{orig}" norm="{value}"/>' for orig, value in points.items())
    return f'<NormContinuous field="{field}" {options}>{parts}</NormContinuous>'


def network(
    inputs: Sequence[str], layers: Sequence[Layer], outputs: Sequence[str], function: str = "classification"
) -> str:
    """Return a network of matrices ``[inputs, outputs]``, biases and options; outputs are the last neurons in order.

    An output of a classification is its class.
    """

    def derived(expression: str) -> str:
        return f'<DerivedField optype="continuous" dataType="double">{expression}</DerivedField>'

    text = f'<NeuralNetwork functionName="{function}" activationFunction="logistic">{SCHEMA}<NeuralInputs>'
    text += "".join(f'<NeuralInput id="0,{place}">{derived(one)}</NeuralInput>' for place, one in enumerate(inputs))
    text += "</NeuralInputs>"
    for depth, (matrix, bias, options) in enumerate(layers):
        text += f"<NeuralLayer {options}>"
        for place, weights in enumerate(np.transpose(matrix).tolist()):
            text += f'<Neuron id="{depth + 1},{place}" bias="{bias[place]}">'
            text += "".join(f'<Con from="{depth},{before}" weight="{one}"/>' for before, one in enumerate(weights))
            text += "</Neuron>"
        text += "</NeuralLayer>"
    text += "<NeuralOutputs>"
    for place, one in enumerate(outputs):
        expression = f'<NormDiscrete field="y" value="{one}"/>' if function == "classification" else one
        text += f'<NeuralOutput outputNeuron="{len(layers)},{place}">{derived(expression)}</NeuralOutput>'
    return f"{text}</NeuralOutputs></NeuralNetwork>"


def activated(name: str, more: str = "") -> str:
    return f'activationFunction="{name}" {more}'


def test_networks_predict_what_those_of_sklearn_do(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    values = random.normal([5.0, 0.0], [2.0, 0.1], (300, 2)).astype(np.float32).astype(np.float64)
    means, deviations = values.mean(axis=0), values.std(axis=0)
    scaled = (values - means) / deviations
    target = np.sin(values[:, 0]) + 3 * scaled[:, 1]
    inputs = [
        norm(name, {mean: 0.0, mean + deviation: 1.0})
        for name, mean, deviation in zip("xz", means.tolist(), deviations.tolist(), strict=True)
    ]
    texts: dict[str, str] = {}
    expected: dict[str, np.ndarray] = {}
    for name, other in {"tanh": "tanh", "rectifier": "relu", "logistic": "logistic", "identity": "identity"}.items():
        model = MLPRegressor(hidden_layer_sizes=(5, 4), activation=other, tol=1e9, random_state=0).fit(scaled, target)
        options = [activated(name), activated(name), activated("identity")]
        layers = list(zip(model.coefs_, model.intercepts_, options, strict=True))
        texts[name] = network(inputs, layers, [norm("y", {3.0: 0.0, 1.0: -1.0})], "regression")
        expected[name] = 3 + 2 * model.predict(scaled)
    classes = MLPClassifier((5,), activation="tanh", tol=1e9, random_state=0).fit(scaled, target > 0)
    (first, last), (first_bias, last_bias) = classes.coefs_, classes.intercepts_
    hidden: Layer = (first, first_bias, activated("tanh"))
    both = (np.hstack([0 * last, last]), [0.0, last_bias[0]])
    ends: dict[str, tuple[list[Layer], list[str]]] = {
        "one": ([(last, last_bias, "")], ["yes"]),
        "other": ([(-last, -last_bias, "")], ["no"]),
        "two": ([(np.hstack([-last, last]), [-last_bias[0], last_bias[0]], "")], ["no", "yes"]),
        "softmax": ([(*both, activated("identity", 'normalizationMethod="softmax"'))], ["no", "yes"]),
        "twice": (
            [
                (last, last_bias, activated("identity")),
                ([[1.0]], [0.0], ""),
                ([[-1.0, 1.0]], [1.0, 0.0], activated("identity")),
            ],
            ["no", "yes"],
        ),
    }
    ends["other_twice"] = (ends["twice"][0], ["no"])
    for name, (layers, outputs) in ends.items():
        texts[name] = network(inputs, [hidden, *layers], outputs)
        expected[name] = classes.predict_proba(scaled)[:, 1]
    fleet = fleet_from_pmml(files_of(tmp_path, texts))
    scorer = FleetScorer(fleet, Layout.of(fleet, "packed", ["score"]))
    found = scorer.outputs(pa.RecordBatch.from_pydict(dict(zip("xz", values.T, strict=True)))).by_output["score"]
    for place, name in enumerate(fleet.names):
        np.testing.assert_allclose(found[:, place], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# As the package pmml of R writes a model of nnet with a factor.
NNET = """<NeuralNetwork modelName="NeuralNet_model" functionName="regression" numberOfLayers="2"
activationFunction="logistic"><MiningSchema><MiningField name="y" usageType="predicted"/><MiningField name="x"
usageType="active"/><MiningField name="state" usageType="active"/></MiningSchema><Output><OutputField name="Predicted_y"
feature="predictedValue"/></Output><NeuralInputs numberOfInputs="2"><NeuralInput id="1"><DerivedField
name="derivedNI_x" optype="continuous" dataType="double"><FieldRef field="x"/></DerivedField></NeuralInput><NeuralInput
id="2"><DerivedField name="derivedNI_stateNY" optype="continuous" dataType="double"><NormDiscrete field="state"
value="NY"/></DerivedField></NeuralInput></NeuralInputs><NeuralLayer numberOfNeurons="2"><Neuron id="3" bias="0.5"><Con
from="1" weight="1"/><Con from="2" weight="-2"/></Neuron><Neuron id="4" bias="-1"><Con from="1" weight="0.25"/></Neuron>
</NeuralLayer><NeuralLayer numberOfNeurons="1" activationFunction="identity"><Neuron id="5" bias="2"><Con from="3"
weight="3"/><Con from="4" weight="-1"/></Neuron></NeuralLayer><NeuralOutputs numberOfOutputs="1"><NeuralOutput
outputNeuron="5"><DerivedField name="derivedNO_y" optype="continuous" dataType="double"><FieldRef field="y"/>
</DerivedField></NeuralOutput></NeuralOutputs></NeuralNetwork>"""
IDENTITY = activated("identity")


def test_inputs_and_outputs_of_networks_are_normalised_between_points(tmp_path: Path) -> None:
    inputs = [
        norm("x", {1: 0.5, 2: 1, 6: 2}, 'mapMissingTo="0.25"'),
        norm("z", {0: 0, 1: 0.5, 3: 1}, 'outliers="asExtremeValues"'),
        '<NormDiscrete field="state" value="CA" mapMissingTo="0.5"/>',
        '<NormDiscrete field="state" value="NY" mapMissingTo="0"/>',
    ]
    digits: Layer = ([[1], [10], [100], [1000]], [0], IDENTITY)
    bends = norm("y", {0: 0.1, 100: 0.5, 500: 0.9})
    texts = {
        "inputs": network(inputs, [digits], ['<FieldRef field="y"/>'], "regression"),
        "bent": network(['<FieldRef field="x"/>'], [([[1]], [0], "")], [bends], "regression"),
        "nnet": NNET,
    }
    fleet = fleet_from_pmml(files_of(tmp_path, texts))
    x, z = [-2.0, 1.0, 4.0, 10.0, None], [-5.0, 0.5, 2.0, 9.0, None]
    rows = pa.RecordBatch.from_pydict({"x": x, "z": z, "state": ["CA", "NY", "TX", None, "TX"]})
    outputs, _ = next(FleetScorer(fleet, Layout.of(fleet, "wide", ["score"])).batches(rows, []))
    # The schema says 2 for a missing z, which is 0.75 between the points.
    found = outputs["inputs_score"].to_pylist()
    assert found == pytest.approx([-1 + 100, 0.5 + 2.5 + 1000, 1.5 + 7.5, 3 + 10 + 50, 0.25 + 7.5], rel=1e-6)
    *known, missing = outputs["bent_score"].to_pylist()
    shares = 1 / (1 + np.exp(-np.array(x[:4], np.float64)))
    assert known == pytest.approx(np.where(shares < 0.5, 250 * (shares - 0.1), 100 + 1000 * (shares - 0.5)), rel=1e-5)
    assert missing is None
    firsts = 1 / (1 + np.exp(-np.array([-2 + 0.5, 1 + 0.5 - 2, 4 + 0.5])))
    seconds = 1 / (1 + np.exp(-(np.array([-2, 1, 4]) / 4 - 1)))
    *known, no_state, no_x = outputs["nnet_score"].to_pylist()
    assert known == pytest.approx(2 + 3 * firsts - seconds, rel=1e-6)
    assert (no_state, no_x) == (None, None)


LINE = network(['<FieldRef field="x"/>'], [([[2.0]], [1.0], IDENTITY)], ['<FieldRef field="y"/>'], "regression")
FIELD = '<FieldRef field="x"/>'
TWO = [([[2.0, 1.0]], [0.0, 1.0], IDENTITY)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINE.replace("identity", "threshold"), "activationFunction 'threshold' .known are logistic"),
        (LINE.replace(FIELD, '<FieldRef field="age"/>'), "the field 'age', which is not in its DataDictionary"),
        (LINE.replace(FIELD, "<Constant>1</Constant>"), "a NeuralInput that is a Constant"),
        (LINE.replace(FIELD, norm("x", {0: 0, 1: 1}, 'outliers="asMissingValues"')), "outliers asMissingValues"),
        (LINE.replace(FIELD, norm("x", {1: 0})), "'x' without two LinearNorm of different orig"),
        (LINE.replace('<FieldRef field="y"/>', norm("y", {0: 1, 1: 1})), "two LinearNorm of the same norm"),
        (LINE.replace('from="0,0"', 'from="7"'), "a connection to '1,0' from '7' outside of the layer before"),
        (LINE.replace('outputNeuron="1,0"', 'outputNeuron="0,0"'), "an output of the neuron '0,0' outside"),
        (LINE.replace('weight="2.0"', 'weight="two"'), "not as its library writes it .ValueError"),
        (LINE.replace('weight="2.0"', ""), "not as its library writes it .KeyError: 'weight'"),
        (LINE.replace("<NeuralLayer", "<Other").replace("</NeuralLayer", "</Other"), "without NeuralLayer"),
        (LINE.replace('"logistic"', '"logistic" normalizationMethod="softmax"'), "FieldRef, with the .* softmax"),
        (network([FIELD], TWO, ["<FieldRef field='y'/>"] * 2, "regression"), "2 NeuralOutput, of FieldRef"),
        (network([FIELD], TWO, ["no", "yes"]), "2 neurons that is neither logistic nor a softmax of two"),
        (network([FIELD], TWO, ["no", "maybe"]), r"\['no', 'maybe'\] with the classes 'no' and 'yes'"),
        (
            network([norm("x", {0: 0, 1: 1}, 'mapMissingTo="0"'), FIELD], [([[1.0], [1.0]], [0.0], "")], ["yes"]),
            "two inputs of 'x' with different values where it is missing",
        ),
        (
            network([FIELD], [([[1.0]], [0.0], 'normalizationMethod="softmax"'), ([[1.0]], [0.0], "")], ["yes"]),
            "the normalizationMethod softmax of a layer before the last one",
        ),
        (network([FIELD, FIELD], TWO, ["no", "yes"]).replace('"0,1"', '"0,0"'), "two neurons of a layer .* '0,0'"),
    ],
)
def test_networks_that_a_fleet_does_not_have_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        fleet_from_pmml(files_of(tmp_path, {"m": text}))


def test_a_network_with_a_weight_of_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"weights with NaN or infinity in 1 model .'m'"):
        fleet_from_pmml(files_of(tmp_path, {"m": LINE.replace('weight="2.0"', 'weight="NaN"')}))


DERIVED = '<LocalTransformations><DerivedField name="d"/></LocalTransformations>'


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
        (REGRESSION.replace("<RegressionTable", f"{DERIVED}<RegressionTable", 1), "DerivedField in a LocalTransf"),
    ],
)
def test_pmml_that_a_fleet_does_not_have_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FleetError, match=f"model 'm'.*{message}"):
        fleet_from_pmml(files_of(tmp_path, {"m": text}))


def test_a_document_type_or_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m"
    for text, message in (
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><PMML/>", "DOCTYPE"),
        ("<PMML>", "not valid XML"),
        ("<a/>", "not PMML"),
    ):
        file.write_text(text)
        with pytest.raises(FleetError, match=message):
            fleet_from_pmml({"m": file})
