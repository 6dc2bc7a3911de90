"""Mistakes in a call of ``fit`` that can be found before a Spark session starts: in settings, names and columns."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines import memory_tables, table_forms
from mirrorspark.data_pipelines.dataset import MANIFEST_FILE, SPLITS, TRAIN_SPLIT
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN, SplitError
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import ModelSettingsError
from mirrorspark.spark_session import require_own_installation
from mirrorspark.storage import likely_meant, meant
from mirrorspark.training.configuration import (
    ConfigError,
    NullLabels,
    TrainingConfig,
    default_register,
    defaults_of_label,
)
from mirrorspark.training.entry_points import fit_items
from mirrorspark.training.protocol import parse_workers

# Settings whose values are checked against the architecture, which a function does not name.
_OF_THE_MODEL = ("monitor", "mode", "baseline", "calibration", "register", "monotone")


def check_arguments(
    table: Any,
    label: Any,
    spec: FeatureSpec | str | Path | None,
    model: Any,
    callbacks: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    null_labels: str,
    known: Iterable[str],
) -> None:
    """Check the arguments of ``fit`` against each other, and every setting for the kinds that the label may have.

    ``known`` are the names of its arguments.

    Raises:
        TableError: ``table`` is a converted dataset.
        ConfigError: A setting is unknown, or has an invalid value.
        FeatureSpecError: The label is neither a name nor a name and a kind.
        ModelSettingsError: There is no such model, or it has no such setting.
    """
    if isinstance(table, Dataset) or (isinstance(table, str | Path) and Path(table, MANIFEST_FILE).is_file()):
        path = table.path if isinstance(table, Dataset) else table
        raise memory_tables.TableError(
            f"{path} is a converted dataset, which has its label, features and split already; train on it with "
            f"ms.train('{path}', ms.TrainingConfig(name=…)), or give ms.fit the table that it was made of"
        )
    fields = TrainingConfig.__dataclass_fields__
    if unknown := sorted(set(settings) - set(fields)):
        remedy = likely_meant(unknown, [*known, *fields], otherwise="use fields of TrainingConfig")
        raise ConfigError(f"settings {unknown} are unknown; {remedy}")
    if null_labels not in (choices := get_args(NullLabels)):
        raise ConfigError(f"null_labels '{null_labels}' is unknown{meant(str(null_labels), choices)}; use {choices}")
    if not isinstance(label, str) and not (isinstance(label, Mapping) and isinstance(label.get("name"), str)):
        raise kinds.FeatureSpecError(
            f"label must be a column's name, or its name and kind as {{'name': 'stars', 'kind': 'numeric'}}, not "
            f"{label!r}"
        )
    if callbacks and (model is None or isinstance(model, str | Mapping)):
        raise ConfigError("callbacks go with a model of your own; give a function that builds it as model, too")
    _check_settings(_possible_kinds(label, spec), model, settings)


def check_session(spark: SparkSession | None, workers: Any) -> None:
    """Check that a session, or one that is yet to start (None), can run ``workers``; None for any number.

    Raises:
        PreflightError: It cannot.
        SparkStartError: It cannot start: variables of the environment lead to another installation.
        StoppedSessionError: It was stopped.
    """
    if spark is None:
        return require_own_installation(is_local=True)
    from mirrorspark.training.job.readiness import preflight

    return preflight.require(preflight.check_session(spark, parse_workers(workers or 1).fewest))


def check_items(table: Any, label: Any, items: Any, user: Any, keys: Any, spec: Any) -> None:
    """Check the arguments of ``fit`` for a recommender, and the items if they are in memory.

    Raises:
        ConfigError: Arguments exclude each other.
        FeatureSpecError: The label is of another kind, or the items do not fit.
    """
    if spec is not None:
        if user is not None:
            raise ConfigError("user is part of the spec; leave one of them out")
    elif items is not None or user is not None:
        fit_items.check_items(table, items, label)
        if keys is not None:
            raise ConfigError("keys go with neither items nor user: user and item identify a row of interactions")


def _possible_kinds(label: Any, spec: FeatureSpec | str | Path | None) -> Iterable[str]:
    """Return the kinds that the label may have: all of them until it is inferred."""
    if isinstance(spec, FeatureSpec):
        return (spec.label.kind,)
    if isinstance(label, Mapping) and "kind" in label:
        return (kinds.Label(label["name"], **{"kind": "binary"} | _only_kind(label["kind"])).kind,)
    return get_args(kinds.LabelKind)


def _check_settings(label_kinds: Iterable[str], model: Any, settings: Mapping[str, Any]) -> None:
    """Raise the first error of settings that suit none of the kinds of label."""
    given = dict(settings)
    if callable(model):
        given = {name: value for name, value in given.items() if name not in _OF_THE_MODEL}
    elif model is not None:
        given["model"] = {"name": model} if isinstance(model, str) else dict(model)
    errors: list[ValueError] = []
    for kind in label_kinds:
        # As ``fit`` has it for a table of rows; sparse features and vectors, which it does not take, are found later.
        name = {"candidate": "item_knn", "multi_label": "logistic_regression"}.get(kind, "hist_gradient_boosting")
        other = {"baseline": name}
        chosen = {} if given.get("monotone") is None else {"register": default_register(kind, {**other, **given})}
        chosen |= given
        baseline = other if chosen.get("register") == "better" else {}
        try:
            TrainingConfig(**{"name": "model", **baseline, **chosen} | defaults_of_label(kind, given))
        except (ConfigError, ModelSettingsError) as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def check_columns(
    table: Any,
    label: str,
    keys: Sequence[str],
    time: str | None,
    exclude: Sequence[str],
    spec: FeatureSpec | None,
    *,
    null_labels: str,
) -> None:
    """Check that a table in memory has the columns that a call names, and the values of its label and its split.

    Raises:
        FeatureSpecError: A column is missing, or a row has no label, which ``null_labels`` refuses.
        SplitError: The column ``split`` has another value than the names of splits, or no row to train on.
    """
    names = table_forms.column_names(table)
    if not names or not all(isinstance(name, str) for name in names):
        return  # Reading the table will say what is wrong with it.
    used = spec.columns if spec is not None else ()
    asked = {"label": (label,), "keys": keys, "time": (time,) if time else (), "exclude": exclude, "spec": used}
    for argument, wanted in asked.items():
        missing = [name for name in wanted if name not in names and name != memory_tables.ROW_NUMBER]
        if missing:
            raise kinds.FeatureSpecError(
                f"{argument}: the table has no column '{missing[0]}'; it has {names}{meant(missing[0], names)}"
            )
    if null_labels == "refuse" and (nulls := (column := _column(table, label)).null_count):
        raise kinds.FeatureSpecError(
            f"label '{label}' has no value in {nulls:,} of {len(column):,} rows; leave them out with "
            f"null_labels='drop', or give them a label"
        )
    if SPLIT_COLUMN in names:
        _check_split(_column(table, SPLIT_COLUMN))


def _check_split(split: pa.ChunkedArray) -> None:
    found = [str(value) for value in pc.unique(split).to_pylist() if value is not None]
    unknown = sorted(set(found) - set(SPLITS))
    if unknown:
        raise SplitError(
            f"column '{SPLIT_COLUMN}' has the values {unknown[:5]}{meant(unknown[0], SPLITS)}; it decides about the "
            f"split and may have {', '.join(SPLITS)}: rename its values, or the column if it means something else"
        )
    if split.null_count:
        raise SplitError(
            f"column '{SPLIT_COLUMN}' has no value in {split.null_count:,} of {len(split):,} rows; give each row one "
            f"of {', '.join(SPLITS)}, or drop these rows"
        )
    if TRAIN_SPLIT not in found:
        raise SplitError(f"column '{SPLIT_COLUMN}' has no row of {TRAIN_SPLIT}, so there is nothing to learn from")


def _column(table: Any, name: str) -> pa.ChunkedArray:
    """Return a column of a table in memory."""
    return memory_tables.in_arrow(table_forms.selected(table, [name]))[name]


def _only_kind(kind: Any) -> dict[str, Any]:
    return {"kind": kind, **({"classes": ("a", "b")} if kind == "ordinal" else {})}
