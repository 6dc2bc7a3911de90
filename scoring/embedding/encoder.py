"""Encoders of texts and images: a folder with a SavedModel, a file of ONNX or Keras, or a packaged model."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.scoring.backends import compared_libraries, is_of_keras3, load_backend, protocol
from mirrorspark.scoring.embedding.image_encoder import ImageEncoder
from mirrorspark.scoring.embedding.settings import EncoderSettings, ImageSettings, Settings
from mirrorspark.scoring.embedding.text_encoder import IDS, MASKS, SEGMENTS, StringEncoder, TokenEncoder
from mirrorspark.scoring.embedding.vectors import Encoder
from mirrorspark.scoring.embedding.wordpiece import CONFIG_FILE, VOCABULARY_FILE, WordPiece
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.model.folder import DESCRIPTION_FILE, PackagedDescription
from mirrorspark.scoring.model.stored import cached_digest, is_in_store, resolve

_SAVED_MODEL_FILE = "saved_model.pb"
_BACKENDS_BY_SUFFIX: Mapping[str, str] = {".onnx": "onnx", ".keras": "keras"}


def pinned_encoder(encoder: str | Path, tracking_uri: str | None = None) -> str | Path:
    """Return the location of an encoder as it is given, or the folder that the URI of a stored model leads to now.

    Args:
        encoder: A folder or file, or a URI of a packaged model as :func:`scoring.model.stored.resolve` takes it.
        tracking_uri: Address of the MLflow store of a URI.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        ModelStoreError: There is no store, or it cannot be used.
    """
    return str(resolve(encoder, tracking_uri).path) if is_in_store(encoder) else encoder


@contextlib.contextmanager
def encoder_folder(location: str | Path) -> Iterator[Path]:
    """Yield the folder of an encoder: the given one, or a temporary one with the given file and its companion files.

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
            # Weights of large ONNX models are in files next to the model: model.onnx_data, model.onnx.data.
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
        ScoringError: The folder has no model, several, or a packaged one with hooks.
    """
    if (folder / DESCRIPTION_FILE).is_file():
        packaged = PackagedDescription.load(folder)
        if packaged.hooks:
            raise ScoringError(
                f"{folder} is a packaged model with the hooks {list(packaged.hooks)}, which an encoder would not run; "
                f"package it without hooks"
            )
        return packaged.backend, folder / packaged.file
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
    name = _BACKENDS_BY_SUFFIX[chosen[0].suffix]
    return ("keras3" if name == "keras" and is_of_keras3(chosen[0]) else name), chosen[0]


def encoder_digest(location: str | Path) -> str:
    """Return the digest of the files of an encoder.

    Raises:
        ScoringError: There is no encoder.
    """
    with encoder_folder(location) as folder:
        return cached_digest(folder)


def encoder_libraries(folder: Path) -> tuple[str, ...]:
    """Return the libraries whose minor versions change the vectors of the encoder in ``folder``.

    Raises:
        ScoringError: The folder has no model, or several.
    """
    return compared_libraries(_model_file(folder)[0])


def load_encoder(folder: Path, settings: Settings, *, threads: int | None = None) -> Encoder:
    """Load an encoder and the library that computes it.

    Args:
        folder: As :func:`encoder_folder` yields it.
        settings: Its settings, which name its input.
        threads: Threads of the library, where they can be limited per model.

    Raises:
        ScoringError: Its inputs or outputs are none of such an encoder, or its vocabulary is missing.
        UnsupportedModelError: It cannot be loaded, has no such signature, or takes no images of a known size.
        ModuleNotFoundError: A library is not installed here.
    """
    name, path = _model_file(folder)
    if settings.signature is not None and name != "saved_model":
        raise ScoringError(f"{path.name} has no signatures; leave signature '{settings.signature}' out")
    backend = load_backend(name, path, signature=settings.signature, threads=threads)
    output = _chosen_output(backend.signature.outputs, settings.model_output)
    if isinstance(settings, ImageSettings):
        return _image_encoder(backend, output, settings)
    return _text_encoder(folder, backend, output, settings)


def _image_encoder(backend: protocol.Backend, output: str, settings: ImageSettings) -> Encoder:
    if len(backend.signature.inputs) != 1:
        raise ScoringError(
            f"it takes {_takes(backend)} and has to take one array of images, [batch, height, width, channels]: choose "
            f"another signature, or export it so"
        )
    return ImageEncoder(backend, output, settings)


def _text_encoder(folder: Path, backend: protocol.Backend, output: str, settings: EncoderSettings) -> Encoder:
    inputs = {array.name for array in backend.signature.inputs}
    if len(inputs) == 1 and backend.signature.inputs[0].element == "string":
        return StringEncoder(backend, output, settings)
    if inputs - {*IDS, *MASKS, *SEGMENTS} or inputs.isdisjoint(IDS):
        raise ScoringError(
            f"it takes {_takes(backend)} and has to take one array of texts, or token ids as {IDS[0]}, {MASKS[0]} and "
            f"{SEGMENTS[0]}: choose another signature, or export it so"
        )
    tokenizer = WordPiece.load(folder)
    if tokenizer is None:
        raise ScoringError(
            f"it takes token ids and has no {VOCABULARY_FILE} of WordPiece; put that into its folder, or export it "
            f"with its preprocessing, so that it takes texts"
        )
    return TokenEncoder(backend, output, settings, tokenizer)


def _takes(backend: protocol.Backend) -> list[str]:
    return [f"{array.name} ({array.called})" for array in backend.signature.inputs]


def _chosen_output(outputs: Sequence[protocol.ArrayType], name: str | None) -> str:
    found = {array.name: array for array in outputs if array.element in ("float", "double")}
    if name is None and len(found) == 1:
        return next(iter(found))
    if name is None or name not in found:
        wanted = "several" if name is None and found else f"no '{name}'" if name else "none of numbers"
        known = {array.name: list(array.shape) for array in outputs}
        raise ScoringError(
            f"of its outputs {wanted} can be the vector; they have the shapes {known}: name one as "
            f"model_output{raw_columns.meant(name or '', list(found))}"
        )
    return name
