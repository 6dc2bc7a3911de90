"""Which MLflow store a client acts on: the one that it is given, with the registry that goes with it, and no other."""

import os
import re
from pathlib import Path
from typing import Any

from callbacks.credentials import without_credentials

_SQLITE_FILE = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?")


def limit_requests() -> None:
    """Let MLflow's requests to a server that is away end within a minute or so, unless the environment says more."""
    # By default it retries for minutes, in silence. What must not be lost is retried better, in the background.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def store_client(tracking_uri: str, registry_uri: str | None = None) -> Any:
    """Return an ``MlflowClient`` of this store alone, whatever else MLflow is set to.

    Args:
        tracking_uri: The store.
        registry_uri: Where its models are registered; by default what :func:`registry_of` says.
    """
    import mlflow  # seconds

    registry_uri = registry_uri or registry_of(tracking_uri)
    if is_same_store(mlflow.get_tracking_uri(), tracking_uri):
        return mlflow.MlflowClient(tracking_uri, registry_uri)

    class OtherStoreClient(mlflow.MlflowClient):
        """Does not give metrics the model that ``MLFLOW_ACTIVE_MODEL_ID`` names: this store would refuse them."""

        def log_batch(
            self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: bool | None = None
        ) -> None:
            # The client's own puts that model into every metric that has none, and there is no way to say "none".
            self._tracking_client.store.log_batch(run_id, list(metrics), list(params), list(tags))

    return OtherStoreClient(tracking_uri, registry_uri)


def registry_of(tracking_uri: str) -> str:
    """Return where a store's models are registered: in the store itself, unless MLflow is set to a registry for it.

    A registry that MLflow is set to (``MLFLOW_REGISTRY_URI``, ``mlflow.set_registry_uri``, Spark's
    ``spark.mlflow.modelRegistryUri``) belongs to the store that it is set to. Of any other one it knows no model, and a
    version registered there would lead nowhere.
    """
    import mlflow

    current, registry = mlflow.get_tracking_uri(), str(mlflow.get_registry_uri())
    is_for_it = not mlflow.is_tracking_uri_set() or is_same_store(current, tracking_uri)
    return registry if is_for_it and registry != _own_registry(current) else _own_registry(tracking_uri)


def _own_registry(tracking_uri: str) -> str:
    # That of a Databricks workspace is its Unity Catalog, as it is for MLflow.
    return re.sub(r"^databricks(?=$|://)", "databricks-uc", tracking_uri)


def is_same_store(one: str, other: str) -> bool:
    """Whether two addresses name the same store; one of them may be without user name and password."""
    first, second = (without_credentials(absolute_store(uri)).rstrip("/") for uri in (one, other))
    return first == second


def absolute_store(tracking_uri: str) -> str:
    """Return the address of a store; that of an SQLite file means the same from any working directory."""
    file = sqlite_file(tracking_uri)
    if file is None:
        return tracking_uri
    scheme, separator, rest = tracking_uri.partition(":///")
    _, mark, options = rest.partition("?")
    return f"{scheme}{separator}{file.absolute()}{mark}{options}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the file of an SQLite store; None for any other store, and for one that is in no file.

    What stands behind a question mark are options of the connection, such as ``timeout=60``.
    """
    found = _SQLITE_FILE.fullmatch(tracking_uri)
    # SQLite has addresses of its own, of which only its library knows what they name.
    return None if found is None or found[1] == ":memory:" or found[1].startswith("file:") else Path(found[1])
