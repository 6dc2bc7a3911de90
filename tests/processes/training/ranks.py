"""Ranks of a training as processes of Python."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from tests.conftest import PATIENCE


def run_together(commands: Iterable[Sequence[Any]]) -> None:
    """Run programs with their arguments at the same time, until all of them have ended well."""
    with ExitStack() as running:
        ranks, environment = [], os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # where the tests are, too
        for command in commands:
            arguments = [sys.executable, *map(str, command)]
            started = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
            process = running.enter_context(started)
            running.callback(process.kill)  # before its end is waited for
            ranks.append(process)
        for process in ranks:
            said = process.communicate(timeout=PATIENCE * 250)[1]
            assert process.returncode == 0, said
