"""T2: plans and results of somebody's own function, and errors for those that cannot travel."""

import functools
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorspark.scoring.input.inputs import Column
from mirrorspark.training.programs.user_functions import plan as function_plan
from mirrorspark.training.programs.user_functions.plan import (
    FunctionPlan,
    ReturnValueError,
    TrainFnError,
    digest_arguments,
    function_name,
    pack_function,
    pack_value,
    unpack_function,
    unpack_value,
)
from mirrorspark.training.protocol.messages.events import EventAddress


def made(source: str) -> Callable[..., Any]:
    """Return the function ``f`` of a source that is in no file."""
    names: dict[str, Any] = {}
    exec(compile(source, "somewhere", "exec"), names)  # noqa: S102
    function: Callable[..., Any] = names["f"]
    return function


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = FunctionPlan(
        workers=2, checkpoints="s3://bucket/run", strategy="ring", attempt=3, events=EventAddress("h", 1, "secret")
    )
    assert FunctionPlan.from_json(plan.to_json()) == plan
    columns: list[str | Column] = ["size", Column("photo", "binary", decode="image")]
    reading = replace(plan, model_columns=columns)
    assert FunctionPlan.from_json(reading.to_json()) == reading
    assert "secret" not in repr(plan)
    assert plan.token not in repr(plan)


def test_a_function_of_a_notebook_travels_with_its_arguments() -> None:
    factor = 3
    train_fn, kwargs = unpack_function(pack_function(lambda x: x * factor, {"x": 2}))
    assert train_fn(**kwargs) == 6


def test_a_function_that_holds_what_cannot_travel_is_refused_before_spark_starts() -> None:
    with socket.socket() as connection:

        def f() -> Any:
            return connection

        with pytest.raises(TrainFnError, match=r"f cannot be sent.*pickle 'socket'.*kwargs"):
            pack_function(f, {})


def test_a_function_whose_module_is_missing_says_how_it_gets_there() -> None:
    with pytest.raises(TrainFnError, match=r"No module named 'of_the_drivers_own'.*addArtifacts"):
        unpack_function(b"cof_the_drivers_own\ntrain\n.")


def test_a_return_value_comes_back() -> None:
    back = unpack_value(pack_value({"loss": [1.5], "weights": np.arange(3)}))
    assert back["loss"] == [1.5]
    np.testing.assert_array_equal(back["weights"], [0, 1, 2])


def test_a_return_value_that_is_too_large_is_refused() -> None:
    with pytest.raises(ReturnValueError, match=r"\(bytes\) takes 8,388,6.. bytes, more than 8,388,608; write it to"):
        pack_value(bytes(function_plan.MAX_RETURN_BYTES))


def test_a_return_value_of_a_class_that_the_driver_lacks_is_refused() -> None:
    with pytest.raises(ReturnValueError, match=r"cannot be loaded on the driver .*No module named 'absent'"):
        unpack_value("Y2Fic2VudAp4Ci4=")  # cabsent\nx\n.


def test_runs_with_equal_arguments_share_a_digest() -> None:
    assert digest_arguments({"epochs": 2, "units": [8, 4]}) == digest_arguments({"epochs": 2, "units": [8, 4]})
    assert digest_arguments({"epochs": 2}) != digest_arguments({"epochs": 3})


def test_the_name_of_a_function() -> None:
    assert function_name(functools.partial(made("def f(): pass"))) == "f"
    assert function_name(lambda: 0) == "<lambda>"


def test_an_index_of_fewer_candidates_than_it_is_asked_for_has_shorter_lists_or_is_refused(tmp_path: Path) -> None:
    """#55: TensorFlow's own error would be that of each later call. ``Streaming`` gives shorter lists itself."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs
    import tf_keras

    from mirrorspark.training.programs.user_functions.returned_index import save_index

    queries = tf_keras.layers.Embedding(2, 1, weights=[np.float32([[1], [-1]])])
    candidates = tf.data.Dataset.from_tensors((tf.constant(["a", "b", "c"]), tf.constant([[1.0], [2.0], [3.0]])))
    streaming = tfrs.layers.factorized_top_k.Streaming(queries, k=10).index_from_dataset(candidates)
    assert streaming(tf.constant([0, 1]))[1].shape == (2, 3)
    save_index(streaming, ["user"], tmp_path / "index")
    search = tf.saved_model.load(str(tmp_path / "index")).signatures["serving_default"]
    found = search(user=tf.constant([0, 1]))["candidates"].numpy().tolist()
    assert found == [[b"c", b"b", b"a"], [b"a", b"b", b"c"]]
    whole = tfrs.layers.factorized_top_k.BruteForce(queries, k=10).index_from_dataset(candidates)
    whole(tf.constant([0]), k=1)
    with pytest.raises(ReturnValueError, match="its index finds k 10 of 3 candidates; use a k of 1 to 3"):
        save_index(whole, ["user"], tmp_path / "whole")
