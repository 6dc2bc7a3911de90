"""The file ``models.config`` of TensorFlow Serving, a ``ModelServerConfig`` as text."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from mirrorspark.clear_error import ClearError
from mirrorspark.serving.protos import Messages, message_class
from mirrorspark.storage import atomic_file, read_text

CONFIG_FILE = "models.config"

# Source: tensorflow_serving/config/*.proto.
_MESSAGES: Messages = {
    "ModelServerConfig": {"model_config_list": "ModelConfigList"},
    "ModelConfigList": {"config": "*ModelConfig"},
    "ModelConfig": {
        **{"name": "string", "base_path": "string", "model_type": "ModelType", "model_platform": "string"},
        **{"model_version_policy": "VersionPolicy", "version_labels": ":int64", "logging_config": "LoggingConfig"},
    },
    "VersionPolicy": {"latest": "Latest", "all": "All", "specific": "Specific"},
    "Latest": {"num_versions": "uint32"},
    "All": {},
    "Specific": {"versions": "*int64"},
    "LoggingConfig": {"log_collector_config": "LogCollectorConfig", "sampling_config": "SamplingConfig"},
    "LogCollectorConfig": {"type": "string", "filename_prefix": "string"},
    "SamplingConfig": {"sampling_rate": "double", "attributes": "int32"},
}
_MODEL_TYPES = ("MODEL_TYPE_UNSPECIFIED", "TENSORFLOW", "OTHER")


class ServerConfigError(ClearError, ValueError):
    """A ``models.config`` cannot be read, or has entries that cannot be kept; the message names file and place."""


def read_config(file: Path) -> Any:
    """Return the configuration in ``file``, an empty one if there is no file.

    Raises:
        ServerConfigError: It cannot be read, or has a field that would be lost.
    """
    config = message_class("ModelServerConfig", _MESSAGES, {"ModelType": _MODEL_TYPES})()
    try:
        text_format.Parse(read_text(file), config)
    except FileNotFoundError:
        pass
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServerConfigError(
            f"{file}: {' '.join(str(error).split())}; correct it, or move it away and put its models in by hand"
        ) from error
    return config


def add_version(
    config: Any, name: str, version: int, labels: Collection[str], folder: Path, served_from: str | None
) -> Mapping[str, int]:
    """Serve a version of a model, and give it ``labels``, which other versions lose; other models stay as they are.

    The server loads this version and those with a label, so that labels move without a gap.

    Args:
        config: The configuration, which is changed.
        name: Name of the model in requests.
        version: The version.
        labels: Labels of the version.
        folder: The folder of all models here.
        served_from: The same folder as the server sees it; None for what the configuration has, or else ``folder``.

    Returns:
        The versions of the model by label.
    """
    models = config.model_config_list.config
    model = next((one for one in models if one.name == name), None) or models.add(name=name)
    if served_from is not None or not model.base_path:
        model.base_path = f"{(served_from or str(folder)).rstrip('/')}/{name}"
    if not model.model_platform and not model.model_type:
        model.model_platform = "tensorflow"
    for label in labels:
        model.version_labels[label] = version
    labelled = dict(model.version_labels)
    model.model_version_policy.Clear()
    model.model_version_policy.specific.versions.extend(sorted({version, *labelled.values()}))
    return labelled


def write_config(config: Any, file: Path) -> None:
    """Replace ``file`` in one step: a server that reads it finds the old content or the new one."""
    atomic_file.write_atomically(file, text_format.MessageToString(config))
