"""The training metrics of the current epoch, saved within it so that a resumed epoch logs metrics of the whole epoch.

Keras' metrics are sums over the replicas (variables with ``SUM`` aggregation): each replica keeps its own part. A
checkpoint contains the exact part of every replica. If the number of replicas is unchanged, each restores its own part;
otherwise the first one takes the sum.
"""

import io
import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tf_keras

from mirrorspark.callbacks.collectives import current_role, gather_over_ranks, local_replicas
from mirrorspark.models import keras3

METRICS = "epoch_metrics.npz"

logger = logging.getLogger(__name__)


class MetricState(NamedTuple):
    """The values of all metric variables of all replicas.

    Attributes:
        names: ``metric/number`` of every variable, with its shape, in the model's order.
        values: The concatenated values, float64 ``[replicas, values]``.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    def to_bytes(self) -> bytes:
        """Return the state as the content of an ``.npz`` file."""
        file = io.BytesIO()
        np.savez(file, names=np.array(self.names, dtype=np.str_), values=self.values)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "MetricState":
        """Return the state from the result of :meth:`to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(tuple(str(name) for name in arrays["names"]), arrays["values"])


def metric_state(model: tf_keras.Model) -> MetricState:
    """Return the metrics of the current epoch; every rank has to call this."""
    strategy = model.distribute_strategy
    variables = _variables(model)
    parts = np.array(
        [
            np.concatenate([np.ravel(_local(strategy, v, replica).numpy()) for _, v in variables] or [np.empty(0)])
            for replica in range(local_replicas(strategy))
        ],
        dtype=np.float64,
    )
    return MetricState(tuple(name for name, _ in variables), gather_over_ranks(strategy, parts))


class ResumedMetrics:
    """Restores a saved state at the start of the resumed epoch, after Keras has reset the metrics.

    Keras builds a compiled model's metrics in its first step. If they do not exist yet, the state is added after that
    step. The sum is the same: bit-equal with one step per execution, up to rounding otherwise.
    """

    def __init__(self, state: MetricState) -> None:
        """Keep the state."""
        self._state = state
        self._is_pending = True

    def epoch_begins(self, model: tf_keras.Model) -> None:
        """Set the metrics if they exist."""
        variables = _variables(model)
        if self._is_pending and tuple(name for name, _ in variables) == self._state.names:
            self._apply(model, variables, is_added=False)

    def step_done(self, model: tf_keras.Model) -> None:
        """Add the state to metrics that were built in this step."""
        if not self._is_pending:
            return
        variables = _variables(model)
        if tuple(name for name, _ in variables) == self._state.names:
            self._apply(model, variables, is_added=True)
        else:
            self._is_pending = False
            logger.warning(
                "The metrics of the model are not those of the checkpoint: the training metrics of this epoch cover "
                "the steps since the checkpoint only"
            )

    def _apply(self, model: tf_keras.Model, variables: list[tuple[str, Any]], *, is_added: bool) -> None:
        self._is_pending = False
        strategy = model.distribute_strategy
        rows = _rows_of_this_rank(strategy, self._state.values)
        for replica in range(len(rows)):
            begin = 0
            for _, variable in variables:
                part = _local(strategy, variable, replica)
                size = int(np.prod(part.shape))
                value = rows[replica, begin : begin + size].reshape(part.shape).astype(part.dtype.as_numpy_dtype)
                part.assign(part.numpy() + value if is_added else value)
                begin += size


def _variables(model: tf_keras.Model) -> list[tuple[str, Any]]:
    return [
        (f"{metric.name}/{number}{list(variable.shape)}", variable)
        for metric in model.metrics
        for number, variable in enumerate(keras3.tf_variables(metric.variables))
        if variable.dtype.is_floating or variable.dtype.is_integer
    ]


def _local(strategy: Any, variable: Any, replica: int) -> Any:
    """Return one local replica's part of a variable."""
    return strategy.experimental_local_results(variable)[replica]


def _rows_of_this_rank(strategy: Any, saved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the saved values for the replicas of this process, float64 ``[local replicas, values]``."""
    local = local_replicas(strategy)
    role = current_role(strategy)
    if len(saved) == role.workers * local:
        return saved[role.rank * local : (role.rank + 1) * local]
    rows = np.zeros((local, saved.shape[1]))
    if role.rank == 0:
        rows[0] = saved.sum(axis=0)
    return rows
