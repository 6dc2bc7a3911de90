"""Put a model of another library into a folder that scores like an exported one."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring.backends.catalog import load_backend
from scoring.backends.linear import FIELDS as LINEAR_FIELDS
from scoring.backends.protocol import Signature, UnsupportedModelError
from scoring.inputs import Column, ColumnInputs, Matrix
from scoring.model_directory import ModelDirectoryError, PackagedDescription

DEFAULT_SIGNATURE = "serving_default"

_LINEAR_FILE = "linear.json"
# By the ending of a file. What `.json` is, its content tells.
_BACKENDS_BY_SUFFIX: Mapping[str, str] = {
    ".keras": "keras",
    ".h5": "keras",
    ".onnx": "onnx",
    ".ubj": "xgboost",
    ".txt": "lightgbm",
}


def package_model(
    source: str | Path | Mapping[str, Any],
    folder: str | Path,
    *,
    columns: Sequence[str | Column] | None = None,
    outputs: Mapping[str, str] | None = None,
    signature: str | None = None,
) -> Path:
    """Write the model in ``source`` into ``folder``, with what it reads of a table and what it gives back.

    The folder goes wherever an exported model goes: to :func:`scoring.batch.score` and all other ways in, and to
    MLflow, as artifacts of a run.

    Args:
        source: A folder of a SavedModel; a file of tf-keras (``.keras``, ``.h5``), ONNX (``.onnx``), XGBoost
            (``.json``, ``.ubj``) or LightGBM (``.txt``); or a linear model, as a mapping or a ``.json`` file of what
            :class:`scoring.backends.linear.LinearBackend` shows.
        folder: Becomes the model's folder.
        columns: The columns that the model reads. A model that takes one array of columns without names needs all of
            them, in its order. Of a model that knows their names, those need to be given that are of another type than
            the model says, or that have null values to be filled or refused: see :class:`Column`.
        outputs: Per column of scores the name of the model's output; by default all outputs under their own names. The
            output of XGBoost, LightGBM and a linear model is ``score``.
        signature: The signature of a SavedModel to call; by default ``serving_default``.

    Returns:
        The folder.

    Raises:
        ModelDirectoryError: The source is no model, ``folder`` holds something, or columns or outputs do not fit.
        UnsupportedModelError: The model cannot be loaded, or takes or gives what no column holds.
        ColumnError: A column is given twice, or its type or fill is none.
        ModuleNotFoundError: The library that computes the model is not installed here.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelDirectoryError(f"{target} exists already; give a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        whole = Path(scratch) / target.name
        whole.mkdir()
        name, file = _copied(source, whole)
        called = (signature or DEFAULT_SIGNATURE) if name == "saved_model" else None
        # The copy, not the source: what is loaded here is what tasks will load.
        found = load_backend(name, whole / file, signature=called, threads=None).signature
        model_outputs = _model_outputs(found, outputs)
        PackagedDescription(
            backend=name,
            file=file,
            inputs=_inputs(found, columns),
            outputs={output: _output_type(found, of) for output, of in model_outputs.items()},
            model_outputs=model_outputs,
            signature=called,
        ).save(whole)
        whole.rename(target)
    return target


def _copied(source: str | Path | Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Copy the model into ``folder``; return its backend and its name there."""
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
    # A file keeps its ending, by which libraries tell formats apart.
    file = f"model{path.suffix.lower()}"
    shutil.copyfile(path, folder / file)
    return name, file


def _backend_of(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".json":
        return "linear" if _is_linear(file) else "xgboost"
    if suffix not in _BACKENDS_BY_SUFFIX:
        raise ModelDirectoryError(
            f"{file} ends in '{suffix}', which is no model known here; give one of "
            f"{sorted([*_BACKENDS_BY_SUFFIX, '.json'])} or the folder of a SavedModel"
        )
    return _BACKENDS_BY_SUFFIX[suffix]


def _is_linear(file: Path) -> bool:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{file} is no JSON: {error}") from error
    return isinstance(document, dict) and not set(document).isdisjoint(LINEAR_FIELDS)


def _inputs(found: Signature, columns: Sequence[str | Column] | None) -> ColumnInputs:
    """Return what the model reads: one column per array, or one array of all columns."""
    given = {column if isinstance(column, str) else column.name: column for column in columns or ()}
    if columns is not None and len(given) < len(columns):
        raise ModelDirectoryError(f"the columns {list(columns)} name one twice; give each once")
    if found.columns is not None:
        (array,) = found.inputs
        types = dict.fromkeys(found.columns, array.element)
        matrix = Matrix(array.name, array.element)
    elif len(found.inputs) == 1 and found.inputs[0].width != 1:
        (array,) = found.inputs
        types = dict.fromkeys(given, array.element)
        matrix = Matrix(array.name, array.element)
        _check_width(array.width, given)
    else:
        types = {array.name: array.column_type for array in found.inputs}
        matrix = None
    unknown = [name for name in given if name not in types]
    if unknown:
        raise ModelDirectoryError(f"the columns {unknown} are no inputs of the model, which has {list(types)}")
    return ColumnInputs(tuple(_column(given.get(name, name), type_) for name, type_ in types.items()), matrix)


def _check_width(width: int | None, given: Mapping[str, str | Column]) -> None:
    """Check the columns of an array that has no names for them."""
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


def _model_outputs(found: Signature, outputs: Mapping[str, str] | None) -> Mapping[str, str]:
    known = [array.name for array in found.outputs]
    chosen = {name: name for name in known} if outputs is None else outputs
    unknown = sorted(set(chosen.values()) - set(known))
    if unknown or not chosen:
        raise ModelDirectoryError(
            f"the outputs {unknown} are none of the model's, which are {known}; name some of them"
        )
    return chosen


def _output_type(found: Signature, name: str) -> str:
    return next(array.column_type for array in found.outputs if array.name == name)
