"""The score that each unit is exposed to, of those that several models gave it in one pass; shadows stay apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from mirrorspark.lifecycle.experiments.columns import column_of, require_column
from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.units.assignment import assign_units
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import meant

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_OWN = ("variant", "scored_by", "score")


@dataclass(frozen=True)
class ExposedScores:
    """Scores of several models, divided into shown ones and shadows.

    Attributes:
        exposed: A row per scored one: the unit, the keys, ``variant`` (null or ``holdout`` outside the experiment),
            ``scored_by``, the model whose score is shown, and ``score``.
        shadows: A row per scored one: the unit, the keys, ``variant``, ``scored_by``, and ``shadow_MODEL`` for each
            model: its score, null where that is the one shown.
    """

    exposed: DataFrame
    shadows: DataFrame


@on_running_session
def exposed_scores(
    scored: DataFrame,
    experiment: Experiment,
    *,
    unit: str,
    scores: Mapping[str, str],
    keys: Sequence[str] = (),
    default: str | None = None,
) -> ExposedScores:
    """Choose the score that each row's unit is exposed to.

    Models that are not variants of the experiment are *shadows*: they are scored in the same pass, and shown to nobody.
    The exposed table has only the unit, the keys and its score, so no other column can carry one there.

    Args:
        scored: A column of scores per model, such as the wide outputs of a fleet.
        experiment: The experiment; each of its variants is a model.
        unit: Column of texts or integers.
        scores: The column of scores of each model.
        keys: Further columns that both tables have.
        default: The model of units that are held out, or not in the experiment's part of its layer, or null; by
            default the control.

    Raises:
        ExperimentError: A variant has no scores, a column is missing, a key is a score, or the default is not a model.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    standard = experiment.control if default is None else default
    if missing := [name for name in experiment.variants if name not in scores]:
        raise ExperimentError(
            f"there are no scores for the variants {missing} of experiment '{experiment.name}'; they are for "
            f"{list(scores)}{meant(missing[0], scores)}"
        )
    if standard not in scores:
        raise ExperimentError(f"default '{standard}' is none of the models {list(scores)}{meant(standard, scores)}")
    for name in (unit, *keys, *scores.values()):
        require_column(scored, name, "among the scores")
    for name in (unit, *keys):
        if name in scores.values():
            raise ExperimentError(f"column '{name}' is a score, which keys would show to all; leave it out")
        if name in _OWN:
            raise ExperimentError(f"column '{name}' has the name of a new one; rename it")
    chosen = scored.select(*(column_of(name) for name in (unit, *keys, *dict.fromkeys(scores.values()))))
    chosen = assign_units(chosen, experiment, unit=unit)
    variant = F.col("variant")
    is_variant = variant.isin(*experiment.variants)  # null for a null, which is not true either
    chosen = chosen.withColumn("scored_by", F.when(is_variant, variant).otherwise(standard))
    # Only the variants and the default can be shown, so the expression does not contain the shadows.
    shown = dict.fromkeys((*experiment.variants, standard))
    by_model = {name: F.when(F.col("scored_by") == name, column_of(scores[name])) for name in shown}
    score = reduce(lambda one, other: F.coalesce(one, other), by_model.values())
    common = [*(column_of(name) for name in (unit, *keys)), variant, F.col("scored_by")]
    shadows = [
        F.when(F.col("scored_by") != name, column_of(column)).alias(f"shadow_{name}") for name, column in scores.items()
    ]
    return ExposedScores(chosen.select(*common, score.alias("score")), chosen.select(*common, *shadows))
