"""Promotion of a validated version: its blocks, the winner of two, its record, and the way back (L3, L13)."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.mlflow import tracking_store as store
from mirrorspark.callbacks.mlflow.tracking_store import NoStoreError
from mirrorspark.lifecycle import command
from mirrorspark.lifecycle.gate.facts import SliceFacts
from mirrorspark.lifecycle.gate.validation import Validation
from mirrorspark.lifecycle.promotion.promotions import (
    CHAMPION,
    PREVIOUS,
    Evidence,
    Promotion,
    PromotionConflictError,
    PromotionRefusedError,
    audit_trail,
    promote,
    rollback,
)
from mirrorspark.lifecycle.promotion.registry import FolderRegistry, RegistryError
from mirrorspark.scoring.package import package_model
from tests.conftest import PATIENCE
from tests.unit.lifecycle.gate_facts import facts_of, slice_of, validation_of
from tests.unit.scoring.other_models import LINEAR


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    """Return a registry with three versions of ``flights``, of which none is the champion."""
    for version in (1, 2, 3):
        package_model({**LINEAR, "intercept": float(version)}, tmp_path / "flights" / str(version))
    return FolderRegistry(tmp_path)


def validated(registry: FolderRegistry, version: str, champion: str | None, *slices: SliceFacts) -> Validation:
    """Return a validation of the registered files; by default all gates have passed."""
    validation = validation_of(facts_of(*slices), version=version, champion=champion)
    candidate = replace(validation.candidate, digest=registry.digest("flights", version))
    if validation.champion is None:
        return replace(validation, candidate=candidate)
    former = replace(validation.champion, digest=registry.digest("flights", validation.champion.version))
    return replace(validation, candidate=candidate, champion=former)


def test_a_version_becomes_champion_the_former_one_stays_at_hand_and_all_of_it_is_noted(
    registry: FolderRegistry,
) -> None:
    assert promote(validated(registry, "1", None), registry, why="the first") == Promotion("flights", "1", None)

    done = promote(validated(registry, "2", "1"), registry, why="auc +0.01", who="ann")

    assert done == Promotion("flights", "2", "1")
    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("2", "1")
    (entry,) = audit_trail("flights", "2", registry)
    assert {key: entry[key] for key in ("action", "who", "why", "from")} == {
        "action": "promote",
        "who": "ann",
        "why": "auc +0.01",
        "from": "1",
    }
    assert entry["evidence"]["digest"] == registry.digest("flights", "2")
    again = promote(validated(registry, "2", "1"), registry, why="auc +0.01")
    assert again == Promotion("flights", "2", "1", is_new=False), "the same promotion again does nothing"
    assert len(audit_trail("flights", "2", registry)) == 1


def test_a_failed_gate_other_files_and_another_champion_block_and_change_nothing(registry: FolderRegistry) -> None:
    promote(validated(registry, "1", None), registry, why="the first")
    bad = validated(registry, "2", "1", slice_of(0.6))
    good = validated(registry, "2", "1")
    beside_3 = validated(registry, "2", "3")
    other_files = replace(good, candidate=replace(good.candidate, digest="0" * 64))

    with pytest.raises(PromotionRefusedError, match=r"flights/2 stays out of production: .*auc.*0\.6"):
        promote(bad, registry, why="it is Monday")
    with pytest.raises(PromotionRefusedError, match="are not those that were validated; validate again"):
        promote(other_files, registry, why="it is Monday")
    with pytest.raises(PromotionConflictError, match="is version 1, and flights/3 was compared with none"):
        promote(validated(registry, "3", None), registry, why="it is Monday")
    with pytest.raises(PromotionConflictError, match="is version 1, and flights/2 was compared with flights/3"):
        promote(beside_3, registry, why="it is Monday")

    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("1", None)
    assert audit_trail("flights", "2", registry) == []


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told_a_hundred_times(registry: FolderRegistry) -> None:
    evidence = {version: Evidence.of(validated(registry, version, "1")) for version in ("2", "3")}
    winners: set[str] = set()
    for _ in range(100):
        registry.set_alias("flights", CHAMPION, "1")
        outcomes: dict[str, str] = {}
        together = threading.Barrier(2)

        def call(version: str, outcomes: dict[str, str] = outcomes, together: threading.Barrier = together) -> None:
            together.wait(timeout=PATIENCE * 30)
            try:
                promote(evidence[version], FolderRegistry(registry.folder), why="both")
                outcomes[version] = "won"
            except PromotionConflictError:
                outcomes[version] = "told"

        callers = [threading.Thread(target=call, args=(version,)) for version in ("2", "3")]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=60)

        assert sorted(outcomes.values()) == ["told", "won"]
        champion = registry.alias("flights", CHAMPION)
        assert champion is not None
        assert outcomes[champion] == "won"
        assert registry.alias("flights", PREVIOUS) == "1"
        winners.add(champion)
    assert winners <= {"2", "3"}


@pytest.mark.parametrize("step", ["set_tag", "set_alias previous", "set_alias champion"])
def test_a_promotion_that_fails_at_any_step_leaves_the_champion_and_the_same_call_completes_it(
    registry: FolderRegistry, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(validated(registry, "1", None), registry, why="the first")
    evidence = validated(registry, "2", "1")
    method, _, alias = step.partition(" ")
    real: Callable[..., None] = getattr(registry, method)

    def fail(*arguments: str) -> None:
        if not alias or alias in arguments:
            raise OSError("the disk is full")
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(registry, method, fail)
        with pytest.raises(OSError, match="the disk is full"):
            promote(evidence, registry, why="auc +0.01")
    assert registry.alias("flights", CHAMPION) == "1"

    promote(evidence, registry, why="auc +0.01")

    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("2", "1")
    assert len(audit_trail("flights", "2", registry)) == 1, "one promotion is one entry"


@pytest.mark.parametrize("step", ["set_tag", "set_alias", "delete_alias"])
def test_a_rollback_that_fails_at_any_step_is_completed_by_the_same_call_and_noted_once(
    registry: FolderRegistry, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(validated(registry, "1", None), registry, why="the first")
    promote(validated(registry, "2", "1"), registry, why="auc +0.01")

    def fail(*arguments: str) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry, step, fail)
        with pytest.raises(OSError, match="the disk is full"):
            rollback("flights", registry, why="too few clicks")

    rollback("flights", registry, why="too few clicks")

    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("1", None)
    assert [entry["action"] for entry in audit_trail("flights", "1", registry)] == ["promote", "rollback"]
    with pytest.raises(PromotionRefusedError, match="has no previous champion to go back to"):
        rollback("flights", registry, why="too few clicks")


def test_a_version_that_is_promoted_again_after_a_rollback_is_noted_again(registry: FolderRegistry) -> None:
    promote(validated(registry, "1", None), registry, why="the first")
    evidence = Evidence.of(validated(registry, "2", "1"))
    for _ in range(2):
        promote(evidence, registry, why="auc +0.01")
        rollback("flights", registry, why="too few clicks")
    assert [entry["action"] for entry in audit_trail("flights", "2", registry)] == ["promote"] * 2
    assert [entry["action"] for entry in audit_trail("flights", "1", registry)] == ["promote", *["rollback"] * 2]


def test_a_rollback_goes_back_once(registry: FolderRegistry) -> None:
    promote(validated(registry, "1", None), registry, why="the first")
    with pytest.raises(PromotionRefusedError, match="has no previous champion to go back to"):
        rollback("flights", registry, why="too few clicks")
    promote(validated(registry, "2", "1"), registry, why="auc +0.01")

    assert rollback("flights", registry, why="too few clicks", who="bob") == Promotion("flights", "1", "2")

    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("1", None)
    assert [(entry["action"], entry["why"]) for entry in audit_trail("flights", "1", registry)] == [
        ("promote", "the first"),
        ("rollback", "too few clicks"),
    ]
    with pytest.raises(PromotionRefusedError, match="has no previous champion to go back to"):
        rollback("flights", registry, why="it would bring version 2 back")


def test_evidence_is_read_from_the_file_that_a_validation_saves(registry: FolderRegistry, tmp_path: Path) -> None:
    validation = validated(registry, "2", None)
    file = validation.save(tmp_path / "evidence")

    assert Evidence.load(file) == Evidence.of(validation)

    document = json.loads(file.read_text())
    for change, problem in [
        ({"passed": False}, "its verdict is not that of its findings"),
        ({"format_version": 9}, "its format is 9, this program reads 1"),
    ]:
        file.write_text(json.dumps(document | change))
        with pytest.raises(PromotionRefusedError, match=f"is not a validation .*{problem}"):
            Evidence.load(file)
    file.write_text("[]")
    with pytest.raises(PromotionRefusedError, match="is not a validation"):
        Evidence.load(file)


def test_what_is_not_there_is_named(registry: FolderRegistry) -> None:
    with pytest.raises(RegistryError, match="there is no model 'boxes' in"):
        registry.alias("boxes", CHAMPION)
    with pytest.raises(RegistryError, match="there is no version 9 of 'flights'"):
        registry.set_alias("flights", CHAMPION, "9")
    (registry.folder / "flights" / "registry.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"registry\.json is damaged"):
        registry.alias("flights", CHAMPION)


def test_the_command_looks_where_trainings_register_and_makes_no_store_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "default_store", lambda: "sqlite:///elsewhere.db")
    assert store.lookup_address(None) == "sqlite:///elsewhere.db"
    assert store.lookup_address("http://mlflow:5000") == "http://mlflow:5000"

    def without_store() -> str:
        raise NoStoreError("there is no mlflow.db")

    monkeypatch.setattr(store, "default_store", without_store)
    assert command.main(["audit", "flights", "1"]) == command.EXIT_USAGE
    assert "there is no mlflow.db; give --tracking-uri, or --folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd", ["", ".", "..", "../other", "/etc", "a/../../b", "flights/../..", "a\\b", "a\0b", "x" * 300, "\ud800", 7]
)
def test_a_name_leads_out_of_no_folder_registry(tmp_path: Path, odd: Any) -> None:
    """A validation's name and version come from a file that others may have written."""
    (tmp_path / "registry" / "flights" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "registry.json").write_text('{"aliases": {"champion": "1"}, "tags": {}}')
    registry, name = FolderRegistry(tmp_path / "registry"), "flights"
    calls = [
        lambda: registry.alias(odd, "champion"),
        lambda: registry.set_alias(odd, "champion", "1"),
        lambda: registry.set_alias(name, "champion", odd),
        lambda: registry.delete_alias(odd, "champion"),
        lambda: registry.tags(odd, "1"),
        lambda: registry.tags(name, odd),
        lambda: registry.set_tag(odd, "1", "key", "value"),
        lambda: registry.set_tag(name, odd, "key", "value"),
        lambda: registry.digest(odd, "1"),
        lambda: registry.digest(name, odd),
        lambda: registry.changing(odd).__enter__(),
    ]
    for call in calls:
        with pytest.raises(RegistryError, match="cannot be the name of a model or version"):
            call()
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["1", "registry.json"]
