"""Neural networks of PMML as layers of a fleet."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.imports.imported_model import ImportedModel

_ACTIVATIONS = {"logistic": "sigmoid", "tanh": "tanh", "identity": "linear", "rectifier": "relu"}
_LINKS = {"linear": "identity", "sigmoid": "logit"}


@dataclass(frozen=True)
class _Term:
    """A column's value between two bounds; or, with a category, whether the column has it."""

    column: str
    low: float = -np.inf
    high: float = np.inf
    category: str | None = None


@dataclass(frozen=True)
class _Stack:
    """Layers one after the other: matrix ``[inputs, outputs]`` and bias, and activation of each."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    activations: tuple[str, ...]

    def then(self, matrix: np.ndarray, bias: np.ndarray, activation: str) -> "_Stack":
        """Return them and another layer, which becomes one with the last one if that has no activation."""
        if self.activations[-1] != "linear":
            return _Stack((*self.layers, (matrix, bias)), (*self.activations, activation))
        before, offset = self.layers[-1]
        layer = (before @ matrix, offset @ matrix + bias)
        return _Stack((*self.layers[:-1], layer), (*self.activations[:-1], activation))

    def only(self, output: int, sign: float = 1.0) -> "_Stack":
        """Return them with one of the outputs; its sum before the activation is multiplied by ``sign``."""
        matrix, bias = self.layers[-1]
        return replace(self, layers=(*self.layers[:-1], (sign * matrix[:, [output]], sign * bias[[output]])))


class NetworkReader:
    """Reads a ``NeuralNetwork``.

    Inputs and outputs are normalised by linear functions, which become parts of the layers next to them: the weights
    are multiplied in 64 bits.
    """

    def __init__(
        self, model: Element, fields: Iterable[str], replaced: Mapping[str, str], refused: Callable[[str], FleetError]
    ) -> None:
        """Take a model.

        Args:
            model: The element.
            fields: Names of the fields in the ``DataDictionary``.
            replaced: Replacements of missing values, by field.
            refused: Returns the error for a model with something that fleets do not support.
        """
        self._model, self._fields, self._replaced, self._refused = model, set(fields), replaced, refused
        self._missing: dict[_Term, float | None] = {}

    def imported(self, classes: tuple[str, str] | None) -> ImportedModel:
        """Return the model; ``classes`` are those of a classification, whose score is the probability of the second.

        Raises:
            FleetError: The network has something that a fleet has not.
        """
        names, stack, normalization = self._layers(*self._inputs())
        outputs = [(one.get("outputNeuron", ""), _expression(one)) for one in self._found("NeuralOutputs/NeuralOutput")]
        if strangers := [name for name, _ in outputs if name not in names]:
            raise self._refused(f"an output of the neuron '{strangers[0]}' outside of the last NeuralLayer")
        places = [(names.index(name), one) for name, one in outputs]
        if classes is None:
            stack = self._number(stack, places, normalization)
        else:
            stack = self._probability(stack, places, normalization, *classes)
        link, hidden, terms = _LINKS[stack.activations[-1]], stack.activations[:-1], list(self._missing)
        transforms: dict[str, list[Any]] = {
            "clip_low": [None if np.isinf(term.low) else term.low for term in terms],
            "clip_high": [None if np.isinf(term.high) else term.high for term in terms],
            "category": [term.category for term in terms],
            "missing": list(self._missing.values()),
        }
        columns = [term.column for term in terms]
        return ImportedModel(link, columns, np.ones(len(terms)), 0.0, stack.layers, hidden, transforms=transforms)

    def _found(self, path: str) -> list[Element]:
        found = self._model.findall(path)
        if not found:
            raise self._refused(f"a NeuralNetwork without {path.rpartition('/')[2]}")
        return found

    def _inputs(self) -> tuple[list[str], _Stack]:
        """Return the names of the inputs, and the layer that makes them of the terms."""
        found = self._found("NeuralInputs/NeuralInput")
        sums = [self._input(_expression(one)) for one in found]
        places = {term: place for place, term in enumerate(self._missing)}
        matrix = np.zeros((len(places), len(sums)))
        for number, (slopes, _) in enumerate(sums):
            for term, slope in slopes.items():
                matrix[places[term], number] = slope
        offsets = np.array([offset for _, offset in sums])
        return [one.attrib["id"] for one in found], _Stack(((matrix, offsets),), ("linear",))

    def _input(self, one: Element) -> tuple[dict[_Term, float], float]:
        """Return an input as a sum of terms: the factor of each, and a constant."""
        field, filler = one.get("field", ""), one.get("mapMissingTo")
        if one.tag not in ("FieldRef", "NormContinuous", "NormDiscrete"):
            raise self._refused(f"a NeuralInput that is a {one.tag}")
        if field not in self._fields:
            raise self._refused(f"the field '{field}', which is not in its DataDictionary")
        if one.tag == "NormContinuous":
            return self._normalised(one, field, filler)
        given = self._replaced.get(field)
        if one.tag == "NormDiscrete":
            category = one.attrib["value"]
            filler = filler if given is None else str(float(given == category))
            return self._terms([_Term(field, category=category)], [filler], [1.0]), 0.0
        return self._terms([_Term(field)], [filler if given is None else given], [1.0]), 0.0

    def _normalised(self, one: Element, field: str, filler: str | None) -> tuple[dict[_Term, float], float]:
        """Return a function that is linear between points: a term with bounds for each two neighbours."""
        outliers = one.get("outliers", "asIs")
        if outliers not in ("asIs", "asExtremeValues"):
            raise self._refused(f"a NormContinuous of '{field}' with the outliers {outliers}")
        points = self._points(one)
        slopes, begins = _slopes(points), [begin for begin, _ in points]
        end = np.inf if outliers == "asIs" else 0.0
        bounds = [begins[0] - end, *begins[1:-1], begins[-1] + end]
        terms = [_Term(field, low, high) for low, high in pairwise(bounds)]
        given, fillers = self._replaced.get(field), list[float | str | None](begins[:-1])
        if given is not None:
            # A fleet does not clip the replacement of a missing value, so each term's is clipped here.
            fillers = [min(max(float(given), term.low), term.high) for term in terms]
        elif filler is None:
            fillers = [None] * len(terms)
        else:
            # Each term but one adds nothing where it begins.
            steepest = max(range(len(slopes)), key=lambda place: abs(slopes[place]))
            fillers[steepest] = begins[steepest] + (float(filler) - points[0][1]) / slopes[steepest]
        offset = points[0][1] - sum(slope * begin for slope, begin in zip(slopes, begins, strict=False))
        return self._terms(terms, fillers, slopes), offset

    def _terms(
        self, terms: Iterable[_Term], fillers: Iterable[float | str | None], slopes: Iterable[float]
    ) -> dict[_Term, float]:
        """Return the factors of terms, which now are terms of the model."""
        for term, filler in zip(terms, fillers, strict=True):
            value = None if filler is None else float(filler)
            if self._missing.setdefault(term, value) != value:
                raise self._refused(f"two inputs of '{term.column}' with different values where it is missing")
        return dict(zip(terms, slopes, strict=True))

    def _points(self, one: Element) -> list[tuple[float, float]]:
        points = sorted((float(part.attrib["orig"]), float(part.attrib["norm"])) for part in one.iterfind("LinearNorm"))
        if len(points) < 2 or not all(first < second for (first, _), (second, _) in pairwise(points)):
            raise self._refused(f"a NormContinuous of '{one.get('field')}' without two LinearNorm of different orig")
        return points

    def _layers(self, names: list[str], stack: _Stack) -> tuple[list[str], _Stack, str]:
        """Return the names of the last layer's neurons, the layers, and how the last one is normalised."""
        found, normalization = self._found("NeuralLayer"), "none"
        self._check_names(names)
        for layer in found:
            # The options of a layer override those of the network.
            options = {**self._model.attrib, **layer.attrib}
            function, normalization = options.get("activationFunction", ""), options.get("normalizationMethod", "none")
            if function not in _ACTIVATIONS:
                raise self._refused(f"the activationFunction '{function}' (known are {', '.join(_ACTIVATIONS)})")
            if normalization != "none" and layer is not found[-1]:
                raise self._refused(f"the normalizationMethod {normalization} of a layer before the last one")
            places, neurons = {name: place for place, name in enumerate(names)}, layer.findall("Neuron")
            matrix = np.zeros((len(names), len(neurons)))
            for number, neuron in enumerate(neurons):
                for one in neuron.iterfind("Con"):
                    if one.get("from") not in places:
                        raise self._refused(
                            f"a connection to '{neuron.get('id')}' from '{one.get('from')}' outside of the layer before"
                        )
                    matrix[places[one.attrib["from"]], number] += float(one.attrib["weight"])
            names = [neuron.attrib["id"] for neuron in neurons]
            self._check_names(names)
            bias = np.array([float(neuron.get("bias", "0")) for neuron in neurons])
            stack = stack.then(matrix, bias, _ACTIVATIONS[function])
        return names, stack, normalization

    def _check_names(self, names: list[str]) -> None:
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise self._refused(f"two neurons of a layer with the id '{twice[0]}'")

    def _number(self, stack: _Stack, outputs: list[tuple[int, Element]], normalization: str) -> _Stack:
        """Return the layers of a regression: the output is the inverse of its normalisation."""
        ((place, one), *others) = outputs
        if others or normalization != "none" or one.tag not in ("FieldRef", "NormContinuous"):
            raise self._refused(
                f"{len(outputs)} NeuralOutput, of {one.tag}, with the normalizationMethod {normalization}"
            )
        if one.get("outliers", "asIs") != "asIs":
            raise self._refused(f"a NeuralOutput with the outliers {one.get('outliers')}")
        if one.tag == "FieldRef":
            return stack.only(place).then(np.eye(1), np.zeros(1), "linear")
        points = sorted((norm, orig) for orig, norm in self._points(one))
        if not all(first < second for (first, _), (second, _) in pairwise(points)):
            raise self._refused("a NeuralOutput of a NormContinuous with two LinearNorm of the same norm")
        slopes, bends = _slopes(points), [norm for norm, _ in points[1:-1]]
        offset = np.array([points[0][1] - slopes[0] * points[0][0]])
        stack = stack.only(place)
        if not bends:
            return stack.then(np.array([slopes]), offset, "linear")
        # The value is the difference of two rectifiers; at each bend, another one begins.
        parts = stack.then(
            np.array([[1.0, -1.0, *(1.0 for _ in bends)]]), np.array([0.0, 0.0, *(-bend for bend in bends)]), "relu"
        )
        return parts.then(np.array([[slopes[0]], [-slopes[0]], *np.diff(slopes)[:, None]]), offset, "linear")

    def _probability(
        self, stack: _Stack, outputs: list[tuple[int, Element]], normalization: str, negative: str, positive: str
    ) -> _Stack:
        """Return the layers of a classification, up to the logit of the positive class."""
        places = {one.get("value", ""): place for place, one in outputs if one.tag == "NormDiscrete"}
        if len(set(places.values())) < len(outputs) or not set(places) <= {negative, positive}:
            values = [one.get("value", one.tag) for _, one in outputs]
            raise self._refused(f"outputs of {values} with the classes '{negative}' and '{positive}'")
        sign = 1.0 if positive in places else -1.0
        place = places.get(positive, places.get(negative, 0))
        (matrix, bias), activation = stack.layers[-1], stack.activations[-1]
        if normalization == "softmax" and len(bias) == 2:
            signs = np.array([[-sign], [-sign]])
            signs[place] = sign
            return stack.then(signs, np.zeros(1), "sigmoid")
        if normalization == "none" and activation == "sigmoid":
            return stack.only(place, sign)
        # JPMML's converters end with a layer that makes the probabilities 1 - p and p of p.
        if normalization == "none" and stack.activations[-2:] == ("sigmoid", "linear") and len(matrix) == 1:
            factor, shift = float(matrix[0, place]), float(bias[place])
            if (factor, shift) in ((1.0, 0.0), (-1.0, 1.0)):
                return _Stack(stack.layers[:-1], stack.activations[:-1]).only(0, sign * factor)
        raise self._refused(
            f"a last layer of {len(bias)} neurons that is neither logistic nor a softmax of two, with the "
            f"normalizationMethod {normalization}"
        )


def _expression(parent: Element) -> Element:
    """Return the expression that defines a field."""
    (found,) = [one for one in parent.iterfind("DerivedField/*") if one.tag not in ("Extension", "Value")]
    return found


def _slopes(points: list[tuple[float, float]]) -> list[float]:
    return [(value - before) / (place - start) for (start, before), (place, value) in pairwise(points)]
