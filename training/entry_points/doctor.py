"""``mirrorspark doctor``: checks within seconds that training can run here, and measures its network."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.spark_session import add_master
from mirrorspark.storage import terminal_text, without_credentials
from mirrorspark.training.job.readiness import Check

EXIT_HEALTHY = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_Report = Callable[[Check], None]


@dataclass(frozen=True)
class Examination:
    """The setup to examine.

    Attributes:
        workers: Number of workers that training will use.
        output: Folder that driver and executors share.
        master: URL of a Spark cluster; None for the active session, else a local one.
        checkpoints: Another folder or store that they share, for checkpoints.
        tracking_uri: MLflow server or store; None for the default one under ``output``.
        gpus_per_worker: GPUs of every worker.
        verbose: Show Spark's logs.
    """

    workers: int
    output: Path
    master: str | None = None
    checkpoints: str | None = None
    tracking_uri: str | None = None
    gpus_per_worker: int = 0
    verbose: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 all checks passed, 1 a check failed, 2 bad usage."""
    parser = _build_parser()
    try:
        flags = parser.parse_args(arguments)
    except SystemExit as stop:  # --help leaves with 0, a wrong flag with 2
        return int(stop.code or 0)
    if flags.workers < 1 or flags.gpus_per_worker < 0:
        return _refuse(f"workers is {flags.workers}, gpus_per_worker {flags.gpus_per_worker}; use 1 and 0 or more")
    if "://" in flags.output:
        return _refuse(f"output '{flags.output}' is on another store; give a folder, and the store as --checkpoints")
    asked = {name: getattr(flags, name) for name in Examination.__dataclass_fields__}
    begin = time.monotonic()
    try:
        checks = examine(Examination(**asked | {"output": Path(flags.output)}), _print)
    except KeyboardInterrupt:
        print("mirrorspark: interrupted", file=sys.stderr)
        return terminal_text.EXIT_INTERRUPTED
    seconds = time.monotonic() - begin
    print(f"\n{_verdict(checks)} ({seconds:.1f} s)")
    if flags.json:
        try:
            Path(flags.json).write_text(json.dumps(_document(checks, seconds), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            return _refuse(f"json {flags.json} cannot be written ({error.strerror}); give another file")
    return EXIT_HEALTHY if all(check.passed for check in checks) else EXIT_FAILED


def examine(asked: Examination, report: _Report) -> list[Check]:
    """Run every check, pass each result to ``report`` at once, and return them all.

    A cluster is examined only when the driver's checks pass: Spark's own messages on the driver's problems are longer.
    """
    from mirrorspark.training.job.readiness import preflight

    checks = []
    for check in preflight.check_driver(asked.output, _store_of(asked), asked.master):
        report(check)
        checks.append(check)
    if all(check.passed for check in checks):
        for check in _check_session(asked):
            report(check)
            checks.append(check)
    return checks


def _check_session(asked: Examination) -> list[Check]:
    from pyspark.sql import SparkSession

    from mirrorspark.spark_session import SESSION_ERRORS, AnotherSessionError, open_session, session_of, task_message
    from mirrorspark.training.job.readiness import preflight

    is_ours = SparkSession.getActiveSession() is None
    try:
        spark = open_session(asked.master, asked.workers, app_name="mirrorspark-doctor", verbose=asked.verbose)
    except (AnotherSessionError, *SESSION_ERRORS, OSError) as error:
        return [Check("session", False, f"cannot be started: {task_message(error)}; see --verbose")]
    try:
        checks = preflight.check_cluster(
            spark,
            asked.workers,
            asked.output,
            checkpoints=asked.checkpoints,
            gpus_per_worker=asked.gpus_per_worker,
            asks_local=True,
        )
        return [*checks, Check("scoring", True, session_of(spark).ways), _strategy(asked.gpus_per_worker)]
    finally:
        if is_ours:
            spark.stop()


def _strategy(gpus_per_worker: int) -> Check:
    from mirrorspark.training.configuration import default_strategy

    means = (
        "GPUs; of a model of Keras 3 the ring does"
        if gpus_per_worker
        else "CPUs; --strategy multi_worker_mirrored is TensorFlow's own"
    )
    return Check("strategy", True, f"{default_strategy(gpus_per_worker)} sums gradients on {means}")


def _store_of(asked: Examination) -> str:
    from mirrorspark.training.run_records import store_of  # MLflow, which takes a second or two

    return store_of(asked)


def _verdict(checks: Sequence[Check]) -> str:
    failed, warned = ([check for check in checks if check.status == status] for status in ("FAIL", "warn"))
    remarks = f", {len(warned)} to look at" if warned else ""
    if not failed:
        return f"training can run here{remarks}"
    # The check of slots is the first that needs a session.
    unasked = "" if any(check.name == "slots" for check in checks) else "; no session was asked"
    return f"{len(failed)} of {len(checks)} checks failed{remarks}{unasked}"


def _document(checks: Sequence[Check], seconds: float) -> dict[str, object]:
    try:
        ours = version("mirrorspark")
    except PackageNotFoundError:
        ours = "unknown"
    return {
        "passed": all(check.passed for check in checks),
        "version": ours,
        "seconds": round(seconds, 2),
        "checks": [check.as_document() for check in checks],
    }


def _print(check: Check) -> None:
    print(terminal_text.for_stream(check.as_line(), sys.stdout), flush=True)


def _refuse(message: str) -> int:
    print(terminal_text.for_stream(f"mirrorspark: {without_credentials(message)}", sys.stderr), file=sys.stderr)
    return EXIT_USAGE


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mirrorspark doctor",
        allow_abbrev=False,
        description="Check within seconds whether training can run here, and measure its network.",
    )
    add_master(parser, "the active session, else local[workers]")
    parser.add_argument("--workers", type=int, default=2, help="as many as training will use (default: %(default)s)")
    parser.add_argument("--gpus-per-worker", type=int, default=0, help="GPUs of every worker (default: %(default)s)")
    parser.add_argument(
        "--output",
        default=tracking_store.DEFAULT_OUTPUT,
        help="folder that all nodes must share (default: %(default)s)",
    )
    parser.add_argument("--checkpoints", metavar="URI", help="another folder or store that all nodes must share")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server or store; by default under the output")
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON, too")
    parser.add_argument("--verbose", action="store_true", help="show Spark's logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
