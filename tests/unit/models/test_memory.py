"""The memory report of a scorer: every weight and vocabulary, the largest first (F5)."""

import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import multi_field
from mirrorspark.models.memory import memory_table, scorer_memory, total_bytes


def test_weights_and_vocabularies_are_listed_by_size(flight_features: FittedFeatures) -> None:
    settings = multi_field.Settings(embedding_dim=100, hidden_units=())
    parts = scorer_memory(multi_field.build(settings, flight_features, seed=1), flight_features)
    found = {part.name: (part.shape, part.bytes) for part in parts}
    # 4 + 5 ids of 100 floats; three fields beside a number; the two vocabularies' few bytes are Arrow's to say.
    assert found["fields/table:0"] == ((9, 100), 3600)
    assert found["logit/kernel:0"] == ((301, 1), 1204)
    assert found["logit/bias:0"] == ((1,), 4)
    assert found["vocabulary dest"][0] == (3,)
    assert set(found) == {"fields/table:0", "logit/kernel:0", "logit/bias:0", "vocabulary dest", "vocabulary carrier"}
    assert [part.bytes for part in parts] == sorted((part.bytes for part in parts), reverse=True)


def test_an_optimizer_does_not_count(flight_features: FittedFeatures) -> None:
    model = multi_field.build(multi_field.Settings(), flight_features, seed=1)
    before = scorer_memory(model, flight_features)
    model.compile(tf_keras.optimizers.Adam())
    model.optimizer.build(model.trainable_variables)
    assert scorer_memory(model, flight_features) == before


def test_the_table_adds_up(flight_features: FittedFeatures) -> None:
    settings = multi_field.Settings(embedding_dim=1 << 17, hidden_units=())
    parts = scorer_memory(multi_field.build(settings, flight_features, seed=1), flight_features)
    first, second, *_, last = memory_table(parts).splitlines()
    assert first.split() == ["part", "shape", "MiB"]
    assert second.split() == ["fields/table:0", "9", "x", "131,072", "4.5"]
    assert last.split() == ["total", f"{total_bytes(parts) / 2**20:.1f}"]
