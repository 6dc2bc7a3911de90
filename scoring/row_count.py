"""Whether as many rows leave a task of scoring as come in."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from scoring.forms import Form


class RowCountError(AssertionError):
    """A task has lost rows, or made some up: a defect of the code, whatever the table holds."""


class RowCount:
    """The rows that a task takes and gives, counted as they pass."""

    def __init__(self) -> None:
        self._taken = self._given = 0

    def taken(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches that the task takes."""
        for batch in batches:
            self._taken += batch.num_rows
            yield batch

    def given(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches that the task gives."""
        for batch in batches:
            self._given += batch.num_rows
            yield batch

    def check(self, form: Form) -> None:
        """Compare both at the end of a task; one that is stopped earlier has taken rows that it did not give.

        Raises:
            RowCountError: They differ, and the form keeps rows.
        """
        if form.keeps_rows and self._given != self._taken:
            raise RowCountError(
                f"a task took {self._taken} rows and gave {self._given} rows of scores, though the form {form} keeps "
                f"rows; do not use these scores, and report this: the table is not at fault"
            )
