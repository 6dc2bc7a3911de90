"""Quality of recommenders on Gowalla, under the protocol of LightGCN: every user's test items at once.

``python -m benchmarks.quality_gowalla FOLDER`` prints rows of ``docs/quality.md``, one per item-based recommender.
FOLDER has ``train.txt``, ``valid.txt`` and ``test.txt`` of lines ``user item item ...``. Training is on both of the
first; all items are ranked but those of the user's training, and the metrics are means over users. ``--choose`` trains
on ``train.txt`` alone, measures on ``valid.txt``, and looks at no test row.

``--layers 0 3`` trains ``two_tower`` with these ``graph_layers`` instead, in one process on two threads, and prints the
metrics of each; with ``--choose``, whose rows ``docs/quality.md`` has, after every epoch: it chooses the options and
``--epochs``. With ``--state`` a training that has reached ``--limit`` goes on in the next call.
"""

import argparse
import ast
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tf_keras
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from benchmarks.report import print_cells, print_titles
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import catalog, two_tower
from mirrorspark.models.classical import Recommender
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.retrieval.list_metrics import ranking_metrics
from mirrorspark.training.programs.recommenders.fitting import fit, scores_of
from mirrorspark.training.programs.recommenders.lists import best

K = 20
USERS_AT_ONCE = 1024
SETTINGS: tuple[dict[str, Any], ...] = ({"name": "popularity"}, {"name": "item_knn"}, {"name": "bspm"})
OPTIONS: Mapping[str, Any] = {
    "embedding_dim": 64,
    "hidden_units": (),
    "sampling": "popularity",
    "negatives": 2000,
    "cosine": True,
    "temperature": 0.1,
}


class Checkins:
    """Interactions to fit a recommender on: a sparse matrix of users and items, and the items' counts."""

    def __init__(self, users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> None:
        """Store each pair once."""
        self.matrix = csr_array((np.ones(len(users), np.float32), (users, items)), shape)
        self.counts = np.bincount(items, minlength=shape[1]).astype(np.float32)


def read(path: Path) -> np.ndarray:
    """Return the users and items of a file, int64 ``[2, pairs]``."""
    rows = [np.array(line.split(), np.int64) for line in path.read_text().splitlines()]
    return np.stack(
        [np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]), np.concatenate([row[1:] for row in rows])]
    )


def measure(asked: Recommender, train: Checkins, held: np.ndarray, seed: int) -> dict[str, float]:
    """Return the metrics over the users of the held-back pairs, and the seconds of fit and lists."""
    began = time.perf_counter()
    spark: Any = None
    interactions: Any = train
    scores = scores_of(asked.name, asked.settings, fit(asked, interactions, seed, spark))
    fitted = time.perf_counter()
    users = np.unique(held[0])
    lists = []
    for start in range(0, len(users), USERS_AT_ONCE):
        rows = train.matrix[users[start : start + USERS_AT_ONCE]]
        counts = np.diff(rows.indptr)
        had = np.zeros((len(counts), counts.max()), np.int64)
        had[np.arange(had.shape[1]) < counts[:, None]] = rows.indices + FIRST_VOCABULARY_ID
        lists.append(best(scores, rows, had, K)[0])
    found = recall_and_ndcg(np.concatenate(lists), users, held)
    return found | {"fit": fitted - began, "lists": time.perf_counter() - fitted}


def recall_and_ndcg(lists: np.ndarray, users: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Return the means over users of recall and NDCG at ``K``.

    Args:
        lists: Ids of items, best first, int64 ``[users, K]``.
        users: Their users in rising order, all of those in ``held``.
        held: The pairs to find, int64 ``[2, pairs]``.
    """
    row = np.searchsorted(users, held[0])
    found = ranking_metrics(lists, held[1] + FIRST_VOCABULARY_ID, (K,), rows=row)
    return {name: found[f"{name}_at_{K}"] for name in ("recall", "ndcg")}


def known_and_held(folder: Path, *, choose: bool) -> tuple[Checkins, np.ndarray]:
    """Return the pairs to train on, and the pairs to find, int64 ``[2, pairs]``; see the module."""
    train, valid, test = (read(folder / f"{split}.txt") for split in ("train", "valid", "test"))
    users, items = np.concatenate([train, valid, test], axis=1).max(axis=1) + 1
    known, held = (train, valid) if choose else (np.concatenate([train, valid], axis=1), test)
    return Checkins(known[0], known[1], (int(users), int(items))), held


class Training:
    """A model in training, with its checkpoint."""

    def __init__(self, checkins: Checkins, layers: int, given: argparse.Namespace) -> None:
        """Build the model for the check-ins, or restore the checkpoint of the previous call.

        Raises:
            SystemExit: The previous call had other options.
        """
        self.checkins, self._given = checkins, given
        tf_keras.utils.set_random_seed(given.seed)
        settings = catalog.settings("two_tower", {**OPTIONS, **given.options, "graph_layers": layers})
        self.model: Any = two_tower.build(settings, features_of(checkins), given.seed)
        pairs = checkins.matrix.tocoo()
        self._pairs = np.stack([pairs.row, pairs.col]).astype(np.int64) + FIRST_VOCABULARY_ID
        if layers:
            self.model.graph.connect(*self._pairs)
        compile_model(self.model, two_tower.TASK, build_optimizer(OptimizerSettings("adam", given.rate)))
        self.model.optimizer.build(self.model.trainable_variables)
        self._step = tf.function(self.model.train_step)
        self._epochs, self._seconds = tf.Variable(0), tf.Variable(0.0)
        self._state = tf.train.Checkpoint(
            model=self.model, optimizer=self.model.optimizer, epochs=self._epochs, seconds=self._seconds
        )
        self._place = given.state and str(given.state / f"layers-{layers}-seed-{given.seed}-choose-{given.choose}")
        if self._place:
            _keep_options(Path(f"{self._place}.options"), repr((given.options, given.batch, given.rate)))
        if self._place and Path(f"{self._place}.index").exists():
            self._state.read(self._place).assert_existing_objects_matched()

    @property
    def epochs(self) -> int:
        """Those that are done."""
        return int(self._epochs)

    @property
    def seconds(self) -> float:
        """Seconds of these epochs, over all calls."""
        return float(self._seconds)

    def epoch(self) -> None:
        """Train on every pair once, and save the state if it is to be kept."""
        began = time.perf_counter()
        self.model.mean_loss.reset_state()
        for batch in self._batches(np.random.default_rng([self._given.seed, self.epochs])):
            self._step(tf.nest.map_structure(tf.constant, batch))
        self._epochs.assign_add(1)
        self._seconds.assign_add(time.perf_counter() - began)
        if self._place:
            self._state.write(self._place)

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the pairs in a random order; the few that are left over at the end wait for the next epoch."""
        order, rows = rng.permutation(self._pairs.shape[1]), self._given.batch
        for start in range(0, len(order) - rows + 1, rows):
            users, items = self._pairs[:, order[start : start + rows]]
            yield {"user": users, "item": items}, np.zeros(rows, np.float32), np.ones(rows, np.float32)

    def measured(self, held: np.ndarray) -> dict[str, float]:
        """Return the metrics over the users of the held-back pairs."""
        users, lists = np.unique(held[0]), []
        candidates = self.model.candidate_tower.all_embeddings().numpy()[FIRST_VOCABULARY_ID:]
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            queries = two_tower.predict(self.model, {"user": tf.constant(some + FIRST_VOCABULARY_ID)})
            scores = queries.numpy() @ candidates.T
            scores[self.checkins.matrix[some].nonzero()] = -np.inf
            found = np.argpartition(-scores, K, axis=1)[:, :K]
            order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1)
            lists.append(np.take_along_axis(found, order, axis=1) + FIRST_VOCABULARY_ID)
        return recall_and_ndcg(np.concatenate(lists), users, held)


def _keep_options(file: Path, options: str) -> None:
    """Write the options of a training into a file, or compare them with those that it has."""
    known = file.read_text(encoding="utf-8") if file.exists() else options
    if known != options:
        raise SystemExit(
            f"{file} has a training with options, batch and rate {known}, not {options}; give the former, or another "
            f"folder as --state"
        )
    file.write_text(options, encoding="utf-8")


def features_of(checkins: Checkins) -> FittedFeatures:
    """Return users and items as features, whose ids are their numbers behind those that are reserved."""
    users = np.asarray(checkins.matrix.sum(axis=1)).ravel()
    spec = FeatureSpec((Categorical("user"), Categorical("item")), Label("item", kind="candidate"), ("user",))
    vocabularies = {
        name: Vocabulary(pa.array(map(str, range(len(counts)))), pa.array(counts.astype(np.int64)))
        for name, counts in (("user", users), ("item", checkins.counts))
    }
    return FittedFeatures(spec, vocabularies, {})


def main() -> None:
    """Print a row for each recommender, or for each number of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true", help="look at no test row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settings", type=ast.literal_eval, nargs="+", default=SETTINGS)
    graph = parser.add_argument_group("two_tower over the graph")
    graph.add_argument("--layers", type=int, nargs="+", help="train it with each of these graph_layers")
    graph.add_argument("--epochs", type=int, default=20)
    graph.add_argument("--limit", type=float, default=3600.0, help="seconds of a call for each number of layers")
    graph.add_argument("--batch", type=int, default=8192)
    graph.add_argument("--rate", type=float, default=0.005)
    graph.add_argument("--options", type=ast.literal_eval, default={}, help="more settings of the model")
    graph.add_argument("--state", type=Path, help="folder of trainings to go on with")
    given = parser.parse_args()
    checkins, held = known_and_held(given.folder, choose=given.choose)
    (_train_over_graph if given.layers else _fit_recommenders)(checkins, held, given)


def _fit_recommenders(checkins: Checkins, held: np.ndarray, given: argparse.Namespace) -> None:
    print_titles("recommender", f"recall@{K}", f"NDCG@{K}", "seconds to fit", "seconds of lists")
    for settings in given.settings:
        asked = Recommender.parse(settings)
        found = measure(asked, checkins, held, given.seed)
        metrics, seconds = ([found[name] for name in names] for names in (("recall", "ndcg"), ("fit", "lists")))
        print_cells(asked.label, *map("{:.4f}".format, metrics), *map("{:.0f}".format, seconds))


def _train_over_graph(checkins: Checkins, held: np.ndarray, given: argparse.Namespace) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(2)
    if given.state:
        given.state.mkdir(parents=True, exist_ok=True)
    print_titles("graph_layers", "seed", "epochs", f"recall@{K}", f"NDCG@{K}", "seconds to train")
    for layers in given.layers:
        training, began = Training(checkins, layers, given), time.perf_counter()

        def tell(layers: int = layers, training: Training = training) -> None:
            found = map("{:.4f}".format, training.measured(held).values())
            print_cells(layers, given.seed, training.epochs, *found, f"{training.seconds:.0f}")

        while training.epochs < given.epochs and time.perf_counter() - began < given.limit:
            training.epoch()
            if given.choose:
                tell()
        if not given.choose and training.epochs == given.epochs:
            tell()


if __name__ == "__main__":
    main()
