"""T11: a training with parameter servers, on processes of this machine: its table is sharded, and ranks may be lost."""

import contextlib
import dataclasses
import functools
import json
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from mirrorspark.callbacks.backup import restore
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import Categorical, Label
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.models import two_tower
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.child_process import Tail, tensorflow_environment
from mirrorspark.training.executor.worker import WorkerOrders
from mirrorspark.training.executor.worker_process import WorkerProcess
from mirrorspark.training.programs.keras_fit import fit
from mirrorspark.training.programs.keras_fit.rank_validation import RankValidation
from mirrorspark.training.programs.keras_fit.start import Start
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.plan import TrainingPlan
from mirrorspark.training.protocol.roles import Roles
from tests.unit.training import parameter_server_entry
from tests.unit.training.conftest import free_addresses
from tests.unit.training.token_dataset import write_dataset, write_token_dataset

pytestmark = pytest.mark.timeout(300)

SECONDS = 90.0
TOKENS = 5000
BATCH = 64
TRAIN_ROWS, VALIDATION_ROWS = 4096, 1024
STEPS = TRAIN_ROWS // BATCH


@pytest.fixture(autouse=True, scope="module")
def no_server_stays() -> Iterator[None]:
    yield
    worker_process.shut_down()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = {"train": TRAIN_ROWS, "validation": VALIDATION_ROWS}
    return write_token_dataset(tmp_path_factory.mktemp("data") / "tokens", rows, TOKENS)


def plan_of(dataset: Dataset, folder: Path, **knobs: Any) -> TrainingPlan:
    settings: dict[str, Any] = {"model": {"name": "multi_field", "embedding_dim": 32, "hidden_units": [16]}} | knobs
    config = TrainingConfig(
        name="tokens", learning_rate=0.01, steps_per_execution=4, global_batch_size=BATCH, **settings
    )
    return TrainingPlan(
        config,
        str(dataset.path),
        checkpoints=str(folder / "checkpoints"),
        workers=int(config.workers),
        global_batch_size=BATCH,
    )


class Cluster:
    """All ranks of one attempt. Leaving the context ends them."""

    def __init__(self, plan: TrainingPlan, roles: Roles) -> None:
        self._roles = roles
        self._plan = plan
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._outcomes: list[queue.SimpleQueue[dict[str, Any] | None]] = []
        self._open = contextlib.ExitStack()
        self.processes: list[WorkerProcess] = []

    def __enter__(self) -> "Cluster":
        with contextlib.ExitStack() as opening:
            server = opening.enter_context(EventServer("127.0.0.1", self._events.put))
            plan = dataclasses.replace(self._plan, events=server.address)
            addresses = free_addresses(self._roles.ranks)
            for rank in range(self._roles.ranks):
                cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
                environment = tensorflow_environment(1, verbose=False) | {"TF_CONFIG": json.dumps(cluster)}
                process = opening.enter_context(worker_process.start(environment))
                opening.callback(Tail(process.errors, echo=False).close)
                opening.callback(process.kill)
                entry = f"{parameter_server_entry.__name__}:train"
                plan_class = "mirrorspark.training.protocol.plan:TrainingPlan"
                orders = WorkerOrders(rank, plan.attempt, server.address, entry, plan_class, plan.to_json())
                process.send(orders.to_bytes())
                self.processes.append(process)
                self._outcomes.append(queue.SimpleQueue())
                threading.Thread(target=self._read, args=(rank, process), daemon=True).start()
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def next(self, kind: str, **fields: object) -> Event:
        """Return the next event of that kind with these fields."""
        while True:
            event = self._events.get(timeout=SECONDS)
            assert event["event"] != "error" or kind == "error", event.get("traceback")
            if event["event"] == kind and fields.items() <= event.items():
                return event

    def outcome(self, rank: int) -> dict[str, Any] | None:
        """Return the outcome of a rank; None for one that reported none."""
        return self._outcomes[rank].get(timeout=SECONDS)

    def _read(self, rank: int, process: WorkerProcess) -> None:
        with contextlib.suppress(ValueError):  # closed by the test's end
            for line in process.answers:
                if "outcome" in (answer := json.loads(line)):
                    self._outcomes[rank].put(answer)
        self._outcomes[rank].put(None)


@pytest.mark.full
def test_a_table_sharded_over_two_servers_trains_though_a_worker_is_killed_and_restores_whole(
    dataset: Dataset, tmp_path: Path
) -> None:
    """T11: asynchronous training of a table that no rank but the servers holds, and a checkpoint like any other."""
    roles = Roles(workers=2, servers=2)
    plan = plan_of(dataset, tmp_path, workers=2, epochs=4)
    with Cluster(plan, roles) as cluster:
        first = cluster.next("epoch_end", epoch=1)
        cluster.processes[1].kill()
        lost = cluster.next("log", rank=0)
        last = cluster.next("epoch_end", epoch=4)
        outcomes = [cluster.outcome(rank) for rank in range(roles.ranks)]

    finished = {"outcome": "finished", "epochs": 4}
    assert outcomes == [finished, None, finished, finished, finished]
    assert lost["message"] == "worker 0 (rank 1) disconnected: 1 go on"
    # The other worker has taken over the lost one's work: every epoch has all its updates.
    assert (first["step"], last["step"]) == (STEPS, 4 * STEPS)
    assert last["logs"]["loss"] < 0.01 < 0.3 < first["logs"]["loss"]

    placed = json.loads(parameter_server_entry.placement_file(plan.checkpoints).read_text())
    rows = TOKENS + 2
    assert placed["fields/table/part_0:0"] == [[rows // 2, 32], "/job:ps/replica:0/task:0/device:CPU:0"]
    assert placed["fields/table/part_1:0"] == [[rows // 2, 32], "/job:ps/replica:0/task:1/device:CPU:0"]

    model = fit.build_model(plan, dataset, tf.distribute.get_strategy(), Start())
    checkpoint = commit.latest_committed(plan.checkpoints)
    assert checkpoint is not None
    restore(model, model.optimizer, checkpoint)
    assert isinstance(model.get_layer("fields").weights[0], tf.Variable)
    assert model.get_layer("fields").weights[0].shape == (rows, 32)
    assert int(model.optimizer.iterations.numpy()) == 4 * STEPS
    batches = load_batches(dataset, ReadPlan("validation", BATCH))
    alone = model.evaluate(batches, steps=VALIDATION_ROWS // BATCH, verbose=0, return_dict=True)
    # The workers together had counted each row once.
    assert last["logs"]["val_auc"] == pytest.approx(alone["auc"], abs=1e-6)
    assert last["logs"]["val_loss"] == pytest.approx(alone["loss"], rel=1e-5)


def retrieval_dataset(folder: Path) -> Dataset:
    """Write rows of users who take the films after those of their number; half of the users have a row more."""
    users, films = 60, 300
    of_user = np.repeat(np.arange(users), 4)
    taken = pa.array([f"f{(5 * user + place) % films}" for place, user in enumerate(of_user)])
    rows = pa.table({"user": pa.array([f"u{user}" for user in of_user]), "film": taken, "row": np.arange(len(of_user))})
    seen = pa.array([[f"f{5 * user}"] for user in of_user])
    spec = FeatureSpec(
        (Categorical("user"), Categorical("film")), Label("film", "candidate"), keys=("row",), exclude="seen"
    )
    names = {"user": [f"u{user}" for user in range(users)], "film": [f"f{film}" for film in range(films)]}
    vocabularies = {
        name: Vocabulary(pa.array(tokens), pa.array([1] * len(tokens), pa.int64())) for name, tokens in names.items()
    }
    table = rows.append_column("seen", seen)
    return write_dataset(
        folder, FittedFeatures(spec, vocabularies, {}), {"train": table, "validation": table.slice(0, 90)}
    )


@pytest.mark.full
def test_lists_are_ranked_as_in_a_training_without_servers(tmp_path: Path) -> None:
    """The metrics of each epoch are those of its model in one process; the table of candidates is on two servers."""
    dataset = retrieval_dataset(tmp_path / "films")
    model_settings = {"name": "two_tower", "embedding_dim": 512, "hidden_units": [8]}
    plan = plan_of(dataset, tmp_path, workers=1, epochs=2, monitor="val_recall@5", model=model_settings)
    with Cluster(plan, Roles(workers=1, servers=2)) as cluster:
        last = cluster.next("epoch_end", epoch=2)
        assert cluster.outcome(0) == {"outcome": "finished", "epochs": 2}
    placed = json.loads(parameter_server_entry.placement_file(plan.checkpoints).read_text())
    of_films = {device for shape, device in placed.values() if shape == [151, 512]}
    assert len(of_films) == 2, placed
    model = fit.build_model(plan, dataset, tf.distribute.get_strategy(), Start())
    checkpoint = commit.latest_committed(plan.checkpoints)
    assert checkpoint is not None
    restore(model, model.optimizer, checkpoint)
    alone: dict[str, float] = {}
    predict = functools.partial(two_tower.predict, model)
    ranked = RankValidation(predict, dataset, k=5, rank=0, workers=1, activity=Activity())
    ranked.set_model(model)
    ranked.on_epoch_end(1, alone)
    assert 0 < alone["val_ndcg_at_5"] < alone["val_recall_at_5"] <= 1
    assert {name: last["logs"][name] for name in alone} == pytest.approx(alone, abs=1e-9)


@pytest.mark.full
def test_a_synchronous_checkpoint_resumes_on_servers_and_a_stop_saves_within_an_epoch(
    dataset: Dataset, tmp_path: Path
) -> None:
    plan = plan_of(dataset, tmp_path, workers=1, epochs=1000)
    with Cluster(plan, Roles(workers=1, servers=1)) as cluster:
        cluster.next("epoch_end", epoch=1)
        cluster.processes[2].send(b'{"stop": "preempted"}\n')
        outcomes = [cluster.outcome(rank) for rank in range(3)]
    assert [(outcome or {})["outcome"] for outcome in outcomes] == ["stopped"] * 3
    assert (outcomes[2] or {})["reason"] == "preempted"
    stopped = commit.latest_committed(plan.checkpoints)
    assert stopped is not None
    assert {(outcome or {})["step"] for outcome in outcomes} == {stopped.step}
    # Nothing was on its way when it was saved.
    assert stopped.step == stopped.epoch * STEPS + stopped.step_in_epoch

    epochs = stopped.epoch + 1
    config = dataclasses.replace(plan.config, epochs=epochs)
    again = dataclasses.replace(plan, config=config, attempt=2, resume_from=str(stopped.path))
    with Cluster(again, Roles(workers=1, servers=2)) as cluster:
        resumed = cluster.next("epoch_end")
        assert cluster.outcome(0) == {"outcome": "finished", "epochs": epochs}
    assert (resumed["epoch"], resumed["step"]) == (epochs, epochs * STEPS)
    assert resumed["logs"]["loss"] < 0.3


@pytest.mark.full
def test_faults_on_purpose_strike_the_coordinators_steps_and_the_workers_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRRORSPARK_FAULTS", "raise:step=8;slow_input:seconds=0.01")
    plan = plan_of(dataset, tmp_path, workers=1, strategy="parameter_server", parameter_servers=1, epochs=1000)
    with Cluster(plan, Roles(workers=1, servers=1)) as cluster:
        said = cluster.next("log", rank=1)["message"]
        outcome = cluster.outcome(0) or {}
    assert said == "MIRRORSPARK_FAULTS asks for faults in this rank: slow_input:seconds=0.01"
    assert (outcome["cause"], outcome["type"]) == ("user", "InjectedFault")
    # Workers do not wait for the coordinator to look: there may have been another step by then.
    assert re.fullmatch(r"MIRRORSPARK_FAULTS asked for an error after step ([89]|\d\d)", outcome["message"])


@pytest.mark.full
def test_a_nan_loss_is_reported_without_the_records_of_its_step(dataset: Dataset, tmp_path: Path) -> None:
    plan = plan_of(dataset, tmp_path, workers=1, epochs=2)
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, optimizer="sgd", learning_rate=1e30))
    with Cluster(plan, Roles(workers=1, servers=1)) as cluster:
        outcome = cluster.outcome(0) or {}
    assert (outcome["cause"], outcome["type"]) == ("user", "NonFiniteLossError")
    assert "in epoch 1, first in step " in outcome["message"]
    assert (
        "(the workers' updates overlap, so which records it read is not known; there is no checkpoint yet)"
        in (outcome["message"])
    )


@pytest.mark.full
@pytest.mark.parametrize(("victim", "who"), [(3, "parameter server 1"), (1, "worker 0")])
def test_without_a_server_or_the_last_worker_the_attempt_ends(
    dataset: Dataset, tmp_path: Path, victim: int, who: str
) -> None:
    roles = Roles(workers=1, servers=2)
    with Cluster(plan_of(dataset, tmp_path, workers=1, epochs=1000), roles) as cluster:
        cluster.next("epoch_end", epoch=1)
        cluster.processes[victim].kill()
        outcomes = {rank: cluster.outcome(rank) for rank in range(roles.ranks)}
    assert outcomes.pop(victim) is None
    coordinator = outcomes.pop(0) or {}
    assert (coordinator["cause"], coordinator["type"]) == ("peer", "RingError")
    assert coordinator["message"].startswith(f"rank {victim} ({who}) disconnected")
    for outcome in outcomes.values():
        assert outcome is not None
        assert (outcome["cause"], outcome["message"].startswith("rank 0 (the coordinator) disconnected")) == (
            "peer",
            True,
        )
