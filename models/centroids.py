"""Label centroids: similarity of a row to the training rows of each label.

A network learns little of a label with few training rows; the mean of these rows is a fair picture of it. Each entry is
multiplied by the rarity of its column, and each row divided by its length. A label's centroid is the sum of its rows.
The mixture adds the cosine of a row and a centroid to the network's probability (Rocchio 1971; Manning et al. 2008,
"Introduction to Information Retrieval", chapters 6 and 14).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.data_pipelines.features import FeatureSpec, kinds, plain_name
from mirrorspark.models.calibration import Floats, counted_rows, save_calibration
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.models.wrapped_architecture import WrappedArchitecture

if TYPE_CHECKING:  # the driver checks a configuration without loading TensorFlow
    import tensorflow as tf

# The centroids of 100,000 columns and 2,500 labels, which are dense. There are two copies when variables are made.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class LabelledRows:
    """Some training rows.

    Attributes:
        sparse: By feature, SciPy's compressed sparse rows, float32 ``[rows, size]``, no index twice in a row.
        labels: SciPy's compressed sparse rows, float32 ``[rows, classes]``, 1 for the labels that a row has.
        weights: float32 ``[rows]``, from 0.
    """

    sparse: Mapping[str, Any]
    labels: Any
    weights: np.ndarray


@dataclass(frozen=True)
class LabelCentroids:
    """The centroids of all labels.

    Attributes:
        rarity: By feature float32 ``[size]``, the weight of each column: its smoothed inverse document frequency.
        tables: By feature float32 ``[size, classes]``: the centroids, of length 1 over all features, times the rarity
            once more. So the product with a row as it is equals that of the weighted row with the centroids.
    """

    rarity: Mapping[str, Any]
    tables: Mapping[str, Any]

    def in_variables(self) -> "LabelCentroids":
        """Return the same in TensorFlow's variables, which a SavedModel stores better than constants."""
        import tensorflow as tf

        def variables(kind: str, arrays: Mapping[str, Any]) -> dict[str, tf.Variable]:
            return {
                feature: tf.Variable(values, trainable=False, name=f"{plain_name(feature)}_{kind}")
                for feature, values in arrays.items()
            }

        return LabelCentroids(variables("rarity", self.rarity), variables("centroids", self.tables))

    def cosines(self, inputs: "Mapping[str, tf.Tensor]") -> "tf.Tensor":
        """Return float32 ``[batch, classes]`` from -1 to 1; 0 for a row without entries and a label without rows.

        Each row's indices ascend, as those of every batch do.
        """
        import tensorflow as tf

        from mirrorspark.models.layers.input import sparse_product

        products, squares = [], []
        for name, table in self.tables.items():
            rows = inputs[name]
            values = rows.values * tf.gather(self.rarity[name], rows.indices[:, 1])
            # Repeated indices, which are neighbours, make one entry of the row: their values add up.
            is_first = tf.reduce_any(rows.indices[1:] != rows.indices[:-1], axis=1)
            is_first = tf.concat([tf.ones_like(rows.indices[:1, 0], tf.bool), is_first], axis=0)
            entries = tf.math.segment_sum(values, tf.cumsum(tf.cast(is_first, tf.int64)) - 1)
            rows_of_entries = tf.boolean_mask(rows.indices[:, 0], is_first)
            squares.append(tf.math.unsorted_segment_sum(entries**2, rows_of_entries, rows.dense_shape[0]))
            products.append(sparse_product(rows, table))
        return tf.math.divide_no_nan(tf.add_n(products), tf.sqrt(tf.add_n(squares))[:, tf.newaxis])


@dataclass(frozen=True)
class Mixture:
    """Log-odds as a weighted sum of a model's probability, a cosine and, where that ranks better, its log-odds.

    A sum with the probability alone, which is flat at both ends, often ranks better.
    """

    of_probability: float
    of_cosine: float
    bias: float
    of_log_odds: float = 0.0

    def __call__(self, logits: Any, cosines: Any) -> Any:
        """Return the log-odds of NumPy's arrays of equal shape."""
        from scipy.special import expit  # type: ignore[import-untyped]

        mixed = self.of_probability * expit(logits) + self.of_cosine * cosines + self.bias
        return mixed + self.of_log_odds * logits

    def in_graph(self, logits: "tf.Tensor", cosines: "tf.Tensor") -> "tf.Tensor":
        """Return the same as operations of TensorFlow."""
        import tensorflow as tf

        mixed = self.of_probability * tf.sigmoid(logits) + self.of_cosine * cosines + self.bias
        return mixed + self.of_log_odds * logits

    def save(self, folder: Path, measured: Mapping[str, Any]) -> None:
        """Write the weights and their metrics ``measured`` into the folder of their model."""
        save_calibration(folder, {"kind": "centroids", **asdict(self), "measured": measured})


@dataclass(frozen=True)
class CentroidArchitecture(WrappedArchitecture):
    """A multi-label architecture, which has ``logits`` and ``probabilities``, with the log-odds of a mixture."""

    centroids: LabelCentroids
    mixture: Mixture

    def saved_parts(self, model: Any) -> list[Any]:
        """Return those of the architecture, and the variables of the centroids."""
        return [*super().saved_parts(model), *self.centroids.rarity.values(), *self.centroids.tables.values()]

    def predict(self, model: Any, inputs: "Mapping[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Return the probabilities in the architecture's outputs, float32 ``[batch, classes]``."""
        import tensorflow as tf

        logits = tf.cast(self.architecture.logits(model, inputs), tf.float32)
        mixed = self.mixture.in_graph(logits, self.centroids.cosines(inputs))
        found: dict[str, tf.Tensor] = self.architecture.probabilities(mixed)
        return found


def sparse_features(spec: FeatureSpec, classes: int) -> tuple[kinds.Sparse, ...]:
    """Return the features that centroids are made of.

    Args:
        spec: The features of the table.
        classes: Number of labels; 0 while it is not known.

    Raises:
        ModelSettingsError: There is none, or the centroids would be larger than a gibibyte.
    """
    found = tuple(feature for feature in spec.query_features if isinstance(feature, kinds.Sparse))
    if not found:
        raise ModelSettingsError(
            "calibration 'centroids' compares sparse features, and there is none; use temperature or isotonic"
        )
    columns = sum(feature.size for feature in found)
    if 4 * columns * classes > _MOST_BYTES:
        raise ModelSettingsError(
            f"calibration 'centroids' would keep {columns:,} columns for each of {classes:,} labels, "
            f"{4e-9 * columns * classes:.1f} GB, and {_MOST_BYTES / 1e9:.1f} GB is the most; use temperature "
            f"or isotonic"
        )
    return found


def fit_centroids(parts: Callable[[], Iterable[LabelledRows]]) -> LabelCentroids:
    """Return the centroids of the training rows.

    Args:
        parts: Called twice; each call yields all training rows in parts. Rows of weight 0 do not count.
    """
    rows, counts = 0, dict[str, Any]()
    for part in parts():
        counted = part.weights > 0
        rows += int(counted.sum())
        for name, table in part.sparse.items():
            entries = table[counted]
            columns = entries.indices[entries.data != 0]
            counts[name] = counts.get(name, 0) + np.bincount(columns, minlength=table.shape[1])
    rarity = {name: (np.log((1 + rows) / (1 + count)) + 1).astype(np.float32) for name, count in counts.items()}
    sums: dict[str, np.ndarray] = {}
    for part in parts():
        weighted = {name: table.multiply(rarity[name][np.newaxis]).tocsr() for name, table in part.sparse.items()}
        squares = sum(table.power(2).sum(axis=1) for table in weighted.values())
        lengths = np.sqrt(squares, where=squares > 0, out=np.ones_like(squares))
        shares = part.labels.multiply((part.weights / lengths)[:, np.newaxis]).tocsr()
        for name, table in weighted.items():
            products = (table.T @ shares).tocoo()
            if name not in sums:
                sums[name] = np.zeros(products.shape, np.float32)
            sums[name][products.row, products.col] += products.data
    lengths = np.sqrt(sum(np.einsum("cl,cl->l", table, table) for table in sums.values()))
    scale = np.divide(1, lengths, where=lengths > 0, out=np.zeros_like(lengths))
    for name, table in sums.items():
        table *= scale
        table *= rarity[name][:, np.newaxis]
    return LabelCentroids(rarity, sums)


def fit_mixture(
    logits: Floats, cosines: Floats, labels: NDArray[Any], weights: Floats, *, with_log_odds: bool = False
) -> Mixture:
    """Return the mixture of least log loss, by logistic regression.

    Args:
        logits: Log-odds of pairs of a validation row and a label, ``[pairs]``.
        cosines: ``[pairs]``.
        labels: 0 or 1, ``[pairs]``.
        weights: ``[pairs]``, from 0.
        with_log_odds: The log-odds are a part of the sum.

    Raises:
        CalibrationError: The pairs that count have one class only, or there is none.
    """
    # Their imports take a second, and the driver imports this module.
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression

    counted = counted_rows(labels, weights)
    parts = [expit(logits), cosines, *([logits] if with_log_odds else [])]
    inputs = np.stack(parts, axis=1)[counted]
    means, deviations = inputs.mean(axis=0), inputs.std(axis=0)
    # A column that is constant but for rounding gets no weight.
    deviations[np.ptp(inputs, axis=0) <= 1e-6 * np.abs(inputs).max(axis=0)] = np.inf
    # A row has few of thousands of labels, so probabilities and gradients are tiny: with its own tolerance the solver
    # stops at once. So few weights of thousands of pairs need no penalty.
    model = LogisticRegression(C=1e6, solver="newton-cholesky", tol=1e-10, max_iter=1_000)
    model.fit((inputs - means) / deviations, labels[counted], weights[counted])
    found = model.coef_[0] / deviations
    of_probability, of_cosine, *of_log_odds = found.tolist()
    return Mixture(of_probability, of_cosine, float(model.intercept_[0] - found @ means), *of_log_odds)
