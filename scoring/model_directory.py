"""What the folder of an exported model holds: plain data, readable without TensorFlow.

::

    <folder>/saved_model/       SavedModel with the signatures of models.serving
    <folder>/features/          the fitted features: vocabularies and statistics
    <folder>/mirrorspark.json   what kind of model it is and what it gives back
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from data_pipelines.feature_kinds import Feature
from data_pipelines.fitted import FeatureMismatchError, FittedFeatures

FORMAT_VERSION = 1
DESCRIPTION_FILE = "mirrorspark.json"
SAVED_MODEL_FOLDER = "saved_model"
FEATURES_FOLDER = "features"

Task = Literal["binary", "retrieval"]

_SCALAR_TYPES = {
    "float": pa.float32(),
    "double": pa.float64(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "string": pa.string(),
}
# Output types by their Spark name: a value per row, or a list of values per row.
ARROW_TYPES: Mapping[str, pa.DataType] = _SCALAR_TYPES | {
    f"array<{name}>": pa.list_(arrow_type) for name, arrow_type in _SCALAR_TYPES.items()
}


class ModelDirectoryError(ValueError):
    """A folder that holds no usable exported model; the message says which folder, what is wrong and what to do."""


@dataclass(frozen=True)
class ModelDescription:
    """What an exported model is.

    Attributes:
        task: ``binary`` (a probability per row) or ``retrieval`` (the best candidates per row).
        architecture: Name in the model catalog, or dotted path.
        features_hash: Hash of the fitted features that it was trained with.
        outputs: Per output its Spark type, in the order of the scored table's columns.
        versions: Libraries that trained and exported it.
        format_version: Version of this layout.
    """

    task: Task
    architecture: str
    features_hash: str
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ModelDirectoryError(
                f"the model has format version {self.format_version}, this library reads {FORMAT_VERSION}; "
                f"score it with the version of mirrorspark that exported it, or export it again"
            )
        if self.task not in get_args(Task):
            raise ModelDirectoryError(f"task '{self.task}' is unknown; use one of {list(get_args(Task))}")
        if not self.outputs:
            raise ModelDirectoryError("a model needs at least one output")
        unknown = {name: type_ for name, type_ in self.outputs.items() if type_ not in ARROW_TYPES}
        if unknown:
            raise ModelDirectoryError(f"output types {unknown} are unknown; use some of {sorted(ARROW_TYPES)}")

    @property
    def output_schema(self) -> str:
        """The outputs as Spark DDL, such as ``score float``."""
        return ", ".join(f"`{name.replace('`', '``')}` {type_}" for name, type_ in self.outputs.items())

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "ModelDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: There is none, it is damaged, or another version of this library wrote it.
        """
        path = folder / DESCRIPTION_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelDirectoryError(
                f"{folder} holds no exported model: {DESCRIPTION_FILE} is missing; "
                f"give the folder of a model that training.run exported"
            ) from error
        except ValueError as error:
            raise ModelDirectoryError(f"{path} is damaged ({error}); export the model again") from error
        return cls(**_checked(document, path))


def _checked(document: Any, path: Path) -> dict[str, Any]:
    names = [field.name for field in fields(ModelDescription)]
    if not isinstance(document, dict) or set(document) != set(names):
        # A later format may have other fields: say so instead of complaining about each.
        version = document.get("format_version") if isinstance(document, dict) else None
        raise ModelDirectoryError(
            f"{path} (format version {version}) does not have the fields {names} of format version {FORMAT_VERSION}; "
            f"score it with the version of mirrorspark that exported it, or export it again"
        )
    return document


@dataclass(frozen=True)
class ModelDirectory:
    """An opened folder: everything of the model but its graph and weights.

    Attributes:
        path: The folder.
        description: What the model is.
        features: The fitted features that turn raw columns into its inputs.
    """

    path: Path
    description: ModelDescription
    features: FittedFeatures

    @classmethod
    def open(cls, path: Path) -> "ModelDirectory":
        """Read the description and the features.

        Raises:
            ModelDirectoryError: A part is missing or damaged.
            FeatureMismatchError: The features are not those that the model was trained with.
        """
        description = ModelDescription.load(path)
        if not (path / SAVED_MODEL_FOLDER / "saved_model.pb").is_file():
            raise ModelDirectoryError(f"{path} lacks {SAVED_MODEL_FOLDER}/saved_model.pb; export the model again")
        try:
            features = FittedFeatures.load(path / FEATURES_FOLDER)
        except FileNotFoundError as error:
            raise ModelDirectoryError(f"{path} is incomplete ({error}); export the model again") from error
        if features.hash != description.features_hash:
            raise FeatureMismatchError(
                f"the features in {path} have hash {features.hash}, the model was trained with "
                f"{description.features_hash}; export the model again"
            )
        return cls(path, description, features)

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """The raw columns that the model reads, in the order of its inputs: query features, then exclusions."""
        spec = self.features.spec
        return spec.query_features + ((spec.excluded,) if spec.excluded else ())


def find_model_directory(folder: Path) -> Path:
    """Return the exported model in ``folder``: the folder itself, or the one below ``data/`` of an MLflow model.

    Raises:
        ModelDirectoryError: There is none, or more than one.
    """
    places = [folder, folder / "data", *sorted((folder / "data").glob("*/"))]
    found = [place for place in places if (place / DESCRIPTION_FILE).is_file()]
    if len(found) == 1:
        return found[0]
    holds = f"holds {len(found)} exported models" if found else f"holds no exported model ({DESCRIPTION_FILE})"
    raise ModelDirectoryError(
        f"{folder} {holds}, neither itself nor below data/; give a model that training.run exported"
        if not found
        else f"{folder} {holds}: {[str(place) for place in found]}; give one of them"
    )


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 (64 hex digits) of all files below ``folder``: their relative names and their content."""
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def needs_scann(folder: Path) -> bool:
    """Tell whether the SavedModel in ``folder`` uses ScaNN's op, which must be registered before the model loads."""
    with (
        (folder / SAVED_MODEL_FOLDER / "saved_model.pb").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b"Scann>") >= 0
