"""T6: how the training of one rank finds the others, and gets its data."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from mirrorspark.data_pipelines.reading.dataset import ReadPlan, load_batches
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.programs.keras_fit import fit
from mirrorspark.training.programs.keras_fit.step_description import describe_last_checkpoint
from mirrorspark.training.programs.keras_fit.strategy import open_strategy
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Command
from mirrorspark.training.protocol.outcomes.activity import Activity, Phase
from mirrorspark.training.protocol.ring.rendezvous import Rendezvous
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.training.test_function_rank import Twin
from tests.unit.training.test_running_attempt import Driver
from tests.unit.training.token_dataset import write_token_dataset


@pytest.mark.process
def test_ranks_find_each_other_through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: nobody has to know a free port before it is listened on."""
    elsewhere = {"cluster": {"worker": ["192.0.2.1:1", "192.0.2.1:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(elsewhere))  # left over, and not to be looked at
    plan: Any = SimpleNamespace(token="secret", config=SimpleNamespace(strategy_name="ring", start_limit_seconds=20))
    driver = Driver()

    def open_as(rank: int) -> Any:
        heard: SimpleQueue[Command] = SimpleQueue()
        events = EventClient(server.address, rank, 1, on_command=heard.put)
        activity = Activity()
        try:
            return open_strategy(plan, activity, Rendezvous(rank, "127.0.0.1", events, heard, activity))
        finally:
            events.close()

    with EventServer("127.0.0.1", driver.running.on_event) as server, ThreadPoolExecutor(2) as pool:
        driver.running.begin(server)
        strategies = [strategy.result() for strategy in [pool.submit(open_as, rank) for rank in (0, 1)]]
    assert [(strategy.ring.rank, strategy.ring.workers) for strategy in strategies] == [(0, 2), (1, 2)]
    for strategy in strategies:
        strategy.ring.close()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"strategy_name": "multi_worker_mirrored"}, "the strategy multi_worker_mirrored"),
        ({"strategy_name": "parameter_server"}, "the strategy parameter_server"),
        ({"xla": True, "accumulate": 2}, "accumulate, xla"),
        ({"local_steps": 8, "warm_start": "models:/rides/1"}, "local_steps, warm_start"),
    ],
)
def test_a_setting_that_needs_tf_keras_says_so_of_a_model_of_keras_3(settings: dict[str, Any], names: str) -> None:
    usual = {"strategy_name": "ring", "accumulate": 1, "local_steps": 1, "xla": False}
    plan: Any = SimpleNamespace(config=SimpleNamespace(**usual | settings), warm_start=settings.get("warm_start"))
    with pytest.raises(ModelSettingsError, match=f"^{names} needs a model of tf-keras, and this one is of Keras 3: "):
        fit._require_possible_in_keras3(plan)


def test_the_checkpoint_to_go_on_from_is_older_than_the_fault_and_whole(tmp_path: Path) -> None:
    """T8: a checkpoint is named as the last good one after it was read again, which may take as long as a save."""
    for step in (10, 20, 30):
        checkpoint = publish_files(tmp_path, {"ckpt.index": f"at {step}"}, step=step, epoch=step // 10)
        if step == 20:
            (Path(str(checkpoint.path)) / "ckpt.index").write_text("at 21")
    phases: list[Phase] = []
    activity = Activity(on_phase=phases.append)
    activity.enter("training")
    plan: Any = SimpleNamespace(checkpoints=str(tmp_path))
    assert describe_last_checkpoint(plan, activity, epoch=2, step=5) == "the last checkpoint is that of step 10"
    assert (phases, activity.beats > 0) == (["training", "checkpoint", "training"], True)
    assert describe_last_checkpoint(plan, activity, epoch=0, step=5) == "there is no checkpoint yet"


@pytest.mark.parametrize("name", ["mirrored", "ring"])
def test_a_gate_for_the_input_stands_before_its_distribution(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    is_ring = name == "ring"
    strategy: Any = RingStrategy(Twin()) if is_ring else tf.distribute.MirroredStrategy(["/cpu:0"])  # type: ignore[arg-type]
    monkeypatch.setattr(fit, "load_batches", lambda *_, **__: tf.data.Dataset.range(1, 9).batch(4))
    monkeypatch.setattr(fit, "_read_plan", lambda *_: None)
    given: Any = None
    share = fit._batches(strategy, given, given, "train", (0, 0), Activity(), lambda data: data.map(lambda x: -x))
    assert next(iter(strategy.experimental_distribute_dataset(share) if is_ring else share)).numpy()[0] == -1


def test_a_share_stays_one_whatever_is_made_of_it() -> None:
    strategy = RingStrategy(Twin())  # type: ignore[arg-type]
    own = tf.data.Dataset.range(8).batch(4)
    share = strategy.distribute_datasets_from_function(lambda context: own)
    changed = share.map(lambda x: x).prefetch(2)
    assert strategy.experimental_distribute_dataset(changed) is changed
    assert strategy.experimental_distribute_dataset(own) is not own


def test_the_replicas_of_a_worker_share_its_rows() -> None:
    """T9: a strategy takes a batch for each of them in every step."""
    sparse = tf.sparse.from_dense([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    features = {"age": tf.range(4), "ids": tf.reshape(tf.range(8), [4, 2]), "words": sparse}
    rows = PaddedBatch(features, tf.range(4.0), tf.ones(4), tf.constant(1.25))
    shares = tf.data.Dataset.from_tensors(rows).repeat(2)

    batches = list(fit.split_among_replicas(shares, 2))

    assert len(batches) == 4
    assert fit.split_among_replicas(shares, 1) is shares
    assert fit.split_among_replicas(shares, 2).element_spec[0]["words"].shape == [2, 2]
    features, label, _, scale = batches[1]
    assert scale.numpy() == 1.25
    assert (features["age"].numpy().tolist(), label.numpy().tolist()) == ([2, 3], [2.0, 3.0])
    assert features["ids"].numpy().tolist() == [[4, 5], [6, 7]]
    assert tf.sparse.to_dense(features["words"]).numpy().tolist() == [[3.0, 0.0], [0.0, 4.0]]


def test_batches_of_replicas_have_the_models_shapes(tmp_path: Path) -> None:
    dataset = write_token_dataset(tmp_path / "dataset", {"train": 64}, tokens=4)
    shares = load_batches(dataset, ReadPlan("train", global_batch_size=8), scaled_to="batch")

    given, shared = fit.split_among_replicas(shares, 2).element_spec, shares.element_spec

    assert (given.scale.shape.as_list(), type(given)) == ([], PaddedBatch)
    for mine, whole in zip(tf.nest.flatten(given[:3]), tf.nest.flatten(shared[:3]), strict=True):
        assert mine.shape.as_list() == [4, *whole.shape.as_list()[1:]]
