"""Import of PMML: regressions, scorecards, neural networks, trees, and sums and averages of trees."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.imported_model import ImportedModel, fleet_of, read_models
from mirrorspark.fleet.imports.pmml_networks import NetworkReader
from mirrorspark.fleet.trees import TreeNodes

_LINKS = {"none": "identity", "identity": "identity", "logit": "logit", "softmax": "logit", "exp": "log"}


def fleet_from_pmml(
    models: Mapping[str, str | Path],
    *,
    group: str = "",
    thresholds: Mapping[str, float] | None = None,
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> Fleet:
    """Return the fleet of PMML files.

    A file has a ``RegressionModel``, a ``Scorecard``, a ``NeuralNetwork``, a ``TreeModel``, or a ``MiningModel`` that
    is the sum or average of trees. The score is the prediction, or, of two classes, the probability of the last one
    that the ``DataDictionary`` lists.

    The neurons of a network are logistic, tanh, identity or rectifier, each connected to the layer before. Its outputs
    are one number, or two classes: logistic, or with a softmax of two.

    Args:
        models: Files by the name of the model.
        group: Group of the models.
        thresholds: Score from which ``binary`` is 1, by model.
        cut_points: Ascending scores at which ``Rank`` falls, by model.

    Raises:
        FleetError: A file is not PMML or has a document type, or a model has something that fleets do not support.
        OSError: A file cannot be read.
    """
    imported = read_models(models, lambda name, file: _Document(name, _parsed(Path(file))).imported())
    return fleet_of(imported, group, thresholds, cut_points)


def _parsed(file: Path) -> Element:
    """Return the root, names without name spaces; a document type, which could define entities, is refused."""
    builder, parser = TreeBuilder(), expat.ParserCreate(namespace_separator=" ")

    def refuse(*_: Any) -> None:
        raise FleetError(f"{file} has a document type (DOCTYPE), which PMML does not need; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name.rpartition(" ")[2], attributes)
    parser.CharacterDataHandler = builder.data
    parser.EndElementHandler = lambda name: builder.end(name.rpartition(" ")[2])
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise FleetError(f"{file} is not valid XML: {error}") from error
    root = builder.close()
    if root.tag != "PMML":
        raise FleetError(f"{file} is not PMML: it begins with {root.tag}")
    return root


class _Document:
    """One file, and the terms that its model reads."""

    def __init__(self, name: str, root: Element) -> None:
        self._name, self._root = name, root
        self._terms: dict[tuple[str, str | None], int] = {}
        self._nodes = TreeNodes()
        self._types = {one.get("name", ""): one for one in root.iterfind("DataDictionary/DataField")}

    def imported(self) -> ImportedModel:
        """Return the model."""
        for place in ("TransformationDictionary", "LocalTransformations"):
            if self._root.find(f".//{place}/DerivedField") is not None:
                raise self._refused(f"derived fields (DerivedField in a {place})")
        found = [one for one in self._root if one.find("MiningSchema") is not None]
        if len(found) != 1:
            raise self._refused(f"{len(found)} models")
        (model,) = found
        if model.find(".//Targets") is not None:
            raise self._refused("Targets")
        if model.tag == "RegressionModel":
            return self._regression(model)
        if model.tag == "NeuralNetwork":
            classes = self._classes(model) if model.get("functionName") == "classification" else None
            return NetworkReader(model, self._types, self._replaced(model), self._refused).imported(classes)
        intercept, columns = self._add(model), self._columns()
        ones, others = np.ones(len(columns)), self._others(model)
        return ImportedModel("identity", columns, ones, intercept, trees=self._nodes, transforms=others)

    def _refused(self, what: str) -> FleetError:
        return FleetError(f"model '{self._name}' has {what}, which a fleet has not; score it on its own")

    def _term(self, field: str, category: str | None = None) -> int:
        if field not in self._types:
            raise self._refused(f"the field '{field}', which is not in its DataDictionary")
        return self._terms.setdefault((field, category), len(self._terms))

    def _columns(self) -> list[str]:
        return [field for field, _ in self._terms]

    def _replaced(self, model: Element) -> dict[str, str]:
        """Return the replacements of missing values, by field."""
        schemas = [field for one in model.iter("MiningSchema") for field in one]
        for one in schemas:
            if one.get("outliers", "asIs") != "asIs":
                raise self._refused(f"outliers of '{one.get('name')}'")
        replaced = {one.get("name", ""): one.get("missingValueReplacement") for one in schemas}
        return {field: value for field, value in replaced.items() if value is not None}

    def _others(self, model: Element) -> dict[str, list[Any]]:
        """Return the transforms of the terms: categories, and replacements of missing values."""
        replaced = self._replaced(model)
        categories = [category for _, category in self._terms]
        missing = [
            None if field not in replaced else float(replaced[field] or 0) if category is None
            else float(replaced[field] == category)
            for field, category in self._terms
        ]  # fmt: skip
        return {"category": categories, "missing": missing}

    def _classes(self, model: Element) -> tuple[str, str]:
        """Return the two classes; the score is the probability of the second one."""
        for one in model.iterfind("MiningSchema/MiningField"):
            if one.get("usageType") in ("target", "predicted"):
                values = [value.get("value", "") for value in self._types[one.get("name", "")].iterfind("Value")]
                if len(values) == 2:
                    return values[0], values[1]
        raise self._refused("a target without two values (Value) in its DataDictionary")

    def _regression(self, model: Element) -> ImportedModel:
        tables, normal = model.findall("RegressionTable"), model.get("normalizationMethod", "none")
        is_class = model.get("functionName") == "classification"
        if normal not in _LINKS or len(tables) != 1 + is_class or (is_class and _LINKS[normal] != "logit"):
            raise self._refused(f"{len(tables)} tables of coefficients with the normalization {normal}")
        # The logit of the first class is its own sum; only softmax compares the sums of both.
        if is_class and normal != "softmax" and all(len(table) or float(table.get("intercept", 0)) for table in tables):
            raise self._refused(f"coefficients of both classes with the normalization {normal}")
        intercept, coefficients = 0.0, dict[int, float]()
        for table in tables:
            sign = -1.0 if is_class and table.get("targetCategory") != self._classes(model)[1] else 1.0
            intercept += sign * float(table.get("intercept", "nan"))
            for one in table:
                category = one.get("value") if one.tag == "CategoricalPredictor" else None
                if one.tag not in ("NumericPredictor", "CategoricalPredictor") or one.get("exponent", "1") != "1":
                    raise self._refused(f"{one.tag} with the exponent {one.get('exponent', '1')}")
                place = self._term(one.get("name", ""), category)
                coefficients[place] = coefficients.get(place, 0.0) + sign * float(one.get("coefficient", "nan"))
        others = self._others(model)
        # A missing category is none of those that are named.
        pairs = zip(others["category"], others["missing"], strict=True)
        others["missing"] = [0.0 if category and value is None else value for category, value in pairs]
        columns = self._columns()
        values = np.array([coefficients[place] for place in range(len(columns))])
        return ImportedModel(_LINKS[normal], columns, values, intercept, transforms=others)

    def _add(self, model: Element, weight: float = 1.0) -> float:
        """Add the trees of a model, and return the constant that is added to their sum."""
        if model.tag == "TreeModel":
            positive = self._classes(model)[1] if model.get("functionName") == "classification" else None
            (top,) = model.findall("Node")
            null = self._nodes.leaf(None)
            root = self._tree(model, top, positive, weight, null)
            self._nodes.roots.append(self._chosen(model, [(top, root)], null, null, null))
            return 0.0
        if model.tag == "Scorecard":
            for one in model.iterfind("Characteristics/Characteristic"):
                node = self._nodes.leaf(None)
                for part in reversed(one.findall("Attribute")):
                    if part.get("partialScore") is None:
                        raise self._refused("an Attribute without a partialScore")
                    score = self._nodes.leaf(float(part.get("partialScore", "")))
                    node = self._decided(self._predicate(part), score, node, node)
                self._nodes.roots.append(node)
            return float(model.get("initialScore", "0"))
        method = getattr(model.find("Segmentation"), "attrib", {}).get("multipleModelMethod")
        segments = model.findall("Segmentation/Segment")
        if model.tag != "MiningModel" or method not in ("sum", "average") or not segments:
            raise self._refused(f"a {model.tag} of the method {method}")
        share = weight / len(segments) if method == "average" else weight
        for one in segments:
            if one.find("True") is None or one[-1].tag != "TreeModel":
                raise self._refused(f"a segment that is a {one[-1].tag} or has a condition")
            self._add(one[-1], share)
        return 0.0

    def _tree(self, model: Element, node: Element, positive: str | None, weight: float, null: int) -> int:
        children = node.findall("Node")
        value = self._score(node, positive)
        own = null if value is None else self._nodes.leaf(value * weight)
        if not children:
            return own
        pairs = [(child, self._tree(model, child, positive, weight, null)) for child in children]
        default = {child.get("id"): number for child, number in pairs}.get(node.get("defaultChild"), null)
        no_true = own if model.get("noTrueChildStrategy") == "returnLastPrediction" else null
        return self._chosen(model, pairs, no_true, own, default)

    def _chosen(
        self, model: Element, pairs: Sequence[tuple[Element, int]], no_true: int, own: int, default: int
    ) -> int:
        """Return a node that goes to the first child whose predicate is true."""
        strategy, null, result = model.get("missingValueStrategy", "none"), self._nodes.leaf(None), no_true
        unknowns = {"nullPrediction": null, "lastPrediction": own, "defaultChild": default}
        if strategy not in ("none", *unknowns):
            raise self._refused(f"the missingValueStrategy {strategy}")
        for child, number in reversed(pairs):
            result = self._decided(self._predicate(child), number, result, unknowns.get(strategy, result))
        return result

    def _score(self, node: Element, positive: str | None) -> float | None:
        if positive is None:
            return None if node.get("score") is None else float(node.get("score", ""))
        classes = node.findall("ScoreDistribution")
        if classes:
            shares = "probability" if all("probability" in one.attrib for one in classes) else "recordCount"
            counts = {one.get("value"): float(one.attrib[shares]) for one in classes}
            return counts.get(positive, 0.0) / sum(counts.values())
        return None if node.get("score") is None else float(node.get("score") == positive)

    def _predicate(self, parent: Element) -> Element:
        kinds = ("True", "False", "SimplePredicate", "CompoundPredicate", "SimpleSetPredicate")
        for one in parent:
            if one.tag in kinds:
                return one
        raise self._refused("a node without a condition")

    def _decided(self, one: Element, yes: int, no: int, unknown: int) -> int:
        """Return a node that goes where a predicate is true, false, or unknown because a value is missing."""
        if one.tag in ("True", "False"):
            return yes if one.tag == "True" else no
        if one.tag == "CompoundPredicate":
            return self._compound(one.get("booleanOperator", ""), list(one), yes, no, unknown)
        field, operator = one.get("field", ""), one.get("booleanOperator", one.get("operator", ""))
        is_category = field in self._types and self._types[field].get("optype") != "continuous"
        if one.tag == "SimpleSetPredicate" and is_category and operator in ("isIn", "isNotIn"):
            texts, node = _texts(one.findtext("Array", "")), no
            yes, node = (yes, no) if operator == "isIn" else (no, yes)
            for text in texts:
                node = self._split(self._term(field, text), 0.5, node, yes, unknown)
            return node
        if operator in ("isMissing", "isNotMissing") and not is_category:
            pair = (yes, no) if operator == "isMissing" else (no, yes)
            return self._nodes.is_missing(self._term(field), *pair)
        if is_category and operator in ("equal", "notEqual"):
            left, right = (no, yes) if operator == "equal" else (yes, no)
            return self._split(self._term(field, one.get("value")), 0.5, left, right, unknown)
        kinds = {
            "lessThan": (False, yes, no),
            "lessOrEqual": (True, yes, no),
            "greaterThan": (True, no, yes),
            "greaterOrEqual": (False, no, yes),
        }
        if one.tag != "SimplePredicate" or is_category or operator not in kinds:
            raise self._refused(f"a {one.tag} with the operator {operator} on '{field}'")
        is_closed, left, right = kinds[operator]
        return self._split(self._term(field), float(one.get("value", "nan")), left, right, unknown, is_closed=is_closed)

    def _compound(self, operator: str, parts: Sequence[Element], yes: int, no: int, unknown: int) -> int:
        """Return a node that goes where several predicates together are true, false or unknown."""
        if operator not in ("and", "or", "surrogate"):
            raise self._refused(f"a CompoundPredicate with the operator {operator}")
        first, *rest = parts
        if not rest:
            return self._decided(first, yes, no, unknown)
        known = after_unknown = self._compound(operator, rest, yes, no, unknown)
        # Nodes are added once where both ways are the same: else their number would double with each predicate.
        if operator == "and":
            if unknown not in (yes, no):
                after_unknown = self._compound(operator, rest, unknown, no, unknown)
            return self._decided(first, known, no, no if unknown == no else after_unknown)
        if operator == "or":
            if unknown not in (yes, no):
                after_unknown = self._compound(operator, rest, yes, unknown, unknown)
            return self._decided(first, yes, known, yes if unknown == yes else after_unknown)
        return self._decided(first, yes, no, known)

    def _split(
        self, feature: int, threshold: float, left: int, right: int, unknown: int, *, is_closed: bool = False
    ) -> int:
        add = self._nodes.at_most if is_closed else self._nodes.below
        node = add(feature, threshold, left, right, missing_left=unknown == left)
        return node if unknown in (left, right) else self._nodes.is_missing(feature, unknown, node)


def _texts(array: str) -> list[str]:
    """Return the values of an array of texts: divided by blanks, those with blanks in double quotes."""
    reader = shlex.shlex(array, posix=True)
    reader.whitespace_split, reader.quotes, reader.commenters = True, '"', ""
    return list(reader)
