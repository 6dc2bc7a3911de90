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
# The same of this process's own group, in containers whose kernel shows no other.
_COUNTERS_OF_GROUP = Path("/sys/fs/cgroup/memory.events")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def is_reported_in(text: str) -> bool:
    """Return True if a message says that memory has run out."""
    return _SIGNS.search(text) is not None


def kernel_kills() -> int:
    """Return the number of processes that this machine's kernel has killed for want of memory; 0 if it keeps none."""
    for file in (_COUNTERS, _COUNTERS_OF_GROUP):
        with contextlib.suppress(OSError):
            if found := _KILLS.search(file.read_text(encoding="ascii")):
                return int(found[1])
    return 0


def killed_by(status: int) -> str:
    """Return the exit status of a process that a signal has ended in words, with the signal's name."""
    number = -status
    return f"killed by signal {signal.Signals(number).name if number in set(signal.Signals) else number}"
