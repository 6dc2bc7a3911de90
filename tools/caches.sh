#!/bin/sh
# Fill the caches that the first call, every worker of its first job, and every process of the tests would else each
# wait for (40 s; nothing when that is done): compiled numba kernels next to their source, and Java's archive of the
# classes that it loads for Spark.
set -eu
cd "$(dirname "$0")/.."
# Numba compiles a kernel again when its own file changes, but not when only a file changes whose kernels it calls.
for cached in data_pipelines/__pycache__/*.nbi data_pipelines/*/__pycache__/*.nbi data_pipelines/*/*/__pycache__/*.nbi; do
    for inner in checksums kernels/wire_read kernels/wire_write; do
        [ "$cached" -nt "data_pipelines/tfrecord/$inner.py" ] || rm -f "$cached"
    done
done
exec .venv/bin/python -c "
import mirrorspark.data_pipelines.conversion, mirrorspark.data_pipelines.reading.foreign, mirrorspark.data_pipelines.tfrecords
import mirrorspark.data_pipelines.features.farmhash, mirrorspark.data_pipelines.features.vocabulary_kernels
import mirrorspark.data_pipelines.sources.hash_kernels
import mirrorspark.fleet.counting, mirrorspark.fleet.kernels, mirrorspark.fleet.tree_kernels
import mirrorspark.training.programs.recommenders.weight_kernel, mirrorspark.training.protocol.ring.row_sums
from mirrorspark.spark_session import class_archive
class_archive.write_archive()
"
