"""The study: what is tried next, what a pruner says, and what survives a killed sweep. Optuna is the real one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from training.config import ConfigError, RunConfig
from training.sweeping.space import SearchSpace
from training.sweeping.specs import read_space
from training.sweeping.study import FEWEST_FOR_IMPORTANCE, AnotherSweepError, StudySettings, SweepStudy, open_study

Open = Callable[..., AbstractContextManager[SweepStudy]]


@pytest.fixture
def space(new_config: Callable[..., RunConfig]) -> SearchSpace:
    flags = ["learning_rate=log:1e-4:1e-1", "model.hidden_units=choice:[64],[128,64]", "epochs=uniform:1:9"]
    return read_space(flags, None, new_config())


@pytest.fixture
def opened(space: SearchSpace) -> Open:
    """Return a function that opens a study, in memory unless a file is given."""

    def open_it(file: Path | None = None, **changes: Any) -> AbstractContextManager[SweepStudy]:
        settings: dict[str, Any] = {"name": "study", "identity": "abc", "space": space, "mode": "max", "trials": 9}
        return open_study(file, StudySettings(**{**settings, **changes}))

    return open_it


def run(study: SweepStudy, *history: float, state: Any = "complete", **how: Any) -> int:
    """Run one trial through its epochs; return its number."""
    number = study.begin().number
    for epoch, value in enumerate(history, start=1):
        study.report(number, epoch, value)
    study.end(number, state, seconds=1.0, **how)
    return number


def test_a_trial_has_a_value_for_every_knob_within_its_domain(opened: Open) -> None:
    with opened() as study:
        for _ in range(5):
            values = study.begin().values
            assert 1e-4 <= values["learning_rate"] <= 1e-1
            assert values["model.hidden_units"] in ([64], [128, 64])
            assert values["epochs"] in range(1, 10)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_fixes_what_is_tried(opened: Open, sampler: str) -> None:
    tried = []
    for seed in (1, 1, 2):
        with opened(sampler=sampler, seed=seed) as study:
            tried.append([study.begin().values for _ in range(3)])
    assert tried[0] == tried[1] != tried[2]


def test_a_trial_is_worth_its_best_epoch(opened: Open) -> None:
    with opened() as study:
        number = run(study, 0.5, 0.8, 0.7)
        record = study.record(number)
    assert (record.state, record.best, record.epochs, record.history) == ("complete", 0.8, 3, {1: 0.5, 2: 0.8, 3: 0.7})
    with opened(mode="min") as study:
        number = run(study, 0.5, 0.4, 0.7)
        assert study.record(number).best == 0.4


def test_the_best_is_one_that_was_trained_to_its_end(opened: Open) -> None:
    with opened() as study:
        assert study.best() is None
        good = run(study, 0.8)
        run(study, 0.7)
        run(study, 0.9, state="pruned")
        run(study, 0.95, state="failed", error="out of memory")
        best = study.best()
    assert best is not None
    assert best.number == good


def test_a_repeated_epoch_and_a_value_that_is_no_number_are_passed_over(opened: Open) -> None:
    with opened() as study:
        number = study.begin().number
        study.report(number, 1, 0.5)
        assert study.report(number, 1, 0.9) is False  # a restart repeats it
        assert study.report(number, 2, float("nan")) is False
        assert study.record(number).history == {1: 0.5}


def test_a_trial_below_the_median_of_the_others_is_to_end(opened: Open) -> None:
    with opened(pruner="median") as study:
        for value in (0.6, 0.7, 0.8, 0.7, 0.7):
            run(study, value, value)
        number = study.begin().number
        assert study.report(number, 1, 0.5) is True
        better = study.begin().number
        assert study.report(better, 1, 0.9) is False


def test_without_a_pruner_no_trial_is_to_end(opened: Open) -> None:
    with opened(pruner="none") as study:
        for value in (0.6, 0.7, 0.8, 0.7, 0.7):
            run(study, value, value)
        assert study.report(study.begin().number, 1, 0.1) is False


def test_hyperband_ends_most_trials_early(opened: Open) -> None:
    with opened(pruner="hyperband", epochs=9, seed=3) as study:
        ended = 0
        for trial in range(12):
            number = study.begin().number
            is_over = any(study.report(number, epoch, 0.5 - trial / 100) for epoch in range(1, 10))
            study.end(number, "pruned" if is_over else "complete", seconds=1.0)
            ended += is_over
    assert 0 < ended < 12


def test_a_trial_without_a_value_has_failed(opened: Open) -> None:
    with opened() as study:
        number = run(study)
        record = study.record(number)
    assert (record.state, record.error) == ("failed", "it ended without a value of the monitored metric")


def test_a_killed_sweep_goes_on_with_its_trials(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with opened(file) as study:
        first = run(study, 0.5)
        killed = study.begin()
        study.report(killed.number, 1, 0.7)
        study.note(killed.number, run_id="run-1", run_folder="/runs/1")
    # The driver is gone; nobody has told how the trial ended.
    with opened(file) as study:
        record = study.begin()
        assert (record.number, record.values, record.history) == (killed.number, killed.values, {1: 0.7})
        assert (record.run_id, record.run_folder) == ("run-1", "/runs/1")
        study.report(record.number, 2, 0.8)
        study.end(record.number, "complete", seconds=5.0)
        new = study.begin()
        assert new.number == killed.number + 1
        assert new.values not in (killed.values, study.record(first).values)
        assert [record.state for record in study.records()] == ["complete", "complete", "running"]
        assert study.record(killed.number).best == 0.8


def test_an_interrupted_trial_keeps_its_seconds(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with opened(file) as study:
        number = run(study, 0.5, state="running")
    with opened(file) as study:
        assert study.begin().number == number
        study.end(number, "complete", seconds=2.5)
        assert study.record(number).seconds == 3.5


def test_a_command_that_goes_on_draws_anew(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    tried = []
    for _ in range(3):
        with opened(file, sampler="random") as study:
            number = run(study, 0.5)
            tried.append(study.record(number).values["learning_rate"])
    assert len(set(tried)) == 3


def test_the_study_of_another_sweep_is_refused(opened: Open, tmp_path: Path) -> None:
    with opened(tmp_path / "study.db"):
        pass
    with (
        pytest.raises(AnotherSweepError, match=r"study 'study' in .* searches other values.* another --study"),
        opened(tmp_path / "study.db", identity="other"),
    ):
        pass


def test_a_grid_tries_every_point_once_and_then_no_more(
    opened: Open, new_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    space = read_space(["epochs=uniform:1:3", "model.hidden_units=choice:[64],[128,64]"], None, new_config())
    tried = []
    for _ in range(2):  # the second command goes on with what the first has left
        with opened(tmp_path / "study.db", space=space, sampler="grid", trials=50) as study:
            assert study.wanted == 6
            for _ in range(3):
                number = run(study, 0.5)
                tried.append(study.record(number).values)
    assert sorted(tried, key=str) == sorted(space.grid(), key=str)


def test_a_grid_larger_than_the_trials_is_tried_in_part(opened: Open, new_config: Callable[..., RunConfig]) -> None:
    space = read_space(["seed=uniform:1:1000"], None, new_config())
    with opened(space=space, sampler="grid", trials=4) as study:
        assert study.wanted == 4
        seeds = {study.begin().values["seed"] for _ in range(4)}
    assert len(seeds) == 4
    assert seeds != {1, 2, 3, 4}


def test_a_grid_without_end_is_refused(opened: Open) -> None:
    with pytest.raises(ConfigError, match="cannot try every value of"), opened(sampler="grid"):
        pass


def test_the_knob_that_decides_matters_most(opened: Open, new_config: Callable[..., RunConfig]) -> None:
    space = read_space(["learning_rate=uniform:0.1:0.9", "model.dropout=uniform:0:0.9"], None, new_config())
    with opened(space=space, sampler="random", seed=5) as study:
        for _ in range(FEWEST_FOR_IMPORTANCE - 1):
            record = study.begin()
            study.report(record.number, 1, record.values["learning_rate"])
            study.end(record.number, "complete", seconds=1.0)
        assert study.importances() == {}
        for _ in range(20):
            record = study.begin()
            study.report(record.number, 1, record.values["learning_rate"])
            study.end(record.number, "complete", seconds=1.0)
        importances = study.importances()
    assert next(iter(importances)) == "learning_rate"
    assert importances["learning_rate"] > 0.8
    assert sum(importances.values()) == pytest.approx(1)


def test_what_is_kept_of_the_sweep_is_there_for_the_next_command(opened: Open, tmp_path: Path) -> None:
    with opened(tmp_path / "study.db") as study:
        assert study.kept("label") is None
        study.keep("label", "rides-1")
    with opened(tmp_path / "study.db") as study:
        assert study.kept("label") == "rides-1"
