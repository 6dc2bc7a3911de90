"""Import of coefficients: a table with a row per term, and a table with a row per model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import yaml

from mirrorspark.data_pipelines import any_table, memory_tables
from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.fleet.checks import check_names
from mirrorspark.fleet.columns import (
    FLEET_SCHEMA,
    INTERCEPT,
    MODEL_FIELDS,
    NETWORK_FIELDS,
    OPTIONAL_TERM_FIELDS,
    PACKAGE_FIELDS,
    TERM_FIELDS,
    TREE_FIELDS,
    FleetError,
    array,
    lengths_of,
    lists_from,
    lists_of_nulls,
    some,
)
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.storage import lacking, lakes, read_text

_TERMS = pa.schema([MODEL_FIELDS.field("model"), *TERM_FIELDS])
# A CSV file has no lists: cut-points and columns are separated by spaces there.
_CSV_TYPES = {field.name: field.type for field in [*_TERMS, *MODEL_FIELDS]} | {"cut_points": pa.string()}


def fleet_from_coefficients(
    coefficients: Any,
    models: Any = None,
    *,
    link: str = "identity",
    group: str = "",
    factors: Mapping[str, Sequence[str]] | None = None,
) -> Fleet:
    """Return the fleet of a table of coefficients, with a row per model and term.

    A term is a coefficient times the transformed value of a column::

        model  column       coefficient  clip_low  clip_high  log  category  at_least  below  missing
        A      (Intercept)  -1.5
        A      age          0.02         18        90                                          40
        A      income       0.3                               true                             10.5
        A      state        0.7                                    CA                          0
        A      debt         -0.4                                             0         1000    0

    - The value is clipped to ``clip_low`` and ``clip_high``; ``log`` makes it ``sign(x) * log(1 + |x|)``.
    - With a ``category`` the value is 1 where the column has it, else 0. Whole numbers and booleans are categories,
      too.
    - With ``at_least`` or ``below``, a bin, the value is 1 where ``at_least <= x < below``, else 0.
    - ``missing`` is the value where the column is null, NaN, or infinite without a clip. Without it, the model's
      outputs are null there.

    Only ``model``, ``column`` and ``coefficient`` are needed. The table of models has ``model`` and, as needed,
    ``group``, ``link``, ``intercept``, ``threshold`` (the score from which ``binary`` is 1) and ``cut_points``
    (ascending scores: ``Rank`` is 1 from the last one on, and one more for each that is above the score).

    Args:
        coefficients: A PyArrow table, a pandas or Polars DataFrame, or a file: CSV (cut-points are numbers between
            spaces), Parquet, Arrow, or YAML, which holds the models too, each with a list of ``terms``.
        models: A table or file of the models; by default they are those of the coefficients, in the order of their
            first terms.
        link: Link of models that have none: ``identity``, ``logit`` (logistic regression) or ``log`` (Poisson).
        group: Group of models that have none.
        factors: The levels of each factor of R's ``lm`` and ``glm`` (``model$xlevels``): ``stateCA`` is then the
            category ``CA`` of the column ``state``.

    Raises:
        FleetError: A table lacks a column or has an unknown one, models and coefficients do not match, a term of R is
            an interaction or a function, or a model cannot be computed; the message names it.
        TableError: The argument is not a table.
    """
    if factors is not None:
        coefficients = _without_factors(coefficients, factors)
    return Fleet.of(table_of_coefficients(coefficients, models, link=link, group=group))


def _without_factors(coefficients: Any, factors: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return terms in which the names of R's factors and levels have become columns and categories."""
    if _is_yaml(coefficients):
        raise FleetError(f"{coefficients} names its categories itself; leave factors= out")
    needed = ("model", "column", "coefficient")
    terms = typed_table(read_table(coefficients), _TERMS, "the table of coefficients", needed)
    levels: dict[str, tuple[str, str]] = {}
    for factor, names in factors.items():
        for level in names:
            if (other := levels.setdefault(f"{factor}{level}", (factor, level))) != (factor, level):
                raise FleetError(f"'{factor}{level}' is a level of '{factor}' and of '{other[0]}'; rename one of them")
    columns, categories = terms["column"].to_pylist(), terms["category"].to_pylist()
    for place, name in enumerate(columns):
        if name in levels:
            columns[place], categories[place] = levels[name]
        elif name != INTERCEPT and (":" in str(name) or "(" in str(name)):
            raise FleetError(f"'{name}' is an interaction or a function of columns; add it to the input as a column")
    for name, values in (("column", columns), ("category", categories)):
        field = _TERMS.field(name)
        terms = terms.set_column(_TERMS.get_field_index(name), field, pa.array(values, field.type))
    return terms


def table_of_coefficients(
    coefficients: Any, models: Any = None, *, link: str = "identity", group: str = ""
) -> pa.Table:
    """Return the table of the fleet of :func:`fleet_from_coefficients`, of which not every model may be computable.

    Raises:
        FleetError: As there, but not for a model that cannot be computed.
        TableError: As there.
    """
    if _is_yaml(coefficients):
        if models is not None:
            raise FleetError(f"{coefficients} names its models itself; leave the other table out")
        terms, described = _of_yaml(Path(coefficients))
    else:
        terms = typed_table(
            read_table(coefficients), _TERMS, "the table of coefficients", ("model", "column", "coefficient")
        )
        described = (
            None if models is None else typed_table(read_table(models), MODEL_FIELDS, "the table of models", ("model",))
        )
    if described is None:
        described = typed_table(pa.table({"model": terms["model"].unique()}), MODEL_FIELDS, "", ())
    return _assembled(terms, described, {"link": link, "group": group})


def linear_table(models: pa.Table, lengths: np.ndarray, terms: pa.Table) -> pa.Table:
    """Return the table of a fleet of linear models.

    Args:
        models: One row per model, with all model fields.
        lengths: int64 ``[models]``: the number of terms of each.
        terms: The terms of all models in their order, with all term fields.
    """
    columns = [array(models, field.name) for field in MODEL_FIELDS]
    columns[-1] = lists_from(lengths_of(columns[-1]), columns[-1].flatten())  # no cut-points: an empty list
    columns += [lists_from(lengths, _one_array(terms[field.name])) for field in TERM_FIELDS]
    columns += [
        lists_of_nulls(np.zeros_like(lengths), field.type.value_type) for field in (*NETWORK_FIELDS, *TREE_FIELDS)
    ]
    columns += [pa.nulls(len(lengths), field.type) for field in PACKAGE_FIELDS]
    return pa.Table.from_arrays(columns, schema=FLEET_SCHEMA)


def _assembled(terms: pa.Table, models: pa.Table, defaults: Mapping[str, str]) -> pa.Table:
    names = models["model"]
    check_names(names.to_pylist())
    owners = pc.index_in(terms["model"], value_set=_one_array(names))
    if owners.null_count:
        strangers = terms["model"].filter(owners.is_null()).to_pylist()
        raise FleetError(f"the table of models lacks {some(map(str, strangers))}, which has coefficients; add it there")
    is_intercept = pc.equal(terms["column"], INTERCEPT).fill_null(False)
    of_intercepts = _one_array(owners.filter(is_intercept)).to_numpy(zero_copy_only=False)
    own = pc.fill_null(_one_array(models["intercept"]), 0.0).to_numpy(zero_copy_only=False).copy()
    counts = np.bincount(of_intercepts, minlength=len(own)) + models["intercept"].is_valid().to_numpy()
    if (counts > 1).any():
        twice = names.filter(pa.array(counts > 1)).to_pylist()
        raise FleetError(f"several intercepts are given for {some(twice)}; give one")
    own[of_intercepts] = _one_array(terms["coefficient"].filter(is_intercept)).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(~_one_array(is_intercept).to_numpy(zero_copy_only=False))
    of_terms = _one_array(owners).to_numpy(zero_copy_only=False)[places]
    places = places[np.argsort(of_terms, kind="stable")]
    lengths = np.bincount(of_terms, minlength=len(own)).astype(np.int64)
    empty = lengths + counts == 0
    if empty.any():
        bare = some(names.filter(pa.array(empty)).to_pylist())
        raise FleetError(f"there are no coefficients and no intercept for {bare}; give some, or leave it out")
    for name, value in defaults.items():
        models = models.set_column(models.schema.get_field_index(name), name, pc.fill_null(models[name], value))
    models = models.set_column(models.schema.get_field_index("intercept"), "intercept", pa.array(own))
    return linear_table(models, lengths, terms.take(pa.array(places)))


def _one_array(column: Any) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _is_yaml(given: Any) -> bool:
    return isinstance(given, str | Path) and Path(given).suffix in (".yaml", ".yml")


def read_table(given: Any) -> pa.Table:
    """Return a table in memory, or of a file.

    Raises:
        FleetError: The file cannot be read, or is of no known kind.
        LakeTableError: It is, or lies in, a Delta, Iceberg or Hudi table.
        TableError: The argument is not a table.
    """
    if not isinstance(given, str | Path):
        return memory_tables.in_arrow(given)
    file = Path(given).expanduser()
    lakes.refuse_lake_read(file)
    try:
        if any_table.is_csv(file):
            # NA may be a category. Empty texts are made null later.
            return any_table.csv_in_memory(file, _CSV_TYPES)
        if file.suffix == ".parquet" or file.is_dir():
            return memory_tables.in_arrow(pq.read_table(file))
        if file.suffix in (".arrow", ".feather"):
            return memory_tables.in_arrow(pyarrow.feather.read_table(file))
    except pa.ArrowInvalid as error:
        raise FleetError(f"{file} cannot be read: {error}") from error
    raise FleetError(f"{file} is not a file of a known kind; give .csv, .parquet, .arrow, .yaml, or a table in memory")


def typed_table(table: pa.Table, schema: pa.Schema, what: str, needed: Sequence[str]) -> pa.Table:
    """Return the columns of ``schema``, NaN and empty texts as null; columns that the table lacks are null.

    Args:
        table: The table.
        schema: The columns that it may have.
        what: Name of the table in a message.
        needed: The columns that it must have.

    Raises:
        FleetError: A column is missing or unknown, or has another type.
    """
    if missing := [name for name in needed if name not in table.column_names]:
        raise FleetError(lacking(what, missing, table.column_names))
    if unknown := [name for name in table.column_names if name not in schema.names]:
        hint = raw_columns.meant(unknown[0], schema.names)
        raise FleetError(f"{what} has the column '{unknown[0]}', which no fleet has{hint}; it may have {schema.names}")
    columns = [
        _one_array(_cast(table[field.name], field, what))
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field, what: str) -> pa.ChunkedArray:
    try:
        if pa.types.is_list(field.type) and pa.types.is_string(column.type):
            return pa.chunked_array([[None if not text else text.split() for text in column.to_pylist()]]).cast(
                field.type
            )
        if pa.types.is_string(field.type) and pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        column = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FleetError(f"column '{field.name}' of {what} cannot become {field.type}: {error}") from error
    if field.name in ("category", "group", "link", "target"):
        return pc.if_else(pc.equal(column, ""), None, column)
    if field.name == "log":
        return pc.if_else(column, column, None)
    if pa.types.is_floating(field.type) and field.name in (*OPTIONAL_TERM_FIELDS, "threshold"):
        return pc.if_else(pc.is_nan(column), None, column)
    return column


def _of_yaml(file: Path) -> tuple[pa.Table, pa.Table]:
    """Return the terms and the models of a YAML file."""
    try:
        document = yaml.load(read_text(file), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe
    except yaml.YAMLError as error:
        raise FleetError(f"{file} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise FleetError(error.reason) from error
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise FleetError(f"{file} must hold a list of 'models', each with a name ('model') and 'terms'")
    terms = [{"model": str(model.get("model", "")), **term} for model in models for term in _terms_of(model, file)]
    described = [{name: value for name, value in model.items() if name != "terms"} for model in models]
    return (
        typed_table(_of_rows(terms, _TERMS, file), _TERMS, str(file), ("model",) if terms else ()),
        typed_table(_of_rows(described, MODEL_FIELDS, file), MODEL_FIELDS, str(file), ("model",)),
    )


def _terms_of(model: Mapping[str, Any], file: Path) -> list[Mapping[str, Any]]:
    terms = model.get("terms", [])
    if not isinstance(terms, list) or not all(isinstance(term, dict) for term in terms):
        raise FleetError(
            f"'terms' of model '{model.get('model', '')}' in {file} must be a list, each with a 'column' and a "
            f"'coefficient'; leave it out for a model without terms"
        )
    return terms


def _of_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, file: Path) -> pa.Table:
    """Return rows as a table, columns that are in no row left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if unknown := [name for name in names if name not in schema.names]:
        raise FleetError(
            f"{file} has '{unknown[0]}'{raw_columns.meant(str(unknown[0]), schema.names)}; it may have {schema.names}"
        )
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return pa.table(
            {
                name: pa.array(map(_as_text, values) if pa.types.is_string(field.type) else values, field.type)
                for name, values in columns.items()
                for field in [schema.field(name)]
            }
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise FleetError(f"{file} has a value of another type than expected: {error}") from error


def _as_text(value: Any) -> str | None:
    """Return a category or name that YAML took for a number or boolean as Arrow writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)
