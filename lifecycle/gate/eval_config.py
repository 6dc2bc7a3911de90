"""Slices and thresholds from a configuration of TensorFlow Model Analysis (``EvalConfig``).

The fields are those of its ``config.proto``; a threshold that the gates here cannot keep is refused, not dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.gate.slices import OVERALL, Slicing
from mirrorspark.lifecycle.gate.thresholds import ALL_SLICES, MIN_EXAMPLES, Gates, Threshold
from mirrorspark.serving import Messages, message_class
from mirrorspark.storage import load_yaml, read_text

# Also the fields that cannot be kept: they are refused by :func:`_check_kept`, with the remedy.
_MESSAGES: Messages = {
    "ModelSpec": {
        **dict.fromkeys(("name", "model_type", "signature_name", "label_key", "prediction_key"), "string"),
        **{"example_weight_key": "string", "is_baseline": "bool", "preprocessing_function_names": "*string"},
        **dict.fromkeys(("label_keys", "prediction_keys", "example_weight_keys"), ":string"),
    },
    "SlicingSpec": {"feature_keys": "*string", "feature_values": ":string", "slice_keys_sql": "string"},
    "CrossSlicingSpec": {"baseline_spec": "SlicingSpec", "slicing_specs": "*SlicingSpec"},
    "GenericChangeThreshold": {"absolute": "DoubleValue", "relative": "DoubleValue", "direction": "MetricDirection"},
    "GenericValueThreshold": {"lower_bound": "DoubleValue", "upper_bound": "DoubleValue"},
    "MetricThreshold": {
        "value_threshold": "GenericValueThreshold",
        "change_threshold": "GenericChangeThreshold",
    },
    "PerSliceMetricThreshold": {"slicing_specs": "*SlicingSpec", "threshold": "MetricThreshold"},
    "PerSliceMetricThresholds": {"thresholds": "*PerSliceMetricThreshold"},
    "CrossSliceMetricThreshold": {"cross_slicing_specs": "*CrossSlicingSpec", "threshold": "MetricThreshold"},
    "CrossSliceMetricThresholds": {"thresholds": "*CrossSliceMetricThreshold"},
    "MetricConfig": {
        **dict.fromkeys(("class_name", "module", "config"), "string"),
        **{"threshold": "MetricThreshold", "per_slice_thresholds": "*PerSliceMetricThreshold"},
        "cross_slice_thresholds": "*CrossSliceMetricThreshold",
    },
    "BinarizationOptions": dict.fromkeys(("class_ids", "k_list", "top_k_list"), "RepeatedInt32Value"),
    "AggregationOptions": {
        **dict.fromkeys(("micro_average", "macro_average", "weighted_macro_average"), "bool"),
        "top_k_list": "RepeatedInt32Value",
    },
    "MetricsSpec": {
        "metrics": "*MetricConfig",
        "model_names": "*string",
        "output_names": "*string",
        "output_weights": ":double",
        "binarize": "BinarizationOptions",
        "aggregate": "AggregationOptions",
        "query_key": "string",
        "thresholds": ":MetricThreshold",
        "per_slice_thresholds": ":PerSliceMetricThresholds",
        "cross_slice_thresholds": ":CrossSliceMetricThresholds",
    },
    "RepeatedStringValue": {"values": "*string"},
    "RepeatedInt32Value": {"values": "*int32"},
    "ConfidenceIntervalOptions": {"method": "ConfidenceIntervalMethod"},
    "Options": {
        "include_default_metrics": "BoolValue",
        "compute_confidence_intervals": "BoolValue",
        "confidence_intervals": "ConfidenceIntervalOptions",
        "min_slice_size": "Int32Value",
        "disabled_outputs": "RepeatedStringValue",
    },
    "EvalConfig": {
        "model_specs": "*ModelSpec",
        "slicing_specs": "*SlicingSpec",
        "cross_slicing_specs": "*CrossSlicingSpec",
        "metrics_specs": "*MetricsSpec",
        "options": "Options",
    },
}
_DIRECTIONS = ("UNKNOWN", "LOWER_IS_BETTER", "HIGHER_IS_BETTER")
_ENUMERATIONS = {
    "MetricDirection": _DIRECTIONS,
    "ConfidenceIntervalMethod": ("UNKNOWN_CONFIDENCE_INTERVAL_METHOD", "POISSON_BOOTSTRAP", "JACKKNIFE"),
}
_PER_CLASS = "give the metrics of the label as it is, or measure a table of one label"
# The fields that cannot be kept, by message, with the remedy.
_NOT_KEPT: Mapping[str, Mapping[str, str]] = {
    "ModelSpec": {
        "preprocessing_function_names": "a model here takes the table's own columns, and prepares them itself: delete "
        "the field, and let label_key, example_weight_key and the slices name columns of the table",
        "prediction_keys": "a gate judges one output: delete the field",
    },
    "SlicingSpec": {
        "slice_keys_sql": "give feature_keys or feature_values, or add ms.Slicing('an SQL expression') to the slices"
    },
    "MetricConfig": {"cross_slice_thresholds": "use ms.Gap(metric, slicing, at_most=...) for distances of slices"},
    "MetricsSpec": {
        "cross_slice_thresholds": "use ms.Gap(metric, slicing, at_most=...) for distances of slices",
        "binarize": _PER_CLASS,
        "aggregate": _PER_CLASS,
        "output_names": "a gate judges one output: delete the field",
        "output_weights": "a gate judges one output: delete the field",
        "query_key": "rankings are measured by the keys of the table: delete the field",
    },
    "EvalConfig": {"cross_slicing_specs": "use ms.Gap(metric, slicing, at_most=...) for distances of slices"},
}

# Names of metrics there, as of classes or in a model, and here.
_METRICS: Mapping[str, str] = {
    **{name: name for name in ("auc", "precision", "recall", "calibration", "accuracy")},
    "auc_precision_recall": "pr_auc",
    "binary_accuracy": "accuracy",
    "categorical_accuracy": "accuracy",
    "sparse_categorical_accuracy": "accuracy",
    "binary_crossentropy": "log_loss",
    "categorical_crossentropy": "log_loss",
    "sparse_categorical_crossentropy": "log_loss",
    "expected_calibration_error": "ece",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "mean_absolute_error": "mae",
}
# Settings of a metric that change nothing here: areas under curves are not made of thresholds.
_WITHOUT_EFFECT = frozenset({"name", "num_thresholds", "summation_method"})
_THRESHOLD = 0.5
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


class EvalConfigError(ClearError, ValueError):
    """A configuration cannot be read, or asks for something that the gates here cannot keep."""


@dataclass(frozen=True)
class EvalConfig:
    """Request of a configuration.

    Attributes:
        slices: Its slices.
        gates: Its thresholds.
        label: SQL expression of the label's column, if it names one.
        weight: SQL expression of the weights' column, if it names one.
    """

    slices: tuple[Slicing, ...]
    gates: Gates
    label: str | None
    weight: str | None


def read_eval_config(file: str | Path) -> EvalConfig:
    """Read a configuration of TensorFlow Model Analysis: a text proto, JSON, or YAML by the file's suffix.

    ``threshold`` of a metric holds in all rows and in every slice, as there. Metrics without a threshold are left out:
    :func:`lifecycle.gate.validate` measures all that it has.

    Raises:
        EvalConfigError: It cannot be read, or asks for what cannot be kept: metrics that are not measured here,
            thresholds across slices or of some models only, binarized or aggregated metrics, slices by SQL,
            preprocessing functions. The message has the remedy.
        OSError: The file cannot be read.
    """
    path = Path(file)
    message = message_class("EvalConfig", _MESSAGES, _ENUMERATIONS)()
    try:
        text = read_text(path)
        if path.suffix.lower() in (".yaml", ".yml", ".json") or text.lstrip().startswith("{"):
            json_format.ParseDict(_document(text), message)
        else:
            text_format.Parse(text, message)
        if not message.ListFields():
            raise EvalConfigError("is empty; give it model_specs, slicing_specs and metrics_specs")
        _check_kept(message)
        return _asked(message)
    except (text_format.ParseError, json_format.ParseError, yaml.YAMLError, ValueError) as error:
        raise EvalConfigError(f"{path}: {' '.join(str(error).split())}") from error


def _document(text: str) -> dict[str, Any]:
    """Return the configuration in a text of JSON or YAML."""
    try:
        document = json.loads(text)
    except ValueError:
        document = load_yaml(text)
    if not isinstance(document or {}, dict):
        raise EvalConfigError("is not a mapping of fields to values; give the document of an EvalConfig")
    document = document or {}
    # A run's own file wraps it.
    return dict(_plain(document.get("evalConfig", document.get("eval_config", document))))


def _plain(value: Any) -> Any:
    """Return a document as JSON has it where somebody has followed the form of a text proto.

    A number is then ``{"value": 0.6}``, and a map is a list of ``{"key": …, "value": …}``.
    """
    if isinstance(value, dict):
        if set(value) == {"value"}:
            return _plain(value["value"])
        plain = {key: _plain(one) for key, one in value.items()}
        for key in ("feature_values", "featureValues"):  # YAML reads 20 as a number, and the field has texts
            if isinstance(plain.get(key), dict):
                plain[key] = {name: json.dumps(one).strip('"') for name, one in plain[key].items()}
        return plain
    if isinstance(value, list):
        if value and all(isinstance(one, dict) and set(one) == {"key", "value"} for one in value):
            return {one["key"]: _plain(one["value"]) for one in value}
        return [_plain(one) for one in value]
    return value


def _check_kept(message: Any) -> None:
    """Refuse the first field of a message, or of one in it, that cannot be kept."""
    for field, value in message.ListFields():
        if advice := _NOT_KEPT.get(message.DESCRIPTOR.name, {}).get(field.name):
            shown = f" {list(value)}" if field.name.endswith(("names", "keys")) else ""
            raise EvalConfigError(f"{field.name}{shown} cannot be kept here; {advice}")
        if field.message_type is not None:
            several = [value] if isinstance(value, Message) else value.values() if hasattr(value, "items") else value
            for one in filter(lambda one: isinstance(one, Message), several):  # a map may hold texts
                _check_kept(one)


def _asked(message: Any) -> EvalConfig:
    slices = {one.name: one for spec in message.slicing_specs if (one := _slicing(spec)) is not None}
    models = sorted(message.model_specs, key=lambda model: model.is_baseline)  # the candidate first
    _check_models(models, message.metrics_specs)
    thresholds = tuple(one for spec in message.metrics_specs for one in _thresholds(spec))
    divided = {frozenset(spec.feature_keys) for spec in message.slicing_specs if spec.feature_keys}
    for spec in _specs_of_thresholds(message):
        # A slice of a division that is there, by the values of all of its features.
        if frozenset(spec.feature_values) in divided and (one := _slicing(spec)) is not None:
            slices.setdefault(one.name, one)
    if unknown := sorted({name for one in thresholds for name in one.slices} - {OVERALL, ALL_SLICES, *slices}):
        raise EvalConfigError(
            f"thresholds name the slices {unknown}, which slicing_specs does not define; add them there"
        )
    least = message.options.min_slice_size.value if message.options.HasField("min_slice_size") else MIN_EXAMPLES
    return EvalConfig(
        slices=tuple(slices.values()),
        gates=Gates(thresholds, min_examples=max(least, 1)),
        label=_column(models, "label_key"),
        weight=_column(models, "example_weight_key"),
    )


def _specs_of_thresholds(message: Any) -> Iterator[Any]:
    """Yield the slices that thresholds name."""
    for spec in message.metrics_specs:
        several = [metric.per_slice_thresholds for metric in spec.metrics]
        several += [one.thresholds for one in spec.per_slice_thresholds.values()]
        for one in chain.from_iterable(several):
            yield from one.slicing_specs


def _column(models: Sequence[Any], field: str) -> str | None:
    """Return the column that the first of the models names, alone or for each of its outputs; None if none does."""
    for model in models:
        names = [getattr(model, field)] if getattr(model, field) else sorted(set(getattr(model, f"{field}s").values()))
        if len(names) > 1:
            raise EvalConfigError(f"{field}s has several columns, {names}, and a gate judges one output; give {field}")
        if names:
            return _quoted(names[0])
    return None


def _check_models(models: Sequence[Any], metrics_specs: Sequence[Any]) -> None:
    """Check that there is one candidate, and that all metrics are asked of it; a run's own file names their models."""
    candidates = [model.name for model in models if not model.is_baseline]
    if len(candidates) > 1:
        raise EvalConfigError(f"model_specs has the candidates {candidates}, and a gate judges one; leave one of them")
    for spec in metrics_specs if len(models) > 1 else ():  # a name of the only model has no meaning there
        if spec.model_names and not set(candidates) <= set(spec.model_names):
            raise EvalConfigError(
                f"metrics_specs has metrics of {list(spec.model_names)} alone, without the candidate {candidates}"
            )


def _quoted(name: str) -> str:
    """Return the column of that name as an SQL expression."""
    return "`" + name.replace("`", "``") + "`"


def _slicing(spec: Any) -> Slicing | None:
    """Return a slicing; None for all rows."""
    keys, values = list(spec.feature_keys), dict(spec.feature_values)
    if keys and values:
        raise EvalConfigError(
            f"a slice crosses all values of {keys} with {values}; give the values of all of its features"
        )
    if not keys and not values:
        return None
    names = sorted(keys or values)
    columns = [_compared(name, values.get(name, "")) for name in names]
    texts = [f"coalesce(cast({column} as string), 'null')" for column in columns]
    expression = columns[0] if len(names) == 1 else f"concat_ws(' x ', {', '.join(texts)})"
    if keys:
        return Slicing(expression, " x ".join(names))
    chosen = " x ".join(values[name] for name in names)
    return Slicing(expression, f"{' x '.join(names)}:{chosen}", (chosen,))


def _compared(name: str, value: str) -> str:
    """Return a column such that its text is ``value`` where it has the value: ``20`` is also the 20.0 of a float."""
    column = _quoted(name)
    if not _NUMBER.fullmatch(value):
        return column
    return f"if(try_cast({column} as double) = {float(value)!r}D, '{value}', cast({column} as string))"


def _thresholds(spec: Any) -> Iterator[Threshold]:
    for metric in spec.metrics:
        asked: list[tuple[Any, tuple[str, ...]]] = []
        if metric.HasField("threshold"):
            asked.append((metric.threshold, (ALL_SLICES,)))
        asked += [(one.threshold, _names(one.slicing_specs)) for one in metric.per_slice_thresholds]
        if asked:
            name = _configured(metric)
            yield from (_threshold(name, threshold, slices) for threshold, slices in asked)
    for name, threshold in spec.thresholds.items():
        yield _threshold(_measured(name), threshold, (ALL_SLICES,))
    for name, several in spec.per_slice_thresholds.items():
        for one in several.thresholds:
            yield _threshold(_measured(name), one.threshold, _names(one.slicing_specs))


def _names(specs: Sequence[Any]) -> tuple[str, ...]:
    return tuple(OVERALL if (one := _slicing(spec)) is None else one.name for spec in specs) or (OVERALL,)


def _threshold(metric: str, threshold: Any, slices: tuple[str, ...]) -> Threshold:
    value, change = threshold.value_threshold, threshold.change_threshold
    is_higher = None
    if threshold.HasField("change_threshold"):
        if not change.direction:
            raise EvalConfigError(
                f"the change_threshold of {metric} has no direction; give HIGHER_IS_BETTER or LOWER_…"
            )
        is_higher = _DIRECTIONS[change.direction] == "HIGHER_IS_BETTER"
    # There, an error may rise by its bound; here, its gain is at least minus that.
    sign = 1.0 if is_higher else -1.0
    absolute, relative = _number(change, "absolute"), _number(change, "relative")
    return Threshold(
        metric,
        at_least=_number(value, "lower_bound"),
        at_most=_number(value, "upper_bound"),
        gain_at_least=None if absolute is None else sign * absolute,
        gain_share_at_least=None if relative is None else sign * relative,
        slices=slices,
        higher_is_better=is_higher,
    )


def _number(message: Any, field: str) -> float | None:
    return float(getattr(message, field).value) if message.HasField(field) else None


def _configured(metric: Any) -> str:
    """Return the metric of a class with its settings."""
    text = metric.config.strip()
    try:
        settings = json.loads(text if text.startswith("{") else f"{{{text}}}")
    except ValueError as error:
        raise EvalConfigError(
            f"the config of metric {metric.class_name} is not JSON ({error}): {text}; correct it"
        ) from error
    name = _measured(metric.class_name)
    if name == "auc" and settings.pop("curve", "ROC") == "PR":
        name = "pr_auc"
    if settings.get("thresholds") in (_THRESHOLD, [_THRESHOLD]):
        del settings["thresholds"]
    if settings.get("threshold") == _THRESHOLD:
        del settings["threshold"]
    if left := sorted(set(settings) - _WITHOUT_EFFECT):
        raise EvalConfigError(f"metric {metric.class_name} has the settings {left}, which cannot be kept here")
    return name


def _measured(name: str) -> str:
    """Return our name of a metric, given as a class or in snake case."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    if snake not in _METRICS:
        raise EvalConfigError(f"metric {name} has a threshold and is not measured here; known are {sorted(_METRICS)}")
    return _METRICS[snake]
