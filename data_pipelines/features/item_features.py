"""Inference of the features of a table of items, the candidates of a recommender."""

import logging
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.types import StringType

from mirrorspark.data_pipelines.features.column_facts import ColumnFacts, arrow_facts
from mirrorspark.data_pipelines.features.infer import LONGEST_LIST, propose_feature
from mirrorspark.data_pipelines.features.kinds import Feature, FeatureSpecError, Text
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.spark_session import versions

_LOGGER = logging.getLogger(__name__)

# Where this share of the texts has a separator, they are lists, such as "Action|Comedy".
_LEAST_LISTS = 0.1
_SEPARATORS = ("|", ";")


def infer_items(items: pa.Table, key: str, exclude: Collection[str] = ()) -> FeatureSpec:
    """Propose the spec of a table of items; the log says why each column is used or left out.

    Kinds are those of :func:`data_pipelines.features.infer_spec`, with two more rules: texts of several values with
    ``|`` or ``;`` between them are split there, and texts of several words, such as titles, are read word by word where
    each is another.

    Args:
        items: The table, a row per item.
        key: The column that identifies an item.
        exclude: Columns to ignore.

    Raises:
        FeatureSpecError: No column can be a feature.
    """
    used = items.drop_columns([name for name in items.column_names if name in {key, *exclude}])
    features, reasons = [], []
    for name, fact in arrow_facts(used, versions.from_arrow_schema(used.schema)).items():
        feature, reason = _proposed(fact, used[name])
        _LOGGER.log(logging.WARNING if feature is None else logging.INFO, "column %s of items: %s", name, reason)
        if feature is None:
            reasons.append(f"{name} is {reason}")
        else:
            features.append(feature)
    if not features:
        why = "; ".join(reasons[:5]) or f"it has the key '{key}' alone"
        raise FeatureSpecError(f"no column of items can be a feature: {why}; leave items out, or add such columns")
    return FeatureSpec.of_items(key, features)


def _proposed(fact: ColumnFacts, column: pa.ChunkedArray) -> tuple[Feature | None, str]:
    if isinstance(fact.type, StringType):
        for separator in _SEPARATORS:
            parts = pc.add(pc.count_substring(column.drop_null(), separator), 1)
            share = pc.mean(pc.greater(parts, 1)).as_py()
            if share is not None and share >= _LEAST_LISTS:
                length = min(int(pc.max(parts).as_py()), LONGEST_LIST)
                pattern = f"[{separator}]"
                return Text(fact.name, max_length=length, pattern=pattern), f"values with {separator} between them"
    feature, reason = propose_feature(fact)
    words = int(fact.elements or 1)
    if feature is None and isinstance(fact.type, StringType) and fact.distinct > 1 and words > 1:
        feature, reason = Text(fact.name, max_length=min(words, LONGEST_LIST)), f"text, of the first {words} words"
    return feature, reason
