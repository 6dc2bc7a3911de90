"""Numba kernels of the TFRecord codec.

Tests compare them with plain Python code on random bytes. A kernel never reads beyond its buffer.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.tfrecord.kernels import examples, row_decode, row_encode, row_lists, wire_read
    from mirrorspark.data_pipelines.tfrecord.kernels.row_survey import survey
    from mirrorspark.data_pipelines.tfrecord.kernels.wire_write import SLACK_BYTES
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "SLACK_BYTES",
    "examples",
    "row_decode",
    "row_encode",
    "row_lists",
    "survey",
    "wire_read",
]
