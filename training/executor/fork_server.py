"""The fork server of workers: it has imported their libraries, and started no thread.

TensorFlow takes seconds to import and milliseconds to fork. A fork copies only the thread that calls it. So if the
server has a second thread, which a library may have started, a worker does not go on from the fork but begins afresh,
which is slow but safe.

Each request comes with four open files: the worker's input, its answers, its standard output and error, and the file
for its stacks. A worker leads a process group, which ends with it. The server ends when the process that started it is
gone, and ends its workers, too.

``multiprocessing``'s fork server does not fit: it has a single environment, runs the main module of the requesting
process (pytest, a notebook, Spark's daemon) in every child, adds a resource tracker, and lets a stopped child outlive
all others.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from mirrorspark.storage import without_credentials

_REQUEST_BYTES = 1 << 12
_FILES = 4

EXIT_BROKEN = 4

# The two signals that ask a worker for its stacks, see `_show_stacks_when_asked`. No library uses the first one.
STACKS_WITH_LOCK = signal.SIGRTMIN + 5
STACKS_AT_ONCE = signal.SIGUSR1
STACKS_END = b"\0"
"""Written after the stacks that were asked for with ``STACKS_WITH_LOCK``."""

# A worker treats them as a notice of preemption, once it has installed its handler.
_NOTICES = (signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Serve the socket in the first argument; the second is the module to import first."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C and a notice of preemption are handled by the workers and the driver; the server ends with its task.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _NOTICES:
        signal.signal(number, signal.SIG_IGN)
    # Imports leave hardly any garbage, and the collector would take a quarter of their time.
    gc.disable()
    try:
        importlib.import_module(sys.argv[2])
    except Exception:
        # A worker will meet the same error, and can report it.
        _print_error()
    # Objects that the collector never visits stay on pages that server and workers share.
    gc.collect()
    gc.freeze()
    gc.enable()
    _Server(channel).serve()


def thread_count() -> int:
    """Return the number of threads of this process, including those of C libraries."""
    return len(list(Path("/proc/self/task").iterdir()))


def _print_error() -> None:
    print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._ranks: set[int] = set()
        # The end of a child wakes the loop through this socket pair.
        self._wake, self._alarm = socket.socketpair()
        self._wake.setblocking(False)
        self._alarm.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve requests until the other side disconnects; then kill the remaining children."""
        with contextlib.suppress(ConnectionError):  # The task has ended.
            while self._serve_one():
                pass
        for pid in self._ranks:
            os.kill(pid, signal.SIGKILL)  # Not reaped yet, so no other process has the number.
            _kill_group(pid)

    def _serve_one(self) -> bool:
        ready, _, _ = select.select([self._channel, self._wake], [], [])
        if self._wake in ready:
            self._wake.recv(_REQUEST_BYTES)
            self._report_ends()
        if self._channel not in ready:
            return True
        message, files, _, _ = socket.recv_fds(self._channel, _REQUEST_BYTES, _FILES)
        if not message:
            return False
        request = json.loads(message)
        if "signal" in request:
            if request["rank"] in self._ranks:
                os.kill(request["rank"], request["signal"])
        else:
            self._fork(files)
        return True

    def _fork(self, files: list[int]) -> None:
        # Counted in the server, since a fork always has one thread.
        is_sound = thread_count() == 1
        pid = os.fork()
        if pid == 0:
            try:
                self._become_rank(files, is_sound=is_sound)
            except BaseException:
                _print_error()
            finally:
                sys.stderr.flush()
                os._exit(EXIT_BROKEN)
        self._ranks.add(pid)
        for file in files:
            os.close(file)
        self._send({"forked": pid})

    def _become_rank(self, files: list[int], *, is_sound: bool) -> NoReturn:
        # Processes that a training starts (readers of data, for example) end with its group.
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_NOTICES):
            signal.signal(number, signal.SIG_DFL)
        for connection in (self._channel, self._wake, self._alarm):
            connection.close()
        orders, answers, output, stacks = files
        os.dup2(orders, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(orders)
        os.close(output)
        if not is_sound:
            for file in (answers, stacks):
                os.set_inheritable(file, True)
            program = [
                sys.executable,
                "-P",
                "-m",
                "mirrorspark.training.executor.fork_server",
                "--rank",
                str(answers),
                str(stacks),
            ]
            os.execv(sys.executable, program)  # noqa: S606
        run_rank(answers, stacks)

    def _report_ends(self) -> None:
        while self._ranks:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            if ended.si_pid in self._ranks:
                _kill_group(ended.si_pid)  # Before it is reaped, after which another process may get the number.
            pid, status = os.waitpid(ended.si_pid, 0)
            self._ranks.discard(pid)
            self._send({"ended": pid, "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, int]) -> None:
        self._channel.send(json.dumps(message).encode())


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # The process ended before it had created its group.
        os.killpg(pid, signal.SIGKILL)


def run_rank(answers: int, stacks: int) -> NoReturn:
    """Read the environment and path of this forked worker from its input, then run it."""
    for file in (answers, stacks):
        os.set_inheritable(file, False)
    _show_stacks_when_asked(stacks)
    surroundings = json.loads(sys.stdin.buffer.readline())
    os.environ.clear()
    os.environ.update(surroundings["environment"])
    sys.path[:] = surroundings["path"]
    sys.argv[:] = ["mirrorspark.training.executor.worker"]
    _forget_inherited_seed()
    from mirrorspark.training.executor.worker import main as rank

    rank(os.fdopen(answers, "w", encoding="utf-8"))


def _show_stacks_when_asked(file: int) -> None:
    """Make this process write the stacks of its threads to ``file`` on either signal.

    A handler in C writes them at once, whatever the threads do; but it reads frames that may change meanwhile, and
    processes have died of that. A thread that waits for its own signal writes them while it holds Python's lock, when
    no frame changes. It never gets the lock in a process that hangs in C with it, so the handler is used if nothing has
    come for a while.
    """
    faulthandler.register(STACKS_AT_ONCE, file=file, all_threads=True)
    # Blocked in all later threads except the one that waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {STACKS_WITH_LOCK})

    def show() -> None:
        while True:
            signal.sigwait({STACKS_WITH_LOCK})
            faulthandler.dump_traceback(file, all_threads=True)
            os.write(file, STACKS_END)

    threading.Thread(target=show, name="stacks", daemon=True).start()


def _forget_inherited_seed() -> None:
    """Reseed NumPy's global generator, which would otherwise continue the server's sequence in every worker.

    Python's own ``random`` seeds itself anew after a fork.
    """
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        run_rank(int(sys.argv[2]), int(sys.argv[3]))
    main()
