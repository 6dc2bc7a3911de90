"""Loader of packaged models and routers for ``mlflow.pyfunc``, which scores as all other entry points do."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.loading import load_once
from mirrorspark.scoring.model.stored import ModelNotFoundError, pinned_folder

if TYPE_CHECKING:
    import pandas as pd


class PackagedModel:
    """A packaged model, which takes a DataFrame with its columns. Loading it runs the code that it brings."""

    def __init__(self, folder: Path) -> None:
        """Load the model.

        Raises:
            ModelNotFoundError: There is none.
        """
        pinned = pinned_folder(folder)
        if pinned is None:
            raise ModelNotFoundError(f"{folder} is not a folder of a model")
        self._inputs = ModelDirectory.open(pinned.path).inputs
        self._model = load_once(pinned.path, pinned.digest, threads=None)

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """Return one row of outputs per row of ``model_input``; null and NaN are missing values.

        Raises:
            ColumnError: A column is missing, or has a type or a value that the model does not accept.
        """
        table = pa.Table.from_pandas(model_input, preserve_index=False)
        self._inputs.check(table.schema)
        scores = pa.table(self._model.score_arrow(table)).to_pandas()
        scores.index = model_input.index
        return scores


def _load_pyfunc(path: str) -> PackagedModel:
    return PackagedModel(Path(path))
