"""Quality of the multi-label model on Bibtex and on RCV1's first subset, next to one-vs-rest logistic regression.

``python -m benchmarks.quality_multi_label FOLDER`` prints rows of ``docs/quality.md``. FOLDER has ``bibtex`` (Mulan's
ARFF files) and ``rcv1_subset1`` (``X.npz`` and ``Y.npz``; a random third of its first half is the test). A random 15 %
of the training rows choose the epoch, the logistic regression's C (by the log loss), and the threshold of the F1 score;
then both models are trained on all training rows. The validation rows also choose the shares of a blend of the two, and
fit the mixture of the network, or of the blend, and the labels' centroids, which are those of all training rows in the
end. Rows of several seeds are means. ``--choose`` prints the validation rows' figures by epoch, without the test rows.
"""

import argparse
import ast
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras
from scipy.sparse import csr_array, load_npz  # type: ignore[import-untyped]
from scipy.special import expit, logit  # type: ignore[import-untyped]
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Label, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.evaluation.metrics import PRECISION_KS, multi_label_metrics, precisions_at
from mirrorspark.models import multi_label
from mirrorspark.models.centroids import LabelledRows, fit_centroids, fit_mixture
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.training.results.evaluation.model_choice import best_weights

VALIDATION_SHARE = 0.15
LOGISTIC_C = (0.2, 1.0, 5.0, 30.0, 150.0)
# Options of the model, rows of a batch, and learning rate.
SETTINGS: Mapping[str, tuple[Mapping[str, Any], int, float]] = {
    "bibtex": ({"embedding_dim": 512, "hidden_units": (512,), "dropout": 0.7, "members": 8}, 128, 0.004),
    "rcv1_subset1": (
        {"embedding_dim": 256, "hidden_units": (256,), "dropout": 0.7, "members": 4, "linear": True},
        32,
        0.01,
    ),
}


@dataclass(frozen=True)
class Rows:
    """Sparse features ``[rows, words]`` and labels, float32 ``[rows, classes]``."""

    words: Any
    labels: np.ndarray

    def __getitem__(self, chosen: Any) -> "Rows":
        return Rows(self.words[chosen], self.labels[chosen])

    def tensor(self) -> tf.SparseTensor:
        """Return the features as TensorFlow takes them."""
        places = self.words.tocoo()
        return tf.SparseTensor(np.stack([places.row, places.col], axis=1), places.data, places.shape)


def read(folder: Path, name: str) -> tuple[Rows, Rows]:
    """Return the training and the test rows of a set."""
    if name == "bibtex":
        train, test = (_read_arff(folder / name / f"bibtex-{split}.arff") for split in ("train", "test"))
        return train, test
    rows = Rows(
        csr_array(load_npz(folder / name / "X.npz")).astype(np.float32),
        load_npz(folder / name / "Y.npz").toarray().astype(np.float32),
    )
    # The labels of its second half are one column early: their shares are those of the first half, shifted.
    half = len(rows.labels) // 2
    order = np.random.default_rng(0).permutation(half)
    return rows[order[half // 3 :]], rows[order[: half // 3]]


def _read_arff(path: Path) -> Rows:
    """Read sparse ARFF, in which attributes that begin with ``TAG_`` are labels and come last."""
    lines = path.read_text().splitlines()
    names = [line.split()[1] for line in lines if line.startswith("@attribute")]
    words = sum(not name.startswith("TAG_") for name in names)
    rows = [[int(pair.split()[0]) for pair in line[1:-1].split(",")] for line in lines if line.startswith("{")]
    ends = np.cumsum([0, *map(len, rows)])
    # scikit-learn takes indices of 32 bits.
    places = (np.concatenate(rows).astype(np.int32), ends.astype(np.int32))
    table = csr_array((np.ones(ends[-1], np.float32), *places), (len(rows), len(names)))
    return Rows(table[:, :words], table[:, words:].toarray())


def quality(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the precision at several depths, and the micro-averaged F1 score of the scores above ``threshold``."""
    found = multi_label_metrics(labels, scores)
    return {f"P@{k}": found[f"precision_at_{k}"] for k in PRECISION_KS} | {
        "micro F1": _micro_f1(labels, scores, threshold)
    }


def _micro_f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    return float(f1_score(labels, scores >= threshold, average="micro"))


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold with the highest F1 score."""
    return max(np.arange(0.05, 0.96, 0.01).tolist(), key=lambda threshold: _micro_f1(labels, scores, threshold))


def network(train: Rows, others: Rows, name: str, given: argparse.Namespace, seed: int) -> Iterator[np.ndarray]:
    """Train with the settings of the set ``name``, and yield the other rows' scores after each epoch."""
    options, batch, rate = SETTINGS[name]
    tf_keras.utils.set_random_seed(seed)
    spec = FeatureSpec(
        (Sparse("words", size=train.words.shape[1]),),
        Label("labels", kind="multi_label", classes=train.labels.shape[1]),
        keys=("row",),
    )
    fitted = FittedFeatures(spec, {}, {})
    model = multi_label.build(multi_label.Settings(**{**options, **given.options}), fitted, seed)
    optimizer = OptimizerSettings("adamw", given.rate or rate, weight_decay=given.decay)
    compile_model(model, multi_label.TASK, build_optimizer(optimizer), steps_per_execution=8)
    rows = tf.data.Dataset.from_tensor_slices(({"words": train.tensor()}, train.labels))
    steps = rows.shuffle(len(train.labels), seed=seed).batch(given.batch or batch).prefetch(4)
    blocks = tf.data.Dataset.from_tensor_slices({"words": others.tensor()}).batch(1024)
    while True:
        model.fit(steps, verbose=0)
        yield np.concatenate([multi_label.predict(model, block)["scores"].numpy() for block in blocks])


def cosines(train: Rows, others: Rows) -> np.ndarray:
    """Return the cosines of the other rows and the centroids of the training rows' labels."""
    rows = LabelledRows({"words": train.words}, csr_array(train.labels), np.ones(len(train.labels), np.float32))
    found: np.ndarray = fit_centroids(lambda: [rows]).cosines({"words": others.tensor()}).numpy()
    return found


def logits(scores: np.ndarray) -> np.ndarray:
    """Return the log-odds of float32 probabilities, of which some are rounded to 0 or 1."""
    odds: np.ndarray = logit(np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7))
    return odds


def logistic(train: Rows, others: Rows, c: float) -> np.ndarray:
    """Return the other rows' scores by one-vs-rest logistic regression."""
    model = OneVsRestClassifier(LogisticRegression(C=c, solver="liblinear", random_state=1), n_jobs=2)
    with warnings.catch_warnings():
        # scikit-learn warns that a label which no training row has is constant.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores: np.ndarray = model.fit(train.words, train.labels).predict_proba(others.words)
    return scores


def main() -> None:
    """Measure both sets, or choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=("bibtex", "rcv1_subset1"), default=["bibtex", "rcv1_subset1"])
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--most-epochs", type=int, default=12)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--options", type=ast.literal_eval, default={}, help="more options of the model")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    print_titles("set", "model", *(f"P@{k}" for k in PRECISION_KS), "micro F1", "chosen", "seconds")
    for name in given.sets:
        known, test = read(given.folder, name)
        is_held = np.random.default_rng(0).random(len(known.labels)) < VALIDATION_SHARE
        train, held = known[~is_held], known[is_held]
        began = time.monotonic()
        tried = {c: logistic(train, held, c) for c in LOGISTIC_C}
        c = min(tried, key=lambda c: multi_label_metrics(held.labels, tried[c])["log_loss"])
        linear = tried[c], logistic(known, test, c)
        seconds = time.monotonic() - began
        found = [_of_network((train, held, known, test), linear, name, given, seed) for seed in given.seeds]
        if given.choose:
            continue
        for model in found[0]:
            _print(name, model, [of_seed[model] for of_seed in found])
        measured = quality(test.labels, linear[1], best_threshold(held.labels, tried[c]))
        _print(name, "logistic regression", [(measured, f"C {c:g}", seconds)])


Found: TypeAlias = tuple[Mapping[str, float], str, float]
"""The figures of the test rows, what was chosen, and the seconds."""


def _of_network(
    rows: tuple[Rows, Rows, Rows, Rows],
    linear: tuple[np.ndarray, np.ndarray],
    name: str,
    given: argparse.Namespace,
    seed: int,
) -> Mapping[str, Found]:
    """Return the network's figures, alone and in a blend with the linear scores, and both again with centroids."""
    train, held, known, test = rows
    best, best_scores, epochs, began = 0.0, np.empty(0), 0, time.monotonic()
    for epoch, scores in enumerate(islice(network(train, held, name, given, seed), given.most_epochs), 1):
        measured = quality(held.labels, scores, 0.5)
        if given.choose:
            print(epoch, *(f"{figure} {value:.4f}" for figure, value in measured.items()), flush=True)
        # All figures together: one of them, of a few hundred rows, is mostly chance.
        if sum(measured.values()) > best:
            best, best_scores, epochs = sum(measured.values()), scores, epoch
    if given.choose:
        return {}
    threshold = best_threshold(held.labels, best_scores)
    *_, scores = islice(network(known, test, name, given, seed), epochs)
    alone = quality(test.labels, scores, threshold), f"{epochs}", time.monotonic() - began
    of_both = {"network": best_scores, "linear": linear[0]}
    weights = best_weights("multi_label", held.labels, of_both, np.ones(len(held.labels)))
    share = weights.get("network", 0.0)
    of_blend = share * best_scores + (1 - share) * linear[0], share * scores + (1 - share) * linear[1]
    blended = quality(test.labels, of_blend[1], best_threshold(held.labels, of_blend[0]))
    blend = blended, f"{epochs}, share {share:.2f}", time.monotonic() - began
    similar = cosines(train, held), cosines(known, test)
    with_centroids = {
        f"{model}, centroids": (_mixed(of, similar, held, test), f"{epochs}", time.monotonic() - began)
        for model, of in (("multi_label", (best_scores, scores)), ("blend", of_blend))
    }
    return {"multi_label": alone, "blend": blend, **with_centroids}


def _precision(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean(list(precisions_at(labels, scores).values())))


def _mixed(
    scores: tuple[np.ndarray, np.ndarray], similar: tuple[np.ndarray, np.ndarray], held: Rows, test: Rows
) -> dict[str, float]:
    """Return the figures of a mixture of the scores and the cosines, each of held and test rows."""
    pairs = logits(scores[0]).ravel(), similar[0].ravel(), held.labels.ravel(), np.ones(held.labels.size)
    mixtures = [fit_mixture(*pairs, with_log_odds=with_log_odds) for with_log_odds in (False, True)]
    mixture = max(mixtures, key=lambda one: _precision(held.labels, one(logits(scores[0]), similar[0])))
    threshold = best_threshold(held.labels, expit(mixture(logits(scores[0]), similar[0])))
    return quality(test.labels, expit(mixture(logits(scores[1]), similar[1])), threshold)


def _print(name: str, model: str, found: Sequence[Found]) -> None:
    figures = (f"{np.mean([one[0][figure] for one in found]):.4f}" for figure in found[0][0])
    chosen = ", ".join(one[1] for one in found)
    print_cells(name, model, *figures, chosen, f"{np.mean([one[2] for one in found]):.0f}")


if __name__ == "__main__":
    main()
