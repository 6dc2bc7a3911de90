"""The results of a training of fleets: the models as a fleet, and a report with a row per model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.fleet.coefficients import linear_table
from mirrorspark.fleet.columns import NETWORK_FIELDS, TERM_FIELDS
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.training.inputs import StackInput
from mirrorspark.fleet.training.plan import StackMember, StackPlan
from mirrorspark.fleet.training.targets import TargetSums

METRICS: Mapping[str, str] = {"identity": "r2", "logit": "auc", "log": "d2"}
"""Metrics by link: explained share of the variance, area under the ROC curve, explained share of Poisson deviance."""

_TRAIN, _VALIDATION, _TEST = SPLITS
_QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}


@dataclass(frozen=True)
class TrainedFleet:
    """A trained fleet.

    Attributes:
        fleet: The models in the order in which they were given, without those that have diverged.
        report: A row per model: ``model``, ``target``, ``link``, ``rows`` and ``positives`` (training rows with a
            label, and with the label 1), ``validation_rows``, ``test_rows``, ``epochs`` (in which it learnt),
            ``best_epoch``, ``stopped_early``, ``diverged``, ``metric`` (its name), and ``train_loss``,
            ``validation_loss``, ``test_loss``, ``validation_metric`` and ``test_metric`` of the best epoch.
        folder: Folder of the fleet, for :func:`fleet.score_fleet`.
        run_id: MLflow run with the report, the fleet, and means and quantiles of the metrics; None if the tracking
            server was never reached.
        dataset: The directory of the converted rows.
    """

    fleet: Fleet
    report: pa.Table
    folder: Path
    run_id: str | None
    tracking_uri: str
    dataset: Path

    def __repr__(self) -> str:
        """Return the fleet, and the metrics in a few words; no address, which may hold a password."""
        found = summary(self.report)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name.endswith("_median"))
        return f"{self.fleet!r}, {found['models_stopped_early']:.0f} stopped early; {shown}"


def fleet_of(
    declared: pa.Table,
    plan: StackPlan,
    inputs: Sequence[StackInput],
    weights: Mapping[str, np.ndarray],
    kept: np.ndarray,
) -> Fleet:
    """Return models of a stack as a fleet; the standardisation of inputs and labels becomes part of the weights.

    Args:
        declared: The declared models, in the order of the plan's.
        plan: The training.
        inputs: The inputs of the stack.
        weights: The arrays that a rank has written; see :func:`fleet.training.worker.train`.
        kept: Positions of the models, at least one.

    Raises:
        FleetError: A model cannot be computed.
    """
    layers = len(plan.settings.hidden) + 1
    kernels = [weights[f"kernel_{layer}"].astype(np.float64) for layer in range(layers)]
    biases = [weights[f"bias_{layer}"].astype(np.float64) for layer in range(layers)]
    divisors = np.array([one.divisor for one in inputs])
    shifts = np.array([one.offset for one in inputs]) / divisors
    places, coefficients, intercepts, networks = [], [], [], []
    for model in kept.tolist():
        member = plan.members[model]
        own = np.arange(len(inputs)) if member.inputs is None else np.array(member.inputs, np.int64)
        matrices = [kernels[0][own, model], *(kernel[model] for kernel in kernels[1:])]
        offsets = [bias[model] for bias in biases]
        offsets[0] = offsets[0] - shifts[own] @ matrices[0]
        matrices[-1], offsets[-1] = matrices[-1] * member.scale, offsets[-1] * member.scale
        places.append(own)
        if layers == 1:
            coefficients.append(matrices[0][:, 0] / divisors[own])
            intercepts.append(offsets[0][0] + member.mean)
        else:
            coefficients.append(1 / divisors[own])
            intercepts.append(member.mean)
            pairs = zip(matrices, offsets, strict=True)
            networks.append(np.concatenate([part for matrix, bias in pairs for part in (matrix.T.ravel(), bias)]))
    of_inputs = pa.schema([field for field in TERM_FIELDS if field.name != "coefficient"])
    terms = pa.Table.from_pylist([vars(one) for one in inputs], of_inputs).take(pa.array(np.concatenate(places)))
    terms = terms.append_column("coefficient", pa.array(np.concatenate(coefficients)))
    described = declared.take(pa.array(kept)).append_column("intercept", pa.array(intercepts, pa.float64()))
    table = linear_table(described, np.array(list(map(len, places))), terms)
    if layers > 1:
        hidden = plan.settings.hidden
        fields = {
            "layer_sizes": [[len(own), *hidden, 1] for own in places],
            "activations": [[plan.settings.activation] * len(hidden)] * len(places),
            "weights": [network.astype(np.float32) for network in networks],
        }
        for each in NETWORK_FIELDS:
            place = table.schema.get_field_index(each.name)
            table = table.set_column(place, each, pa.array(fields[each.name], each.type))
    return Fleet.of(table)


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
    # Without a row that has a label, there is no loss.
    known = {split: np.where(diverged | (sums[split].labels == 0), np.nan, of) for split, of in losses.items()}
    units = np.array([member.scale**2 for member in plan.members])
    is_class = np.array([member.link == "logit" for member in plan.members])
    areas = {_VALIDATION: weights["area"], _TEST: weights["test_area"]}
    columns = {
        "model": declared["model"],
        "target": declared["target"],
        "link": declared["link"],
        "rows": sums[_TRAIN].labels.astype(np.int64),
        "positives": pa.array(np.where(is_class, sums[_TRAIN].total, 0).astype(np.int64), mask=~is_class),
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
    """Return the metrics of the MLflow run: numbers of models, and mean and quantiles of their metrics."""
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
    """Return the metric of each model in a split, NaN for none."""
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
