"""The study of a sweep: its life beyond the command, and its use. Optuna is the real one."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib.pyplot as plt
import optuna
import pytest
from optuna.trial import TrialState

from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.run_records.run_state import hold_lock
from mirrorspark.training.sweep.figures import figures
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import decode_values, read_space
from mirrorspark.training.sweep.study import (
    FEWEST_FOR_IMPORTANCE,
    JOURNAL_FILE,
    STUDY_FILE,
    best_record,
    count_ended,
    importances,
    open_study,
    records,
    requeue_interrupted,
)

Open = Callable[..., AbstractContextManager[optuna.Study]]
FLAGS = ("learning_rate=log:1e-4:1e-1", "model.hidden_units=choice:[64],[128,64]", "epochs=uniform:1:9")


@pytest.fixture
def opened(new_config: Callable[..., RunConfig]) -> Open:
    """Return a function that opens a study, in memory unless a file is given."""

    def open_it(
        *flags: str, folder: Path | None = None, seed: int = 1, monitor: str = "val_auc", **how: Any
    ) -> AbstractContextManager[optuna.Study]:
        config = new_config(seed=seed, monitor=monitor)
        options = SweepOptions(config, read_space(flags or FLAGS, None, config), **how)
        opening = open_study(folder, options)
        suggest.space = options.space  # type: ignore[attr-defined]
        return opening

    return open_it


def suggest(study: optuna.Study) -> optuna.Trial:
    """Begin a trial."""
    return study.ask(suggest.space.distributions)  # type: ignore[attr-defined]


def run(study: optuna.Study, *history: float, state: TrialState = TrialState.COMPLETE) -> dict[str, Any]:
    """Run one trial through its epochs; return its parameters."""
    trial = suggest(study)
    for epoch, value in enumerate(history, start=1):
        trial.report(value, epoch)
    study.tell(trial, max(history) if state == TrialState.COMPLETE else None, state)
    return trial.params


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_fixes_what_is_tried(opened: Open, sampler: str) -> None:
    tried = []
    for seed in (1, 1, 2):
        with opened(sampler=sampler, seed=seed) as study:
            tried.append([run(study, 0.5) for _ in range(3)])
    assert tried[0] == tried[1] != tried[2]


def test_a_trial_has_a_value_for_every_field_and_is_worth_its_best_epoch(opened: Open) -> None:
    with opened() as study:
        run(study, 0.5, 0.8, 0.7)
        (record,) = records(study)
    assert 1e-4 <= record.values["learning_rate"] <= 1e-1
    assert record.values["model.hidden_units"] in ([64], [128, 64])
    assert record.values["epochs"] in range(1, 10)
    assert (record.state, record.best, record.epochs, record.history) == ("complete", 0.8, 3, {1: 0.5, 2: 0.8, 3: 0.7})


def test_the_best_is_one_that_was_trained_to_its_end(opened: Open) -> None:
    with opened() as study:
        assert best_record(study) is None
        for value, state in ((0.7, "COMPLETE"), (0.8, "COMPLETE"), (0.9, "PRUNED"), (0.95, "FAIL")):
            run(study, value, state=TrialState[state])
        best = best_record(study)
    assert best is not None
    assert best.number == 1


@pytest.mark.parametrize(("pruner", "is_over"), [("median", True), ("none", False)])
def test_a_trial_below_the_median_of_the_others_is_to_end(opened: Open, pruner: str, is_over: bool) -> None:
    with opened(pruner=pruner) as study:
        for value in (0.6, 0.7, 0.8, 0.7, 0.7):
            run(study, value, value)
        for value, ends in ((0.5, is_over), (0.9, False)):
            trial = suggest(study)
            trial.report(value, 1)
            assert bool(trial.should_prune()) is ends


def test_hyperband_ends_most_trials_early(opened: Open) -> None:
    with opened(pruner="hyperband", seed=3) as study:
        ended = 0
        for number in range(12):
            trial = suggest(study)
            for epoch in range(1, 10):
                trial.report(0.5 - number / 100, epoch)
                if trial.should_prune():
                    ended += 1
                    study.tell(trial, state=TrialState.PRUNED)
                    break
            else:
                study.tell(trial, 0.5)
    assert 0 < ended < 12


def test_a_journal_can_be_read_again_after_its_disk_was_full(opened: Open, tmp_path: Path) -> None:
    """L9: within the command, and in the next one."""
    for _ in range(2):
        with opened(folder=tmp_path) as study:
            run(study, 0.5)
            with (tmp_path / JOURNAL_FILE).open("ab") as journal:
                journal.write(b'{"op_code":5,"worker_id":"a')
            run(study, 0.6)
            with (tmp_path / JOURNAL_FILE).open("ab") as journal:
                journal.write(b'{"op_code"')
    with opened(folder=tmp_path) as study:
        assert [record.best for record in records(study)] == [0.5, 0.6] * 2


@pytest.mark.parametrize(("has_locks", "file"), [(True, STUDY_FILE), (False, JOURNAL_FILE)])
def test_a_killed_sweep_goes_on_with_its_trials(opened: Open, tmp_path: Path, has_locks: bool, file: str) -> None:
    """L9: Optuna tries the trial again under another number; a sweep knows it by its first one."""
    with hold_lock(tmp_path) if has_locks else contextlib.nullcontext(), opened(folder=tmp_path) as study:
        run(study, 0.5)
        killed = suggest(study)
        killed.report(0.7, 1)
        for name, value in (("run_id", "run-1"), ("run_folder", "/runs/1"), ("seconds", 2.5)):
            killed.set_user_attr(name, value)
    # The driver has ended without recording the trial's outcome. The next one sees no locks, but the same file.
    with opened(folder=tmp_path) as study:
        assert {path.name for path in tmp_path.glob("study.*")} == {file}
        assert [(record.number, record.state) for record in records(study)] == [(0, "complete"), (1, "running")]
        assert count_ended(study) == 1
        requeue_interrupted(study)
        assert [(record.number, record.state) for record in records(study)] == [(0, "complete"), (1, "running")]
        trial = suggest(study)
        assert trial.params == killed.params
        trial.report(0.8, 2)
        study.tell(trial, 0.8)
        record = records(study)[1]
        assert (record.number, record.state, record.history) == (1, "complete", {1: 0.7, 2: 0.8})
        assert (record.run_id, record.run_folder, record.seconds) == ("run-1", "/runs/1", 2.5)
        assert best_record(study) == record
        assert run(study, 0.5) != killed.params


def test_a_trial_that_was_killed_before_it_had_its_values_gets_them(opened: Open, tmp_path: Path) -> None:
    with opened(folder=tmp_path) as study:
        study.ask().suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    with opened(folder=tmp_path) as study:
        requeue_interrupted(study)
        assert set(run(study, 0.5)) == {"learning_rate", "model.hidden_units", "epochs"}
        assert [record.number for record in records(study)] == [0]


def test_a_kill_while_trials_are_queued_again_neither_loses_nor_doubles_one(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as study:
        killed = [suggest(study).params for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                requeue_interrupted(study)
        requeue_interrupted(study)
        assert [record.number for record in records(study)] == [0, 1]
        assert [run(study, 0.5) for _ in range(2)] == killed
        assert [record.number for record in records(study)] == [0, 1]


def test_a_command_that_goes_on_draws_anew(opened: Open, tmp_path: Path) -> None:
    tried = []
    for _ in range(3):
        with opened(folder=tmp_path, sampler="random") as study:
            tried.append(run(study, 0.5)["learning_rate"])
    assert len(set(tried)) == 3


def test_a_grid_tries_every_point_once(opened: Open, tmp_path: Path) -> None:
    how: dict[str, Any] = {"folder": tmp_path, "sampler": "grid"}
    tried: list[dict[str, Any]] = []
    for _ in range(2):  # the second command goes on with what the first has left
        with opened("epochs=uniform:1:3", "model.hidden_units=choice:[64],[128,64]", **how) as study:
            tried += [decode_values(run(study, 0.5)) for _ in range(3)]
    points = [{"epochs": epochs, "model.hidden_units": units} for epochs in (1, 2, 3) for units in ([64], [128, 64])]
    assert sorted(tried, key=str) == sorted(points, key=str)
    assert tried != points


def filled(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial = suggest(study)
        study.tell(trial, trial.params["learning_rate"])


def test_the_field_that_decides_matters_most(opened: Open) -> None:
    with opened("learning_rate=uniform:0.1:0.9", "model.dropout=uniform:0:0.9", sampler="random", seed=5) as study:
        filled(study, FEWEST_FOR_IMPORTANCE - 1)
        assert importances(study) == {}
        filled(study, 20)
        found = importances(study)
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        (0, set()),
        (1, {"optimization_history"}),
        (2, {"optimization_history", "parallel_coordinate"}),
        (FEWEST_FOR_IMPORTANCE, {"optimization_history", "parallel_coordinate", "param_importances"}),
    ],
)
def test_figures_are_drawn_of_as_many_trials_as_they_need(
    opened: Open, tmp_path: Path, trials: int, names: set[str]
) -> None:
    before = dict(plt.rcParams)
    with opened(*FLAGS, monitor="val_log_loss") as study:
        filled(study, trials)
        found = figures(study, "val_log_loss")
    assert set(found) == names
    for name, figure in found.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert "val_log_loss" in {label for axes in figure.axes for label in words_of(axes)}
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


def words_of(axes: Any) -> list[str]:
    legend = axes.get_legend()
    return [axes.get_ylabel(), *([text.get_text() for text in legend.get_texts()] if legend else [])]


def test_the_line_of_the_worst_trial_is_no_white_on_white(opened: Open) -> None:
    with opened() as study:
        filled(study, 3)
        (lines,) = figures(study, "val_auc")["parallel_coordinate"].axes[0].collections
    lines.update_scalarmappable()
    assert max(colour[:3].min() for colour in lines.get_colors()) < 0.5
