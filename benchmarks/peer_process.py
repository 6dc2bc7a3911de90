"""The processes of peers that benchmarks compare with: ``python peer_process.py NAME ARGUMENT``, a name of ``PEERS``.

They run in environments that lack our packages (`score_djl` excepted). Each takes requests on its standard input, one
JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULT_PREFIX = "RESULT "
"""Begins every answer: Spark, too, may write to the standard output."""

# Links of a node of faiss, and how many candidates are looked at (efConstruction) to place one in the graph.
_HNSW_LINKS, _HNSW_BUILD = 32, 200

Request = dict[str, Any]
Answer = Callable[[Request], Request]


def serve(answer: Answer) -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        print(RESULT_PREFIX + json.dumps(answer(json.loads(line))), flush=True)


@contextmanager
def jvm_connector(slots: str) -> Iterator[Answer]:
    """Yield the answers of the JVM connector: Spark 3.5, whose data source ``tfrecord`` it is."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(f"local[{slots}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )

    def answer(request: Request) -> Request:
        if request["work"] == "versions":
            jvm: Any = spark.sparkContext._jvm
            return {"spark": spark.version, "java": jvm.java.lang.System.getProperty("java.version")}
        start = time.perf_counter()
        if request["work"] == "write":
            table = spark.read.parquet(*request["source"])
            table.write.format("tfrecord").option("recordType", "Example").save(request["target"])
        else:
            reader = spark.read.format("tfrecord").option("recordType", "Example").schema(request["columns"])
            reader.load(request["source"]).write.format("noop").mode("overwrite").save()
        return {"seconds": time.perf_counter() - start}

    yield answer
    spark.stop()


@contextmanager
def djl(_: str) -> Iterator[Answer]:
    """Yield the answers of DJL: the same Spark as ours, with DJL and the class of ``DjlScore.java`` in its JVM."""
    from benchmarks import spark_work

    session = spark_work.session()
    jvm: Any = session.sparkContext._jvm

    def answer(request: Request) -> Request:
        if request["work"] == "versions":
            engine = jvm.ai.djl.engine.Engine
            return {"djl": engine.getDjlVersion(), "tensorflow": engine.getEngine("TensorFlow").getVersion()}
        ids, numbers, method = request["ids"], request["numbers"], getattr(jvm.benchmarks.DjlScore, request["method"])
        start = time.perf_counter()
        table: Any = session.read.parquet(*request["files"]).select("key", *ids, *numbers)
        scored = method(table._jdf, request["model"], len(ids), len(numbers), request["batch_rows"])
        scored.write().parquet(request["target"])
        return {"seconds": time.perf_counter() - start}

    yield answer
    session.stop()


@contextmanager
def faiss(folder: str) -> Iterator[Answer]:
    """Yield the answers of faiss about the vectors in ``folder``; it searches on one thread."""
    import faiss  # type: ignore[import-not-found]  # in an environment of its own
    import numpy as np

    faiss.omp_set_num_threads(1)
    items, queries = np.load(Path(folder) / "items.npy"), np.load(Path(folder) / "queries.npy")
    indexes: dict[str, Any] = {}

    def answer(request: Request) -> Request:
        name = request["index"]
        if request["work"] == "build":
            indexes[name] = _faiss_index(faiss, name, items)
            return {"version": faiss.__version__}
        if "looks" in request:
            _look_into(indexes[name], request["looks"])
        begin = time.perf_counter()
        _, found = indexes[name].search(queries, request["k"])
        seconds = time.perf_counter() - begin
        np.save(Path(folder) / "found.npy", found)
        return {"seconds": seconds}

    yield answer


def _faiss_index(faiss: Any, name: str, items: Any) -> Any:
    rows, dim = items.shape
    if name == "flat":
        index = faiss.IndexFlatIP(dim)
    elif name == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, int(rows**0.5), faiss.METRIC_INNER_PRODUCT)
        index.train(items)
    else:
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_BUILD
    index.add(items)
    return index


def _look_into(index: Any, looks: int) -> None:
    """Set how many cells, or how many candidates of the graph, a search looks at."""
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = looks
    else:
        index.nprobe = looks


@contextmanager
def catboost(threads: str) -> Iterator[Answer]:
    """Yield the answers of CatBoost, which trains on all but the test rows of a file with its defaults."""
    import catboost as library  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    def scores(request: Request) -> Request:
        table = pq.read_table(request["file"]).to_pandas()
        is_test, target = table["split"] == "test", table["y"]
        features = table.drop(columns=["split", "y"])
        begin = time.monotonic()
        model = library.CatBoostClassifier(
            verbose=0,
            thread_count=int(threads),
            random_seed=request["seed"],
            cat_features=request["categories"],
            allow_writing_files=False,
        )
        model.fit(features[~is_test], target[~is_test])
        seconds = time.monotonic() - begin
        found = model.predict_proba(features[is_test])[:, 1].tolist()
        return {"scores": found, "seconds": seconds, "version": library.__version__}

    yield scores


@contextmanager
def tables(threads: str) -> Iterator[Answer]:
    """Yield the answers of AutoGluon, LightGBM and CatBoost: their scores of the test rows of a file."""
    import numpy as np
    import pyarrow.parquet as pq

    def answer(request: Request) -> Request:
        table = pq.read_table(request["file"]).to_pandas()
        for name in request["categories"]:
            table[name] = table[name].astype("category")
        rows = {name: part.drop(columns="split") for name, part in table.groupby("split")}
        begin = time.monotonic()
        scores = _LIBRARIES[request["library"]](request, rows, int(threads))
        np.save(request["scores"], scores)
        return {"seconds": time.monotonic() - begin}

    yield answer


def _autogluon(request: Request, rows: Mapping[str, Any], threads: int) -> Any:
    import tempfile

    import pandas as pd
    from autogluon.tabular import TabularPredictor  # type: ignore[import-not-found]

    kinds = {"binary": ("binary", "roc_auc"), "multi_class": ("multiclass", "log_loss")}
    kind, metric = kinds.get(request["kind"], ("regression", "root_mean_squared_error"))
    with tempfile.TemporaryDirectory() as folder:
        predictor = TabularPredictor("y", kind, metric, path=folder, verbosity=0)
        predictor.fit(
            pd.concat([rows["train"], rows["validation"]]),
            presets="medium_quality",
            time_limit=request["seconds"],
            num_cpus=threads,
            num_gpus=0,
        )
        if kind == "regression":
            return predictor.predict(rows["test"]).to_numpy()
        found = predictor.predict_proba(rows["test"])
        return found[1].to_numpy() if kind == "binary" else found[list(range(request["classes"]))].to_numpy()


def _boosted(request: Request, model: Any, test: Any) -> Any:
    if request["kind"] == "numeric":
        return model.predict(test)
    found = model.predict_proba(test)
    return found[:, 1] if request["kind"] == "binary" else found


def _lightgbm(request: Request, rows: Mapping[str, Any], threads: int) -> Any:
    import lightgbm

    parts = {name: (part.drop(columns="y"), part["y"]) for name, part in rows.items()}
    maker = lightgbm.LGBMRegressor if request["kind"] == "numeric" else lightgbm.LGBMClassifier
    until = time.monotonic() + request["seconds"]

    def in_time(state: Any) -> None:
        if time.monotonic() > until:
            raise lightgbm.callback.EarlyStopException(state.iteration, state.evaluation_result_list)

    model = maker(n_estimators=2_000, learning_rate=0.05, n_jobs=threads, random_state=request["seed"], verbosity=-1)
    model.fit(
        *parts["train"],
        eval_set=[parts["validation"]],
        callbacks=[lightgbm.early_stopping(50, verbose=False), in_time],
    )
    return _boosted(request, model, parts["test"][0])


def _catboost(request: Request, rows: Mapping[str, Any], threads: int) -> Any:
    import catboost

    parts = {name: (part.drop(columns="y"), part["y"]) for name, part in rows.items()}
    is_numeric = request["kind"] == "numeric"
    until = time.monotonic() + request["seconds"]

    class InTime:
        def after_iteration(self, state: Any) -> bool:
            return time.monotonic() < until

    model = (catboost.CatBoostRegressor if is_numeric else catboost.CatBoostClassifier)(
        iterations=2_000,
        early_stopping_rounds=50,
        verbose=0,
        thread_count=threads,
        random_seed=request["seed"],
        cat_features=request["categories"],
        allow_writing_files=False,
    )
    model.fit(*parts["train"], eval_set=parts["validation"], callbacks=[InTime()])
    return _boosted(request, model, parts["test"][0])


_LIBRARIES: Mapping[str, Callable[..., Any]] = {
    "autogluon": _autogluon,
    "lightgbm": _lightgbm,
    "catboost": _catboost,
}


PEERS: Mapping[str, Callable[[str], Any]] = {
    "jvm_connector": jvm_connector,
    "djl": djl,
    "faiss": faiss,
    "catboost": catboost,
    "tables": tables,
}

if __name__ == "__main__":
    with PEERS[sys.argv[1]](sys.argv[2]) as of_peer:
        serve(of_peer)
