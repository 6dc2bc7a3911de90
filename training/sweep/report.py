"""The report of a sweep: its trials as a table, and the best values as a recipe and as a command."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.pages import heading_html, panel_html, paragraph_html, remark_html, rows_html
from mirrorspark.storage import atomic_file, clean, without_credentials
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.entry_points import duration, table
from mirrorspark.training.results.report import strict, verdict_lines
from mirrorspark.training.sweep.space import MODEL, in_words, value_in_words
from mirrorspark.training.sweep.study import TrialRecord

SUMMARY_FILE = "sweep.json"
TABLE_FILE = "trials.txt"
BEST_FILE = "best.yaml"

_ORDER = ("complete", "pruned", "running", "failed")
_MISSING = "-"
# The columns of numbers in a table of trials.
_NUMBERS = {0, 1, 3, 4, 5}


@dataclass(frozen=True)
class SweepSummary:
    """The result of a sweep.

    Attributes:
        status: ``finished``, ``stopped`` or ``failed``.
        folder: Its study, its trials' run folders and this document.
        monitor: The metric of the trials.
        mode: ``max`` if a larger value is better, else ``min``.
        wanted: Requested number of trials.
        run_id: The parent MLflow run of the trials' runs.
        trials: All trials that have begun.
        best: The best complete trial.
        importances: Importance of each setting, as shares of 1.
        recipe: The fields of a recipe that the best trial changes.
        command: Command that trains the best trial again.
        delivered: Fields of the summary of the best trial's export.
        error: Why it failed or stopped.
        replay: Command that sends MLflow the metrics that it lacks; None if it lacks none.
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
        """Return the JSON document."""
        document: dict[str, Any] = clean(strict(asdict(self)))
        return document

    def as_text(self) -> str:
        """Return the tables that end a sweep."""
        lines = trial_table(self.trials, self.mode, self.monitor)
        if self.importances:
            rows = [[setting, f"{share:.0%}"] for setting, share in self.importances.items()]
            lines += ["", *table([["importance", ""], *rows], right={1})]
        if self.best is not None:
            lines += ["", self._best_in_words()]
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

    def _best_in_words(self) -> str:
        best = self.best
        return (
            ""
            if best is None
            else f"best: trial {best.number}, {self.monitor} {best.best:.4f} with {in_words(best.values)}"
        )

    def _repr_html_(self) -> str:
        trials = [
            [without_credentials(cell) for cell in row] for row in trial_rows(self.trials, self.mode, self.monitor)
        ]
        shares = [(setting, f"{share:.0%}") for setting, share in self.importances.items()]
        lines = [self._best_in_words(), *trial_errors(self.trials), self.error or ""]
        command = self.command and f"again: {self.command}"
        return panel_html(
            heading_html(f"Sweep {self.study}: {len(self.trials)} trials, {self.status}"),
            *(paragraph_html(without_credentials(line)) for line in lines if line),
            rows_html(trials[0], trials[1:], numbers=_NUMBERS) if self.trials else paragraph_html("no trial has begun"),
            *([heading_html("What mattered"), rows_html((), shares, numbers=(1,))] if shares else []),
            *(remark_html(without_credentials(line)) for line in (command, f"sweep folder {self.folder}") if line),
        )

    def texts(self) -> dict[str, str]:
        """Return the texts by file name: the table, and the best values in the form of a recipe."""
        texts = {TABLE_FILE: self.as_text() + "\n"}
        return texts | ({BEST_FILE: as_yaml(self.recipe)} if self.best else {})

    def write(self, folder: Path) -> None:
        """Write all documents into the sweep's folder."""
        for name, text in self.texts().items():
            atomic_file.write_atomically(folder / name, text)
        self.save(folder / SUMMARY_FILE)

    def save(self, path: Path) -> None:
        """Write the JSON document atomically."""
        path = path.resolve()  # Keep a link.
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def rank_trials(trials: Sequence[TrialRecord], mode: Mode) -> list[TrialRecord]:
    """Return the trials by state, complete ones first, and within a state the best first."""

    def order(trial: TrialRecord) -> tuple[int, bool, float, int]:
        value = trial.best or 0.0
        return _ORDER.index(trial.state), trial.best is None, -value if mode == "max" else value, trial.number

    return sorted(trials, key=order)


def trial_table(trials: Sequence[TrialRecord], mode: Mode, monitor: str) -> list[str]:
    """Return the lines of a table of trials, the best first, and below it the errors of failed ones."""
    if not trials:
        return ["no trial has begun"]
    lines = table(trial_rows(trials, mode, monitor), right=_NUMBERS)
    errors = trial_errors(trials)
    return [*lines, "", *errors] if errors else lines


def trial_rows(trials: Sequence[TrialRecord], mode: Mode, monitor: str) -> list[list[str]]:
    """Return the rows of a table of trials: its head, then a row per trial, the best first."""
    # Leave out settings with the same value in all trials, unless there is only one trial.
    settings = list(dict.fromkeys(setting for trial in trials for setting in trial.values))
    differ = [
        setting for setting in settings if len({value_in_words(trial.values.get(setting)) for trial in trials}) > 1
    ] or settings
    rows = [["rank", "trial", "state", monitor, "epochs", "duration", *differ]]
    for rank, trial in enumerate(rank_trials(trials, mode), start=1):
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
    return rows


def trial_errors(trials: Sequence[TrialRecord]) -> list[str]:
    """Return a line per failed trial."""
    return [f"trial {trial.number}: {trial.error}" for trial in trials if trial.error]


def recipe_patch(config: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``recipe.yaml`` that a trial changes; ``model`` has all its settings there."""
    settings = {setting: value for setting, value in values.items() if not setting.startswith(MODEL)}
    if len(settings) < len(values):
        settings["model"] = dict(config.model)
    return settings


def as_yaml(patch: Mapping[str, Any]) -> str:
    """Return the fields in the form of a recipe."""
    return yaml.safe_dump(dict(patch), sort_keys=False, default_flow_style=None, width=120)


def command(arguments: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return the command that trains with ``values``.

    Args:
        arguments: The sweep's flags of ``training.run``.
        values: The value of each searched setting.
    """
    flags = [_flag(setting, value) for setting, value in values.items()]
    # Quotation for the shell, which comes last, would hide secrets from the patterns.
    words = ["mirrorspark", "train", *map(without_credentials, _without_summary(arguments)), *flags]
    return shlex.join(words)


def _without_summary(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without ``--summary``, whose file is the sweep's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--summary")
    return parser.parse_known_args(list(arguments))[1]


def _flag(setting: str, value: Any) -> str:
    is_models = setting.startswith(MODEL)
    name = setting if is_models else setting.replace("_", "-")
    if isinstance(value, bool) and not is_models:
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
