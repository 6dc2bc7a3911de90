"""Commits a checkpoint of any files, as the publisher does with those of a training."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import Location, open_store


def publish_files(directory: Location, files: Mapping[str, str], **point: Any) -> commit.CommittedCheckpoint:
    """Return the checkpoint of ``files``, names with content; ``point`` is what `commit.publish` takes."""
    open_store(directory).make()
    # Published files leave the local disk; those of an error are not to stay there either.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as local:
        for name, content in files.items():
            (Path(local) / name).write_text(content)
        return commit.publish(Path(local), directory, **point)
