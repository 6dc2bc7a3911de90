"""T4: the chief is found from TF_CONFIG, by one function that all callbacks use."""

import json

import pytest

from mirrorspark.callbacks.collectives.roles import Role, current_role, is_chief

WORKERS_ONLY = {"worker": ["a:1", "b:1"]}
WITH_CHIEF = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}


@pytest.fixture(autouse=True)
def _no_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.parametrize(
    ("task_type", "task_id", "cluster", "expected"),
    [
        (None, None, None, True),
        ("chief", 0, WITH_CHIEF, True),
        ("worker", 0, WITH_CHIEF, False),
        ("worker", 0, WORKERS_ONLY, True),
        ("worker", 1, WORKERS_ONLY, False),
        ("evaluator", 0, WORKERS_ONLY, False),
        ("ps", 0, WORKERS_ONLY, False),
        ("worker", 0, None, True),
    ],
)
def test_the_chief_is_the_chief_task_or_else_worker_0(
    task_type: str | None, task_id: int | None, cluster: dict[str, list[str]] | None, expected: bool
) -> None:
    assert is_chief(task_type, task_id, cluster) is expected


def test_without_a_cluster_given_worker_0_looks_for_a_chief_in_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": WITH_CHIEF, "task": {"type": "worker", "index": 0}}))
    assert is_chief("worker", 0) is False


def test_a_process_without_tf_config_is_a_chief_alone() -> None:
    assert current_role() == Role(task_type=None, task_id=None, workers=1, rank=0, is_chief=True)


def test_a_role_counts_the_chief_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": WITH_CHIEF, "task": {"type": "worker", "index": 1}}))
    assert current_role() == Role(task_type="worker", task_id=1, workers=3, rank=2, is_chief=False)


@pytest.mark.parametrize("text", ["{broken", "[]"])
def test_a_damaged_tf_config_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG is"):
        current_role()
