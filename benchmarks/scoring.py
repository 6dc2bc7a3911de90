"""Runs all benchmarks of scoring one after the other, each in a process of its own, and lists their marks."""

from benchmarks.suite import main

if __name__ == "__main__":
    main("scoring", __doc__)
