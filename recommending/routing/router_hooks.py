"""The hooks of a router: the user's functions on the rows before it decides, and on the answers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.models.index import CANDIDATES, SCORES
from mirrorspark.recommending.routing.decision import check_columns
from mirrorspark.recommending.routing.router import Router
from mirrorspark.scoring.model import POSTPROCESS, PREPROCESS, HookError, Hooks


def preprocessed(hooks: Hooks, router: Router, rows: pa.RecordBatch, added: Sequence[str] = ()) -> pa.RecordBatch:
    """Return the rows that the hook ``preprocess`` makes of ``rows``.

    Raises:
        HookError: It fails, or does not return as many rows with the columns ``added`` and those that decide.
    """
    with hooks.failures(PREPROCESS):
        made = hooks.function(PREPROCESS)(rows)
    if not isinstance(made, pa.RecordBatch) or made.num_rows != rows.num_rows:
        what = f"{made.num_rows} rows" if isinstance(made, pa.RecordBatch) else type(made).__name__
        raise HookError(
            f"{PREPROCESS} of {hooks.file.name} gives {what} for {rows.num_rows} rows; have it return a "
            f"pyarrow.RecordBatch with as many"
        )
    if missing := [name for name in added if name not in made.schema.names]:
        raise HookError(
            f"{PREPROCESS} of {hooks.file.name} gives the columns {made.schema.names}, and makes of "
            f"the router has {missing}; have it add them"
        )
    try:
        check_columns(router, made.schema)
    except raw_columns.ColumnError as error:
        raise HookError(f"the output of {PREPROCESS} of {hooks.file.name} cannot be routed: {error}") from error
    return made


def postprocessed(hooks: Hooks, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of the hook ``postprocess``, by their names and types.

    Raises:
        HookError: It fails, or returns other names, types or numbers of rows.
    """
    made = hooks.call(POSTPROCESS, outputs)
    if set(made) != set(outputs):
        raise HookError(
            f"{POSTPROCESS} of {hooks.file.name} gives {sorted(made)}, and the router has {sorted(outputs)}; have it "
            f"return those"
        )
    for name, values in made.items():
        before = outputs[name]
        if values.ndim != before.ndim or len(values) != len(before):
            raise HookError(
                f"{POSTPROCESS} of {hooks.file.name} gives '{name}' of shape {list(values.shape)}, and got "
                f"{list(before.shape)}; have it return a value or a list for each row, as it got them"
            )
        if not np.can_cast(values.dtype, before.dtype, "same_kind"):
            raise HookError(f"{POSTPROCESS} of {hooks.file.name} gives '{name}' of {values.dtype}, not {before.dtype}")
    if CANDIDATES in made and made[CANDIDATES].shape != made[SCORES].shape:
        raise HookError(
            f"{POSTPROCESS} of {hooks.file.name} gives '{CANDIDATES}' of shape {list(made[CANDIDATES].shape)}, and "
            f"'{SCORES}' of {list(made[SCORES].shape)}; have it cut both alike"
        )
    return {name: made[name].astype(outputs[name].dtype, copy=False) for name in outputs}
