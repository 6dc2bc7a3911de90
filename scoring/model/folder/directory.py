"""Model folders: their layout and description, readable without the library that computes the model.

An exported model, trained by Mirrorspark::

    <folder>/saved_model/       SavedModel with the signatures of models.serving.export
    <folder>/saved_model_scann/ SavedModel with ScaNN's index, of a retrieval model that has one
    <folder>/features/          the fitted features; next to them encoders/, if texts or images are embedded
    <folder>/towers/            both towers of a retrieval model with items, which a new catalogue is made with
    <folder>/calibration.json   the map of its probabilities, of a model that is calibrated; for readers
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
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from mirrorspark.data_pipelines.features import FeatureMismatchError, FeatureSpec, FittedFeatures, kinds
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.models.serving import signatures
from mirrorspark.scoring.input import FeatureInputs, Inputs, column_types
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.hooks import HOOKS_FILE
from mirrorspark.scoring.model.loading import Versions, composite_of, pinned_versions
from mirrorspark.scoring.model.stored import folder_digest

if TYPE_CHECKING:
    from mirrorspark.scoring.model.folder.packaged import PackagedDescription

FORMAT_VERSION = 1
PACKAGED_FORMAT_VERSION = 2

DESCRIPTION_FILE = "mirrorspark.json"
MLFLOW_FILE = "MLmodel"
SAVED_MODEL_FOLDER = "saved_model"
FEATURES_FOLDER = "features"

Task = Literal["binary", "multi_class", "multi_label", "regression", "retrieval"]

# Outputs and their Spark types by task, in the order of the columns of the scores.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "binary": {"score": "float"},
    "multi_class": {"scores": column_types.array_of("float")},
    "multi_label": {"scores": column_types.array_of("float")},
    "regression": {"score": "float"},
    "retrieval": {CANDIDATES: column_types.array_of("string"), SCORES: column_types.array_of("float")},
}

# Additional outputs of a quantile regression, in the order of its setting.
QUANTILES: Mapping[str, str] = {"quantiles": column_types.array_of("float")}

# The names of list elements differ between writers.
_ELEMENT = re.compile(r"list<\w+: ")


@dataclass(frozen=True)
class ModelDescription:
    """Description of an exported model.

    Attributes:
        task: ``binary`` (a probability per row), ``multi_class`` and ``multi_label`` (one per row and class or label),
            ``regression`` (a number per row) or ``retrieval`` (the best candidates per row).
        architecture: Name in the model catalog, or a dotted path.
        features_hash: Hash of the fitted features that it was trained with.
        outputs: Spark type by output, in the order of the columns of the scores.
        versions: Versions of the libraries that trained and exported it, and of those that ran its encoders.
        indexes: By index of a retrieval model, the share of the exact best candidates that it found at export.
        columns: Arrow type at training by raw column, in the order of the model's inputs; empty if it was not recorded.
        sealed: Digest of ``features_hash`` and the files of the features, to which ``columns`` belong.
        catalogue: The fields of a :class:`scoring.model.Catalogue`, for a model that can be refreshed.
        signature: The signature of the SavedModel that scores encoded features.
    """

    task: Task
    architecture: str
    features_hash: str
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    indexes: Mapping[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    columns: Mapping[str, str] = field(default_factory=dict)
    sealed: str = field(default_factory=str)
    catalogue: Mapping[str, Any] = field(default_factory=dict)
    signature: str = field(default_factory=lambda: signatures.ENCODED_SIGNATURE)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ModelDirectoryError(
                f"the model has format version {self.format_version}, this library reads {FORMAT_VERSION}; "
                f"score it with the version of mirrorspark that exported it, or export it again"
            )
        if self.task not in get_args(Task):
            raise ModelDirectoryError(f"task '{self.task}' is unknown; use one of {list(get_args(Task))}")
        check_outputs(self.outputs)

    @property
    def model_outputs(self) -> Mapping[str, str]:
        """Name in the model by output; the names are equal here."""
        return {name: name for name in self.outputs}

    @property
    def raw_signature(self) -> str:
        """The signature of the SavedModel that scores raw columns."""
        return signatures.RATING if self.signature == signatures.RATING_ENCODED else signatures.RAW_SIGNATURE

    def with_columns(self, features: FittedFeatures, folder: Path) -> "ModelDescription":
        """Return the description with the columns of ``features``, which ``folder`` of the model has already.

        With them a table is checked without its features, as its columns have the types of the training.
        """
        inputs = FeatureInputs(self.scored_features(features.spec), features.column_types)
        if not set(inputs.columns) <= set(inputs.column_types):
            return self
        columns = {name: inputs.column_types[name] for name in inputs.columns}
        return replace(self, columns=columns, sealed=self._seal(folder))

    def scored_features(self, spec: FeatureSpec) -> tuple[kinds.Feature, ...]:
        """Return the features in the order of the model's inputs: query features, then exclusions or a candidate."""
        if self.signature == signatures.RATING_ENCODED:
            return signatures.rated_features(spec)
        return spec.query_features + ((spec.excluded,) if spec.excluded else ())

    def has_columns_of(self, folder: Path) -> bool:
        """Return whether ``columns`` are those of the features that the model's folder has now."""
        return bool(self.columns) and self._seal(folder) == self.sealed

    def _seal(self, folder: Path) -> str:
        return hashlib.sha256(f"{self.features_hash} {folder_digest(folder / FEATURES_FOLDER)}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        document = asdict(self)
        # So that earlier versions read the descriptions of all other models.
        if not self.catalogue:
            del document["catalogue"]
        if self.signature == signatures.ENCODED_SIGNATURE:
            del document["signature"]
        write_description(document, folder)

    @classmethod
    def load(cls, folder: Path) -> "ModelDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: The file is missing or damaged, or another version of this library wrote it.
        """
        return cls(**read_description(folder, cls, FORMAT_VERSION))


def check_outputs(outputs: Mapping[str, str]) -> None:
    """Check the names and types of a model's outputs.

    Raises:
        ModelDirectoryError: There is none, or a type is unknown.
    """
    if not outputs:
        raise ModelDirectoryError("a model needs at least one output")
    unknown = {name: type_ for name, type_ in outputs.items() if type_ not in column_types.ARROW_TYPES}
    if unknown:
        raise ModelDirectoryError(f"output types {unknown} are unknown; use some of {sorted(column_types.ARROW_TYPES)}")


def write_description(document: Mapping[str, Any], folder: Path) -> None:
    """Write ``mirrorspark.json`` into ``folder``, which is created."""
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


def read_description(folder: Path, description: Any, version: int) -> dict[str, Any]:
    """Return the content of ``mirrorspark.json``, which has the fields of a description.

    Raises:
        ModelDirectoryError: The file is missing or damaged, or has other fields.
    """
    document = _document(folder)
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
    """An opened model folder: everything but the computing library."""

    path: Path
    description: "ModelDescription | PackagedDescription"

    @classmethod
    def open(cls, path: Path) -> "ModelDirectory":
        """Read the description, and the features unless the description has the columns that they read.

        Raises:
            ModelDirectoryError: A part is missing or damaged, or an MLflow model has no signature.
            FeatureMismatchError: The features differ from those that the model was trained with.
        """
        is_described = (path / DESCRIPTION_FILE).is_file() or not (path / MLFLOW_FILE).is_file()
        if not is_described or _version(_document(path)) == PACKAGED_FORMAT_VERSION:
            return cls(path, _other_description(path, is_described))
        description = ModelDescription.load(path)
        if not (path / SAVED_MODEL_FOLDER / "saved_model.pb").is_file():
            raise ModelDirectoryError(f"{path} lacks {SAVED_MODEL_FOLDER}/saved_model.pb; export the model again")
        directory = cls(path, description)
        if not description.has_columns_of(path):
            _ = directory.features
        return directory

    @cached_property
    def features(self) -> FittedFeatures:
        """The fitted features that turn raw columns into inputs.

        Raises:
            ModelDirectoryError: The model was not trained here, so it has no features, or a part of them is missing.
            FeatureMismatchError: The features differ from those that the model was trained with.
        """
        if not isinstance(self.description, ModelDescription):
            raise ModelDirectoryError(
                f"the model in {self.path} is of another library and has no fitted features, which this needs; give a "
                f"model that mirrorspark.training.run exported"
            )
        return _fitted(self.path, self.description)

    @property
    def scored_features(self) -> tuple[kinds.Feature, ...]:
        """The features in the order of the model's inputs.

        Raises:
            ModelDirectoryError: See :attr:`features`.
        """
        features = self.features
        assert isinstance(self.description, ModelDescription)  # noqa: S101 - it has features
        return self.description.scored_features(features.spec)

    @cached_property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the elements by output, for multi-class and multi-label models and packages with labels."""
        if not isinstance(self.description, ModelDescription):
            return self.description.labels
        return {"scores": self.features.class_names} if self.description.task in ("multi_class", "multi_label") else {}

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks that a packaged model calls when it scores."""
        return () if isinstance(self.description, ModelDescription) else self.description.hooks

    @property
    def inputs(self) -> Inputs:
        """The columns that the model reads."""
        if not isinstance(self.description, ModelDescription):
            composite = composite_of(self.description)
            if composite is not None:
                return composite.inputs(self.path / self.description.file)
            assert self.description.inputs is not None  # noqa: S101 - only composites leave them to their models
            return self.description.inputs
        return _TrainedColumns(self, self.description.columns) if self.description.columns else self.feature_inputs

    @property
    def feature_inputs(self) -> FeatureInputs:
        """The columns that the model reads, as features.

        Raises:
            ModelDirectoryError: See :attr:`features`.
        """
        return FeatureInputs(self.scored_features, self.features.column_types)


@dataclass(frozen=True)
class _TrainedColumns:
    """The inputs of a model whose description has their types at training."""

    directory: ModelDirectory
    types: Mapping[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.types)

    def check(self, schema: pa.Schema) -> None:
        # Columns of these types need no other check; the features say what else they accept.
        found = {field.name: _ELEMENT.sub("list<", str(field.type)) for field in schema}
        if any(found.get(name) != _ELEMENT.sub("list<", trained) for name, trained in self.types.items()):
            self.directory.feature_inputs.check(schema)

    def __reduce__(self) -> tuple[type[FeatureInputs], tuple[Any, ...]]:
        """Pickle as the features, because an executor lacks the driver's folder."""
        inputs = self.directory.feature_inputs
        return FeatureInputs, (inputs.features, inputs.column_types)


def _other_description(path: Path, is_package: bool) -> "PackagedDescription":
    # Imported here because descriptions of packages build on this module.
    from mirrorspark.scoring.model.folder.packaged import PackagedDescription, describe_mlflow_model

    if not is_package:
        return describe_mlflow_model(path)
    packaged = PackagedDescription.load(path)
    for name in (packaged.file, *([HOOKS_FILE] if packaged.hooks else [])):
        if not (path / name).exists():
            raise ModelDirectoryError(f"{path} lacks {name}; package the model again")
    return packaged


def exported_with(folder: Path) -> Versions:
    """Return the library versions in the description of a model, without opening the rest of its folder."""
    if not (folder / DESCRIPTION_FILE).is_file():
        return pinned_versions(folder)
    document = _document(folder)
    versions: Mapping[str, str] = document.get("versions", {})
    if _version(document) == PACKAGED_FORMAT_VERSION:
        return Versions(versions)
    return Versions.of_trained(versions)


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
