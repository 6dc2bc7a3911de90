"""A program that runs in the background while something is measured: started, awaited by what it says, ended."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.02
_END_SECONDS = 20.0


class DaemonError(RuntimeError):
    """The program ended, or has not said in time what was expected; the message tells its last words."""


@dataclass(frozen=True)
class Daemon:
    """A program in a process group of its own.

    Attributes:
        process: Leads the group.
        log: What it says.
    """

    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> "Daemon":
        """Start ``command`` in the folder of ``log``, with ``environment`` added to this process's own."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **environment},
                cwd=log.parent,
                start_new_session=True,
            )
        return cls(process, log)

    def wait_for(self, pattern: str, within_seconds: float, *, times: int = 1) -> "re.Match[str]":
        """Return the last of ``times`` places of the log that match ``pattern``.

        Raises:
            DaemonError: It ended before, or has not said so in time.
        """
        deadline = time.monotonic() + within_seconds
        while True:
            # In this order: what it says last is read after its end.
            has_ended = self.process.poll() is not None
            text = self.log.read_text(encoding="utf-8", errors="replace")
            if len(found := list(re.finditer(pattern, text))) >= times:
                return found[times - 1]
            if has_ended or time.monotonic() > deadline:
                why = "ended" if has_ended else f"has not said '{pattern}' within {within_seconds:g} s"
                last = " / ".join(text.strip().splitlines()[-3:]) or "nothing"
                raise DaemonError(f"{self.log.stem} {why}; its last words: {last}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL to all of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Ask it to end, and kill what is left of its group."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_END_SECONDS)
        self.kill()
