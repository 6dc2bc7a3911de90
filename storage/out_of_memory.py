"""Memory that has run out: its signs in messages, in exit statuses and in the kernel's counter."""

import contextlib
import re
import signal
from pathlib import Path

# Python's and NumPy's and Arrow's errors, C++'s, TensorFlow's allocator, the kernel's, and Kubernetes' word for it.
_SIGNS = re.compile(
    r"MemoryError\b|\bbad_alloc\b|\bOOM when allocating\b|\bfailed to allocate memory\b|\bCannot allocate memory\b"
    r"|\bUnable to allocate\b|\bOutOfMemoryError\b|\bOOMKilled\b"
)
_COUNTERS = Path("/proc/vmstat")
# Those of this process's own group, in containers whose kernel shows no others: of control groups version 2 and 1.
_COUNTERS_OF_GROUP = Path("/sys/fs/cgroup/memory.events")
_COUNTERS_OF_OLD_GROUP = Path("/sys/fs/cgroup/memory/memory.oom_control")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def is_reported_in(text: str) -> bool:
    """Return True if a message says that memory has run out."""
    return _SIGNS.search(text) is not None


def kernel_kills() -> int:
    """Return a counter that grows when this machine's kernel kills a process for want of memory.

    It is the sum of all counters, since some sandboxes have the kernel's file and count in another.
    """
    kills = 0
    for file in (_COUNTERS, _COUNTERS_OF_GROUP, _COUNTERS_OF_OLD_GROUP):
        with contextlib.suppress(OSError):
            if found := _KILLS.search(file.read_text(encoding="ascii")):
                kills += int(found[1])
    return kills


def killed_by(status: int) -> str:
    """Return the exit status of a process that a signal has ended in words, with the signal's name."""
    number = -status
    return f"killed by signal {signal.Signals(number).name if number in set(signal.Signals) else number}"
