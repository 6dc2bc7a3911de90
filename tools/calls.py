"""Print the modules of ours that a call enters on the driver: `python tools/calls.py score_files` in the repository.

A module is entered when one of its functions is called in the main thread while the call lasts: methods count, and so
does building one of its dataclasses. Importing it does not, nor what runs in Spark's Python workers or in other
threads. The call is the first of its session and has a few rows: it scores six with a small model of the tests, or
converts a table of four columns, or (`run`) is the whole main job on that table with one worker.

Of the main job the tool also shows the way of its configuration: the modules that get it, as an argument or within one.
A climb on that way is a module that lies in a higher layer than the module before it.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = (str(REPOSITORY), str(REPOSITORY / "src"))

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OURS = "mirrorspark."

LAYERS = (
    *("storage", "data_pipelines", "evaluation", "models", "callbacks", "scoring", "training"),
    *("fleet", "recommending", "serving", "lifecycle"),
)
"""The folders of the package, each importing only those before it."""


def main() -> None:
    """Trace the call that the command line names, and print the modules in the order in which they are entered."""
    parser = argparse.ArgumentParser(description="Print the modules of ours that a call enters on the driver.")
    parser.add_argument("call", choices=sorted(CALLS))
    parser.add_argument("--functions", action="store_true", help="print the functions too")
    options = parser.parse_args()
    sys.path[:0] = SOURCES
    with tempfile.TemporaryDirectory() as folder:
        entered = traced(CALLS[options.call](Path(folder)), way := [])
    for module, functions in entered.items():
        print(f"{functions.total():7,} calls  {module.removeprefix(OURS)}")
        if options.functions:
            for function, calls in functions.items():
                print(f"{calls:20,}  {function}")
    folders = {module.rpartition(".")[0] for module in entered}
    print(f"{options.call} enters {len(entered)} modules in {len(folders)} folders")
    if way:
        print("way of the configuration:")
        print(
            "\n".join(
                f"  {'climbs to ' if is_climb else ''}{module}"
                for module, is_climb in zip(way, climbs(way), strict=True)
            )
        )
        print(f"its configuration enters {len(way)} modules with {sum(climbs(way))} climbs to a higher layer")


def climbs(way: Sequence[str]) -> list[bool]:
    """Return for each module of ``way`` whether it lies in a higher layer than the one before it."""
    heights = [LAYERS.index(module.split(".")[0]) if module.split(".")[0] in LAYERS else -1 for module in way]
    return [False, *(after > before >= 0 for before, after in pairwise(heights))]


def traced(call: Callable[[], object], way: list[str] | None = None) -> Mapping[str, "Counter[str]"]:
    """Return the calls of each function by the module that has it, in the order in which the modules are entered.

    Args:
        call: The call.
        way: Gets the modules that the configuration of a training is handed to, in the order of their first entry.
    """
    entered: dict[str, Counter[str]] = {}
    imports = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal imports
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if function == "<module>":
            imports += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not imports and module.startswith(OURS):
            entered.setdefault(module, Counter())[function] += 1
            name = module.removeprefix(OURS)
            if way is not None and name not in way and _gets_configuration(frame):
                way.append(name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def _gets_configuration(frame: FrameType) -> bool:
    """Return True if an argument of the function is the configuration of a training, or an object that holds one."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = [frame.f_locals[name] for name in names if name in frame.f_locals]
    return any(map(_is_configuration, values)) or any(
        _is_configuration(held) for value in values for held in getattr(value, "__dict__", {}).values()
    )


def _is_configuration(value: object) -> bool:
    return any(kind.__name__ == "TrainingConfig" for kind in type(value).__mro__)


def _run(folder: Path) -> Callable[[], object]:
    from mirrorspark.training import run

    _rides(folder)
    _session()
    recipe = folder / "rides"
    recipe.mkdir()
    (recipe / "table.sql").write_text("SELECT * FROM rides")
    (recipe / "recipe.yaml").write_text(yaml.safe_dump(_RECIPE))
    arguments = f"--recipe {recipe} --data {folder} --output {folder / 'output'} --workers 1 --epochs 2"
    return lambda: run.main(arguments.split())


def _convert(folder: Path) -> Callable[[], object]:
    from mirrorspark.data_pipelines.conversion import convert
    from mirrorspark.data_pipelines.features.spec import FeatureSpec

    table = _session().read.parquet(str(_rides(folder)))
    spec = FeatureSpec.from_dict({name: _RECIPE[name] for name in ("features", "label", "keys")})
    return lambda: convert(table, spec, folder / "dataset", progress=False)


_RECIPE = {
    "tables": {"rides": "ride_id long, town string, distance double, late int, split string"},
    "label": "late",
    "keys": "ride_id",
    "features": {"town": {"kind": "categorical"}, "distance": {"kind": "numeric"}},
    "global_batch_size": 64,
}


def _rides(folder: Path) -> Path:
    """Write a table of rides, and return its file."""
    random, rows = np.random.default_rng(1), 600
    distance = random.normal(size=rows)
    table = {
        "ride_id": np.arange(rows),
        "town": random.choice(["Kyiv", "Lima", "Oslo"], rows),
        "distance": distance,
        "late": (distance + random.normal(size=rows) > 0).astype(np.int32),
        "split": random.choice(["train", "validation", "test"], rows, p=[0.6, 0.2, 0.2]),
    }
    pq.write_table(pa.table(table), folder / "rides.parquet")
    return folder / "rides.parquet"


def _score_files(folder: Path) -> Callable[[], object]:
    from mirrorspark.scoring.files import score_files

    spark, table, model = _session(), _table(folder), _model(folder)
    return lambda: score_files(spark, table, model, folder / "scores", keys="flight_id")


def _score(folder: Path) -> Callable[[], object]:
    from mirrorspark.scoring.batch import score

    spark, model = _session(), _model(folder)
    table = spark.read.parquet(str(_table(folder)))
    return lambda: score(table, model, keys="flight_id").collect()


def _score_by_group(folder: Path) -> Callable[[], object]:
    from mirrorspark.scoring.groups import score_by_group

    spark, model = _session(), _model(folder)
    table = spark.read.parquet(str(_table(folder))).where("carrier = 'UA'")
    return lambda: score_by_group(table, {"UA": model}, group="carrier", keys="flight_id").collect()


def _scorer_udf(folder: Path) -> Callable[[], object]:
    from mirrorspark.scoring.udf import scorer_udf

    spark, model = _session(), _model(folder)
    return lambda: scorer_udf(spark, model)


def _predict(folder: Path) -> Callable[[], object]:
    from mirrorspark.scoring.predictor import Predictor
    from tests.unit.scoring.exported_models import FLIGHTS

    row = FLIGHTS.to_pylist()[0]
    model = Predictor(_model(folder), other_versions="allow")
    return lambda: model.predict(row)


CALLS: Mapping[str, Callable[[Path], Callable[[], object]]] = {
    "score_files": _score_files,
    "score": _score,
    "score_by_group": _score_by_group,
    "scorer_udf": _scorer_udf,
    "predict": _predict,
    "run": _run,
    "convert": _convert,
}
"""What makes each call ready, in an empty folder."""


def _session() -> "SparkSession":
    from pyspark.sql import SparkSession

    # The tasks' Python is this one, whether or not its environment is activated, and finds the repository as it does.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.executorEnv.PYTHONPATH", ":".join(SOURCES)).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def _model(folder: Path) -> Path:
    from tests.unit.scoring.exported_models import export_flights

    return export_flights(folder / "flights", seed=1)


def _table(folder: Path) -> Path:
    from tests.unit.scoring.exported_models import FLIGHTS

    pq.write_table(FLIGHTS, folder / "flights.parquet")
    return folder / "flights.parquet"


if __name__ == "__main__":
    main()
