"""Checks for the settings of several architectures, without TensorFlow."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import meant

if TYPE_CHECKING:  # settings are also checked without a dataset
    from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures

_LONGEST_LABEL = 80

Schedule = Literal["constant", "cosine", "linear"]
Cell = Literal["lstm", "gru"]


class ModelSettingsError(ClearError, ValueError):
    """An invalid setting of a model; the message names the setting, its value and the remedy."""


def checked_settings(name: str, kind: type[Any], options: Mapping[str, Any]) -> Any:
    """Return the settings of a model with these values.

    Args:
        name: The model.
        kind: Its settings, a dataclass whose fields all have defaults.
        options: Values by field; a list is made a tuple.

    Raises:
        ModelSettingsError: An unknown setting or an invalid value.
    """
    known = get_type_hints(kind)
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = meant(str(unknown[0]), known)
        raise ModelSettingsError(f"model '{name}' has no setting {unknown}{hint}; use {sorted(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for field in dataclasses.fields(kind):
        expected = type(field.default)
        value = values.get(field.name, field.default)
        # isinstance accepts a bool as an int, so types are compared; a whole number is valid for a float.
        fits = type(value) in ((int, float) if expected is float else (expected,))
        if not fits:
            raise ModelSettingsError(
                f"model '{name}': setting {field.name} is {value!r}; it must be of type {expected.__name__}"
            )
    return kind(**values)


def labelled(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of a model with settings in tables and metrics: ``ease``, or ``ease_last_items_15``."""
    words = [name, *(f"{option}_{_in_short(value)}" for option, value in options.items())]
    label = re.sub(r"[^\w.-]+", "_", "_".join(words), flags=re.ASCII)
    # It is a part of the names of folders and metrics, whose lengths are limited.
    digest = hashlib.sha256("_".join(words).encode()).hexdigest()[:8]
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 9]}_{digest}"


def _in_short(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_positive(name: str, value: int) -> None:
    """Raise ``ModelSettingsError`` unless ``value`` is a whole number from 1 on."""
    if type(value) is not int or value < 1:
        raise ModelSettingsError(f"model setting {name} is {value!r}; use a whole number from 1 on")


def check_fraction(name: str, value: float) -> None:
    """Raise ``ModelSettingsError`` unless ``value`` is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise ModelSettingsError(f"model setting {name} is {value}; use a share from 0 up to, not including, 1")


def check_temperature(temperature: float) -> None:
    """Raise ``ModelSettingsError`` unless ``temperature`` is above 0."""
    if not temperature > 0:  # NaN too
        raise ModelSettingsError(f"model setting temperature is {temperature}; use a number above 0")


# The names of mirrorspark.models.retrieval.losses, which needs TensorFlow.
LOSSES = ("softmax", "bpr", "cosine_contrastive", "gbce")
# Of mirrorspark.models.retrieval.sampling.
SAMPLINGS = ("auto", "log_uniform", "uniform", "popularity", "in_batch", "mixed")


@dataclass(frozen=True)
class LossSettings:
    """Settings of the loss of a retrieval model, which compares each row's candidate with others.

    Attributes:
        negatives: Number of candidates drawn per step, with which all its rows are compared. If there are no more
            candidates than that, each row is compared with all of them. ``in_batch`` draws none.
        loss: ``softmax``, ``bpr``, ``cosine_contrastive`` or ``gbce``, of :mod:`models.retrieval.losses`.
        sampling: Where the other candidates come from: ``uniform`` and ``popularity`` draw them with equal probability
            and as the training rows have them, ``log_uniform`` by the rank of their frequency; ``in_batch``
            takes those of the step's other rows, ``mixed`` these and a uniform draw. ``auto`` is ``log_uniform`` for
            the softmax and ``uniform`` for the other losses. The softmax is corrected for all of them.
        hard_negatives: Number of the others that are kept for each row while training, those with the highest scores;
            0 keeps all.
        index_negatives: Number of further others for each row while training: the nearest of all candidates in the
            model's own index, as it is before the step.
        cosine: Whether queries and candidates have length 1, so that scores are cosines.
        temperature: Divisor of the logits in training; with cosines 0.05 to 0.2 is usual.
        margin: For ``cosine_contrastive``: the cosine up to which another candidate costs nothing.
        negative_weight: For ``cosine_contrastive``: weight of the mean of the others.
        calibration: For ``gbce``: 0 is a plain binary cross-entropy, 1 calibrates probabilities.
    """

    negatives: int = 1000
    loss: str = "softmax"
    sampling: str = "auto"
    hard_negatives: int = 0
    index_negatives: int = 0
    cosine: bool = False
    temperature: float = 1.0
    margin: float = 0.4
    negative_weight: float = 100.0
    calibration: float = 0.75

    def __post_init__(self) -> None:
        check_positive("negatives", self.negatives)
        check_temperature(self.temperature)
        if self.loss not in LOSSES:
            raise ModelSettingsError(f"model setting loss is '{self.loss}'; use one of {list(LOSSES)}")
        if self.loss == "cosine_contrastive" and (not self.cosine or self.temperature != 1):
            raise ModelSettingsError(
                "model setting loss is 'cosine_contrastive', which compares cosines with a margin; set cosine to true "
                "and leave temperature at 1"
            )
        if not -1 <= self.margin <= 1:
            raise ModelSettingsError(f"model setting margin is {self.margin}; use a cosine, from -1 to 1")
        if not self.negative_weight > 0:
            raise ModelSettingsError(f"model setting negative_weight is {self.negative_weight}; use a number above 0")
        if not 0 <= self.calibration <= 1:
            raise ModelSettingsError(f"model setting calibration is {self.calibration}; use a number from 0 to 1")
        self._check_sampling()

    def _check_sampling(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ModelSettingsError(f"model setting sampling is '{self.sampling}'; use one of {list(SAMPLINGS)}")
        for name in ("hard_negatives", "index_negatives"):
            if getattr(self, name) < 0:
                raise ModelSettingsError(f"model setting {name} is {getattr(self, name)}; use a number from 0 on")
        if self.hard_negatives > self.negatives and self.sampling not in ("in_batch", "mixed"):
            raise ModelSettingsError(
                f"model setting hard_negatives is {self.hard_negatives}, of {self.negatives} that are drawn; use "
                f"fewer, or more negatives"
            )
        hard = [name for name in ("hard_negatives", "index_negatives") if getattr(self, name)]
        is_uniform = self.sampling in ("auto", "uniform") and not hard
        if self.loss == "gbce" and self.calibration and not is_uniform:
            chosen = hard[0] if hard else "sampling"
            raise ModelSettingsError(
                f"model setting loss is 'gbce', which is calibrated for others of equal probability, but {chosen} is "
                f"{getattr(self, chosen)!r}; set calibration to 0, or sampling to uniform, and hard_negatives and "
                f"index_negatives to 0"
            )


@dataclass(frozen=True)
class ItemSettings(LossSettings):
    """Settings of a retrieval model whose candidate tower may read the features of items, and those of the loss.

    Attributes:
        candidate_id: True if candidates have an embedding by id in addition to their item features.
        id_dropout: With item features, share of the rows whose candidate's id embedding is left out while training, so
            that the features alone do for items without training rows.
        item_hidden_units: Width of each hidden layer on the item features.
    """

    candidate_id: bool = True
    id_dropout: float = 0.1
    item_hidden_units: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for units in self.item_hidden_units:
            check_positive("item_hidden_units", units)
        check_fraction("id_dropout", self.id_dropout)

    def check_items(self, spec: "FeatureSpec") -> None:
        """Raise ``ModelSettingsError`` if candidates have neither an id nor features."""
        if spec.items is None and not self.candidate_id:
            raise ModelSettingsError(
                "model setting candidate_id is false, but the candidates have no features: give items"
            )


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
