"""Runs all benchmarks of the data path one after the other, each in a process of its own, and lists their marks."""

from benchmarks.suite import main

if __name__ == "__main__":
    main("data_path", __doc__)
