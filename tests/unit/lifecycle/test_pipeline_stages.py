"""The stages of a pipeline and their record: order, checks, faults, and what is done again (L7, L9)."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.lifecycle.gate.slices import Slicing
from mirrorspark.lifecycle.pipeline.record import (
    RECORD_FILE,
    ChangedSettingsError,
    PipelineError,
    PipelineRecord,
    folder_of,
    former_record,
    open_record,
)
from mirrorspark.lifecycle.pipeline.settings import PipelineSettings
from mirrorspark.lifecycle.pipeline.stages import (
    Facts,
    OutdatedError,
    Records,
    Stage,
    StageFailedError,
    advice,
    run_stages,
)

NAMES = ("ingest", "train", "promote")
NEW = PipelineRecord("churn", "2026-01-31", {"epochs": 3, "tables": {"rows": "id INT"}})


class World:
    """Stages that note what they did; one of them can be made to fail, in its work or in its check."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.seen: dict[str, list[str]] = {}
        self.error: dict[str, BaseException] = {}
        self.problems: dict[str, list[str]] = {}
        self.saved: list[dict[str, str]] = []

    def stages(self) -> list[Stage]:
        return [Stage(name, f"does {name}", self._work(name), self._check(name)) for name in NAMES]

    def save(self, records: Records) -> None:
        self.saved.append({name: record.state for name, record in records.items()})

    def _work(self, name: str) -> Any:
        def work(facts: Mapping[str, Facts]) -> Facts:
            self.seen[name] = list(facts)
            if name in self.error:
                raise self.error[name]
            self.done.append(name)
            return {"rows": len(self.done)}

        return work

    def _check(self, name: str) -> Any:
        def check(facts: Facts) -> Sequence[str]:
            assert "rows" in facts
            return self.problems.get(name, [])

        return check


@pytest.fixture
def clock() -> Any:
    seconds: Iterator[float] = itertools.count(100.0, 2.0)
    return lambda: next(seconds)


def test_stages_run_in_order_and_see_the_facts_of_those_before(clock: Any) -> None:
    world = World()

    records = run_stages(world.stages(), {}, world.save, clock=clock)

    assert world.done == list(NAMES)
    assert world.seen == {"ingest": [], "train": ["ingest"], "promote": ["ingest", "train"]}
    assert world.saved[0] == {"ingest": "running"}
    assert world.saved[-1] == dict.fromkeys(NAMES, "passed")
    assert [record.seconds for record in records.values()] == [4.0] * 3


@pytest.mark.parametrize("stage", NAMES)
@pytest.mark.parametrize("where", ["work", "check", "interrupt", "interrupted call"])
def test_a_fault_in_any_stage_stops_there_and_the_same_command_goes_on_from_it(
    stage: str, where: str, clock: Any
) -> None:
    world, kept = World(), {}
    if where == "check":
        world.problems[stage] = ["0 rows; expected 5", "no label"]
    else:
        of_call = ConnectionError("py4j")
        of_call.__context__ = KeyboardInterrupt()
        errors = {"work": ValueError("disk is\nfull"), "interrupt": KeyboardInterrupt(), "interrupted call": of_call}
        world.error[stage] = errors[where]

    def save(records: Records) -> None:
        kept.clear()
        kept.update(records)

    is_interrupt = where.startswith("interrupt")
    raised: type[BaseException] = KeyboardInterrupt if is_interrupt else StageFailedError
    with pytest.raises(raised) as failure:
        run_stages(world.stages(), {}, save, clock=clock)

    expected = {
        "work": "disk is full",
        "check": "0 rows; expected 5; no label",
        "interrupt": "it was interrupted (KeyboardInterrupt)",
        "interrupted call": "it was interrupted (KeyboardInterrupt)",
    }
    assert kept[stage].problem == expected[where]
    if not is_interrupt:
        assert str(failure.value) == f"stage '{stage}' has failed: {expected[where]}"
    assert list(kept) == list(NAMES[: NAMES.index(stage) + 1]), "no later stage has begun"
    world.error.clear(), world.problems.clear(), world.done.clear()

    records = run_stages(world.stages(), kept, save, clock=clock)

    assert world.done == list(NAMES[NAMES.index(stage) :]), "what has passed is not done again"
    assert records[stage].attempts == 2
    assert {record.state for record in records.values()} == {"passed"}
    world.done.clear()
    assert run_stages(world.stages(), records, save) == records
    assert world.done == [], "a pipeline that has passed does nothing"


def test_a_failure_says_where_to_go_on(clock: Any) -> None:
    def failure(stage: Stage) -> StageFailedError:
        with pytest.raises(StageFailedError) as raised:
            run_stages([stage], {}, lambda records: None, clock=clock)
        return raised.value

    def outdated(found: Mapping[str, Facts]) -> Facts:
        raise OutdatedError("another champion came in between", "evaluate")

    checked = Stage("gate", "judges", lambda found: {}, lambda facts: ["auc is 0.5"], again_from="ingest")
    broken = Stage("gate", "judges", lambda found: {"rows": 1 // 0}, again_from="ingest")
    told = [failure(one).again_from for one in (checked, broken, Stage("promote", "promotes", outdated))]

    assert told == ["ingest", None, "evaluate"]
    assert [advice(one, None) for one in told] == [
        "With other data or settings, begin the date anew: --from ingest.",
        "The same command goes on from there.",
        "Run the date again with --from evaluate.",
    ]
    assert advice(None, "train") == "The same command without --from goes on from there."


def test_a_killed_pipeline_leaves_a_stage_that_is_run_again(tmp_path: Path) -> None:
    world, folder = World(), folder_of(tmp_path, "churn", "2026-01-31")

    class Killed(BaseException):
        pass

    with open_record(folder, NEW) as opened:

        def save_until_the_end(records: Records) -> None:
            if records.get("train") is not None and records["train"].state == "passed":
                raise Killed  # the process ends before the end of the stage is recorded
            opened.save(records)

        with pytest.raises(Killed):
            run_stages(world.stages(), opened.record.stages, save_until_the_end)
    with open_record(folder, NEW) as opened:
        assert opened.record.stages["train"].state == "running"

        run_stages(world.stages(), opened.record.stages, opened.save)

    assert world.done == ["ingest", "train", "train", "promote"]


def test_a_record_refuses_a_second_command_damage_and_unless_it_is_begun_anew_other_settings(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "churn", "2026-01-31")
    with (
        open_record(folder, NEW) as opened,
        pytest.raises(PipelineError, match="another command runs churn of 2026-01-31"),
        open_record(folder, NEW),
    ):
        pass
    with open_record(folder, NEW) as opened:
        opened.save({})
    other = PipelineRecord("churn", "2026-01-31", {**NEW.settings, "epochs": 4})

    with (
        pytest.raises(ChangedSettingsError, match=r"was begun with epochs=3, not 4; .* anew with --from ingest"),
        open_record(folder, other),
    ):
        pass
    with open_record(folder, other, anew=True) as opened:
        assert PipelineRecord.load(folder) == NEW, "it stays until there is another one"
        opened.save({})
    assert PipelineRecord.load(folder) == other
    (folder / RECORD_FILE).write_text("{")
    with pytest.raises(PipelineError, match=r"record.json is damaged .* --from ingest"), open_record(folder, NEW):
        pass
    (folder / RECORD_FILE).write_text(json.dumps({"version": 9}))
    with pytest.raises(PipelineError, match="has version 9, this program reads 1"), open_record(folder, NEW):
        pass


def test_the_week_before_is_the_latest_finished_date(tmp_path: Path) -> None:
    for date, is_finished in [("2026-01-10", True), ("2026-01-17", True), ("2026-01-24", False), ("2026-02-07", True)]:
        record = PipelineRecord("churn", date, {})
        with open_record(folder_of(tmp_path, "churn", date), record) as opened:
            opened.save({}, is_finished=is_finished)

    former = former_record(tmp_path, "churn", "2026-01-31")

    assert former is not None
    assert former.run_date == "2026-01-17"
    assert former_record(tmp_path, "churn", "2026-01-10") is None
    assert former_record(tmp_path, "other", "2026-01-31") is None


def test_settings_are_read_as_recipes_are(tmp_path: Path) -> None:
    """YAML 1.1 would make a date and the number 90 of these values."""
    file = tmp_path / "pipeline.yaml"
    file.write_text("min_rows: 5\nslices: [{expression: day, values: [2026-01-31, 1:30]}]\n", encoding="utf-8")

    settings = PipelineSettings.load(str(file))

    assert settings == PipelineSettings(slices=(Slicing("day", values=("2026-01-31", "1:30")),), min_rows=5)


def test_a_record_has_no_passwords(tmp_path: Path) -> None:
    settings = {"tracking_uri": "postgresql://mlflow:hunter2@db/mlflow"}
    with open_record(tmp_path, PipelineRecord("churn", "2026-01-31", settings)) as opened:
        opened.save({})
    with open_record(tmp_path, PipelineRecord("churn", "2026-01-31", settings)):
        pass  # the same settings as those that were saved without it

    assert "hunter2" not in (tmp_path / RECORD_FILE).read_text()
