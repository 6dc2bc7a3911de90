"""Descriptions of models of other libraries: packages of ours, and any MLflow model with a signature."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mirrorspark.data_pipelines.features import raw_columns, repeated_names
from mirrorspark.scoring.backends import mlflow_signature, protocol
from mirrorspark.scoring.input import Column, ColumnInputs, Matrix, column_types
from mirrorspark.scoring.model.folder.directory import (
    DESCRIPTION_FILE,
    PACKAGED_FORMAT_VERSION,
    check_outputs,
    read_description,
    write_description,
)
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.stored import is_outside_digest

# Outputs whose elements can have names.
_LABELLED_TYPES = (column_types.array_of("float"), column_types.array_of("double"))


@dataclass(frozen=True)
class PackagedDescription:
    """Description of a model of another library.

    Attributes:
        backend: Name of the backend in :mod:`scoring.backends.catalog`.
        file: File or folder of the model within its folder; "" is the folder itself.
        inputs: None for a router, whose models have inputs of their own.
        outputs: Spark type by output, in the order of the columns of the scores.
        model_outputs: Name by output in the model, or in the result of the hook ``postprocess``.
        signature: Signature of a SavedModel that is called; None for other models.
        hooks: Names of the hooks that are called.
        labels: Names of the elements by output, in order; outputs without names are left out.
        versions: Versions at packaging of everything that the scores depend on: Python and libraries.
        trusted: Whether Python code in the model's file may run.
    """

    backend: str
    file: str
    inputs: ColumnInputs | None
    outputs: Mapping[str, str]
    model_outputs: Mapping[str, str]
    signature: str | None = None
    format_version: int = PACKAGED_FORMAT_VERSION
    hooks: tuple[str, ...] = field(default_factory=tuple)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = field(default_factory=bool)

    def __post_init__(self) -> None:
        if is_outside_digest(self.file):
            raise ModelDirectoryError(
                f"the description names the file '{self.file}', which is outside of the model's folder or its digest; "
                f"package the model again"
            )
        check_outputs(self.outputs)
        for output, names in self.labels.items():
            _check_labels(output, names, self.outputs)

    def save(self, folder: Path) -> None:
        """Write ``mirrorspark.json`` into ``folder``."""
        write_description(asdict(self), folder)

    @classmethod
    def load(cls, folder: Path) -> "PackagedDescription":
        """Read ``mirrorspark.json``.

        Raises:
            ModelDirectoryError: The file is missing or damaged, or another version of this library wrote it.
        """
        document = read_description(folder, cls, PACKAGED_FORMAT_VERSION)
        try:
            inputs = _inputs(document["inputs"])
            hooks = tuple(document.get("hooks", ()))
            labels = {output: tuple(names) for output, names in document.get("labels", {}).items()}
            return cls(**document | {"inputs": inputs, "hooks": hooks, "labels": labels})
        except (TypeError, KeyError, raw_columns.ColumnError) as error:
            raise ModelDirectoryError(f"{folder / DESCRIPTION_FILE} is damaged ({error}); package it again") from error


def _inputs(document: Any) -> ColumnInputs | None:
    if document is None:
        return None
    matrix = Matrix(**document["matrix"]) if document["matrix"] else None
    return ColumnInputs(tuple(Column(**column) for column in document["given"]), matrix)


def describe_mlflow_model(folder: Path) -> PackagedDescription:
    """Return the description of an MLflow model, from its signature.

    Raises:
        ModelDirectoryError: It has no signature, or one that columns cannot hold.
    """
    try:
        signature = mlflow_signature(folder)
        inputs = ColumnInputs(tuple(_column(array) for array in signature.inputs))
        outputs = {array.name: array.column_type for array in signature.outputs}
    except (protocol.UnsupportedModelError, raw_columns.ColumnError) as error:
        raise ModelDirectoryError(str(error)) from error
    return PackagedDescription("pyfunc", "", inputs, outputs, {name: name for name in outputs})


def _column(array: protocol.ArrayType) -> Column:
    # Missing numbers are NaN in any case, as in pandas.
    passes_nulls = array.optional and array.element in ("string", "binary")
    return Column(array.name, array.column_type, nulls="pass" if passes_nulls else None)


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
