"""Backend for LightGBM models in a text file of ``Booster.save_model``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirrorspark.scoring.backends.libraries import BACKENDS_EXTRA, library
from mirrorspark.scoring.backends.protocol import ArrayType, Signature, UnsupportedModelError, thread_count

INPUT, OUTPUT = "features", "score"


class LightGBMBackend:
    """A booster. Its output is the result of ``Booster.predict``."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the model; imports LightGBM.

        Args:
            path: The file.
            threads: Threads for predictions; None means one per core.

        Raises:
            UnsupportedModelError: The file is not a LightGBM model, or the model was trained with pandas categories.
            ModuleNotFoundError: LightGBM is not installed here.
        """
        lightgbm = library("lightgbm", f"the model {path.name} needs LightGBM", BACKENDS_EXTRA)
        try:
            self._booster = lightgbm.Booster(model_file=path)
        except lightgbm.basic.LightGBMError as error:
            raise UnsupportedModelError(f"LightGBM {lightgbm.__version__} cannot read {path}: {error}") from error
        if self._booster.pandas_categorical:
            raise UnsupportedModelError(
                f"{path} was trained with categories of pandas, whose codes belong to that data frame; train on codes "
                f"of your own, as numbers (categorical_feature)"
            )
        self.threads = thread_count(threads)
        names = tuple(self._booster.feature_name())
        # LightGBM's names for columns without names.
        unnamed = tuple(f"Column_{place}" for place in range(len(names)))
        self.signature = Signature(
            (ArrayType(INPUT, "double", (None, len(names))),),
            (ArrayType(OUTPUT, "double", (None, self._booster.num_model_per_iteration())),),
            None if names == unnamed else names,
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the predictions: ``[rows]``, or ``[rows, classes]``."""
        predicted = np.asarray(self._booster.predict(inputs[INPUT], num_threads=self.threads))
        return dict.fromkeys(outputs, predicted)
