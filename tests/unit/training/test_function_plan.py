"""T2: what travels to the ranks of somebody's own function and back, and what is said of what cannot."""

import functools
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from training.channel.events import EventAddress
from training.foreign import function_plan
from training.foreign.function_plan import (
    FunctionPlan,
    ReturnValueError,
    TrainFnError,
    fingerprint,
    name_of,
    pack_function,
    pack_value,
    unpack_function,
    unpack_value,
)


def made(source: str) -> Callable[..., Any]:
    """Return the function ``f`` of a source that stands nowhere."""
    names: dict[str, Any] = {}
    exec(compile(source, "somewhere", "exec"), names)  # noqa: S102
    function: Callable[..., Any] = names["f"]
    return function


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = FunctionPlan(2, "s3://bucket/run", strategy="ring", attempt=3, events=EventAddress("h", 1, "secret"))
    assert FunctionPlan.from_json(plan.to_json()) == plan
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
    with pytest.raises(TrainFnError, match=r"No module named 'of_the_drivers_own'.*addPyFile"):
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


def test_the_fingerprint_is_of_what_the_function_does_and_not_of_where_it_stands() -> None:
    source = "def f(a, b=1):\n    return a in {'x', 'y', 'z'} and b\n"
    one = fingerprint(made(source), {"a": 1})
    assert fingerprint(made("\n\n\n" + source), {"a": 1}) == one
    assert fingerprint(made(source), {"a": 2}) != one
    assert fingerprint(made(source.replace("b=1", "b=2")), {"a": 1}) != one
    assert fingerprint(made(source.replace("'z'", "'w'")), {"a": 1}) != one


def test_the_fingerprint_counts_what_a_function_holds() -> None:
    def of(value: int) -> Callable[[], int]:
        return lambda: value

    assert fingerprint(of(1), {}) == fingerprint(of(1), {})
    assert fingerprint(of(1), {}) != fingerprint(of(2), {})
    partial = functools.partial(made("def f(a): return a"), 1)
    assert fingerprint(partial, {}) != fingerprint(functools.partial(partial.func, 2), {})


NOTEBOOK = """
RATE, SIZES, NAMES = 0.1, {"hidden": [8, 4]}, {"x", "y", "z"}

def helper(x):
    return x * RATE

def f():
    def inner():
        return helper(1) in NAMES
    return inner() or SIZES or f()
"""


@pytest.mark.parametrize(("old", "new"), [("0.1", "0.2"), ("[8, 4]", "[8, 5]"), ('"z"', '"w"'), ("x * ", "x / ")])
def test_another_value_or_helper_in_a_cell_makes_another_function(old: str, new: str) -> None:
    assert fingerprint(made(NOTEBOOK), {}) == fingerprint(made("\n" + NOTEBOOK), {})
    assert fingerprint(made(NOTEBOOK.replace(old, new)), {}) != fingerprint(made(NOTEBOOK), {})


def test_what_a_function_does_not_name_and_modules_do_not_count() -> None:
    source = "import math\nunused = 1\nfit = 1\ndef f(model): return model.fit(math.pi, __file__)\n"
    changed = source.replace("unused = 1", "unused = 2").replace("fit = 1", "fit = 2; __file__ = 'moved'")
    assert fingerprint(made(source), {}) == fingerprint(made(changed), {})


def test_a_function_that_holds_itself_has_a_fingerprint() -> None:
    def of(step: int) -> Callable[[int], int]:
        def countdown(x: int) -> int:
            return countdown(x - step) if x > 0 else x

        return countdown

    assert fingerprint(of(1), {}) == fingerprint(of(1), {})
    assert fingerprint(of(1), {}) != fingerprint(of(2), {})


def test_the_name_of_a_function() -> None:
    assert name_of(functools.partial(made("def f(): pass"))) == "f"
    assert name_of(lambda: 0) == "<lambda>"
