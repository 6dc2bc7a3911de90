"""The baselines of a verdict: one, or the first of several with the rest as its others."""

from collections.abc import Mapping, Sequence
from typing import Any

_OTHERS = "others"


def as_baseline(compared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a verdict's entry for its baselines: the first one, with the rest as ``others`` if there are more."""
    if not compared:
        return {}
    first, *others = compared
    return dict(first) | ({_OTHERS: [dict(each) for each in others]} if others else {})


def each_baseline(baseline: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every baseline of a verdict, the first one first; none for an empty one."""
    return [baseline, *baseline.get(_OTHERS, ())] if baseline else []


def in_words(name: str) -> str:
    """Return the name of a baseline, with its settings, as a reader knows it."""
    known = {"hist_gradient_boosting": "gradient boosting", "xgboost": "XGBoost", "lightgbm": "LightGBM"}
    known |= {"base_rate": "the base rate", "network": "the network", "blend": "the blend", "catboost": "CatBoost"}
    for label, words in known.items():
        if name.startswith(f"{label}_"):
            return f"{words} ({name.removeprefix(f'{label}_')})"
    return known.get(name, name.replace("_", " "))
