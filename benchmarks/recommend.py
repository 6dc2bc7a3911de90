"""How many queries per second find their best candidates, and how many of these, by each index, alone and in Spark?

The candidates are vectors of 64 numbers in clusters, as trained towers give them. Indexes search on one core, for 4,096
queries at a time; ``recommend`` takes users from a table and writes their lists to Parquet files. Recall is the share
of the exact best that an index finds.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.other_environment import OtherProcess, UnavailableError, environment_with, started
from benchmarks.report import REPOSITORY, Report, Table, rate, significant, timing_table
from benchmarks.train_work import in_new_process
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary

DIM = 64
SAMPLE = 1_000
"""Number of queries that set the recall of the approximate indexes."""
_CLUSTERS = 1_000
_ITEM_NOISE, _QUERY_NOISE = 0.8, 1.0
# Popular items have longer vectors.
_SPREAD_OF_NORMS = 0.25

KS = (20, 100)
QUERIES = 4_096
EXACT = "exact"
ONE_PRODUCT = "one matrix product and top_k"
BRUTE_FORCE = "tfrs BruteForce"
SCANN = "scann"
FAISS_FLAT = "faiss, flat (exact)"
IVF_AT = (0.9, 0.95, 0.99)
IVF = "IVF, {} aimed at"
FAISS_AIM = 0.95

_FAISS = "faiss-cpu==1.15.1"
_PEER_PROCESS = Path(__file__).with_name("peer_process.py")
_LOOKS = (8, 16, 32, 64, 128, 256, 512, 1024)
_NOTE = (
    "faiss builds HNSW with 32 links and efConstruction 200; its lists, and efSearch, are the least of 8, 16, 32, … "
    "that find 0.95 of the best."
)


@dataclass(frozen=True)
class Found:
    """Results for one number of candidates per query.

    Attributes:
        queries: Number of queries.
        candidates: Number of candidates among which each looked for its best.
        timings: By way.
        recalls: By way.
    """

    queries: int
    candidates: int
    timings: Mapping[str, Timing]
    recalls: Mapping[str, float]

    def table(self, title: str) -> Table:
        """Return a row per way."""
        exact = self.timings[EXACT].median
        rows = tuple(
            (
                name,
                rate(self.queries / timing.median),
                rate(self.queries * self.candidates / timing.median),
                significant(self.recalls[name]),
                f"{timing.spread:.0%}",
                f"{exact / timing.median:.2f}",
            )
            for name, timing in self.timings.items()
        )
        return Table(title, ("index", "queries/s", "candidates/s", "recall", "spread", f"times '{EXACT}'"), rows, _NOTE)


@dataclass(frozen=True)
class Way:
    """One way to search: returns the numbers of the candidates, int64 ``[queries, k]``, and the seconds it took."""

    name: str
    search: Callable[[int], tuple[np.ndarray, float | None]]
    last: list[np.ndarray] = field(default_factory=list)

    def contender(self, k: int) -> Contender:
        """Return the contender to time; its last result stays in ``last``."""

        def work() -> float | None:
            found, seconds = self.search(k)
            self.last[:] = [found]
            return seconds

        return Contender(self.name, work)


def run(options: Options) -> Report:
    """Make the vectors, let every index search them on one core, and recommend to as many users in Spark."""
    items, users = clustered_vectors(options.rows, options.rows)
    np.save(options.scratch / "items.npy", items)
    np.save(options.scratch / "sample.npy", users[:SAMPLE])
    np.save(options.scratch / "queries.npy", users[SAMPLE:][:QUERIES])
    model = in_new_process(export_recommender, options.scratch / "model", items, users, KS[0])
    by_k, about_faiss = on_one_core(_on_one_core, options)
    tables = [by_k[k].table(f"The best {k} of {options.rows:,} candidates, one core") for k in KS]
    tables.append(_in_spark(options, model))
    marks = []
    for k, found in by_k.items():
        lists = IVF.format(IVF_AT[1])
        marks += [
            Mark(f"best {k}: {EXACT} / {ONE_PRODUCT}", speed_ratio(found.timings, EXACT, ONE_PRODUCT), 1.0),
            Mark(f"best {k}: {lists} / {EXACT}", speed_ratio(found.timings, lists, EXACT), 1.5),
            Mark(f"best {k}: recall of {lists}", found.recalls[lists], 0.94),
        ]
    about = {"faiss": about_faiss}
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks), conditions=about)


def _on_one_core(options: Options) -> tuple[dict[int, Found], str]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    items, queries, sample = (np.load(options.scratch / f"{name}.npy") for name in ("items", "queries", "sample"))
    with _faiss(options) as (faiss, about):
        by_k = {}
        for k in KS:
            ways = [
                *_tensorflow_ways(items, queries, sample, k),
                *(_faiss_ways(faiss, options.scratch, k) if faiss else []),
            ]
            timings = interleave([way.contender(k) for way in ways], options.rounds)
            recalls = {way.name: _recall(way.last[0], ways[0].last[0]) for way in ways}
            by_k[k] = Found(len(queries), len(items), timings, recalls)
    return by_k, about


def _recall(found: np.ndarray, best: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(found, best, strict=True)]))


def _tensorflow_ways(items: np.ndarray, queries: np.ndarray, sample: np.ndarray, k: int) -> list[Way]:
    """Return the exact search, first, and the others of TensorFlow."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    from mirrorspark.models.index.exact import ExactTopK
    from mirrorspark.models.index.ivf import IvfTopK, inverted_lists, recall_by_lists
    from mirrorspark.models.index.scann import ScannTopK
    from mirrorspark.models.index.search import Index, Queries

    embeddings = np.concatenate([np.zeros((2, items.shape[1]), np.float32), items])
    exact = ExactTopK(embeddings)
    vectors, nothing = tf.constant(queries), tf.zeros([len(queries), 0], tf.int64)

    def by(index: Index) -> Callable[[int], tuple[np.ndarray, None]]:
        @tf.function(autograph=False)
        def search(k: tf.Tensor, unavailable: tf.Tensor) -> Any:
            return index.search(Queries(vectors, nothing), k, exact.offsets(unavailable))

        return lambda k: (search(tf.constant(k), tf.zeros([0], tf.int64)).ids.numpy() - 2, None)

    @tf.function(autograph=False)
    def in_one_product(k: tf.Tensor) -> Any:
        return tf.math.top_k(tf.matmul(vectors, items, transpose_b=True), k)

    brute_force = tfrs.layers.factorized_top_k.BruteForce(k=k).index(tf.constant(items))
    brute_force_search = tf.function(lambda: brute_force(vectors), autograph=False)
    lists = inverted_lists(embeddings, seed=1)
    asked = Queries(tf.constant(sample), tf.zeros([len(sample), 0], tf.int64))
    best = exact.search(asked, k, exact.offsets()).ids.numpy()
    reached = recall_by_lists(lists, sample, best)
    searched = {aim: int(np.searchsorted(reached, aim)) + 1 for aim in IVF_AT}
    return [
        Way(EXACT, by(exact)),
        Way(ONE_PRODUCT, lambda k: (in_one_product(tf.constant(k)).indices.numpy(), None)),
        Way(BRUTE_FORCE, lambda _: (brute_force_search()[1].numpy(), None)),
        *(Way(IVF.format(aim), by(IvfTopK(exact, lists, count))) for aim, count in searched.items()),
        Way(SCANN, by(ScannTopK(exact, k))),
    ]


def _faiss_ways(faiss: OtherProcess, folder: Path, k: int) -> list[Way]:
    """Return faiss' exact search, and its approximate ones with the least looks that find ``FAISS_AIM`` of it."""

    def search(index: str, looks: Mapping[str, int], k: int) -> tuple[np.ndarray, float]:
        seconds = float(faiss.ask(work="search", index=index, k=k, **looks)["seconds"])
        return np.load(folder / "found.npy"), seconds

    best, _ = search("flat", {}, k)

    def least_looks(index: str) -> dict[str, int]:
        reached = (looks for looks in _LOOKS if _recall(search(index, {"looks": looks}, k)[0], best) >= FAISS_AIM)
        return {"looks": next(reached, _LOOKS[-1])}

    aimed = {index: least_looks(index) for index in ("ivf", "hnsw")}
    return [
        Way(FAISS_FLAT, partial(search, "flat", {})),
        Way(f"faiss, IVF, {aimed['ivf']['looks']} lists", partial(search, "ivf", aimed["ivf"])),
        Way(f"faiss, HNSW, efSearch {aimed['hnsw']['looks']}", partial(search, "hnsw", aimed["hnsw"])),
    ]


@contextlib.contextmanager
def _faiss(options: Options) -> Iterator[tuple[OtherProcess | None, str]]:
    """Yield the process of faiss with its indexes built, and its version; or None and why there is none."""
    with contextlib.ExitStack() as ending:
        try:
            home = (options.cache or options.scratch).absolute() / "faiss"
            python = str(environment_with([_FAISS, f"numpy=={np.__version__}"], home))
            command = [python, str(_PEER_PROCESS), "faiss", str(options.scratch)]
            environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
            faiss = ending.enter_context(started(command, environment, options.scratch / "faiss.log"))
            answers = [faiss.ask(work="build", index=index) for index in ("flat", "ivf", "hnsw")]
        except UnavailableError as error:
            yield None, f"skipped: {error}"
            return
        yield faiss, answers[0]["version"]


def _in_spark(options: Options, model: Path) -> Table:
    """Return the times of a list for every user, by index."""
    from mirrorspark.recommending.recommendations import recommend

    session = spark_work.session()
    target = options.scratch / "lists"
    users = session.range(options.rows, numPartitions=2 * spark_work.SLOTS).selectExpr("CAST(id AS STRING) AS user")

    def write(index: str) -> None:
        recommend(users, model, keys="user", k=KS[-1], index=index).write.parquet(str(target))

    indexes = ("exact", "ivf", "scann")
    for index in indexes:  # loads the model into both workers; a round of all users would only take longer
        recommend(users.where("crc32(user) % 100 = 0"), model, keys="user", k=KS[-1], index=index).count()
    ways = [Contender(index, partial(write, index), spark_work.emptied(target)) for index in indexes]
    timings = interleave(ways, options.rounds, warm_ups=0)
    session.stop()
    title = f"recommend: the best {KS[-1]} of {options.rows:,} for {options.rows:,} users, {spark_work.SLOTS} cores"
    note = f"IVF and ScaNN as exported, for the best {KS[0]}."
    return timing_table(title, options.rows, timings, "exact", note=note)


def clustered_vectors(items: int, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 ``[items, DIM]`` and ``[users, DIM]`` around the same centres, of which some have many more."""
    random = np.random.default_rng(1)
    centres = _directions(random.normal(size=(_CLUSTERS, DIM)))
    shares = random.dirichlet(np.full(_CLUSTERS, 0.5))

    def around(count: int, noise: float) -> np.ndarray:
        chosen = centres[random.choice(_CLUSTERS, count, p=shares)]
        return _directions(chosen + noise / np.sqrt(DIM) * random.normal(size=(count, DIM)))

    norms = random.lognormal(0.0, _SPREAD_OF_NORMS, (items, 1))
    return (around(items, _ITEM_NOISE) * norms).astype(np.float32), around(users, _QUERY_NOISE).astype(np.float32)


def export_recommender(folder: Path, items: np.ndarray, users: np.ndarray, k: int, *, scann: bool = True) -> Path:
    """Export a ``two_tower`` model whose towers give these vectors for the tokens 0, 1, 2, ..., and return its folder.

    Args:
        folder: Folder of the model.
        items: float32 ``[items, DIM]``.
        users: float32 ``[users, DIM]``.
        k: Candidates per row.
        scann: True if the folder has that index too.
    """
    from mirrorspark.models import two_tower
    from mirrorspark.models.serving.export import build_indexes, recalls, save_retrieval
    from mirrorspark.scoring.model.folder import FEATURES_FOLDER, OUTPUTS, SAVED_MODEL_FOLDER, ModelDescription

    spec = FeatureSpec((Categorical("user"), Categorical("item")), Label("item", kind="candidate"), ("user",))
    fitted = FittedFeatures(spec, {"user": _vocabulary(len(users)), "item": _vocabulary(len(items))}, {})
    model = two_tower.build(two_tower.Settings(embedding_dim=DIM, hidden_units=()), fitted, seed=1)
    reserved = np.zeros((FIRST_VOCABULARY_ID, DIM), np.float32)
    model.candidate_tower.set_weights([np.concatenate([reserved, items])])
    model.query_tower.set_weights([np.concatenate([reserved, users]), np.eye(DIM), np.zeros(DIM)])
    indexes = build_indexes(model, k, scann=scann, sample=users[:SAMPLE])
    save_retrieval(two_tower, model, fitted, k, indexes, folder / SAVED_MODEL_FOLDER)
    fitted.save(folder / FEATURES_FOLDER)
    found = recalls(indexes, k, users[:SAMPLE])
    ModelDescription("retrieval", "two_tower", fitted.hash, OUTPUTS["retrieval"], {}, found).save(folder)
    return folder


def _directions(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _vocabulary(count: int) -> Vocabulary:
    return Vocabulary(pa.array(map(str, range(count))), pa.array(np.arange(count, 0, -1)))


BENCHMARK = Benchmark("recommend", question_of(__doc__), 100_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
