"""The online server: models over HTTP, by TensorFlow Serving's REST API and the Open Inference Protocol.

An answer names the version that gave it. Invalid requests get a 4xx status with a message.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.serving import command
    from mirrorspark.serving.errors import RequestError
    from mirrorspark.serving.protos import Messages, message_class
    from mirrorspark.serving.servable import Outputs, Servable, label_of
    from mirrorspark.serving.sources import Source
    from mirrorspark.serving.traffic_split import DeclaredSplit, Variant, scores_of
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DeclaredSplit",
    "Messages",
    "Outputs",
    "RequestError",
    "Servable",
    "Source",
    "Variant",
    "command",
    "label_of",
    "message_class",
    "scores_of",
]
