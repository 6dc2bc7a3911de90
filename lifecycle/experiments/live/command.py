"""``mirrorspark serve``: the online server, with traffic that experiments split."""

from collections.abc import Sequence

from mirrorspark.lifecycle.experiments.live.traffic import read_split
from mirrorspark.serving import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the status of :func:`serving.command.main`."""
    return command.main(arguments, read_split=read_split)
