"""The stages of a pipeline: run in order, each checked and recorded, and none run again once it has passed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import one_line, terminal_text

State = Literal["running", "passed", "failed"]
# A date that is run again from here is begun anew, for example with other data or settings.
FIRST_STAGE = "ingest"
# Findings of a stage: values that JSON has, since the record keeps them.
Facts = Mapping[str, Any]


class StageFailedError(ClearError, RuntimeError):
    """A stage has failed: its work raised an error, or its check found a problem.

    Attributes:
        stage: The stage.
        problem: Why, in one line.
        again_from: The stage from which the date has to be run again; None if it may go on with the one that failed.
    """

    def __init__(self, stage: str, problem: str, again_from: str | None = None) -> None:
        super().__init__(f"stage '{stage}' has failed: {problem}")
        self.stage, self.problem, self.again_from = stage, problem, again_from


class OutdatedError(ClearError, RuntimeError):
    """The result of an earlier stage is outdated.

    Attributes:
        again_from: The stage that has to be run again.
    """

    def __init__(self, problem: str, again_from: str) -> None:
        super().__init__(problem)
        self.again_from = again_from


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline.

    Attributes:
        name: Its name, unique in the pipeline.
        promise: Its work, in a few words.
        work: Does it. It is given the facts of the stages before it, by their names, and returns its own. The same work
            may be done twice, after a crash between its end and its record: it must be safe to repeat.
        check: Returns the problems of the facts, in words; none if the stage has passed.
        again_from: The stage from which the date has to be run again once the check has found a problem; None if a
            repetition of this one may pass.
    """

    name: str
    promise: str
    work: Callable[[Mapping[str, Facts]], Facts]
    check: Callable[[Facts], Sequence[str]] = lambda facts: ()
    again_from: str | None = None


@dataclass(frozen=True)
class StageRecord:
    """State of a stage that has begun.

    Attributes:
        state: ``running``, ``passed`` or ``failed``. A pipeline that was killed leaves one that is running.
        began: When the latest attempt began, in seconds since 1970.
        seconds: How long that attempt took.
        attempts: How often the stage has begun.
        facts: Its findings.
        problem: Why it failed.
    """

    state: State
    began: float
    seconds: float = 0.0
    attempts: int = 1
    facts: Facts = field(default_factory=dict)
    problem: str | None = None


Records = Mapping[str, StageRecord]


def run_stages(
    stages: Sequence[Stage],
    records: Records,
    save: Callable[[Records], None],
    *,
    clock: Callable[[], float] = time.time,
) -> Records:
    """Run the stages that have not passed, in order, and return the records of all.

    Args:
        stages: The stages.
        records: Records of an earlier command for the same date, by stage.
        save: Keeps the records. It is called whenever a stage begins or ends; a stage counts as passed once it returns.
        clock: The time in seconds since 1970.

    Raises:
        StageFailedError: A stage has failed; it is recorded, and none after it has begun.
        KeyboardInterrupt: Ctrl-C has ended a stage, which is recorded, too.
        OSError: ``save`` cannot keep the records.
    """
    records = dict(records)
    for stage in stages:
        former = records.get(stage.name)
        if former is not None and former.state == "passed":
            continue
        begun = StageRecord("running", clock(), attempts=1 if former is None else former.attempts + 1)

        def keep(record: StageRecord, name: str = stage.name, began: float = begun.began) -> None:
            records[name] = replace(record, seconds=max(0.0, clock() - began))
            save(dict(records))

        keep(begun)
        facts: Facts = {}
        try:
            facts = stage.work({name: record.facts for name, record in records.items() if record.state == "passed"})
            problems = list(stage.check(facts))
        except Exception as error:
            if terminal_text.is_interrupt(error):
                keep(replace(begun, state="failed", problem="it was interrupted (KeyboardInterrupt)"))
                raise KeyboardInterrupt from error
            problem = one_line(error)
            keep(replace(begun, state="failed", facts=facts, problem=problem))
            again_from = error.again_from if isinstance(error, OutdatedError) else None
            raise StageFailedError(stage.name, problem, again_from) from error
        except BaseException as stop:  # Control-C, or the process is asked to end.
            keep(replace(begun, state="failed", problem=f"it was interrupted ({type(stop).__name__})"))
            raise
        if problems:
            problem = "; ".join(problems)
            keep(replace(begun, state="failed", facts=facts, problem=problem))
            raise StageFailedError(stage.name, problem, stage.again_from)
        keep(replace(begun, state="passed", facts=facts))
    return records


def advice(again_from: str | None, given: str | None) -> str:
    """Return the remedy for a stage that has failed, in a sentence.

    Args:
        again_from: See :class:`StageFailedError`.
        given: The stage from which the failed command began by request.
    """
    if again_from is None:
        return f"The same command{'' if given is None else ' without --from'} goes on from there."
    if again_from == FIRST_STAGE:
        return f"With other data or settings, begin the date anew: --from {FIRST_STAGE}."
    return f"Run the date again with --from {again_from}."
