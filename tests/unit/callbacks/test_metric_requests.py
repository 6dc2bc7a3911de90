"""T7: calls survive a file, fit MLflow's limits, and a late one undoes nothing newer."""

from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.callbacks.mlflow.metric_requests import (
    DescribeModel,
    LogArtifact,
    LogFile,
    LogFolder,
    LogInput,
    LogModelMetrics,
    LogParams,
    RunCall,
    SetAlias,
    SetStatus,
    SetTags,
    from_line,
    to_line,
    with_call,
)

CALLS: tuple[RunCall, ...] = (
    LogParams({"seed": "1"}),
    SetTags({"workers": "2"}),
    LogArtifact.of("attempts.json", b"[]"),
    LogFile("plots/roc.png", "/runs/1/plots/roc.png"),
    LogFolder("profile", "/runs/1/profile"),
    LogInput("rides", "0123", "{}", "{}", "{}"),
    LogModelMetrics("m-1", {"test_auc": 0.5}, 4, 1_700_000_000_000),
    DescribeModel("rides", "3", "m-1", "Predicts `late`."),
    SetAlias("rides", "challenger", "3"),
    SetStatus("FINISHED"),
)


class Store:
    def __init__(self, alias: str | None = None) -> None:
        self.alias = alias
        self.requests: list[int] = []

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params={"p7": "0"}))

    def log_batch(self, run_id: str, params: list[Any]) -> None:
        self.requests.append(len(params))

    def get_registered_model(self, model: str) -> Any:
        return SimpleNamespace(aliases={"challenger": self.alias} if self.alias else {})

    def set_registered_model_alias(self, model: str, alias: str, version: str) -> None:
        self.alias = version


@pytest.mark.parametrize("call", CALLS, ids=lambda call: type(call).__name__)
def test_a_call_comes_back_from_its_line(call: RunCall) -> None:
    assert from_line(to_line(call)) == call


def test_parameters_that_the_run_has_are_left_out_and_the_others_sent_in_hundreds() -> None:
    store = Store()
    LogParams({f"p{n}": "1" for n in range(251)}).send(store, "run")
    assert store.requests == [100, 100, 50]


@pytest.mark.parametrize(("now", "then"), [(None, "3"), ("2", "3"), ("10", "10")])
def test_an_alias_that_comes_late_does_not_go_back_to_an_older_version(now: str | None, then: str) -> None:
    store = Store(now)
    SetAlias("rides", "challenger", "3").send(store, "run")
    assert store.alias == then


def test_only_artifacts_of_the_same_name_and_statuses_replace_each_other() -> None:
    waiting: tuple[RunCall, ...] = ()
    for call in (*CALLS, LogArtifact.of("other.json", b"[]"), LogArtifact.of("attempts.json", b"[1]"), *CALLS[-1:]):
        waiting = with_call(waiting, call)
    names = [str(call) for call in waiting]
    assert names.count("attempts.json") == names.count("other.json") == names.count("status FINISHED") == 1
    assert waiting[-1] == SetStatus("FINISHED")
