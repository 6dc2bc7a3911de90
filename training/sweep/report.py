"""What a sweep tells at its end: its trials as a table, and the best values as a recipe and as a command."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mirrorspark.callbacks.checkpoints.commit import Mode
from mirrorspark.storage.atomic_file import write_atomically
from mirrorspark.storage.credentials import without_credentials
from mirrorspark.training.config import RunConfig
from mirrorspark.training.results.summary import strict, verdict_lines
from mirrorspark.training.runs import duration, table
from mirrorspark.training.sweep.space import MODEL, in_words, value_in_words
from mirrorspark.training.sweep.study import TrialRecord

SUMMARY_FILE = "sweep.json"
TABLE_FILE = "trials.txt"
BEST_FILE = "best.yaml"

_ORDER = ("complete", "pruned", "running", "failed")
_MISSING = "-"


@dataclass(frozen=True)
class SweepSummary:
    """The result of a sweep.

    Attributes:
        status: ``finished``, ``stopped`` or ``failed``.
        study: Its name.
        folder: Its study, its trials' run folders and this document.
        monitor: What trials are judged by.
        mode: Whether a larger or a smaller value is better.
        wanted: How many trials there were to be.
        run_id: MLflow run that the trials' runs are children of.
        trials: All that have begun.
        best: The best of those trained to their end.
        importances: How much each setting mattered, shares of 1.
        recipe: The fields of a recipe that the best trial changes.
        command: Trains the best again.
        delivered: The summary of the best trial's export, as a run writes it.
        error: Why it failed or stopped.
        replay: Command that sends MLflow what it could not be told of the sweep; None when it knows all.
    """

    status: str
    study: str = ""
    folder: str = ""
    monitor: str = ""
    mode: Mode = "max"
    wanted: int = 0
    run_id: str | None = None
    trials: Sequence[TrialRecord] = ()
    best: TrialRecord | None = None
    importances: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    delivered: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    replay: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document for machines."""
        document: dict[str, Any] = strict(asdict(self))
        return document

    def as_text(self) -> str:
        """Return the tables that end a sweep."""
        lines = trial_table(self.trials, self.mode, self.monitor)
        if self.importances:
            rows = [[setting, f"{share:.0%}"] for setting, share in self.importances.items()]
            lines += ["", *table([["what mattered", ""], *rows], right={1})]
        if self.best is not None:
            words = in_words(self.best.values)
            lines += ["", f"best: trial {self.best.number}, {self.monitor} {self.best.best:.4f} with {words}"]
        if self.delivered.get("metrics"):
            lines += ["", *verdict_lines(self.delivered["metrics"], self.delivered.get("baseline") or {}), ""]
        if self.delivered.get("model_version"):
            lines.append(f"model: models:/{self.delivered['registered_model']}/{self.delivered['model_version']}")
        if self.delivered.get("scored_table"):
            lines.append(f"scores: {self.delivered['scored_table']}")
        if self.command:
            lines.append(f"again: {self.command}")
        lines += [f"send metrics: {replay}" for replay in (self.replay, self.delivered.get("replay")) if replay]
        return "\n".join([*lines, f"sweep folder: {self.folder}"])

    def texts(self) -> dict[str, str]:
        """Return what people read, by file name: the table, and the best values as a recipe has them."""
        texts = {TABLE_FILE: self.as_text() + "\n"}
        return texts | ({BEST_FILE: as_yaml(self.recipe)} if self.best else {})

    def write(self, folder: Path) -> None:
        """Write all documents into the sweep's folder."""
        for name, text in self.texts().items():
            write_atomically(folder / name, text)
        self.save(folder / SUMMARY_FILE)

    def save(self, path: Path) -> None:
        """Write the JSON document so that a reader sees the old one or the new one."""
        path = path.resolve()  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def ranked(trials: Sequence[TrialRecord], mode: Mode) -> list[TrialRecord]:
    """Return the trials, those trained to their end first, and the best of each kind before the others."""

    def order(trial: TrialRecord) -> tuple[int, bool, float, int]:
        value = trial.best or 0.0
        return _ORDER.index(trial.state), trial.best is None, -value if mode == "max" else value, trial.number

    return sorted(trials, key=order)


def trial_table(trials: Sequence[TrialRecord], mode: Mode, monitor: str) -> list[str]:
    """Return the lines of a table of trials, the best first; why trials failed stands below it."""
    if not trials:
        return ["no trial has begun"]
    # A setting with the same value in all trials tells nothing, unless there is but one trial.
    settings = list(dict.fromkeys(setting for trial in trials for setting in trial.values))
    differ = [
        setting for setting in settings if len({value_in_words(trial.values.get(setting)) for trial in trials}) > 1
    ] or settings
    rows = []
    for rank, trial in enumerate(ranked(trials, mode), start=1):
        rows.append(
            [
                str(rank) if trial.state == "complete" else "",
                str(trial.number),
                trial.state,
                _MISSING if trial.best is None else f"{trial.best:.4f}",
                str(trial.epochs),
                duration(trial.seconds),
                *(value_in_words(trial.values[setting]) if setting in trial.values else _MISSING for setting in differ),
            ]
        )
    header = ["rank", "trial", "state", monitor, "epochs", "duration", *differ]
    lines = table([header, *rows], right={0, 1, 3, 4, 5})
    errors = [f"trial {trial.number}: {trial.error}" for trial in trials if trial.error]
    return [*lines, "", *errors] if errors else lines


def recipe_patch(config: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``recipe.yaml`` that a trial changes; the model's settings stand there as a whole."""
    settings = {setting: value for setting, value in values.items() if not setting.startswith(MODEL)}
    if len(settings) < len(values):
        settings["model"] = dict(config.model)
    return settings


def as_yaml(patch: Mapping[str, Any]) -> str:
    """Return the fields as they stand in a recipe."""
    return yaml.safe_dump(dict(patch), sort_keys=False, default_flow_style=None, width=120)


def command(arguments: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return the command that trains with ``values``.

    Args:
        arguments: The sweep's own flags of ``training.run``.
        values: Per searched setting its value.
    """
    flags = [_flag(setting, value) for setting, value in values.items()]
    return without_credentials(shlex.join(["mirrorspark", "train", *_without_summary(arguments), *flags]))


def _without_summary(arguments: Sequence[str]) -> list[str]:
    """Leave out ``--summary``: that file holds what the sweep found out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--summary")
    return parser.parse_known_args(list(arguments))[1]


def _flag(setting: str, value: Any) -> str:
    is_models = setting.startswith(MODEL)
    name = setting if is_models else setting.replace("_", "-")
    if isinstance(value, bool) and not is_models:
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
