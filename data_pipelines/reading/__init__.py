"""Reading: batches of a dataset in a reproducible order, and files from other tools.

Seed, epoch and rank determine the order of rows. All ranks get the same number of batches.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import parquet_rows
    from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, batches, load_batches, load_dataset
    from mirrorspark.data_pipelines.reading.foreign import RowPlan, count_rows, load_rows
    from mirrorspark.data_pipelines.reading.lanes import MAX_LANES
    from mirrorspark.data_pipelines.reading.padding import PaddedBatch, padding_scale
    from mirrorspark.data_pipelines.reading.queries import held_back_candidates, query_digests
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "MAX_LANES",
    "Dataset",
    "PaddedBatch",
    "ReadPlan",
    "RowPlan",
    "batches",
    "count_rows",
    "held_back_candidates",
    "load_batches",
    "load_dataset",
    "load_rows",
    "padding_scale",
    "parquet_rows",
    "query_digests",
]
