"""Quality of embeddings over the graph on Gowalla: ``two_tower`` with ``graph_layers`` 0 and 3, by LightGCN's protocol.

``python -m benchmarks.quality_graph FOLDER`` trains on the files of ``quality_gowalla``, in one process on two threads,
and prints its metrics. ``--choose``, whose rows ``docs/quality.md`` has, trains on ``train.txt`` alone, prints the
metrics of ``valid.txt`` after every epoch, and looks at no test row: it chooses the options and ``--epochs``. With
``--state`` a training that has reached ``--limit`` goes on in the next call.
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

from benchmarks.printed import print_cells, print_titles
from benchmarks.quality_gowalla import USERS_AT_ONCE, Checkins, K, known_and_held, recall_and_ndcg
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.models import catalog, two_tower
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer

OPTIONS: Mapping[str, Any] = {
    "embedding_dim": 64,
    "hidden_units": (),
    "sampling": "popularity",
    "negatives": 2000,
    "cosine": True,
    "temperature": 0.1,
}


class Training:
    """A model in training, with what it has to be saved by."""

    def __init__(self, checkins: Checkins, layers: int, given: argparse.Namespace) -> None:
        """Build the model for the check-ins, or take it from where the call before has left it.

        Raises:
            SystemExit: The call before had other options.
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
            best = np.argpartition(-scores, K, axis=1)[:, :K]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
            lists.append(np.take_along_axis(best, order, axis=1) + FIRST_VOCABULARY_ID)
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
    """Train with each number of layers, and print a row for each, or with ``--choose`` for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--choose", action="store_true", help="look at no test row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a call for each number of layers")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--options", type=ast.literal_eval, default={}, help="more settings of the model")
    parser.add_argument("--state", type=Path, help="folder of trainings to go on with")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    if given.state:
        given.state.mkdir(parents=True, exist_ok=True)
    checkins, held = known_and_held(given.folder, choose=given.choose)
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
