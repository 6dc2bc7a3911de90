"""The models that a user declares: a table with a row per model, complete and checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.scoring.fleet.checks import NamedModels, check_names
from mirrorspark.scoring.fleet.coefficients import read_table, typed_table
from mirrorspark.scoring.fleet.columns import LINKS, FleetError, array, numbers_of

DECLARED = pa.schema(
    [
        ("model", pa.string()),
        ("target", pa.string()),
        ("link", pa.string()),
        ("penalty", pa.float64()),
        ("positive_weight", pa.float64()),
        ("columns", pa.list_(pa.string())),
        ("group", pa.string()),
        ("threshold", pa.float64()),
        ("cut_points", pa.list_(pa.float64())),
    ]
)


def declared_models(models: Any, *, link: str, penalty: float) -> pa.Table:
    """Return the models as a table of :data:`DECLARED`, in which only columns, thresholds and cut-points may be null.

    Args:
        models: The names of target columns, each of which becomes a model, or a table or file of models.
        link: Link of models that have none.
        penalty: Penalty of models that have none.

    Raises:
        FleetError: There is no model, two have the same name, or a value is out of range.
        TableError: The argument is no table.
    """
    if isinstance(models, str):
        models = [models]
    if isinstance(models, Sequence):
        if odd := [name for name in models if not isinstance(name, str)]:
            raise FleetError(f"the models {odd[:3]} are no names of columns; give names, or a table of models")
        models = pa.table({"model": pa.array(models, pa.string())})
    table = typed_table(read_table(models), DECLARED, "the table of models", ("model",))
    if not table.num_rows:
        raise FleetError("there is no model to train; name at least one target column")
    names = table["model"].to_pylist()
    check_names(names)
    defaults = {"target": table["model"], "link": link, "penalty": penalty, "positive_weight": 1.0, "group": ""}
    for name, default in defaults.items():
        table = table.set_column(table.schema.get_field_index(name), name, pc.coalesce(table[name], default))
    _check(table.cast(DECLARED), NamedModels(names))
    return table.cast(DECLARED)


def check_columns(declared: pa.Table, inputs: Sequence[str]) -> None:
    """Check that models read columns that there are, and none its own target.

    Raises:
        FleetError: One does not.
    """
    models = NamedModels(declared["model"].to_pylist())
    targets, columns = declared["target"].to_pylist(), declared["columns"].to_pylist()
    known = set(inputs)
    strangers = [sorted(set(own or ()) - known) for own in columns]
    unknown = next((found[0] for found in strangers if found), "")
    models.refuse(np.array([bool(found) for found in strangers]), f"column '{unknown}' is not among columns", "name it")
    empty = [own is not None and not own for own in columns]
    models.refuse(np.array(empty), "an empty list of columns", "name some, or leave it out for all of them")
    own_target = [target in (known if own is None else own) for target, own in zip(targets, columns, strict=True)]
    models.refuse(np.array(own_target), "a target among the columns", "a model must not see what it is to learn")


def _check(table: pa.Table, models: NamedModels) -> None:
    links = table["link"].to_pylist()
    is_unknown = np.array([link not in LINKS for link in links])
    unknown = next((link for link in links if link not in LINKS), "")
    aliases = "; logistic regression has the link logit, Poisson regression the link log"
    models.refuse(is_unknown, f"unknown link '{unknown}'", f"use one of {', '.join(LINKS)}{aliases}")
    penalties, weights = (numbers_of(array(table, name)) for name in ("penalty", "positive_weight"))
    models.refuse(~((penalties >= 0) & np.isfinite(penalties)), "a penalty that is no number from 0 on", "change it")
    models.refuse(~((weights > 0) & np.isfinite(weights)), "a positive_weight that is no number above 0", "change it")
    is_weighted = (weights != 1) & np.array([link != "logit" for link in links])
    models.refuse(is_weighted, "a positive_weight without the link logit", "leave it out: only 0 and 1 are classes")
