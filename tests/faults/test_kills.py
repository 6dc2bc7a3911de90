"""T6, L3, L7, L8: kills before every change of a file in a promotion, an export for servers and a pipeline's stages."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorspark.lifecycle.pipeline.record import PipelineRecord, open_record
from mirrorspark.lifecycle.pipeline.stages import Stage, run_stages
from mirrorspark.lifecycle.promotion.promotions import (
    CHAMPION,
    PREVIOUS,
    Evidence,
    audit_trail,
    promote,
    rollback,
)
from mirrorspark.lifecycle.promotion.registry import FolderRegistry
from mirrorspark.scoring.package import package_model
from mirrorspark.serving.export.export import EXPORT_FILE, export_model
from tests.faults.conftest import Count
from tests.faults.io_failures import killed_before
from tests.unit.lifecycle.gate_facts import validation_of
from tests.unit.scoring.other_models import LINEAR, save_logistic_onnx

pytestmark = pytest.mark.timeout(300)

Look = Callable[[Path], object]


def names(place: Path) -> list[str]:
    """Return the names of all that is below a folder, with the random part of what a killed process leaves as #."""
    found = (path.relative_to(place).as_posix() for path in place.rglob("*"))
    return sorted(re.sub(r"[0-9a-f]{32}", "#", name) for name in found if not name.endswith(".lock"))


def kill_everywhere(place: Path, prepare: Callable[[], object], act: Callable[[], object], look: Look) -> int:
    """Kill ``act`` before each of its calls, and compare what the same call makes of the rest; return the kills.

    Args:
        place: The folder whose changes are counted; ``prepare`` makes its former state.
        prepare: Called before each kill.
        act: The operation that is killed, and called again.
        look: Returns what is compared.
    """

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        prepare()

    fresh()
    act()
    clean, left = look(place), names(place)
    kills = 0
    while True:
        fresh()
        if not killed_before(place, kills + 1, act):
            return kills
        kills += 1
        act()
        assert look(place) == clean, f"killed before call {kills}"
        assert names(place) == left, f"killed before call {kills}"


def test_a_promotion_and_a_rollback_that_are_killed_anywhere_are_completed_by_the_same_call_and_noted_once(
    tmp_path: Path, count: Count
) -> None:
    place, models = tmp_path / "registry", tmp_path / "models"
    for version in (1, 2):
        package_model({**LINEAR, "intercept": float(version)}, models / "flights" / str(version))
    registry = FolderRegistry(place)

    def evidence(version: str, champion: str | None) -> Evidence:
        known = Evidence.of(validation_of(version=version, champion=champion))
        digest = FolderRegistry(models).digest("flights", version)
        former = None if champion is None else FolderRegistry(models).digest("flights", champion)
        return replace(known, digest=digest, champion_digest=former)

    first, second = evidence("1", None), evidence("2", "1")

    def begin() -> None:
        shutil.copytree(models, place, dirs_exist_ok=True)
        promote(first, registry, why="the first")

    def look(_: Path) -> object:
        trails = [[entry["action"] for entry in audit_trail("flights", of, registry)] for of in ("1", "2")]
        return registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS), trails

    def begin_both() -> None:
        begin()
        promote(second, registry, why="auc +0.01")

    def go_back() -> None:
        # It goes back once: a call after one that was killed behind its last step is refused, and has nothing to do.
        if (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) != ("1", None):
            rollback("flights", registry, why="fewer clicks")

    promotions = kill_everywhere(place, begin, lambda: promote(second, registry, why="auc +0.01"), look)
    assert look(place) == ("2", "1", [["promote"], ["promote"]])
    back = kill_everywhere(place, begin_both, go_back, look)
    assert look(place) == ("1", None, [["promote", "rollback"], ["promote"]])
    assert min(promotions, back) > 9
    count("kills of promotions", {"promote": promotions, "roll back": back})


def test_an_export_for_servers_that_is_killed_anywhere_is_whole_or_absent_and_nothing_is_left_of_it(
    tmp_path: Path, count: Count
) -> None:
    place = tmp_path / "servers"
    model = package_model(save_logistic_onnx(tmp_path / "m.onnx"), tmp_path / "boxes", columns=["a", "b", "c"])

    def look(_: Path) -> object:
        version = place / "boxes" / "7"
        return [(version / name).read_bytes() for name in ("model.onnx", EXPORT_FILE)] if version.exists() else None

    def export() -> None:
        assert look(place) is None or len(list((place / "boxes" / "7").iterdir())) == 2
        export_model(model, place, name="boxes", version=7, format="onnx")

    kills = kill_everywhere(place, lambda: None, export, look)
    assert kills > 9
    count("kills of exports for servers", {"ONNX": kills})


def test_an_alert_of_a_pipeline_that_is_killed_anywhere_is_never_lost_and_only_sent_again_if_it_was_not_recorded(
    tmp_path: Path, count: Count
) -> None:
    place, alerts = tmp_path / "date", tmp_path / "alerts"
    done: list[int] = []

    def notify() -> dict[str, str]:
        with alerts.open("a", encoding="utf-8") as file:
            file.write("the champion\n")
        return {"title": "the champion"}

    stages = (Stage("work", "", lambda found: {"rows": 3}), Stage("notify", "", lambda found: notify()))

    def run() -> None:
        with open_record(place, PipelineRecord("churn", "2026-01-31", {})) as opened:
            opened.save(run_stages(stages, opened.record.stages, opened.save, clock=lambda: 1.0), is_finished=True)

    def look(_: Path) -> object:
        record = PipelineRecord.load(place)
        assert record is not None
        done.append(len(alerts.read_text(encoding="utf-8").splitlines()))
        alerts.unlink()
        return record.is_finished, {name: (one.state, one.facts) for name, one in record.stages.items()}

    kills = kill_everywhere(place, lambda: None, run, look)
    assert set(done) == {1, 2}
    # Twice only where the kill came between the alert and the end of the record that notes it.
    assert done.count(2) < kills / 3
    count("kills of pipelines", {"stages": kills, "second alerts": done.count(2)})
