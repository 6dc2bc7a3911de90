"""How long does the flights recipe take from its CSV files to a dataset, and what does a first epoch wait for input?

The share is the time that a training loop on one worker spends in ``next`` of its input, of the time of its steps.
"""

import shutil
import time
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, main, on_one_core, question_of
from benchmarks.report import Report, Table
from benchmarks.spark_work import session
from mirrorspark.training.config import RunConfig

RECIPE = "flights"
GLOBAL_BATCH = 2_048


def run(options: Options) -> Report:
    """Convert in one session as often as there are rounds, then train one epoch on what came out."""
    from mirrorspark.data_pipelines.convert import convert
    from mirrorspark.training.pipeline import recipe_table

    config = RunConfig.from_recipe(RECIPE, output=str(options.scratch))
    spark = session()
    seconds = []
    target = options.scratch / "dataset"
    for _ in range(options.rounds):
        shutil.rmtree(target, ignore_errors=True)
        start = time.perf_counter()
        convert(recipe_table(spark, config).limit(options.rows), config.spec, target, options=config.conversion)
        seconds.append(time.perf_counter() - start)
    spark.stop()
    steps = [on_one_core(_first_epoch, str(target), config.model["name"]) for _ in range(options.rounds)]
    rows = [
        (f"{number}", f"{converted:.1f}", f"{waited:.2f}", f"{total:.2f}", f"{waited / total:.1%}")
        for number, (converted, (waited, total)) in enumerate(zip(seconds, steps, strict=True), 1)
    ]
    columns = ("round", "conversion, s", "waiting for input, s", "first epoch, s", "share")
    note = (
        "The first round has a JVM that compiles nothing yet, as a run from the command line does. "
        f"Batches of {GLOBAL_BATCH:,}, model {config.model['name']}, one core; the first step, which traces the "
        "model, is left out."
    )
    return Report(BENCHMARK.name, BENCHMARK.question, (Table(f"{options.rows:,} flights", columns, tuple(rows), note),))


def _first_epoch(dataset: str, architecture: str) -> tuple[float, float]:
    """Return the seconds that the steps of one epoch waited for input, and those that they took in all."""
    import tensorflow as tf

    from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
    from mirrorspark.models import catalog
    from mirrorspark.models.fitting.objectives import compile_model
    from mirrorspark.models.fitting.optimizers import OptimizerSettings, build_optimizer

    opened = Dataset.open(Path(dataset))
    module = catalog.architecture(architecture)
    model = module.build(catalog.settings(architecture, {}), opened.features, 1)
    compile_model(model, module.TASK, build_optimizer(OptimizerSettings()))
    step = tf.function(model.train_step)
    batches = iter(load_batches(opened, ReadPlan("train", GLOBAL_BATCH, seed=1)))
    step(next(batches))["loss"].numpy()
    waited = total = 0.0
    for _ in range(opened.steps("train", GLOBAL_BATCH) - 1):
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        step(batch)["loss"].numpy()  # wait until it is done
        total += time.perf_counter() - start
    return waited, total


BENCHMARK = Benchmark("flights_conversion", question_of(__doc__), 336_776, run)

if __name__ == "__main__":
    main(BENCHMARK)
