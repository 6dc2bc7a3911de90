"""Injected faults, for tests of failures: killed workers, hangs, full disks, slow or unreachable servers.

Training reaches them by one hook, and only where a fault is asked for.
"""
