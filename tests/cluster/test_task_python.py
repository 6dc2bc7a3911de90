"""The tasks of a session that somebody else has started run a Python with our packages, or the call says so at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

SCRIPT = """
import sys
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False).getOrCreate()

import mirrorspark as ms

ms.write_tfrecords(spark.range(3), sys.argv[1])
print(ms.read_tfrecords(spark, sys.argv[1]).count())
"""


@pytest.mark.parametrize("variable", [None, "python3"])
def test_a_session_of_a_notebook_whose_environment_is_not_activated(tmp_path: Path, variable: str | None) -> None:
    other = tmp_path / "python3"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    other.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SPARK_LOCAL_IP": "127.0.0.1"}
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        env.pop(name, None)
    env |= {"PYSPARK_PYTHON": variable} if variable else {}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "rows")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE * 100,
    )
    if variable is None:
        assert (ended.returncode, ended.stdout) == (0, "3\n"), ended.stderr
        return
    line = ended.stderr.splitlines()[-1]
    assert "run python3, which lacks mirrorspark, pyarrow, pandas, and this one is" in line
    assert line.endswith(f"stop the session, set PYSPARK_PYTHON to {sys.executable}, and start it again")
    assert not (tmp_path / "rows").exists()
