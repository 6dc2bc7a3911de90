"""Files that a run keeps next to its outputs: its plan, a copy of its fleet, and its ledger."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.ledger import Ledger, LedgerError, is_same_ledger, ledger_name
from mirrorspark.fleet.runs.microbatch import Manifest, published_manifests
from mirrorspark.fleet.runs.plan import RUN_FOLDER, RunPlan
from mirrorspark.scoring import ScoringError
from mirrorspark.storage import Location, StoragePath, abilities

_LOGGER = logging.getLogger(__name__)

_FLEET_FOLDER = "fleet"
_LEDGER_FILE = "ledger.db"


@dataclass(frozen=True)
class RunRecords:
    """Records of a run: its plan, its fleet, its rows in the ledger, and the manifests of published microbatches.

    Attributes:
        output: Folder of the run.
        ledger: Address of the ledger, without credentials.
    """

    output: str
    ledger: str
    plan: RunPlan
    fleet: Fleet
    microbatches: Sequence[Mapping[str, Any]]
    attempts: Sequence[Mapping[str, Any]]
    errors: Sequence[Mapping[str, Any]]
    manifests: Mapping[int, Manifest]


def read_records(output: Location, ledger: str | Path | None = None) -> RunRecords:
    """Return the records of a run.

    Args:
        output: Folder of the run.
        ledger: See :func:`fleet.runs.resume_fleet`.

    Raises:
        FileNotFoundError: ``output`` has no run.
        FleetError: The run's copy of the fleet is damaged.
        LedgerError: The ledger cannot be used, is not named, or does not have the run.
    """
    target = resolved_output(output)
    plan = RunPlan.load(target)
    fleet = kept_fleet(plan, target)
    with ledger_of_run(ledger, target, plan) as book:
        return RunRecords(
            str(target),
            book.name,
            plan,
            fleet,
            book.rows(tables.MICROBATCHES, plan.run),
            book.rows(tables.ATTEMPTS, plan.run),
            book.rows(tables.ERRORS, plan.run),
            published_manifests(plan, target),
        )


def resolved_output(output: Location) -> StoragePath:
    """Return the folder of a run's outputs, without links, so that its drivers name it alike."""
    target = StoragePath.of(output)
    return StoragePath.of(target.local.resolve()) if target.is_local else target


def check_no_run(target: StoragePath) -> None:
    """Check that a folder has no run.

    Raises:
        ScoringError: It has one.
    """
    if RunPlan.is_in(target):
        raise ScoringError(f"{target} has a run, {RunPlan.load(target).run}; resume it, or choose another output")


def opened_ledger(ledger: str | Path | None, target: StoragePath, plan: RunPlan | None = None) -> Ledger:
    """Open the ledger of a run that is begun or resumed, which is a context that closes it.

    Args:
        ledger: See :func:`fleet.runs.resume_fleet`.
        target: Folder of the run.
        plan: Plan of a run that is resumed. Another ledger than its own is used with a warning: its own may be lost.

    Raises:
        LedgerError: It cannot be used, or has to be named.
    """
    book = Ledger.open(_location(ledger, target, plan))
    if plan is not None and not is_same_ledger(book.name, own := _own_ledger(plan, target)):
        _LOGGER.warning(
            "%s goes on with the ledger %s, and not with its own, %s; give that one unless it is lost: drivers with "
            "different ledgers score the same microbatches",
            plan.run,
            book.name,
            own,
        )
    return book


def ledger_of_run(ledger: str | Path | None, target: StoragePath, plan: RunPlan) -> Ledger:
    """Open the ledger that has a run, to look at it; the arguments are those of :func:`opened_ledger`.

    Raises:
        LedgerError: It cannot be used, has to be named, or does not have the run; then nothing has been created.
    """
    location = _location(ledger, target, plan)
    book = Ledger.of_run(location, plan.run)
    if book is None:
        name, own = ledger_name(location), _own_ledger(plan, target)
        if is_same_ledger(name, own):
            raise LedgerError(f"the ledger {name} does not have {plan.run} any more; resume the run, which enters it")
        raise LedgerError(
            f"the ledger {name} does not have {plan.run}, whose own is {own}; give that one, or, if it is lost, resume "
            f"the run with this one"
        )
    return book


def _location(ledger: str | Path | None, target: StoragePath, plan: RunPlan | None) -> str | Path:
    if ledger is None and plan is not None and plan.ledger:
        raise LedgerError(f"{plan.run} has its ledger at {plan.ledger}; give that address, with its password")
    if ledger is not None:
        return ledger
    file = target / RUN_FOLDER / _LEDGER_FILE
    if not file.is_local or not (file.exists() or abilities.can_hold_sqlite(file.local)):
        raise LedgerError(f"SQLite cannot be on {target}; give a ledger: a local file, or postgresql://host/database")
    return file.local


def _own_ledger(plan: RunPlan, target: StoragePath) -> str:
    """Return the name of the ledger with which a run began."""
    file = target / RUN_FOLDER / _LEDGER_FILE
    return plan.ledger or (ledger_name(file.local) if file.is_local else str(file))


def keep_run(plan: RunPlan, fleet: Fleet, target: StoragePath) -> None:
    """Store a plan and its fleet, unless another driver has begun the same run since this one looked.

    Raises:
        ScoringError: Another run has been begun there.
    """
    if RunPlan.is_in(target) and RunPlan.load(target).run == plan.run:
        return
    check_no_run(target)
    with tempfile.TemporaryDirectory() as folder:
        fleet.save(folder)
        for file in Path(folder).iterdir():
            (target / RUN_FOLDER / _FLEET_FOLDER / file.name).upload(file)
    plan.save(target)


def kept_fleet(plan: RunPlan, target: StoragePath) -> Fleet:
    """Return the fleet of a run.

    Raises:
        FleetError: The copy is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in (target / RUN_FOLDER / _FLEET_FOLDER).files():
            file.path.download(Path(folder, file.path.name))
        # The files stay mapped after their removal.
        fleet = Fleet.load(folder)
    if fleet.digest != plan.fleet:
        raise FleetError(f"the fleet in {target / RUN_FOLDER} is not that of {plan.run}; score it into another output")
    return fleet
