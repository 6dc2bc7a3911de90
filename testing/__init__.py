"""Faults for tests of a training: killed workers, hangs, full disks, and slow or unreachable servers."""
