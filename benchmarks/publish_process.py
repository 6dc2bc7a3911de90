"""The process of one version of the program, which writes files and publishes them: see ``publish``.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
from importlib import import_module
from types import ModuleType
from typing import Any

from benchmarks.connector_process import RESULT_PREFIX

_CONTENT = b"x" * 1_000


def serve(publish: ModuleType, paths: ModuleType) -> None:
    """Answer requests until the input ends, with the modules of the version."""
    for line in sys.stdin:
        request = json.loads(line)
        target = paths.StoragePath.of(request["target"])
        answer = {"seconds": _seconds(publish, target, request["mode"], request["files"])}
        print(RESULT_PREFIX + json.dumps(answer), flush=True)


def _seconds(publish: ModuleType, target: Any, mode: str, files: int) -> float:
    """Write files as a task does, and return the seconds of all that the driver does before and after."""
    begin = time.perf_counter()
    job = publish.WriteJob.begin(target, publish.SaveMode.of(mode))
    seconds = time.perf_counter() - begin
    attempt = f"{time.time_ns():x}"
    job.begin_attempt(attempt)
    written = []
    for number in range(files):
        name = f"part-{number:05d}-{attempt}"
        job.attempt_file(attempt, name).local.write_bytes(_CONTENT)
        written.append(publish.WrittenFile(attempt, name, rows=1, records=1, bytes=len(_CONTENT)))
    begin = time.perf_counter()
    job.publish(written)
    return seconds + time.perf_counter() - begin


if __name__ == "__main__":
    serve(*map(import_module, sys.argv[1:]))
