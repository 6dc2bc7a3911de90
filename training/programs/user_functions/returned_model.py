"""A model that a user's training function returns: saved by its ranks, and packaged for scoring by rank 0."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.checkpoints import training_state
from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.models import keras3
from mirrorspark.scoring import package_model
from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.input import Column
from mirrorspark.scoring.model.folder import ModelDirectoryError
from mirrorspark.training.programs.user_functions.plan import ReturnValueError
from mirrorspark.training.programs.user_functions.returned_index import index_of, query_columns, save_index

_SAVED, _PACKAGED = "saved", "packaged"


def save_model(model: Any, folder: Path, rank: int, columns: Sequence[str | Column] | None = None) -> Path | None:
    """Save a model as SavedModel below ``folder`` on rank 0, and return where it is; None on the other ranks.

    Every rank that has the model calls this, within the scope that the model was built in.

    Args:
        model: A model of tf-keras or Keras 3; of one with an index of TensorFlow Recommenders, or a layer for retrieval
            of Keras Recommenders, that is saved.
        folder: A folder of this attempt's own, so that a rank that was cut off changes no later attempt's model.
        rank: This rank.
        columns: The columns that it reads, if it does not name them.

    Raises:
        ReturnValueError: It cannot be saved: Keras cannot, or the disk is full.
    """
    target = folder / _SAVED
    with contextlib.ExitStack() as stack:
        if rank:
            # Values aggregated at save time (moving averages) need all ranks. Only rank 0's copy stays.
            target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorspark-model-"))) / _SAVED
        stack.enter_context(model.distribute_strategy.scope())
        try:
            if keras3.is_keras3(model):
                training_state.settle(model)
            if (index := index_of(model)) is not None:
                save_index(index, columns, target)
            elif keras3.is_keras3(model):
                model.export(str(target), verbose=False)
            else:
                model.save(str(target), save_format="tf", include_optimizer=False)
        except (OSError, TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
            raise ReturnValueError(f"the model that it returned cannot be saved ({error})") from error
    return None if rank else target


def package_saved(model: Any, saved: Path, columns: Sequence[str | Column] | None) -> Path:
    """Describe the model's columns and outputs, so that it is scored like any other; return the packaged folder.

    Raises:
        ReturnValueError: The model cannot be scored as it is.
    """
    try:
        index = index_of(model)
        described = columns if index is None else query_columns(index, columns)
        return package_model(saved, saved.with_name(_PACKAGED), columns=described)
    except (
        ModelDirectoryError,
        protocol.UnsupportedModelError,
        raw_columns.ColumnError,
        OSError,
        ImportError,
        tf.errors.OpError,
    ) as error:
        raise ReturnValueError(
            f"the model that it returned cannot be packaged ({error}); it is in {saved}: give model_columns=, or "
            f"package it with ms.package_model"
        ) from error


def is_model(value: Any) -> bool:
    """Return True for a model of tf-keras or Keras 3."""
    return isinstance(value, tf_keras.Model) or (keras3.is_keras3(value) and hasattr(value, "export"))
