"""How much faster is a step on a GPU, and what do mixed precision and XLA add?

The feed-forward net of ``train_steps``, one process, rows that lie in memory; on the machine's first GPU, compared with
all cores of that machine. Without a GPU there is nothing to compare, and the page says so.
"""

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.train_steps_rank import LEARNING_RATE, Work, rows_of
from benchmarks.train_work import in_new_process

if TYPE_CHECKING:  # each side imports it in a process of its own, which has to set its devices before
    import tensorflow as tf

BATCH = 16_384
STEPS_PER_EXECUTION = 50


@dataclass(frozen=True)
class Side:
    """One way to train.

    Attributes:
        on_gpu: True if the process sees the GPUs.
        precision: Keras' policy.
        xla: True if XLA compiles the step.
    """

    on_gpu: bool
    precision: str = "float32"
    xla: bool = False

    @property
    def name(self) -> str:
        """Return the variant's name in the table."""
        return f"{'GPU' if self.on_gpu else 'CPU'}, {self.precision}{', XLA' if self.xla else ''}"


CPU = Side(on_gpu=False)
GPU = Side(on_gpu=True)
SIDES = (CPU, GPU, Side(True, "mixed_bfloat16"), Side(True, "mixed_float16"), Side(True, "mixed_bfloat16", xla=True))


def run(options: Options) -> Report:
    """Measure every side, or say that there is no GPU."""
    found = in_new_process(gpus)
    if not found:
        missing = "TensorFlow sees no GPU on this machine; run it on one that has an NVIDIA driver and CUDA libraries"
        return Report(BENCHMARK.name, BENCHMARK.question, (), skipped=missing)
    work = Work.of_rows("mlp", BATCH, options.rows)
    sides = [Contender(side.name, partial(in_new_process, seconds_of, side, work)) for side in SIDES]
    timings = interleave(sides, options.rounds, warm_ups=0)
    table = timing_table(f"Feed-forward net, batch {BATCH:,}", work.rows, timings, CPU.name, note=f"{found[0]}.")
    mark = Mark("examples/s, GPU / CPU", speed_ratio(timings, GPU.name, CPU.name), 3.0)
    rounds = f"median of {options.rounds}, interleaved; each in a new process, after steps that do not count"
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), (mark,), conditions={"rounds": rounds})


def gpus() -> list[str]:
    """Return the names of the GPUs that TensorFlow sees."""
    _show_gpus()
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in devices]


def seconds_of(side: Side, work: Work) -> float:
    """Train that way in this process, and return the seconds of the timed steps."""
    if side.on_gpu:
        _show_gpus()
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tf_keras

    from benchmarks.train_steps_rank import mlp

    tf_keras.utils.set_random_seed(1)
    tf_keras.mixed_precision.set_global_policy(side.precision)
    model = mlp()
    model.compile(
        tf_keras.optimizers.Adam(LEARNING_RATE),
        tf_keras.losses.BinaryCrossentropy(from_logits=True),
        steps_per_execution=STEPS_PER_EXECUTION,
        jit_compile=side.xla,
    )
    batches = _batches(work)
    model.fit(batches, steps_per_epoch=work.warm_up_steps, verbose=0)
    begin = time.perf_counter()
    model.fit(batches, steps_per_epoch=work.steps, verbose=0)
    return time.perf_counter() - begin


def _show_gpus() -> None:
    """Let this process see the GPUs, which are hidden from all other benchmarks."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        del os.environ["CUDA_VISIBLE_DEVICES"]


def _batches(work: Work) -> "tf.data.Dataset":
    import tensorflow as tf

    (features,), labels = rows_of(work, 0)
    return tf.data.Dataset.from_tensor_slices((features, labels)).batch(work.batch).cache().repeat().prefetch(4)


BENCHMARK = Benchmark("train_gpu", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
