"""Backend for LightGBM models in a text file of ``Booster.save_model``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirrorspark.scoring.backends.libraries import library
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
        lightgbm = library("lightgbm", f"the model {path.name} needs LightGBM")
        _check_whole(path)
        try:
            self._booster = lightgbm.Booster(model_file=path)
        except (lightgbm.basic.LightGBMError, ValueError, KeyError, TypeError) as error:
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


def _check_whole(path: Path) -> None:
    """Check that a model's text is complete. LightGBM does not, and ends the process if the text is cut off.

    Raises:
        UnsupportedModelError: It is not a model in LightGBM's text format, or trees are missing.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    sizes = re.search(rb"^tree_sizes=([\d ]*)$", content[: content.find(b"\nTree=")], re.MULTILINE)
    has_all = sizes is not None and len(sizes[1].split()) == content.count(b"\nTree=")
    has_ends = b"\nend of trees\n" in content and (b"\nparam" in content) == (b"\nend of parameters\n" in content)
    if not (content.startswith(b"tree\n") and has_all and has_ends):
        raise UnsupportedModelError(
            f"LightGBM cannot read {path}: it is not the text of a model, or ends in the middle; give the file that "
            f"Booster.save_model wrote"
        )
