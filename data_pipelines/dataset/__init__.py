"""The dataset directory: its manifest, blocks and shards, and the local copies of remote datasets.

The manifest is written last, so a directory without one is not a dataset.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.dataset import block_format
    from mirrorspark.data_pipelines.dataset.cache import DatasetCache
    from mirrorspark.data_pipelines.dataset.manifest import (
        FEATURES_FOLDER,
        FORMAT_VERSION,
        MANIFEST_FILE,
        SPLITS,
        TEST_ROWS_FILE,
        TEST_SPLIT,
        TRAIN_SPLIT,
        DatasetError,
        Manifest,
        Shard,
        check_directory,
        is_published,
    )
    from mirrorspark.data_pipelines.dataset.shards import EncodeTask, ShardResult, TargetSumsTask
    from mirrorspark.data_pipelines.dataset.staging import Staged, stage
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FEATURES_FOLDER",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "SPLITS",
    "TEST_ROWS_FILE",
    "TEST_SPLIT",
    "TRAIN_SPLIT",
    "DatasetCache",
    "DatasetError",
    "EncodeTask",
    "Manifest",
    "Shard",
    "ShardResult",
    "Staged",
    "TargetSumsTask",
    "block_format",
    "check_directory",
    "is_published",
    "stage",
]
