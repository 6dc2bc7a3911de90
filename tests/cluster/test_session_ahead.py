"""A session starts in a thread, or not at all where a training needs none (H1)."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE

SCRIPT = """
import signal, sys
from pyspark.sql import SparkSession
from mirrorspark.spark_session import SessionAhead

session = SessionAhead(None, 1)
session.begin()
# Written while Java starts, which is silent.
print("other work", file=sys.stderr, flush=True)
spark = session.get()
assert spark is SparkSession.getActiveSession(), "another session is active"
assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler, "Ctrl-C cancels no job"
print(spark.range(3).count(), spark.conf.get("spark.sql.session.timeZone"))
java = spark.sparkContext._gateway.proc.pid
mapped = open(f"/proc/{java}/maps").read().split()
print([name for name in mapped if "/spark-" in name and name.endswith(".jsa")] != [])
"""
WITHOUT_SESSION = """
import os
import mirrorspark as ms
import pandas as pd
from pyspark import SparkContext

rows = pd.DataFrame({"x": [number * 7 % 400 for number in range(400)], "town": ["here", "there"] * 200})
rows["late"] = rows["x"] // 3 % 2
settings = dict(label="late", epochs=3, seed=1, register="model", baseline="none")
java = os.environ.pop("JAVA_HOME")
os.environ |= {"MIRRORSPARK_FAULTS": "kill:rank=0,step=7", "PATH": "/nowhere"}
here = ms.fit(rows, name="here", **settings)
assert 0 < here.score(rows[:3])["score"].iloc[0] < 1
assert SparkContext._active_spark_context is None, "a session was started"
os.environ |= {"JAVA_HOME": java, "PATH": os.defpath}
del os.environ["MIRRORSPARK_FAULTS"]
assert here.rows.count() == 400  # which starts one
there = ms.fit(rows, name="there", **settings)
print([len(one.trained.attempts) for one in (here, there)], here.metrics == there.metrics)
"""
# Done already by make, or by an earlier test.
WRITE_ARCHIVE = "from mirrorspark.spark_session import class_archive; class_archive.write_archive()"


def test_a_session_that_started_in_a_thread_is_active_and_its_start_hides_nothing() -> None:
    subprocess.run([sys.executable, "-c", WRITE_ARCHIVE], check=True, timeout=PATIENCE * 100)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=PATIENCE * 100
    )
    # Java maps the archive of its classes, also with the options of the tests.
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3 UTC\nTrue\n", "other work\n")


def test_a_small_table_in_memory_needs_neither_session_nor_java_and_a_kill_costs_it_an_attempt(tmp_path: Path) -> None:
    """T3, H1: its model is that of a session, to the bit."""
    script, errors = [sys.executable, "-c", WITHOUT_SESSION], tmp_path / "errors"
    with errors.open("w") as file:
        said = subprocess.run(
            script, cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE, stderr=file, text=True, timeout=PATIENCE * 200
        ).stdout
    assert said.splitlines()[-1:] == ["[2, 1] True"], errors.read_text()
