"""Injected faults for tests of failures: killed workers, hangs, full disks, slow or unreachable servers.

A training loads them through one hook, only if the environment requests a fault.
"""
