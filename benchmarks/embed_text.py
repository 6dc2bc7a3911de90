"""How many titles does one core embed per second by length buckets, beside calls that are padded to the longest text?

All ways tokenize the titles of MovieLens by the same WordPiece vocabulary, made of their words and of frequent parts of
words, and call the same SavedModel, a transformer of 2 layers of width 256 with random weights, with as many tokens in
a call. They differ in the padding alone: to the text's bucket, to the longest text of the table, or, in the table's
order, to the longest text of each call.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import REPOSITORY, Report, timing_table

BUCKETS, LONGEST, EACH_CALL = "length buckets", "padded to the longest of the table", "padded to the longest of a call"
MARK = 2.0
LAYERS, HEADS, DIM, MOST_TOKENS, BATCH = 2, 4, 256, 128, 64
# A word, or a part of one of up to so many letters, is in the vocabulary if titles have it so often.
_FREQUENT, _LONGEST_PART = 5, 5


def run(options: Options) -> Report:
    """Time each way on one core."""
    file = titles_file()
    if not file.is_file():
        missing = f"GroupLens gives MovieLens to each user himself, and there is no {file}; set MIRRORSPARK_SHARED_DATA"
        return Report(BENCHMARK.name, BENCHMARK.question, (), skipped=missing)
    titles = _titles(file)[: options.rows]
    timings, tokens = on_one_core(_measure, titles, options.scratch / "encoder", options.rounds)
    marks = (Mark(f"{BUCKETS} / {LONGEST}", speed_ratio(timings, BUCKETS, LONGEST), MARK),)
    note = f"Tokens in the calls, with padding: {', '.join(f'{name} {count:,}' for name, count in tokens.items())}."
    title = f"{len(titles):,} titles, one core"
    return Report(
        BENCHMARK.name, BENCHMARK.question, (timing_table(title, len(titles), timings, LONGEST, note=note),), marks
    )


def titles_file() -> Path:
    """Return the file of MovieLens' titles, which may be missing."""
    folder = Path(os.environ.get("MIRRORSPARK_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder / "ml_latest_small" / "movies.csv"


def _titles(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as rows:
        return [row["title"] for row in csv.DictReader(rows)]


def _measure(titles: list[str], folder: Path, rounds: int) -> tuple[dict[str, Timing], dict[str, int]]:
    from mirrorspark.scoring.backends.catalog import load_backend
    from mirrorspark.scoring.embedding.buckets import bucket_length
    from mirrorspark.scoring.embedding.encoder import load_encoder
    from mirrorspark.scoring.embedding.settings import EncoderSettings
    from mirrorspark.scoring.embedding.text_encoder import pooled
    from mirrorspark.scoring.embedding.wordpiece import WordPiece

    vocabulary = _vocabulary(titles)
    save_transformer(folder, len(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    encoder = load_encoder(folder, EncoderSettings(max_length=MOST_TOKENS, batch_size=BATCH))
    backend, tokenizer = load_backend("saved_model", folder), WordPiece(vocabulary)

    def padded(calls: Callable[[Sequence[Any]], Iterator[tuple[Sequence[Any], int]]]) -> np.ndarray:
        parts = []
        for texts, length in calls([tokenizer.ids(title, MOST_TOKENS) for title in titles]):
            ids = np.zeros((len(texts), length), np.int32)
            for row, text in enumerate(texts):
                ids[row, : len(text)] = text
            mask = (ids > 0).astype(np.int32)
            states = backend({"input_ids": ids, "attention_mask": mask}, ["states"])["states"]
            parts.append(pooled(states, mask))
        return np.concatenate(parts)

    ways: Mapping[str, Callable[[], np.ndarray]] = {
        BUCKETS: lambda: encoder.encode(titles),
        LONGEST: lambda: padded(_to_longest_of_table),
        EACH_CALL: lambda: padded(_to_longest_of_call),
    }
    for way in (LONGEST, EACH_CALL):  # which also warms up all of them
        np.testing.assert_allclose(ways[way](), ways[BUCKETS](), atol=1e-4)
    tokens = [tokenizer.ids(title, MOST_TOKENS) for title in titles]
    counts = {BUCKETS: sum(bucket_length(len(ids), MOST_TOKENS) for ids in tokens)}
    for name, calls in ((LONGEST, _to_longest_of_table), (EACH_CALL, _to_longest_of_call)):
        counts[name] = sum(len(texts) * length for texts, length in calls(tokens))
    counts["without padding"] = sum(map(len, tokens))
    return interleave([Contender(name, work) for name, work in ways.items()], rounds, warm_ups=0), counts


def _to_longest_of_table(texts: Sequence[Any]) -> Iterator[tuple[Sequence[Any], int]]:
    length = max(map(len, texts))
    size = BATCH * MOST_TOKENS // length
    for start in range(0, len(texts), size):
        yield texts[start : start + size], length


def _to_longest_of_call(texts: Sequence[Any]) -> Iterator[tuple[Sequence[Any], int]]:
    size = BATCH * MOST_TOKENS // max(map(len, texts))
    for start in range(0, len(texts), size):
        call = texts[start : start + size]
        yield call, max(map(len, call))


def _vocabulary(titles: Sequence[str]) -> list[str]:
    """Return the special tokens, all characters, and the words and parts of words that are frequent."""
    words = Counter(word for title in titles for word in "".join(_spaced(letter) for letter in title.lower()).split())
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + _LONGEST_PART) + 1):
                parts[("##" if start else "") + word[start:end]] += count
    kept = {part for part, count in parts.items() if count >= _FREQUENT or len(part.removeprefix("##")) == 1}
    kept |= {word for word, count in words.items() if count >= _FREQUENT}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(kept)]


def _spaced(letter: str) -> str:
    return letter if letter.isalnum() else f" {letter} "


def save_transformer(folder: Path, tokens: int) -> None:
    """Save a transformer encoder with random weights as a SavedModel of token ids, whose output are ``states``."""
    import tensorflow as tf

    random = np.random.default_rng(1)

    def weights(*shape: int) -> Any:
        return tf.Variable((random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32))

    module = tf.Module()
    module.embeddings, module.positions = weights(tokens, DIM), weights(MOST_TOKENS, DIM)
    module.layers = [
        {
            "qkv": weights(DIM, 3 * DIM),
            "out": weights(DIM, DIM),
            "up": weights(DIM, 4 * DIM),
            "down": weights(4 * DIM, DIM),
        }
        for _ in range(LAYERS)
    ]

    def normed(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-6)

    def call(input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        length = tf.shape(input_ids)[1]
        x = tf.gather(module.embeddings, input_ids) + module.positions[:length]
        hidden = -1e9 * (1 - tf.cast(attention_mask, tf.float32))[:, None, None, :]
        for layer in module.layers:
            qkv = tf.reshape(normed(x) @ layer["qkv"], [-1, length, 3, HEADS, DIM // HEADS])
            q, k, v = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
            attention = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / (DIM // HEADS) ** 0.5 + hidden)
            x += tf.reshape(tf.transpose(attention @ v, [0, 2, 1, 3]), [-1, length, DIM]) @ layer["out"]
            x += tf.nn.gelu(normed(x) @ layer["up"], approximate=True) @ layer["down"]
        return {"states": normed(x)}

    module.call = tf.function(call, autograph=False)
    specs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in ("input_ids", "attention_mask")}
    tf.saved_model.save(module, str(folder), signatures=module.call.get_concrete_function(**specs))


BENCHMARK = Benchmark("embed_text", question_of(__doc__), 9_742, run)

if __name__ == "__main__":
    main(BENCHMARK)
