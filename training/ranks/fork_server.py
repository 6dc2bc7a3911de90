"""The process that ranks are forked from: it has imported what they need, and started nothing.

TensorFlow takes seconds to import and milliseconds to fork. A fork copies only the thread that calls it, so a server in
which something has started a second thread does not fork a rank but lets it begin afresh, slow and sound.

Each request comes with four open files: the rank's input, its answers, its standard output and error, and where its
stacks go. A rank leads a group of processes, which ends with it. The server ends when the process that started it is
gone, and takes its ranks along.

Not ``multiprocessing``'s fork server: that one has a single environment, runs the main module of the process that asked
(pytest, a notebook, Spark's daemon) in every child, adds a resource tracker, and lets a child that is stopped outlive
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

from callbacks.credentials import without_credentials

_REQUEST_BYTES = 1 << 12
_FILES = 4

EXIT_BROKEN = 4

# Two ways to ask a rank for its stacks, see `_show_stacks_when_asked`. The first one is a signal that no library uses.
STACKS_WITH_LOCK = signal.SIGRTMIN + 5
STACKS_AT_ONCE = signal.SIGUSR1

# A rank takes them for a notice of preemption, once it can.
_NOTICES = (signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Serve the socket in the first argument; the second is the module to import first."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C and a notice of preemption are the ranks' and the driver's affair; the server ends with its task.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _NOTICES:
        signal.signal(number, signal.SIG_IGN)
    # Imports leave hardly anything to collect, and to look for it, again and again, takes a quarter of their time.
    gc.disable()
    try:
        importlib.import_module(sys.argv[2])
    except Exception:
        # A rank will meet the same error, and has somebody to tell it to.
        _print_error()
    # Objects that the collector never looks at stay on pages that server and ranks share.
    gc.collect()
    gc.freeze()
    gc.enable()
    _Server(channel).serve()


def thread_count() -> int:
    """Return the number of threads of this process, those of libraries in C included."""
    return len(list(Path("/proc/self/task").iterdir()))


def _print_error() -> None:
    print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._ranks: set[int] = set()
        # The end of a child wakes the loop through this pair.
        self._wake, self._alarm = socket.socketpair()
        self._wake.setblocking(False)
        self._alarm.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Do what is asked until the other side hangs up; then kill what is left."""
        with contextlib.suppress(ConnectionError):  # the task is gone
            while self._serve_one():
                pass
        for pid in self._ranks:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is nobody else's
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
        # Asked here: a fork has one thread, whatever it has lost.
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
        self._say({"forked": pid})

    def _become_rank(self, files: list[int], *, is_sound: bool) -> NoReturn:
        # What a training starts beside itself (readers of data, say) ends with it.
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
            program = [sys.executable, "-P", "-m", "training.ranks.fork_server", "--rank", str(answers), str(stacks)]
            os.execv(sys.executable, program)  # noqa: S606
        run_rank(answers, stacks)

    def _report_ends(self) -> None:
        while self._ranks:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            if ended.si_pid in self._ranks:
                _kill_group(ended.si_pid)  # before it is reaped, after which the number may be another's
            pid, status = os.waitpid(ended.si_pid, 0)
            self._ranks.discard(pid)
            self._say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, int]) -> None:
        self._channel.send(json.dumps(message).encode())


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had no time to found one
        os.killpg(pid, signal.SIGKILL)


def run_rank(answers: int, stacks: int) -> NoReturn:
    """In the rank: take its environment and path from its input, then run it."""
    for file in (answers, stacks):
        os.set_inheritable(file, False)
    _show_stacks_when_asked(stacks)
    surroundings = json.loads(sys.stdin.buffer.readline())
    os.environ.clear()
    os.environ.update(surroundings["environment"])
    sys.path[:] = surroundings["path"]
    sys.argv[:] = ["training.ranks.rank"]
    _forget_inherited_seed()
    from training.ranks.rank import main as rank

    rank(os.fdopen(answers, "w", encoding="utf-8"))


def _show_stacks_when_asked(file: int) -> None:
    """Let this process write the stacks of its threads to ``file`` on either signal.

    A handler in C writes them at once, whatever the threads do; but it reads frames that change while it reads them,
    and such a process has died of it. A thread that waits for its own signal writes them while it holds Python's lock,
    when nobody changes a frame. It does not get the lock of a process that hangs in C with it: so the handler is asked
    where nothing has come for a while.
    """
    faulthandler.register(STACKS_AT_ONCE, file=file, all_threads=True)
    # Of all threads to come only the one that waits for it may get it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {STACKS_WITH_LOCK})

    def show() -> None:
        while True:
            signal.sigwait({STACKS_WITH_LOCK})
            faulthandler.dump_traceback(file, all_threads=True)

    threading.Thread(target=show, name="stacks", daemon=True).start()


def _forget_inherited_seed() -> None:
    """Let every rank draw its own numbers; NumPy's global generator would go on where the server's stands.

    Python's own ``random`` seeds itself anew after a fork.
    """
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        run_rank(int(sys.argv[2]), int(sys.argv[3]))
    main()
