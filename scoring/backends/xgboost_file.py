"""Backend for XGBoost models in a file of ``Booster.save_model``: ``.json`` and ``.ubj``."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirrorspark.scoring.backends.libraries import BACKENDS_EXTRA, library
from mirrorspark.scoring.backends.protocol import ArrayType, Signature, UnsupportedModelError, thread_count

INPUT, OUTPUT = "features", "score"


class XGBoostBackend:
    """A booster. Its output is the result of ``Booster.predict`` with the trees up to the best iteration.

    The scikit-learn classes of XGBoost also ignore later trees.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the model; imports XGBoost.

        Args:
            path: The file.
            threads: Threads for predictions; None means one per core.

        Raises:
            UnsupportedModelError: The file is not an XGBoost model, or the model has categorical features.
            ModuleNotFoundError: XGBoost is not installed here.
        """
        xgboost = library("xgboost", f"the model {path.name} needs XGBoost", BACKENDS_EXTRA)
        try:
            self._booster = xgboost.Booster(model_file=path)
        except xgboost.core.XGBoostError as error:
            raise UnsupportedModelError(
                f"XGBoost {xgboost.__version__} cannot read {path}: {_first_words(error)}; give the file that "
                f"Booster.save_model wrote"
            ) from None
        self._booster.set_param({"nthread": thread_count(threads)})
        config = json.loads(self._booster.save_config())
        self.threads = int(config["learner"]["generic_param"]["nthread"])
        if "c" in (self._booster.feature_types or ()):
            raise UnsupportedModelError(
                f"{path} has categorical features, whose codes belong to the data frame that it was trained with; "
                f"train on codes of your own, as numbers"
            )
        best = self._booster.attr("best_iteration")
        self._trees = (0, 0) if best is None else (0, int(best) + 1)
        width = self._booster.num_features()
        names = self._booster.feature_names
        self.signature = Signature(
            (ArrayType(INPUT, "float", (None, width)),),
            (ArrayType(OUTPUT, "float", (None, self._predict(np.zeros((1, width), np.float32))[0].size)),),
            tuple(names) if names else None,
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the predictions: ``[rows]``, or ``[rows, classes]``."""
        return dict.fromkeys(outputs, self._predict(inputs[INPUT]))

    def _predict(self, features: np.ndarray) -> np.ndarray:
        # A DMatrix would copy the rows, with all threads of the machine.
        return np.asarray(self._booster.inplace_predict(features, iteration_range=self._trees, missing=np.nan))


def _first_words(error: Exception) -> str:
    """Return XGBoost's message without time, source location and stack."""
    words = str(error).partition("Stack trace:")[0].strip()
    return re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", " ".join(words.split()))
