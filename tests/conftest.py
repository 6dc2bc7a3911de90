"""Fixtures that all tests share, and the environment that has to be right before TensorFlow and Spark are imported."""

import gc
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.chromium import MISSING, chromium, is_installed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from selenium.webdriver import Chrome

REPOSITORY = Path(__file__).resolve().parents[1]

# Many containers set this. Every process would then compile what it imports, and rewrite the asserts of the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Spark divides its options at spaces, so a clone in such a folder goes without.
_WARM_WORKERS = (
    f"-Dspark.python.daemon.module=tests.python_workers "
    f"-Dspark.executorEnv.PYTHONPATH={REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
) * (" " not in str(REPOSITORY))

# Tests are short: a JVM that compiles quickly takes half of the time of one that compiles well.
_QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

# TensorFlow reads this one at import; with Keras 3 nothing here works, so a value from outside does not count.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
for name, value in {
    "AWS_ACCESS_KEY_ID": "made-up",  # for the S3 server of the tests; Spark's workers must have it from the start
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_EC2_METADATA_DISABLED": "true",
    "CUDA_VISIBLE_DEVICES": "-1",  # tests mean the CPU, also on a machine with a GPU
    "GIT_PYTHON_REFRESH": "quiet",  # MLflow warns where there is no git
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # OpenMP threads that wait for a core spin, and starve the others
    "PYSPARK_DRIVER_PYTHON": sys.executable,
    "PYSPARK_PYTHON": sys.executable,
    "SPARK_SUBMIT_OPTS": f"{_QUICK_JVM} {_WARM_WORKERS}",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)


# The user's own settings of MLflow do not count either.
for name in (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_RUN_ID",
):
    os.environ.pop(name, None)


def cold_workers() -> dict[str, str]:
    """Return the environment of a program whose Python workers start as users' do, without anything imported before."""
    return os.environ | {"SPARK_SUBMIT_OPTS": os.environ["SPARK_SUBMIT_OPTS"].replace(_WARM_WORKERS, "")}


# How many examples a property is tried on. No deadline: kernels compile and machines are shared.
hypothesis.settings.register_profile("usual", max_examples=25, deadline=None)
hypothesis.settings.register_profile("full", max_examples=300, deadline=None)

# Limits that assert nothing but end a hang are given for two quiet cores, and multiplied by this for slow or busy ones.
PATIENCE = 4

# Their tests take long and share nothing, so they are dealt one by one; other files stay in one process.
_DEALT_ONE_BY_ONE = re.compile(r"tests/faults/test_(io_failures|mutations|simulated_\w+|store_failures|takeovers)\.py")

# The files that take longest, longest first. They are begun before all others: a file that is begun last keeps a single
# process busy while the others have nothing left to do.
_LONG_FILES = tuple(
    f"tests/{name}.py"
    for name in (
        "unit/models/test_every_architecture",
        "unit/recommending/test_routing",
        "unit/recommending/test_item_index",
        "unit/scoring/test_loaded_model",
        "cluster/test_main_job",
        "cluster/test_pipeline",
        "faults/test_standalone_cluster",
        "cluster/test_fit_table",
        "cluster/test_recipes",
        "cluster/test_quickstart_notebook",
        "faults/test_fleet_kills",
        "faults/test_stops",
        "cluster/test_mlflow_server",
        "cluster/test_run_fleet",
        "cluster/test_every_architecture",
        "cluster/test_items",
        "cluster/test_scoring",
        "cluster/test_estimator",
        "cluster/test_text_embedding",
        "cluster/test_train_fleet",
        "cluster/test_retraining",
        "cluster/test_multi_label",
        "cluster/test_sweep",
        "cluster/test_planted_secrets",
        "cluster/test_secrets",
        "cluster/test_foreign_train_fn",
        # It measures the delay until a hang is noticed, so it does not begin next to the longest trainings.
        "faults/test_faults_on_runs",
        "processes/training/test_ring_strategy",
        "processes/training/test_every_architecture",
        "processes/training/test_real_rows",
        "cluster/test_callbacks_two_workers",
        "processes/training/test_parameter_server",
        "cluster/test_parameter_server",
        "cluster/test_scoring_threads",
        "cluster/test_step_loop_two_workers",
        "packaging/test_wheel",
        "processes/lifecycle/test_serve_traffic",
        "processes/serving/test_serve",
    )
)

# Tests in these folders start processes, whatever they are marked with.
_PROCESS_FOLDERS = ("browser", "cluster", "faults", "packaging", "processes")
# So do the users of these fixtures.
_PROCESS_FIXTURES = frozenset({"s3_bucket", "spark", "connect_url", "browser"})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler that deals tests to processes: whole files, the longest first, and some tests one by one.

    Other files follow as xdist orders them: those with most tests first.
    """
    if gone := [file for file in _LONG_FILES if not (REPOSITORY / file).is_file()]:
        raise pytest.UsageError(f"there are no files {gone}; correct _LONG_FILES in tests/conftest.py")
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            for file in _LONG_FILES:
                if file in self.workqueue:
                    self.workqueue.move_to_end(file, last=False)
                    break
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _DEALT_ONE_BY_ONE.match(nodeid) else str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run what `make test` leaves out: slow tests, faults, properties at length"
    )


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("full") else "usual")
    # Importing makes millions of objects that stay: looking for garbage among them takes a tenth of the time.
    gc.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no unit tests for the tests that start processes, except the files that have some of both."""
    if config.getoption("markexpr") != "process" or not collection_path.is_relative_to(REPOSITORY / "tests" / "unit"):
        return None
    if not collection_path.match("test_*.py"):
        return None
    source = collection_path.read_text(encoding="utf-8")
    return None if "mark.process" in source or any(f"{name}: " in source for name in _PROCESS_FIXTURES) else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts processes, lengthen limits, and choose: the usual tests, or with ``--full`` the long ones."""
    chosen = []
    # A test that is asked for by its name runs.
    named = [re.compile(rf".*{re.escape(argument)}(?:$|\[|::)") for argument in config.args if "::" in argument]
    for item in items:
        limit = item.get_closest_marker("timeout")
        seconds = float(limit.args[0] if limit else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(PATIENCE * seconds), append=False)
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if folder in _PROCESS_FOLDERS or _PROCESS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("process")
        is_long = item.get_closest_marker("full") is not None
        is_property = hypothesis.is_hypothesis_test(getattr(item, "obj", None))
        is_named = any(pattern.match(f"{item.path}::{item.nodeid.partition('::')[2]}") for pattern in named)
        if is_named or ((is_long or is_property or folder == "faults") if config.getoption("full") else not is_long):
            chosen.append(item)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not in what has been imported."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with a line for each kind of fault that was counted, and one for what could not run here, and why."""
    counts: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, numbers in report.user_properties:
            counts.setdefault(name, Counter()).update(numbers)
    for name, total in sorted(counts.items()):
        terminalreporter.write_line(f"{name}: {', '.join(f'{number:,} {what}' for what, number in total.items())}")
    reasons = Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        listed = "; ".join(f"{count} because: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{reasons.total()} tests could not run here: {listed}")


@pytest.fixture(autouse=True)
def mlflow_is_set_to_nothing() -> Iterator[None]:
    """Undo what a test or fixture has set MLflow to, since the store of later trainings would be that one."""
    _unset_mlflow()
    yield
    _unset_mlflow()


def _unset_mlflow() -> None:
    if "mlflow" in sys.modules and os.environ.get("MLFLOW_TRACKING_URI"):
        sys.modules["mlflow"].set_tracking_uri(None)
    if "mirrorspark.callbacks.mlflow.tracking_store" in sys.modules:
        sys.modules["mirrorspark.callbacks.mlflow.tracking_store"]._OWN_STORE = None


@pytest.fixture(scope="session", autouse=True)
def fetched_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep models that tests fetch apart from those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIRRORSPARK_MODEL_CACHE", str(tmp_path_factory.mktemp("fetched")))
        patch.delenv("MIRRORSPARK_OFFLINE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def spark_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tables of Spark's catalog out of the working directory, also those of programs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("warehouse")
        if " " not in str(folder):  # Spark divides its options at spaces.
            patch.setenv("SPARK_SUBMIT_OPTS", f"{os.environ['SPARK_SUBMIT_OPTS']} -Dspark.sql.warehouse.dir={folder}")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of data sets that are not part of the repository; skip where there is none."""
    return _shared("data")


@pytest.fixture(scope="session")
def peers() -> Path:
    """Return the folder of other projects' examples and tests, which are run as they are; skip where there is none."""
    return _shared("peers")


def _shared(name: str) -> Path:
    variable = f"MIRRORSPARK_SHARED_{name.upper()}"
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no shared {name} in {folder}; set {variable} to the folder that has them")
    return folder


@pytest.fixture(scope="session")
def spark() -> Iterator["SparkSession"]:
    """Yield the one local Spark session of this test run, with two slots."""
    from mirrorspark.spark_session.start import open_session

    session = open_session(master="local[2]", workers=2, app_name="mirrorspark-tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def connect_url(spark: "SparkSession") -> Iterator[str]:
    """Yield the address at which the session's cluster is served over Spark Connect, to processes of their own."""
    from benchmarks.connect_server import connect_server
    from mirrorspark.spark_session import versions

    if not versions.HAS_PYTHON_SOURCES:
        pytest.skip("PySpark 3.5 has no Spark Connect that we can use")
    pytest.importorskip("grpc_status", reason="no client of Spark Connect: pip install 'pyspark[connect]'")
    with connect_server(spark) as url:
        yield url


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """Yield ``BUCKET?OPTIONS``, what follows ``s3://`` for a bucket on a local server that speaks S3's protocol."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    store, _ = fs.FileSystem.from_uri(f"s3://mirrorspark-tests?{options}&allow_bucket_creation=true")
    store.create_dir("mirrorspark-tests")
    yield f"mirrorspark-tests?{options}"
    server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator["Chrome"]:
    """Yield a headless Chromium of 1280 x 900 pixels; skip where Chromium or its driver is missing."""
    if not is_installed():
        pytest.skip(MISSING)
    with chromium() as driver:
        yield driver


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of one megabyte; skip where none may be mounted."""
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    folder = tmp_path / "tiny disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no disk may be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
