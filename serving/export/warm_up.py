"""Warm-up records: requests that TensorFlow Serving computes with a version before that answers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import embedded_columns, kinds, plain_name, raw_columns
from mirrorspark.data_pipelines.tfrecord import RecordWriter
from mirrorspark.scoring.backends import SavedModelBackend, protocol
from mirrorspark.scoring.embedding import ModelEncoders
from mirrorspark.scoring.input import ColumnFeed, decoders
from mirrorspark.scoring.model.folder import ModelDescription, ModelDirectory
from mirrorspark.serving.protos import Messages, message_class

MOST_RECORDS = 1_000
"""A server does not load a version that has more."""

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"

Request: TypeAlias = Mapping[str, np.ndarray]
"""The inputs of a signature by name, of one row unless the signature has a fixed number of rows."""

# Source: tensorflow_serving/apis/{prediction_log,predict,model}.proto. A message within a message is written as its
# bytes are, so a tensor, which TensorFlow serializes, is declared as bytes.
_MESSAGES: Messages = {
    "PredictionLog": {"predict_log=6": "PredictLog"},
    "PredictLog": {"request=1": "PredictRequest"},
    "PredictRequest": {"model_spec=1": "ModelSpec", "inputs=2": ":bytes"},
    "ModelSpec": {"name=1": "string", "signature_name=3": "string"},
}


class WarmUpError(ClearError, ValueError):
    """A row cannot be a warm-up request; the message has its number and the reason."""


def table_of(rows: pa.Table | str | Path, directory: ModelDirectory, most: int) -> pa.Table:
    """Return the first ``most`` rows of a table or of Parquet files, with the columns that a model reads.

    Raises:
        ColumnError: A column is missing, or has a type that the model does not accept.
        OSError: The files cannot be read.
        WarmUpError: There is no row.
    """
    is_table = isinstance(rows, pa.Table)
    source = pyarrow.dataset.dataset(rows) if is_table else pyarrow.dataset.dataset(str(rows), format="parquet")
    directory.inputs.check(source.schema)
    table = source.head(most, columns=list(directory.inputs.columns))
    if not table.num_rows:
        raise WarmUpError("the table of warm-up rows has no row; give rows, or none to make one up")
    return table


def requests_of(table: pa.Table, directory: ModelDirectory, backend: SavedModelBackend) -> Iterator[Request]:
    """Yield a request for each row of a table.

    Raises:
        ColumnError: The model does not accept a value.
    """
    takes = {array.name: array for array in backend.signature.inputs}
    if isinstance(directory.description, ModelDescription):
        raw = _raw_columns(table, directory, takes)
        for row in range(raw.num_rows):
            yield {name: _array(raw[name][row].as_py(), array) for name, array in takes.items()}
        return
    inputs = directory.description.inputs
    assert inputs is not None  # noqa: S101 - a router has no SavedModel
    feed = ColumnFeed(inputs, backend.signature, decoders(inputs, backend.signature, "saved_model", None))
    for _, arrays in feed.parts(table, 1):
        yield {
            name: np.repeat(protocol.with_rank(values, len(takes[name].shape)), backend.signature.rows or 1, axis=0)
            for name, values in arrays.items()
        }


def made_up_request(backend: SavedModelBackend, *, are_lists_empty: bool) -> Request:
    """Return a request of zeros and empty strings.

    Args:
        backend: The signature.
        are_lists_empty: Whether dimensions of any length have none, as lists that are missing, or one element.
    """
    made = {}
    for array in backend.signature.inputs:
        shape = [backend.signature.rows or 1, *(length or int(not are_lists_empty) for length in array.shape[1:])]
        dtype = protocol.DTYPES[array.element or "float"]
        made[array.name] = np.full(shape, "" if dtype is np.object_ else 0, dtype)
    return made


def write_warm_up(
    requests: Sequence[Request], file: Path, backend: SavedModelBackend, name: str, signature: str
) -> None:
    """Compute each request, since a server whose warm-up fails does not load the version, and write them.

    Args:
        requests: The requests.
        file: The new file, whose folder is created.
        backend: The signature.
        name: Name of the model in requests.
        signature: Name of the signature.

    Raises:
        WarmUpError: A request cannot be computed.
    """
    import tensorflow as tf

    outputs = [array.name for array in backend.signature.outputs]
    elements = {array.name: array.element for array in backend.signature.inputs}
    record = message_class("PredictionLog", _MESSAGES)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        writer = RecordWriter(stream)
        for number, request in enumerate(requests):
            try:
                backend(request, outputs)
            except (tf.errors.OpError, ValueError, TypeError) as error:
                raise WarmUpError(
                    f"warm-up row {number} cannot be computed by the signature '{signature}' ({error}); give rows that "
                    f"the model accepts"
                ) from error
            log = record()
            log.predict_log.request.model_spec.name = name
            log.predict_log.request.model_spec.signature_name = signature
            for given, values in request.items():
                dtype = (
                    tf.string
                    if values.dtype == np.object_
                    else tf.as_dtype(protocol.DTYPES[elements[given] or "float"])
                )
                tensor = tf.make_tensor_proto(values, dtype, values.shape)
                log.predict_log.request.inputs[given] = tensor.SerializeToString(deterministic=True)
            writer.write(log.SerializeToString(deterministic=True))


def _raw_columns(table: pa.Table, directory: ModelDirectory, takes: Mapping[str, protocol.ArrayType]) -> pa.Table:
    """Return the columns of the raw signature; texts and images as vectors where its graph has no encoder of them."""
    embedded = [one for one in directory.scored_features if isinstance(one, kinds.EmbeddedFeature)]
    vectors_of = [one.name for one in embedded if takes[plain_name(one.name)].element == "double"]
    if vectors_of:
        table = ModelEncoders(directory.path, directory.scored_features, threads=1).embedded(table)
    raw = embedded_columns.as_contents(raw_columns.raw_inputs(table, directory.features.spec), vectors_of)
    return raw.rename_columns([plain_name(name) for name in raw.column_names])


# Missing values in a raw signature, see data_pipelines.features.kinds.RawForm.
_MISSING: Mapping[str, Any] = {"string": "", "double": np.nan, "bigint": -1}


def _array(value: Any, array: protocol.ArrayType) -> np.ndarray:
    """Return a value of a raw column as ``[1]``, a list as ``[1, elements]``."""
    missing, dtype = _MISSING[array.element or ""], protocol.DTYPES[array.element or ""]
    if len(array.shape) == 1:
        return np.array([missing if value is None else value], dtype)
    return np.array([[missing if one is None else one for one in value or ()]], dtype)
