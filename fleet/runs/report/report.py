"""The report of a run as values, from its plan, its ledger and the counts next to its outputs."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.quality import Limits
from mirrorspark.fleet.bins import Distribution
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.runs.kept import RunRecords
from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.fleet.runs.progress import covered_seconds
from mirrorspark.scoring import ScoringError

_MILLION = 1e6
_SECONDS = ("read_seconds", "score_seconds", "write_seconds", "task_seconds")
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}

MICROBATCH_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("group", "state")),
        *((name, pa.int64()) for name in ("number", "step", "models", "rows", "attempts", "tasks", "bytes")),
        *((name, pa.float64()) for name in ("seconds", *_SECONDS, "inferences_per_core_second", "skew")),
    ]
)
"""``seconds``: of the driver, with Spark's start of the job and the publishing. ``task_seconds``: of all tasks.
``skew``: those of the slowest task by those of the median one."""

MODEL_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "group", "state", "problem", "output", "core_seconds_from")),
        *((name, pa.int64()) for name in ("rows", "nulls")),
        *((name, pa.float64()) for name in ("core_seconds", "core_seconds_per_million", "cost_per_million")),
        *((name, pa.float64()) for name in (*_QUANTILES, "drift", "drift_by_chance")),
        ("drifted", pa.string()),
    ]
)
"""``output``: the one whose quantiles and drift are given. ``core_seconds_from``: ``measured``, or ``estimated`` where
the ledger lacks the seconds of each model for some microbatch; null without any times. ``drift``: the population
stability index against the former run. ``drifted``: ``some`` or ``large`` where it exceeds chance by so much; else
empty."""


@dataclass(frozen=True)
class FleetReport:
    """The report of a run.

    Attributes:
        run: Id of the run.
        output: Folder of the run.
        fleet: Digest of the fleet.
        former: Folder of the run that the scores are compared with; empty for none.
        totals: Numbers of the whole run, by name. ``wall_seconds`` are those in which some attempt ran: a run that was
            resumed has not worked in the meantime.
        microbatches: Rows of :data:`MICROBATCH_SCHEMA`.
        models: Rows of :data:`MODEL_SCHEMA`.
        distributions: The outputs of each model.
        former_distributions: Distributions of the former run.
        ledger: Address of the ledger, without credentials.
    """

    run: str
    output: str
    fleet: str
    former: str
    totals: Mapping[str, float]
    microbatches: pa.Table
    models: pa.Table
    distributions: Mapping[str, Distribution]
    former_distributions: Mapping[str, Distribution]
    ledger: str


def report_of(
    records: RunRecords,
    distributions: Mapping[str, Distribution],
    former: tuple[str, Mapping[str, Distribution]] = ("", {}),
    price_per_core_hour: float | None = None,
) -> FleetReport:
    """Return the report of a run.

    Args:
        records: The records of the run.
        distributions: The outputs of each model.
        former: Folder and distributions of the run to compare with.
        price_per_core_hour: In any currency; without it, no cost is given.

    Raises:
        ScoringError: The price is below 0.
    """
    if price_per_core_hour is not None and not price_per_core_hour >= 0:
        raise ScoringError(
            f"price_per_core_hour {price_per_core_hour} is below 0; give the price of a core for an hour"
        )
    plan = records.plan
    microbatches = _microbatches(records)
    price = None if price_per_core_hour is None else price_per_core_hour / 3600
    models = _models(records, microbatches, distributions, former[1], price)
    totals = _totals(records, microbatches, models, price)
    tables = pa.Table.from_pylist(microbatches, MICROBATCH_SCHEMA), pa.Table.from_pylist(models, MODEL_SCHEMA)
    return FleetReport(
        plan.run, records.output, plan.fleet, former[0], totals, *tables, distributions, former[1], records.ledger
    )


def _microbatches(records: RunRecords) -> list[dict[str, Any]]:
    # Drivers that share a run may have left another state of a published microbatch, which no later attempt corrects.
    states = {row["number"]: "waiting" if row["state"] == "done" else row["state"] for row in records.microbatches}
    states |= dict.fromkeys(records.manifests, "done")
    attempts = defaultdict[int, list[Mapping[str, Any]]](list)
    for attempt in records.attempts:
        attempts[attempt["microbatch"]].append(attempt)
    rows = []
    for one in records.plan.microbatches:
        tried = attempts[one.number]
        done = next((row for row in reversed(tried) if row["outcome"] == "done"), None)
        row = {"group": one.step.group, "state": states.get(one.number, "waiting"), "number": one.number}
        row |= {"step": one.step.number, "models": len(one.models), "rows": one.share.rows, "attempts": len(tried)}
        # A driver that was killed after publishing has left no times, nor has a version before they were kept.
        if done is not None and done["task_seconds"]:
            row |= {name: done[name] for name in ("tasks", "bytes", "seconds", *_SECONDS)}
            row["inferences_per_core_second"] = one.share.rows * len(one.models) / done["task_seconds"]
            row["skew"] = done["slowest_seconds"] / done["median_seconds"] if done["median_seconds"] else None
            # Not a column of the table: it has a number per model.
            row["model_seconds"] = json.loads(done["model_seconds"] or "[]")
        rows.append(row)
    return rows


def _models(
    records: RunRecords,
    microbatches: Sequence[Mapping[str, Any]],
    distributions: Mapping[str, Distribution],
    former: Mapping[str, Distribution],
    price: float | None,
) -> list[dict[str, Any]]:
    spent = _spent(records.plan, records.fleet, microbatches)
    problems: dict[str, str] = {}
    # A replaced ledger has lost rows that the plan and the manifests still have.
    kept = [one for manifest in records.manifests.values() for one in manifest["failed"]]
    for error in [*records.errors, *map(asdict, records.plan.failures), *kept]:
        problems.setdefault(error["model"], f"{error['stage']}: {error['message']}")
    groups = {name: step.group for step in records.plan.steps for name in step.digests}
    limits = Limits()
    rows = []
    for model, group in groups.items():
        seconds, inferences, is_measured = spent[model]
        row: dict[str, Any] = {"model": model, "group": group, "core_seconds": seconds}
        row |= {"state": "failed" if model in problems else "sound", "problem": problems.get(model, "")}
        if inferences:
            row["core_seconds_from"] = "measured" if is_measured else "estimated"
            row["core_seconds_per_million"] = seconds / inferences * _MILLION
            row["cost_per_million"] = None if price is None else row["core_seconds_per_million"] * price
        if (found := distributions.get(model)) is not None:
            row |= {"output": found.output, "rows": found.rows, "nulls": found.nulls}
            row |= {name: found.quantile(share) for name, share in _QUANTILES.items()}
            drift = found.drift_from(former[model]) if model in former else None
            if drift is not None:
                excess = drift[0] - drift[1]
                strength = "large" if excess >= limits.strong_drift else "some" if excess >= limits.drift else ""
                row |= {"drift": drift[0], "drift_by_chance": drift[1], "drifted": strength}
        rows.append(row)
    return rows


def _spent(
    plan: RunPlan, fleet: Fleet, microbatches: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float, int, bool]]:
    """Return by model the seconds of tasks, the inferences that took them, and True if all scoring was measured.

    Where the ledger lacks the seconds of each model, those of scoring are divided by :meth:`Fleet.shares`. All other
    seconds of the tasks are shared equally.
    """
    places = {name: place for place, name in enumerate(fleet.names)}
    seconds, inferences = np.zeros(len(fleet)), np.zeros(len(fleet), np.int64)
    is_measured = np.ones(len(fleet), bool)
    for one, row in zip(plan.microbatches, microbatches, strict=True):
        if "task_seconds" not in row:
            continue
        own = np.array([places[name] for name in one.models])
        scored = np.array(row["model_seconds"] or row["score_seconds"] * fleet.shares(own))
        seconds[own] += scored + (row["task_seconds"] - scored.sum()) / len(own)
        inferences[own] += one.share.rows
        is_measured[own] &= bool(row["model_seconds"])
    found = zip(seconds.tolist(), inferences.tolist(), is_measured.tolist(), strict=True)
    return dict(zip(fleet.names, found, strict=True))


def _totals(
    records: RunRecords,
    microbatches: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    price: float | None,
) -> dict[str, float]:
    timed = [row for row in microbatches if "task_seconds" in row]
    found: dict[str, float] = {
        "rows": records.plan.rows,
        "models": len(models),
        "models_failed": sum(row["state"] == "failed" for row in models),
        "models_drifted": sum(bool(row.get("drifted")) for row in models),
        "models_estimated": sum(row.get("core_seconds_from") == "estimated" for row in models),
        "microbatches": len(microbatches),
        "microbatches_done": sum(row["state"] == "done" for row in microbatches),
        "microbatches_timed": len(timed),
        "attempts_not_done": sum(row["outcome"] != "done" for row in records.attempts),
        "inferences": sum(row["rows"] * row["models"] for row in timed),
        "bytes": sum(row["bytes"] for row in timed),
    }
    found |= {name: sum(row[name] for row in timed) for name in _SECONDS}
    found["wall_seconds"] = covered_seconds((row["began"], row["began"] + row["seconds"]) for row in records.attempts)
    skews = [row["skew"] for row in timed if row["skew"] is not None]
    if found["inferences"]:
        found["bytes_per_inference"] = found["bytes"] / found["inferences"]
        found["inferences_per_core_second"] = found["inferences"] / found["task_seconds"]
        found["core_seconds_per_million"] = found["task_seconds"] / found["inferences"] * _MILLION
        found |= {"skew_median": float(np.median(skews)), "skew_largest": max(skews)} if skews else {}
        if price is not None:
            found["cost"] = found["task_seconds"] * price
            found["cost_per_million"] = found["core_seconds_per_million"] * price
    return found
