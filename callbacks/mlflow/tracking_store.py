"""MLflow clients for one given store and its model registry, independent of MLflow's global settings."""

import logging.config
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.extras import needed
from mirrorspark.storage import without_credentials

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = "mirrorspark-output"

# For the help of commands that look a model up.
DEFAULT_STORE_IN_WORDS = f"by default the one that MLflow is set to, else {DEFAULT_OUTPUT}/mlflow.db"

# The store of this process's last training, if MLflow was set to none.
_OWN_STORE: str | None = None

_EXPERIMENT_ID, _EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
_RUN_ID = "MLFLOW_RUN_ID"

_SET_UP_OF_LOGGERS = threading.Lock()

_SQLITE_FILE = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?")


def limit_requests() -> None:
    """Limit MLflow's requests to an unreachable server to about a minute, unless the environment sets other limits."""
    # By default it silently retries for minutes. Data that must not be lost is retried in the background instead.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@contextmanager
def _without_set_up_of_loggers() -> Iterator[None]:
    """Keep MLflow 3.0 from setting up this process's loggers for a new store, which would show each step of Alembic."""
    with _SET_UP_OF_LOGGERS:
        plain = logging.config.fileConfig
        logging.config.fileConfig = lambda *_args, **_options: None
        try:
            yield
        finally:
            logging.config.fileConfig = plain


def store_client(tracking_uri: str, registry_uri: str | None = None) -> Any:
    """Return an ``MlflowClient`` for this store only, regardless of MLflow's global settings.

    Args:
        tracking_uri: The store.
        registry_uri: Its model registry; by default that of :func:`registry_of`.
    """
    needed("mlflow", "an MLflow store")
    import mlflow  # seconds
    from mlflow.entities import RunStatus

    # The log of the tables that MLflow creates in a new store is of no use, and in a notebook it looks like an error.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)

    class QuietClient(mlflow.MlflowClient):
        """Ends a run without MLflow's lines on standard output, which show the server's address with its password.

        Artifacts are those of this store.
        """

        def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
            store, ended = self._tracking_client.store, end_time or int(time.time() * 1000)
            store.shut_down_async_logging()
            store.update_run_info(run_id, RunStatus.from_string(status or "FINISHED"), ended, None)

        # MLflow 3.0 looks for a path of a run in the store that is set, whatever the client's.
        def list_artifacts(self, run_id: str, path: str | None = None) -> Any:
            return self._tracking_client._get_artifact_repo(run_id).list_artifacts(path)

        def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str:
            return str(self._tracking_client._get_artifact_repo(run_id).download_artifacts(path, dst_path))

    registry_uri = registry_uri or registry_of(tracking_uri)
    if is_same_store(mlflow.get_tracking_uri(), tracking_uri):
        with _without_set_up_of_loggers():
            return QuietClient(tracking_uri, registry_uri)

    class OtherStoreClient(QuietClient):
        """Logs metrics without the model in ``MLFLOW_ACTIVE_MODEL_ID``, which this store would refuse."""

        def log_batch(
            self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: bool | None = None
        ) -> None:
            # The original method adds that model to every metric without one, and cannot be configured otherwise.
            self._tracking_client.store.log_batch(run_id, list(metrics), list(params), list(tags))

    with _without_set_up_of_loggers():
        return OtherStoreClient(tracking_uri, registry_uri)


def chosen_store() -> str | None:
    """Return the store that MLflow is set to, or None if it is set to none.

    It is set by ``mlflow.set_tracking_uri``, ``MLFLOW_TRACKING_URI``, or the runtime of Databricks. An experiment or a
    run that is set is in MLflow's current store, which is then meant even where it is the default one.
    """
    needed("mlflow", "an MLflow store")
    import mlflow

    uri = str(mlflow.get_tracking_uri())
    is_set = mlflow.is_tracking_uri_set() or uri.startswith("databricks")
    # mlflow.set_experiment sets the variable of the id.
    return uri if is_set or any(map(os.environ.get, (_EXPERIMENT_ID, _EXPERIMENT_NAME, _RUN_ID))) else None


def chosen_experiment(tracking_uri: str) -> str | None:
    """Return the name of MLflow's current experiment if this is MLflow's current store; None if there is none.

    It is set by ``mlflow.set_experiment``, ``MLFLOW_EXPERIMENT_ID`` or ``MLFLOW_EXPERIMENT_NAME``; the id, which
    ``set_experiment`` sets, takes precedence. Where none is set, a notebook on Databricks has one of its own.
    """
    import mlflow
    from mlflow.tracking.default_experiment import DEFAULT_EXPERIMENT_ID, registry

    if not is_same_store(tracking_uri, str(mlflow.get_tracking_uri())):
        return None
    id_, name = os.environ.get(_EXPERIMENT_ID), os.environ.get(_EXPERIMENT_NAME)
    if not id_ and not name:
        own = registry.get_experiment_id()
        id_ = None if own == DEFAULT_EXPERIMENT_ID else own
    if id_:
        limit_requests()  # A server that is away must not hold up the start of a run.
        try:
            return str(mlflow.MlflowClient(tracking_uri).get_experiment(id_).name)
        except mlflow.MlflowException as error:  # the server is away, or the experiment was deleted
            logger.warning("MLflow's experiment %s cannot be looked up (%s)", id_, without_credentials(str(error)))
    return name or None


@dataclass(frozen=True)
class ActiveRun:
    """The run that the caller has started with ``mlflow.start_run`` and not ended yet, or that ``MLFLOW_RUN_ID`` names.

    MLflow's own projects and jobs set the variable.

    Attributes:
        experiment_id: Its experiment; None if the server was away when the run was looked up.
    """

    run_id: str
    experiment_id: str | None


def active_run(tracking_uri: str) -> ActiveRun | None:
    """Return MLflow's active run if it is in this store; None if there is none."""
    import mlflow
    from mlflow.entities import Run

    if not is_same_store(tracking_uri, str(mlflow.get_tracking_uri())):
        return None
    run: Run | None = mlflow.active_run()
    named = os.environ.get(_RUN_ID)
    if run is None and named:
        limit_requests()
        try:
            run = mlflow.MlflowClient(tracking_uri).get_run(named)
        except mlflow.MlflowException as error:
            if is_outage(error):
                return ActiveRun(named, None)
            logger.warning(
                "MLflow's run %s (%s) cannot be looked up, so another one begins (%s)",
                named,
                _RUN_ID,
                without_credentials(str(error)),
            )
    if run is None:
        return None
    return ActiveRun(str(run.info.run_id), str(run.info.experiment_id))


def is_outage(error: Exception) -> bool:
    """Return True if a retry may succeed: the server does not answer, or reports an error of its own."""
    from mlflow.exceptions import InvalidUrlException, MlflowException

    if isinstance(error, InvalidUrlException):
        return False
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in (429, *range(500, 600))
    return isinstance(error, OSError)


def store_of_active_run() -> str | None:
    """Return the store of MLflow's active run, which may be MLflow's default one; None without an active run."""
    import mlflow

    return None if mlflow.active_run() is None else str(mlflow.get_tracking_uri())


# Where ``mlflow ui`` serves the pages of a store.
OWN_SERVER = "http://127.0.0.1:5000"


def run_page(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the address of a run's page, without a password; None for a store that serves no pages."""
    if tracking_uri.startswith(("http://", "https://")):
        server = without_credentials(tracking_uri).partition("?")[0].rstrip("/")
        return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    if tracking_uri == "databricks":
        from mlflow.utils.databricks_utils import get_workspace_url

        # The clients of Databricks would ask the network for it.
        host = get_workspace_url() or os.environ.get("DATABRICKS_HOST")
        return host and f"{without_credentials(host).rstrip('/')}/ml/experiments/{experiment_id}/runs/{run_id}"
    return None


def remember_own_store(tracking_uri: str) -> None:
    """Let models be found in this store by default, as MLflow is set to none."""
    global _OWN_STORE
    _OWN_STORE = tracking_uri


class NoStoreError(ClearError, LookupError):
    """Raised when a model must be looked up without a store: MLflow has none, and the usual places have none."""


def own_store(output: Path) -> str:
    """Return the SQLite store of the trainings with this output folder, where MLflow is set to no store."""
    return f"sqlite:///{output.absolute() / 'mlflow.db'}"


def default_store() -> str | None:
    """Return the existing store in which a model is looked up by default; None for the one that MLflow is set to.

    It is that of this process's last training, else that of the active run, else that of the default output folder in
    the working directory, else MLflow's own default store.

    Raises:
        NoStoreError: MLflow is set to no store, and none of these exists. MLflow would create an empty one.
    """
    import mlflow

    if chosen_store() is not None or _is_registry_set():
        return None
    if used := _OWN_STORE or store_of_active_run():
        return used
    stores = own_store(Path(DEFAULT_OUTPUT)), str(mlflow.get_tracking_uri())
    for store in stores:
        file = sqlite_file(store)
        # MLflow's default store is a folder only where that has runs already.
        if file is None or file.exists():
            return store
    raise NoStoreError(
        f"MLflow is set to no store, and there is no {' and no '.join(str(sqlite_file(store)) for store in stores)}"
    )


def versions_of(client: Any, name: str) -> list[Any]:
    """Return the versions of a registered model in a client's registry, the first one first."""
    # MLflow's filter has no escapes; LIKE takes any character for an underscore. Unity Catalog knows "=" alone.
    pattern = re.sub(r"['\"\\]", "_", name)
    found = client.search_model_versions(f"name {'=' if pattern == name else 'LIKE'} '{pattern}'")
    return sorted((version for version in found if version.name == name), key=lambda version: int(version.version))


def lookup_address(tracking_uri: str | None) -> str:
    """Return the address of the store in which a model is looked up: ``tracking_uri``, or the default one.

    Raises:
        NoStoreError: As in :func:`default_store`.
    """
    import mlflow

    return tracking_uri or default_store() or str(mlflow.get_tracking_uri())


def _is_registry_set() -> bool:
    import mlflow

    return str(mlflow.get_registry_uri()) != _own_registry(str(mlflow.get_tracking_uri()))


def registry_of(tracking_uri: str) -> str:
    """Return the URI of a store's model registry: the store itself, unless MLflow has a registry set for it.

    A registry set in MLflow (``MLFLOW_REGISTRY_URI``, ``mlflow.set_registry_uri``, Spark's
    ``spark.mlflow.modelRegistryUri``) belongs to MLflow's current store. It does not know the models of any other
    store, so a version registered there would lead nowhere.
    """
    import mlflow

    current, registry = mlflow.get_tracking_uri(), str(mlflow.get_registry_uri())
    is_for_it = not mlflow.is_tracking_uri_set() or is_same_store(current, tracking_uri)
    return registry if is_for_it and registry != _own_registry(current) else _own_registry(tracking_uri)


def _own_registry(tracking_uri: str) -> str:
    # As in MLflow, the registry of a Databricks workspace is its Unity Catalog.
    return re.sub(r"^databricks(?=$|://)", "databricks-uc", tracking_uri)


def is_same_store(one: str, other: str) -> bool:
    """Return whether two addresses name the same store; user name and password are ignored."""
    first, second = (without_credentials(absolute_store(uri)).rstrip("/") for uri in (one, other))
    return first == second


def absolute_store(tracking_uri: str) -> str:
    """Return the address of a store, in which the path of an SQLite file is absolute."""
    file = sqlite_file(tracking_uri)
    if file is None:
        return tracking_uri
    scheme, separator, rest = tracking_uri.partition(":///")
    _, mark, options = rest.partition("?")
    return f"{scheme}{separator}{file.absolute()}{mark}{options}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for any other store and for one without a file.

    The part after a question mark contains options of the connection, such as ``timeout=60``.
    """
    found = _SQLITE_FILE.fullmatch(tracking_uri)
    # ":memory:" has no file, and "file:" addresses can be interpreted only by SQLite itself.
    return None if found is None or found[1] == ":memory:" or found[1].startswith("file:") else Path(found[1])
