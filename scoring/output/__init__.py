"""Scored rows: their columns, the forms of scores, checks of outputs, and rows that fail.

``added_columns`` defines the columns after the scores and their order.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.output.added_columns import (
        ADDED_COLUMNS,
        DEFAULT_COLUMNS,
        ERROR_COLUMN,
        VERSION_COLUMN,
        AddedColumn,
        Entries,
    )
    from mirrorspark.scoring.output.arrays import arrow_array, checked_output, no_values
    from mirrorspark.scoring.output.bad_rows import BadRowError, BadRows, bad_row_errors, failure_message, good_rows
    from mirrorspark.scoring.output.best_kernel import keep_best
    from mirrorspark.scoring.output.forms import (
        AS_COLUMNS,
        AtLeast,
        Columns,
        Form,
        Labelled,
        Long,
        Named,
        Shaped,
        Struct,
        TopK,
        Wide,
        form_named,
        form_of,
        form_of_labels,
    )
    from mirrorspark.scoring.output.older_scores import check_same_columns
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ADDED_COLUMNS",
    "AS_COLUMNS",
    "DEFAULT_COLUMNS",
    "ERROR_COLUMN",
    "VERSION_COLUMN",
    "AddedColumn",
    "AtLeast",
    "BadRowError",
    "BadRows",
    "Columns",
    "Entries",
    "Form",
    "Labelled",
    "Long",
    "Named",
    "Shaped",
    "Struct",
    "TopK",
    "Wide",
    "arrow_array",
    "bad_row_errors",
    "check_same_columns",
    "checked_output",
    "failure_message",
    "form_named",
    "form_of",
    "form_of_labels",
    "good_rows",
    "keep_best",
    "no_values",
]
