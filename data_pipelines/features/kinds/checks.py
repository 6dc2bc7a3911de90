"""Checks of the options of features and labels, each of which raises :class:`FeatureSpecError`."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, get_args

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import meant

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.features.kinds.groups import TokenFeature
    from mirrorspark.data_pipelines.features.kinds.numeric import TargetEncoding

# One character would be a mark of a word's beginning or end, which every word has.
LEAST_NGRAM = 2

Truncate = Literal["head", "tail"]


class FeatureSpecError(ClearError, ValueError):
    """An invalid feature specification; the message names the feature and the remedy."""


def check_ids(feature: "TokenFeature") -> None:
    """Check how the tokens of ``feature`` get their ids: by a vocabulary of its own, one it shares, or a hash."""
    check_count(feature.name, "min_count", feature.min_count)
    if feature.max_size is not None:
        check_count(feature.name, "max_size", feature.max_size)
    if feature.hash_buckets is None:
        return
    check_count(feature.name, "hash_buckets", feature.hash_buckets)
    if feature.min_count != 1 or feature.max_size is not None:
        raise FeatureSpecError(
            f"feature '{feature.name}': hash_buckets learns no vocabulary; leave out min_count and max_size"
        )
    if getattr(feature, "vocabulary_of", None) is not None:
        raise FeatureSpecError(
            f"feature '{feature.name}' has vocabulary_of and hash_buckets; leave one of them out (where the other "
            f"feature is hashed, so is this one)"
        )


def known_kind(subject: str, kind: Any, known: Collection[str]) -> Any:
    """Return the name of a kind of feature or label; ``number`` is another name of ``numeric``."""
    name = "numeric" if kind == "number" else kind
    if not isinstance(name, str) or name not in known:
        raise FeatureSpecError(
            f"{subject}: kind '{kind}' is unknown{meant(str(kind), known)}; use one of {sorted(known)}"
        )
    return name


def check_encoder(name: str, encoder: Any) -> None:
    """Check that the encoder of a text or an image is a path or a URI."""
    if not isinstance(encoder, str) or not encoder:
        raise FeatureSpecError(
            f"feature '{name}': encoder is {encoder!r}; give the path of a folder with a SavedModel or an ONNX file"
        )


def check_truncate(name: str, truncate: str) -> None:
    """Check which end of a longer list is cut away."""
    if truncate not in get_args(Truncate):
        raise FeatureSpecError(
            f"feature '{name}': truncate '{truncate}' is unknown; use {' or '.join(get_args(Truncate))}"
        )


def check_ngrams(name: str, ngrams: Any, hash_buckets: int | None) -> None:
    """Check the sizes of the parts of words."""
    sizes = ngrams if isinstance(ngrams, tuple) else ()
    is_whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if len(sizes) != 2 or not is_whole or not LEAST_NGRAM <= sizes[0] <= sizes[1]:
        raise FeatureSpecError(
            f"feature '{name}': ngrams {ngrams!r} is not a range; give the fewest and the most characters, whole "
            f"numbers from {LEAST_NGRAM} on, for example [3, 5]"
        )
    if hash_buckets is None:
        raise FeatureSpecError(
            f"feature '{name}': ngrams are hashed; give hash_buckets, for example 20000, and leave out min_count and "
            f"max_size"
        )


def check_bounds(name: str, clip: Any) -> None:
    """Check the lowest and the highest value."""
    bounds = [bound for bound in clip if bound is not None] if isinstance(clip, tuple) and len(clip) == 2 else []
    if not bounds or not all(map(is_finite, bounds)) or bounds != sorted(bounds):
        raise FeatureSpecError(
            f"feature '{name}': clip {clip!r} is not a range; give the lowest and the highest value, for example [0, "
            f"100] (null for no bound on one side), or range for that of the training rows"
        )


def check_order(name: str, order: Any, option: str = "order") -> None:
    """Check the values of an ordinal feature or label, the lowest first, which ``option`` gives."""
    values = order if isinstance(order, tuple) else ()
    if len(values) < 2 or not all(isinstance(value, str) and value for value in values):
        raise FeatureSpecError(
            f"'{name}': {option} {order!r} is not a list of two or more texts; give all values as text, the lowest "
            f"first, for example [low, middle, high] (numbers in quotes)"
        )
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise FeatureSpecError(f"'{name}': {option} has {twice} twice; keep one of each")


def is_finite(value: Any) -> bool:
    """Return whether ``value`` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_boolean(name: str, option: str, value: Any) -> None:
    """Check that an option is true or false."""
    if not isinstance(value, bool):
        raise FeatureSpecError(f"feature '{name}': {option} is {value!r}; use true or false")


def check_count(name: str, option: str, value: Any, *, least: int = 1, subject: str = "feature") -> None:
    """Check that an option is a whole number from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FeatureSpecError(f"{subject} '{name}': {option} is {value!r}; use a whole number from {least} on")


def check_target_encoding(feature: "TargetEncoding") -> None:
    """Check the columns and the smoothing of an encoding by the label's mean."""
    subject = f"feature '{feature.name}'"
    if not feature.of or not all(isinstance(name, str) for name in feature.of):
        raise FeatureSpecError(f"{subject}: of is {list(feature.of)}; give the columns whose values group the rows")
    if len(set(feature.of)) < len(feature.of):
        raise FeatureSpecError(f"{subject}: of {list(feature.of)} names a column twice; keep one of each")
    if others := sorted(set(feature.numbers) - set(feature.of)):
        raise FeatureSpecError(f"{subject}: numbers {others} are not among its columns {list(feature.of)}")
    if not (is_finite(feature.smoothing) and feature.smoothing > 0):
        raise FeatureSpecError(f"{subject}: smoothing is {feature.smoothing!r}; use a number above 0")
    if feature.clip is not None or feature.log or feature.impute != "mean":
        raise FeatureSpecError(f"{subject}: impute, clip and log are for numbers of the table; leave them out")
    check_count(feature.name, "min_count", feature.min_count)
    if feature.max_size is not None:
        check_count(feature.name, "max_size", feature.max_size)
