"""Settings of a training that go together: a check for each subject.

Each raises ``ConfigError`` with the setting, its value and the remedy.
"""

import functools
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mirrorspark.callbacks.checkpoints import Mode
from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.extras import install_line, package_line
from mirrorspark.models import own_model
from mirrorspark.storage import meant, one_line
from mirrorspark.training.configuration import costs
from mirrorspark.training.configuration.fields import ConfigError
from mirrorspark.training.configuration.tasks import (
    BOOSTING,
    DEFAULT_BOOSTING,
    MONOTONE,
    RANKING,
    REGISTRABLE,
    STRENGTHS,
    TASKS,
    RowBaseline,
)

if TYPE_CHECKING:
    from mirrorspark.training.configuration.config import TrainingConfig

_RECOMMENDERS = "tensorflow_recommenders"


def require(holds: bool, message: str) -> None:
    """Raise ``ConfigError`` with ``message`` unless ``holds``."""
    if not holds:
        raise ConfigError(message)


def monitored(config: "TrainingConfig") -> tuple[str, Mode]:
    """Return the metric that chooses the best epoch, and which way is better.

    Raises:
        ConfigError: The task has no such metric, or ``mode`` does not fit it.
    """
    known, monitor, mode = TASKS[config.task].monitors, vars(config)["monitor"], vars(config)["mode"]
    if monitor is None:
        monitor = next(iter(known))
    if config.task == "retrieval":
        # Papers write recall@20; MLflow refuses the sign in a metric's name.
        monitor = str(monitor).replace("@", "_at_")
        if RANKING.fullmatch(monitor):
            known = {**known, monitor: "max"}
    if own_model.is_own(config.model) and monitor not in known:
        # Only its code knows its metrics.
        require(
            monitor.startswith("val_") and mode is not None,
            f"monitor '{monitor}' of an own model needs a name that begins with val_, and mode min or max",
        )
        known = {monitor: mode}
    require(
        monitor in known,
        f"monitor '{monitor}' is not a metric of a {config.task} model{meant(str(monitor), known)}; use one of "
        f"{list(known)}",
    )
    best = known[monitor]
    # The wrong mode would silently keep the worst epoch.
    require(mode in (None, best), f"mode '{mode}' does not fit monitor '{monitor}'; set mode to {best}")
    return monitor, best


def check_workers(config: "TrainingConfig") -> None:
    """Check that every batch divides among the workers, their parts and their GPUs."""
    try:
        sizes = config.elastic.sizes
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shares = {size: config.elastic.batch(size).global_batch_size // size for size in sizes}
    for size, share in shares.items():
        require(
            share % config.accumulate == 0,
            f"a worker's share of a batch, {share} rows with {size} workers, does not divide into "
            f"{config.accumulate} parts; use another accumulate or global_batch_size",
        )
        require(
            share // config.accumulate % max(1, config.gpus_per_worker) == 0,
            f"{share // config.accumulate} rows, which a worker of {size} computes at once, do not divide "
            f"among {config.gpus_per_worker} GPUs; use another global_batch_size",
        )


def check_strategy(config: "TrainingConfig") -> None:
    """Check the strategy against its abilities: local updates, parameter servers, GPUs and precisions."""
    require(
        config.strategy_name == "ring" or config.local_steps == 1,
        "local_steps above 1 need the strategy ring, which trains on CPUs; use local_steps 1",
    )
    require(
        config.local_steps > 1 or (config.outer_momentum == 0 and config.outer_learning_rate == 1),
        f"outer_momentum {config.outer_momentum} and outer_learning_rate {config.outer_learning_rate} say how local "
        f"updates become one, and with local_steps 1 there are none; set local_steps above 1, or leave both out",
    )
    require(
        not config.local_mode or config.slots == 1,
        f"local_mode is one process on the driver's machine, and workers is {config.workers}; set workers to 1 and "
        f"parameter_servers to 0, or leave local_mode out",
    )
    is_asynchronous = config.strategy == "parameter_server"
    require(
        is_asynchronous == (config.parameter_servers > 0),
        f"strategy {config.strategy_name} with parameter_servers {config.parameter_servers}; give the strategy "
        f"parameter_server and 1 or more of them, or neither",
    )
    require(
        not is_asynchronous or (config.gpus_per_worker == 0 and not config.xla and config.precision == "float32"),
        "the strategy parameter_server trains on CPUs in float32 without xla; leave gpus_per_worker, xla and "
        "precision out",
    )
    require(
        not is_asynchronous or config.warm_start is None,
        "warm_start does not go with the strategy parameter_server, whose tables no worker holds whole; leave one "
        "of them out",
    )
    require(
        not is_asynchronous or not config.worker_range.is_elastic,
        f"workers {config.workers}: the strategy parameter_server needs a fixed number; it goes on without a lost "
        f"worker anyway",
    )
    for what, name in ((config.accumulate > 1, "accumulate"), (config.local_steps > 1, "local_steps")):
        require(
            not what or config.precision != "mixed_float16",
            f"{name} above 1 does not go with precision mixed_float16, whose loss scaling judges every step of all "
            f"workers; use mixed_bfloat16",
        )
    require(
        config.local_steps == 1 or config.checkpoint_every_seconds is None,
        "checkpoint_every_seconds does not go with local_steps above 1: the workers meet for a checkpoint, so when "
        "one is taken is part of the result; use checkpoint_every_steps",
    )
    require(
        config.strategy != "ring" or config.gpus_per_worker == 0 or own_model.is_own(config.model),
        "the strategy ring trains on CPUs; leave strategy out to train on GPUs",
    )
    require(
        config.strategy_name != "ring" or config.gpus_per_worker <= 1,
        f"gpus_per_worker {config.gpus_per_worker}: the strategy ring, by which models of Keras 3 train, uses one GPU "
        f"per worker; set it to 1, and use more workers",
    )


def check_baseline(config: "TrainingConfig") -> None:
    """Check that the baseline fits the task, and that its package is installed."""
    known, given = TASKS[config.task].baselines, config.baseline
    require(
        isinstance(given, list | Mapping) or given in ("none", *known),
        f"baseline '{given}' does not fit a {config.task} model{meant(str(given), known)}; use {', '.join(known)}, "
        f"a list of them or none",
    )
    for asked in config.row_baselines:
        name = asked.name
        require(
            name in known,
            f"baseline '{name}' does not fit a {config.task} model{meant(name, known)}; list {', '.join(known)}",
        )
        require(
            name not in list(BOOSTING)[1:] or find_spec(name) is not None,
            f"baseline '{name}' needs the package {name}, which is not installed; run: {package_line(name)}",
        )
        if asked.options:
            _check_settings(asked, config.task)
    names = [asked.label for asked in config.recommenders or config.row_baselines]
    require(len(set(names)) == len(names), f"baseline lists one twice: {names}; leave out the repetition")


def _check_settings(asked: RowBaseline, task: str) -> None:
    """Check the settings of a baseline, those of gradient boosting by a fit on a few rows."""
    is_boosted, is_regression = asked.name in BOOSTING, task == "regression"
    known = {STRENGTHS[asked.name]} if asked.name in STRENGTHS else set()
    known = BOOSTING[asked.name].setting_names(is_regression=is_regression) if is_boosted else known
    for name in asked.options:
        require(
            name in known,
            f"baseline '{asked.name}' has no setting '{name}' that can be given{meant(name, known)}; use "
            f"{', '.join(sorted(known)) or 'its name alone'}",
        )
    if not is_boosted:
        (name, given), *_ = asked.options.items()
        values = given if isinstance(given, list) and given else [given]
        require(
            all(type(value) in (int, float) and 0 < value < float("inf") for value in values),
            f"baseline '{asked.name}': {name} is {given}; use a number above 0, or a list of such numbers",
        )
        return
    library = BOOSTING[asked.name]
    most = asked.options.get(library.iterations, 1)
    require(
        type(most) is int and most > 0,
        f"baseline '{asked.name}': {library.iterations} is {most!r}; use a whole number from 1 on",
    )
    require(
        _is_plain(asked.options),
        f"baseline '{asked.name}' has the settings {dict(asked.options)}; use plain numbers, texts, lists and mappings",
    )
    try:
        _try_settings(asked.name, json.dumps(asked.options), task)
    except Exception as error:
        raise ConfigError(
            f"baseline '{asked.name}' does not take {dict(asked.options)}: {one_line(error)}; change the settings"
        ) from error


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Return whether settings are the same after they were written as JSON, as they are for the export."""
    try:
        return bool(json.loads(json.dumps(options)) == dict(options))
    except TypeError:
        return False


@functools.cache  # A configuration is made several times from the same settings.
def _try_settings(name: str, options: str, task: str) -> None:
    """Fit gradient boosting with settings, given as JSON, for one iteration on a few rows that also stop it early."""
    library = BOOSTING[name]
    kind = library.class_for(is_regression=task == "regression")
    model = kind(**{**library.quiet, **json.loads(options), library.iterations: 1})
    rows = [[float(number)] for number in range(6)]
    labels = [1, 2, 3, 4, 5, 6] if task == "regression" else [0, 1, 2 if task == "multi_class" else 0] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == DEFAULT_BOOSTING:
            model.fit(rows, labels)
        else:
            model.fit(rows, labels, eval_set=[(rows, labels)], **({"verbose": False} if name == "xgboost" else {}))


def check_register(config: "TrainingConfig") -> None:
    """Check that the best of the model, its baselines and their blend can be registered."""
    if config.register != "better":
        return
    if config.task == "retrieval":
        require(
            not config.is_fitted,
            f"register better chooses between a network and baselines, and model '{config.model['name']}' is fitted; "
            f"register model",
        )
        require(
            bool(config.registrable),
            f"register better needs a baseline that can be registered, and {config.baseline!r} cannot; use one or more "
            f"of {[name for name in TASKS['retrieval'].baselines if name != 'als']}, or register model",
        )
        return
    require(
        bool(config.registrable),
        f"register better needs a baseline that can be registered, and '{config.baseline}' cannot; use the baseline "
        f"{' or '.join(name for name in TASKS[config.task].baselines if name in REGISTRABLE)} (with at most 31 leaves "
        f"and the usual losses), or register model",
    )
    require(
        config.model.get("loss") != "quantile",
        "register better does not go with model.loss quantile: gradient boosting gives no interval; use another "
        "loss, or register model",
    )


def check_class_weights(config: "TrainingConfig") -> None:
    """Check that the model learns one of several classes, whose rows may count differently."""
    require(
        config.class_weights is None or config.task in ("binary", "multi_class"),
        f"class_weights are for labels of kind binary, multi_class and ordinal, and model '{config.model['name']}' "
        f"learns {config.task}; leave them out",
    )


def check_costs(config: "TrainingConfig") -> None:
    """Check that the model decides for one of several classes, and that the costs of decisions have its form."""
    if config.costs is None:
        return
    require(
        config.task in ("binary", "multi_class"),
        f"costs are for labels of kind binary, multi_class and ordinal, and model '{config.model['name']}' learns "
        f"{config.task}; leave them out",
    )
    costs.check_form(config.costs, config.task, with_class_weights=config.class_weights is not None)


def check_monotone(config: "TrainingConfig") -> None:
    """Check that gradient boosting is registered, which alone holds monotone constraints, and takes them."""
    given = config.monotone
    if given is None:
        return
    require(isinstance(given, dict) and bool(given), f"monotone is {given!r}; use {{'age': 'increasing'}}")
    for name, direction in given.items():
        require(
            direction in MONOTONE,
            f"monotone has {direction!r} for feature '{name}'{meant(str(direction), MONOTONE)}; use one of "
            f"{list(MONOTONE)}",
        )
    require(
        config.task in ("binary", "regression"),
        f"monotone is for labels of kind binary and numeric: gradient boosting holds no constraints for a "
        f"{config.task} model; leave it out",
    )
    require(
        config.register == "better",
        f"register is {config.register}, and gradient boosting alone holds the constraints of monotone; set it to "
        f"better, or in ms.fit leave register and model out",
    )
    require(
        any(asked.name in BOOSTING for asked in config.registrable),
        f"monotone needs the baseline {DEFAULT_BOOSTING}, which alone holds the constraints, and baseline is "
        f"'{config.baseline}'; add it",
    )


def check_monotone_features(config: "TrainingConfig", spec: FeatureSpec) -> None:
    """Check that monotone constraints are on numeric features, and that nothing else reads their columns."""
    for name in config.monotone or ():
        known = {feature.name: feature for feature in spec}
        numeric = [each for each, feature in known.items() if feature.kind == "numeric"]
        require(
            name in numeric,
            f"monotone names '{name}', which is "
            f"{f'a feature of kind {known[name].kind}' if name in known else 'not a feature'}"
            f"{meant(name, numeric)}; use numeric features",
        )
        others = [each for each, of in known.items() if each != name and set(of.columns) & set(known[name].columns)]
        require(
            not others,
            f"monotone names '{name}', whose column is read by {others}, too, which may fall where it rises; give a "
            f"spec without {'it' if len(others) == 1 else 'them'}",
        )


def check_time_limit(config: "TrainingConfig") -> None:
    """Check that the number of epochs may be left open."""
    if config.time_limit is None:
        return
    require(
        config.learning_rate_schedule == "constant",
        f"learning_rate_schedule {config.learning_rate_schedule} needs the number of epochs, which time_limit leaves "
        f"open; set epochs instead, or leave the schedule out",
    )
    require(not config.is_fitted, f"model '{config.model['name']}' is fitted without epochs; leave time_limit out")


def check_ranking(config: "TrainingConfig") -> None:
    """Check that a retrieval model can be built, and rank candidates after an epoch where that is asked for."""
    require(
        config.task != "retrieval" or config.is_fitted or find_spec(_RECOMMENDERS) is not None,
        f"a retrieval model needs the package {_RECOMMENDERS}, which is not installed; run: "
        f"{install_line(_RECOMMENDERS)}",
    )
    require(
        not config.ranked_queries or config.task == "retrieval",
        f"ranked_queries is {config.ranked_queries}, but a {config.task} model ranks no candidates; leave it out",
    )
    require(
        config.ranked_queries != 0 or not RANKING.fullmatch(config.monitor),
        f"ranked_queries is 0, so there is no {config.monitor} to monitor; use a larger number, or leave it out",
    )
