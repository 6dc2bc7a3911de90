"""The defaults that depend on the label and on the size of the table: those of ``fit``, ``train`` and recipes alike."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.models import ModelSettingsError, catalog, classical
from mirrorspark.storage import meant
from mirrorspark.training.configuration.fields import ConfigError, ResultSettings
from mirrorspark.training.configuration.tasks import (
    DEFAULT_BOOSTING,
    LINEAR_BASELINES,
    POPULARITY,
    TASKS,
    RowBaseline,
)

if TYPE_CHECKING:
    from mirrorspark.training.configuration.config import TrainingConfig

# Below this number of training rows per worker, a worker's threads and network cost more than they bring.
ROWS_PER_WORKER = 20_000

# Of a model that is named, or of a label without an ensemble.
EPOCHS = 40
PATIENCE = 15
OPTIMIZER = "adam"

# The kinds of labels that networks for tables learn, with the architecture.
_TABLES: Mapping[str, str] = {
    "binary": "multi_field",
    "multi_class": "multi_class",
    "numeric": "regression",
    "ordinal": "ordinal",
}
_ENSEMBLE: Mapping[str, Any] = {"numeric_embedding": "piecewise", "members": 8, "dropout": 0.1}
# From this number of numbers on, smooth functions of several of them are likely.
_MANY_NUMBERS = 16
# Members that have two halves of two.
_FEWEST_OF_HALVES = 4
# Its patience usually ends it before the fortieth epoch.
_OF_ENSEMBLE: Mapping[str, Any] = {"epochs": 200, "patience": 5, "optimizer": "adamw", "weight_decay": 0.01}

EPOCHS_IN_TIME = 1_000
"""The most epochs within a time limit."""

Presets = Literal["fast", "good", "best"]
"""How much a training of a table tries: ``good`` and ``best`` take several times as long as ``fast``."""

# The fits of gradient boosting of `good` and `best`. They differ enough for a blend of them to be better than each.
_SEVERAL_BOOSTINGS: Sequence[str | Mapping[str, Any]] = (
    DEFAULT_BOOSTING,
    {"name": DEFAULT_BOOSTING, "max_features": 0.3, "min_samples_leaf": 50},
    {"name": DEFAULT_BOOSTING, "max_leaf_nodes": 15},
    {"name": DEFAULT_BOOSTING, "l2_regularization": 5.0},
)
# Members of the network of `best`.
_MOST_MEMBERS = 32

# Of a recommender: of items with features, as in the recipe movielens_items, and of histories that have an order.
_TOWERS: Mapping[str, Any] = {
    "name": "two_tower",
    "embedding_dim": 32,
    "hidden_units": [64],
    "dropout": 0.2,
    "id_dropout": 0.1,
}
_SEQUENCES: Mapping[str, Any] = {
    "name": "sasrec",
    "blocks": 1,
    "dropout": 0.4,
    "reads_user": False,
    "every_position": True,
}
_OF_TOWERS: Mapping[str, Any] = {"epochs": 20, "learning_rate": 0.003, "patience": 3}
_OF_SEQUENCES: Mapping[str, Any] = {**_OF_TOWERS, "epochs": 40, "patience": 5}

# SLIT inverts a dense matrix for each length of the history, which takes 10 seconds for this number of items.
_MOST_STEPPED_ITEMS = 10_000

# BSPM takes 100 seconds for 40,000 items, and as many times longer as there are pairs of items.
_MOST_FILTERED_ITEMS = 50_000

# With fewer updates a network hardly leaves its initial weights.
_FEWEST_UPDATES_OF_AN_EPOCH = 20
_FEWEST_UPDATES = 100


def default_model(kind: str, spec: FeatureSpec | None = None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the architecture that learns a kind of label, and its settings, with those that are ``given``.

    Labels of the kinds ``binary``, ``multi_class``, ``numeric`` and ``ordinal`` get the ensemble that does best on the
    tables of docs/quality.md: numbers embedded piecewise, 8 members, a dropout of 0.1. It is trained by AdamW with a
    decay of 0.01 and a patience of 5 epochs: an epoch takes longer than one of the plain network, and fewer are needed.
    Where the features are mostly numbers, 16 of them or more, half of the members read them without an embedding.
    ``multi_label`` and ``candidate`` get an architecture with its own defaults. Those of histories are in
    :func:`defaults_of_recommender`.
    """
    if kind == "multi_label":
        return {"name": "multi_label", **(given or {})}
    if kind not in _TABLES:
        # Before there is a spec, settings that towers lack are those of the model of sequences.
        default = _SEQUENCES if spec is None and _ask_for_sequences(given) else {"name": "two_tower"}
        return {**default, **(given or {})}
    settings = {"name": _TABLES[kind], **_ENSEMBLE, **(given or {})}
    numbers = sum(isinstance(feature, kinds.Numeric) for feature in spec.features) if spec else 0
    is_mostly_numbers = spec is not None and numbers >= max(_MANY_NUMBERS, len(spec.features) / 2)
    members, embedding = settings["members"], settings["numeric_embedding"]
    if is_mostly_numbers and embedding != "none" and type(members) is int and members >= _FEWEST_OF_HALVES:
        settings.setdefault("plain_members", members // 2)
    return settings


def defaults_of_label(kind: str, given: Mapping[str, Any], spec: FeatureSpec | None = None) -> dict[str, Any]:
    """Return the model of a kind of label with its epochs, optimizer and patience, as far as ``given`` is silent.

    A model that is named has its own defaults. Settings of a model without its name are those of the default one.
    """
    model = given.get("model") or {}
    if "name" in model:
        return {}
    of_training = dict(_OF_ENSEMBLE) if kind in _TABLES else {}
    if given.get("optimizer") is not None:
        of_training.pop("weight_decay", None)  # that of the default optimizer
    if given.get("time_limit") is not None:
        of_training.pop("epochs", None)
    silent = {name: value for name, value in of_training.items() if given.get(name) is None}
    return {"model": default_model(kind, spec, model), **silent}


def defaults_of_recommender(spec: FeatureSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recommender of histories, or of items with features, where ``given`` is silent.

    Rows that stand for all positions of their history are for the model of sequences. The default model of histories is
    that of the epoch with the best lists: its loss rises many epochs before they get worse.
    """
    model = given.get("model") or {}
    can_be_of_sequences = spec.label.rating is None and len(spec.histories) == 1
    is_of_sequences = can_be_of_sequences and (spec.label.history_items or _ask_for_sequences(model))
    settings = dict(_OF_SEQUENCES if is_of_sequences else _OF_TOWERS)
    if given.get("time_limit") is not None:
        del settings["epochs"]
    if "name" not in model and spec.histories and spec.label.rating is None:
        settings["monitor"] = f"val_recall@{given.get('top_k') or ResultSettings.top_k}"
    silent = {name: value for name, value in settings.items() if given.get(name) is None}
    return silent if "name" in model else {**silent, "model": {**(_SEQUENCES if is_of_sequences else _TOWERS), **model}}


def learns_histories(model: Any) -> bool:
    """Return whether a model, as it is given to ``fit``, learns all items of a history, where these have an order.

    The default model of sequences does, also with other settings, unless these are settings of towers alone.
    """
    if callable(model):
        return False
    settings = {"name": model} if isinstance(model, str) else dict(model or {})
    if "name" not in settings and not _are_of(_SEQUENCES["name"], settings):
        return False
    chosen = settings if "name" in settings else {**_SEQUENCES, **settings}
    try:
        return catalog.learns_histories(chosen.pop("name"), chosen)
    except ModelSettingsError:
        return False  # They may suit towers; else the configuration says what is wrong.


def _ask_for_sequences(settings: Mapping[str, Any] | None) -> bool:
    """Return whether settings of a model without its name are those of the model of sequences, and not of towers."""
    return not _are_of(_TOWERS["name"], settings) and _are_of(_SEQUENCES["name"], settings)


def _are_of(architecture: str, settings: Mapping[str, Any] | None) -> bool:
    return set(settings or ()) <= catalog.setting_names(architecture)


def check_presets(presets: Any) -> None:
    """Raise ``ConfigError`` if there are no such presets."""
    known = get_args(Presets)
    if presets not in known:
        raise ConfigError(f"presets '{presets}' is unknown{meant(str(presets), known)}; use {', '.join(known)}")


def defaults_of_presets(
    presets: Presets, spec: FeatureSpec, given: Mapping[str, Any], items: int = 0
) -> dict[str, Any]:
    """Return the baselines, and for ``best`` the members of the network, as far as ``given`` is silent about them.

    ``items`` are the candidates of a label of that kind, as far as they are known.
    """
    baseline = default_baseline(spec, items)
    chosen: dict[str, Any] = {"baseline": baseline}
    model = given.get("model") or {}
    # Without a choice there is nothing to try several for.
    if (
        presets != "fast"
        and baseline == DEFAULT_BOOSTING
        and default_register(spec.label.kind, {**given, **chosen}) == "better"
    ):
        chosen["baseline"] = [dict(each) if isinstance(each, Mapping) else each for each in _SEVERAL_BOOSTINGS]
    if presets == "best" and spec.label.kind in _TABLES and "name" not in model:
        chosen["model"] = {"members": _MOST_MEMBERS, **model}
    return {name: value for name, value in chosen.items() if name == "model" or given.get(name) is None}


def default_workers(rows: int, slots: int) -> int:
    """Return a worker per slot, but at most one per 20,000 training rows."""
    return max(1, min(slots, rows // ROWS_PER_WORKER))


def default_batch_size(rows: int, parts: int = 1) -> int:
    """Return the power of two nearest to a hundredth of the training rows, from 64 to 4,096.

    So an epoch has about a hundred updates, up to some 400,000 rows.

    Args:
        rows: Training rows.
        parts: Equal parts that a batch is divided into, for workers, GPUs and accumulation: it is rounded up to a
            multiple of them.
    """
    about = 2 ** round(math.log2(min(max(rows / 100, 64), 4096)))
    return -(-about // parts) * parts


def default_baseline(spec: FeatureSpec, items: int = 0) -> str | list[Any]:
    """Return the baseline of the label's kind, or several.

    For ``candidate`` they are recommenders that score from the whole history and from its last items, and without a
    history popularity. It is logistic regression for ``multi_label``. For ``binary``, ``multi_class``, ``numeric`` and
    ``ordinal`` it is gradient boosting, or where a feature is sparse or a vector, which that does not take, logistic or
    ridge regression.

    Args:
        spec: The feature specification.
        items: Candidates of a ``candidate``, as far as they are known: too many for a recommender leave it out.
    """
    if spec.label.kind == "candidate":
        return POPULARITY if classical.history_of(spec) is None else _recommenders(items)
    if spec.label.kind in _TABLES and not any(feature.form in kinds.WIDE_FORMS for feature in spec):
        return DEFAULT_BOOSTING
    return LINEAR_BASELINES[next(name for name, task in TASKS.items() if task.label == spec.label.form)]


def _recommenders(items: int) -> list[Any]:
    """Return recommenders that take seconds to minutes for this number of items, each from a few lengths of history."""
    if items > _MOST_FILTERED_ITEMS:
        return [POPULARITY, "item_knn"]
    lengths: dict[str, tuple[int, ...]] = {"item_knn": (10, 0)}
    if items <= classical.MOST_DENSE_ITEMS:
        lengths["ease"] = (3, 5, 10, 15, 0)
    if items <= _MOST_STEPPED_ITEMS:
        lengths["slit"] = (3, 10)
    lengths["bspm"] = (5, 0)
    named = [(name, last) for name, of_name in lengths.items() for last in of_name]
    return [POPULARITY, *({"name": name, "last_items": last} if last else name for name, last in named)]


def default_register(kind: str, given: Mapping[str, Any], *, has_recommenders: bool = False) -> str:
    """Return ``better`` where nothing is asked of the model, and a baseline may take its place; else ``model``.

    Of a candidate only the network has approximate indexes for many of them.

    Args:
        kind: Kind of the label.
        given: Settings of the user, with a baseline.
        has_recommenders: True for a candidate if rows have a history, which classical recommenders score from, and no
            rating, which none of them predicts.
    """
    if given.get("model") or given.get("warm_start"):
        return "model"
    asked = given["baseline"] if isinstance(given["baseline"], list | tuple) else [given["baseline"]]
    baselines = [RowBaseline.parse(each) for each in asked]
    if kind == "candidate":
        has_other = has_recommenders and any(one.name in ("ease", "slit", "bspm") for one in baselines)
    else:
        has_other = any(one.is_registrable for one in baselines)
    return "better" if has_other else "model"


def few_updates(config: "TrainingConfig", rows: int) -> str | None:
    """Return a warning, with the remedy, if a training on this number of rows has too few updates; None otherwise."""
    if config.is_fitted:  # without updates
        return None
    batch, fitting = config.global_batch_size, default_batch_size(rows, config.batch_parts)
    updates = -(-rows // batch)
    if updates < _FEWEST_UPDATES_OF_AN_EPOCH and batch > fitting:
        return (
            f"an epoch of {rows:,} training rows in batches of {batch:,} has {_counted(updates)}, too few to learn "
            f"much; leave global_batch_size out, or use {fitting:,} (--global-batch-size {fitting})"
        )
    if updates * config.epochs < _FEWEST_UPDATES:
        epochs = -(-_FEWEST_UPDATES // updates)
        return (
            f"{config.epochs} epoch{'s' * (config.epochs != 1)} of {rows:,} training rows in batches of {batch:,} have "
            f"{_counted(updates * config.epochs)}, too few to learn much; use {epochs} epochs (--epochs {epochs})"
        )
    return None


def _counted(updates: int) -> str:
    return "1 update" if updates == 1 else f"{updates} updates"
