"""The Python that the tasks of Spark run: this process's own, unless the user has chosen another one."""

import functools
import os
import re
import shutil
import subprocess
import sys
from typing import Any

from mirrorspark.spark_session.errors import SparkStartError
from mirrorspark.spark_session.silence import user_settings

VARIABLE, SETTING = "PYSPARK_PYTHON", "spark.pyspark.python"

# PySpark's choice where its variable is not set: the first one on PATH, which may have none of our packages.
_DEFAULT = "python3"
_LOOK = """
import sys
from importlib.util import find_spec
print("%d.%d" % sys.version_info[:2], *[name for name in ("mirrorspark", "pyarrow", "pandas") if not find_spec(name)])
"""


def run_this_interpreter() -> None:
    """Have the tasks of the next session run the Python of Spark's configuration, else this one."""
    # PySpark reads the variable alone.
    os.environ.setdefault(VARIABLE, user_settings().get(SETTING) or sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)


def require_own_python(context: Any) -> None:
    """Check the Python that the tasks of a session run; where nobody has chosen one, it becomes this one.

    Raises:
        SparkStartError: The tasks run on this machine, by a Python of another version or without our packages.
    """
    python = getattr(context, "pythonExec", None)
    if python is None:
        return
    is_here = is_on_this_machine(context.master)
    if python == _DEFAULT != os.environ.get(VARIABLE):
        python = context.getConf().get(SETTING) or (sys.executable if is_here else python)
        context.pythonExec = python
    if is_here and (why := why_unfit(python)) is not None:
        raise SparkStartError(
            f"the tasks of the Spark session run {python}, {why}, and {_this_python()}: stop the session, set "
            f"{VARIABLE} to {sys.executable}, and start it again"
        )


def require_fit_choice() -> None:
    """Check the Python that the environment or Spark's configuration has for tasks on this machine.

    Raises:
        SparkStartError: It has another version, or lacks our packages.
    """
    for name, python in ((VARIABLE, os.environ.get(VARIABLE)), (SETTING, user_settings().get(SETTING))):
        if python:
            if (why := why_unfit(python)) is not None:
                raise SparkStartError(f"{name} is {python}, {why}, and {_this_python()}: unset {name}")
            return


@functools.cache
def why_unfit(python: str) -> str | None:
    """Return why tasks on this machine cannot run a Python, in words that follow it; None if they can."""
    if python == sys.executable:
        return None
    if shutil.which(python) is None:
        return _NO_START
    try:
        done = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return _NO_START
    version, *missing = done.stdout.split() or [""]
    if not version:
        return _NO_START
    if version != _VERSION:
        return f"Python {version}"
    return f"which lacks {', '.join(missing)}" if missing else None


def is_on_this_machine(master: str) -> bool:
    """Return True if the tasks of a session are processes of this machine, as they are of ``local-cluster[...]``."""
    return master.startswith("local")


def is_local(master: str) -> bool:
    """Return True if the driver is the only executor: the master is ``local`` or ``local[...]``."""
    return re.match(r"local$|local\[", master) is not None


_NO_START = "which does not start as a Python"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def _this_python() -> str:
    return f"this one is Python {_VERSION} ({sys.executable})"
