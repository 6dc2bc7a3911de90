"""The embedding of a new table of items by the encoders that a model has.

It runs in a process of its own (``python -m mirrorspark.recommending.item_index.embed_items``), like the building of
the indexes.
"""

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.recommending.item_index.build import answered
from mirrorspark.scoring.embedding import ModelEncoders
from mirrorspark.scoring.model.folder import ModelDirectory, exported_with
from mirrorspark.scoring.model.loading import warn_of_encoder_versions
from mirrorspark.training.executor import child_process


@dataclass(frozen=True)
class EmbedPlan:
    """A model, and a Parquet file of items, which is replaced by one with embedded columns."""

    folder: str
    items: str
    threads: int


def embedded_items(folder: Path, spec: FeatureSpec, items: pa.Table, *, threads: int, verbose: bool) -> pa.Table:
    """Return ``items`` with embedded columns; known texts and images keep the vectors of the model's items.

    Args:
        folder: Folder of the model.
        spec: The features of its items.
        items: The table, with columns of the right types.
        threads: Threads of the encoders' libraries.
        verbose: Show the process's output.

    Raises:
        RefreshError: It failed; the message has the last line of the process's output.
    """
    if not spec.embedded:
        return items
    # Here as well, because nobody sees the log of the other process.
    warn_of_encoder_versions(exported_with(folder))
    with tempfile.TemporaryDirectory(prefix="mirrorspark-items-") as scratch:
        file = Path(scratch) / "items.parquet"
        pq.write_table(items, file)
        plan = dataclasses.asdict(EmbedPlan(str(folder), str(file), threads))
        answered("embed_items", plan, "the texts or images of the items cannot be embedded", verbose=verbose)
        return pq.read_table(file)


def main() -> int:
    """Embed by the plan on standard input."""
    line, answer = child_process.take_over()
    plan = EmbedPlan(**json.loads(line))
    write_embedded(plan)
    print(json.dumps({"embedded": True}), file=answer, flush=True)
    return 0


def write_embedded(plan: EmbedPlan) -> None:
    """Replace the items of ``plan``. Imports the encoders' libraries."""
    folder = Path(plan.folder)
    items = ModelDirectory.open(folder).features.items
    assert items is not None  # noqa: S101 - the model has a catalogue
    encoders = ModelEncoders(folder, items.features.spec.features, threads=plan.threads)
    pq.write_table(encoders.embedded(pq.read_table(plan.items), items.rows), plan.items)


if __name__ == "__main__":
    sys.exit(main())
