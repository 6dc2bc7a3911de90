"""Checks for the settings of several architectures, without TensorFlow."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # settings are also checked without a dataset
    from mirrorspark.data_pipelines.features.fitted import FittedFeatures

Schedule = Literal["constant", "cosine", "linear"]


class ModelSettingsError(ValueError):
    """An invalid setting of a model; the message names the setting, its value and the remedy."""


def check_positive(name: str, value: int) -> None:
    """Raise ``ModelSettingsError`` unless ``value`` is a whole number from 1 on."""
    if type(value) is not int or value < 1:
        raise ModelSettingsError(f"model setting {name} is {value!r}; use a whole number from 1 on")


def check_fraction(name: str, value: float) -> None:
    """Raise ``ModelSettingsError`` unless ``value`` is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise ModelSettingsError(f"model setting {name} is {value}; use a share from 0 up to, not including, 1")


def check_candidates(fitted: "FittedFeatures", top_k: int) -> None:
    """Raise ``ModelSettingsError`` unless the candidate's vocabulary has ``top_k`` tokens to recommend."""
    feature = fitted.spec.candidate
    candidates = len(fitted.vocabulary(feature))
    if not 1 <= top_k <= candidates:
        raise ModelSettingsError(
            f"top_k {top_k} cannot be met: feature '{feature.name}' has {candidates} candidates in the training rows; "
            f"use 1 to {candidates}"
        )


def check_warm_up(schedule: Schedule, warmup_steps: int, total_steps: int) -> None:
    """Raise ``ModelSettingsError`` if a falling learning-rate schedule has no steps after its warm-up."""
    if schedule != "constant" and total_steps <= warmup_steps:
        raise ModelSettingsError(
            f"a {schedule} learning-rate schedule of {total_steps} steps ends before its warm-up of {warmup_steps}; "
            f"use fewer warm-up steps or more epochs"
        )
