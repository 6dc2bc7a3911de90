"""Models for other servers: TensorFlow Serving's folders, configuration and warm-up records, and files of ONNX.

An export is loaded before it is published, and its folder appears whole or not at all.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.serving.export.export import ExportedModel, ExportError, export_model
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ExportError",
    "ExportedModel",
    "export_model",
]
