"""Quality of the models of tables: Adult on its official test rows, and the recipe ``flights`` on its last two months.

``python -m benchmarks.quality_tables FOLDER`` trains each recipe once per seed, in one process on two threads and with
the product's own layers, and prints a row of ``docs/quality.md`` per recipe, and one per calibration by the validation
rows. The validation rows alone choose the epoch. FOLDER has ``adult.data`` and ``adult.test``; ``--set flights``, whose
rows come with a package, needs none. ``--choose`` looks at no test row.
"""

import argparse
import ast
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf
import tf_keras

from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.dataset.manifest import SPLITS
from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.fitting import bin_boundaries
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.evaluation.metrics import binary_metrics
from mirrorspark.models import calibration, multi_field
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.configuration import RowBaseline
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.job.source_tables import SourceTables
from mirrorspark.training.results.calibrate import Fit, measure
from mirrorspark.training.results.evaluation.row_baselines import baseline_scores, fit_baseline, read_baseline_data

_COLUMNS = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
]
_NUMBERS = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
VALIDATION_SHARE = 0.15
CALIBRATIONS = ("none", "temperature", "isotonic")
METRICS: Mapping[str, str] = {"auc": "AUC", "pr_auc": "PR AUC", "log_loss": "log loss"}
FIGURES: Mapping[str, Sequence[tuple[str, str]]] = {
    "adult": [("validation", "auc"), ("test", "auc"), ("test", "log_loss")],
    "flights": [("validation", "auc"), ("test", "auc"), ("test", "pr_auc"), ("test", "log_loss")],
}
"""Split and metric of each column of figures, by set."""
CALIBRATION_TITLES = ("recipe", "calibration", "test log loss", "expected calibration error, test rows")
MOST_EPOCHS = 60

_ENSEMBLE: dict[str, Any] = {
    "hidden_units": (128, 64),
    "dropout": 0.1,
    "numeric_embedding": "piecewise",
    "members": 8,
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "piecewise": {"numeric_embedding": "piecewise"},
    "periodic": {"numeric_embedding": "periodic"},
    "crosses": {"numeric_embedding": "piecewise", "cross_layers": 2},
    "ensemble": _ENSEMBLE,
    "ensemble and crosses": _ENSEMBLE | {"cross_layers": 1},
}


@dataclass(frozen=True)
class Rows:
    """The inputs and labels of one split."""

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray


Read: TypeAlias = tuple[FittedFeatures, dict[str, Rows], dict[str, dict[str, float]]]
"""Fitted features, the rows by split, and the metrics by split of gradient boosting, if it is measured here."""


@dataclass(frozen=True)
class Outcome:
    """The quality of one training.

    Attributes:
        metrics: AUC, area under the precision-recall curve and log loss by split.
        test_fits: The fit to the test rows by the calibration.
        epochs: The epochs trained, without those of the patience if the best one was restored.
    """

    metrics: Mapping[str, Mapping[str, float]]
    test_fits: Mapping[str, Fit]
    epochs: int
    seconds: float


def adult_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the raw rows of each split; the official test rows are the test split."""
    read: dict[str, Any] = {"header": None, "names": _COLUMNS, "skipinitialspace": True, "na_values": "?"}
    known = pd.read_csv(folder / "adult.data", **read)
    test = pd.read_csv(folder / "adult.test", comment="|", **read)
    test["income"] = test["income"].str.rstrip(".")
    is_validation = np.random.default_rng(0).random(len(known)) < VALIDATION_SHARE
    return {"train": known[~is_validation], "validation": known[is_validation], "test": test}


def read_adult(folder: Path) -> Read:
    """Return the features, fitted on the training rows, and the rows of each split."""
    tables = adult_tables(folder)
    train = tables["train"]
    tokens = [name for name in _COLUMNS[:-1] if name not in _NUMBERS]
    spec = FeatureSpec((*map(Numeric, _NUMBERS), *map(Categorical, tokens)), Label("income"), keys=("row",))
    vocabularies = {name: vocabulary_of(train[name]) for name in tokens}
    statistics = {name: statistics_of(train[name]) for name in _NUMBERS}
    quantiles = {name: bin_boundaries(train[name].to_numpy(float)) for name in _NUMBERS}
    fitted = FittedFeatures(spec, vocabularies, statistics, quantiles)
    return fitted, {split: _rows(fitted, table) for split, table in tables.items()}, {}


def read_flights() -> Read:
    """Return the features of the recipe ``flights``, the rows of each split, and the metrics of gradient boosting."""
    with tempfile.TemporaryDirectory() as output:
        config = RunConfig.from_recipe("flights", output=output)
        sources, spark = SourceTables.find(config), open_session(None, 2)
        dataset, _ = sources.dataset(sources.table(spark, config), config)
        spark.stop()
        rows = {}
        for split in SPLITS:
            blocks = list(dataset.blocks(split))
            inputs = {name: np.concatenate([block.features[name] for block in blocks]) for name in blocks[0].features}
            rows[split] = Rows(inputs, np.concatenate([np.asarray(block.label) for block in blocks]))
        trees = fit_baseline(RowBaseline("hist_gradient_boosting"), read_baseline_data(dataset, "binary"), 1)
        boosting = {
            split: binary_metrics(rows[split].labels, baseline_scores(trees, dataset, split)) for split in SPLITS[1:]
        }
        return dataset.features, rows, boosting


def vocabulary_of(column: pd.Series) -> Vocabulary:
    """Return the tokens of the training rows with their counts, the most frequent first."""
    counts = column.value_counts()
    return Vocabulary(pa.array(counts.index.tolist()), pa.array(counts.tolist()))


def statistics_of(column: pd.Series) -> NumericStatistics:
    """Return the statistics of the training rows' numbers."""
    return NumericStatistics(
        float(column.mean()), float(column.std(ddof=0)), float(column.min()), float(column.max()), len(column)
    )


def _rows(fitted: FittedFeatures, table: pd.DataFrame) -> Rows:
    inputs: dict[str, np.ndarray] = {}
    for feature in fitted.spec.features:
        column = table[feature.name]
        if isinstance(feature, Numeric):
            offset, divisor = fitted.scaling(feature)
            inputs[feature.name] = ((column.to_numpy(float) - offset) / divisor).astype(np.float32)
        else:
            inputs[feature.name] = fitted.vocabularies[feature.name].ids(
                pa.array(column, pa.string(), from_pandas=True)
            )
    return Rows(inputs, table["income"].str.startswith(">50K").to_numpy(np.float32))


def train(
    fitted: FittedFeatures, rows: Mapping[str, Rows], options: Mapping[str, Any], seed: int, how: argparse.Namespace
) -> Outcome:
    """Train until the validation rows' AUC has not risen for ``how.patience`` epochs, and measure the best epoch.

    With ``how.refit``, the measured model is then trained on the training and the validation rows for as many epochs.
    """
    model, best, seconds = _trained(fitted, rows["train"], rows["validation"], options, seed, how, epochs=None)
    found = {"validation": _logits(model, rows["validation"])}
    if how.refit:
        both = Rows(
            {name: np.concatenate([rows[of].inputs[name] for of in SPLITS[:2]]) for name in rows["train"].inputs},
            np.concatenate([rows[of].labels for of in SPLITS[:2]]),
        )
        model, _, more = _trained(fitted, both, None, options, seed, how, epochs=best)
        seconds += more
    fits = {}
    if not how.choose:
        found["test"] = _logits(model, rows["test"])
        fits = fits_of_test(found, rows)
    metrics = {
        split: binary_metrics(rows[split].labels, 1 / (1 + np.exp(-of)), split=split) for split, of in found.items()
    }
    return Outcome(metrics, fits, best, seconds)


def _trained(
    fitted: FittedFeatures,
    train: Rows,
    held: Rows | None,
    options: Mapping[str, Any],
    seed: int,
    how: argparse.Namespace,
    *,
    epochs: int | None,
) -> tuple[tf_keras.Model, int, float]:
    """Return a trained model, its epochs, and the seconds; without ``epochs``, the best one by ``held``."""
    tf_keras.utils.set_random_seed(seed)
    model = multi_field.build(multi_field.Settings(**options), fitted, seed)
    optimizer = OptimizerSettings("adamw", how.rate, weight_decay=how.decay)
    compile_model(model, "binary", build_optimizer(optimizer), steps_per_execution=32)
    count, batch = len(train.labels), how.batch
    given = tf.data.Dataset.from_tensors((dict(train.inputs), train.labels)).get_single_element()

    def shuffled(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.argsort(tf.random.stateless_uniform([count], [seed, number]))
        steps = tf.data.Dataset.from_tensor_slices(tf.reshape(order[: count // batch * batch], [-1, batch]))
        return steps.map(lambda chosen: tf.nest.map_structure(lambda of: tf.gather(of, chosen), given))

    stop = tf_keras.callbacks.EarlyStopping("val_auc", mode="max", patience=how.patience, restore_best_weights=True)
    began = time.monotonic()
    history = model.fit(
        tf.data.Dataset.range(1 << 20).flat_map(shuffled),
        steps_per_epoch=count // batch,
        validation_data=None if held is None else _blocks(held, labelled=True),
        epochs=epochs or MOST_EPOCHS,
        callbacks=[] if held is None else [stop],
        verbose=0,
    )
    best = len(history.epoch) if held is None else stop.best_epoch + 1
    return model, best, time.monotonic() - began


def _blocks(rows: Rows, *, labelled: bool) -> tf.data.Dataset:
    given = (dict(rows.inputs), rows.labels) if labelled else dict(rows.inputs)
    return tf.data.Dataset.from_tensor_slices(given).batch(4096)


def _logits(model: tf_keras.Model, rows: Rows) -> np.ndarray:
    found = [multi_field.logits(model, block)[:, 0] for block in _blocks(rows, labelled=False)]
    return np.concatenate(found).astype(np.float64)


def fits_of_test(logits: Mapping[str, np.ndarray], rows: Mapping[str, Rows]) -> dict[str, Fit]:
    """Return the fit of the log-odds to the test rows, as they are and calibrated by the validation rows."""
    known, test = ((logits[split], rows[split].labels, np.ones(len(logits[split]))) for split in ("validation", "test"))
    found = {"none": measure(*test)}
    for kind in CALIBRATIONS[1:]:
        found[kind] = measure(calibration.fit(kind, *known).applied(test[0]), *test[1:])
    return found


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line, by default of this process's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of adult.data and adult.test")
    parser.add_argument("--set", choices=FIGURES, default="adult")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--options", type=ast.literal_eval, default={}, help="more options of every recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--refit", action="store_true", help="train on the validation rows, too, before the test")
    parser.add_argument("--choose", action="store_true", help="print the validation rows' figures alone")
    found = parser.parse_args(given)
    if found.set == "adult" and found.folder is None:
        parser.error("--set adult needs the folder of adult.data and adult.test")
    return found


def columns(of_set: str, *, choose: bool) -> list[tuple[str, str]]:
    """Return split and metric of each column of figures; to choose by, all metrics of the validation rows."""
    return [("validation", metric) for metric in METRICS] if choose else list(FIGURES[of_set])


def titles(figures: Sequence[tuple[str, str]]) -> list[str]:
    """Return the titles of the table with these columns of figures."""
    return ["recipe", "seeds", *(f"{split} {METRICS[metric]}" for split, metric in figures), "epochs", "seconds"]


def main() -> None:
    """Train the recipes and print a table."""
    given = arguments()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    fitted, rows, boosting = read_flights() if given.set == "flights" else read_adult(given.folder)
    figures = columns(given.set, choose=given.choose)
    print_titles(*titles(figures))
    calibrated: list[Sequence[str]] = []
    for name in given.recipes:
        done = [train(fitted, rows, {**RECIPES[name], **given.options}, seed, given) for seed in given.seeds]
        means = [float(np.mean([one.metrics[split][metric] for one in done])) for split, metric in figures]
        ends = [float(np.mean([getattr(one, field) for one in done])) for field in ("epochs", "seconds")]
        seeds = ", ".join(map(str, given.seeds))
        print_cells(name, seeds, *(f"{mean:.4f}" for mean in means), *(f"{end:.0f}" for end in ends))
        if not given.choose:
            losses, errors = (
                {kind: np.mean([getattr(one.test_fits[kind], field) for one in done]) for kind in CALIBRATIONS}
                for field in ("log_loss", "calibration_error")
            )
            calibrated += [(name, kind, f"{losses[kind]:.4f}", f"{errors[kind]:.4f}") for kind in CALIBRATIONS]
    if boosting:
        print_cells("gradient boosting", "", *(f"{boosting[split][metric]:.4f}" for split, metric in figures), "", "")
    if calibrated:
        print_titles(*CALIBRATION_TITLES)
        for cells in calibrated:
            print_cells(*cells)


if __name__ == "__main__":
    main()
