"""Run the documented commands on small data and write down every result that a change of structure must not change.

    python tools/frozen.py run before.json
    python tools/frozen.py compare before.json after.json

A run covers the commands of the README, its example, the digits of training, scores and parity, and the table of
faults. Results under ``exact`` are equal to the last digit on one machine; those under ``measured`` (seconds and
throughput) are only listed side by side. Takes ten minutes on two quiet cores.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS = 2
TRAIN = ("train", "--workers", "2", "--epochs", str(EPOCHS), "--baseline", "none")
LIMIT_SECONDS = 900
THROUGHPUT = ("encode_rows", "read_batches", "score_files")
SCALE = 0.05


@dataclass
class Frozen:
    """Results of one run, by name.

    Attributes:
        folder: Working directory of all commands.
        exact: Results that are equal to the last digit.
        measured: Seconds and throughput.
    """

    folder: Path
    exact: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def command(self, name: str, *words: str, status: int = 0, **environment: str) -> str:
        """Run ``mirrorspark WORDS`` to its end, note its exit status and seconds, and return its output."""
        start = time.monotonic()
        done = subprocess.run(
            _command(words),
            cwd=self.folder,
            env=_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        self.measured[f"{name}: seconds"] = round(time.monotonic() - start, 1)
        self.exact[f"{name}: exit status"] = done.returncode
        if done.returncode != status:
            raise RuntimeError(f"{name} ended with status {done.returncode}, not {status}:\n{done.stdout[-4000:]}")
        return done.stdout


def main() -> None:
    """Run or compare, as the command line says."""
    parser = argparse.ArgumentParser(description="Freeze the documented behaviour, and compare two runs.")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run everything and write the results to a file")
    run.add_argument("file", type=Path)
    run.add_argument("--only", nargs="*", choices=sorted(PARTS), default=sorted(PARTS, key=list(PARTS).index))
    both = actions.add_parser("compare", help="list what differs between two files; status 1 if an exact result does")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.action == "compare":
        sys.exit(compare(json.loads(options.before.read_text()), json.loads(options.after.read_text())))
    with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
        frozen = Frozen(Path(folder))
        for name in options.only:
            print(f"{name} …", flush=True)
            PARTS[name](frozen)
    options.file.write_text(json.dumps({"exact": frozen.exact, "measured": frozen.measured}, indent=1, sort_keys=True))
    print(f"{len(frozen.exact)} exact and {len(frozen.measured)} measured results in {options.file}")


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Print what differs among exact results, and all measured ones side by side; return 1 if an exact one differs."""
    differing = [n for n in sorted({**before["exact"], **after["exact"]}) if _side(before, n) != _side(after, n)]
    for name in differing:
        print(f"DIFFERS {name}\n  before {_side(before, name)}\n  after  {_side(after, name)}")
    for name in sorted(before["measured"].keys() & after["measured"].keys()):
        print(f"{name:60} {before['measured'][name]:>12} {after['measured'][name]:>12}")
    print(f"{len(before['exact'])} exact results before, {len(after['exact'])} after, {len(differing)} differ")
    return int(bool(differing))


def _side(results: Mapping[str, Any], name: str) -> Any:
    return results["exact"].get(name, "(missing)")


def _main_job(frozen: Frozen) -> None:
    frozen.command("train", *TRAIN, "--output", "out")
    frozen.exact |= _results("train", _last_run(frozen.folder / "out"))


def _commands(frozen: Frozen) -> None:
    run = _last_run(frozen.folder / "out")
    uri = f"sqlite:///{frozen.folder}/out/mlflow.db"
    words = ("score", "--model", "models:/flights/1", "--tracking-uri", uri, "--keys", "flight_id")
    [rows] = (frozen.folder / "out" / "datasets").glob("*/test_rows.parquet")
    frozen.command("score", *words, "--input", str(rows), "--output", "scored")
    frozen.exact["score: scores"] = _scores(frozen.folder / "scored")
    refused = frozen.command(
        "score of a table without the features",
        *(*words, "--input", str(run / "scores.parquet"), "--output", "refused"),
        status=1,
    )
    frozen.exact["score of a table without the features: message"] = _without_paths(refused.strip().splitlines()[-1])
    listed = json.loads(frozen.command("runs list", "runs", "list", "--output", "out", "--json"))
    frozen.exact["runs list"] = [sorted(run) for run in listed]
    frozen.command("doctor", "doctor")
    frozen.exact["help"] = _digest(frozen.command("help", "--help").encode())


def _lookup(frozen: Frozen) -> None:
    """Serve the scores of the test split by key, and ask for one."""
    scores = _last_run(frozen.folder / "out") / "scores.parquet"
    code = (
        "import sys, pyarrow.parquet as pq, mirrorspark as ms\n"
        "ms.precompute(sys.argv[1], 'scores.sqlite', key='flight_id')\n"
        "print(pq.read_table(sys.argv[1])['flight_id'][0].as_py())\n"
    )
    key = _python(frozen.folder, code, str(scores)).strip().splitlines()[-1]
    with _serving(frozen.folder, "lookup", "--store", "scores.sqlite", "--port", "0") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", f"/rows/{key}")
        row = json.loads(connection.getresponse().read())["row"]
        frozen.exact["lookup: row"] = {name: value for name, value in row.items() if name != "model_version"}


def _example(frozen: Frozen) -> None:
    """Run the example of the README, and score its table again in two other ways."""
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
    frozen.exact["example of the README"] = json.loads(_python(frozen.folder, code).strip().splitlines()[-1])


def _faults(frozen: Frozen) -> None:
    """Break the main job in each way of the README's table; every one that goes on ends with the unbroken weights."""
    output = ("--output", "out")
    for name, fault in {"killed worker": "kill:rank=1,step=150", "killed chief": "kill:rank=0,step=150"}.items():
        frozen.command(name, *TRAIN, *output, MIRRORSPARK_FAULTS=fault)
        frozen.exact |= _results(name, _last_run(frozen.folder / "out"))
    said = frozen.command("raise", *TRAIN, *output, status=1, MIRRORSPARK_FAULTS="raise:rank=1,step=30")
    frozen.exact["raise: message"] = "MIRRORSPARK_FAULTS asked for an error" in said
    for name, number in {"terminated command": signal.SIGTERM, "killed command": signal.SIGKILL}.items():
        _stop_in_training(frozen.folder, number)
        frozen.command(f"{name} again", *TRAIN, *output)
        frozen.exact |= _results(f"{name} again", _last_run(frozen.folder / "out"))


def _throughput(frozen: Frozen) -> None:
    for name in THROUGHPUT:
        suite = "scoring" if name.startswith("score") else "data_path"
        words = ("-m", f"benchmarks.{suite}", "--only", name, "--scale", str(SCALE), "--rounds", "3")
        pages = frozen.folder / "pages"
        _run_python(REPOSITORY, [*words, "--output", str(pages)])
        for line in (pages / f"{name}.md").read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("|") and len(cells) > 1 and re.search(r"\d", cells[1]):
                frozen.measured[f"{name}: {cells[0]}"] = cells[1]


PARTS: Mapping[str, Callable[[Frozen], None]] = {
    "main job": _main_job,
    "commands": _commands,
    "lookup": _lookup,
    "faults": _faults,
    "example": _example,
    "throughput": _throughput,
}
"""Parts of a run in their order; `commands`, `lookup` and `faults` use the run of `main job`."""


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
    return f"{', '.join(table.column_names)}: {_digest(values)}"


def _weights(run: Path) -> str:
    from benchmarks.train_kills import weights_of

    last = sorted(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))[-1]
    return weights_of(str(next(last.glob("*.index")).with_suffix("")))


def _stop_in_training(folder: Path, number: signal.Signals) -> None:
    """Start the main job, and send it the signal when its first epoch has ended."""
    process = subprocess.Popen(
        _command([*TRAIN, "--output", "out"]),
        cwd=folder,
        env=_environment({"MIRRORSPARK_FAULTS": "slow_input:seconds=0.05"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            for line in _lines(process):
                if re.search(r"epoch +1/", line):
                    process.send_signal(number)
                    break
            process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.kill()


@contextlib.contextmanager
def _serving(folder: Path, *words: str) -> Iterator[int]:
    process = subprocess.Popen(
        _command(words), cwd=folder, env=_environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            for line in _lines(process):
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    yield int(found[1])
                    break
            else:
                raise RuntimeError(f"mirrorspark {' '.join(words)} ended without an address")
        finally:
            process.terminate()


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    if process.stdout is None:
        raise ValueError("the process must be started with stdout=PIPE")
    yield from process.stdout


def _last_run(output: Path) -> Path:
    return max((output / "runs").iterdir(), key=lambda run: (run / "run.json").stat().st_mtime)


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "mirrorspark", *words]


def _python(folder: Path, code: str, *arguments: str) -> str:
    return _run_python(folder, ["-c", code, *arguments])


def _run_python(folder: Path, words: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=_environment({}),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(
            f"{words[:2]} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]), "PYSPARK_PYTHON": sys.executable}
    java = subprocess.run([REPOSITORY / "tools" / "java.sh"], capture_output=True, text=True, check=True).stdout.strip()
    return {**os.environ, **own, "JAVA_HOME": java, "SPARK_LOCAL_IP": "127.0.0.1", **more}


def _without_paths(text: str) -> str:
    return re.sub(r"(/[\w.-]+)+", "…", text)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "src")]
    main()
