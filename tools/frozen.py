"""Run the documented commands on small data and write down every result that a change of structure must not change.

    python tools/frozen.py run before.json
    python tools/frozen.py run after.json --only "main job" faults
    python tools/frozen.py compare before.json after.json

A run has parts: the main job on a tenth of the flights, the commands of the README, rows by their key, what a run
survives, the example of the README, and throughput. A part that fails is noted, and the next one goes on. Parts of both
files are compared. ``exact`` results must be equal to the last digit, on one machine; a ratio of two speeds that were
measured in turns may differ by ``SPREAD``; texts and seconds are shown where they differ, and judge nothing.
Takes less than ten minutes on two quiet cores.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# One flight in ten: some 95 steps an epoch.
SHARE = 10
OUTPUT = "out"
TRAIN = ("train", "--workers", "2", "--epochs", "3", "--global-batch-size", "256", "--no-explain", "--output", OUTPUT)
LIMIT_SECONDS = 900
SPREAD = 0.25
"""How far a ratio may lie from the former one, as a share of that."""
THROUGHPUT = ("encode_rows", "read_batches")
SCORED_ROWS = 100_000
ROUNDS = 3


@dataclass
class Part:
    """Results of one part, by name.

    Attributes:
        exact: Results that are equal to the last digit.
        ratios: Speeds over others that were measured in turns with them.
        texts: Messages.
        seconds: Time of each command.
        error: The last lines of what stopped the part; empty if it came to its end.
    """

    exact: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def command(self, name: str, folder: Path, *words: str, status: int = 0, **environment: str) -> str:
        """Run ``mirrorspark WORDS`` to its end, note its exit status and seconds, and return its output."""
        start = time.monotonic()
        with _started(folder, words, environment) as process:
            output, _ = process.communicate(timeout=LIMIT_SECONDS)
        self.seconds[name] = round(time.monotonic() - start, 1)
        self.exact[f"{name}: exit status"] = process.returncode
        if process.returncode != status:
            raise RuntimeError(f"{name} ended with status {process.returncode}, not {status}:\n{output[-4000:]}")
        return output


def main() -> None:
    """Run or compare, as the command line says."""
    parser = argparse.ArgumentParser(description="Freeze the documented behaviour, and compare two runs.")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run everything and write the results to a file; status 1 if a part fails")
    run.add_argument("file", type=Path)
    run.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    both = actions.add_parser("compare", help="list what differs between two files; status 1 if a result does")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.action == "compare":
        sys.exit(compare(json.loads(options.before.read_text()), json.loads(options.after.read_text())))
    sys.exit(_run(options.file, options.only))


def _run(file: Path, names: Sequence[str]) -> int:
    """Run these parts, and the main job before those that need it; return 1 if one of them fails."""
    if not set(names) <= INDEPENDENT:
        names = ["main job", *names]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
        for name in dict.fromkeys(names):
            part, start = Part(), time.monotonic()
            print(f"{name} …", flush=True)
            try:
                PARTS[name](part, Path(folder))
            except Exception:  # the others run all the same
                part.error = traceback.format_exc()[-6000:]
                print(part.error, flush=True)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
            results[name] = asdict(part)
            file.write_text(json.dumps(results, indent=1, sort_keys=True))
    return int(any(part["error"] for part in results.values()))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Print what differs in the parts of both; return 1 if an exact result, a ratio or the end of a part does."""
    differing = 0
    for name in sorted(before.keys() ^ after.keys()):
        print(f"{name}: not compared, in one file only")
    for name in [name for name in before if name in after]:
        old, new = Part(**before[name]), Part(**after[name])
        for side, part in (("before", old), ("after", new)):
            if part.error:
                differing += 1
                print(f"FAILED {name}, {side}: {part.error.strip().splitlines()[-1]}")
        for what, values in _changes(old.exact, new.exact):
            differing += 1
            print(f"DIFFERS {name}, {what}\n  before {values[0]}\n  after  {values[1]}")
        for what, (one, other) in _changes(old.ratios, new.ratios):
            if "(missing)" in (one, other) or abs(other / one - 1) > SPREAD:
                differing += 1
                print(f"OUTSIDE {name}, {what}: {one} before, {other} after")
        for what, values in _changes(old.texts, new.texts):
            print(f"text    {name}, {what}\n  before {values[0]}\n  after  {values[1]}")
        for what, (one, other) in _changes(old.seconds, new.seconds):
            print(f"seconds {name}, {what}: {one} before, {other} after")
    exact = [sum(len(part["exact"]) for part in results.values()) for results in (before, after)]
    print(f"{exact[0]} exact results before, {exact[1]} after; {differing} differences")
    return int(differing > 0)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in sorted(before.keys() | after.keys()):
        values = before.get(name, "(missing)"), after.get(name, "(missing)")
        if values[0] != values[1]:
            yield name, values


def _main_job(part: Part, folder: Path) -> None:
    part.command("train", folder, *_train())
    part.exact |= _results("train", _last_run(folder / OUTPUT))


def _commands(part: Part, folder: Path) -> None:
    run = _last_run(folder / OUTPUT)
    store = f"sqlite:///{folder}/{OUTPUT}/mlflow.db"
    words = ("score", "--model", "models:/flights/1", "--tracking-uri", store, "--keys", "flight_id")
    [rows] = (folder / OUTPUT / "datasets").glob("*/test_rows.parquet")
    part.command("score", folder, *words, "--input", str(rows), "--output", "scored")
    part.exact["score: scores"] = _scores(folder / "scored")
    refused = "score of a table without the features"
    said = part.command(
        refused, folder, *words, "--input", str(run / "scores.parquet"), "--output", "refused", status=2
    )
    part.texts[refused] = _without_paths(said.strip().splitlines()[-1])
    listed = json.loads(part.command("runs list", folder, "runs", "list", "--output", OUTPUT, "--json"))
    part.exact["runs list"] = sorted(listed[0])
    part.command("doctor", folder, "doctor")
    flags = re.findall(r"--[a-z][a-z-]+", part.command("help", folder, "train", "--help"))
    part.exact["train: flags"] = sorted(set(flags))


def _lookup(part: Part, folder: Path) -> None:
    """Serve the scores of the test split by key, and ask for one."""
    code = (
        "import sys, pyarrow.parquet as pq, mirrorspark as ms\n"
        "ms.precompute(sys.argv[1], 'scores.sqlite', key='flight_id')\n"
        "print(pq.read_table(sys.argv[1])['flight_id'][0].as_py())\n"
    )
    key = _python(folder, "-c", code, str(_last_run(folder / OUTPUT) / "scores.parquet")).strip().splitlines()[-1]
    with _serving(folder, "lookup", "--store", "scores.sqlite", "--port", "0") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", f"/rows/{key}")
        row = json.loads(connection.getresponse().read())["row"]
        part.exact["row"] = {name: value for name, value in row.items() if name != "model_version"}


def _example(part: Part, folder: Path) -> None:
    """Run the example of the README, and score some of its rows one by one as well."""
    [example] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    code = example + (
        "\nimport hashlib, json, numpy as np\n"
        "head = before_departure.head(500)\n"
        "scores = result.score(head)['score'].to_numpy()\n"
        "one = ms.Predictor(result.model)\n"
        "rows = head.head(20).drop(columns='late').to_dict('records')\n"
        "alone = np.array([one.predict(row)['score'] for row in rows])\n"
        "print(json.dumps({'metrics': result.metrics, 'digest': hashlib.sha256(scores.tobytes()).hexdigest(),\n"
        "    'parity within 1e-7': bool(abs(alone - scores[:20]).max() <= 1e-7)}))\n"
    )
    start = time.monotonic()
    part.exact |= json.loads(_python(folder, "-c", code).strip().splitlines()[-1])
    part.seconds["example"] = round(time.monotonic() - start, 1)


def _faults(part: Part, folder: Path) -> None:
    """Break the main job in ways of the README's table; each one that goes on ends with the unbroken weights."""
    unbroken = _weights(min((folder / OUTPUT / "runs").iterdir()))  # their names begin with the time
    killed = "kill:rank=1,step=150;kill:rank=0,step=160,attempt=2"
    part.command("a worker, then the chief killed", folder, *_train(), MIRRORSPARK_FAULTS=killed)
    part.exact |= _results("a worker, then the chief killed", _last_run(folder / OUTPUT))
    # One run: the command is stopped in its second epoch, and killed in the third, when it has been run again.
    _stop_after_epoch(folder, 1, signal.SIGTERM)
    _stop_after_epoch(folder, 2, signal.SIGKILL)
    part.command("command run again", folder, *_train())
    part.exact |= _results("command run again", _last_run(folder / OUTPUT))
    ends = {name: weights for name, weights in part.exact.items() if name.endswith(": weights")}
    part.exact["all end with the weights of the unbroken run"] = set(ends.values()) == {unbroken}
    said = part.command("code that raises", folder, *_train(), status=1, MIRRORSPARK_FAULTS="raise:rank=1,step=30")
    part.exact["code that raises: reported"] = "MIRRORSPARK_FAULTS asked for an error" in said


def _throughput(part: Part, folder: Path) -> None:
    for name in THROUGHPUT:
        words = ("-m", "benchmarks.data_path", "--only", name, "--scale", "0.05", "--rounds", str(ROUNDS))
        start = time.monotonic()
        _python(folder, *words, "--output", str(folder / "pages"))
        part.seconds[name] = round(time.monotonic() - start, 1)
        for what, found in _marks(folder / "pages" / f"{name}.md"):
            part.ratios[f"{name}: {what}"] = found
    start = time.monotonic()
    code = (
        "import json, pathlib, sys\n"
        "from benchmarks.benchmark import Options, prepare_environment\n"
        "from benchmarks.measure import speed_ratio\n"
        "from benchmarks.score_files import FILES, PREDICT_BATCH_UDF, TABLE, local_timings\n"
        "prepare_environment()\n"
        "options = Options(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))\n"
        "timings = local_timings(options, (FILES, TABLE, PREDICT_BATCH_UDF))\n"
        "print(json.dumps({way: speed_ratio(timings, way, PREDICT_BATCH_UDF) for way in (FILES, TABLE)}))\n"
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    ratios = json.loads(_python(folder, "-c", code, str(SCORED_ROWS), str(ROUNDS), str(scratch)).splitlines()[-1])
    part.ratios |= {f"{way} / predict_batch_udf": round(ratio, 3) for way, ratio in ratios.items()}
    part.seconds["scoring"] = round(time.monotonic() - start, 1)


def _marks(page: Path) -> Iterator[tuple[str, float]]:
    """Yield the marks of a benchmark's page, and what was found."""
    table = page.read_text(encoding="utf-8").partition("## Marks\n\n")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        what, found, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        yield what, float(found.replace(",", ""))


PARTS: Mapping[str, Callable[[Part, Path], None]] = {
    "main job": _main_job,
    "commands": _commands,
    "lookup": _lookup,
    "faults": _faults,
    "example": _example,
    "throughput": _throughput,
}
"""Parts of a run in their order."""
INDEPENDENT = {"main job", "example", "throughput"}
"""Those that use nothing of the main job."""


def _train() -> tuple[str, ...]:
    query = (REPOSITORY / "recipes" / "flights" / "table.sql").read_text(encoding="utf-8")
    some = f"SELECT * FROM (\n{query}\n) WHERE pmod(xxhash64(flight_id), {SHARE}) = 0"  # noqa: S608 - the recipe's own
    return (*TRAIN, "--sql", some)


def _results(name: str, run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    return {
        f"{name}: metrics": summary["metrics"],
        f"{name}: parity": summary["parity"],
        f"{name}: attempts": summary["attempts"],
        f"{name}: scores": _scores(run / "scores.parquet"),
        f"{name}: dataset": Path(summary["dataset"]["path"]).name,
        f"{name}: weights": _weights(run),
    }


def _scores(path: Path) -> str:
    """Return the names of a scored table's columns, and a digest of its values by key."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).drop_columns(["model_version"]).sort_by("flight_id")
    values = b"".join(repr(column.to_pylist()).encode() for column in table.columns)
    return f"{', '.join(table.column_names)}: {hashlib.sha256(values).hexdigest()}"


def _weights(run: Path) -> str:
    from benchmarks.train_kills import weights_of

    last = max(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))
    return weights_of(str(next(last.glob("*.index")).with_suffix("")))


def _stop_after_epoch(folder: Path, epoch: int, number: signal.Signals) -> None:
    """Start the main job, and send it the signal when that epoch has ended.

    Raises:
        RuntimeError: It ended before.
    """
    said: list[str] = []
    with _started(folder, _train(), {"MIRRORSPARK_FAULTS": "slow_input:seconds=0.05"}) as process:
        for line in _lines(process):
            said.append(line)
            if re.search(rf"epoch +{epoch}/", line):
                process.send_signal(number)
                process.communicate(timeout=LIMIT_SECONDS)
                return
    raise RuntimeError(f"the main job ended before its epoch {epoch} did:\n{''.join(said)[-4000:]}")


@contextlib.contextmanager
def _serving(folder: Path, *words: str) -> Iterator[int]:
    with _started(folder, words, {}) as process:
        for line in _lines(process):
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                return
    raise RuntimeError(f"mirrorspark {' '.join(words)} ended without an address")


@contextlib.contextmanager
def _started(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[str]]":
    """Start ``mirrorspark WORDS`` with output and errors in one pipe, and kill all that is left of it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mirrorspark", *words],
        cwd=folder,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    if process.stdout is None:
        raise ValueError("the process must be started with stdout=PIPE")
    yield from process.stdout


def _last_run(output: Path) -> Path:
    return max((output / "runs").iterdir(), key=lambda run: (run / "run.json").stat().st_mtime)


def _python(folder: Path, *words: str) -> str:
    """Run Python, and return what it prints.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=_environment({}),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    if done.returncode:
        said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        raise RuntimeError(f"python {words[0]} ended with status {done.returncode}:\n{said}")
    return done.stdout


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]), "PYSPARK_PYTHON": sys.executable}
    java = subprocess.run([REPOSITORY / "tools" / "java.sh"], capture_output=True, text=True, check=True).stdout.strip()
    return {**os.environ, **own, "JAVA_HOME": java, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONUNBUFFERED": "1", **more}


def _without_paths(text: str) -> str:
    return re.sub(r"(/[\w.-]+)+", "…", text)


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "src")]
    main()
