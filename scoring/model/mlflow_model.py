"""MLflow's description of an exported model: its signature, an example of its input, and the packages it needs."""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.features import FeatureSpec, embedded_columns
from mirrorspark.distributions import distribution_of, library_version
from mirrorspark.models.serving import signatures
from mirrorspark.scoring.embedding import taken_as_vectors
from mirrorspark.scoring.input import element_name, is_array
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory, exported_with
from mirrorspark.scoring.model.loading import PYTHON

if TYPE_CHECKING:
    import pandas as pd

# The modules that load a model for MLflow: one of TensorFlow alone, whose file goes along, and one of ours.
_TRAINED_LOADER = "mirrorspark.scoring.model.mirrorspark_pyfunc"
_PACKAGED_LOADER = "mirrorspark.scoring.model.packaged_pyfunc"


def mlflow_flavour(directory: ModelDirectory) -> dict[str, Any]:
    """Return MLflow's arguments for a model: its loader, signature and requirements."""
    description = directory.description
    if not isinstance(description, ModelDescription) or description.raw_signature != signatures.RAW_SIGNATURE:
        return {
            "loader_module": _PACKAGED_LOADER,
            "signature": _packaged_signature(directory),
            "pip_requirements": _packaged_requirements(directory.path),
        }
    # Found without an import, which would load TensorFlow in this process.
    fitted = directory.features
    loader = find_spec(_TRAINED_LOADER)
    assert loader is not None  # noqa: S101 - it is a module of ours
    return {
        "loader_module": _TRAINED_LOADER.rpartition(".")[2],
        "code_paths": [str(loader.origin)],
        "signature": mlflow_signature(directory.path, fitted.spec, description.outputs),
        "pip_requirements": _trained_requirements(directory.path),
        "metadata": {"features_hash": fitted.hash, "column_types": dict(fitted.column_types)},
    }


def mlflow_signature(folder: Path, spec: FeatureSpec, outputs: Mapping[str, str]) -> Any:
    """Return MLflow's signature of the model in ``folder``: columns of the table to outputs.

    Columns have any type, but for images, which MLflow decodes from base64, and the loader reads them by their type in
    training. For each type of its own, MLflow would refuse what the table of the training may have in pandas or Spark:
    whole numbers where one is missing, which are floats; whole numbers in a column of floats; a column of texts or
    floats with nothing but missing values, as a single row may be; nullable types, categoricals, dates, decimals.

    Args:
        folder: The folder of the model.
        spec: Its feature specification.
        outputs: Spark type by output.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    features = [*spec.query_features, *([spec.excluded] if spec.excluded else [])]
    types: dict[str, Any] = {}
    for feature in features:
        # A sparse vector comes in its own column, or as its two parts.
        types |= {name: AnyType() for name in feature.columns}
        types |= {name: DataType.binary if form == "bytes" else AnyType() for name, form in feature.raw.items()}
    types |= dict.fromkeys(taken_as_vectors(folder), Array(DataType.double))
    inputs: list[Any] = [ColSpec(type_, name, required=False) for name, type_ in types.items()]
    given: Mapping[str, Any] = {
        "float": DataType.float,
        "int": DataType.integer,
        "string": DataType.string,
        "array<float>": Array(DataType.float),
        "array<string>": Array(DataType.string),
    }
    returned: list[Any] = [ColSpec(given[type_], name) for name, type_ in outputs.items()]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(returned))


def _packaged_signature(directory: ModelDirectory) -> Any:
    """Return MLflow's signature of a packaged model or router; the columns of its models may be of any type."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    elements = {
        "boolean": DataType.boolean,
        "int": DataType.integer,
        "bigint": DataType.long,
        "float": DataType.float,
        "double": DataType.double,
        "string": DataType.string,
        "binary": DataType.binary,
    }

    def mlflow_type(column_type: str) -> Any:
        element = elements[element_name(column_type)]
        return Array(element) if is_array(column_type) else element

    # MLflow would refuse what Spark and Predictor take, such as whole numbers with nulls, which pandas has as floats.
    inputs: list[Any] = [ColSpec(AnyType(), name, required=False) for name in directory.inputs.columns]
    outputs: list[Any] = [ColSpec(mlflow_type(of), name) for name, of in directory.description.outputs.items()]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def input_example(file: Path, folder: Path) -> "pd.DataFrame":
    """Return the raw rows of a dataset's example as the model in ``folder`` takes them.

    The example has the vectors of images and not the images. Where the model takes images, they are missing ones, of no
    bytes: MLflow cannot read an example with a null in a binary column.
    """
    rows, vectors = pq.read_table(file), taken_as_vectors(folder)
    for place, field in enumerate(rows.schema):
        if embedded_columns.embedded_content(field.type) == embedded_columns.IMAGE and field.name not in vectors:
            rows = rows.set_column(place, field.name, pa.array([b""] * rows.num_rows, pa.binary()))
    return embedded_columns.as_contents(rows, vectors_of=vectors).to_pandas()


def _trained_requirements(folder: Path) -> list[str]:
    """Return the packages that MLflow needs to load an exported model: TensorFlow's version at the export."""
    found = exported_with(folder).compared.get("tensorflow") or library_version("tensorflow")
    # Another version may not exist under the name of the distribution that is installed here.
    name = distribution_of("tensorflow") if found == library_version("tensorflow") else "tensorflow"
    own = {name: found}
    return [f"{name}=={found}" for name, found in (own | {of: version(of) for of in ("numpy", "pandas")}).items()]


def _packaged_requirements(folder: Path) -> list[str]:
    """Return the packages that MLflow needs to load a packaged model: Mirrorspark, and those behind its scores."""
    compared = {name: of for name, of in exported_with(folder).compared.items() if name != PYTHON}
    return [f"{package}=={found}" for package, found in ({"mirrorspark": version("mirrorspark")} | compared).items()]
