"""T2, T7: ranks are forked from a process that is warm, and neither outlives the task that started them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.child_process import EXIT_ABANDONED, tensorflow_environment
from mirrorspark.training.executor.fork_server import STACKS_END
from mirrorspark.training.executor.worker import WorkerOrders
from mirrorspark.training.executor.worker_process import WorkerProcess
from mirrorspark.training.protocol.messages.events import EventAddress
from tests.conftest import PATIENCE
from tests.unit.training import rank_entries

REPOSITORY = Path(__file__).resolve().parents[3]
NOBODY = EventAddress("127.0.0.1", 9, "token")
SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_server_stays() -> Iterator[None]:
    yield
    worker_process.shut_down()


def started(preload: str = "json", **environment: str) -> WorkerProcess:
    return worker_process.start(tensorflow_environment(1, verbose=False) | environment, preload)


def order(process: WorkerProcess, entry: str, note: str = "", payload: bytes | None = None) -> None:
    plan = rank_entries.Plan(NOBODY, note=note)
    module = rank_entries.__name__
    orders = WorkerOrders(3, 1, NOBODY, f"{module}:{entry}", f"{module}:Plan", plan.to_json(), payload)
    process.send(orders.to_bytes())
    assert json.loads(process.answers.readline()) == {"ready": process.pid}


def lines(process: WorkerProcess) -> Iterator[str]:
    """Yield the lines that a rank prints, except the warning that its events reach nobody: its time is open."""
    return (line for line in process.errors if not line.startswith("lost the event channel"))


def answer(process: WorkerProcess) -> dict[str, Any]:
    line = process.answers.readline()
    assert line, process.errors.read()
    return dict(json.loads(line))


def seen_by_a_rank(file: Path, preload: str = "json", **environment: str) -> dict[str, Any]:
    with started(preload, **environment) as process:
        order(process, "tell_all", str(file), payload=b"\x00\nbytes")
        assert answer(process) == {"outcome": "finished", "epochs": 1}
        own = psutil.Process(process.pid)
        return json.loads(file.read_text()) | {"parent": own.ppid(), "command": own.cmdline()}


def processes_below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_ranks_come_from_one_server_and_each_has_its_own_place_in_the_cluster(tmp_path: Path) -> None:
    first = seen_by_a_rank(tmp_path / "seen", TF_CONFIG="first", CUDA_VISIBLE_DEVICES="")
    second = seen_by_a_rank(tmp_path / "seen", TF_CONFIG="second", CUDA_VISIBLE_DEVICES="1")
    assert first["parent"] == second["parent"]
    assert (first["environment"]["TF_CONFIG"], second["environment"]["TF_CONFIG"]) == ("first", "second")
    assert second["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert first["random"] != second["random"]
    assert (first["rank"], first["payload"]) == (3, b"\x00\nbytes".hex())
    assert first["arguments"] == ["mirrorspark.training.executor.worker"]


def test_a_rank_has_the_environment_of_its_task_and_no_more(tmp_path: Path) -> None:
    environment = tensorflow_environment(1, verbose=False) | {"TF_CONFIG": "{}"}
    assert seen_by_a_rank(tmp_path / "seen", TF_CONFIG="{}")["environment"] == environment


def test_settings_read_at_import_get_a_separate_fork_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seen_by_a_rank(tmp_path / "seen")
    other_threads = seen_by_a_rank(tmp_path / "seen", OMP_NUM_THREADS="2")
    assert other_threads["parent"] != first["parent"]
    assert not psutil.pid_exists(first["parent"])
    monkeypatch.syspath_prepend(tmp_path)
    other_path = seen_by_a_rank(tmp_path / "seen", OMP_NUM_THREADS="2")
    assert other_path["parent"] != other_threads["parent"]
    assert other_path["path"][0] == str(tmp_path)


def test_a_server_in_which_a_thread_runs_starts_ranks_afresh(tmp_path: Path) -> None:
    seen = seen_by_a_rank(tmp_path / "seen", preload="tests.unit.training.threaded_preload", TF_CONFIG="mine")
    assert "--rank" in seen["command"]
    assert seen["environment"]["TF_CONFIG"] == "mine"
    assert seen["arguments"] == ["mirrorspark.training.executor.worker"]


def test_a_module_that_cannot_be_imported_ahead_is_the_ranks_affair(tmp_path: Path) -> None:
    assert seen_by_a_rank(tmp_path / "seen", preload="no_such_module")["rank"] == 3


def test_output_of_a_rank_is_not_taken_for_its_answer(tmp_path: Path) -> None:
    with started() as process:
        order(process, "tell_all", str(tmp_path / "seen"))
        assert answer(process)["outcome"] == "finished"
        process.kill()
        assert list(lines(process)) == ["standard output is not the line of answers\n", "standard error\n"]


@pytest.mark.parametrize(
    ("entry", "status"), [("kill_itself", -signal.SIGKILL), ("abort", -signal.SIGABRT), ("leave", 5)]
)
def test_the_end_of_a_rank_is_seen_with_its_status(entry: str, status: int) -> None:
    with started() as process:
        order(process, entry, "1")
        assert process.answers.readline() == ""
        assert process.wait(SECONDS) == status


def test_waiting_has_a_limit_and_a_stopped_rank_can_be_killed() -> None:
    with started() as process:
        order(process, "hang")
        process.send_signal(signal.SIGSTOP)
        assert process.wait(0.01) is None
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
        process.kill()  # once more does nothing


def test_leaving_the_context_leaves_neither_process_nor_zombie_nor_file() -> None:
    before = set(processes_below(os.getpid()))  # of other tests in this process
    with started():
        pass
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - /proc needs no more
    for _ in range(2):
        with started() as process:
            order(process, "hang")
    assert not psutil.pid_exists(process.pid)
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    worker_process.shut_down()
    assert set(processes_below(os.getpid())) <= before


def stacks_within(process: WorkerProcess, function: str) -> str:
    """Return the stacks as the rank is in that function."""
    deadline = time.monotonic() + SECONDS
    while f"in {function}" not in (text := process.stacks()):
        assert time.monotonic() < deadline, text
    return text


def test_stacks_tell_where_every_thread_is() -> None:
    with started() as process:
        order(process, "hang")
        assert psutil.Process(process.pid).name() == "rank 3"
        text = stacks_within(process, "hang")
        assert text.count("hread 0x") >= 3  # the training, the task's line, the driver's


def test_stacks_that_are_written_slowly_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """T7: a rank on a machine with much to do is interrupted within its dump."""
    with started() as process:

        def write() -> None:
            for part in (b"Thread 1", b" in train", STACKS_END):
                os.write(process._streams.stacks, part)
                time.sleep(0.2)

        thread = threading.Thread(target=write)
        with monkeypatch.context() as slow:
            slow.setattr(process, "send_signal", lambda number: thread.start())
            assert process.stacks(timeout_seconds=60) == "Thread 1 in train"
        thread.join()


def test_a_rank_that_runs_survives_being_asked_for_its_stacks() -> None:
    with started() as process:
        order(process, "import_modules")
        stacks_within(process, "work")
        for _ in range(40):
            assert "in work" in process.stacks(timeout_seconds=60)
        assert process.wait(0) is None


def test_stacks_come_also_while_a_thread_holds_pythons_lock() -> None:
    with started() as process:
        order(process, "hold_the_lock")
        stacks_within(process, "hold_the_lock")


def test_a_stopped_process_has_no_stacks_to_show() -> None:
    with started() as process:
        order(process, "hang")
        process.send_signal(signal.SIGSTOP)
        assert process.stacks(timeout_seconds=0.1) == ""


def test_a_rank_whose_server_is_killed_is_ended_and_the_next_gets_a_new_server(tmp_path: Path) -> None:
    with started() as process:
        order(process, "hang")
        psutil.Process(psutil.Process(process.pid).ppid()).kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert seen_by_a_rank(tmp_path / "seen")["rank"] == 3


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_nothing_is_left_when_the_task_is_killed(*, is_stopped: bool) -> None:
    program = f"""
        import sys, threading
        # A rank gets this process's path but for the empty entry, which stands for the working directory.
        sys.path[0] = {str(REPOSITORY)!r}
        from tests.processes.training.test_worker_process import order, stacks_within, started
        process = started()
        order(process, "hang")
        stacks_within(process, "hang")
        if {is_stopped}:
            process.send_signal(19)
        print("started", flush=True)
        threading.Event().wait(100)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as task:
        assert task.stdout is not None
        assert task.stdout.readline() == "started\n"
        below = processes_below(task.pid)
        assert len(below) == 2
        assert psutil.STATUS_ZOMBIE not in [process.status() for process in below]
        task.kill()
        _, alive = psutil.wait_procs(below, timeout=SECONDS)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_signals_to_the_tasks_process_group_reach_neither_server_nor_rank(tmp_path: Path) -> None:
    with started() as process:
        order(process, "hang")
        server = psutil.Process(process.pid).ppid()
        sessions = {os.getsid(pid) for pid in (process.pid, server)}
        groups = {os.getpgid(pid) for pid in (process.pid, server)}
    assert os.getsid(0) not in sessions
    assert os.getpgid(0) not in groups


def test_processes_started_by_a_rank_end_with_it(tmp_path: Path) -> None:
    with started() as process:
        order(process, "wait_beside_a_child", str(tmp_path / "child"))
        child = psutil.Process(number_in(tmp_path / "child"))
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
        assert process.answers.read() == ""
    psutil.wait_procs([child], timeout=SECONDS)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def number_in(file: Path) -> int:
    deadline = time.monotonic() + SECONDS
    while not (file.exists() and (text := file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(text)


def test_nobody_waits_for_a_rank_that_does_not_read(tmp_path: Path) -> None:
    with started() as process:
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        process.send(b"x" * 4_000_000)
        assert time.monotonic() - begin < SECONDS
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    with started() as process:
        order(process, "be_killed_beside_a_child", str(tmp_path / "child"))
        child = psutil.Process(number_in(tmp_path / "child"))
        process.send(b"x" * 4_000_000)
        assert process.wait(SECONDS) == -signal.SIGKILL
    child.kill()


def test_a_line_is_out_as_soon_as_it_is_printed() -> None:
    with started(PYTHONUNBUFFERED="") as process:
        order(process, "print_many_lines", "2")
        assert answer(process)["outcome"] == "finished"
        assert list(itertools.islice(lines(process), 2)) == ["line 0\n", "line 1\n"]


def test_a_rank_that_begins_afresh_takes_no_modules_from_the_folder_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "socket.py").write_text("raise ImportError('of the wrong folder')")
    monkeypatch.chdir(tmp_path)
    assert seen_by_a_rank(tmp_path / "seen", preload="tests.unit.training.threaded_preload")["rank"] == 3


def test_an_abandoned_rank_leaves_by_itself() -> None:
    with started() as process:
        order(process, "hang")
        process._streams.orders.close()
        assert process.wait(SECONDS) == EXIT_ABANDONED


def test_a_server_that_is_not_asked_for_anything_ends_with_its_task() -> None:
    before = set(processes_below(os.getpid()))  # of other tests in this process
    worker_process._server_for(tensorflow_environment(1, verbose=False), "json")
    (server,) = set(processes_below(os.getpid())) - before
    worker_process.shut_down()
    assert not server.is_running()


def test_all_that_a_rank_imports_is_imported_ahead_and_starts_nothing() -> None:
    """T6: a restart imports nothing. A fork is sound, because no thread has been started, and no runtime."""
    program = """
        import sys
        import mirrorspark.training.executor.worker_preload
        ahead = set(sys.modules)
        import mirrorspark.training.executor.worker, mirrorspark.training.programs.keras_fit.fit
        from tensorflow.python.eager import context
        from mirrorspark.training.executor.fork_server import thread_count
        print(thread_count(), context.context_safe(), sorted(set(sys.modules) - ahead))
        """
    environment = tensorflow_environment(2, verbose=False) | worker_process._NO_THREADS
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=PATIENCE * 100,
        check=True,
    )
    assert said.stdout == "1 None ['mirrorspark.training.executor.fork_server']\n"


def test_a_task_imports_little_before_its_rank_begins() -> None:
    program = """
        import sys
        import mirrorspark.training.protocol.plan, mirrorspark.training.executor.task
        sys.exit(", ".join({"numba", "pandas", "scipy", "tensorflow"} & set(sys.modules)) or 0)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 60, check=False)
    assert not done.stderr, f"a task imports {done.stderr}"
