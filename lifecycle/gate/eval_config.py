"""Slices and thresholds from a configuration of TensorFlow Model Analysis (``EvalConfig``).

The fields are those of its ``config.proto``; a threshold that the gates here cannot keep is refused, not dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format, text_format

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.gate.slices import OVERALL, Slicing
from mirrorspark.lifecycle.gate.thresholds import ALL_SLICES, MIN_EXAMPLES, Gates, Threshold
from mirrorspark.serving import Messages, message_class
from mirrorspark.storage import read_text

# Other metrics cannot be kept, and are refused.
_MESSAGES: Messages = {
    "ModelSpec": {
        **dict.fromkeys(("name", "model_type", "signature_name", "label_key", "prediction_key"), "string"),
        **{"example_weight_key": "string", "is_baseline": "bool"},
    },
    "SlicingSpec": {"feature_keys": "*string", "feature_values": ":string"},
    "GenericChangeThreshold": {"absolute": "DoubleValue", "relative": "DoubleValue", "direction": "MetricDirection"},
    "GenericValueThreshold": {"lower_bound": "DoubleValue", "upper_bound": "DoubleValue"},
    "MetricThreshold": {
        "value_threshold": "GenericValueThreshold",
        "change_threshold": "GenericChangeThreshold",
    },
    "PerSliceMetricThreshold": {"slicing_specs": "*SlicingSpec", "threshold": "MetricThreshold"},
    "PerSliceMetricThresholds": {"thresholds": "*PerSliceMetricThreshold"},
    "MetricConfig": {
        **dict.fromkeys(("class_name", "module", "config"), "string"),
        **{"threshold": "MetricThreshold", "per_slice_thresholds": "*PerSliceMetricThreshold"},
    },
    "MetricsSpec": {
        "metrics": "*MetricConfig",
        "model_names": "*string",
        "thresholds": ":MetricThreshold",
        "per_slice_thresholds": ":PerSliceMetricThresholds",
    },
    "RepeatedStringValue": {"values": "*string"},
    "Options": {
        "include_default_metrics": "BoolValue",
        "compute_confidence_intervals": "BoolValue",
        "min_slice_size": "Int32Value",
        "disabled_outputs": "RepeatedStringValue",
    },
    "EvalConfig": {
        "model_specs": "*ModelSpec",
        "slicing_specs": "*SlicingSpec",
        "metrics_specs": "*MetricsSpec",
        "options": "Options",
    },
}
_DIRECTIONS = ("UNKNOWN", "LOWER_IS_BETTER", "HIGHER_IS_BETTER")

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
    """Read a configuration of TensorFlow Model Analysis: a text proto, or YAML or JSON by the file's suffix.

    ``threshold`` of a metric holds in all rows and in every slice, as there. Metrics without a threshold are left out:
    :func:`lifecycle.gate.validate` measures all that it has.

    Raises:
        EvalConfigError: It cannot be read, or asks for what cannot be kept: metrics that are not measured here,
            thresholds across slices or of some models only, binarized or aggregated metrics, slices by SQL.
        OSError: The file cannot be read.
    """
    path = Path(file)
    message = message_class("EvalConfig", _MESSAGES, {"MetricDirection": _DIRECTIONS})()
    try:
        text = read_text(path)
        if path.suffix.lower() in (".yaml", ".yml", ".json"):
            document = yaml.safe_load(text) or {}
            # A run's own file wraps it.
            json_format.ParseDict(document.get("evalConfig", document.get("eval_config", document)), message)
        else:
            text_format.Parse(text, message)
        return _asked(message)
    except (text_format.ParseError, json_format.ParseError, yaml.YAMLError, AttributeError, ValueError) as error:
        raise EvalConfigError(f"{path}: {' '.join(str(error).split())}") from error


def _asked(message: Any) -> EvalConfig:
    slices = {one.name: one for spec in message.slicing_specs if (one := _slicing(spec)) is not None}
    models = sorted(message.model_specs, key=lambda model: model.is_baseline)  # the candidate first
    _check_models(models, message.metrics_specs)
    thresholds = tuple(one for spec in message.metrics_specs for one in _thresholds(spec))
    if unknown := sorted({name for one in thresholds for name in one.slices} - {OVERALL, ALL_SLICES, *slices}):
        raise EvalConfigError(f"thresholds name the slices {unknown}, which slicing_specs does not define")
    least = message.options.min_slice_size.value if message.options.HasField("min_slice_size") else MIN_EXAMPLES
    return EvalConfig(
        slices=tuple(slices.values()),
        gates=Gates(thresholds, min_examples=max(least, 1)),
        label=next((_quoted(model.label_key) for model in models if model.label_key), None),
        weight=next((_quoted(model.example_weight_key) for model in models if model.example_weight_key), None),
    )


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
    names = keys or sorted(values)
    texts = [f"coalesce(cast({_quoted(name)} as string), 'null')" for name in names]
    expression = _quoted(names[0]) if len(names) == 1 else f"concat_ws(' x ', {', '.join(texts)})"
    if keys:
        return Slicing(expression, " x ".join(names))
    chosen = " x ".join(values[name] for name in names)
    return Slicing(expression, f"{' x '.join(names)}:{chosen}", (chosen,))


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
    settings = json.loads(text if text.startswith("{") else f"{{{text}}}")
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
