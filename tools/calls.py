"""Print the modules of ours that a call enters on the driver: `python tools/calls.py score_files` in the repository.

A module is entered when one of its functions is called in the main thread while the call lasts: methods count, and so
does building one of its dataclasses. Importing it does not, nor what runs in Spark's Python workers. The call is the
first of its session and scores six rows with a small model of the tests.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = (str(REPOSITORY), str(REPOSITORY / "src"))

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OURS = "mirrorspark."


def main() -> None:
    """Trace the call that the command line names, and print the modules in the order in which they are entered."""
    parser = argparse.ArgumentParser(description="Print the modules of ours that a call enters on the driver.")
    parser.add_argument("call", choices=sorted(CALLS))
    parser.add_argument("--functions", action="store_true", help="print the functions too")
    options = parser.parse_args()
    sys.path[:0] = SOURCES
    with tempfile.TemporaryDirectory() as folder:
        entered = traced(CALLS[options.call](Path(folder)))
    for module, functions in entered.items():
        print(f"{functions.total():7,} calls  {module.removeprefix(OURS)}")
        if options.functions:
            for function, calls in functions.items():
                print(f"{calls:20,}  {function}")
    folders = {module.rpartition(".")[0] for module in entered}
    print(f"{options.call} enters {len(entered)} modules in {len(folders)} folders")


def traced(call: Callable[[], object]) -> Mapping[str, "Counter[str]"]:
    """Return the calls of each function by the module that has it, in the order in which the modules are entered."""
    entered: dict[str, Counter[str]] = {}
    imports = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal imports
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if function == "<module>":
            imports += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not imports and module.startswith(OURS):
            entered.setdefault(module, Counter())[function] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


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
    import pyarrow.parquet as pq

    from tests.unit.scoring.exported_models import FLIGHTS

    pq.write_table(FLIGHTS, folder / "flights.parquet")
    return folder / "flights.parquet"


if __name__ == "__main__":
    main()
