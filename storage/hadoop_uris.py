"""Paths as Hadoop and Spark spell them."""

import re
from urllib.parse import unquote

from mirrorspark.storage.paths import LOCAL_SCHEMES, Location, StoragePath, known_scheme

# Characters of patterns in spark.read.
_PATTERN_CHARACTERS = re.compile(r"[\\*?\[\]{}]")


def hadoop_uri(path: StoragePath, *given: Location) -> str:
    """Return a path as a URI for Hadoop and Spark.

    Args:
        path: A location, or a path in it.
        given: Locations as the user wrote them. Their scheme is kept: Hadoop, unlike us, distinguishes ``s3a`` and
            ``s3``.
    """
    if path.is_local:
        return f"file://{path.uri}"  # without a scheme Hadoop would look in its default file system
    scheme, _, rest = path.uri.partition("://")
    spellings = [str(location).partition("://")[0] for location in given]
    spelled = next((one for one in spellings if known_scheme(one) == scheme), scheme)
    return f"{spelled}://{rest}"


def literal_hadoop_uri(path: StoragePath, *given: Location) -> str:
    """Return a path as in :func:`hadoop_uri`, with every character escaped that ``spark.read`` takes for a pattern."""
    return _PATTERN_CHARACTERS.sub(r"\\\g<0>", hadoop_uri(path, *given))


def hadoop_path(uri: str) -> StoragePath:
    """Return the path for a URI from Hadoop: percent-encoded, with one slash or three if there is no host."""
    scheme, _, rest = unquote(uri).partition(":")
    scheme = known_scheme(scheme)
    if rest.startswith("//") and not rest.startswith("///"):
        return StoragePath(f"{scheme}:{rest}")
    path = "/" + rest.lstrip("/")
    if scheme == "dbfs":  # which Databricks mounts
        return StoragePath(path if path.startswith("/Volumes/") else f"/dbfs{path}")
    return StoragePath(path if scheme in LOCAL_SCHEMES else f"{scheme}://{path}")
