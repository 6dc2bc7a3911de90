"""Quality of the models of tables on the Adult set: AUC on the official test rows, chosen by validation rows alone.

``python -m benchmarks.quality_tables FOLDER`` trains each recipe once per seed, in one process on two threads and with
the product's own layers, and prints a row of ``docs/quality.md`` per recipe, and one per calibration by the validation
rows. FOLDER has ``adult.data`` and ``adult.test``.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf
import tf_keras
from sklearn.metrics import roc_auc_score

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.fitting import bin_boundaries
from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import calibration, multi_field
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.training.results.calibrate import Fit, measure

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


@dataclass(frozen=True)
class Outcome:
    """The quality of one training.

    Attributes:
        validation: AUC.
        test: AUC.
        test_fits: The fit to the test rows by the calibration.
    """

    validation: float
    test: float
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


def read_adult(folder: Path) -> tuple[FittedFeatures, dict[str, Rows]]:
    """Return the features, fitted on the training rows, and the rows of each split."""
    tables = adult_tables(folder)
    train = tables["train"]
    tokens = [name for name in _COLUMNS[:-1] if name not in _NUMBERS]
    spec = FeatureSpec((*map(Numeric, _NUMBERS), *map(Categorical, tokens)), Label("income"), keys=("row",))
    vocabularies = {name: vocabulary_of(train[name]) for name in tokens}
    statistics = {name: statistics_of(train[name]) for name in _NUMBERS}
    quantiles = {name: bin_boundaries(train[name].to_numpy(float)) for name in _NUMBERS}
    fitted = FittedFeatures(spec, vocabularies, statistics, quantiles)
    return fitted, {split: _rows(fitted, table) for split, table in tables.items()}


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
    fitted: FittedFeatures,
    rows: Mapping[str, Rows],
    options: Mapping[str, Any],
    seed: int,
    *,
    batch: int,
    rate: float,
    decay: float,
    patience: int,
) -> Outcome:
    """Train until the validation rows' AUC has not risen for ``patience`` epochs, and measure the best epoch."""
    tf_keras.utils.set_random_seed(seed)
    model = multi_field.build(multi_field.Settings(**options), fitted, seed)
    compile_model(
        model, "binary", build_optimizer(OptimizerSettings("adamw", rate, weight_decay=decay)), steps_per_execution=32
    )
    parts = {split: tf.data.Dataset.from_tensor_slices((dict(of.inputs), of.labels)) for split, of in rows.items()}
    given = parts["train"].batch(len(rows["train"].labels)).get_single_element()
    count = len(rows["train"].labels)

    def shuffled(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.argsort(tf.random.stateless_uniform([count], [seed, number]))
        steps = tf.data.Dataset.from_tensor_slices(tf.reshape(order[: count // batch * batch], [-1, batch]))
        return steps.map(lambda chosen: tf.nest.map_structure(lambda of: tf.gather(of, chosen), given))

    stop = tf_keras.callbacks.EarlyStopping("val_auc", mode="max", patience=patience, restore_best_weights=True)
    began = time.monotonic()
    history = model.fit(
        tf.data.Dataset.range(1 << 20).flat_map(shuffled),
        steps_per_epoch=count // batch,
        validation_data=parts["validation"].batch(4096),
        epochs=60,
        callbacks=[stop],
        verbose=0,
    )
    seconds = time.monotonic() - began
    logits = {
        split: np.concatenate([multi_field.logits(model, block)[:, 0] for block, _ in parts[split].batch(4096)])
        for split in ("validation", "test")
    }
    aucs = {split: float(roc_auc_score(rows[split].labels, tf.sigmoid(of))) for split, of in logits.items()}
    return Outcome(aucs["validation"], aucs["test"], fits_of_test(logits, rows), len(history.epoch), seconds)


def fits_of_test(logits: Mapping[str, np.ndarray], rows: Mapping[str, Rows]) -> dict[str, Fit]:
    """Return the fit of the log-odds to the test rows, as they are and calibrated by the validation rows."""
    known, test = (
        (logits[split].astype(np.float64), rows[split].labels, np.ones(len(logits[split])))
        for split in ("validation", "test")
    )
    found = {"none": measure(*test)}
    for kind in CALIBRATIONS[1:]:
        found[kind] = measure(calibration.fit(kind, *known).applied(test[0]), *test[1:])
    return found


def main() -> None:
    """Train the recipes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--patience", type=int, default=5)
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    fitted, rows = read_adult(given.folder)
    calibrated: list[str] = []
    print(
        "| recipe | validation AUC | test AUC | test log loss | epochs | seconds |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name in given.recipes:
        done = [
            train(
                fitted,
                rows,
                RECIPES[name],
                seed,
                batch=given.batch,
                rate=given.rate,
                decay=given.decay,
                patience=given.patience,
            )
            for seed in given.seeds
        ]
        means = [
            float(np.mean([getattr(one, field) for one in done]))
            for field in ("validation", "test", "epochs", "seconds")
        ]
        losses, errors = (
            {kind: float(np.mean([getattr(one.test_fits[kind], field) for one in done])) for kind in CALIBRATIONS}
            for field in ("log_loss", "calibration_error")
        )
        print(
            f"| {name} | {means[0]:.4f} | {means[1]:.4f} | {losses['none']:.4f} | {means[2]:.0f} | {means[3]:.0f} |",
            flush=True,
        )
        calibrated += [f"| {name} | {kind} | {losses[kind]:.4f} | {errors[kind]:.4f} |" for kind in CALIBRATIONS]
    print(
        "\n| recipe | calibration | test log loss | test calibration error |\n|---|---|---|---|",
        *calibrated,
        sep="\n",
    )


if __name__ == "__main__":
    main()
