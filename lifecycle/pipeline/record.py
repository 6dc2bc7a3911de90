"""The record of a pipeline for one date: a folder with ``record.json``, which one command at a time may change."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.pipeline.stages import FIRST_STAGE, Records, StageRecord
from mirrorspark.storage import atomic_file, clean, lakes
from mirrorspark.training.results.report import strict
from mirrorspark.training.run_records import hold_lock

RECORD_FILE = "record.json"
_FOLDER = "pipelines"
_VERSION = 1


class PipelineError(ClearError, RuntimeError):
    """A pipeline cannot run: another command runs it, or its record is damaged."""


class ChangedSettingsError(PipelineError):
    """A date was begun with other settings."""


@dataclass(frozen=True)
class PipelineRecord:
    """Record of a pipeline for one date.

    Attributes:
        name: Name of the registered model.
        run_date: The day that it runs for, such as ``2026-01-31``.
        settings: The settings that decide its result; they cannot change until it is begun anew.
        stages: The record of each stage that has begun.
        is_finished: Whether all of its stages have passed.
    """

    name: str
    run_date: str
    settings: Mapping[str, Any]
    stages: Records = field(default_factory=dict)
    is_finished: bool = False

    def fact(self, stage: str, name: str) -> Any:
        """Return the findings of a stage; None without any."""
        return self.stages[stage].facts.get(name) if stage in self.stages else None

    def to_json(self) -> str:
        """Return the document, without passwords."""
        return json.dumps(clean(strict({"version": _VERSION, **asdict(self)})), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "PipelineRecord | None":
        """Return the record in a folder; None if it has none.

        Raises:
            PipelineError: It is damaged, or another version wrote it.
        """
        file = folder / RECORD_FILE
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if (version := document.pop("version")) != _VERSION:
                raise PipelineError(f"{file} has version {version}, this program reads {_VERSION}; use its own program")
            stages = {name: StageRecord(**values) for name, values in document.pop("stages").items()}
            return cls(**document, stages=stages)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PipelineError(
                f"{file} is damaged ({error}); begin the date anew with --from {FIRST_STAGE}"
            ) from error


def folder_of(output: Path, name: str, run_date: str) -> Path:
    """Return the folder of a pipeline for one date."""
    return output / _FOLDER / name / run_date


def former_record(output: Path, name: str, run_date: str) -> PipelineRecord | None:
    """Return the record of the latest earlier date that is finished; None if there is none.

    Raises:
        PipelineError: A record is damaged.
    """
    parent = output / _FOLDER / name
    for date in reversed(_dates(parent)):
        if date < run_date and (record := PipelineRecord.load(parent / date)) is not None and record.is_finished:
            return record
    return None


def records_in(parent: Path) -> list[PipelineRecord]:
    """Return the records of all dates of a pipeline, the earliest first, without damaged ones.

    Args:
        parent: The folder that has a folder for each date.
    """
    found = []
    for date in _dates(parent):
        # A date that nobody can read must not keep others from being seen; a command for that date reports it.
        with contextlib.suppress(PipelineError):
            found.append(PipelineRecord.load(parent / date))
    return [record for record in found if record is not None]


def _dates(parent: Path) -> list[str]:
    """Return the names of the folders of dates, the earliest first."""
    # Next to them are published scores, and leftovers of killed processes.
    return sorted(item.name for item in parent.iterdir() if item.is_dir()) if parent.is_dir() else []


@contextlib.contextmanager
def open_record(folder: Path, new: PipelineRecord, *, anew: bool = False) -> Iterator["OpenRecord"]:
    """Open the record of a date, or begin it, for as the block runs.

    Args:
        folder: The folder of the date.
        new: The record of a date that has not begun.
        anew: Begin it although there is a record, which stays until the new one is saved.

    Raises:
        PipelineError: Another command runs this date, or the record is damaged.
        ChangedSettingsError: It was begun with other settings.
    """
    lakes.refuse_lake_write(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_lock(folder))
        except BlockingIOError as error:
            raise PipelineError(f"another command runs {new.name} of {new.run_date}; wait for its end") from error
        former = None if anew else PipelineRecord.load(folder)
        if former is not None and (change := _change(former.settings, json.loads(new.to_json())["settings"])):
            raise ChangedSettingsError(
                f"{new.name} of {new.run_date} was begun with {change}; give the settings that it was begun with, or "
                f"begin the date anew with --from {FIRST_STAGE}"
            )
        yield OpenRecord(folder, former or new)


class OpenRecord:
    """A record that this process may change."""

    def __init__(self, folder: Path, record: PipelineRecord) -> None:
        self.folder, self.record = folder, record

    def save(self, stages: Records, *, is_finished: bool = False) -> None:
        """Keep the records of the stages.

        Raises:
            OSError: The file cannot be written.
        """
        self.record = replace(self.record, stages=stages, is_finished=is_finished)
        atomic_file.write_atomically(self.folder / RECORD_FILE, self.record.to_json())


def _change(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first setting that differs, in words."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            return _change(old, new, f"{prefix}{name}.")
        return f"{prefix}{name}={old!r}, not {new!r}"
    return None
