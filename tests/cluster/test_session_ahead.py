"""A session that starts in a thread is like any other (H1)."""

import subprocess
import sys

SCRIPT = """
import signal, sys, threading
from pyspark.sql import SparkSession
from mirrorspark.spark_session import SessionAhead, session_of
from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.driver import get_workers_ready

session = SessionAhead(None, 1)
session.begin()
are_ready = threading.Event()
session.then(lambda spark: (get_workers_ready(TrainingConfig(name="ahead"), spark), are_ready.set()))
# Written while Java starts, which is silent.
print("other work", file=sys.stderr, flush=True)
spark = session.get()
assert spark is SparkSession.getActiveSession(), "another session is active"
assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler, "Ctrl-C cancels no job"
print(spark.range(3).count(), spark.conf.get("spark.sql.session.timeZone"))

def imports_tensorflow(rows):
    from mirrorspark.training.executor import worker_process
    server = worker_process._server
    with worker_process.start(dict(server.needs.environment)) as worker:
        worker.send(b"")
        yield server is worker_process._server and server.is_alive()

assert are_ready.wait(60)
print(session_of(spark).run_barrier_job(imports_tensorflow, 1, timeout_seconds=60))
"""


def test_a_session_that_started_in_a_thread_is_active_and_readies_its_workers() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=100)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3 UTC\n[True]\n", "other work\n")
