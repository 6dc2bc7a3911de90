"""``mirrorspark serve``: the online server, with traffic that experiments split."""

from collections.abc import Sequence
from pathlib import Path

from mirrorspark.extras import needed
from mirrorspark.serving import DeclaredSplit, command


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the status of :func:`serving.command.main`."""
    return command.main(arguments, read_split=_read_split)


def _read_split(path: Path) -> DeclaredSplit:
    for package in ("scipy", "jsonargparse"):  # no other server needs them
        needed(package, "--traffic")
    from mirrorspark.lifecycle.experiments.live.traffic import read_split

    return read_split(path)
