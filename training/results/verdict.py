"""The verdict on a trained model: its metrics and pictures next to those of baselines."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirrorspark.pages import beside_the_result
from mirrorspark.spark_session import session_of
from mirrorspark.training.configuration import POPULARITY
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.job import LearntModel, TrainingJob
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.evaluation import (
    NETWORK,
    OTHERS_FOLDER,
    Choice,
    evaluate_run,
    read_lists,
    read_scores,
    row_baselines,
)
from mirrorspark.training.results.report import each_baseline


def evaluate(
    job: TrainingJob,
    predictions: dict[str, pa.Table],
    best: LearntModel,
    attempts: tuple[Attempt, ...],
    choice: Choice | None,
    on_progress: OnProgress,
) -> evaluate_run.BaselineComparison:
    """Return the metrics of a model next to those of its baselines, which are fitted here.

    Args:
        job: The training.
        predictions: Predictions of the evaluated splits, by their names.
        best: The epoch that was exported.
        attempts: Every launch.
        choice: The choice between the network, baselines and their blend, if there was one.
        on_progress: Gets the progress, by baseline.
    """
    config, dataset = job.config, job.dataset
    steps = dataset.steps("train", config.global_batch_size)
    history = [job.epochs[epoch]["logs"] for epoch in sorted(job.epochs)]
    curves = evaluate_run.curves_of(
        history, best.epoch, tuple(attempt.resumed_from / steps for attempt in attempts[1:])
    )
    if config.task == "retrieval":
        lists = _recommended(job, choice, on_progress)
        seconds = {} if choice is None else choice.seconds
        return evaluate_run.compare_retrieval(dataset, predictions, lists, config.top_k, curves, seconds, on_progress)
    baselines = _baselines(job, choice, on_progress)
    if config.task == "multi_label":
        return evaluate_run.compare_multi_label(
            predictions, baselines, config.seed, curves, dataset.features.classes, on_progress
        )
    if config.task == "multi_class":
        names, is_ordinal = dataset.features.class_names, dataset.spec.label.order is not None
        return evaluate_run.compare_multi_class(
            predictions, baselines, config.seed, curves, names, on_progress, is_ordinal=is_ordinal
        )
    compare = {"binary": evaluate_run.compare_binary, "regression": evaluate_run.compare_regression}[config.task]
    return compare(predictions, baselines, config.seed, curves, on_progress)


def log_verdict(job: TrainingJob, verdict: evaluate_run.BaselineComparison, model_uri: str) -> None:
    """Log a verdict's metrics and pictures to the MLflow run of the training."""
    values = {f"{split}_{name}": value for split, of in verdict.metrics.items() for name, value in of.items()}
    # If a baseline or a blend is registered, the network is among the models that it is compared with.
    for place, entry in enumerate(each_baseline(verdict.baseline)):
        # The first one's metrics have the same names whatever it is, so that runs can be compared by them.
        other = NETWORK if entry["name"] == NETWORK else "baseline" if place == 0 else entry["name"]
        values |= {f"{other}_{name}": value for name, value in entry["metrics"].items()}
        difference = "difference" if place == 0 else f"difference_{other}"
        for name, interval in entry.get("intervals", {}).items():
            ends = {"": interval["difference"], "_low": interval["low"], "_high": interval["high"]}
            values |= {f"{difference}_{name}{end}": value for end, value in ends.items()}
    job.log_metrics(values, model_uri)
    for name, figure in verdict.figures.items():
        with beside_the_result(f"picture '{name}'"):
            job.tracked.log_figure(figure, job.folder.plots / f"{name}.png")


def _baselines(job: TrainingJob, choice: Choice | None, on_progress: OnProgress) -> list[evaluate_run.ComparedModel]:
    """Return the models to compare the model with: the one that was not registered, and the baselines, fitted here."""
    config, dataset, asked_for = job.config, job.dataset, job.config.row_baselines
    data, rows_of_test = None, dataset.manifest.rows("test")
    step = evaluate_run.evaluated_step(rows_of_test, dataset.features.classes) if config.task == "multi_label" else 1
    baselines = [] if choice is None else _others(choice, job.folder.predictions, step)
    for place, asked in enumerate(asked_for):
        if choice is not None and asked.label in choice.values:
            continue
        if asked.name == POPULARITY:
            rates = row_baselines.label_rates(dataset)
            baselines.append(
                evaluate_run.ComparedModel(asked.name, np.broadcast_to(rates, (-(-rows_of_test // step), len(rates))))
            )
            continue
        progress = row_baselines.progress_of(asked_for, place, on_progress)
        data = data or row_baselines.read_baseline_data(dataset, config.task, job.class_factors, config.monotone)
        begin = time.monotonic()
        fitted = row_baselines.fit_baseline(asked, data, config.seed, progress)
        seconds = time.monotonic() - begin
        part = row_baselines.train_fraction(data, dataset.manifest.rows("train"))
        progress("scores of the test rows")
        scores = row_baselines.baseline_scores(fitted, dataset, "test", step)
        baselines.append(evaluate_run.ComparedModel(asked.label, scores, part, fitted.left_out, seconds))
    return baselines


def _others(choice: Choice, predictions: Path, step: int) -> list[evaluate_run.ComparedModel]:
    """Return the models that a choice has not registered, with their scores of every ``step``-th test row."""
    return [
        evaluate_run.ComparedModel(
            name,
            read_scores(predictions / OTHERS_FOLDER / name / "test.parquet")[::step],
            choice.learnt_from if name in choice.seconds else {},
            choice.left_out.get(name, ""),
            choice.seconds.get(name),
        )
        for name in choice.others
    ]


def _recommended(job: TrainingJob, choice: Choice | None, on_progress: OnProgress) -> dict[str, np.ndarray]:
    """Return the lists of each baseline for the test rows, by its label: the export's, and those of others."""
    known = [] if choice is None else choice.others
    found = {name: read_lists(job.folder.predictions, name) for name in known}
    fitted = found if choice is None else choice.values
    wanted = [asked for asked in job.config.recommenders if asked.label not in fitted]
    if not wanted:
        return found
    # They import Numba and Spark ML.
    from mirrorspark.training.programs.recommenders import Interactions, recommended

    config, interactions = job.config, Interactions(job.dataset)
    if any(asked.name == "als" for asked in wanted):
        session_of(job.cluster.session()).give_checkpoints(job.folder.spark_checkpoints)
    for place, asked in enumerate(wanted):
        on_progress(f"baselines; now {asked.label}", place, len(wanted))
        found[asked.label] = recommended(asked, interactions, config.top_k, config.seed, job.cluster.session())
    return found
