"""How many rows of 100 out of 300,000 features does one core score for 2,000 labels, and in how much memory?

The model sums an embedding of 128 numbers over a row's features, has a layer of 128 units and a two-way softmax for
each label. ``LoadedModel`` reads Parquet files and gives Arrow arrays, as a task of ``score_files`` does before it
writes. It is compared with the same network on rows that are made dense, the same with a Keras layer for every label,
and, as the limit, the same in SciPy and NumPy on rows that are compressed already. Rows of twice as many features
follow.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, peak_bytes, speed_ratio
from benchmarks.report import Report, Table, megabytes, timing_table
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Label, Sparse
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.transform import Encoder, SparseRows
from mirrorspark.data_pipelines.reading.parquet_rows import ParquetRows
from mirrorspark.scoring.task.batches import regrouped

FEATURES, LABELS, UNITS = 300_000, 2_000, 128
ENTRIES, MORE_ENTRIES = 100, 200
BASKET = Sparse("basket", size=FEATURES, indices="products", values="counts")

SCORER = "LoadedModel, from Parquet to Arrow"
CALL = "its SavedModel on encoded rows"
LIMIT = "SciPy CSR x dense, and NumPy"
DENSE = "rows made dense"
FUSED = "fused heads"
SEPARATE = "a Keras layer per label"
SCORED = "rows scored"
# Half of the limit, as other benchmarks of scoring ask for. A dense row takes 3,000 times the products of a sparse one
# in its first layer, but each is many times faster. Products with two columns leave a core's vector units idle. A
# worker should fit where Spark gives a core 1 GB next to the JVM.
LIMIT_MARK, DENSE_MARK, SEPARATE_MARK, MEMORY_MARK = 0.5, 10.0, 5.0, 1.0

GROUP_ROWS, CALL_ROWS = 32_768, 2_048
# A batch of this number of dense rows takes 307 MB.
DENSE_ROWS = 256
# The slow ways score only some of the rows, at least a batch; their times are those of all rows.
DENSE_SHARE, SEPARATE_SHARE = 64, 8


def run(options: Options) -> Report:
    """Write the rows, export the model, and let every side score them."""
    file, longer = (
        _write_rows(options.scratch / f"rows-of-{entries}.parquet", options.rows, entries)
        for entries in (ENTRIES, MORE_ENTRIES)
    )
    model = on_one_core(_export, options.scratch / "model")
    peaks, peaks_of_longer = on_one_core(_memory, model, file), on_one_core(_memory, model, longer)
    timings, seconds = on_one_core(_measured, model, file, options.rounds)
    timings_of_longer = on_one_core(_measured_fast_ways, model, longer, options.rounds)
    marks = (
        Mark(f"{SCORER} / {LIMIT}", speed_ratio(timings, SCORER, LIMIT), LIMIT_MARK),
        Mark(f"{SCORER} / {DENSE}", speed_ratio(timings, SCORER, DENSE), DENSE_MARK),
        Mark(f"{CALL} / {SEPARATE}", speed_ratio(timings, CALL, SEPARATE), SEPARATE_MARK),
        Mark("memory of a process that scores, GB", peaks[SCORED] / 1e9, MEMORY_MARK, "at most"),
        Mark(
            f"{SCORER} / {LIMIT}, {MORE_ENTRIES} features a row",
            speed_ratio(timings_of_longer, SCORER, LIMIT),
            LIMIT_MARK,
        ),
        Mark(
            f"memory of a process that scores {MORE_ENTRIES} features a row, GB",
            peaks_of_longer[SCORED] / 1e9,
            MEMORY_MARK,
            "at most",
        ),
    )
    title = f"{options.rows:,} rows, {{}} of {FEATURES:,} features each, {LABELS:,} labels, one core"
    note = (
        f"'{DENSE}' scored a part of {DENSE_SHARE}, in batches of {DENSE_ROWS}, and '{SEPARATE}' one of "
        f"{SEPARATE_SHARE}; their seconds are multiplied."
    )
    builds = Table(
        f"To a model of {LABELS:,} labels that has scored a batch",
        ("heads", "seconds"),
        tuple((name, f"{of:.1f}") for name, of in seconds.items()),
    )
    table = timing_table(title.format(ENTRIES), options.rows, timings, LIMIT, note=note)
    longer_table = timing_table(title.format(MORE_ENTRIES), options.rows, timings_of_longer, LIMIT)
    memory = Table(
        "Largest memory of a process until then, shared libraries and all",
        ("", f"{ENTRIES} features a row", f"{MORE_ENTRIES} features a row"),
        tuple((moment, megabytes(peak), megabytes(peaks_of_longer[moment])) for moment, peak in peaks.items()),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, (table, longer_table, builds, memory), marks)


@dataclass(frozen=True)
class Network:
    """The weights of the exported model.

    Attributes:
        table: ``[features, units]``.
        kernel: Weights of the hidden layer, ``[units, units]``.
        bias: Bias of the hidden layer.
        heads_kernel: ``[2, units, labels]``: against each label, and for it.
        heads_bias: ``[2, labels]``.
    """

    table: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    heads_kernel: np.ndarray
    heads_bias: np.ndarray

    @classmethod
    def of(cls, model: Path) -> "Network":
        """Read the weights of an exported model."""
        from mirrorspark.models.fitting.warm_start import EarlierModel

        names = ("basket_embedding/table", "hidden_0/kernel", "hidden_0/bias", "heads/kernel", "heads/bias")
        weights = EarlierModel(model / "saved_model", _fitted())
        return cls(*(weights.read(name) for name in names))


def _fitted() -> FittedFeatures:
    return FittedFeatures(FeatureSpec((BASKET,), Label("bought", "multi_label", classes=LABELS), ("key",)), {}, {})


def _write_rows(path: Path, rows: int, entries: int) -> Path:
    generator = np.random.default_rng(20_240_601)
    # One index out of each of ``entries`` equal parts: ascending and distinct.
    part = FEATURES // entries
    indices = generator.integers(0, part, (rows, entries)) + np.arange(0, FEATURES, part)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * entries)
    lists = (indices.ravel(), generator.random(rows * entries, np.float32))
    products, counts = (pa.ListArray.from_arrays(offsets, pa.array(values)) for values in lists)
    table = pa.table({"key": np.arange(rows), "products": products, "counts": counts})
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def _export(folder: Path) -> Path:
    from mirrorspark.models import multi_label
    from mirrorspark.models.serving.export import ScoringModule, save
    from mirrorspark.scoring.model.folder import FEATURES_FOLDER, OUTPUTS, SAVED_MODEL_FOLDER, ModelDescription

    fitted = _fitted()
    settings = multi_label.Settings(embedding_dim=UNITS, hidden_units=(UNITS,), heads="softmax")
    save(ScoringModule(multi_label, multi_label.build(settings, fitted, 1), fitted), folder / SAVED_MODEL_FOLDER)
    fitted.save(folder / FEATURES_FOLDER)
    ModelDescription("multi_label", "multi_label", fitted.hash, OUTPUTS["multi_label"], {}).save(folder)
    return folder


def _memory(model: Path, file: Path) -> dict[str, int]:
    """Return the largest memory of this process in bytes, up to three moments of its life."""
    from mirrorspark.scoring.backends.tensorflow_runtime import start_tensorflow
    from mirrorspark.scoring.model.loading import LoadedModel

    start_tensorflow()  # as the scorer does, which leaves out Keras 3
    peaks = {"libraries imported": peak_bytes(os.getpid())}
    loaded = LoadedModel(model, threads=1)
    peaks["model loaded"] = peak_bytes(os.getpid())
    _score(loaded, file)
    return peaks | {SCORED: peak_bytes(os.getpid())}


def _measured(model: Path, file: Path, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Return the times of all ways, and the seconds until models of either kind of heads have scored some rows."""
    from mirrorspark.scoring.model.loading import LoadedModel

    loaded, network, rows = LoadedModel(model, threads=1), Network.of(model), _compressed(file)
    some = rows[:DENSE_ROWS]
    seconds: dict[str, float] = {}
    ways: dict[str, Way] = {CALL: _saved_model(model), DENSE: _dense_network(network)}
    for name, heads in ((FUSED, _fused_heads), (SEPARATE, _separate_heads)):
        begin = time.perf_counter()
        ways[name] = _keras_model(network, heads)
        ways[name](some)
        seconds[name] = time.perf_counter() - begin
    for way in ways.values():
        np.testing.assert_allclose(way(some), _by_numpy(network, some), rtol=0, atol=1e-6)
    contenders = [
        *_fast_ways(loaded, file, ways[CALL], network, rows),
        Contender(DENSE, lambda: _in_calls(ways[DENSE], rows, DENSE_ROWS, DENSE_SHARE)),
        Contender(SEPARATE, lambda: _in_calls(ways[SEPARATE], rows, CALL_ROWS, SEPARATE_SHARE)),
    ]
    return interleave(contenders, rounds), seconds


def _measured_fast_ways(model: Path, file: Path, rounds: int) -> dict[str, Timing]:
    from mirrorspark.scoring.model.loading import LoadedModel

    loaded, call = LoadedModel(model, threads=1), _saved_model(model)
    return interleave(_fast_ways(loaded, file, call, Network.of(model), _compressed(file)), rounds)


def _fast_ways(loaded: Any, file: Path, call: "Way", network: Network, rows: csr_array) -> list[Contender]:
    return [
        Contender(SCORER, lambda: _score(loaded, file)),
        Contender(CALL, lambda: _in_calls(call, rows, CALL_ROWS)),
        Contender(LIMIT, lambda: _in_calls(lambda part: _by_numpy(network, part), rows, CALL_ROWS)),
    ]


def _score(model: Any, file: Path) -> None:
    rows = ParquetRows.of(file, [*BASKET.columns])
    for batch in regrouped(rows.batches(rows.groups, 1)):
        for part in model.parts(batch):
            model.score_arrow(part)


def _compressed(file: Path) -> csr_array:
    encoded = Encoder(_fitted()).encode(pq.read_table(file))[BASKET.name]
    assert isinstance(encoded, SparseRows)  # so is a sparse feature encoded
    return csr_array((encoded.values, encoded.indices, encoded.row_starts), (len(encoded.row_lengths), FEATURES))


Way = Callable[[csr_array], np.ndarray]
"""Takes compressed rows, and returns the probabilities of their labels: float32 ``[rows, labels]``."""


def _in_calls(way: Way, rows: csr_array, call_rows: int, share: int = 1) -> float:
    """Return the seconds that ``way`` takes, or would, when it has scored one of ``share`` parts of the rows."""
    total = rows.shape[0]
    scored = min(total, max(call_rows, total // share))
    begin = time.perf_counter()
    for part in _cut(rows, scored, call_rows):
        way(part)
    return (time.perf_counter() - begin) * total / scored


def _cut(rows: csr_array, stop: int, call_rows: int) -> Iterator[csr_array]:
    for start in range(0, stop, call_rows):
        yield rows[start : min(stop, start + call_rows)]


def _by_numpy(network: Network, rows: csr_array) -> np.ndarray:
    hidden = np.maximum(rows @ network.table @ network.kernel + network.bias, 0)
    log_odds = hidden @ (network.heads_kernel[1] - network.heads_kernel[0])
    log_odds += network.heads_bias[1] - network.heads_bias[0]
    return 1 / (1 + np.exp(-log_odds))


def _saved_model(model: Path) -> Way:
    import tensorflow as tf

    module = tf.saved_model.load(str(model / "saved_model"))
    call = module.signatures["encoded"]

    def way(rows: csr_array) -> np.ndarray:
        assert module is not None  # the signature alone does not keep its variables
        tensors = dict(zip(BASKET.parts, _tensors(rows), strict=True))
        return np.asarray(call(**tensors)["scores"])

    return way


def _keras_model(network: Network, heads: Callable[[Any, Network], tuple[Any, list[np.ndarray]]]) -> Way:
    """Build the network with ``heads``, which take the hidden units and return probabilities and their weights."""
    import tensorflow as tf
    import tf_keras

    from mirrorspark.models.layers.input import concatenated_inputs, dense_stack, symbolic_inputs
    from mirrorspark.models.serving.preprocessing import sparse_tensor

    inputs = symbolic_inputs((BASKET,))
    joined = concatenated_inputs(_fitted(), (BASKET,), inputs, UNITS)
    probabilities, weights = heads(dense_stack(joined, (UNITS,), 0.0, 1), network)
    model = tf_keras.Model(inputs, probabilities)
    model.set_weights([network.table, network.kernel, network.bias, *weights])
    call = tf.function(
        lambda *parts: model({BASKET.name: sparse_tensor(FEATURES, *parts)}, training=False),
        input_signature=[tf.TensorSpec([None], dtype) for dtype in (tf.int64, tf.float32, tf.int64)],
        autograph=False,
    )
    return lambda rows: np.asarray(call(*_tensors(rows)))


def _fused_heads(hidden: Any, network: Network) -> tuple[Any, list[np.ndarray]]:
    import tensorflow as tf

    from mirrorspark.models.layers import TwoWayHeads

    return tf.sigmoid(TwoWayHeads(LABELS)(hidden)), [network.heads_kernel, network.heads_bias]


def _separate_heads(hidden: Any, network: Network) -> tuple[Any, list[np.ndarray]]:
    import tf_keras

    heads = [tf_keras.layers.Dense(2, activation="softmax")(hidden) for _ in range(LABELS)]
    weights = [of[..., label].T for label in range(LABELS) for of in (network.heads_kernel, network.heads_bias)]
    return tf_keras.layers.Concatenate()(heads)[:, 1::2], weights


def _dense_network(network: Network) -> Way:
    import tensorflow as tf

    table, kernel = tf.constant(network.table), tf.constant(network.kernel)
    heads_kernel = tf.constant(network.heads_kernel[1] - network.heads_kernel[0])
    heads_bias = tf.constant(network.heads_bias[1] - network.heads_bias[0])

    @tf.function(input_signature=[tf.TensorSpec([None, FEATURES])], autograph=False)
    def call(rows: Any) -> Any:
        hidden = tf.nn.relu(tf.matmul(tf.matmul(rows, table), kernel) + network.bias)
        return tf.sigmoid(tf.matmul(hidden, heads_kernel) + heads_bias)

    return lambda rows: np.asarray(call(tf.constant(rows.toarray())))


def _tensors(rows: csr_array) -> tuple[Any, Any, Any]:
    """Return indices, values and row lengths."""
    import tensorflow as tf

    lengths = np.diff(rows.indptr)
    return tf.constant(rows.indices.astype(np.int64)), tf.constant(rows.data), tf.constant(lengths.astype(np.int64))


BENCHMARK = Benchmark("score_sparse", question_of(__doc__), 65_536, run)

if __name__ == "__main__":
    main(BENCHMARK)
