"""The search space: specs such as ``log:1e-4:1e-2`` as Optuna's distributions, and configurations with their values."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import get_loader
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mirrorspark.models import ModelSettingsError, catalog, classical
from mirrorspark.storage import load_yaml, meant
from mirrorspark.training.configuration import ConfigError, RunConfig, alternatives, type_in_words

# Prefix of the model's settings, and the setting that names the model.
MODEL = "model."
ARCHITECTURE = "model.name"

# The fields that change the training. All others determine the dataset, the evaluation or the resources of a run.
SEARCHABLE = (
    *("workers", "batch_rule", "global_batch_size", "accumulate", "epochs", "patience", "seed"),
    *("optimizer", "learning_rate", "learning_rate_scaling", "learning_rate_schedule", "warmup_steps"),
    *("clip_norm", "weight_decay"),
    *("local_steps", "outer_momentum", "outer_learning_rate"),
    *("precision", "xla", "steps_per_execution", "threads_per_worker", "gpus_per_worker"),
)
_KINDS = "log:LOW:HIGH, uniform:LOW:HIGH[:STEP] or choice:A,B,..."
_EXAMPLE = "learning_rate=log:1e-4:1e-2"


@dataclass(frozen=True)
class SearchSpace:
    """The spec of each searched field by its dotted name, and Optuna's distribution, with lists as JSON text."""

    specs: Mapping[str, str]
    distributions: Mapping[str, BaseDistribution]

    def bounds(self, name: str, default: Any) -> tuple[Any, ...]:
        """Return the smallest and the largest value of a field, or all its choices; ``default`` if it is fixed."""
        match self.distributions.get(name):
            case CategoricalDistribution() as found:
                return tuple(found.choices)
            case (FloatDistribution() | IntDistribution()) as found:
                return found.low, found.high
        return (default,)

    def configure(self, base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration with these values, without settings that the chosen architecture does not have.

        Raises:
            ValueError: The configuration refuses the values.
        """
        fields = {name: value for name, value in values.items() if not name.startswith(MODEL)}
        options = {name.removeprefix(MODEL): value for name, value in values.items() if name.startswith(MODEL)}
        if not options:
            return replace(base, **fields)
        model = {**base.model, **options}
        if ARCHITECTURE in values:
            known, is_other = _settings(model["name"]), model["name"] != base.model["name"]
            without = {name for name in model if is_other or name in options} - {"name", *known}
            model = {name: value for name, value in model.items() if name not in without}
        return replace(base, **fields, model=model)

    def grid(self) -> dict[str, Sequence[Any]]:
        """Return every value of every field.

        Raises:
            ConfigError: A range is continuous.
        """
        grid = {name: _axis(distribution) for name, distribution in self.distributions.items()}
        endless = [name for name, axis in grid.items() if not axis]
        if endless:
            raise ConfigError(
                f"sampler grid cannot try every value of {endless}; give a step, as in uniform:0:0.5:0.1, or a choice"
            )
        return grid


def decode_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields from Optuna's parameters, in which lists are JSON text."""
    return {name: json.loads(value) if str(value).startswith("[") else value for name, value in params.items()}


def _axis(distribution: BaseDistribution) -> Sequence[Any]:
    """Return every value of a distribution; nothing for a continuous one."""
    match distribution:
        case CategoricalDistribution():
            return distribution.choices
        case IntDistribution(log=False):
            return range(distribution.low, distribution.high + 1, distribution.step)
        case FloatDistribution(step=float(step)):
            count = round((distribution.high - distribution.low) / step) + 1
            # Rounded, since 0.1 + 0.2 is not 0.3.
            return [round(distribution.low + place * step, 12) for place in range(count)]
    return ()


def read_space(flags: Sequence[str], file_text: str | None, base: RunConfig) -> SearchSpace:
    """Return the checked space.

    Args:
        flags: ``FIELD=SPEC``; they override the file.
        file_text: A YAML mapping of fields to specs.
        base: The configuration of all trials.

    Raises:
        ConfigError: A spec cannot be parsed, or its field cannot be searched or is of another type.
    """
    specs = {**_file_specs(file_text), **dict(map(_flag_spec, flags))}
    if not specs:
        raise ConfigError(f"nothing is searched; name a field and its values, for example --search {_EXAMPLE}")
    architectures = (
        {ARCHITECTURE: _distribution(ARCHITECTURE, specs[ARCHITECTURE], str)} if ARCHITECTURE in specs else {}
    )
    names = SearchSpace(specs, architectures).bounds(ARCHITECTURE, base.model["name"])
    settings = {MODEL + name: hint for found in map(_settings, names) for name, hint in found.items()}
    fitted = sorted(classical.RECOMMENDERS.keys() & set(names))
    if fitted:
        raise ConfigError(f"search: {fitted} have no epochs whose metric could be compared; search another model")
    hints = get_type_hints(RunConfig)
    searchable = {ARCHITECTURE: str, **settings, **{name: hints[name] for name in SEARCHABLE}}
    for name in specs:
        if name not in searchable:
            raise ConfigError(
                f"search {name}: it cannot be searched{meant(name, searchable)}; use one of {sorted(searchable)}"
            )
    return SearchSpace(specs, {name: _distribution(name, spec, searchable[name]) for name, spec in specs.items()})


def _flag_spec(flag: str) -> tuple[str, str]:
    name, equals, spec = flag.partition("=")
    if not equals or not name:
        raise ConfigError(f"search '{flag}' is not of the form FIELD=SPEC; use for example {_EXAMPLE}")
    return name.strip().replace("-", "_"), spec


def _file_specs(text: str | None) -> dict[str, str]:
    try:
        document = load_yaml(text) if text is not None else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"the search space is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not all(isinstance(spec, str) for spec in document.values()):
        raise ConfigError(
            "the search space must be a mapping of fields to specs; write a line per field, for example "
            "learning_rate: log:1e-4:1e-2"
        )
    return {str(name): spec for name, spec in document.items()}


def _settings(architecture: str) -> dict[str, Any]:
    """Return the settings of an architecture with their types."""
    try:
        return get_type_hints(catalog.architecture(architecture).Settings)
    except ModelSettingsError as error:
        raise ConfigError(f"search {ARCHITECTURE}: {error}") from error


def _distribution(name: str, spec: str, hint: Any) -> BaseDistribution:
    kind, _, rest = spec.strip().partition(":")
    if kind == "choice":
        return _choice(name, rest, hint)
    try:
        numbers = [float(part) for part in rest.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in {"log": (2,), "uniform": (2, 3)}.get(kind, ()) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"search {name}: '{spec}' is not of the form {_KINDS}")
    make: Any = FloatDistribution
    if not _fits(0.5, hint):
        if not _fits(1, hint):
            raise ConfigError(f"search {name}: '{spec}' is a range, but it must be {type_in_words(hint)}; use choice:")
        if any(number != int(number) for number in numbers):
            raise ConfigError(f"search {name}: '{spec}' holds a fraction, but it must be {type_in_words(hint)}")
        make, numbers = IntDistribution, [int(number) for number in numbers]
    low, high, *step = numbers
    try:
        with warnings.catch_warnings():  # If the steps do not reach the upper bound, the last number before it is used.
            warnings.simplefilter("ignore")
            return make(low, high, log=kind == "log", **({"step": step[0]} if step else {}))
    except ValueError as error:
        raise ConfigError(f"search {name}: '{spec}' is not a range of numbers: {error}") from error


def _choice(name: str, text: str, hint: Any) -> CategoricalDistribution:
    try:
        values = get_loader("yaml")(f"[{text}]")  # as the flags: 1e-3 is a number, which it is not in YAML 1.1
    except yaml.YAMLError:
        raise ConfigError(
            f"search {name}: 'choice:{text}' cannot be read; write values with commas between, as in "
            f"choice:[64],[128,64]"
        ) from None
    for value in values:
        if not _fits(value, hint):
            raise ConfigError(f"search {name}: {value!r} does not fit; it must be {type_in_words(hint)}")
    labels = [json.dumps(value) if isinstance(value, list) else value for value in values]
    if len(set(labels)) < max(2, len(labels)):
        raise ConfigError(f"search {name}: 'choice:{text}' is not a choice; give two values or more, each of them once")
    return CategoricalDistribution(labels)


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a field of this type takes the value."""
    return any(_fits_one(value, part) for part in alternatives(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if get_origin(hint) in (tuple, list):
        return isinstance(value, list) and all(_fits(part, get_args(hint)[0]) for part in value)
    if isinstance(value, bool):  # bool is a subclass of int.
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def in_words(values: Mapping[str, Any]) -> str:
    """Return searched values as text: ``learning_rate=0.0031, model.hidden_units=[64]``."""
    return ", ".join(f"{name}={value_in_words(value)}" for name, value in values.items())


def value_in_words(value: Any) -> str:
    """Return a searched value as short text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
