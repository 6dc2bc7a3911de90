"""How long does a new catalogue of a million items take, from the table to a model folder that can be scored?

`refresh_index` checks and encodes the table, embeds all items by the trained tower (64 numbers each), builds every
index that is installed, measures their recall and writes the model. One item in twenty is new, as many are gone, and
one in a hundred has changed.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.recommender_model import DIM, SAMPLE, clustered_vectors
from benchmarks.report import Report, Table, timing_table

MARK_SECONDS = 60
K = 20
CATEGORIES = 500
NAME = "refresh_index"


def run(options: Options) -> Report:
    """Time a refresh on all cores."""
    from mirrorspark.recommending.item_index.refresh import RefreshedIndex, refresh_index

    model = _export(options.scratch / "model", options.rows)
    items = _items(np.arange(options.rows) + options.rows // 20, options.rows, changed=100)
    target = options.scratch / "refreshed"
    results: list[RefreshedIndex] = []
    way = Contender(
        NAME,
        lambda: results.append(refresh_index(model, items, target)),
        partial(shutil.rmtree, target, ignore_errors=True),
    )
    timings = interleave([way], options.rounds, warm_ups=0)
    catalogue = results[-1].catalogue
    note = f"{catalogue.new:,} items new, {catalogue.removed:,} gone, {catalogue.changed:,} changed. A row is an item."
    title = f"{options.rows:,} items with a category, a price and a vector of {DIM}"
    tables = (timing_table(title, options.rows, timings, NAME, note=note), _recalls(results[-1].recalls))
    marks = [Mark(f"{NAME}, seconds", timings[NAME].median, MARK_SECONDS, "at most")]
    conditions = {"rounds": f"median of {options.rounds}"}
    return Report(BENCHMARK.name, BENCHMARK.question, tables, tuple(marks), conditions=conditions)


def _recalls(recalls: Mapping[str, float]) -> Table:
    rows = tuple((index, f"{found:.3f}") for index, found in recalls.items())
    return Table(f"Share of the exact best {K} for {SAMPLE:,} queries", ("index", "recall"), rows)


def _items(numbers: np.ndarray, count: int, *, changed: int = 0) -> pa.Table:
    """Return items by their numbers; of those that can, one in ``changed`` has another price than at training."""
    vectors, _ = clustered_vectors(count + count // 20, 1)
    prices = np.random.default_rng(2).lognormal(3.0, 1.0, len(vectors))
    if changed:
        prices[::changed] += 1
    values = pa.array(vectors[numbers].ravel())
    return pa.table(
        {
            "item": pa.array(map(str, numbers)),
            "category": pa.array([f"c{number % CATEGORIES}" for number in numbers]),
            "price": prices[numbers],
            "vector": pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, DIM, dtype=np.int32)), values),
        }
    )


def _export(folder: Path, count: int) -> Path:
    """Export an untrained two-tower model with its exact index; its items are 0, 1, 2, ..."""
    from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
    from mirrorspark.data_pipelines.features.items import with_items
    from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric, Vector
    from mirrorspark.data_pipelines.features.spec import FeatureSpec
    from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
    from mirrorspark.models import two_tower
    from mirrorspark.models.retrieval.saved_towers import save_towers
    from mirrorspark.models.serving.export import build_indexes, candidate_embeddings, recalls, save_retrieval
    from mirrorspark.scoring.model.catalogue import SAMPLE_FILE, TOWERS_FOLDER, Catalogue
    from mirrorspark.scoring.model.directory import FEATURES_FOLDER, OUTPUTS, SAVED_MODEL_FOLDER, ModelDescription

    def vocabulary(tokens: list[str]) -> Vocabulary:
        return Vocabulary(pa.array(tokens), pa.array(np.arange(len(tokens), 0, -1)))

    of_items = FeatureSpec.of_items(
        "item", [Categorical("category"), Numeric("price", log=True), Vector("vector", DIM)]
    )
    spec = FeatureSpec(
        (Categorical("user"), Categorical("product")), Label("product", "candidate"), ("user",), items=of_items
    )
    categories = {"item": vocabulary(["0"]), "category": vocabulary([f"c{n}" for n in range(CATEGORIES)])}
    own = FittedFeatures(of_items, categories, {"price": NumericStatistics(3.0, 1.0, 0.0, 9.0, count)})
    words = {"user": vocabulary(["u"]), "product": vocabulary([str(number) for number in range(count)])}
    fitted = with_items(FittedFeatures(spec, words, {}), own, _items(np.arange(count), count))
    model = two_tower.build(two_tower.Settings(embedding_dim=DIM), fitted, seed=1)
    # Queries are near items, as those of a trained model are.
    random = np.random.default_rng(3)
    vectors = candidate_embeddings(model)
    sample = vectors[2 + random.integers(0, count, SAMPLE)]
    sample = (sample + vectors.std() * random.normal(size=sample.shape)).astype(np.float32)
    indexes = build_indexes(model, K)
    save_retrieval(two_tower, model, fitted, K, indexes, folder / SAVED_MODEL_FOLDER)
    save_towers(two_tower, model, fitted, folder / TOWERS_FOLDER)
    np.save(folder / SAMPLE_FILE, sample)
    fitted.save(folder / FEATURES_FOLDER)
    catalogue = dataclasses.asdict(Catalogue.of_training(fitted, K, datetime.now(UTC)))
    found = recalls(indexes, K, sample)
    description = ModelDescription("retrieval", "two_tower", fitted.hash, OUTPUTS["retrieval"], {}, found)
    dataclasses.replace(description, catalogue=catalogue).save(folder)
    return folder


BENCHMARK = Benchmark(NAME, question_of(__doc__), 1_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
