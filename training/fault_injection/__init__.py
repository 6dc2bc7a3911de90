"""Injected faults: killed workers, hangs, full disks, and slow or unreachable servers."""
