"""One of each page that we write, with long and hostile names in it, and as many rows as people have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.page import PageFacts, dataset_page
from mirrorspark.data_pipelines.quality.profiling import profile_columns
from mirrorspark.data_pipelines.quality.validation import validate
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.runs.plan import Share, Step
from mirrorspark.fleet.runs.report.page import report_page as fleet_page
from mirrorspark.fleet.runs.report.report import report_of
from mirrorspark.lifecycle.experiments.analysis import Arm, analyse_experiment
from mirrorspark.lifecycle.experiments.definition import Experiment
from mirrorspark.lifecycle.experiments.page import experiment_page
from mirrorspark.lifecycle.gate.facts import MetricEstimate
from mirrorspark.lifecycle.gate.page import validation_page
from mirrorspark.lifecycle.gate.thresholds import Gates, Threshold
from mirrorspark.lifecycle.pipeline.history import history_page
from mirrorspark.lifecycle.pipeline.page import pipeline_page
from mirrorspark.lifecycle.pipeline.record import PipelineRecord
from mirrorspark.lifecycle.pipeline.stages import Stage
from mirrorspark.lifecycle.watching.live import LiveWindow
from mirrorspark.lifecycle.watching.page import watch_page
from mirrorspark.lifecycle.watching.watcher import WindowDrift
from tests.unit.fleet.test_report import FIRST, TIMES, ranked
from tests.unit.fleet.test_report import records as fleet_records
from tests.unit.lifecycle.gate_facts import facts_of, slice_of, validation_of
from tests.unit.lifecycle.test_pipeline_history import date
from tests.unit.lifecycle.test_watching import START, week

# No blank, hyphen or underscore at which a line could be broken.
LONG = "W" * 120
HOSTILE = "<img src=x onerror=alert(1)>"
MANY = tuple(f"recall_at_precision_{number / 100:g}" for number in range(10, 50))
NAMES = ("Größe der Fläche", "a_column_with_a_long_name_as_feature_stores_have_them_30_days", LONG, HOSTILE)


def dataset() -> str:
    """Return the page of a converted table."""
    random = np.random.default_rng(1)
    columns = {name: random.choice([LONG, HOSTILE, "", "中文"], 400) for name in NAMES}
    table = pa.table({"id": range(400), "late": random.integers(0, 2, 400), **columns, "km": random.normal(9, 2, 400)})
    spec = FeatureSpec((*map(Categorical, NAMES), Numeric("km")), Label("late"), ("id",))
    former, now = (profile_columns({"train": part}, spec) for part in (table.slice(0, 200), table))
    return dataset_page(PageFacts(LONG, reference=LONG), now, validate(now, spec, former), former)


def gate(metrics: Sequence[str] = ("auc", "pr_auc", "log_loss", "brier", "base_rate", *MANY[:2])) -> str:
    """Return the page of a validation with many metrics and slices."""
    slices = []
    for slicing, name in (("overall", None), *((NAMES[1], value) for value in ("AA", LONG, HOSTILE)), (LONG, "B6")):
        one = slice_of(0.70321, 0.8, slicing=slicing, name=name, spread=0.01234, examples=123_456, invalid=3)
        found = MetricEstimate(-0.012345, -0.023456, 0.001234)
        slices.append(
            replace(
                one,
                candidate={metric: MetricEstimate(0.703214, 0.69, 0.71, error=1e-4) for metric in metrics},
                champion={metric: MetricEstimate(0.703214) for metric in metrics},
                change=dict.fromkeys(metrics, found),
            )
        )
    gates = Gates((Threshold("auc", gain_at_least=-0.01, slices=("all",)),), same_schema=False)
    return validation_page(validation_of(facts_of(*slices), gates, name="flights-of-all-airports"))


def fleet() -> str:
    """Return the page of a run with failures, drift, costs and estimates."""
    found = fleet_records()
    names = (*NAMES, *(f"customers_{number:03}_response_next_month" for number in range(12)))
    frame = pd.DataFrame({"model": names, "column": "x", "coefficient": 1.0})
    records = replace(
        found,
        plan=replace(
            found.plan,
            steps=(Step("a_campaign_of_spring", 0, dict.fromkeys(names, "a")),),
            shares=tuple(Share(row, 123_456, (2,)) for row in range(3)),
        ),
        fleet=fleet_from_coefficients(frame),
        microbatches=[{"number": number, "state": "done"} for number in range(3)],
        attempts=[FIRST | TIMES | {"microbatch": number, "model_seconds": ""} for number in range(3)],
        errors=[{"model": name, "stage": "score", "message": f"{name}: {LONG}"} for name in NAMES],
        manifests={number: {"failed": []} for number in range(3)},
    )
    now = {name: ranked([100 + 9 * place, 200, 700 - 9 * place], 1_000) for place, name in enumerate(names)}
    former = {name: ranked([500, 250, 250], 1_000) for name in names}
    return fleet_page(report_of(records, now, ("last week", former), price_per_core_hour=3.6))


def pipeline() -> str:
    """Return the page of a date that has stopped at its gate."""
    former, failed = date("2026-01-10", "1"), date("2026-01-17", "2", drift=0.61, failed=f"auc in {LONG} is 0.5")
    facts = {
        "convert": {"rows": {"train": 1_000, "test": 234}, "drift": {}, "warnings": [f"{LONG} has drifted"]},
        "evaluate": {"slices": 9, "champion": "1", **failed.stages["evaluate"].facts},
    }
    shown = {name: replace(one, facts={**one.facts, **facts.get(name, {})}) for name, one in failed.stages.items()}
    failed = replace(failed, name=NAMES[1], stages=shown)
    stages = [Stage(name, f"what {name} promises", lambda *_: {}) for name in (*failed.stages, "notify")]
    return pipeline_page(failed, stages, former, Path("/out/2026-01-17"))


def history() -> str:
    """Return the page of all dates of a pipeline."""
    dates = [date(f"2026-01-{day:02}", str(day), drift=0.1 * day) for day in range(1, 7)]
    return history_page([*dates, PipelineRecord("churn", "2026-01-24", {})])


def experiment() -> str:
    """Return the page of an experiment with a course."""
    variants = ("control", NAMES[1], LONG, HOSTILE)
    definition = Experiment(NAMES[1], dict.fromkeys(variants, 25))
    looks = {
        f"2026-02-0{day}": analyse_experiment(
            definition,
            [Arm.of_counts(name, 1_000 * day, (100 + 9 * place) * day) for place, name in enumerate(variants)],
            planned_units=20_000,
        )
        for day in (1, 2, 3)
    }
    return experiment_page(looks["2026-02-03"], course=looks)


def watching(metrics: Sequence[str] = ("auc",)) -> str:
    """Return the page of a watched model with alarms."""
    starts = [START + timedelta(days=7 * number) for number in range(5)]
    windows = [
        WindowDrift(start, tuple(replace(one, column=f"{one.column} {LONG}") for one in week(500, shift=0.4 * at)))
        for at, start in enumerate(starts)
    ]
    values = dict.fromkeys(metrics, MetricEstimate(0.7, 0.68, 0.72))
    live = [LiveWindow(start, 1_000, 900, values) for start in starts]
    return watch_page(windows, live, title=NAMES[1])


def every_page() -> Mapping[str, str]:
    """Return the pages by their kind, but that of a training."""
    return {make.__name__: make() for make in (dataset, gate, fleet, pipeline, history, experiment, watching)}
