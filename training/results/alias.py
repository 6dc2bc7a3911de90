"""The alias of a registered version, which one below a baseline does not get."""

from mirrorspark.training.configuration import TrainingConfig
from mirrorspark.training.job import TrainingJob
from mirrorspark.training.results.evaluation import Choice, evaluate_run
from mirrorspark.training.results.report import CHALLENGER, as_baseline, better_baseline, each_baseline
from mirrorspark.training.results.trained import Trained


def reason_for_no_alias(
    config: TrainingConfig, verdict: evaluate_run.BaselineComparison, choice: Choice | None
) -> str | None:
    """Return the reason why a version gets no alias: something is better than it; None for one that gets it."""
    # By register='better' the validation rows have chosen among these models already: test rows do not veto them again.
    judged = choice.others if choice else ()
    rest = as_baseline([entry for entry in each_baseline(verdict.compared) if entry["name"] not in judged])
    better = better_baseline(verdict.metrics, rest, config.monitor)
    if better is None or config.register == "always":
        return None
    return (
        f"This version has no alias, because {better}: improve the model, or register it with register='always' "
        f"(--register always)"
    )


def name_version(job: TrainingJob, trained: Trained) -> None:
    """Give the registered version its alias, or say why it gets none."""
    if trained.withheld is None:
        job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
    else:
        job.view.log(f"warning: {trained.withheld}")
