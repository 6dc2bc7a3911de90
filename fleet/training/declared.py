"""The models that a user declares: a table with a row per model, complete and checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.fleet.checks import NamedModels, check_names, check_results
from mirrorspark.fleet.coefficients import read_table, typed_table
from mirrorspark.fleet.columns import MODEL_FIELDS, FleetError, array, numbers_of

DECLARED = pa.schema(
    [
        *(field for field in MODEL_FIELDS if field.name != "intercept"),  # that is learnt
        ("target", pa.string()),
        ("penalty", pa.float64()),
        ("columns", pa.list_(pa.string())),
    ]
)


def declared_models(models: Any, *, link: str, penalty: float) -> pa.Table:
    """Return the models as a table of :data:`DECLARED`, in which only columns, thresholds and cut-points may be null.

    Args:
        models: A list of target columns, each of which becomes a model, or a table or file of models.
        link: Link of models that have none.
        penalty: Penalty of models that have none.

    Raises:
        FleetError: There is no model, two have the same name, or a value is out of range.
        TableError: The argument is not a table.
    """
    if isinstance(models, Sequence) and not isinstance(models, str):
        if odd := [name for name in models if not isinstance(name, str)]:
            raise FleetError(f"the models {odd[:3]} are not names of columns; give names, or a table of models")
        models = pa.table({"model": pa.array(models, pa.string())})
    table = typed_table(read_table(models), DECLARED, "the table of models", ("model",))
    if not table.num_rows:
        raise FleetError("there is no model to train; name at least one target column")
    names = NamedModels(table["model"].to_pylist())
    check_names(names.names)
    defaults = {"target": table["model"], "link": link, "penalty": float(penalty), "group": ""}
    for name, default in defaults.items():
        table = table.set_column(table.schema.get_field_index(name), name, pc.coalesce(table[name], default))
    check_results(table.append_column("intercept", pa.array(np.zeros(table.num_rows))), names)
    penalties = numbers_of(array(table, "penalty"))
    is_wrong = ~((penalties >= 0) & np.isfinite(penalties))
    names.refuse(is_wrong, "a penalty that is not a finite number of 0 or more", "change it")
    return table


def check_columns(declared: pa.Table, inputs: Sequence[str]) -> None:
    """Check that models read columns of the inputs, and none its own target.

    Raises:
        FleetError: One does not.
    """
    models = NamedModels(declared["model"].to_pylist())
    targets, columns = declared["target"].to_pylist(), declared["columns"].to_pylist()
    known = set(inputs)
    unknown = [[name for name in own or () if name not in known] for own in columns]
    first = next((names[0] for names in unknown if names), "")
    models.refuse(np.array(list(map(bool, unknown))), f"column '{first}' is not among columns=", "name it there, too")
    is_empty = np.array([own == [] for own in columns])
    models.refuse(is_empty, "an empty list of columns", "name some, or leave it out for all of them")
    reads_target = np.array(
        [target in (known if own is None else own) for target, own in zip(targets, columns, strict=True)]
    )
    models.refuse(reads_target, "a target among the columns", "a model must not see its own target")
