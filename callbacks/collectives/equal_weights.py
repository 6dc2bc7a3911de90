"""Comparison of the ranks' weights: under a synchronous strategy they are equal bit for bit, or something is broken."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirrorspark.clear_error import ClearError

if TYPE_CHECKING:
    import tf_keras

_COLUMNS = 4096


class WeightsDifferError(ClearError, RuntimeError):
    """Ranks that train together have different weights."""


def check_equal_weights(model: "tf_keras.Model") -> None:
    """Compare the trained weights of all ranks; every rank has to call this, when no local updates are pending.

    Moving averages of batch normalisation, which every rank keeps for itself, are not compared.

    Raises:
        WeightsDifferError: They differ; all ranks raise it.
    """
    # Imported here, because the classification of errors imports this module where TensorFlow may be missing.
    import tensorflow as tf

    from mirrorspark.callbacks.collectives.agreement import gather_over_ranks, local_replicas

    strategy = model.distribute_strategy
    replicas = local_replicas(strategy)
    if strategy.num_replicas_in_sync == replicas:
        return
    weights = model.trainable_variables
    digests = np.array([digest(tf.convert_to_tensor(weight)) for weight in weights], np.float64)
    table = gather_over_ranks(strategy, np.repeat(digests[None], replicas, axis=0))
    if (problem := difference(table[::replicas], [weight.name for weight in weights])) is not None:
        raise WeightsDifferError(problem)


def difference(table: npt.NDArray[np.float64], names: Sequence[str]) -> str | None:
    """Return in words how the digests in ``table``, ``[ranks, weights]``, differ; None if all ranks have the same."""
    ranks, places = np.nonzero(table != table[0])
    if not ranks.size:
        return None
    others = ", ".join(str(rank) for rank in sorted(set(ranks.tolist())))
    return (
        f"{len(set(places.tolist()))} weights, the first of them {names[places[0]]}, differ between rank 0 and rank "
        f"{others}, although all ranks make the same updates: memory of a machine may be faulty, or the machines "
        "compute differently (processors or drivers of different kinds)"
    )


def digest(values: npt.ArrayLike) -> int:
    """Return a 32-bit digest of an array's bytes.

    It is the CRC-32 of the sums over every 4,096th 32-bit word, which takes a tenth of the time of a CRC of all bytes
    and changes with any single word. Only words that change places over multiples of 16 KB leave it the same.
    """
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    end = content.size // (4 * _COLUMNS) * (4 * _COLUMNS)
    sums = np.add.reduce(content[:end].view(np.uint32).reshape(-1, _COLUMNS), axis=0, dtype=np.uint32)
    return zlib.crc32(content[end:].tobytes(), zlib.crc32(sums.tobytes()))
