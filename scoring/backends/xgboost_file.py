"""Backend for XGBoost models in a file of ``Booster.save_model``: ``.json`` and ``.ubj``."""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.libraries import library
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
        xgboost = library("xgboost", f"the model {path.name} needs XGBoost")
        check_whole(path)
        try:
            self._booster = xgboost.Booster(model_file=path)
        except (xgboost.core.XGBoostError, ValueError) as error:
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


def check_whole(path: Path) -> None:
    """Check that a model's file is complete. XGBoost does not, and a damaged file may end the process.

    Raises:
        UnsupportedModelError: It is cut off, or nested deeper than any model.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".ubj" and not content.lstrip().startswith(b'{"'):
            _check_ubjson(content)
        else:
            dict(json.loads(content))
    except (ValueError, TypeError, IndexError, struct.error, RecursionError) as error:
        raise UnsupportedModelError(
            f"XGBoost cannot read {path}: it is damaged ({type(error).__name__}: {str(error)[:200]}); give the file "
            f"that Booster.save_model wrote"
        ) from error


# Universal Binary JSON, draft 12 (ubjson.org): sizes of numbers, and their forms where they are lengths.
_UBJSON_BYTES = {"Z": 0, "N": 0, "T": 0, "F": 0, "i": 1, "U": 1, "C": 1, "I": 2, "l": 4, "d": 4, "L": 8, "D": 8}
_UBJSON_LENGTHS = {"i": ">b", "U": ">B", "I": ">h", "l": ">i", "L": ">q"}
_MOST_LEVELS = 64


def _check_ubjson(content: bytes) -> None:
    """Read a document from its first to its last byte without making values of it.

    Raises:
        ValueError: It is not one.
        IndexError, struct.error: It ends in the middle.
    """
    place = 0
    # Open containers: the kind of each, the type of its values if they have one, and the number of values left.
    opened: list[list[Any]] = []

    def skip(count: int) -> None:
        nonlocal place
        if not 0 <= count <= len(content) - place:
            raise ValueError(f"{count} bytes at byte {place} of {len(content)}")
        place += count

    def marker() -> str:
        nonlocal place
        place += 1
        return chr(content[place - 1])

    def length() -> int:
        form = _UBJSON_LENGTHS.get(kind := marker())
        if form is None:
            raise ValueError(f"the length {kind!r} at byte {place}")
        (found,) = struct.unpack_from(form, content, place)
        skip(_UBJSON_BYTES[kind])
        return int(found)

    def value(kind: str) -> None:
        nonlocal place
        if kind in "{[":
            if len(opened) == _MOST_LEVELS:
                raise ValueError(f"more than {_MOST_LEVELS} levels")
            of: str | None = None
            left: int | None = None
            if content[place] == ord("$"):
                place += 1
                of = marker()
            if content[place] == ord("#"):
                place += 1
                left = length()
            elif of is not None:
                raise ValueError(f"values of one type without a number of them at byte {place}")
            if kind == "[" and of is not None and of in _UBJSON_BYTES and left is not None:
                skip(left * _UBJSON_BYTES[of])
            else:
                opened.append([kind, of, left])
        elif kind in "SH":
            skip(length())
        elif kind in _UBJSON_BYTES:
            skip(_UBJSON_BYTES[kind])
        else:
            raise ValueError(f"the value {kind!r} at byte {place}")

    if (first := marker()) != "{":
        raise ValueError(f"it begins with {first!r}")
    value(first)
    while opened:
        kind, of, left = container = opened[-1]
        if left == 0 or (left is None and content[place] == ord("}" if kind == "{" else "]")):
            place += left is None
            opened.pop()
            continue
        if left is not None:
            container[2] -= 1
        if kind == "{":
            skip(length())
        value(marker() if of is None else of)


def _first_words(error: Exception) -> str:
    """Return XGBoost's message without time, source location and stack."""
    words = str(error).partition("Stack trace:")[0].strip()
    return re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", " ".join(words.split()))
