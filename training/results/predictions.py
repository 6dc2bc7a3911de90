"""The training framework's own predictions of the evaluated splits, which the scores from Spark must equal."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import Encoder, FeatureSpec, FittedFeatures, RaggedIds, kinds
from mirrorspark.data_pipelines.reading import Dataset, held_back_candidates
from mirrorspark.models import classical
from mirrorspark.models.index import CANDIDATES, SCORES, UNFILLED
from mirrorspark.training.results.evaluation import best_candidates, evaluate_run

# Rows that are explained go through the model in calls of this size, as a model of the user's own may be large.
_ROWS_PER_CALL = 512

EVALUATED_SPLITS = ("validation", "test")


def read_predictions(folder: Path) -> dict[str, pa.Table]:
    """Return the predictions of each evaluated split, which the export has written to ``folder``."""
    return {split: pq.read_table(folder / f"{split}.parquet") for split in EVALUATED_SPLITS}


def traced(architecture: Any, model: Any) -> Callable[[Any], Any]:
    """Return the model's prediction as a graph, to be made once for all splits."""
    import tensorflow as tf

    return tf.function(lambda inputs: architecture.predict(model, inputs), reduce_retracing=True)


def of_raw_rows(predict: Callable[[Any], Any], features: FittedFeatures) -> Callable[[pa.Table], np.ndarray]:
    """Return a function from raw columns to predictions, ``[rows]`` or ``[rows, classes]``."""
    import tensorflow as tf

    from mirrorspark.models.serving import model_inputs

    encoder, inputs = Encoder(features), features.spec.query_features

    def predicted(rows: pa.Table) -> np.ndarray:
        parts = []
        for start in range(0, max(1, rows.num_rows), _ROWS_PER_CALL):
            part = encoder.encode_padded(rows.slice(start, _ROWS_PER_CALL), inputs)
            found = predict(model_inputs(inputs, {name: tf.constant(values) for name, values in part.items()}))
            parts.append(np.asarray(found["scores" if "scores" in found else "score"].numpy()))
        return np.concatenate(parts)

    return predicted


def reference_predictions(
    architecture: Any,
    model: Any,
    predict: Callable[[Any], Any],
    dataset: Dataset,
    split: str,
    k: int,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> pa.Table:
    """Return the training framework's own predictions for ``split``, with keys, label and weight.

    Binary and regression: ``score`` and ``label``, with ``quantiles`` where the model has them. Multi-class:
    ``scores`` of all classes, and ``label``. Multi-label:
    ``scores`` of all labels, and ``label``, the numbers of those that the row has. Retrieval: ``candidates``,
    ``scores`` and ``label`` (the token held back, or the list of them), ranked by NumPy, so that it shares nothing with
    the exported index; with ratings, ``rating`` and ``predicted_rating`` of the candidate held back.
    ``on_progress`` gets the number of rows so far.
    """
    from mirrorspark.models.serving import input_tensors

    parts = []
    rows = 0
    lists_of: Lists | None = None
    if architecture.TASK == "retrieval":
        lists_of = _lists_of(architecture, model, dataset, k)
    for block in dataset.blocks(split, keys=True):
        predicted = predict(input_tensors(dataset.spec.query_features, block.features))
        columns = {f"{key}": pa.array(values) for key, values in block.keys.items()}
        if lists_of is not None:
            columns |= _in_words(*lists_of(block, predicted.numpy()), dataset, block)
            columns |= _rated(model, predicted, dataset, block)
        elif isinstance(block.label, RaggedIds):
            columns |= _scored_labels(predicted["scores"].numpy(), block.label)
        elif architecture.TASK == "multi_class":
            columns |= {"scores": evaluate_run.list_column(predicted["scores"].numpy()), "label": pa.array(block.label)}
        else:
            columns |= {"score": pa.array(predicted["score"].numpy()), "label": pa.array(block.label)}
            if "quantiles" in predicted:
                columns["quantiles"] = evaluate_run.list_column(predicted["quantiles"].numpy())
        columns["weight"] = pa.array(block.weight)
        parts.append(pa.table(columns))
        rows += block.rows
        on_progress(rows)
    return pa.concat_tables(parts)


def all_predictions(
    architecture: Any,
    model: Any,
    predict: Callable[[Any], Any],
    dataset: Dataset,
    k: int,
    on_progress: Callable[[int, int], None] = lambda rows, total: None,
) -> Mapping[str, pa.Table]:
    """Return the predictions of each evaluated split; ``on_progress`` gets the rows so far, and those of all splits."""
    tables: dict[str, pa.Table] = {}
    total = sum(map(dataset.manifest.rows, EVALUATED_SPLITS))
    for split in EVALUATED_SPLITS:
        before = sum(table.num_rows for table in tables.values())

        def predicted(rows: int, before: int = before) -> None:
            on_progress(before + rows, total)

        tables[split] = reference_predictions(architecture, model, predict, dataset, split, k, predicted)
    return tables


def _scored_labels(scores: np.ndarray, label: RaggedIds) -> dict[str, pa.Array]:
    return {"scores": evaluate_run.list_column(scores), "label": _lists(pa.array(label.values), label)}


def _lists(values: pa.Array, ids: RaggedIds) -> pa.ListArray:
    """Return values of ids as lists of the same lengths."""
    ends = np.concatenate([[0], np.cumsum(ids.row_lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


Lists = Callable[[block_format.Block, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From a block and its queries to the ids and the scores of the best candidates."""


def _lists_of(architecture: Any, model: Any, dataset: Dataset, k: int) -> Lists:
    from mirrorspark.models.retrieval import BlendedRecommender

    if isinstance(model, BlendedRecommender):
        return _blended_lists(model, dataset, k)
    is_fitted = isinstance(architecture, classical.FittedArchitecture)
    return (_fitted_lists if is_fitted else _vector_lists)(model, dataset, k)


def _vector_lists(model: Any, dataset: Dataset, k: int) -> Lists:
    from mirrorspark.models.serving import candidate_embeddings

    candidates = candidate_embeddings(model)
    return lambda block, queries: best_candidates(queries, candidates, block.excluded, k)


def _fitted_lists(model: Any, dataset: Dataset, k: int) -> Lists:
    """Return the lists of a classical recommender, which share nothing with its graph, not even the queries."""
    from mirrorspark.training.programs.recommenders import Interactions, best, scores_of

    interactions, scores = Interactions(dataset), scores_of(model.name, model.settings, model.arrays)
    last_items = getattr(model.settings, "last_items", 0)
    return lambda block, _: best(scores, interactions.histories(block, last_items), block.excluded, k)


def _blended_lists(model: Any, dataset: Dataset, k: int) -> Lists:
    """Return the lists of a blend, which share with its graph the network's queries alone."""
    from mirrorspark.training.programs.recommenders import Interactions, best_of_rows, blended_rows, scores_of

    interactions = Interactions(dataset)
    fitted = [scores_of(one.name, one.settings, one.arrays) for one in model.others]
    candidates = model.embeddings[kinds.FIRST_VOCABULARY_ID :]

    def lists(block: block_format.Block, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = queries[:, : candidates.shape[1]].astype(np.float32)
        histories = [interactions.histories(block, getattr(one.settings, "last_items", 0)) for one in model.others]
        others = [
            lambda part, score=score, history=history: score(history[part])
            for score, history in zip(fitted, histories, strict=True)
        ]
        scores = blended_rows(lambda part: vectors[part] @ candidates.T, others, model.share)
        return best_of_rows(scores, (block.rows, len(candidates)), block.excluded, k)

    return lists


def _rated(model: Any, queries: Any, dataset: Dataset, block: block_format.Block) -> dict[str, pa.Array]:
    """Return the rating of each row's own candidate and the predicted one, for a model that learns ratings."""
    from mirrorspark.models.retrieval import rating_task

    task = rating_task(model)
    if task is None:
        return {}
    own = np.asarray(block.features[dataset.spec.candidate.name])
    predicted = task(queries, model.candidate_tower(own, training=False))
    return {"rating": pa.array(block.label), "predicted_rating": pa.array(predicted.numpy())}


def _in_words(
    best: np.ndarray, best_scores: np.ndarray, dataset: Dataset, block: block_format.Block
) -> dict[str, pa.Array]:
    candidate = dataset.spec.candidate
    vocabulary = dataset.features.vocabulary(candidate).tokens.to_pylist()
    tokens = np.array([UNFILLED] * kinds.FIRST_VOCABULARY_ID + vocabulary, dtype=object)
    # If there are fewer candidates than places, the exported index fills the rest with the lowest number; so does this.
    is_filler = np.isneginf(best_scores)
    return {
        CANDIDATES: pa.array(np.where(is_filler, UNFILLED, tokens[best]).tolist(), pa.list_(pa.string())),
        SCORES: pa.array(np.where(is_filler, np.finfo(np.float32).min, best_scores).tolist(), pa.list_(pa.float32())),
        "label": _held_back(tokens, dataset.spec, block),
    }


def _held_back(tokens: np.ndarray, spec: FeatureSpec, block: block_format.Block) -> pa.Array:
    """Return the token that each row holds back, or the list of them."""
    ids = held_back_candidates(block, spec)
    values = pa.array(tokens[np.maximum(ids.values, kinds.OUT_OF_VOCABULARY_ID)], pa.string())
    return _lists(values, ids) if spec.label.lists else values
