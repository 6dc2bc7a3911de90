"""The file that divides the requests for a name between versions: variants, shadows, and limits for variants."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.experiments.definition import Experiment
from mirrorspark.lifecycle.experiments.live.checks import LiveChecks
from mirrorspark.lifecycle.settings import settings_of
from mirrorspark.storage import one_line, read_text

_KEY_CHARACTERS = 16


class TrafficError(ClearError, ValueError):
    """Raised for a file of traffic that makes no sense; the message names the file, the value and the remedy."""


@dataclass(frozen=True)
class TrafficSettings:
    """Division of the requests for a name.

    Attributes:
        name: Public model name.
        models: URI of the model by variant, for each variant of the experiment.
        shadows: URI by name of models that compute every request, too; their answers go to nobody.
        checks: Limits for variants other than the control.
        unit_header: Header of a request with the unit, such as a user's id. Without it, the control answers.
        unit_key_file: File with the key that units are signed with
            (:func:`lifecycle.experiments.units.sign_unit`); without one, callers choose them.
        trusts_callers: Whether callers are trusted with what they say of units, such as a gateway that sets the header
            itself. Callers with one of the server's tokens always are.
        exposures: File that gets a line of JSON for each answer with a variant: the columns of the exposure log.
        alerts: Where a message goes when a variant is stopped: ``log``, ``https://…``, ``mailto:…``.
    """

    name: str
    models: dict[str, str]
    shadows: dict[str, str] = field(default_factory=dict)
    checks: LiveChecks = field(default_factory=LiveChecks)
    unit_header: str = "X-Unit-Id"
    unit_key_file: str | None = None
    trusts_callers: bool = False
    exposures: str | None = None
    alerts: tuple[str, ...] = ("log",)


@dataclass(frozen=True)
class TrafficFile:
    """The settings and the experiment of a file, the text of both, and the experiment's own file if there is one."""

    path: Path
    text: str
    settings: TrafficSettings
    experiment: Experiment
    experiment_path: Path | None

    def unit_key(self) -> str | None:
        """Return the key that units are signed with; None where they are not.

        Raises:
            TrafficError: It is too short.
            OSError: Its file cannot be read.
        """
        if self.settings.unit_key_file is None:
            return None
        path = self.path.parent / self.settings.unit_key_file
        key = read_text(path).strip()
        if len(key) < _KEY_CHARACTERS:
            raise TrafficError(
                f"{path} has a key of {len(key)} characters; write {_KEY_CHARACTERS} or more, such as those of "
                f"`openssl rand -hex 32`"
            )
        return key

    def stamp(self) -> tuple[object, ...]:
        """Return a mark that changes with the files.

        Raises:
            OSError: One of them is missing.
        """
        paths = [self.path, self.experiment_path] if self.experiment_path else [self.path]
        return tuple((found.st_mtime_ns, found.st_size, found.st_ino) for found in (path.stat() for path in paths))

    @classmethod
    def load(cls, path: Path) -> "TrafficFile":
        """Read a file of YAML or JSON.

        Raises:
            TrafficError: It is not a mapping of known fields, or its values are invalid.
            ExperimentError: So is its experiment.
            OSError: It cannot be read.
        """
        try:
            text = read_text(path)
            values = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TrafficError(f"{path} is not YAML: {one_line(error)}") from error
        if not isinstance(values, dict) or not {"name", "experiment", "models"} <= set(values):
            raise TrafficError(f"{path} needs name, experiment, and models by variant; see docs/serving.md")
        experiment = values.pop("experiment")
        settings = settings_of(TrafficSettings, values, str(path), TrafficError, also=("experiment",))
        experiment_path = path.parent / experiment if isinstance(experiment, str) else None
        if experiment_path is not None:
            found = Experiment.load(experiment_path)
            text += str(found.declaration())
        else:
            found = Experiment.of(experiment, path)
        if set(settings.models) != set(found.variants):
            raise TrafficError(
                f"{path} has models for {sorted(settings.models)}, and its experiment the variants "
                f"{sorted(found.variants)}; give each variant its model, and other models as shadows"
            )
        if odd := [
            name for name in [*settings.models, *settings.shadows] if not (name.isascii() and name.isprintable())
        ]:
            raise TrafficError(f"{path} has the names {odd}, which headers cannot carry; use printable ASCII")
        if twice := sorted(set(settings.models) & set(settings.shadows)):
            raise TrafficError(f"{path} has {twice} as variants and as shadows; give each its own name")
        return cls(path, text, settings, found, experiment_path)
