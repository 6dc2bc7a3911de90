"""Packaging of models of other libraries into folders that score like exported models."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirrorspark.scoring.backends import DEFAULT_SIGNATURE, compared_libraries, is_of_keras3, load_backend, protocol
from mirrorspark.scoring.backends import FIELDS as LINEAR_FIELDS
from mirrorspark.scoring.input import BUILT_IN, Column, ColumnInputs, Matrix, column_types, decoders
from mirrorspark.scoring.model import POSTPROCESS, PREPROCESS, Hooks, with_hooks
from mirrorspark.scoring.model.folder import ModelDirectoryError, PackagedDescription, copied_hooks, new_model_folder
from mirrorspark.scoring.model.loading import versions_here
from mirrorspark.scoring.model.stored import remember_consent

_LINEAR_FILE = "linear.json"
# Backend by file suffix. The content of a `.json` file decides its backend.
_BACKENDS_BY_SUFFIX: Mapping[str, str] = {
    ".keras": "keras",
    ".h5": "keras",
    ".onnx": "onnx",
    ".ubj": "xgboost",
    ".txt": "lightgbm",
}

_NUMBERS = ("boolean", "int", "bigint", "float", "double")
# Column types that can be cast to the type that the model takes.
_CAST_TO: Mapping[str, tuple[str, ...]] = {
    "boolean": ("boolean",),
    "int": ("boolean", "int"),
    "bigint": ("boolean", "int", "bigint"),
    "float": _NUMBERS,
    "double": _NUMBERS,
    "string": ("string",),
}


def package_model(
    source: str | Path | Mapping[str, Any],
    folder: str | Path,
    *,
    columns: Sequence[str | Column] | None = None,
    outputs: Mapping[str, str] | None = None,
    signature: str | None = None,
    hooks: str | Path | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    trust: bool = False,
) -> Path:
    """Copy the model in ``source`` into ``folder`` and describe its input columns and its outputs there.

    The folder can be used like an exported model: :func:`scoring.score` and all other entry points take it, and
    MLflow stores it as artifacts of a run.

    Args:
        source: A folder of a SavedModel; a file of Keras (``.keras``, ``.h5``), ONNX (``.onnx``), XGBoost
            (``.json``, ``.ubj``) or LightGBM (``.txt``); or a linear model, as a mapping or a ``.json`` file in the
            format of :class:`scoring.backends.linear.LinearBackend`.
        folder: The new folder.
        columns: The columns that the model reads: all, in its order, if it takes one array without column names, else
            those that have another type, need a rule for nulls, or are decoded: see :class:`Column`. A column that is
            decoded to the only array may have any name.
        outputs: Name of the model's output by column of scores; by default all outputs under their own names. The
            output of XGBoost, LightGBM and a linear model is ``score``.
        signature: The signature of a SavedModel to call; by default ``serving_default``.
        hooks: A Python file, which is copied into the folder and run wherever the model scores. A column can name a
            function of it as ``decode``, which maps bytes to an array. Its function ``preprocess`` maps the columns of
            a call to the model's inputs, and ``postprocess`` maps the model's outputs to columns of scores; both take
            and return a dict of arrays, rows first. With ``preprocess``, ``columns`` are its inputs.
        labels: Names of the elements, in the model's order, by column of several scores; the names of classes, for
            example. The forms ``Labelled``, ``Wide``, ``Long``, ``TopK`` and ``AtLeast`` need them.
        trust: Whether Python code in a file of Keras (``Lambda`` layers, classes of other modules, calls of other
            functions than operations of graphs) may run here, and whether the graphs of a SavedModel or a file of
            Keras may read and write files. Another process that scores it needs ``trust``, too.

    Returns:
        The folder.

    Raises:
        ModelDirectoryError: The source is not a model, ``folder`` is not empty, or columns, outputs, hooks or labels do
            not fit.
        UnsupportedModelError: The model cannot be loaded, or has an input or output that no column can hold.
        HookError: The hooks cannot be run, or ``postprocess`` fails for a row of zeros.
        ColumnError: A column is given twice, or has an invalid type or fill.
        ModuleNotFoundError: A library that the model or its hooks need is not installed here.
    """
    target = Path(folder)
    with new_model_folder(target) as whole:
        name, file = _copied(source, whole)
        called = (signature or DEFAULT_SIGNATURE) if name == "saved_model" else None
        trusted = trust and name in ("keras", "keras3", "saved_model")
        backend = _backend_of_the_copy(name, whole, file, called, source, trusted=trusted)
        functions = copied_hooks(hooks, whole) if hooks is not None else None
        hook_names = _hook_names(functions, columns or ())
        inputs = _inputs(backend.signature, columns, is_preprocessed=PREPROCESS in hook_names)
        decoders(inputs, backend.signature, name, functions)  # raises for columns that cannot be decoded
        found = with_hooks(backend, functions, hook_names).signature
        model_outputs = _model_outputs(found, outputs)
        description = PackagedDescription(
            backend=name,
            file=file,
            inputs=inputs,
            outputs={output: _output_type(found, of) for output, of in model_outputs.items()},
            model_outputs=model_outputs,
            signature=called,
            hooks=hook_names,
            labels={output: tuple(names) for output, names in (labels or {}).items()},
            versions=versions_here(compared_libraries(name), has_hooks=functions is not None),
            # Every other SavedModel scores without consent.
            trusted=trusted and getattr(backend, "needs_trust", True),
        )
        _check_widths(description, found)
        description.save(whole)
    remember_consent(target, description)
    return target


def _backend_of_the_copy(
    name: str, whole: Path, file: str, signature: str | None, source: str | Path | Mapping[str, Any], *, trusted: bool
) -> protocol.Backend:
    """Load the copy, not the source, because tasks will load the copy."""
    try:
        return load_backend(name, whole / file, signature=signature, trusted=trusted)
    except protocol.UnsupportedModelError as error:
        # The message names the source, because the copy is removed.
        given = "the linear model" if isinstance(source, Mapping) else str(source)
        message = str(error).replace(str(whole / file), given).replace(f"{whole}/", "")
        raise protocol.UnsupportedModelError(message) from error.__cause__


def _copied(source: str | Path | Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Copy the model into ``folder``; return its backend and its file name there."""
    if isinstance(source, Mapping):
        (folder / _LINEAR_FILE).write_text(json.dumps(source, indent=2), encoding="utf-8")
        return "linear", _LINEAR_FILE
    path = Path(source)
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ModelDirectoryError(
                f"{path} holds no SavedModel (saved_model.pb); give its folder, or a model's file (an MLflow model is "
                f"scored as it is)"
            )
        shutil.copytree(path, folder / "saved_model")
        return "saved_model", "saved_model"
    if not path.is_file():
        raise ModelDirectoryError(f"there is no model at {path}: neither a file nor a folder")
    name = _backend_of(path)
    # The file keeps its suffix, by which libraries detect the format.
    file = f"model{path.suffix.lower()}"
    shutil.copyfile(path, folder / file)
    return name, file


def _backend_of(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".json":
        return "linear" if _is_linear(file) else "xgboost"
    if suffix not in _BACKENDS_BY_SUFFIX:
        raise ModelDirectoryError(
            f"{file} ends in '{suffix}', which is not a known format of models; give one of "
            f"{sorted([*_BACKENDS_BY_SUFFIX, '.json'])} or the folder of a SavedModel"
        )
    name = _BACKENDS_BY_SUFFIX[suffix]
    return "keras3" if name == "keras" and is_of_keras3(file) else name


def _is_linear(file: Path) -> bool:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise protocol.UnsupportedModelError(f"{file} is not valid JSON: {error}") from error
    return isinstance(document, dict) and not set(document).isdisjoint(LINEAR_FIELDS)


def _hook_names(hooks: Hooks | None, columns: Sequence[str | Column]) -> tuple[str, ...]:
    """Return the names of the hooks that scoring calls."""
    decode = [column.decode for column in columns if isinstance(column, Column) and column.decode is not None]
    names = [name for name in dict.fromkeys(decode) if name not in BUILT_IN]
    if hooks is None:
        return tuple(names)
    names += [name for name in (PREPROCESS, POSTPROCESS) if hooks.has(name)]
    if not names:
        raise ModelDirectoryError(
            f"the file of hooks has neither {PREPROCESS} nor {POSTPROCESS}, and no column is decoded by a function of "
            f"it; define one, name one (Column(..., 'binary', decode=...)), or leave the file out"
        )
    return tuple(names)


def _inputs(
    found: protocol.Signature, columns: Sequence[str | Column] | None, *, is_preprocessed: bool
) -> ColumnInputs:
    """Return the inputs of the model: one column per array, or one array of all columns."""
    given = {column if isinstance(column, str) else column.name: column for column in columns or ()}
    if columns is not None and len(given) < len(columns):
        raise ModelDirectoryError(f"the columns {list(columns)} name one twice; give each once")
    if is_preprocessed:
        return _for_preprocess(given)
    only = found.inputs[0] if len(found.inputs) == 1 else None
    if only is not None and any(isinstance(column, Column) and column.decode for column in given.values()):
        return _decoded_to(only, given)
    if only is not None and (found.columns is not None or (len(only.shape) == 2 and only.width != 1)):
        return _side_by_side(only, found.columns, given)
    _check_known(given, [array.name for array in found.inputs])
    return ColumnInputs(tuple(_own_column(array, given.get(array.name), found) for array in found.inputs))


def _for_preprocess(given: Mapping[str, str | Column]) -> ColumnInputs:
    typed = tuple(column for column in given.values() if isinstance(column, Column))
    if len(typed) < len(given) or not given:
        raise ModelDirectoryError(
            f"{PREPROCESS} makes the model's inputs from columns of unknown type; give columns=[...], each "
            f"with its type: Column('age', 'double')"
        )
    return ColumnInputs(typed)


def _decoded_to(array: protocol.ArrayType, given: Mapping[str, str | Column]) -> ColumnInputs:
    """Return the one column that is decoded to the model's only array."""
    columns = tuple(column for column in given.values() if isinstance(column, Column))
    if len(given) > 1:
        raise ModelDirectoryError(
            f"the model takes one array, all of which a column that is decoded has to be, but columns names "
            f"{list(given)}; give that one, or put them together in {PREPROCESS}"
        )
    return ColumnInputs(columns, Matrix(array.name, array.element or ""))


def _side_by_side(
    array: protocol.ArrayType, names: Sequence[str] | None, given: Mapping[str, str | Column]
) -> ColumnInputs:
    """Return the columns that make up the model's only array: the ones that the model names, or all given ones."""
    element = _element(array)
    if names is None:
        _check_width(array.width, given)
    else:
        _check_known(given, names)
    columns = tuple(_column(given.get(name, name), element) for name in names or given)
    for column in columns:
        _check_cast(column, element, _CAST_TO[element])
    return ColumnInputs(columns, Matrix(array.name, element))


def _own_column(array: protocol.ArrayType, given: str | Column | None, found: protocol.Signature) -> Column:
    """Return the column of one array."""
    if isinstance(given, Column) and given.decode is not None:
        return given
    column = _column(given or array.name, array.column_type)
    element = _element(array)
    of_bytes = ("binary",) if element == "string" and found.texts_are_bytes else ()
    _check_cast(column, array.column_type, _CAST_TO[element] + of_bytes)
    fits = len(array.shape) == 2 if column.is_array else array.width in (1, None)
    if not fits:
        raise ModelDirectoryError(
            f"column '{column.name}' is {column.type}, and the model takes {array.column_type}; give it as that"
        )
    return column


def _element(array: protocol.ArrayType) -> str:
    """Return Spark's name for the element type of an array."""
    return column_types.element_name(array.column_type)


def _check_known(given: Iterable[str], known: Sequence[str]) -> None:
    names = set(known)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ModelDirectoryError(f"the columns {unknown} are not inputs of the model, which has {list(known)}")


def _check_cast(column: Column, wanted: str, castable: Sequence[str]) -> None:
    """Check that the cast to the model's type changes no value beyond the precision of numbers."""
    if column.element not in castable:
        raise ModelDirectoryError(
            f"column '{column.name}' is {column.type}, and the model takes {wanted}, to which {list(castable)} can be "
            f"cast; give it as one of them"
        )


def _check_width(width: int | None, given: Mapping[str, str | Column]) -> None:
    """Check the number of columns for an array without column names."""
    values = f"{width} values" if width is not None else "values"
    if not given:
        raise ModelDirectoryError(
            f"the model takes one array of {values} per row and has no names for them; give columns=[...], all of them "
            f"in its order"
        )
    are_single = not any(isinstance(column, Column) and column.is_array for column in given.values())
    if width is not None and are_single and len(given) != width:
        raise ModelDirectoryError(
            f"the model takes {values} per row, but columns names {len(given)}: {list(given)}; give all of them in its "
            f"order"
        )


def _column(given: str | Column, type_: str) -> Column:
    return given if isinstance(given, Column) else Column(given, type_)


def _model_outputs(found: protocol.Signature, outputs: Mapping[str, str] | None) -> Mapping[str, str]:
    known = [array.name for array in found.outputs]
    chosen = {name: name for name in known} if outputs is None else outputs
    unknown = sorted(set(chosen.values()) - set(known))
    if unknown or not chosen:
        raise ModelDirectoryError(
            f"the outputs {unknown} are none of the model's, which are {known}; name some of them"
        )
    return chosen


def _output_type(found: protocol.Signature, name: str) -> str:
    return next(array.column_type for array in found.outputs if array.name == name)


def _check_widths(description: PackagedDescription, found: protocol.Signature) -> None:
    """Check that each output has as many labels as elements."""
    widths = {array.name: array.width for array in found.outputs}
    for output, names in description.labels.items():
        width = widths[description.model_outputs[output]]
        if width != len(names):
            elements = "no fixed number of" if width is None else width
            raise ModelDirectoryError(
                f"output '{output}' has {elements} elements per row, and labels names {len(names)}; labels need a "
                f"fixed number of elements, and one name for each, in the model's order"
            )
