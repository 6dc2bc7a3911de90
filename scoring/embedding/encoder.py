"""Encoders of texts: a folder with a SavedModel, an ONNX or a Keras file, which gives a vector for each text."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mirrorspark.data_pipelines.features.raw_columns import meant
from mirrorspark.scoring.backends.catalog import compared_libraries, load_backend
from mirrorspark.scoring.backends.protocol import DTYPES, ArrayType, Backend
from mirrorspark.scoring.backends.saved_model import SavedModelBackend
from mirrorspark.scoring.embedding.buckets import Call, bucket_length, calls
from mirrorspark.scoring.embedding.wordpiece import CONFIG_FILE, VOCABULARY_FILE, WordPiece
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.directory import cached_digest

# Changes with the vectors of an unchanged encoder: another tokenizer, another pooling.
_FORMAT_VERSION = 1

_SAVED_MODEL_FILE = "saved_model.pb"
_BACKENDS_BY_SUFFIX: Mapping[str, str] = {".onnx": "onnx", ".keras": "keras"}

# Names of the inputs of token encoders: those of Hugging Face, and those of TF-Hub.
_IDS = ("input_ids", "input_word_ids")
_MASKS = ("attention_mask", "input_mask")
_SEGMENTS = ("token_type_ids", "input_type_ids")


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder; checked when built.

    Attributes:
        signature: Signature of a SavedModel; None chooses ``serving_default``, the only one, or the module's own call.
        model_output: Name of the output that is the vector; None if the encoder has one.
        max_length: Longest number of tokens of a text, further ones are dropped; for encoders that take token ids.
        batch_size: Texts of ``max_length`` tokens in a call; of shorter ones as many more.
    """

    signature: str | None = None
    model_output: str | None = None
    max_length: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ScoringError(f"max_length {self.max_length} leaves no token of the text; use 3 or more")
        if self.batch_size < 1:
            raise ScoringError(f"batch_size {self.batch_size} is below 1; use some dozens of texts")

    def digest(self, files: str) -> str:
        """Return the digest of all that decides the vector of a text, given the digest of the encoder's files."""
        deciding = {name: value for name, value in asdict(self).items() if name != "batch_size"}
        document = json.dumps([_FORMAT_VERSION, files, deciding], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()


@contextlib.contextmanager
def encoder_folder(location: str | Path) -> Iterator[Path]:
    """Yield the folder of an encoder: the given one, or a temporary one with the given file and what belongs to it.

    Raises:
        ScoringError: There is no encoder.
    """
    path = Path(location).expanduser().resolve()
    if path.is_dir():
        _model_file(path)
        yield path
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="mirrorspark-encoder-") as scratch:
            folder = Path(scratch)
            # Weights of large ONNX models are in files beside it: model.onnx_data, model.onnx.data.
            for name in (VOCABULARY_FILE, CONFIG_FILE, *(file.name for file in path.parent.glob(f"{path.name}*"))):
                if (path.parent / name).is_file():
                    shutil.copyfile(path.parent / name, folder / name)
            _model_file(folder)
            yield folder
    else:
        raise ScoringError(
            f"there is nothing at {path}; give a folder with a SavedModel or an ONNX file, and the vocabulary if it "
            f"takes token ids"
        )


def _model_file(folder: Path) -> tuple[str, Path]:
    """Return the backend of an encoder, and the path that it loads.

    Raises:
        ScoringError: The folder has no model, or several.
    """
    if (folder / _SAVED_MODEL_FILE).is_file():
        return "saved_model", folder
    found = [path for path in sorted(folder.iterdir()) if path.suffix in _BACKENDS_BY_SUFFIX]
    # Where Hugging Face's exporter puts them.
    found = found or sorted((folder / "onnx").glob("*.onnx"))
    chosen = [path for path in found if path.stem == "model"] or found
    if len(chosen) != 1:
        holds = f"has the models {[path.name for path in chosen]}" if chosen else "has no model"
        raise ScoringError(
            f"{folder} {holds}; give a folder with a SavedModel ({_SAVED_MODEL_FILE}) or one file of "
            f"{', '.join(_BACKENDS_BY_SUFFIX)}, or that file"
        )
    return _BACKENDS_BY_SUFFIX[chosen[0].suffix], chosen[0]


def encoder_digest(location: str | Path) -> str:
    """Return the digest of the files of an encoder.

    Raises:
        ScoringError: There is no encoder.
    """
    with encoder_folder(location) as folder:
        return cached_digest(folder)


def encoder_libraries(folder: Path) -> tuple[str, ...]:
    """Return the libraries whose minor versions change what the encoder in ``folder`` computes.

    Raises:
        ScoringError: The folder has no model, or several.
    """
    return compared_libraries(_model_file(folder)[0])


class TextEncoder(Protocol):
    """A loaded encoder."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of one text or more, float32 ``[texts, d]``.

        Raises:
            ScoringError: The output is no such array, or has a value that is not finite.
        """

    def in_graph(self) -> tuple[Any, Callable[[Any], Any]] | None:
        """Return the encoder as a part of another TensorFlow graph, or None if it cannot be one.

        The first value holds its variables and tables, the second gives tensors of vectors ``[texts, d]`` for tensors
        of texts ``[texts]``.
        """


def load_encoder(folder: Path, settings: EncoderSettings, *, threads: int | None = None) -> TextEncoder:
    """Load an encoder and the library that computes it.

    Args:
        folder: As :func:`encoder_folder` yields it.
        settings: Its settings.
        threads: Threads of the library, where they can be limited per model.

    Raises:
        ScoringError: Its inputs or outputs are none of an encoder of texts, or its vocabulary is missing.
        UnsupportedModelError: It cannot be loaded, or has no such signature.
        ModuleNotFoundError: A library is not installed here.
    """
    name, path = _model_file(folder)
    if settings.signature is not None and name != "saved_model":
        raise ScoringError(f"{path.name} has no signatures; leave signature '{settings.signature}' out")
    backend = load_backend(name, path, signature=settings.signature, threads=threads)
    output = _chosen_output(backend.signature.outputs, settings.model_output)
    inputs = {array.name: array for array in backend.signature.inputs}
    if len(inputs) == 1 and backend.signature.inputs[0].element == "string":
        return _StringEncoder(backend, output, settings)
    if set(inputs) - {*_IDS, *_MASKS, *_SEGMENTS} or set(inputs).isdisjoint(_IDS):
        raise ScoringError(
            f"it takes {[f'{array.name} ({array.called})' for array in inputs.values()]} and has to take one array of "
            f"texts, or token ids as {_IDS[0]}, {_MASKS[0]} and {_SEGMENTS[0]}: choose another signature, or export it "
            f"so"
        )
    tokenizer = WordPiece.load(folder)
    if tokenizer is None:
        raise ScoringError(
            f"it takes token ids and has no {VOCABULARY_FILE} of WordPiece; put that into its folder, or export it "
            f"with its preprocessing, so that it takes texts"
        )
    return _TokenEncoder(backend, output, settings, tokenizer)


def _chosen_output(outputs: Sequence[ArrayType], name: str | None) -> str:
    found = {array.name: array for array in outputs if array.element in ("float", "double")}
    if name is None and len(found) == 1:
        return next(iter(found))
    if name is None or name not in found:
        wanted = "several" if name is None and found else f"no '{name}'" if name else "none of numbers"
        known = {array.name: list(array.shape) for array in outputs}
        raise ScoringError(
            f"of its outputs {wanted} can be the vector; they have the shapes {known}: name one as "
            f"model_output{meant(name or '', list(found))}"
        )
    return name


class _StringEncoder:
    """An encoder that takes texts."""

    def __init__(self, backend: Backend, output: str, settings: EncoderSettings) -> None:
        self._backend = backend
        self._output = output
        self._input = backend.signature.inputs[0].name
        self._batch_size = settings.batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        size = self._backend.signature.rows or self._batch_size
        # Most pad to their longest text themselves.
        order = np.argsort([len(text) for text in texts], kind="stable")
        column = np.array(texts, object)
        parts = []
        for start in range(0, len(texts), size):
            rows = order[start : start + size]
            values = _called(self._backend, {self._input: column[rows]}, self._output, size)
            parts.append(_vectors(values, None, column[rows].tolist(), self._output))
        return _in_order(parts, order)

    def in_graph(self) -> tuple[Any, Callable[[Any], Any]] | None:
        if not isinstance(self._backend, SavedModelBackend) or self._backend.signature.rows:
            return None
        return self._backend.in_graph(self._input, self._output)


class _TokenEncoder:
    """An encoder that takes token ids."""

    def __init__(self, backend: Backend, output: str, settings: EncoderSettings, tokenizer: WordPiece) -> None:
        self._backend = backend
        self._output = output
        self._tokenizer = tokenizer
        self._inputs = backend.signature.inputs
        fixed = {array.shape[1] for array in self._inputs if len(array.shape) == 2} - {None}
        # Where the inputs have a fixed length, all texts are padded to it.
        self._fixed_length = next(iter(fixed), None)
        self._longest = min(settings.max_length, self._fixed_length or settings.max_length)
        self._call_tokens = settings.batch_size * settings.max_length

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        tokens = [self._tokenizer.ids(text, self._longest) for text in texts]
        lengths = [self._fixed_length or bucket_length(len(ids), self._longest) for ids in tokens]
        parts, order = [], []
        for call in calls(lengths, self._size_at):
            values, mask = self._states([tokens[row] for row in call.rows], call)
            parts.append(_vectors(values, mask, [texts[row] for row in call.rows], self._output))
            order.append(call.rows)
        return _in_order(parts, np.concatenate(order))

    def in_graph(self) -> None:
        """Return None: its tokenizer is Python."""

    def _size_at(self, length: int) -> int:
        return self._backend.signature.rows or max(1, self._call_tokens // length)

    def _states(self, tokens: Sequence[Sequence[int]], call: Call) -> tuple[np.ndarray, np.ndarray]:
        """Return the encoder's output for a call, and the mask of its tokens."""
        ids = np.full((len(tokens), call.length), self._tokenizer.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, of_text in enumerate(tokens):
            ids[row, : len(of_text)] = of_text
            mask[row, : len(of_text)] = 1
        arrays = dict.fromkeys(_IDS, ids) | dict.fromkeys(_MASKS, mask) | dict.fromkeys(_SEGMENTS, np.zeros_like(ids))
        inputs = {array.name: arrays[array.name].astype(DTYPES[array.element or "int"]) for array in self._inputs}
        return _called(self._backend, inputs, self._output, call.size), mask


def _called(backend: Backend, inputs: Mapping[str, np.ndarray], output: str, size: int) -> np.ndarray:
    """Return the output for a call, padded to ``size`` rows where the encoder has a fixed number or is compiled."""
    rows = len(next(iter(inputs.values())))
    if backend.signature.rows or backend.signature.compiles_each_shape:
        places = np.minimum(np.arange(size), rows - 1)
        inputs = {name: values[places] for name, values in inputs.items()}
    return backend(inputs, [output])[output][:rows]


def _vectors(values: np.ndarray, mask: np.ndarray | None, texts: Sequence[str], output: str) -> np.ndarray:
    """Return the vectors of a call: its output, or the mean over the tokens of each text.

    Raises:
        ScoringError: The output has another rank or number of rows, or a value is not finite.
    """
    if mask is not None and values.ndim == 3 and values.shape[:2] == mask.shape:
        values = pooled(values, mask)
    if values.ndim != 2 or len(values) != len(texts):
        raise ScoringError(
            f"its output '{output}' has the shape {list(values.shape)} for {len(texts)} texts and has to have "
            f"[texts, d], or of token ids [texts, tokens, d]: name another as model_output"
        )
    values = values.astype(np.float32)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        text = texts[int(np.argmin(is_finite))]
        raise ScoringError(
            f"its output '{output}' is not finite for the text {text[:80]!r}; check the encoder, or leave such texts "
            f"out"
        )
    return values


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean of ``states`` ``[texts, tokens, d]`` over the tokens that ``mask`` ``[texts, tokens]`` has as 1.

    The source is Sentence-BERT (Reimers and Gurevych 2019), whose mean includes ``[CLS]`` and ``[SEP]``.
    """
    weights = mask.astype(states.dtype)
    return np.asarray(np.einsum("btd,bt->bd", states, weights) / weights.sum(axis=1, keepdims=True))


def _in_order(parts: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Return the vectors of texts that were encoded in ``order``, in the order of the texts."""
    together = np.concatenate(parts)
    vectors = np.empty_like(together)
    vectors[order] = together
    return vectors
