"""Tokens are scored in the family of types that they were learnt in."""

from typing import cast

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Feature, MultiValued, Numeric, Sequence
from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.input.inputs import FeatureInputs, check_token_families, token_family, trained_families
from mirrorspark.scoring.task import Scorer
from mirrorspark.scoring.udf import ColumnsTask

FEATURES: tuple[Feature, ...] = (
    Categorical("member"),
    Numeric("late"),
    MultiValued("flags", max_length=3),
    Sequence("viewed", time="viewed_at", max_length=2),
)
TRAINED = {"member": "bool", "late": "bool", "flags": "list<element: bool>", "viewed_at": "list<element: int64>"}


@pytest.mark.parametrize(
    ("column_type", "family"),
    [
        (pa.bool_(), "boolean"),
        (pa.int8(), "integer"),
        (pa.uint32(), "integer"),
        (pa.string(), "string"),
        (pa.large_string(), "string"),
        (pa.list_(pa.bool_()), "boolean"),
        (pa.list_(pa.field("element", pa.int64(), nullable=False)), "integer"),
        (pa.large_list(pa.string()), "string"),
        (pa.null(), None),
        (pa.list_(pa.null()), None),
        (pa.float64(), None),
    ],
    ids=str,
)
def test_a_type_as_arrow_writes_it_has_its_family(column_type: pa.DataType, family: str | None) -> None:
    assert token_family(str(column_type)) == family


def test_only_columns_of_tokens_have_one() -> None:
    assert trained_families(FEATURES, TRAINED) == {"member": "boolean", "flags": "boolean"}


@pytest.mark.parametrize(
    ("name", "column_type"),
    [
        ("member", pa.int64()),
        ("member", pa.string()),
        ("flags", pa.list_(pa.int64())),
        ("flags", pa.list_(pa.string())),
    ],
)
def test_another_family_is_refused_with_both_types_and_a_cast(name: str, column_type: pa.DataType) -> None:
    schema = pa.schema([("member", pa.bool_())]) if name != "member" else pa.schema([])
    with pytest.raises(
        ColumnError, match=f"column '{name}' has type .*, the model was trained with .* by CAST\\({name} AS BOOLEAN"
    ):
        check_token_families(schema.append(pa.field(name, column_type)), FEATURES, TRAINED)


def test_equal_or_unrecorded_token_families_are_accepted() -> None:
    """A number may be a boolean or an integer; a column of nothing but null holds no token of another family."""
    same = pa.schema([("member", pa.null()), ("late", pa.int64()), ("flags", pa.list_(pa.bool_()))])
    check_token_families(same, FEATURES, TRAINED)
    other = pa.schema([("member", pa.int64()), ("viewed", pa.list_(pa.string()))])
    check_token_families(other, FEATURES, {})


def test_a_call_in_sql_is_refused_before_the_model_is_loaded() -> None:
    no_scorer = cast(Scorer, None)
    task = ColumnsTask(("member",), FeatureInputs((Categorical("member"),), {"member": "bool"}), no_scorer)
    with pytest.raises(ColumnError, match="column 'member' has type int64, the model was trained with bool: as tokens"):
        next(task([pa.array([1, 0])]))
