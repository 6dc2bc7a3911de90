"""Checks that the parts of a feature specification fit together; each raises :class:`FeatureSpecError`.

:mod:`data_pipelines.features.kinds` checks the options of a single feature or label.
"""

from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features.kinds import Feature, FeatureSpecError, Sparse
from mirrorspark.data_pipelines.features.names import refusal_of_name, repeated_names

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.features.spec import FeatureSpec


def check_parts(spec: "FeatureSpec") -> None:
    """Check that a spec has all its parts, and that none contradicts another.

    Raises:
        FeatureSpecError: A part is missing or contradicts another; the message names it and the remedy.
    """
    _check_names(spec)
    _check_raw_columns(spec)
    _check_label(spec)
    if spec.target_encodings and spec.label.form not in ("binary", "numeric"):
        raise FeatureSpecError(
            f"feature '{spec.target_encodings[0].name}' is the mean of a label that is binary or numeric; "
            f"'{spec.label.name}' is {spec.label.kind}: leave the feature out"
        )
    if spec.exclude is not None and spec.label.kind != "candidate":
        raise FeatureSpecError(f"exclude '{spec.exclude}' needs a label of kind candidate; '{spec.label.name}' is not")
    if spec.items is not None and spec.label.kind != "candidate":
        raise FeatureSpecError(f"items need a label of kind candidate; '{spec.label.name}' is not")
    _check_user(spec)
    _check_exclude(spec)
    _check_vocabularies(spec)


def _check_names(spec: "FeatureSpec") -> None:
    names = [feature.name for feature in spec.features]
    if not names:
        raise FeatureSpecError("a feature spec needs at least one feature")
    if twice := repeated_names(names):
        raise FeatureSpecError(f"feature {twice} is listed twice; keep one of each")
    if not spec.keys:
        raise FeatureSpecError("a feature spec needs at least one key column, to name the scored rows")
    if len(set(spec.keys)) < len(spec.keys):
        raise FeatureSpecError(f"keys {list(spec.keys)} name a column twice; keep one of each")
    if spec.weight is not None and spec.weight == spec.label.name:
        raise FeatureSpecError(
            f"weight '{spec.weight}' is also the label; give the table a column of its own for it, or leave it out"
        )
    for name in (*names, *spec.columns):
        if (refusal := refusal_of_name(name)) is not None:
            raise FeatureSpecError(f"the column name {name!r} {refusal}")


def _check_raw_columns(spec: "FeatureSpec") -> None:
    """Check that features that share a column (the times of two sequences) read it in the same form."""
    owners: dict[str, tuple[Feature, str]] = {}
    names = {feature.name for feature in spec.features}
    for feature in spec.features:
        for name, form in feature.raw.items():
            owner, other = owners.setdefault(name, (feature, form))
            if other != form:
                raise FeatureSpecError(
                    f"feature '{feature.name}' takes column '{name}' as {form}, '{owner.name}' as {other}; "
                    f"give the table a column of its own for one of them"
                )
        for part in feature.parts if isinstance(feature, Sparse) else ():
            if part in (*names, spec.exclude):
                raise FeatureSpecError(
                    f"feature '{part}' has the name of a part of sparse feature '{feature.name}'; rename one"
                )


def _check_label(spec: "FeatureSpec") -> None:
    label, categorical = spec.label, [feature.name for feature in spec.categorical]
    read = {column for feature in spec.features for column in feature.columns}
    names = {feature.name for feature in spec.features}
    if label.kind != "candidate" and label.name in read | names | set(spec.keys):
        raise FeatureSpecError(f"label '{label.name}' is also a feature or key; a model must not see its label")
    if label.rating is not None and label.rating in read | {spec.weight, spec.exclude, *spec.keys}:
        raise FeatureSpecError(
            f"rating '{label.rating}' of label '{label.name}' is also a feature, key, weight or exclude; a model must "
            f"not see its own target"
        )
    if label.kind == "candidate" and label.name not in categorical:
        raise FeatureSpecError(
            f"label '{label.name}' of kind candidate must be a categorical feature of this spec; use one of "
            f"{categorical}"
        )
    if label.kind == "candidate" and spec.candidate.hash_buckets is not None:
        raise FeatureSpecError(
            f"label '{label.name}' is hashed; a hash does not lead back to the token to recommend: leave out "
            f"hash_buckets"
        )


def _check_user(spec: "FeatureSpec") -> None:
    if spec.user is None:
        return
    if spec.label.kind != "candidate":
        raise FeatureSpecError(f"user '{spec.user}' needs a label of kind candidate; '{spec.label.name}' is not")
    singles = [feature.name for feature in spec.single_ids]
    if spec.user not in singles:
        raise FeatureSpecError(
            f"user '{spec.user}' is not a feature of the query with a single id per row; use one of {singles}"
        )


def _check_exclude(spec: "FeatureSpec") -> None:
    """Check that the exclusions are a column of their own: the exported model takes them with the features, by name."""
    taken = {name for feature in spec.features for name in (feature.name, *feature.columns, *feature.raw)}
    if spec.exclude is not None and spec.exclude in (*taken, *spec.keys, spec.weight):
        raise FeatureSpecError(
            f"exclude '{spec.exclude}' is also a feature, key or weight; give the table a column of its own for "
            f"it, for example {spec.exclude} AS excluded"
        )


def _check_vocabularies(spec: "FeatureSpec") -> None:
    categorical = [feature.name for feature in spec.categorical]
    for feature in spec.token_features:
        owner = spec.vocabulary_name(feature)
        if owner != feature.name and owner not in categorical:
            raise FeatureSpecError(
                f"feature '{feature.name}': vocabulary_of '{owner}' is not a categorical feature of this spec; "
                f"use one of {categorical}"
            )
