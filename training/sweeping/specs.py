"""The specs of a search space, as flags and files write them: read, and checked against the configuration. Pure."""

import itertools
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from training.config import ConfigError, RunConfig
from training.sweeping.space import (
    ARCHITECTURE,
    MODEL,
    Choice,
    Domain,
    Range,
    SearchSpace,
    label_of,
    last_point,
    settings_of,
)

_KINDS = "log:LOW:HIGH, uniform:LOW:HIGH[:STEP] or choice:A,B,..."

_SHARED = "all trials train on one dataset"
_PLACE = "it says where and how the command runs, not what a trial learns"
_YARDSTICK = "trials are compared by it"
# Every other field can be searched.
_FIXED: Mapping[str, str] = {
    **dict.fromkeys(("name", "output", "tracking_uri", "experiment", "resume", "verbose", "checkpoints"), _PLACE),
    **dict.fromkeys(("recipe", "master", "dry_run", "summary", "description", "profile", "run_date"), _PLACE),
    **dict.fromkeys(("strategy", "parameter_servers"), _PLACE),
    **dict.fromkeys(("keep_best", "keep_last", "max_restarts", "max_preemptions", "max_start_failures"), _PLACE),
    **dict.fromkeys(("checkpoint_every_steps", "checkpoint_every_seconds"), _PLACE),
    **dict.fromkeys(("start_limit_seconds", "first_step_limit_seconds", "step_limit_seconds"), _PLACE),
    **dict.fromkeys(("checkpoint_limit_seconds", "end_limit_seconds"), _PLACE),
    **dict.fromkeys(("data", "data_package", "data_package_folder", "csv_null", "tables", "sql", "features"), _SHARED),
    **dict.fromkeys(("label", "keys", "weight", "exclude", "shards", "accept_data_errors"), _SHARED),
    **dict.fromkeys(("reference_dataset",), _SHARED),
    "warm_start": "all trials begin from one model",
    **dict.fromkeys(("monitor", "mode"), _YARDSTICK),
    **dict.fromkeys(("baseline", "top_k", "scoring_batch_size"), "it changes nothing of the training"),
}

# So many configurations are built at the most to find out whether a value can work at all.
_MOST_TRIES = 2000


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in Python."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_space(flags: Sequence[str], file_text: str | None, base: RunConfig) -> SearchSpace:
    """Return the checked space.

    Args:
        flags: ``KNOB=SPEC`` each; they stand over the file.
        file_text: A YAML mapping of knobs to specs.
        base: The configuration whose knobs they are.

    Raises:
        ConfigError: A spec cannot be read, its knob cannot be searched, or the configuration refuses its values.
    """
    specs = {**_file_specs(file_text), **dict(_flag_spec(flag) for flag in flags)}
    if not specs:
        raise ConfigError(
            "nothing is searched; name a knob and its values, for example --search learning_rate=log:1e-4:1e-2"
        )
    architectures = _architectures(specs, base)
    space = SearchSpace({knob: _domain(knob, spec, architectures) for knob, spec in specs.items()})
    _check_values(space, base)
    return space


def _flag_spec(flag: str) -> tuple[str, str]:
    knob, equals, spec = flag.partition("=")
    if not equals or not knob:
        raise ConfigError(f"search '{flag}' is no KNOB=SPEC; use for example learning_rate=log:1e-4:1e-2")
    return knob.strip().replace("-", "_"), spec


def _file_specs(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"the search space is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not all(isinstance(spec, str) for spec in document.values()):
        raise ConfigError(
            "the search space is no mapping of knobs to specs; write a line per knob, for example "
            "learning_rate: log:1e-4:1e-2"
        )
    return {str(knob): spec for knob, spec in document.items()}


def _architectures(specs: Mapping[str, str], base: RunConfig) -> list[str]:
    """Return the architectures that trials may have."""
    if ARCHITECTURE not in specs:
        return [base.model["name"]]
    domain = _parsed(ARCHITECTURE, specs[ARCHITECTURE], None)
    return [str(name) for name in domain.ends]


def _domain(knob: str, spec: str, architectures: Sequence[str]) -> Domain:
    """Return what ``spec`` means for this knob."""
    hint = _hint(knob, architectures)
    domain = _parsed(knob, spec, hint)
    wrong = [value for value in domain.ends if not _fits(value, hint)]
    if wrong:
        raise ConfigError(f"search {knob}: {wrong[0]!r} does not fit; it must be {_in_words(hint)}")
    return domain


def _hint(knob: str, architectures: Sequence[str]) -> Any:
    """Return the type of a knob.

    Raises:
        ConfigError: There is no such knob, or it stays as it is in all trials.
    """
    if knob == ARCHITECTURE:
        return str
    if knob.startswith(MODEL):
        name = knob.removeprefix(MODEL)
        found = [settings[name] for settings in map(settings_of, architectures) if name in settings]
        if not found:
            known = sorted(set().union(*map(settings_of, architectures)))
            raise ConfigError(f"search {knob}: model {' or '.join(architectures)} has no such setting; use {known}")
        return found[0]
    if knob in _FIXED:
        raise ConfigError(f"search {knob}: it cannot be searched, {_FIXED[knob]}")
    hints = get_type_hints(RunConfig)
    if knob not in {field.name for field in fields(RunConfig)} or knob == "model":
        known = sorted(field.name for field in fields(RunConfig) if field.name not in {*_FIXED, "model"})
        raise ConfigError(f"search {knob}: there is no such knob; use a setting like model.dropout, or one of {known}")
    return hints[knob]


def _parsed(knob: str, spec: str, hint: Any) -> Domain:
    kind, _, rest = spec.strip().partition(":")
    if kind == "choice":
        return _choice(knob, rest)
    if kind not in ("log", "uniform"):
        raise ConfigError(f"search {knob}: '{spec}' is no {_KINDS}")
    try:
        numbers = [float(part) for part in rest.split(":")]
    except ValueError:
        raise ConfigError(f"search {knob}: '{spec}' holds what is no number; use {_KINDS}") from None
    if len(numbers) not in ((2,) if kind == "log" else (2, 3)) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"search {knob}: '{spec}' is no {_KINDS}, with finite numbers")
    low, high, step = (*numbers, None)[:3]
    assert low is not None  # noqa: S101 - there are two or three
    assert high is not None  # noqa: S101
    if not low < high:
        raise ConfigError(f"search {knob}: '{spec}' begins at {low:g} and ends at {high:g}; the end must be larger")
    if kind == "log" and low <= 0:
        raise ConfigError(f"search {knob}: '{spec}' begins at {low:g}, which has no logarithm; begin above 0")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"search {knob}: '{spec}' has the step {step:g}; use one above 0 that fits into the range")
    if step is not None:
        high = last_point(low, high, step)
    return _range(knob, spec, Range(low, high, kind == "log", step=step), hint)


def _range(knob: str, spec: str, found: Range, hint: Any) -> Range:
    """Return the range in the numbers that the knob takes."""
    if _fits(0.5, hint):
        return found
    if not _fits(1, hint):
        raise ConfigError(
            f"search {knob}: '{spec}' is a range of numbers, but it must be {_in_words(hint)}; use choice:"
        )
    numbers = [number for number in (found.low, found.high, found.step) if number is not None]
    if not all(number == int(number) for number in numbers):
        raise ConfigError(f"search {knob}: '{spec}' holds a fraction, but it must be {_in_words(hint)}")
    step = None if found.step is None else int(found.step)
    return Range(int(found.low), int(found.high), found.is_log, is_whole=True, step=step)


def _choice(knob: str, text: str) -> Choice:
    try:
        values = yaml.load(f"[{text}]", _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise ConfigError(
            f"search {knob}: 'choice:{text}' cannot be read; write values with commas between, as in "
            f"choice:[64],[128,64]"
        ) from None
    choice = Choice(tuple(values))
    if len(choice.labels) < 2 or len(choice.labels) < len(values):
        raise ConfigError(f"search {knob}: 'choice:{text}' is no choice; give two values or more, each of them once")
    return choice


def _fits(value: Any, hint: Any) -> bool:
    """Whether the knob's type has this value."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if origin in (tuple, list):
        return isinstance(value, list) and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint is float:  # a bool is an int to isinstance, and a whole number is a fine float
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(hint, type) and isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in get_args(hint))
    if origin is Literal:
        return f"one of {list(get_args(hint))}"
    if origin in (tuple, list):
        return f"a list, each {_in_words(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))


def _check_values(space: SearchSpace, base: RunConfig) -> None:
    """Raise ``ConfigError`` for a value with which no configuration can be built.

    A value may need its fellows: a batch size may divide among some of the numbers of workers alone.
    """
    works: dict[str, set[Any]] = {knob: set() for knob in space.domains}
    first_refusals: dict[tuple[str, Any], ValueError] = {}
    for values in itertools.islice(_tries(space), _MOST_TRIES):
        if all(label_of(value) in works[knob] for knob, value in values.items()):
            continue
        try:
            space.configure(base, values)
        except ValueError as error:
            for knob, value in values.items():
                first_refusals.setdefault((knob, label_of(value)), error)
            continue
        for knob, value in values.items():
            works[knob].add(label_of(value))
    for knob, domain in space.domains.items():
        for value in domain.ends:
            if label_of(value) not in works[knob]:
                raise ConfigError(
                    f"search {knob}: the value {value!r} cannot work: {first_refusals[knob, label_of(value)]}"
                )


def _tries(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """Yield values to try: each end alone with the configuration as it is, then their combinations."""
    for knob, domain in space.domains.items():
        for value in domain.ends:
            yield {knob: value}
    ends = [domain.ends for domain in space.domains.values()]
    for point in itertools.product(*ends):
        yield dict(zip(space.domains, point, strict=True))
