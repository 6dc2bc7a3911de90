"""The report of a sweep: its trials as a table, and the best values as a recipe and as a command."""

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
from mirrorspark.training.results.report import save_document, strict, verdict_lines
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
    """The result of a sweep, ``finished``, ``stopped`` or ``failed``.

    Attributes:
        wanted: Requested number of trials.
        run_id: The parent MLflow run of the trials' runs.
        trials: All trials that have begun.
        best: The best complete trial.
        importances: Importance of each setting, as shares of 1.
        recipe: The fields of a recipe that the best trial changes.
        command: Command that trains the best trial again.
        delivered: Fields of the summary of the best trial's export.
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
        return dict(clean(strict(asdict(self))))

    def as_text(self) -> str:
        """Return the tables that end a sweep."""
        lines = trial_table(self.trials, self.mode, self.monitor)
        if self.importances:
            rows = [[setting, f"{share:.0%}"] for setting, share in self.importances.items()]
            lines += ["", *table([["importance", ""], *rows], right={1})]
        if self.best is not None:
            lines += ["", self._best_in_words()]
        given = self.delivered.get
        if given("metrics"):
            lines += ["", *verdict_lines(self.delivered["metrics"], given("baseline") or {}), ""]
        places = (
            ("model", given("model_version") and f"models:/{given('registered_model')}/{given('model_version')}"),
            ("scores", given("scored_table")),
            ("again", self.command),
            ("send metrics", self.replay),
            ("send metrics", given("replay")),
            ("sweep folder", self.folder),
        )
        return "\n".join([*lines, *(f"{name}: {place}" for name, place in places if place)])

    def _best_in_words(self) -> str:
        if self.best is None:
            return ""
        return f"best: trial {self.best.number}, {self.monitor} {self.best.best:.4f} with {in_words(self.best.values)}"

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
        """Do :func:`training.results.report.save_document` with all fields."""
        save_document(asdict(self), path)


def rank_trials(trials: Sequence[TrialRecord], mode: Mode) -> list[TrialRecord]:
    """Return the trials by state, complete ones first, and within a state the best first."""
    sign = -1 if mode == "max" else 1
    return sorted(
        trials,
        key=lambda each: (_ORDER.index(each.state), each.best is None, sign * (each.best or 0.0), each.number),
    )


def trial_table(trials: Sequence[TrialRecord], mode: Mode, monitor: str) -> list[str]:
    """Return the lines of a table of trials, the best first, and below it the errors of failed ones."""
    if not trials:
        return ["no trial has begun"]
    errors = trial_errors(trials)
    return [*table(trial_rows(trials, mode, monitor), right=_NUMBERS), *([""] if errors else []), *errors]


def trial_rows(trials: Sequence[TrialRecord], mode: Mode, monitor: str) -> list[list[str]]:
    """Return the rows of a table of trials: its head, then a row per trial, the best first."""
    words = {each.number: {name: value_in_words(value) for name, value in each.values.items()} for each in trials}
    settings = list(dict.fromkeys(name for each in words.values() for name in each))
    # Leave out settings with the same value in all trials, unless there is only one trial.
    differ = [name for name in settings if len({each.get(name) for each in words.values()}) > 1] or settings
    rows = [["rank", "trial", "state", monitor, "epochs", "duration", *differ]]
    for rank, trial in enumerate(rank_trials(trials, mode), start=1):
        place = str(rank) if trial.state == "complete" else ""
        best = _MISSING if trial.best is None else f"{trial.best:.4f}"
        values = (words[trial.number].get(name, _MISSING) for name in differ)
        rows.append([place, str(trial.number), trial.state, best, str(trial.epochs), duration(trial.seconds), *values])
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
    """Return the command that trains with ``values``; ``arguments`` are the sweep's flags of a training."""
    flags = [_flag(setting, value) for setting, value in values.items()]
    # Quotation for the shell, which comes last, would hide secrets from the patterns.
    return shlex.join(["mirrorspark", "train", *map(without_credentials, arguments), *flags])


def _flag(setting: str, value: Any) -> str:
    is_models = setting.startswith(MODEL)
    name = setting if is_models else setting.replace("_", "-")
    if isinstance(value, bool) and not is_models:
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
