"""UDFs that one would write oneself to score rows of ids and numbers, each with the direct model of ``score_model``."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pyspark.ml.functions import predict_batch_udf
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import FloatType

from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER


def batch_udf(model: Path, ids: int, numbers: int, batch_rows: int) -> Any:
    """Return Spark's ``predict_batch_udf``, which takes an array of ids and one of numbers."""

    def load() -> Any:
        return saved_model(str(model / SAVED_MODEL_FOLDER))

    shapes: list[list[int] | None] = [[ids], [numbers]]
    return predict_batch_udf(load, return_type=FloatType(), batch_size=batch_rows, input_tensor_shapes=shapes)


def iterator_udf(model: Path, ids: int) -> Any:
    """Return a pandas UDF of columns of which the first ``ids`` are ids; it loads the model once per task."""
    import numpy as np
    import pandas as pd

    folder = str(model / SAVED_MODEL_FOLDER)

    @pandas_udf("float")  # type: ignore[call-overload]
    def scores(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        predict = saved_model(folder)
        for columns in batches:
            yield pd.Series(predict(np.stack(columns[:ids], 1), np.stack(columns[ids:], 1)))

    return scores


def keras_udf(model: Path, ids: int) -> Any:
    """Return a pandas UDF that calls ``model.predict`` for every batch, of a model that each worker keeps."""
    import numpy as np
    import pandas as pd

    file = str(model / "model.keras")

    @pandas_udf("float")  # type: ignore[call-overload]
    def scores(*columns: pd.Series) -> pd.Series:
        given = [np.stack(columns[:ids], 1), np.stack(columns[ids:], 1).astype(np.float32)]
        return pd.Series(keras_model_file(file).predict(given, batch_size=len(given[0]), verbose=0))

    return scores


def onnx_udf(model: Path, ids: int) -> Any:
    """Return a pandas UDF that calls ONNX Runtime with one thread; it loads the model once per task."""
    import numpy as np
    import pandas as pd

    file = str(model / "model.onnx")

    @pandas_udf("float")  # type: ignore[call-overload]
    def scores(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for columns in batches:
            given = {"ids": np.stack(columns[:ids], 1), "numbers": np.stack(columns[ids:], 1).astype(np.float32)}
            yield pd.Series(session.run(["score"], given)[0])

    return scores


def saved_model(folder: str) -> Any:
    """Return a function that calls the SavedModel with ids and numbers."""
    import tensorflow as tf

    module = tf.saved_model.load(folder)
    signature = module.signatures["serving_default"]

    def predict(ids: Any, numbers: Any) -> Any:
        assert module is not None  # the signature alone does not keep its variables
        scores = signature(ids=tf.constant(ids, tf.int64), numbers=tf.constant(numbers, tf.float32))
        return scores["score"].numpy()

    return predict


@cache
def keras_model_file(file: str) -> Any:
    """Return the model of a file, once per process."""
    import tf_keras

    return tf_keras.models.load_model(file, compile=False)
