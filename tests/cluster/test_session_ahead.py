"""A session that starts in a thread is like any other (H1)."""

import subprocess
import sys

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
# Done already by make, or by an earlier test.
WRITE_ARCHIVE = "from mirrorspark.spark_session import class_archive; class_archive.write_archive()"


def test_a_session_that_started_in_a_thread_is_active_and_its_start_hides_nothing() -> None:
    subprocess.run([sys.executable, "-c", WRITE_ARCHIVE], check=True, timeout=PATIENCE * 100)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=PATIENCE * 100
    )
    # Java maps the archive of its classes, also with the options of the tests.
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3 UTC\nTrue\n", "other work\n")
