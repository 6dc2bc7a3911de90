"""The results of a training of fleets: the models as a fleet, and a report with a row per model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.dataset.manifest import SPLITS
from mirrorspark.scoring.fleet.columns import FLEET_SCHEMA, MODEL_FIELDS, TERM_FIELDS, lists_from
from mirrorspark.scoring.fleet.fleet import Fleet
from mirrorspark.training.fleet.inputs import Input
from mirrorspark.training.fleet.plan import StackMember, StackPlan
from mirrorspark.training.fleet.targets import TargetSums

METRICS: Mapping[str, str] = {"identity": "r2", "logit": "auc", "log": "d2"}
"""Metrics by link: the share of the variance that is explained, the area under the ROC curve, and the share of the
Poisson deviance that is explained."""

_TRAIN, _VALIDATION, _TEST = SPLITS
_QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}


@dataclass(frozen=True)
class TrainedFleet:
    """A trained fleet.

    Attributes:
        fleet: The models, but for those that have diverged; in the order in which they were given.
        report: A row per model: ``model``, ``target``, ``link``, ``rows`` and ``positives`` (training rows with a
            label, and with the label 1), ``validation_rows``, ``test_rows``, ``epochs`` (until it stopped),
            ``best_epoch``, ``stopped_early``, ``diverged``, ``metric`` (its name), and ``train_loss``,
            ``validation_loss``, ``test_loss``, ``validation_metric`` and ``test_metric`` of the best epoch.
        folder: Folder of the fleet, for :func:`scoring.fleet.score.score_fleet`.
        run_id: MLflow run, which has the report, the fleet, and means and quantiles of the metrics; None if the
            tracking server was never reached.
        dataset: The directory of the converted rows.
    """

    fleet: Fleet
    report: pa.Table
    folder: Path
    run_id: str | None
    tracking_uri: str = field(repr=False)  # it may hold a password
    dataset: Path

    def __repr__(self) -> str:
        """Return the fleet, and the metrics in a few words."""
        found = summary(self.report)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name.endswith("_median"))
        return f"{self.fleet!r}, {found['models_stopped_early']:.0f} stopped early; {shown}"


def fleet_of(
    declared: pa.Table, plan: StackPlan, inputs: Sequence[Input], weights: Mapping[str, np.ndarray], kept: np.ndarray
) -> Fleet:
    """Return models of a stack as a fleet: standardised inputs and labels become part of the weights.

    Args:
        declared: The declared models, in the order of the plan's.
        plan: The training.
        inputs: The inputs of the stack.
        weights: The arrays that a rank has written; see :func:`training.fleet.worker.train`.
        kept: Positions of the models.

    Raises:
        FleetError: There is none, or one cannot be computed.
    """
    layers = len(plan.settings.hidden) + 1
    kernels = [weights[f"kernel_{layer}"].astype(np.float64) for layer in range(layers)]
    biases = [weights[f"bias_{layer}"].astype(np.float64) for layer in range(layers)]
    places = [
        np.arange(len(inputs)) if (own := plan.members[model].inputs) is None else np.array(own)
        for model in kept.tolist()
    ]
    divisors = np.array([one.divisor for one in inputs])
    shifts = np.array([one.offset for one in inputs]) / divisors
    coefficients, intercepts, flat = [], [], []
    for model, own in zip(kept.tolist(), places, strict=True):
        member, first = plan.members[model], kernels[0][own, model]
        bias = biases[0][model] - shifts[own] @ first
        if layers == 1:
            coefficients.append(first[:, 0] / divisors[own] * member.scale)
            intercepts.append(bias[0] * member.scale + member.mean)
            flat.append(np.empty(0))
            continue
        coefficients.append(1 / divisors[own])
        intercepts.append(member.mean)
        matrices = [first, *(kernel[model] for kernel in kernels[1:])]
        offsets = [bias, *(of_layer[model] for of_layer in biases[1:])]
        matrices[-1], offsets[-1] = matrices[-1] * member.scale, offsets[-1] * member.scale
        flat.append(np.concatenate([part for pair in zip(matrices, offsets, strict=True) for part in _layer(*pair)]))
    values = _model_fields(declared.take(pa.array(kept)), np.array(intercepts))
    values |= _term_fields(inputs, places, np.concatenate([np.empty(0), *coefficients]))
    hidden = plan.settings.hidden
    shapes = {
        "layer_sizes": [[len(own), *hidden, 1] if hidden else [] for own in places],
        "activations": [[plan.settings.activation] * len(hidden)] * len(kept),
    }
    values |= {name: pa.array(lists, FLEET_SCHEMA.field(name).type) for name, lists in shapes.items()}
    every = np.concatenate([np.empty(0), *flat]).astype(np.float32)
    values["weights"] = lists_from(np.array([len(one) for one in flat], np.int64), pa.array(every))
    return Fleet.of(pa.Table.from_arrays([values[name] for name in FLEET_SCHEMA.names], schema=FLEET_SCHEMA))


def report_of(
    declared: pa.Table,
    plan: StackPlan,
    weights: Mapping[str, np.ndarray],
    sums: Mapping[str, TargetSums],
) -> pa.Table:
    """Return the report of :class:`TrainedFleet`.

    Args:
        declared: The declared models, in the order of the plan's.
        plan: The training.
        weights: The arrays that a rank has written.
        sums: By split, of the models' targets.
    """
    epochs, diverged = weights["best_epoch"] + weights["waited"], weights["best_epoch"] == 0
    losses = {_TRAIN: weights["train_loss"], _VALIDATION: weights["best_loss"], _TEST: weights["test_loss"]}
    # Where no row has a label, there is no loss.
    known = {split: np.where(diverged | (sums[split].labels == 0), np.nan, of) for split, of in losses.items()}
    units = np.array([member.scale**2 for member in plan.members])
    is_class = np.array([member.link == "logit" for member in plan.members])
    areas = {_VALIDATION: weights["area"], _TEST: weights["test_area"]}
    columns = {
        "model": declared["model"],
        "target": declared["target"],
        "link": declared["link"],
        "rows": sums[_TRAIN].labels.astype(np.int64),
        "positives": pa.array(sums[_TRAIN].total.astype(np.int64), mask=~is_class),
        "validation_rows": sums[_VALIDATION].labels.astype(np.int64),
        "test_rows": sums[_TEST].labels.astype(np.int64),
        "epochs": epochs,
        "best_epoch": weights["best_epoch"],
        "stopped_early": (weights["waited"] >= plan.settings.patience) & ~diverged,
        "diverged": diverged,
        "metric": [METRICS[member.link] for member in plan.members],
        **{f"{split}_loss": pa.array(of * units, from_pandas=True) for split, of in known.items()},
        **{
            f"{split}_metric": pa.array(
                _metrics(plan.members, known[split], areas[split], sums[split]), from_pandas=True
            )
            for split in (_VALIDATION, _TEST)
        },
    }
    return pa.table(columns)


def summary(report: pa.Table) -> dict[str, float]:
    """Return numbers of models, and mean and quantiles of their metrics, by name: the metrics of the MLflow run."""
    found = {
        "models": float(report.num_rows),
        "models_stopped_early": float(np.count_nonzero(report["stopped_early"])),
        "models_diverged": float(np.count_nonzero(report["diverged"])),
    }
    metrics = np.array(report["metric"].to_pylist())
    for split in (_VALIDATION, _TEST):
        values = report[f"{split}_metric"].to_numpy()
        for metric in dict.fromkeys(metrics.tolist()):
            own = values[(metrics == metric) & ~np.isnan(values)]
            if len(own):
                quantiles = {name: float(np.quantile(own, at)) for name, at in _QUANTILES.items()}
                numbers = {"mean": float(own.mean()), **quantiles}
                found |= {f"{split}_{metric}_{name}": value for name, value in numbers.items()}
    return found


def _metrics(members: Sequence[StackMember], losses: np.ndarray, areas: np.ndarray, sums: TargetSums) -> np.ndarray:
    """Return the metric of each model in a split, NaN where there is none."""
    links = np.array([member.link for member in members])
    scales = np.array([member.scale for member in members])
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums.total / sums.labels
        variances = sums.squares / sums.labels - means**2
        # The loss is half the squared error in units of the scale.
        r2 = 1 - 2 * losses * scales**2 / variances
        deviances = sums.logs / sums.labels - means + losses
        null_deviances = sums.logs / sums.labels - means * np.log(means)
        found = np.select([links == "identity", links == "logit"], [r2, areas], 1 - deviances / null_deviances)
    return np.where(np.isfinite(found) & ~np.isnan(losses), found, np.nan)


def _layer(matrix: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer as a fleet has it: a matrix ``[outputs, inputs]``, and its bias."""
    return matrix.T.ravel(), bias


def _model_fields(declared: pa.Table, intercepts: np.ndarray) -> dict[str, pa.Array]:
    cuts = [one or [] for one in declared["cut_points"].to_pylist()]
    given = {"intercept": pa.array(intercepts), "cut_points": pa.array(cuts, MODEL_FIELDS.field("cut_points").type)}
    return {
        one.name: given[one.name] if one.name in given else declared[one.name].combine_chunks() for one in MODEL_FIELDS
    }


def _term_fields(
    inputs: Sequence[Input], places: Sequence[np.ndarray], coefficients: np.ndarray
) -> dict[str, pa.Array]:
    """Return the terms of models that read the inputs at ``places``."""
    per_input = {
        "column": [one.column for one in inputs],
        "clip_low": [one.clip[0] for one in inputs],
        "clip_high": [one.clip[1] for one in inputs],
        "log": [one.log or None for one in inputs],
        "category": [one.category for one in inputs],
        "at_least": [None] * len(inputs),
        "below": [None] * len(inputs),
        "missing": [one.missing for one in inputs],
    }
    lengths = np.array([len(own) for own in places], np.int64)
    order = pa.array(np.concatenate([np.empty(0, np.int64), *places]))
    found = {
        term.name: lists_from(lengths, pa.array(per_input[term.name], term.type).take(order))
        for term in TERM_FIELDS
        if term.name in per_input
    }
    return found | {"coefficient": lists_from(lengths, pa.array(coefficients))}
