"""An executor whose Python cannot run a shipped object reports that, and models are shipped together."""

import os
import pickle
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from pyspark import SparkFiles

from mirrorspark.data_pipelines.spark.tasks import portable
from mirrorspark.scoring.batch import BatchTask
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.pinned import PinnedModel
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer, ShippedModel, ship, ship_all


@dataclass(frozen=True)
class Doubling:
    def __call__(self, batches: Iterable[int]) -> Iterator[int]:
        return (2 * batch for batch in batches)


TASK = BatchTask(("id",), Scorer(ShippedModel("0" * 64, "flights/3", path="/model", archive=None)))


def test_a_portable_task_does_what_the_task_does() -> None:
    run = pickle.loads(cloudpickle.dumps(portable(Doubling())))  # noqa: S301
    assert list(run([1, 2])) == [2, 4]


def test_an_executor_without_our_packages_says_which_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    travelling = cloudpickle.dumps(portable(TASK))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mirrorspark"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mirrorspark", None)
    run = pickle.loads(travelling)  # noqa: S301
    with pytest.raises(
        ModuleNotFoundError, match=r"on this executor cannot import 'mirrorspark.*'; install mirrorspark"
    ):
        run([])


def test_a_task_carries_no_model() -> None:
    assert len(cloudpickle.dumps(portable(TASK))) < 4_000


def test_a_task_without_rows_loads_no_model() -> None:
    assert list(TASK([])) == []


class Cluster:
    """Stands for the context of a cluster's session: unpacks archives into ``folder``, and counts what it is asked.

    Its file server has the archives below an address of its own, as Spark's has.
    """

    master = "spark://host:7077"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archives: list[str] = []
        self.lists = 0

    @property
    def listArchives(self) -> list[str]:  # noqa: N802 - Spark's name
        self.lists += 1
        return [f"spark://host:7078/files/{Path(archive).name}" for archive in self.archives]

    def addArchive(self, path: str) -> None:  # noqa: N802 - Spark's name
        archive, _, name = path.partition("#")
        shutil.unpack_archive(archive, self.folder / name)
        self.archives.append(path)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return a cluster whose added files are in this process's own folder for them."""
    folder = tmp_path / "added"
    folder.mkdir()
    # The state of an executor's Python.
    monkeypatch.setattr(SparkFiles, "_is_running_on_worker", True)
    monkeypatch.setattr(SparkFiles, "_root_directory", str(folder))
    return Cluster(folder)


def linear_models(folder: Path, count: int) -> list[PinnedModel]:
    models = [package_model({"coefficients": {"x": float(number)}}, folder / str(number)) for number in range(count)]
    return [resolve(model) for model in models]


def test_models_travel_together_and_once(cluster: Cluster, tmp_path: Path) -> None:
    """S18: Spark gets one archive of thousands of models, and is asked once which it has."""
    session: Any = SimpleNamespace(sparkContext=cluster)
    models = linear_models(tmp_path, 5)
    shipped = ship_all(session, [*models, models[0]])
    assert [folder_digest(model.folder()) for model in shipped] == [model.digest for model in [*models, models[0]]]
    assert [model.label for model in shipped[:5]] == [model.label for model in models]
    assert (len(cluster.archives), cluster.lists) == (1, 1)
    assert ship_all(session, models[::-1]) == shipped[4::-1]
    assert len(cluster.archives) == 1, "the same models are not sent again"


def test_a_model_whose_files_are_from_before_1980_travels(cluster: Cluster, tmp_path: Path) -> None:
    """Files of reproducible images are from 1970."""
    session: Any = SimpleNamespace(sparkContext=cluster)
    (model,) = linear_models(tmp_path, 1)
    for file in model.path.iterdir():
        os.utime(file, (0, 0))

    assert folder_digest(ship(session, model).folder()) == model.digest


def test_a_model_that_travels_alone_is_not_one_of_several(cluster: Cluster, tmp_path: Path) -> None:
    session: Any = SimpleNamespace(sparkContext=cluster)
    one, other = linear_models(tmp_path, 2)
    ship_all(session, [one, other])
    assert folder_digest(ship(session, one).folder()) == one.digest
    assert len(cluster.archives) == 2


def test_in_a_local_session_models_stay_where_they_are(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="local[2]"))
    models = linear_models(tmp_path, 2)
    assert [model.folder() for model in ship_all(session, models)] == [model.path for model in models]
