"""Layout of model folders and their description, readable without the library that computes the model.

An exported model, trained by Mirrorspark::

    <folder>/saved_model/       SavedModel with the signatures of models.serving
    <folder>/saved_model_scann/ SavedModel with ScaNN's index, of a retrieval model that has one
    <folder>/features/          the fitted features: vocabularies and statistics
    <folder>/mirrorspark.json   kind of the model and its outputs (format version 1)

A packaged model of another library (:mod:`scoring.package`)::

    <folder>/model.onnx         its file or folder, named by the description
    <folder>/hooks.py           functions that run before and after it, if any (:mod:`scoring.model.hooks`)
    <folder>/mirrorspark.json   its backend, inputs and outputs (format version 2)

Any other MLflow model::

    <folder>/MLmodel            with the flavor python_function and a signature
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from mirrorspark.data_pipelines.features.fitted import FeatureMismatchError, FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Feature, repeated_names
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.models.ranked_lists import CANDIDATES, SCORES
from mirrorspark.scoring.backends.protocol import ArrayType, UnsupportedModelError
from mirrorspark.scoring.backends.pyfunc import mlflow_signature
from mirrorspark.scoring.input.column_types import ARROW_TYPES, array_of
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, FeatureInputs, Inputs, Matrix
from mirrorspark.scoring.model.hooks import HOOKS_FILE
from mirrorspark.scoring.model.versions import COMPARED_OF_TRAINED, Versions, pinned_versions

FORMAT_VERSION = 1
PACKAGED_FORMAT_VERSION = 2
DESCRIPTION_FILE = "mirrorspark.json"
MLFLOW_FILE = "MLmodel"
SAVED_MODEL_FOLDER = "saved_model"
FEATURES_FOLDER = "features"

Task = Literal["binary", "multi_label", "retrieval"]

# Outputs and their Spark types by task, in the order of the columns of the scores.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "binary": {"score": "float"},
    "multi_label": {"scores": array_of("float")},
    "retrieval": {CANDIDATES: array_of("string"), SCORES: array_of("float")},
}

# Outputs whose elements can have names.
_LABELLED_TYPES = (array_of("float"), array_of("double"))


class ModelDirectoryError(ValueError):
    """Raised for a folder without a usable model; the message names the folder, the problem and the remedy."""


@dataclass(frozen=True)
class ModelDescription:
    """Description of an exported model.

    Attributes:
        task: ``binary`` (a probability per row), ``multi_label`` (one per row and label) or ``retrieval`` (the best
            candidates per row).
        architecture: Name in the model catalog, or a dotted path.
        features_hash: Hash of the fitted features that it was trained with.
        outputs: Spark type by output, in the order of the columns of the scores.
        versions: Versions of the libraries that trained and exported it.
        indexes: Recall by index of a retrieval model: the share of the exact best candidates that the index found at
            export.
    """

    task: Task
    architecture: str
    features_hash: str
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    indexes: Mapping[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ModelDirectoryError(
                f"the model has format version {self.format_version}, this library reads {FORMAT_VERSION}; "
                f"score it with the version of mirrorspark that exported it, or export it again"
            )
        if self.task not in get_args(Task):
            raise ModelDirectoryError(f"task '{self.task}' is unknown; use one of {list(get_args(Task))}")
        _check_outputs(self.outputs)

    @property
    def model_outputs(self) -> Mapping[str, str]:
        """Name in the model by output; the names are equal here."""
        return {name: name for name in self.outputs}

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        _save(asdict(self), folder)

    @classmethod
    def load(cls, folder: Path) -> "ModelDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: The file is missing or damaged, or another version of this library wrote it.
        """
        return cls(**_checked(_document(folder), cls, FORMAT_VERSION, folder))


@dataclass(frozen=True)
class PackagedDescription:
    """Description of a model of another library.

    Attributes:
        backend: Name of the backend in :mod:`scoring.backends.catalog`.
        file: File or folder of the model within its folder; "" is the folder itself.
        outputs: Spark type by output, in the order of the columns of the scores.
        model_outputs: Name by output in the model, or in the result of the hook ``postprocess``.
        signature: Signature of a SavedModel that is called; None for other models.
        hooks: Names of the hooks that are called.
        labels: Names of the elements by output, in order; outputs without names are left out.
        versions: Versions at packaging of everything that the scores depend on: Python and libraries.
    """

    backend: str
    file: str
    inputs: ColumnInputs
    outputs: Mapping[str, str]
    model_outputs: Mapping[str, str]
    signature: str | None = None
    format_version: int = PACKAGED_FORMAT_VERSION
    hooks: tuple[str, ...] = field(default_factory=tuple)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_outputs(self.outputs)
        for output, names in self.labels.items():
            _check_labels(output, names, self.outputs)

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        _save(asdict(self), folder)

    @classmethod
    def load(cls, folder: Path) -> "PackagedDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: The file is missing or damaged, or another version of this library wrote it.
        """
        document = _checked(_document(folder), cls, PACKAGED_FORMAT_VERSION, folder)
        try:
            inputs = document["inputs"]
            matrix = Matrix(**inputs["matrix"]) if inputs["matrix"] else None
            columns = tuple(Column(**column) for column in inputs["given"])
            hooks = tuple(document.get("hooks", ()))
            labels = {output: tuple(names) for output, names in document.get("labels", {}).items()}
            return cls(**document | {"inputs": ColumnInputs(columns, matrix), "hooks": hooks, "labels": labels})
        except (TypeError, KeyError, ColumnError) as error:
            raise ModelDirectoryError(f"{folder / DESCRIPTION_FILE} is damaged ({error}); package it again") from error


def describe_mlflow_model(folder: Path) -> PackagedDescription:
    """Return the description of an MLflow model, from its signature.

    Raises:
        ModelDirectoryError: It has no signature, or one that columns cannot hold.
    """
    try:
        signature = mlflow_signature(folder)
        inputs = ColumnInputs(tuple(_column(array) for array in signature.inputs))
        outputs = {array.name: array.column_type for array in signature.outputs}
    except (UnsupportedModelError, ColumnError) as error:
        raise ModelDirectoryError(str(error)) from error
    return PackagedDescription("pyfunc", "", inputs, outputs, {name: name for name in outputs})


def _column(array: ArrayType) -> Column:
    # Missing numbers are NaN in any case, as in pandas.
    passes_nulls = array.optional and array.element in ("string", "binary")
    return Column(array.name, array.column_type, nulls="pass" if passes_nulls else None)


def _check_outputs(outputs: Mapping[str, str]) -> None:
    if not outputs:
        raise ModelDirectoryError("a model needs at least one output")
    unknown = {name: type_ for name, type_ in outputs.items() if type_ not in ARROW_TYPES}
    if unknown:
        raise ModelDirectoryError(f"output types {unknown} are unknown; use some of {sorted(ARROW_TYPES)}")


def _check_labels(output: str, names: Sequence[str], outputs: Mapping[str, str]) -> None:
    """Check the names of elements. Their number is compared later, when the model is loaded."""
    if outputs.get(output) not in _LABELLED_TYPES:
        raise ModelDirectoryError(
            f"labels name the elements of an output of several scores per row ({', '.join(_LABELLED_TYPES)}), which "
            f"'{output}' is not: the outputs are {dict(outputs)}"
        )
    nameless = [name for name in names if not isinstance(name, str) or not name.strip()]
    if nameless:
        raise ModelDirectoryError(
            f"the labels of output '{output}' hold {nameless[:3]}; give each as a text that is not empty"
        )
    repeated = repeated_names(names)
    if repeated:
        raise ModelDirectoryError(
            f"the labels of output '{output}' hold {repeated[:3]} twice; give each element a name of its own"
        )


def _save(document: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _document(folder: Path) -> Any:
    path = folder / DESCRIPTION_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelDirectoryError(
            f"{folder} holds no exported model: {DESCRIPTION_FILE} is missing; "
            f"give the folder of a model that a training run exported, or that package_model wrote"
        ) from error
    except ValueError as error:
        raise ModelDirectoryError(f"{path} is damaged ({error}); export the model again") from error


def _version(document: Any) -> Any:
    return document.get("format_version") if isinstance(document, dict) else None


def _checked(document: Any, description: Any, version: int, folder: Path) -> dict[str, Any]:
    names = [one.name for one in fields(description)]
    # Fields that a later version added, and that may be missing, have a default factory.
    required = {one.name for one in fields(description) if one.default_factory is MISSING}
    if not isinstance(document, dict) or not required <= set(document) <= set(names):
        # A later format may have other fields: one message instead of one per field.
        raise ModelDirectoryError(
            f"{folder / DESCRIPTION_FILE} (format version {_version(document)}) does not have the fields {names} of "
            f"format version {version}; score it with the version of mirrorspark that exported it, or export it again"
        )
    return document


@dataclass(frozen=True)
class ModelDirectory:
    """An opened model folder: everything but the computing library.

    Attributes:
        fitted: Fitted features that turn raw columns into inputs; None for models of other libraries.
    """

    path: Path
    description: ModelDescription | PackagedDescription
    fitted: FittedFeatures | None

    @classmethod
    def open(cls, path: Path) -> "ModelDirectory":
        """Read the description and the features.

        Raises:
            ModelDirectoryError: A part is missing or damaged, or an MLflow model has no signature.
            FeatureMismatchError: The features differ from those that the model was trained with.
        """
        if not (path / DESCRIPTION_FILE).is_file() and (path / MLFLOW_FILE).is_file():
            return cls(path, describe_mlflow_model(path), None)
        if _version(_document(path)) == PACKAGED_FORMAT_VERSION:
            packaged = PackagedDescription.load(path)
            for name in (packaged.file, *([HOOKS_FILE] if packaged.hooks else [])):
                if not (path / name).exists():
                    raise ModelDirectoryError(f"{path} lacks {name}; package the model again")
            return cls(path, packaged, None)
        description = ModelDescription.load(path)
        if not (path / SAVED_MODEL_FOLDER / "saved_model.pb").is_file():
            raise ModelDirectoryError(f"{path} lacks {SAVED_MODEL_FOLDER}/saved_model.pb; export the model again")
        return cls(path, description, _fitted(path, description))

    @property
    def features(self) -> FittedFeatures:
        """The fitted features.

        Raises:
            ModelDirectoryError: The model was not trained here, so it has no features.
        """
        if self.fitted is None:
            raise ModelDirectoryError(
                f"the model in {self.path} is of another library and has no fitted features, which this needs; give a "
                f"model that mirrorspark.training.run exported"
            )
        return self.fitted

    @property
    def scored_features(self) -> tuple[Feature, ...]:
        """The features in the order of the model's inputs: query features, then exclusions.

        Raises:
            ModelDirectoryError: As for :attr:`features`.
        """
        spec = self.features.spec
        return spec.query_features + ((spec.excluded,) if spec.excluded else ())

    @cached_property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the elements by output, for multi-label models and packages with labels."""
        if isinstance(self.description, PackagedDescription):
            return self.description.labels
        return {"scores": self.features.class_names} if self.description.task == "multi_label" else {}

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks that a packaged model calls when it scores."""
        return self.description.hooks if isinstance(self.description, PackagedDescription) else ()

    @property
    def inputs(self) -> Inputs:
        """The columns that the model reads."""
        if isinstance(self.description, PackagedDescription):
            return self.description.inputs
        return FeatureInputs(self.scored_features, self.features.column_types)


def exported_with(folder: Path) -> Versions:
    """Return the library versions in the description of a model, without opening the rest of its folder."""
    if not (folder / DESCRIPTION_FILE).is_file():
        return pinned_versions(folder)
    document = _document(folder)
    versions: Mapping[str, str] = document.get("versions", {})
    if _version(document) == PACKAGED_FORMAT_VERSION:
        return Versions(versions)
    return Versions({library: versions[library] for library in COMPARED_OF_TRAINED if library in versions})


def _fitted(path: Path, description: ModelDescription) -> FittedFeatures:
    try:
        features = FittedFeatures.load(path / FEATURES_FOLDER)
    except FileNotFoundError as error:
        raise ModelDirectoryError(f"{path} is incomplete ({error}); export the model again") from error
    if features.hash != description.features_hash:
        raise FeatureMismatchError(
            f"the features in {path} have hash {features.hash}, the model was trained with "
            f"{description.features_hash}; export the model again"
        )
    return features


def find_model_directory(folder: Path) -> Path:
    """Return the model folder: ``folder`` itself, or the one below ``data/`` of an MLflow model.

    An MLflow model that contains no exported model is itself the model.

    Raises:
        ModelDirectoryError: There is no model, or more than one.
    """
    places = [folder, folder / "data", *sorted((folder / "data").glob("*/"))]
    found = [place for place in places if (place / DESCRIPTION_FILE).is_file()]
    if len(found) == 1:
        return found[0]
    if not found and (folder / MLFLOW_FILE).is_file():
        return folder
    holds = f"holds {len(found)} exported models" if found else f"holds no exported model ({DESCRIPTION_FILE})"
    raise ModelDirectoryError(
        f"{folder} {holds}, neither itself nor below data/; give a model that mirrorspark.training.run exported, that "
        f"mirrorspark.scoring.package wrote, or that MLflow logged"
        if not found
        else f"{folder} {holds}: {[str(place) for place in found]}; give one of them"
    )


def model_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files below ``folder`` that the digest covers, with their relative names, sorted.

    Python's caches are left out: they appear when code in an MLflow model is first imported.
    """
    return sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    )


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 (64 hex digits) over relative names and contents of a model's files."""
    digest = hashlib.sha256()
    for name, path in model_files(folder):
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
