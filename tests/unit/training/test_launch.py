"""T2, T6: how a run of somebody's own function is set up, and what becomes of its ranks' answers."""

import math
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import yaml

from mirrorspark.training.configuration.fields import ConfigError
from mirrorspark.training.entry_points import launch
from mirrorspark.training.entry_points.launch import FunctionLauncher, LaunchConfig, program_of, run_train_fn
from mirrorspark.training.job.program import Cluster
from mirrorspark.training.programs.user_functions.plan import FunctionPlan, ReturnValueError, TrainFnError, pack_value
from mirrorspark.training.protocol.messages.events import EventAddress
from mirrorspark.training.run_records.run_folder import RunFolder


def config(**knobs: Any) -> LaunchConfig:
    return LaunchConfig(**{"name": "mine", "function": "train", "arguments": "0" * 12} | knobs)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"workers": "0"}, "begins below 1"),
        ({"workers": "many"}, "not a number of workers"),
        ({"name": "a/b"}, "it names folders"),
        ({"name": "late."}, "ends with a blank or a dot"),
        ({"experiment": "a" * 300}, "300 bytes"),
        ({"output": "aux"}, "a device on Windows"),
        ({"output": "s3://bucket"}, "on another store"),
        ({"max_restarts": -1}, "use 0 or more"),
        ({"step_limit_seconds": 0}, "above 0"),
        ({"threads_per_worker": 0}, "threads_per_worker is 0; use 1 or more"),
        ({"strategy": "horovod"}, "'horovod' is unknown; use one of"),
        (
            {"strategy": "ring", "gpus_per_worker": 2},
            "gpus_per_worker is 2, and the strategy ring uses one GPU per worker",
        ),
        ({"local_mode": True}, "local_mode is one process on the driver's machine, and workers is 2; set workers to 1"),
    ],
)
def test_impossible_settings_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**knobs)


def test_a_function_that_cannot_travel_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file, pytest.raises(TrainFnError, match="cannot be sent"):
        run_train_fn(lambda: file, name="mine", output=tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "no experiment 'late'"),
        ({"experiment": "/Shared/late", "registered_model": "ml.late"}, r"'ml.late' is not a model of Unity Catalog"),
        ({"registered_model": "ml/late"}, "without '/' and ':'"),
    ],
)
def test_names_that_databricks_would_refuse_are_refused_before_anything_starts(
    tmp_path: Path, names: dict[str, str], message: str
) -> None:
    """L5."""
    with pytest.raises(ConfigError, match=message):
        run_train_fn(lambda: None, name="late", output=tmp_path, tracking_uri="databricks", **cast(Any, names))
    assert not (tmp_path / "runs").exists()


def test_a_function_that_may_return_no_model_needs_no_name_in_unity_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5."""

    def check_driver(*_: Any) -> NoReturn:
        raise InterruptedError("the names were accepted")

    monkeypatch.setattr(launch.preflight, "check_driver", check_driver)
    with pytest.raises(InterruptedError):
        run_train_fn(lambda: None, name="late", output=tmp_path, tracking_uri="databricks", experiment="/Shared/late")


def test_two_ways_to_say_who_builds_the_strategy_must_agree() -> None:
    with pytest.raises(ValueError, match="brings its own"):
        run_train_fn(lambda: None, name="mine", strategy="ring", use_custom_strategy=True)


def keras_3(model: Any) -> Any:
    import keras

    return keras.Model


def either_keras(model: Any) -> Any:
    import keras
    import tensorflow as tf

    return keras.Model, tf.keras.Model


@pytest.mark.parametrize(
    ("train_fn", "knobs", "strategy"),
    [
        (keras_3, {}, "ring"),
        (keras_3, {"gpus_per_worker": 1}, "ring"),
        (keras_3, {"strategy": "multi_worker_mirrored"}, "multi_worker_mirrored"),
        (keras_3, {"use_custom_strategy": True}, "own"),
        (either_keras, {}, "multi_worker_mirrored"),
        (len, {}, "multi_worker_mirrored"),
    ],
)
def test_a_function_of_keras_3_trains_by_the_ring_unless_it_is_given_another_strategy(
    train_fn: Any, knobs: dict[str, Any], strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launch, "_launch", lambda *given: started.append(given))
    run_train_fn(train_fn, name="mine", **knobs)
    ((settings, _, _, note),) = started
    assert settings.strategy == strategy
    assert (note == "keras_3 uses Keras 3, so its strategy is ring") == (strategy == "ring")


def test_any_number_of_workers_between_the_two_may_train() -> None:
    assert config(workers="2:5").elastic.sizes == (2, 3, 4, 5)


def test_outside_of_fit_nobody_is_taken_for_hung_unless_a_limit_is_given() -> None:
    assert config().limits.of("building") == math.inf
    assert config(start_limit_seconds=5, step_limit_seconds=3).limits.of("building") == 5
    assert config(start_limit_seconds=5, step_limit_seconds=3).limits.of("training") == 3


@pytest.mark.parametrize("phase", ["starting", "connecting"])
def test_before_the_function_is_called_a_rank_that_does_not_come_counts_as_hung(phase: str) -> None:
    """T6: a slot that another job holds, or a connection that hangs, is not waited for for ever."""
    assert config().limits.of(phase) == 300
    assert config(start_limit_seconds=5).limits.of(phase) == 300  # no TensorFlow is imported in that
    assert config(start_limit_seconds=900).limits.of(phase) == 900


def test_ranks_are_told_how_long_they_may_look_for_each_other_and_how_many_threads_they_have() -> None:
    settings = config(
        workers="2:4", start_limit_seconds=900, threads_per_worker=3, strategy="ring", checkpoints="there"
    )
    folder = RunFolder(Path("run"), "identity", None)
    plan = program_of(settings, b"", folder).plan
    assert isinstance(plan, FunctionPlan)
    assert (plan.workers, plan.checkpoints, plan.strategy) == (4, "there", "ring")
    assert (plan.start_limit_seconds, plan.threads) == (900, 3)
    default = program_of(config(), b"", folder).plan
    assert isinstance(default, FunctionPlan)
    assert (default.checkpoints, default.model) == ("run/checkpoints", "run/returned_model")
    assert (default.start_limit_seconds, default.threads) == (300, None)


def test_a_run_goes_on_with_the_same_name_and_arguments_wherever_it_trains() -> None:
    assert config(workers=3, verbose=True, function="renamed").identity == config().identity
    assert config(arguments="1" * 12).identity != config().identity
    assert config(name="another").identity != config().identity


def test_a_run_that_goes_on_with_changed_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """H9: its checkpoints are those of the code before."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.preflight, "check_driver", lambda *_: [])
    monkeypatch.setattr(launch, "open_checked_session", lambda config, spark, **_: (spark, []))
    monkeypatch.setattr(Cluster, "launcher", lambda *_: None)
    monkeypatch.setattr(launch, "supervisor_of", interrupt)

    def lines_of(factor: int, *, resume: bool = True) -> list[str]:
        with pytest.raises(KeyboardInterrupt):
            run_train_fn(lambda: factor, name="mine", output=tmp_path, resume=resume, spark=cast(Any, "a session"))
        return [line for line in capsys.readouterr().err.splitlines() if "has changed since" in line]

    assert lines_of(1) == []
    assert lines_of(1) == []
    (run,) = (tmp_path / "runs").iterdir()
    (line,) = lines_of(2)
    assert line.endswith(
        f"<lambda> has changed since run {run.name} began, which goes on from its checkpoints; resume=False begins anew"
    )
    assert lines_of(2) == []
    assert lines_of(3, resume=False) == []


def test_a_function_cannot_run_without_a_name_by_which_it_goes_on() -> None:
    with pytest.raises(TypeError, match="required keyword-only argument: 'name'"):
        run_train_fn(lambda: None)  # type: ignore[call-arg]


def test_passwords_are_not_written_down(tmp_path: Path) -> None:
    with_password = config(tracking_uri="https://ann:s3cret@host")
    with_password.save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text)["tracking_uri"] == "https://host"
    assert "s3cret" not in text + repr(with_password)


def test_a_configuration_that_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config().save(path)
    before = path.stat()
    config().save(path)
    after = path.stat()  # its time of access changes: it is read
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    config(max_restarts=1).save(path)
    assert yaml.safe_load(path.read_text())["max_restarts"] == 1


def launched(*outcomes: dict[str, Any]) -> tuple[FunctionLauncher, tuple[dict[str, Any], ...]]:
    launcher = FunctionLauncher(cast(Any, lambda plan: outcomes))
    plan = FunctionPlan(workers=len(outcomes), checkpoints="checkpoints", events=EventAddress("h", 1, "secret"))
    return launcher, launcher(plan)


def test_the_supervisor_sees_epochs_and_the_caller_the_return_value() -> None:
    ranks: list[dict[str, Any]] = [{"epochs": 3, "value": pack_value([1, 2])}, {"epochs": 3}]
    launcher, seen = launched(*({"outcome": "finished"} | answer for answer in ranks))
    assert [outcome["epochs"] for outcome in seen] == [3, 3]
    assert launcher.returned("train") == [1, 2]


def test_other_outcomes_pass_as_they_are() -> None:
    failed = {"outcome": "failed", "cause": "lost", "type": "killed", "message": "", "step": None}
    assert launched(failed)[1] == (failed,)


def test_a_value_that_could_not_come_back_is_told_when_all_is_done() -> None:
    refused = {"epochs": 1, "refused": "the function's result (Lock) cannot be pickled"}
    launcher, _ = launched({"outcome": "finished"} | refused)
    with pytest.raises(ReturnValueError, match=r"train is finished, but the function's result \(Lock\)"):
        launcher.returned("train")
