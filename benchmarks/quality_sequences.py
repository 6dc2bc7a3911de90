"""Quality of the models of sequences: the last item of each user, ranked among all items that the user has not had.

``python -m benchmarks.quality_sequences FOLDER`` reads ``Beauty.txt`` (a line per user: the user and the items in the
order of time), trains each recipe once per seed, in one process and with the product's own models, and prints a row of
``docs/quality.md`` per recipe. The protocol is that of S3-Rec (Zhou et al. 2020): a user's last item is the test, the
one before it the validation, and all items are ranked but those of the user's history. The validation items alone
choose the epoch. Predictions of the test item read the validation item, too; nothing learns from it.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf
import tf_keras

from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Categorical, Label, MultiValued
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import catalog
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer

LONGEST = 50
K = 10
# Rows that are sorted by length together, so that a batch has histories of about one length.
_ROWS_TOGETHER = 32

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained."""

    name: str
    options: Mapping[str, Any]
    batch: int
    rate: float
    every_item: bool = False


RECIPES: Mapping[str, Recipe] = {
    "sasrec": Recipe(
        "sasrec",
        {"blocks": 1, "dropout": 0.4, "negatives": 1000, "every_position": True},
        batch=128,
        rate=0.003,
    ),
    "lstm_retrieval": Recipe(
        "lstm_retrieval",
        {"embedding_dim": 64, "hidden_units": (), "lstm_units": 64, "negatives": 1000},
        batch=512,
        rate=0.003,
        every_item=True,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """The quality of one training: hit rate and NDCG at 10 of both items at the best epoch of the validation."""

    validation: tuple[float, float]
    test: tuple[float, float]
    epoch: int
    seconds: float


def read_histories(path: Path) -> tuple[FittedFeatures, list[Ids]]:
    """Return the features, whose items are counted without the last two of each user, and each user's items as ids."""
    lines = [line.split()[1:] for line in path.read_text(encoding="utf-8").splitlines()]
    items, places = np.unique([item for line in lines for item in line], return_inverse=True)
    users = np.split(places, np.cumsum([len(line) for line in lines])[:-1])
    counts = np.bincount(np.concatenate([user[:-2] for user in users]), minlength=len(items))
    order = np.argsort(-counts, kind="stable")
    ids = np.empty(len(items), np.int64)
    ids[order] = np.arange(len(items)) + FIRST_VOCABULARY_ID
    history = MultiValued("history", max_length=LONGEST, vocabulary_of="item")
    spec = FeatureSpec((history, Categorical("item")), Label("item", kind="candidate"), ("user",))
    vocabulary = Vocabulary(pa.array(items[order].tolist()), pa.array(counts[order].tolist(), pa.int64()))
    return FittedFeatures(spec, {"item": vocabulary}, {}), [ids[user] for user in users]


def padded(histories: Sequence[Ids], width: int = LONGEST) -> Ids:
    """Return the newest ``width`` ids of each history, int64 ``[histories, width]``, padded with 0 on the right."""
    rows = np.zeros((len(histories), width), np.int64)
    for row, history in zip(rows, histories, strict=True):
        newest = history[-width:]
        row[: len(newest)] = newest
    return rows


def examples(users: Sequence[Ids], *, every_item: bool) -> tuple[Ids, Ids]:
    """Return the training rows, without the last two items of each user: histories, and the item after each.

    Args:
        users: The ids of each user's items in their order.
        every_item: Whether each item but the first is a row, instead of the last one of each user alone.
    """
    known = [user[:-2] for user in users]
    if not every_item:
        return padded([user[:-1] for user in known]), np.array([user[-1] for user in known])
    rows = [(user[:place], user[place]) for user in known for place in range(1, len(user))]
    return padded([history for history, _ in rows]), np.array([item for _, item in rows])


def batches(histories: Ids, items: Ids, batch: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the batches of an epoch in random order, each of histories of about one length and no wider than them."""
    lengths = (histories > 0).sum(axis=1)
    order = rng.permutation(len(items))
    together = [order[first : first + batch * _ROWS_TOGETHER] for first in range(0, len(order), batch * _ROWS_TOGETHER)]
    chosen = [
        part[first : first + batch]
        for part in (rows[np.argsort(lengths[rows], kind="stable")] for rows in together)
        for first in range(0, len(part), batch)
    ]
    for number in rng.permutation(len(chosen)):
        rows = chosen[number]
        given = {"history": histories[rows, : max(1, lengths[rows].max())], "item": items[rows]}
        yield given, np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32)


def ranks(architecture: Any, model: Any, users: Sequence[Ids], back: int) -> Ids:
    """Return the rank, from 0, of each user's item ``back`` places from the end among all that are not before it."""
    found = []
    candidates = model.candidate_tower.get_weights()[0]
    for first in range(0, len(users), 512):
        some = [user[: len(user) - back + 1] for user in users[first : first + 512]]
        queries = architecture.predict(model, {"history": tf.constant(padded([user[:-1] for user in some]))})
        scores = queries.numpy() @ candidates.T
        scores[:, :FIRST_VOCABULARY_ID] = -np.inf
        own = scores[np.arange(len(some)), [user[-1] for user in some]]
        for row, user in zip(scores, some, strict=True):
            row[user[:-1]] = -np.inf
            row[user[-1]] = -np.inf
        # An equal score of another item counts against the model.
        found.append((scores >= own[:, np.newaxis]).sum(axis=1))
    return np.concatenate(found)


def hit_rate_and_ndcg(ranks: Ids, k: int = K) -> tuple[float, float]:
    """Return HR@k and NDCG@k of one relevant item per user."""
    hits = ranks < k
    return float(hits.mean()), float((hits / np.log2(ranks + 2)).mean())


def train(
    fitted: FittedFeatures,
    users: Sequence[Ids],
    recipe: Recipe,
    seed: int,
    *,
    epochs: int,
    patience: int,
    limit: float,
    every: int,
) -> Outcome:
    """Train until the validation's NDCG has not risen for ``patience`` epochs, or for ``limit`` seconds.

    It is measured after ``every`` epochs.
    """
    tf_keras.utils.set_random_seed(seed)
    architecture = catalog.architecture(recipe.name)
    model = architecture.build(catalog.settings(recipe.name, recipe.options), fitted, seed)
    compile_model(model, "retrieval", build_optimizer(OptimizerSettings("adam", recipe.rate)))
    step = tf.function(model.train_step, reduce_retracing=True)
    histories, items = examples(users, every_item=recipe.every_item)
    rng = np.random.default_rng(seed)
    best = Outcome((0.0, 0.0), (0.0, 0.0), 0, 0.0)
    began = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.mean_loss.reset_state()
        for batch in batches(histories, items, recipe.batch, rng):
            step(tf.nest.map_structure(tf.constant, batch))
        seconds = time.monotonic() - began
        if epoch % every and seconds < limit:
            continue
        validation = hit_rate_and_ndcg(ranks(architecture, model, users, 2))
        seconds = time.monotonic() - began
        loss = float(model.mean_loss.result())
        print(f"{recipe.name} epoch {epoch}: {loss:.3f}, {validation}, {seconds:.0f} s", flush=True)
        if validation[1] > best.validation[1]:
            test = hit_rate_and_ndcg(ranks(architecture, model, users, 1))
            best = Outcome(validation, test, epoch, seconds)
        if epoch - best.epoch >= patience or seconds > limit:
            break
    return best


def main() -> None:
    """Train the recipes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--limit", type=float, default=400.0, help="seconds of a training")
    parser.add_argument("--every", type=int, default=1, help="epochs between measurements of the validation")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    fitted, users = read_histories(given.folder / "Beauty.txt")
    rows = [
        (name, seed, train(fitted, users, RECIPES[name], seed, **_limits(given)))
        for name in given.recipes
        for seed in given.seeds
    ]
    print_titles("recipe", "seed", "validation HR@10", "NDCG@10", "test HR@10", "NDCG@10", "epoch", "seconds")
    for name, seed, of in rows:
        print_cells(name, seed, *map("{:.4f}".format, (*of.validation, *of.test)), of.epoch, f"{of.seconds:.0f}")
    for recipe in given.recipes:
        means = np.mean(
            [(*of.validation, *of.test, of.epoch, of.seconds) for name, _, of in rows if name == recipe], axis=0
        )
        print_cells(recipe, "mean", *map("{:.4f}".format, means[:4]), *map("{:.0f}".format, means[4:]))


def _limits(given: argparse.Namespace) -> dict[str, Any]:
    return {"epochs": given.epochs, "patience": given.patience, "limit": given.limit, "every": given.every}


if __name__ == "__main__":
    main()
