"""What the folder of a model holds: plain data, readable without the library that computes it.

An exported model, which was trained here::

    <folder>/saved_model/       SavedModel with the signatures of models.serving
    <folder>/saved_model_scann/ SavedModel with ScaNN's index, of a retrieval model that has one
    <folder>/features/          the fitted features: vocabularies and statistics
    <folder>/mirrorspark.json   what kind of model it is and what it gives back (format version 1)

A packaged model, of another library (:mod:`scoring.package`)::

    <folder>/model.onnx         its file or folder, by the name that the description has
    <folder>/hooks.py           functions that run before and after it, where it has some (:mod:`scoring.hooks`)
    <folder>/mirrorspark.json   what computes it, what it reads and gives back (format version 2)

An MLflow model of other people, which describes itself::

    <folder>/MLmodel            with the flavor python_function and a signature
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from data_pipelines.feature_kinds import Feature
from data_pipelines.fitted import FeatureMismatchError, FittedFeatures
from data_pipelines.raw_columns import ColumnError
from data_pipelines.repeated_names import repeated_names
from models.ranked_lists import CANDIDATES, SCORES
from scoring.backends.protocol import ArrayType, UnsupportedModelError
from scoring.backends.pyfunc import mlflow_signature
from scoring.column_types import ARROW_TYPES, array_of
from scoring.hooks import HOOKS_FILE
from scoring.inputs import Column, ColumnInputs, FeatureInputs, Inputs, Matrix
from scoring.versions import COMPARED_OF_TRAINED, Versions, pinned_versions

FORMAT_VERSION = 1
PACKAGED_FORMAT_VERSION = 2
DESCRIPTION_FILE = "mirrorspark.json"
MLFLOW_FILE = "MLmodel"
SAVED_MODEL_FOLDER = "saved_model"
FEATURES_FOLDER = "features"

Task = Literal["binary", "multi_label", "retrieval"]

# Per task the outputs and their Spark types, in the order of the scored table's columns.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "binary": {"score": "float"},
    "multi_label": {"scores": array_of("float")},
    "retrieval": {CANDIDATES: array_of("string"), SCORES: array_of("float")},
}

# Outputs whose elements can have names.
_LABELLED_TYPES = (array_of("float"), array_of("double"))


class ModelDirectoryError(ValueError):
    """A folder that holds no usable exported model; the message says which folder, what is wrong and what to do."""


@dataclass(frozen=True)
class ModelDescription:
    """What an exported model is.

    Attributes:
        task: ``binary`` (a probability per row), ``multi_label`` (one per row and label) or ``retrieval`` (the best
            candidates per row).
        architecture: Name in the model catalog, or dotted path.
        features_hash: Hash of the fitted features that it was trained with.
        outputs: Per output its Spark type, in the order of the scored table's columns.
        versions: Libraries that trained and exported it.
        indexes: Per index of a retrieval model its recall: the share of the exact best candidates that it found when it
            was exported.
        format_version: Version of this layout.
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
        """Per output its name in the model, which is the same."""
        return {name: name for name in self.outputs}

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        _save(asdict(self), folder)

    @classmethod
    def load(cls, folder: Path) -> "ModelDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: There is none, it is damaged, or another version of this library wrote it.
        """
        return cls(**_checked(_document(folder), cls, FORMAT_VERSION, folder))


@dataclass(frozen=True)
class PackagedDescription:
    """What a model of another library is.

    Attributes:
        backend: What computes it, by its name in :mod:`scoring.backends.catalog`.
        file: Its file or folder in the model's folder; "" is that folder itself.
        inputs: The columns that it reads.
        outputs: Per output its Spark type, in the order of the scored table's columns.
        model_outputs: Per output its name in the model, or in what its hook ``postprocess`` gives.
        signature: The signature of a SavedModel that is called; None of all others.
        format_version: Version of this layout.
        hooks: The functions of its file of hooks that are called.
        labels: Per output whose elements have names, these names in their order.
        versions: What its scores depend on, as it was where the model was packaged: Python, and libraries.
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
            ModelDirectoryError: There is none, it is damaged, or another version of this library wrote it.
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
    """Return what an MLflow model says of itself.

    Raises:
        ModelDirectoryError: It has no signature, or one that is no columns.
    """
    try:
        signature = mlflow_signature(folder)
        inputs = ColumnInputs(tuple(_column(array) for array in signature.inputs))
        outputs = {array.name: array.column_type for array in signature.outputs}
    except (UnsupportedModelError, ColumnError) as error:
        raise ModelDirectoryError(str(error)) from error
    return PackagedDescription("pyfunc", "", inputs, outputs, {name: name for name in outputs})


def _column(array: ArrayType) -> Column:
    # Numbers that are missing are NaN in any case, as they are in pandas.
    passes_nulls = array.optional and array.element in ("string", "binary")
    return Column(array.name, array.column_type, nulls="pass" if passes_nulls else None)


def _check_outputs(outputs: Mapping[str, str]) -> None:
    if not outputs:
        raise ModelDirectoryError("a model needs at least one output")
    unknown = {name: type_ for name, type_ in outputs.items() if type_ not in ARROW_TYPES}
    if unknown:
        raise ModelDirectoryError(f"output types {unknown} are unknown; use some of {sorted(ARROW_TYPES)}")


def _check_labels(output: str, names: Sequence[str], outputs: Mapping[str, str]) -> None:
    """Check names of elements; whether they are as many as the elements only the model tells."""
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
            f"give the folder of a model that training.run exported, or that scoring.package wrote"
        ) from error
    except ValueError as error:
        raise ModelDirectoryError(f"{path} is damaged ({error}); export the model again") from error


def _version(document: Any) -> Any:
    return document.get("format_version") if isinstance(document, dict) else None


def _checked(document: Any, description: Any, version: int, folder: Path) -> dict[str, Any]:
    names = [one.name for one in fields(description)]
    # What a later version of this library has added, and can do without, has a factory.
    required = {one.name for one in fields(description) if one.default_factory is MISSING}
    if not isinstance(document, dict) or not required <= set(document) <= set(names):
        # A later format may have other fields: say so instead of complaining about each.
        raise ModelDirectoryError(
            f"{folder / DESCRIPTION_FILE} (format version {_version(document)}) does not have the fields {names} of "
            f"format version {version}; score it with the version of mirrorspark that exported it, or export it again"
        )
    return document


@dataclass(frozen=True)
class ModelDirectory:
    """An opened folder: everything of the model but what computes it.

    Attributes:
        path: The folder.
        description: What the model is.
        fitted: Of a model that was trained here, the fitted features that turn raw columns into its inputs.
    """

    path: Path
    description: ModelDescription | PackagedDescription
    fitted: FittedFeatures | None

    @classmethod
    def open(cls, path: Path) -> "ModelDirectory":
        """Read the description and the features.

        Raises:
            ModelDirectoryError: A part is missing or damaged, or an MLflow model does not say what it reads or gives.
            FeatureMismatchError: The features are not those that the model was trained with.
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
            ModelDirectoryError: The model was not trained here, so it has none.
        """
        if self.fitted is None:
            raise ModelDirectoryError(
                f"the model in {self.path} is of another library and has no fitted features, which this needs; give a "
                f"model that training.run exported"
            )
        return self.fitted

    @property
    def scored_features(self) -> tuple[Feature, ...]:
        """The features that the model scores with, in the order of its inputs: query features, then exclusions.

        Raises:
            ModelDirectoryError: As for :attr:`features`.
        """
        spec = self.features.spec
        return spec.query_features + ((spec.excluded,) if spec.excluded else ())

    @cached_property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Per output whose elements have names, these names in their order: of multi-label models, and of packages."""
        if isinstance(self.description, PackagedDescription):
            return self.description.labels
        return {"scores": self.features.class_names} if self.description.task == "multi_label" else {}

    @property
    def hooks(self) -> tuple[str, ...]:
        """The functions of its own that a packaged model calls when it scores."""
        return self.description.hooks if isinstance(self.description, PackagedDescription) else ()

    @property
    def inputs(self) -> Inputs:
        """The columns that the model reads."""
        if isinstance(self.description, PackagedDescription):
            return self.description.inputs
        return FeatureInputs(self.scored_features, self.features.column_types)


def exported_with(folder: Path) -> Versions:
    """Return the versions that a model was exported with, as far as its folder tells; quick to ask."""
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
    """Return the model in ``folder``: the folder itself, or the one below ``data/`` of an MLflow model.

    An MLflow model that holds none of ours is a model itself.

    Raises:
        ModelDirectoryError: There is none, or more than one.
    """
    places = [folder, folder / "data", *sorted((folder / "data").glob("*/"))]
    found = [place for place in places if (place / DESCRIPTION_FILE).is_file()]
    if len(found) == 1:
        return found[0]
    if not found and (folder / MLFLOW_FILE).is_file():
        return folder
    holds = f"holds {len(found)} exported models" if found else f"holds no exported model ({DESCRIPTION_FILE})"
    raise ModelDirectoryError(
        f"{folder} {holds}, neither itself nor below data/; give a model that training.run exported, that "
        f"scoring.package wrote, or that MLflow logged"
        if not found
        else f"{folder} {holds}: {[str(place) for place in found]}; give one of them"
    )


def model_files(folder: Path) -> list[tuple[str, Path]]:
    """Return all files below ``folder`` that count in its digest, by their relative names, in the order of these.

    Python's caches do not count: they appear when the code that an MLflow model may hold is first imported.
    """
    return sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    )


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 (64 hex digits) of the files of a model: their relative names and their content."""
    digest = hashlib.sha256()
    for name, path in model_files(folder):
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
