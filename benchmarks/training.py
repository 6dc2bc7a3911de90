"""Runs all benchmarks of training one after the other, each in a process of its own, and lists their marks."""

from benchmarks.suite import Suite, main

SUITE = Suite(
    name="training",
    title="Benchmarks of training",
    benchmarks=(
        "train_steps",
        "train_models",
        "train_start",
        "train_restart",
        "train_kills",
        "train_local_steps",
        "train_local_updates",
        "train_end_to_end",
        "train_fleet",
        "train_gpu",
    ),
    page="training.md",
    command="python -m benchmarks.training",
)

if __name__ == "__main__":
    main(SUITE, __doc__)
