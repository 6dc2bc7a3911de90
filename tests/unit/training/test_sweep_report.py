"""Report of a sweep: a table, the best values as a recipe and as a command that trains with them."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorspark.training.configuration.command_line import parse
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.configuration.recipe import RECIPE_FILE
from mirrorspark.training.sweep.report import SweepSummary, as_yaml, command, rank_trials, recipe_patch, trial_table
from mirrorspark.training.sweep.study import TrialRecord


def record(number: int, state: Any = "complete", best: float | None = 0.5, **more: Any) -> TrialRecord:
    values = {"learning_rate": 0.001 * (number + 1), "model.hidden_units": [64]}
    return TrialRecord(number, state, values, {1: best} if best is not None else {}, best, 90.0, **more)


TRIALS = [
    record(0, best=0.7),
    record(1, "failed", None, error="rank 0: ValueError: too deep"),
    record(2, best=0.8),
    record(3, "pruned", 0.9),
]


def test_the_best_comes_first_and_what_was_not_trained_to_its_end_comes_last() -> None:
    assert [trial.number for trial in rank_trials(TRIALS, "max")] == [2, 0, 3, 1]
    assert [trial.number for trial in rank_trials(TRIALS, "min")] == [0, 2, 3, 1]


def test_the_table_has_a_row_per_trial_and_only_the_knobs_that_differ() -> None:
    header, *rows = trial_table(TRIALS, "max", "val_auc")
    assert header.split() == ["rank", "trial", "state", "val_auc", "epochs", "duration", "learning_rate"]
    assert rows[0].split() == ["1", "2", "complete", "0.8000", "1", "1m", "30s", "0.003"]
    assert rows[3].split() == ["1", "failed", "-", "0", "1m", "30s", "0.002"]
    assert rows[-1] == "trial 1: rank 0: ValueError: too deep"


def test_the_one_trial_of_a_table_shows_all_its_knobs() -> None:
    header, row = trial_table(TRIALS[:1], "max", "val_auc")
    assert "model.hidden_units" in header
    assert "[64]" in row
    assert trial_table([], "max", "val_auc") == ["no trial has begun"]


def test_the_patch_makes_the_recipe_train_with_the_best_values(
    recipe: Path, new_config: Callable[..., RunConfig]
) -> None:
    model = {"name": "multi_field", "hidden_units": [64, 32], "dropout": 0.2}
    best = new_config(learning_rate=0.003, model=model)
    values = {"learning_rate": 0.003, "model.hidden_units": [64, 32]}
    patch = yaml.safe_load(as_yaml(recipe_patch(best, values)))
    assert patch == {"learning_rate": 0.003, "model": model}
    knobs = yaml.safe_load((recipe / RECIPE_FILE).read_text())
    (recipe / RECIPE_FILE).write_text(yaml.safe_dump(knobs | patch))
    config = parse(["--recipe", str(recipe)])
    assert (config.learning_rate, config.model) == (0.003, model)


def test_the_command_trains_with_the_best_values(recipe: Path) -> None:
    values = {
        "learning_rate": 0.0031,
        "clip_norm": None,
        "optimizer": "sgd",
        "xla": True,
        "model.hidden_units": [64, 32],
        "model.dropout": 0.25,
        "workers": 2,
    }
    program, name, *arguments = shlex.split(command(["--recipe", str(recipe), "--learning-rate", "0.1"], values))
    assert (program, name) == ("mirrorspark", "train")
    config = parse(arguments)
    assert (config.learning_rate, config.clip_norm, config.optimizer, config.xla) == (0.0031, None, "sgd", True)
    assert (config.workers, config.model["hidden_units"], config.model["dropout"]) == (2, [64, 32], 0.25)
    assert "--no-xla" in command([], {"xla": False})


def test_the_command_holds_no_password() -> None:
    assert "secret" not in command(["--tracking-uri", "http://me:secret@host:5000"], {})


@pytest.fixture
def summary() -> SweepSummary:
    return SweepSummary(
        status="finished",
        study="rides-1",
        folder="/out/sweeps/rides-1",
        monitor="val_auc",
        mode="max",
        wanted=4,
        trials=TRIALS,
        best=TRIALS[2],
        importances={"learning_rate": 0.75, "model.dropout": 0.25},
        command="mirrorspark train --learning-rate=0.003",
        delivered={"registered_model": "rides", "model_version": "4"},
    )


def test_the_text_names_the_best_the_model_and_the_command(summary: SweepSummary) -> None:
    text = summary.as_text()
    assert "best: trial 2, val_auc 0.8000 with learning_rate=0.003, model.hidden_units=[64]" in text
    assert "model: models:/rides/4" in text
    assert "again: mirrorspark train --learning-rate=0.003" in text
    assert "learning_rate  75%" in " ".join(text.split("\n")).replace("   ", "  ")


def test_the_text_shows_what_the_best_trial_s_model_came_to(summary: SweepSummary) -> None:
    delivered = {
        **summary.delivered,
        "metrics": {"validation": {"auc": 0.8}, "test": {"auc": 0.75}},
        "baseline": {"name": "hist_gradient_boosting", "metrics": {"auc": 0.7}},
        "scored_table": "/runs/trial-2/scores.parquet",
    }
    lines = dataclasses.replace(summary, delivered=delivered).as_text().splitlines()
    place = lines.index("auc                 0.8000      0.7500                    0.7000")
    assert lines[place - 1].split() == ["validation", "test", "hist_gradient_boosting"]
    assert "scores: /runs/trial-2/scores.parquet" in lines


def test_the_text_holds_the_commands_that_send_mlflow_what_it_did_not_get(summary: SweepSummary) -> None:
    assert "send metrics" not in summary.as_text()
    delivered = {**summary.delivered, "replay": "replay the best trial's"}
    lines = dataclasses.replace(summary, replay="replay the sweep's", delivered=delivered).as_text().splitlines()
    assert [line for line in lines if "replay" in line] == [
        "send metrics: replay the sweep's",
        "send metrics: replay the best trial's",
    ]


def test_the_document_is_strict_json(summary: SweepSummary, tmp_path: Path) -> None:
    summary.save(tmp_path / "new" / "sweep.json")
    document = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert document["best"]["number"] == 2
    assert document["trials"][3]["history"] == {"1": 0.9}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sweep.json"]
