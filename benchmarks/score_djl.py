"""How many rows of Parquet files are scored per second, next to DJL, which scores them inside Spark's JVM?

DJL keeps a model per executor and calls it for batches of rows in ``mapPartitions``. In the usual way every row makes
tensors of its own, which DJL stacks and takes apart again; in the other a batch is one tensor per input, filled number
by number. Both sides read the same files with the same Spark and write keys and scores to Parquet files. The product
looks each id up in a vocabulary; DJL has a model of the same layers that takes ids as they are, and is spared that.
"""

import contextlib
import os
import shlex
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.other_environment import OtherProcess, UnavailableError, class_path, started
from benchmarks.report import REPOSITORY, Report, timing_table
from benchmarks.score_model import KEY, export_direct_model, export_model, feature_columns
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process
from mirrorspark.scoring.model.folder import SAVED_MODEL_FOLDER
from mirrorspark.scoring.parity import TOLERANCE, join_on_keys, parity

FILES = "score_files"
ROWS = "DJL, tensors of every row, stacked by its batchifier"
BATCHES = "DJL, one tensor per batch and input"
# Names in DjlScore.java.
METHODS = {ROWS: "rowByRow", BATCHES: "batchByBatch"}
MARK = 1.0
BATCH_ROWS = 4_096
# The slow way scores only this number of files, one for each core; its times are those of all rows.
SLOW_FILES = spark_work.SLOTS

_FOLDER = Path(__file__).parent
_NATIVE_JAR = "tensorflow-native-cpu-"
_NATIVE_FOLDER = PurePosixPath("native/lib")


def run(options: Options) -> Report:
    """Let both sides score the same table, or say why DJL cannot be had."""
    try:
        home = (options.cache or options.scratch).absolute() / "djl"
        classes = class_path(_FOLDER / "djl_modules.xml", _FOLDER / "DjlScore.java", home)
        files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
        models = in_new_process(_exported, options.scratch, files)
        with _started(classes, native_libraries(classes, home / "native"), options.scratch / "djl.log") as djl:
            return _measured(options, Djl(djl, models.direct), models, files)
    except UnavailableError as error:
        return Report(BENCHMARK.name, BENCHMARK.question, (), skipped=str(error))


@dataclass(frozen=True)
class Models:
    """Both models, and the expected scores of the second one.

    Attributes:
        exported: Folder of the product's.
        direct: Folder of the SavedModel that takes ids as they are.
        scores: Parquet file of the keys of the first file and the scores that TensorFlow in Python gives them.
    """

    exported: Path
    direct: Path
    scores: Path


@dataclass(frozen=True)
class Djl:
    """The process of DJL, and the SavedModel that it scores with."""

    process: OtherProcess
    model: Path

    def score(self, method: str, files: Sequence[Path], target: Path) -> float:
        """Write keys and scores of the rows of ``files`` into ``target``, and return the seconds that it took."""
        names = feature_columns(pq.read_schema(files[0]).names)
        answer = self.process.ask(
            work="score",
            method=method,
            files=[str(file.absolute()) for file in files],
            ids=[name for name in names if name.startswith("int_")],
            numbers=[name for name in names if name.startswith("float_")],
            model=str(self.model.absolute()),
            batch_rows=BATCH_ROWS,
            target=str(target.absolute()),
        )
        return float(answer["seconds"])


def _measured(options: Options, djl: Djl, models: Models, files: Sequence[Path]) -> Report:
    versions = djl.process.ask(work="versions")
    difference = max(_difference(djl, method, models, files[0], options.scratch) for method in METHODS.values())
    timings = _timings(options, djl, models, files)
    faster = min(METHODS, key=lambda way: timings[way].median)
    marks = (
        Mark(f"{FILES} / the faster one of DJL", speed_ratio(timings, FILES, faster), MARK),
        Mark(
            "largest difference of DJL's scores from those of TensorFlow in Python, in millionths",
            difference * 1e6,
            TOLERANCE * 1e6,
            "at most",
        ),
    )
    title = f"{options.rows:,} rows of 39 features, {spark_work.SLOTS} cores"
    note = f"'{ROWS}' scored {SLOW_FILES} of {len(files)} files; its seconds are multiplied."
    table = timing_table(title, options.rows, timings, faster, note=note)
    beside = {"DJL": f"{versions['djl']}, TensorFlow {versions['tensorflow']}, batches of {BATCH_ROWS:,} rows"}
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks, conditions=beside)


def _difference(djl: Djl, method: str, models: Models, file: Path, scratch: Path) -> float:
    """Return the largest difference between the scores of ``file`` and TensorFlow's."""
    target = scratch / f"scores-{method}"
    djl.score(method, [file], target)
    expected, actual = join_on_keys(pq.read_table(models.scores), pq.read_table(target), [KEY])
    return parity(expected["score"].to_numpy(), actual["score"].to_numpy()).max


def _timings(options: Options, djl: Djl, models: Models, files: Sequence[Path]) -> dict[str, Timing]:
    from mirrorspark.scoring.files import score_files

    session = spark_work.session()
    target = options.scratch / "scored"
    empty = spark_work.emptied(target)
    ours = Contender(FILES, partial(score_files, session, files, models.exported, target, keys=KEY), empty)
    batches = Contender(BATCHES, partial(djl.score, METHODS[BATCHES], files, target), empty)

    def row_by_row() -> float:
        # All files but the last have the same number of rows.
        return djl.score(METHODS[ROWS], files[:SLOW_FILES], target) * len(files) / SLOW_FILES

    timings = interleave([ours, batches, Contender(ROWS, row_by_row, empty)], options.rounds)
    session.stop()
    return timings


def _exported(scratch: Path, files: Sequence[Path]) -> Models:
    """Export both models and score the first file with the second; in a process of its own, which loads TensorFlow."""
    import numpy as np

    from benchmarks.score_udfs import saved_model

    direct = export_direct_model(scratch / "direct", files) / SAVED_MODEL_FOLDER
    rows = pq.read_table(files[0])
    names = feature_columns(rows.column_names)
    ids, numbers = (
        np.stack([rows[name].to_numpy() for name in names if name.startswith(prefix)], 1)
        for prefix in ("int_", "float_")
    )
    scores = scratch / "scores.parquet"
    pq.write_table(pa.table({KEY: rows[KEY], "score": saved_model(str(direct))(ids, numbers)}), scores)
    readable = for_older_tensorflow(direct, scratch / "direct_for_djl")
    return Models(export_model(scratch / "exported", files[0]), readable, scores)


def for_older_tensorflow(saved_model: Path, target: Path) -> Path:
    """Copy a SavedModel without the attributes that DJL's TensorFlow does not know, and return the copy.

    The current TensorFlow names its variables a second time, for debugging; an older one refuses such a graph.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(saved_model, target)
    file = target / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        for node in graph.graph_def.node:
            node.attr.pop("debug_name", None)
    file.write_bytes(model.SerializeToString())
    return target


def native_libraries(classes: Sequence[Path], folder: Path) -> Path:
    """Return ``folder`` with TensorFlow's libraries, taken out of their jar.

    DJL would do so by itself, but a description in the jar says that they are for CUDA. DJL believes it where there is
    no GPU, and asks a server of its own for others.
    """
    [jar] = [path for path in classes if path.name.startswith(_NATIVE_JAR)]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(jar) as inside:
        for entry in inside.infolist():
            path = PurePosixPath(entry.filename)
            target = folder / path.name
            if path.parent != _NATIVE_FOLDER or ".so" not in path.suffixes or _is_whole(target, entry.file_size):
                continue
            with inside.open(entry) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    return folder


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


@contextlib.contextmanager
def _started(classes: Sequence[Path], libraries: Path, log: Path) -> Iterator[OtherProcess]:
    """Yield the process of DJL, and end it."""
    # All tasks share one session of TensorFlow. Each has a thread of it to itself, and none splits an operation.
    settings = {
        "ai.djl.offline": "true",
        "ai.djl.tensorflow.num_interop_threads": f"{spark_work.SLOTS}",
        "ai.djl.tensorflow.num_intraop_threads": "1",
    }
    arguments = [
        *("--driver-class-path", os.pathsep.join(map(str, classes))),
        *("--driver-java-options", " ".join(f"-D{name}={value}" for name, value in settings.items())),
        "pyspark-shell",
    ]
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "PYSPARK_SUBMIT_ARGS": shlex.join(arguments),
        "TENSORFLOW_LIBRARY_PATH": str(libraries),
        "OMP_NUM_THREADS": "1",
    }
    with started([sys.executable, "-P", "-m", "benchmarks.peer_process", "djl", ""], environment, log) as process:
        yield process


BENCHMARK = Benchmark("score_djl", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
