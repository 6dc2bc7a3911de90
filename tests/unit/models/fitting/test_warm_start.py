"""T12: a new model takes some weights of an earlier one with other vocabularies, and leaves others."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Bucketed, Categorical, Label, MultiValued, Numeric, Sparse, Text
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import lstm_retrieval, multi_field, multi_label, sasrec, two_tower, wide_deep, youtube_dnn
from mirrorspark.models.fitting import warm_start
from mirrorspark.models.fitting.objectives import compile_model
from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer
from mirrorspark.models.fitting.warm_start import (
    NOT_THERE,
    EarlierModel,
    WarmStartError,
    begin_from,
    earlier_ids,
    merged,
    redefined,
)
from mirrorspark.models.serving.export import RetrievalModule, ScoringModule, build_indexes
from mirrorspark.models.serving.saved_functions import save_functions
from tests.unit.models.conftest import vocabulary

SMALL = multi_field.Settings(embedding_dim=2, hidden_units=(3,), dropout=0.5)


def flights(carriers: list[str], airports: list[str], **changes: Any) -> FittedFeatures:
    """Return features of flights: hashed hours, airports that two features share, a number, and buckets of ages."""
    spec = FeatureSpec(
        features=(
            Numeric("distance"),
            Categorical("carrier"),
            Categorical("hour", hash_buckets=changes.pop("hash_buckets", 3)),
            Bucketed("age", buckets=2),
            Categorical("dest"),
            MultiValued("earlier", max_length=2, vocabulary_of="dest"),
        ),
        label=Label("late"),
        keys=("flight_id",),
    )
    statistics = {"distance": NumericStatistics(100.0, 50.0, 0.0, 200.0, 4)}
    vocabularies = {"carrier": vocabulary(carriers), "dest": vocabulary(airports)}
    return FittedFeatures(spec, vocabularies, statistics, {"age": changes.pop("boundaries", (30.0,))})


BEFORE = flights(["UA", "AA", "TW"], ["JFK", "LAX"])
# AA is the most frequent by now, TW is missing and B6 is new.
AFTER = flights(["AA", "B6", "UA"], ["LAX", "ü", "JFK"])


def movies(*names: str) -> FittedFeatures:
    spec = FeatureSpec((Categorical("user"), Categorical("movie")), Label("movie", kind="candidate"), ("user",))
    return FittedFeatures(spec, {"user": vocabulary(["u", "v"]), "movie": vocabulary(list(names))}, {})


def built(architecture: ModuleType, settings: Any, fitted: FittedFeatures, seed: int) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(seed)
    return architecture.build(settings, fitted, seed)


def by_name(model: tf_keras.Model) -> dict[str, np.ndarray]:
    return {weight.name.partition(":")[0]: weight.numpy() for weight in model.weights}


Exported = tuple[EarlierModel, Mapping[str, np.ndarray]]


def export(folder: Path, fitted: FittedFeatures, architecture: ModuleType, settings: Any) -> Exported:
    """Export an untrained model; return what a later one sees of it, and its weights."""
    model = built(architecture, settings, fitted, seed=1)
    if architecture.TASK == "retrieval":
        module: Any = RetrievalModule(architecture, model, fitted, 1, build_indexes(model, 1))
    else:
        module = ScoringModule(architecture, model, fitted)
    # A later model reads the weights alone, and signatures take long to trace.
    save_functions(module, {}, folder)
    return EarlierModel(folder, fitted), by_name(model)


@pytest.fixture(scope="module")
def flights_before(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a model of flights, with other vocabularies than now."""
    return export(tmp_path_factory.mktemp("flights"), BEFORE, multi_field, SMALL)


def test_a_token_keeps_its_embedding_wherever_it_stands_now_and_a_new_one_its_initial_values(
    flights_before: Exported,
) -> None:
    earlier, before = flights_before
    model = built(multi_field, SMALL, AFTER, seed=2)
    initial = by_name(model)
    taken = begin_from(model, AFTER, earlier)
    table, old, new = by_name(model)["fields/table"], before["fields/table"], initial["fields/table"]
    # By hand. Before: carrier from 0 (missing, unknown, UA, AA, TW), hour from 5 (2 + 3), age from 10 (2 + 2), dest
    # from 14 (missing, unknown, JFK, LAX). Now the same up to 14, and AA, B6, UA; LAX, ü, JFK.
    rows_of_old = [0, 1, 3, None, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, None, 16]
    expected = [new[row] if of_old is None else old[of_old] for row, of_old in enumerate(rows_of_old)]
    np.testing.assert_array_equal(table, expected)
    for name in ("hidden_0/kernel", "hidden_0/bias", "logit/kernel", "logit/bias"):
        np.testing.assert_array_equal(by_name(model)[name], before[name])
    assert (taken.weights, taken.of_weights, taken.tokens, taken.of_tokens) == (5, 5, 4, 6)
    assert taken.in_words() == "5 of 5 weights, 4 of 6 tokens"


def tagged(*tags: str, classes: int | None = None) -> FittedFeatures:
    """Return features of a multi-label model."""
    spec = FeatureSpec((Sparse("words", size=4),), Label("tags", "multi_label", classes=classes), ("id",))
    return FittedFeatures(spec, {} if classes else {"tags": vocabulary(list(tags))}, {})


@pytest.mark.parametrize("heads", ["sigmoid", "softmax"])
def test_a_label_keeps_its_head_wherever_it_stands_now(tmp_path: Path, heads: str) -> None:
    settings = multi_label.Settings(embedding_dim=2, hidden_units=(3,), heads=heads)
    earlier, before = export(tmp_path, tagged("tea", "milk", "jam"), multi_label, settings)
    # Milk is the most frequent by now, jam is missing and rice is new.
    after = tagged("milk", "rice", "tea")
    model = built(multi_label, settings, after, seed=2)
    initial = by_name(model)
    taken = begin_from(model, after, earlier)
    for name in ("heads/kernel", "heads/bias"):
        old, new = before[name], initial[name]
        expected = np.stack([old[..., 1], new[..., 1], old[..., 0]], axis=-1)
        np.testing.assert_array_equal(by_name(model)[name], expected)
    assert taken.in_words() == "5 of 5 weights, 2 of 3 tokens"


def test_numbered_labels_keep_their_heads_and_a_further_one_begins_afresh(tmp_path: Path) -> None:
    settings = multi_label.Settings(embedding_dim=2, hidden_units=(3,))
    earlier, before = export(tmp_path, tagged(classes=2), multi_label, settings)
    model = built(multi_label, settings, tagged(classes=3), seed=2)
    fresh = by_name(model)["heads/kernel"][:, 2]
    taken = begin_from(model, tagged(classes=3), earlier)
    found = by_name(model)["heads/kernel"]
    np.testing.assert_array_equal(found, np.column_stack([before["heads/kernel"], fresh]))
    assert taken.in_words() == "5 of 5 weights"


def test_counters_and_the_optimizer_begin_afresh(flights_before: Exported) -> None:
    earlier, _ = flights_before
    model = built(multi_field, SMALL, AFTER, seed=2)
    compile_model(model, "binary", build_optimizer(OptimizerSettings("adam", 0.1)))
    assert begin_from(model, AFTER, earlier).of_weights == 5
    assert int(model.optimizer.iterations.numpy()) == 0
    assert [int(weight.numpy()) for weight in model.weights if weight.dtype == tf.int64] == [0]


def test_weights_that_do_not_fit_are_named_and_not_taken(flights_before: Exported) -> None:
    earlier, before = flights_before
    wider = replace(SMALL, embedding_dim=4)
    model = built(multi_field, wider, AFTER, seed=2)
    initial = by_name(model)
    taken = begin_from(model, AFTER, earlier)
    assert taken.in_words() == (
        "3 of 5 weights, 0 of 6 tokens; not taken: fields/table (rows of [4] here, of [2] there), "
        "hidden_0/kernel ([21, 3] here, [11, 3] there)"
    )
    np.testing.assert_array_equal(by_name(model)["fields/table"], initial["fields/table"])
    np.testing.assert_array_equal(by_name(model)["logit/kernel"], before["logit/kernel"])


def test_a_model_with_nothing_in_common_is_refused_with_the_mend(flights_before: Exported) -> None:
    earlier, _ = flights_before
    model = built(two_tower, two_tower.Settings(embedding_dim=4, hidden_units=(8,)), movies("a", "b"), seed=2)
    expected = (
        r"none of the 6 weights can be taken: .*; give a model of the same architecture and settings, or leave "
        r"warm_start out; a run that has begun keeps its model: --no-resume looks it up anew"
    )
    with pytest.raises(WarmStartError, match=expected):
        begin_from(model, movies("a", "b"), earlier)


@pytest.mark.parametrize("architecture", [two_tower, youtube_dnn], ids=["two_tower", "youtube_dnn"])
def test_candidates_keep_their_embeddings_and_metrics_their_zeros(tmp_path: Path, architecture: ModuleType) -> None:
    settings = architecture.Settings(embedding_dim=4, hidden_units=(8,))
    earlier, before = export(tmp_path, movies("a", "b", "c"), architecture, settings)
    now = movies("c", "d", "a")
    model = built(architecture, settings, now, seed=2)
    initial = model.candidate_tower.embeddings.numpy()
    taken = begin_from(model, now, earlier)
    (old,) = (values for values in before.values() if values.shape == (5, 4) and values.shape[0] == 5)
    found = model.candidate_tower.embeddings.numpy()
    np.testing.assert_array_equal(found, [old[0], old[1], old[4], initial[3], old[2]])
    # The vocabularies of users and of movies; of the latter only one table has rows.
    assert (taken.weights, taken.of_weights, taken.tokens, taken.of_tokens) == (6, 6, 4, 5)


def test_users_and_candidates_of_a_graph_keep_their_embeddings(tmp_path: Path) -> None:
    settings = two_tower.Settings(embedding_dim=4, graph_layers=2)
    earlier, before = export(tmp_path, movies("a", "b", "c"), two_tower, settings)
    now = movies("c", "d", "a")
    model: Any = built(two_tower, settings, now, seed=2)
    initial = model.graph.table.numpy()
    taken = begin_from(model, now, earlier)
    # Two users and two other ids, then the movies.
    old = before["graph_table"]
    expected = [*old[:4], old[4], old[5], old[8], initial[7], old[6]]
    np.testing.assert_array_equal(model.graph.table.numpy(), expected)
    assert taken.in_words() == "2 of 2 weights, 4 of 5 tokens"


def watched(*names: str) -> FittedFeatures:
    features = (MultiValued("watched", max_length=3, vocabulary_of="movie"), Categorical("user"), Categorical("movie"))
    spec = FeatureSpec(features, Label("movie", kind="candidate"), ("user",))
    return FittedFeatures(spec, {"user": vocabulary(["u", "v"]), "movie": vocabulary(list(names))}, {})


def test_a_history_keeps_the_embeddings_of_its_tokens_and_what_reads_them(tmp_path: Path) -> None:
    settings = lstm_retrieval.Settings(embedding_dim=4, hidden_units=(8,), lstm_units=3)
    earlier, before = export(tmp_path, watched("a", "b", "c"), lstm_retrieval, settings)
    now = watched("c", "d", "a")
    model = built(lstm_retrieval, settings, now, seed=2)
    initial, old = by_name(model)["fields/table"], before["fields/table"]
    assert begin_from(model, now, earlier).left_out == ()
    found = by_name(model)
    np.testing.assert_array_equal(found["fields/table"][:5], [old[0], old[1], old[4], initial[3], old[2]])
    read_by = [name for name in found if "lstm" in name]
    assert len(read_by) == 3
    for name in read_by:
        np.testing.assert_array_equal(found[name], before[name])


@pytest.mark.full
def test_attention_keeps_the_embeddings_that_histories_and_candidates_share(tmp_path: Path) -> None:
    settings = sasrec.Settings(embedding_dim=4)
    earlier, before = export(tmp_path, watched("a", "b", "c"), sasrec, settings)
    now = watched("c", "d", "a")
    model = built(sasrec, settings, now, seed=2)
    initial, old = by_name(model)["embeddings"], before["embeddings"]
    assert begin_from(model, now, earlier).left_out == ()
    found = by_name(model)
    expected = [old[0], old[1], old[4], initial[3], old[2]]
    np.testing.assert_array_equal(found["embeddings"][:5], expected)
    others = set(found) - {"embeddings"}
    assert any("attention" in name for name in others)
    for name in others:
        np.testing.assert_array_equal(found[name], before[name])


def test_a_table_of_hashed_pairs_is_taken_only_where_all_ids_mean_the_same(tmp_path: Path) -> None:
    settings = wide_deep.Settings(embedding_dim=2, hidden_units=(3,), crosses=("carrier*dest",), cross_buckets=7)
    earlier, before = export(tmp_path, BEFORE, wide_deep, settings)
    same = built(wide_deep, settings, BEFORE, seed=2)
    assert begin_from(same, BEFORE, earlier).left_out == ()
    name = "weights_carrier_x_dest/embeddings"
    np.testing.assert_array_equal(by_name(same)[name], before[name])
    other = built(wide_deep, settings, AFTER, seed=2)
    initial = by_name(other)[name]
    taken = begin_from(other, AFTER, earlier)
    assert taken.left_out == (f"{name} (no row is known to mean the same)",)
    np.testing.assert_array_equal(by_name(other)[name], initial)
    # Both tables have rows of them, and each token counts once.
    assert (taken.tokens, taken.of_tokens) == (4, 6)


def ids_of(name: str, now: FittedFeatures, before: FittedFeatures, other: str | None = None) -> list[int]:
    features: Any = now.spec[name], before.spec[other or name]
    return earlier_ids(now, features[0], before, features[1]).tolist()


def test_ids_are_matched_by_what_they_mean() -> None:
    assert ids_of("carrier", AFTER, BEFORE) == [0, 1, 3, NOT_THERE, 2]
    assert ids_of("earlier", AFTER, BEFORE) == [0, 1, 3, NOT_THERE, 2]
    assert ids_of("hour", AFTER, BEFORE) == [0, 1, 2, 3, 4]
    assert ids_of("age", AFTER, BEFORE) == [0, 1, 2, 3]
    # Another number of buckets: a hash, or a share of the rows, is another one.
    assert set(ids_of("hour", flights(["UA"], ["JFK"], hash_buckets=4), BEFORE)) == {NOT_THERE}
    assert set(ids_of("age", flights(["UA"], ["JFK"], boundaries=(20.0, 40.0)), BEFORE)) == {NOT_THERE}
    # The hash of a word, or of the word between its marks.
    parts = Text("hour", max_length=9, hash_buckets=3, ngrams=(3, 5))
    assert set(earlier_ids(AFTER, parts, BEFORE, BEFORE.spec["hour"]).tolist()) == {NOT_THERE}
    # Another kind of ids, or nothing in common.
    for other in ("hour", "age", "dest", "distance"):
        assert set(ids_of("carrier", AFTER, BEFORE, other)) == {NOT_THERE}
    assert set(ids_of("hour", AFTER, BEFORE, "carrier")) == {NOT_THERE}


def test_features_that_mean_something_else_are_named() -> None:
    assert redefined(AFTER, BEFORE) == ()
    assert redefined(flights(["UA"], ["JFK"], hash_buckets=4), BEFORE) == ("hour",)
    turned = replace(BEFORE, spec=replace(BEFORE.spec, features=BEFORE.spec.features[::-1]))
    assert set(redefined(turned, BEFORE)) == {feature.name for feature in BEFORE.spec}
    fewer = replace(BEFORE, spec=replace(BEFORE.spec, features=BEFORE.spec.features[1:]))
    assert redefined(fewer, BEFORE) == redefined(BEFORE, fewer) == ("distance",)


def test_rows_are_put_together() -> None:
    initial, earlier = np.zeros((3, 1)), np.array([[5.0], [6.0]])
    assert merged(initial, earlier, np.array([1, NOT_THERE, 0])).ravel().tolist() == [6, 0, 5]
    assert initial.ravel().tolist() == [0, 0, 0]


def test_every_piece_of_a_large_table_gives_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """T6: else a slow one counts as a hang."""
    monkeypatch.setattr(warm_start, "_ROWS_AT_ONCE", 2)
    beats: list[None] = []
    rows = np.array([4, NOT_THERE, NOT_THERE, NOT_THERE, 0])
    found = merged(np.zeros((5, 1)), np.arange(10.0, 15.0)[:, None], rows, lambda: beats.append(None))
    assert found.ravel().tolist() == [14, 0, 0, 0, 10]
    assert len(beats) == 3


def test_every_weight_gives_a_sign(flights_before: Exported) -> None:
    earlier, _ = flights_before
    beats: list[None] = []
    taken = begin_from(built(multi_field, SMALL, AFTER, seed=2), AFTER, earlier, lambda: beats.append(None))
    # One when it has been read, one when it is there.
    assert len(beats) >= 2 * taken.weights


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_weights_that_cannot_be_read_are_told_with_their_place(tmp_path: Path, fault: str) -> None:
    export(tmp_path / "saved_model", BEFORE, multi_field, SMALL)
    variables = tmp_path / "saved_model" / "variables"
    if fault == "missing":
        (variables / "variables.index").unlink()
    else:
        data = variables / "variables.data-00000-of-00001"
        data.write_bytes(bytes(data.stat().st_size))
    model = built(multi_field, SMALL, AFTER, seed=2)
    expected = r"the weights .*saved_model/variables/variables cannot be read .*--no-resume looks it up anew"
    with pytest.raises(WarmStartError, match=expected):
        begin_from(model, AFTER, EarlierModel(tmp_path / "saved_model", BEFORE))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_distributed_and_half_precision_weights_are_taken_alike(flights_before: Exported, precision: str) -> None:
    """T11: under TensorFlow's own strategies variables are mirrored ones."""
    earlier, before = flights_before
    tf_keras.mixed_precision.set_global_policy(precision)
    try:
        with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
            model = built(multi_field, SMALL, BEFORE, seed=2)
            assert begin_from(model, BEFORE, earlier).left_out == ()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    for name, values in by_name(model).items():
        np.testing.assert_array_equal(values, before[name])
