"""Tables that are converted, and the work on their rows: by Spark's tasks, or by this process for a small table.

Both ways call the same kernels on Arrow batches and give the same dataset, to the byte.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.sources.memory_source import MemorySource, why_not_here
    from mirrorspark.data_pipelines.sources.source import ORDER_COLUMN, ROW_HASH_COLUMN, ShardTask, Source
    from mirrorspark.data_pipelines.sources.spark_source import SparkSource, source_of
    from mirrorspark.data_pipelines.sources.token_counts import TOKEN_COUNTS_SCHEMA
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ORDER_COLUMN",
    "ROW_HASH_COLUMN",
    "TOKEN_COUNTS_SCHEMA",
    "MemorySource",
    "ShardTask",
    "Source",
    "SparkSource",
    "source_of",
    "why_not_here",
]
