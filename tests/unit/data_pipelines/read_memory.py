"""Print by how many bytes this process grows while TensorFlow reads a dataset, having read a small one before.

Arguments: the folders of the small one and of the large one.
"""

import sys

import psutil

from mirrorspark.data_pipelines.reading.dataset import ReadPlan, load_batches


def main() -> None:
    small, large = sys.argv[1:]
    for _ in load_batches(small, ReadPlan("train", 1024, seed=1)):
        pass
    process = psutil.Process()
    before = process.memory_info()
    peak = 0
    for _ in load_batches(large, ReadPlan("train", 1024, seed=1)):
        now = process.memory_info()
        peak = max(peak, (now.rss - now.shared) - (before.rss - before.shared))  # mapped files are shared
    print(peak)


if __name__ == "__main__":
    main()
