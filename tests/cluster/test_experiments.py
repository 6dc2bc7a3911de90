"""E1, E2, E6: assignment in Spark is that of Python; exposures, actions in a window, and shadows, on planted cases."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.score import score_fleet
from mirrorspark.lifecycle.experiments.analysis import Arm, analyse_experiment, arms_of_results
from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.units.assignment import assign, assign_array, assign_units
from mirrorspark.lifecycle.experiments.units.exposed import exposed_scores
from mirrorspark.lifecycle.experiments.units.exposures import (
    ACTION_COLUMNS,
    EXPOSURE_COLUMNS,
    attribute_actions,
    exposure,
    exposure_faults,
    first_exposures,
    log_exposures,
    switched_units,
    variant_results,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.timeout(300)

NOON = datetime.datetime(2026, 3, 1, 12)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
TICK = datetime.timedelta(microseconds=1)
RANKER = Experiment("ranker", {"control": 1, "deep": 1})
MANY_RANGES = (
    Experiment("many", {"a": 1, "b": 1}, holdout=0.05, layer="home", part=(0.2, 0.9))
    .reweighted({"a": 3, "b": 2, "c": 2})
    .reweighted({"a": 1, "c": 1, "d": 5, "b": 2})
)


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(RANKER, id="two-variants", marks=pytest.mark.full), pytest.param(MANY_RANGES, id="many-ranges")],
)
def test_spark_gives_100_000_units_the_variants_that_python_gives_them(
    spark: "SparkSession", experiment: Experiment
) -> None:
    odd = ["", " ", "ä", "a\u0308", "€😀", "line\nbreak", "NULL", "user:1", "-1", None, None]
    texts = [*(f"user-{number}" for number in range(60_000)), *(f"ключ {number} 漢" for number in range(40_000)), *odd]
    frame = spark.createDataFrame(pa.table({"user": texts, "row": range(len(texts))}))

    rows = assign_units(frame, experiment, unit="user").orderBy("row").toArrow()

    expected = [None if text is None else assign(text, experiment) for text in texts]
    assert rows["variant"].to_pylist() == expected
    assert assign_array(pa.array(texts), experiment).to_pylist() == expected
    names = set(experiment.variants) | ({None, "holdout"} if experiment is MANY_RANGES else {None})
    assert set(expected) == names


def test_integers_are_the_units_that_their_texts_are_in_spark(spark: "SparkSession") -> None:
    frame = spark.range(-500, 1_500).selectExpr("id", "cast(id as string) as text", "cast(id as smallint) as small")
    found = assign_units(frame, MANY_RANGES, unit="id", column="by_id")
    found = assign_units(found, MANY_RANGES, unit="text", column="by_text")
    rows = assign_units(found, MANY_RANGES, unit="small", column="by_small").collect()
    assert all(row.by_id == row.by_text == row.by_small == assign(row.id, MANY_RANGES) for row in rows)
    assert len({row.by_id for row in rows}) == 6


def test_assignment_is_an_expression_that_hashes_each_unit_once_and_calls_no_python(spark: "SparkSession") -> None:
    found = assign_units(spark.range(10), MANY_RANGES, unit="id")
    plan = found._jdf.queryExecution().executedPlan().toString()
    assert "Python" not in plan
    assert plan.count("sha2(") == 3  # holdout, layer and variant


@pytest.mark.parametrize(
    ("unit", "column", "message"),
    [
        ("user", "variant", r"no column 'user' of units; the table has \['id', 'half'\]"),
        ("ID", "variant", r"no column 'ID' of units; .* \(did you mean 'id'\? Upper and lower case count\)"),
        ("half", "variant", "column 'half' of units has the type double"),
        ("id", "half", "has a column 'half' already"),
    ],
)
def test_a_table_that_cannot_be_assigned_is_refused(
    spark: "SparkSession", unit: str, column: str, message: str
) -> None:
    frame = spark.range(1).selectExpr("id", "id / 2 as half")
    with pytest.raises(ExperimentError, match=message):
        assign_units(frame, RANKER, unit=unit, column=column)


def test_exposures_are_logged_with_their_variant_weight_and_version(spark: "SparkSession") -> None:
    frame = spark.createDataFrame(
        [(unit, NOON, "ranker/3") for unit in [*range(200), 7, None]],
        "user long, shown timestamp, model_version string",
    )
    log = log_exposures(frame, MANY_RANGES, unit="user", time="shown", model_version="model_version")
    assert {field.name: field.dataType.typeName() for field in log.schema} == EXPOSURE_COLUMNS
    rows = log.collect()
    units = [unit for unit in [*range(200), 7] if assign(unit, MANY_RANGES) is not None]
    assert sorted(row.unit for row in rows) == sorted(map(str, units))
    assert all(row.variant == assign(row.unit, MANY_RANGES) for row in rows)
    assert all(row.weight == MANY_RANGES.shares.get(row.variant) for row in rows)
    assert {(row.experiment, row.model_version, row.time) for row in rows} == {("many", "ranker/3", NOON)}
    # The same showing is the same event, in a repeated job and in a table that has it twice.
    assert len({row.event_id for row in rows}) == len(set(units))
    assert {row.event_id for row in log.collect()} == {row.event_id for row in rows}
    # A server writes the same event (row.time is in the zone of this process).
    for row in rows[:5]:
        event = exposure(row.unit, MANY_RANGES, row.variant, row.model_version, row.time.astimezone())
        assert (event["event_id"], event["weight"]) == (row.event_id, row.weight)


def exposure_log(spark: "SparkSession") -> "DataFrame":
    def event(event_id: str | None, unit: str | None, variant: str | None, time: datetime.datetime | None) -> Any:
        return (event_id, unit, "ranker", variant, 0.5, f"{variant}/1", time)

    rows = [
        event("e3", "anna", "deep", NOON + HOUR),  # her second exposure, earlier in the table
        event("e1", "anna", "deep", NOON),
        event("e1", "anna", "deep", NOON),  # doubled
        event("e5", "ben", "control", NOON),  # at one time: the lowest event id is first
        event("e4", "ben", "control", NOON),
        event("e6", "carl", "control", NOON),
        event("e7", "carl", "deep", NOON + DAY),  # switched
        event("e8", "dora", "holdout", NOON),
        event("e9", "emil", "control", NOON + 5 * DAY),
        event("e10", None, "control", NOON),
        event("e11", "fritz", None, NOON),
        event("e12", "gerda", "control", None),
        event(None, "hans", "control", NOON),
        ("o1", "anna", "other", "control", 0.5, None, NOON),  # another experiment does not make a switch
    ]
    return frame_of(spark, rows, EXPOSURE_COLUMNS)


def test_the_first_exposure_of_each_unit_is_kept(spark: "SparkSession") -> None:
    first = {(row.experiment, row.unit): row for row in first_exposures(exposure_log(spark)).collect()}
    assert {key: (row.variant, row.time, row.exposures) for key, row in first.items()} == {
        ("ranker", "anna"): ("deep", NOON, 2),
        ("ranker", "ben"): ("control", NOON, 2),
        ("ranker", "emil"): ("control", NOON + 5 * DAY, 1),
        ("other", "anna"): ("control", NOON, 1),
    }
    assert first["ranker", "anna"].model_version == "deep/1"
    assert first["ranker", "anna"].weight == 0.5


def test_what_is_left_out_is_reported(spark: "SparkSession") -> None:
    log = exposure_log(spark)
    switched = [(row.experiment, row.unit, row.variants, row.exposures) for row in switched_units(log).collect()]
    assert switched == [("ranker", "carl", ["control", "deep"], 2)]
    faults = {row.experiment: row.asDict() for row in exposure_faults(log).collect()}
    assert faults["ranker"] == {
        "experiment": "ranker",
        "events": 13,
        "incomplete": 4,
        "doubled": 1,
        "units": 5,
        "switched": 1,
        "held_out": 1,
    }
    assert faults["other"]["units"] == faults["other"]["events"] == 1


def actions(spark: "SparkSession") -> "DataFrame":
    rows = [
        ("a1", "anna", 1.0, NOON),  # at the exposure: counts
        ("a2", "anna", 2.0, NOON + DAY - TICK),  # the last moment of the window
        ("a2", "anna", 2.0, NOON + DAY - TICK),  # doubled
        ("a3", "anna", 4.0, NOON + DAY),  # the end of the window: does not count
        ("a4", "anna", 8.0, NOON - TICK),  # before: a covariate
        ("a5", "anna", 16.0, NOON - 2 * DAY),  # the first moment of the time before
        ("a6", "anna", 32.0, NOON - 2 * DAY - TICK),  # too early even for that
        ("a7", "ben", None, NOON + HOUR),  # it counts, without a value
        ("a8", "emil", 64.0, NOON + 5 * DAY + HOUR),
        ("a9", "nobody", 128.0, NOON + HOUR),
        ("a10", None, 256.0, NOON + HOUR),
        ("a11", "ben", 512.0, None),
        (None, "ben", 1024.0, NOON + HOUR),
    ]
    return frame_of(spark, rows, ACTION_COLUMNS)


def test_actions_are_attributed_from_the_exposure_to_the_end_of_the_window(spark: "SparkSession") -> None:
    first = first_exposures(exposure_log(spark)).where("experiment = 'ranker'")
    found = attribute_actions(first, actions(spark), window=DAY, before=2 * DAY)
    assert {row.unit: (row.actions, row.converted, row.value, row.value_before) for row in found.collect()} == {
        "anna": (2, 1, 3.0, 24.0),
        "ben": (1, 1, 0.0, 0.0),
        "emil": (1, 1, 64.0, 0.0),
    }
    assert "value_before" not in attribute_actions(first, actions(spark), window=DAY).columns


def test_units_whose_window_is_not_over_are_left_out(spark: "SparkSession") -> None:
    first = first_exposures(exposure_log(spark)).where("experiment = 'ranker'")
    for until, units in (
        (NOON + DAY, {"anna", "ben"}),
        (NOON + DAY - TICK, set()),
        (NOON + 6 * DAY, {"anna", "ben", "emil"}),
    ):
        found = attribute_actions(first, actions(spark), window=DAY, until=until).collect()
        assert {row.unit for row in found} == units


def test_results_have_the_moments_that_an_analysis_needs(spark: "SparkSession") -> None:
    rows = [("ranker", "control", value, before) for value, before in ((0.0, 1.0), (2.0, 2.0), (4.0, 6.0))]
    rows += [("ranker", "deep", 5.0, 1.0), ("ranker", "deep", 0.0, 0.0)]
    frame = spark.createDataFrame(rows, "experiment string, variant string, value double, value_before double")
    control, deep = variant_results(frame).collect()
    assert control.asDict() == {
        "experiment": "ranker",
        "variant": "control",
        "units": 3,
        "conversions": 2,
        "total": 6.0,
        "mean": 2.0,
        "variance": 4.0,
        "before_mean": 3.0,
        "before_variance": 7.0,
        "covariance": 5.0,
    }
    assert (deep.variant, deep.units, deep.conversions, deep.mean, deep.variance) == ("deep", 2, 1, 2.5, 12.5)


def scored(spark: "SparkSession") -> "DataFrame":
    scores = ("float(id) as control_score", "float(1000 + id) as deep_score", "float(-id - 1) as next_score")
    return spark.range(300).selectExpr("id as user", "id % 5 as page", *scores, "'secret' as notes")


MODELS = {"control": "control_score", "deep": "deep_score", "next": "next_score"}


def test_each_unit_is_exposed_to_the_score_of_its_variant_and_to_no_shadow(spark: "SparkSession") -> None:
    served = exposed_scores(scored(spark), RANKER, unit="user", keys=["page"], scores=MODELS)
    assert served.exposed.columns == ["user", "page", "variant", "scored_by", "score"]
    rows = served.exposed.collect()
    assert len(rows) == 300
    for row in rows:
        assert row.variant == row.scored_by == assign(row.user, RANKER)
        assert row.score == (row.user if row.variant == "control" else 1000 + row.user)
    # The plan of what is served does not even read the shadow's scores.
    plan = served.exposed._jdf.queryExecution().optimizedPlan().toString()
    assert "next_score" not in plan
    assert "notes" not in plan


def test_shadows_are_in_a_table_of_their_own(spark: "SparkSession") -> None:
    served = exposed_scores(scored(spark), RANKER, unit="user", keys=["page"], scores=MODELS)
    names = ["shadow_control", "shadow_deep", "shadow_next"]
    assert served.shadows.columns == ["user", "page", "variant", "scored_by", *names]
    for row in served.shadows.collect():
        assert row.shadow_next == -row.user - 1
        assert (row.shadow_control, row.shadow_deep) == (
            (None, 1000 + row.user) if row.variant == "control" else (row.user, None)
        )


def test_units_outside_the_experiment_get_the_score_of_the_default(spark: "SparkSession") -> None:
    experiment = Experiment("half", {"control": 1, "deep": 1}, holdout=0.3, layer="home", part=(0.0, 0.5))
    by_default = {}
    for default in (None, "next"):
        served = exposed_scores(scored(spark), experiment, unit="user", scores=MODELS, default=default)
        by_default[default] = {row.user: row for row in served.exposed.collect()}
    outside = [user for user in range(300) if assign(user, experiment) in (None, "holdout")]
    assert {assign(user, experiment) for user in outside} == {None, "holdout"}
    for user in outside:
        assert by_default[None][user].score == user
        assert by_default[None][user].scored_by == "control"
        assert by_default["next"][user].score == -user - 1
        assert by_default["next"][user].variant == assign(user, experiment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"control": "control_score"}}, r"no scores for the variants \['deep'\]"),
        ({"scores": MODELS | {"more": "more_score"}}, "no column 'more_score'"),
        ({"unit": "usr"}, r"no column 'usr' among the scores; .* \(did you mean 'user'\?\)"),
        ({"default": "contrl"}, r"none of the models .* \(did you mean 'control'\?\)"),
        ({"default": "other"}, "default 'other' is none of the models"),
        ({"keys": ["deep_score"]}, "'deep_score' is a score, which keys would show to all"),
        ({"keys": ["variant"]}, "no column 'variant'"),
    ],
)
def test_scores_that_cannot_be_exposed_are_refused(
    spark: "SparkSession", changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"unit": "user", "scores": MODELS} | changes
    with pytest.raises(ExperimentError, match=message):
        exposed_scores(scored(spark), RANKER, **arguments)


def test_models_that_a_fleet_scores_in_one_pass_are_exposed_by_the_experiment(
    spark: "SparkSession", tmp_path: Path
) -> None:
    names = ["control", "deep", "next"]
    terms = pd.DataFrame({"model": names, "column": "amount", "coefficient": [1.0, 10.0, 100.0]})
    fleet = fleet_from_coefficients(terms, pd.DataFrame({"model": names}))
    rows = spark.range(200).selectExpr("id as user", "double(id) as amount")
    score_fleet(rows, fleet, tmp_path / "scores", keys="user", outputs="score", spark=spark)
    wide = spark.read.parquet(str(tmp_path / "scores"))

    served = exposed_scores(wide, RANKER, unit="user", scores={name: f"{name}_score" for name in names})

    found = {row.user: row.score for row in served.exposed.collect()}
    assert found == {user: user * (1 if assign(user, RANKER) == "control" else 10) for user in range(200)}
    assert {row.shadow_next for row in served.shadows.collect()} == {100.0 * user for user in range(200)}


def test_an_experiment_is_analysed_from_its_log_and_its_actions(spark: "SparkSession") -> None:
    """Every fourth unit of the control converts, every second one of the other variant."""
    rows = spark.range(4_000).selectExpr("id as user", "timestamp'2026-03-01 12:00:00' as shown")
    log = log_exposures(rows, RANKER, unit="user", time="shown")
    acted = assign_units(rows, RANKER, unit="user").where("user % if(variant = 'deep', 2, 4) = 0")
    actions = acted.selectExpr(
        "string(user) as event_id", "string(user) as unit", "2.5D as value", "shown + interval 1 hour as time"
    )
    units = attribute_actions(first_exposures(log), actions, window=DAY, before=DAY)

    rates = arms_of_results(variant_results(units.drop("value_before"), metric="converted"), RANKER, is_proportion=True)
    analysis = analyse_experiment(RANKER, rates, planned_units=4_000)

    variants = [assign(user, RANKER) for user in range(4_000)]
    deep = [user % 2 == 0 for user, variant in enumerate(variants) if variant == "deep"]
    control = [user % 4 == 0 for user, variant in enumerate(variants) if variant == "control"]
    expected = [Arm.of_counts("control", len(control), sum(control)), Arm.of_counts("deep", len(deep), sum(deep))]
    by_counts = analyse_experiment(RANKER, expected, planned_units=4_000)
    assert vars(analysis.effects[0]) == pytest.approx(vars(by_counts.effects[0]))
    assert analysis.sample_ratio == by_counts.sample_ratio
    assert analysis.conclusion.startswith("deep is better than control: converted differs by +2")
    amounts = arms_of_results(variant_results(units, metric="value"), RANKER)
    assert [arm.moments.before_mean for arm in amounts] == [0.0, 0.0]
    assert amounts[1].moments.mean == pytest.approx(2.5 * sum(deep) / len(deep))


def test_logs_without_a_column_or_with_another_type_are_refused(spark: "SparkSession") -> None:
    log = exposure_log(spark)
    with pytest.raises(ExperimentError, match="the exposure log lacks column 'unit'"):
        first_exposures(log.drop("unit"))
    with pytest.raises(ExperimentError, match="column 'time' of the exposure log has the type string; cast it"):
        switched_units(log.withColumn("time", log["time"].cast("string")))
    first = first_exposures(log)
    with pytest.raises(ExperimentError, match="window is 0:00:00; use a time above 0"):
        attribute_actions(first, actions(spark), window=datetime.timedelta(0))
    with pytest.raises(ExperimentError, match="table of actions lacks column 'value'"):
        attribute_actions(first, actions(spark).drop("value"), window=DAY)
    with pytest.raises(ExperimentError, match="no column 'revenue' of the metric"):
        variant_results(first, metric="revenue")


def frame_of(spark: "SparkSession", rows: Sequence[Any], columns: dict[str, str]) -> "DataFrame":
    return spark.createDataFrame(rows, ", ".join(f"{name} {type_}" for name, type_ in columns.items()))
