"""The graph of users and candidates that a model propagates its embeddings over: a file from the driver to all workers.

The driver reads the training rows once, and every worker gets the same pairs in the same order.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrorspark.clear_error import ClearError
from mirrorspark.models import catalog
from mirrorspark.storage import atomic_file
from mirrorspark.training.configuration import ConfigError, TrainingConfig

Pairs = npt.NDArray[np.int32]


class DamagedGraphError(ClearError, OSError):
    """A file of pairs whose content is not that of its name."""


def is_needed(config: TrainingConfig) -> bool:
    """Return whether the model of a training has a graph."""
    return _layers(config) > 0


def check(config: TrainingConfig) -> None:
    """Check that a graph goes with the configuration.

    Raises:
        ConfigError: The workers would not have equal embeddings after every step.
    """
    layers = _layers(config)
    if not layers:
        return
    found = {"strategy": config.strategy_name, "accumulate": config.accumulate, "local_steps": config.local_steps}
    needed = {"strategy": "ring", "accumulate": 1, "local_steps": 1}
    for name, value in found.items():
        if value != needed[name]:
            raise ConfigError(
                f"model.graph_layers {layers} propagates the embeddings after every step of all workers, and {name} is "
                f"{value!r}; set {name} to {needed[name]!r}, or graph_layers to 0"
            )


def _layers(config: TrainingConfig) -> int:
    """Return the number of propagations over the graph; 0 for a model without one."""
    settings = catalog.settings(config.model["name"], config.model_options)
    layers: int = getattr(settings, "graph_layers", 0)
    return layers


def write(pairs: Pairs, folder: Path) -> Path:
    """Write pairs of ids, int32 ``[2, pairs]``, into a file of ``folder`` with their digest in its name; return it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"graph-{_digest(pairs)}.npy"
    with atomic_file.replaced(path) as file:
        np.save(file, pairs)
    return path


def read(path: Path) -> Pairs:
    """Return the pairs that :func:`write` wrote.

    Raises:
        DamagedGraphError: The content has another digest.
        OSError: The file cannot be read here.
    """
    try:
        pairs: Pairs = np.load(path)
    except ValueError as error:
        raise DamagedGraphError(_damaged(path)) from error
    if path.stem != f"graph-{_digest(pairs)}":
        raise DamagedGraphError(_damaged(path))
    return pairs


def connect(model: Any, path: Path) -> None:
    """Give ``model`` the graph of a file of :func:`write`."""
    users, candidates = read(path)
    model.graph.connect(users, candidates)


def _digest(pairs: Pairs) -> str:
    return hashlib.sha256(np.ascontiguousarray(pairs).data).hexdigest()[:16]


def _damaged(path: Path) -> str:
    return f"the graph {path} is damaged; delete it, and the run writes it anew"
