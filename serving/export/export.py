"""Export of a model for servers of others: TensorFlow Serving, and servers of ONNX files."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.backends import DEFAULT_SIGNATURE, OnnxBackend, SavedModelBackend, protocol
from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER, ModelDescription, ModelDirectory
from mirrorspark.scoring.model.stored import PinnedModel, resolve
from mirrorspark.serving.export.server_config import CONFIG_FILE, add_version, read_config, write_config
from mirrorspark.serving.export.warm_up import (
    MOST_RECORDS,
    WARM_UP_FILE,
    made_up_request,
    requests_of,
    table_of,
    write_warm_up,
)
from mirrorspark.storage import StoragePath, atomic_file, file_lock, lakes

Format = Literal["tensorflow", "onnx"]

EXPORT_FILE = "export.json"
"""File with the facts about an exported version, in its folder; servers ignore it."""

_ONNX_FILE = "model.onnx"
_LOCK_FILE = ".export.lock"
# Copies of a model take seconds; two exports into one folder rarely meet.
_LOCK_SECONDS = 300.0
_NAME = re.compile(r"[\w.-]+")
_ALIAS = re.compile(r"models:/[^@]+@([^@/]+)")


class ExportError(ClearError, ValueError):
    """A model cannot be exported in this form; the message has the reason and the remedy."""


@dataclass(frozen=True)
class ExportedModel:
    """An exported version.

    Attributes:
        folder: Its folder, ``BASE/NAME/VERSION``.
        signature: The signature that ``inputs`` and ``outputs`` belong to; None in a file of ONNX.
        inputs: Type and shape by input, such as ``string [rows, any]``.
        outputs: The same by output.
        classes: Names of the elements by output, where they have some.
        warm_up_records: Number of its warm-up records.
        labels: Version by label of all versions of the model.
        digest: Digest of the model that was exported.
        config: ``models.config``, None for ONNX.
    """

    folder: Path
    name: str
    version: int
    digest: str
    signature: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]
    warm_up_records: int
    labels: Mapping[str, int]
    config: Path | None

    def as_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), default=str)


def export_model(
    model: str | Path | PinnedModel,
    base: str | Path,
    *,
    name: str | None = None,
    version: int | None = None,
    labels: Sequence[str] = (),
    warm_up: pa.Table | str | Path | None = None,
    warm_up_rows: int = 100,
    served_from: str | None = None,
    format: Format = "tensorflow",  # noqa: A002 - the word of the command's flag
    tracking_uri: str | None = None,
) -> ExportedModel:
    """Write a version of a model for another server, whole or not at all, and add it to ``models.config``.

    The SavedModel becomes ``BASE/NAME/VERSION/saved_model.pb`` with its variables, assets and warm-up records. That of
    a model that was trained here takes raw columns, tokens as strings: ``inputs`` of the result has the types. It is
    loaded in this process, as by :class:`scoring.Predictor`, and computes each warm-up request once.

    A version that is there already, of the same files, stays as it is; only its labels are set.

    Args:
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        base: Local folder of all exported models, which also gets ``models.config``.
        name: Name of the model in requests; by default its registered name.
        version: Its version there, from 1; by default the registered version.
        labels: Labels of this version, which other versions lose, in addition to the alias in a ``models:/NAME@ALIAS``.
        warm_up: Rows to warm up with, as a table or Parquet files; by default one made-up row.
        warm_up_rows: Number of rows to take, at most 1,000.
        served_from: The server's name for ``base``, such as ``/models`` in a container; by default what the model has
            in ``models.config``, or else the path here.
        format: ``tensorflow``, or ``onnx`` for a package of an ONNX file, which becomes
            ``BASE/NAME/VERSION/model.onnx``, without configuration and warm-up.
        tracking_uri: Address of the MLflow store.

    Raises:
        ExportError: The model has nothing that such a server takes, an option is wrong, or the version is there already
            with other files.
        LakeTableError: ``base`` is, or lies in, a table that keeps a log.
        ServerConfigError: ``models.config`` cannot be read.
        WarmUpError: A warm-up row cannot be computed by the signature; other rows raise ColumnError.
        ModelNotFoundError: The URI does not lead to a model.
    """
    pinned = model if isinstance(model, PinnedModel) else resolve(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    name, version = name or pinned.name, _version(pinned, version)
    _check_options(name, base, format, warm_up, warm_up_rows)
    source, signature = _source(directory, pinned, format)
    alias = _ALIAS.fullmatch(str(model))
    asked = list(dict.fromkeys([*([alias[1]] if alias else []), *labels]))
    folder = Path(base).absolute()
    lakes.refuse_lake_write(folder / name)
    (folder / name).mkdir(parents=True, exist_ok=True)
    target, config_file = folder / name / str(version), folder / CONFIG_FILE
    labelled: Mapping[str, int] = {}
    with _locked(folder):
        # Read first: a file that cannot be kept stops the export before anything is written.
        config = read_config(config_file) if signature else None
        if not target.exists():
            rows = table_of(warm_up, directory, warm_up_rows) if warm_up is not None else None
            _publish(target, source, pinned, directory, signature, rows)
        known = _known(target, pinned)
        if config is not None:
            labelled = add_version(config, name, version, asked, folder, served_from)
            write_config(config, config_file)
    return ExportedModel(target, name, version, labels=labelled, config=config_file if signature else None, **known)


def _version(pinned: PinnedModel, version: int | None) -> int:
    # The digest of an unregistered model may happen to be a number, too.
    if version is None and not (pinned.uri.startswith("models:") and pinned.version.isdecimal()):
        raise ExportError(f"{pinned.uri} is not a registered version, which has a number; give one as version")
    number = int(pinned.version) if version is None else version
    if not 1 <= number < 2**63:
        raise ExportError(f"version {number} is not a version; give a whole number from 1")
    return number


def _check_options(name: str, base: str | Path, format_: str, warm_up: object, warm_up_rows: int) -> None:
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ExportError(f"'{name}' cannot be a folder and part of an address; give another name")
    if "://" in str(base):
        raise ExportError(
            f"{base} is not a local folder; export into one, and copy the folder of the version to the store"
        )
    if format_ not in get_args(Format):
        raise ExportError(f"format '{format_}' is unknown; use one of {list(get_args(Format))}")
    if not 1 <= warm_up_rows <= MOST_RECORDS:
        raise ExportError(f"warm_up_rows is {warm_up_rows}; TensorFlow Serving takes 1 to {MOST_RECORDS}")
    if format_ == "onnx" and warm_up is not None:
        raise ExportError("warm-up records are TensorFlow Serving's; leave the rows out for onnx")


def _source(directory: ModelDirectory, pinned: PinnedModel, format_: Format) -> tuple[Path, str | None]:
    """Return the SavedModel and its signature, or the file of ONNX and None.

    Raises:
        ExportError: The model has none, or needs Python code.
    """
    description = directory.description
    if isinstance(description, ModelDescription):
        if format_ == "onnx":
            raise ExportError(f"{pinned.label} is a SavedModel and has no file of ONNX; use the format 'tensorflow'")
        return directory.path / SAVED_MODEL_FOLDER, description.raw_signature
    if description.hooks:
        raise ExportError(
            f"{pinned.label} calls the hooks {list(description.hooks)}, Python code that only Mirrorspark runs; serve "
            f"it with mirrorspark serve"
        )
    has = {"saved_model": "tensorflow", "onnx": "onnx"}.get(description.backend)
    if has is None:
        raise ExportError(
            f"{pinned.label} is a model of the backend '{description.backend}' and has neither a SavedModel nor a file "
            f"of ONNX; serve it with mirrorspark serve, or convert it to ONNX and package that"
        )
    if has != format_:
        raise ExportError(f"{pinned.label} has no files of the format '{format_}'; it has the format '{has}'")
    signature = description.signature or DEFAULT_SIGNATURE
    return directory.path / description.file, signature if has == "tensorflow" else None


def _publish(
    target: Path,
    source: Path,
    pinned: PinnedModel,
    directory: ModelDirectory,
    signature: str | None,
    rows: pa.Table | None,
) -> None:
    """Write the folder of a version, which appears when the disk has it."""
    with atomic_file.new_folder(target) as whole:
        backend: protocol.Backend
        records = 0
        if signature is None:
            backend = OnnxBackend(source)
            shutil.copyfile(source, whole / _ONNX_FILE)
        else:
            shutil.copytree(source, whole, dirs_exist_ok=True)
            # The copy is loaded, since servers will load that.
            backend = graph = SavedModelBackend(whole, signature=signature)
            is_trained = isinstance(directory.description, ModelDescription)
            made_up = [made_up_request(graph, are_lists_empty=is_trained)]
            requests = made_up if rows is None else list(requests_of(rows, directory, graph))
            write_warm_up(requests, whole / WARM_UP_FILE, graph, target.parent.name, signature)
            records = len(requests)
        document = {
            "digest": pinned.digest,
            "signature": signature,
            "inputs": {array.name: _text(array, backend.signature.rows) for array in backend.signature.inputs},
            "outputs": {array.name: _text(array, backend.signature.rows) for array in backend.signature.outputs},
            "classes": directory.labels,
            "warm_up_records": records,
        }
        (whole / EXPORT_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")
        for path in [*whole.rglob("*"), whole]:
            StoragePath.of(path).flush_to_disk()
    StoragePath.of(target.parent).flush_to_disk()


def _text(array: protocol.ArrayType, rows: int | None) -> str:
    """Return type and shape of an array, such as ``string [rows, any]``."""
    lengths = ["any" if length is None else str(length) for length in array.shape]
    if array.has_rows:
        lengths[0] = str(rows or "rows")
    return f"{array.element or array.called} [{', '.join(lengths)}]"


def _known(target: Path, pinned: PinnedModel) -> Mapping[str, Any]:
    """Return the description of an exported version.

    Raises:
        ExportError: It is of another model, or was not exported here.
    """
    try:
        document: dict[str, Any] = json.loads((target / EXPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{target} exists and was not exported here ({error}); give another version") from error
    if document["digest"] != pinned.digest:
        raise ExportError(
            f"{target} exists already with the digest {document['digest'][:12]}, and {pinned.label} has "
            f"{pinned.digest[:12]}; give another version, or remove the folder once no server uses it"
        )
    return document


def _locked(folder: Path) -> Any:
    try:
        return file_lock(folder / _LOCK_FILE, _LOCK_SECONDS)
    except BlockingIOError as error:
        raise ExportError(f"another process has been exporting into {folder} for {_LOCK_SECONDS:.0f} s") from error
