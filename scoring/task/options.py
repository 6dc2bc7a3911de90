"""Options of a scoring call, and the columns that they ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from mirrorspark.data_pipelines.features import repeated_names
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import NO_NULL_POLICY, NullPolicy, NullRule, column_types
from mirrorspark.scoring.model.folder import ModelDirectory
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.output import ADDED_COLUMNS, AS_COLUMNS, DEFAULT_COLUMNS, AddedColumn, BadRows, Form, form_of

OtherVersions = Literal["refuse", "allow"]
"""Treatment of an executor whose library versions differ from the model's."""


@dataclass(frozen=True)
class ScoringOptions:
    """Options of a scoring call, which :func:`scoring.score` describes; checked when built.

    An entry point builds them from its keyword arguments and hands them down.
    """

    outputs: Form = AS_COLUMNS
    batch_size: int = DEFAULT_BATCH_SIZE
    with_columns: tuple[str, ...] = DEFAULT_COLUMNS
    nulls: NullPolicy = NO_NULL_POLICY
    bad_rows: BadRows = "fail"
    other_versions: OtherVersions = "refuse"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ScoringError(f"batch_size {self.batch_size} is below 1; use some thousands of rows")
        if self.other_versions not in get_args(OtherVersions):
            raise ScoringError(f"other_versions '{self.other_versions}' is unknown; use refuse or allow")
        if self.bad_rows not in get_args(BadRows):
            raise ScoringError(f"bad_rows '{self.bad_rows}' is unknown; use one of {list(get_args(BadRows))}")
        known = [column.name for column in ADDED_COLUMNS if column.with_bad_rows is None]
        if unknown := [name for name in self.with_columns if name not in known]:
            raise ScoringError(f"with_columns names {unknown}, which scoring does not add; use some of {known}")

    @classmethod
    def of(
        cls,
        outputs: Form | str,
        batch_size: int,
        with_columns: str | Sequence[str],
        nulls: Mapping[str, NullRule] | None,
        bad_rows: BadRows,
        other_versions: OtherVersions,
    ) -> "ScoringOptions":
        """Return the options for a caller's arguments, which may name a form and give rules for nulls.

        Raises:
            ScoringError: A setting is invalid.
        """
        policy = NullPolicy(nulls) if nulls else NO_NULL_POLICY
        form = outputs if outputs is AS_COLUMNS else form_of(outputs)
        columns = (with_columns,) if isinstance(with_columns, str) else tuple(with_columns)
        return cls(form, batch_size, columns, policy, bad_rows, other_versions)

    @property
    def added(self) -> tuple[AddedColumn, ...]:
        """The columns that follow the scores, in their order."""
        return tuple(
            column
            for column in ADDED_COLUMNS
            if column.name in self.with_columns or column.with_bad_rows == self.bad_rows
        )

    def schema(self, directory: ModelDirectory) -> pa.Schema:
        """Return the columns that follow the keys.

        Raises:
            ScoringError: The model's outputs do not fit the form.
        """
        outputs = pa.schema(
            [(name, column_types.ARROW_TYPES[type_]) for name, type_ in directory.description.outputs.items()]
        )
        columns = list(outputs)
        if self.outputs is not AS_COLUMNS:
            # Plain columns need no labels, which are in the features of a multi-label model.
            columns = list(self.outputs.fields(outputs, directory.labels))
        columns += [pa.field(column.name, column.type) for column in self.added]
        names = [column.name for column in columns]
        if len(set(names)) < len(names):
            raise ScoringError(
                f"the scores would have the columns {repeated_names(names)} twice: "
                f"the model has outputs or labels "
                f"of these names; use another form, or leave them out of with_columns"
            )
        return pa.schema(columns)
