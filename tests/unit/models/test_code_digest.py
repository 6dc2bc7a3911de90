"""T3: the digest of a user's code changes with all that it uses, and is the same in every process."""

import functools
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorspark.models import keras3
from mirrorspark.models.code_digests import code_digest


def in_notebook(source: str, module: str | None = "__main__") -> dict[str, Any]:
    """Run source as a cell does: Python finds no text of a class there."""
    namespace: dict[str, Any] = {"__name__": module} if module else {}
    exec(compile(source, "<cell>", "exec"), namespace)  # noqa: S102 - a cell is run so
    return namespace


def build(units: int) -> int:
    return units


def other(units: int) -> int:
    return units + 1


class Builder:
    def __init__(self, units: int) -> None:
        self.units = units

    def make(self) -> int:
        return self.units


def of_default(units: Any) -> Callable[..., Any]:
    def build(features: Any, units: Any = units) -> Any:
        return units

    return build


CLASS = """
class Net:
    UNITS = {units}

    @property
    def width(self):
        return {width}

    def __call__(self, x):
        return x * {factor}
"""


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (functools.partial(build, units=64), functools.partial(build, units=65)),
        (functools.partial(build, units=64), functools.partial(other, units=64)),
        (Builder(1).make, Builder(2).make),
        (Builder(1), Builder(2)),
        (of_default([128, 64, 128]), of_default([128, 64, 64])),
        (of_default(np.array([1.0, 2.0])), of_default(np.array([1.0, 3.0]))),
        (of_default({"a", "b"}), of_default({"a", "c"})),
        (of_default({"a": 1}), of_default({"a": 2})),
        (of_default(1), of_default(1.0)),
        *(
            (in_notebook(CLASS.format(**first))["Net"], in_notebook(CLASS.format(**second))["Net"])
            for first, second in (
                ({"units": 64, "width": 1, "factor": 2}, {"units": 128, "width": 1, "factor": 2}),
                ({"units": 64, "width": 1, "factor": 2}, {"units": 64, "width": 2, "factor": 2}),
                ({"units": 64, "width": 1, "factor": 2}, {"units": 64, "width": 1, "factor": 3}),
            )
        ),
    ],
)
def test_what_differs_in_a_value_or_in_code_has_another_digest(one: Any, another: Any) -> None:
    assert code_digest(one) != code_digest(another)
    assert code_digest(one) == code_digest(one)


def test_what_a_function_uses_of_a_module_of_the_users_counts_and_the_rest_of_it_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def digest(tower: str, unused: str) -> str:
        towers = types.ModuleType("mytowers")
        towers.__file__ = str(tmp_path / "mytowers.py")
        exec(f"def tower(x):\n    return {tower}\ndef unused(x):\n    return {unused}", vars(towers))  # noqa: S102
        monkeypatch.setitem(sys.modules, "mytowers", towers)
        notebook = in_notebook("def build(features):\n    return mytowers.tower(features)")
        notebook["mytowers"] = towers
        return code_digest(notebook["build"])

    assert digest("x + 1", "x") == digest("x + 1", "-x")
    assert digest("x + 1", "x") != digest("x + 2", "x")


def test_a_global_that_only_shares_its_name_with_an_attribute_does_not_count() -> None:
    source = "result = {value}\ndef build(features):\n    return features.result"
    assert len({code_digest(in_notebook(source.format(value=value))["build"]) for value in (1, 2)}) == 1


IN_KERAS_3 = (
    "import keras\ndef build(features):\n    return keras.Model",
    "from keras import layers\ndef build(features):\n    return [layers.Dense(1) for _ in features]",
    "def build(features):\n    from keras.layers import Dense\n    return Dense",
    "import keras\nclass build(keras.Model):\n    pass",
    "import keras\ndef of():\n    class Net(keras.Model):\n        pass\n    return lambda features: Net\nbuild = of()",
    "import functools, keras\ndef of(kind, features):\n    return kind\nbuild = functools.partial(of, keras.Model)",
)
IN_ANOTHER = (
    "def build(features):\n    import tf_keras\n    return tf_keras.Model",
    "def build(features):\n    import keras\n    import tensorflow as tf\n    return tf.keras.Model",
    "def build(features):\n    import keras\n    from tensorflow.keras import layers\n    return layers",
    "def build(features):\n    import keras\n    from tensorflow import keras as old\n    return old",
    "def build(features):\n    import models_of_mine\n    return models_of_mine.build()",
    "build = len",
)


@pytest.mark.parametrize(
    ("source", "is_of_keras3"), [(one, True) for one in IN_KERAS_3] + [(one, False) for one in IN_ANOTHER]
)
def test_code_shows_that_it_uses_keras_3_and_no_tf_keras(source: str, is_of_keras3: bool) -> None:
    assert keras3.is_code_of_keras3(in_notebook(source)["build"]) is is_of_keras3


def test_a_function_without_a_module_counts_as_one_of_the_notebook() -> None:
    source = "def inner():\n    import keras\n    return {value}\ndef build(features):\n    return inner()"
    one, another = (in_notebook(source.format(value=value), module=None)["build"] for value in (1, 2))
    assert one.__module__ is None
    assert code_digest(one) != code_digest(another)
    assert keras3.is_code_of_keras3(one)


def test_what_refers_to_itself_has_a_digest() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert code_digest(cycle) == code_digest(cycle)
    recursive = in_notebook("def build(n):\n    return build(n - 1) if n else 0")["build"]
    assert len(code_digest(recursive)) == 16


PROGRAM = """
import threading
from mirrorspark.models.code_digests import code_digest
NAMES = {"age", "hours", "town", "x"}
LOCK = threading.Lock()
class Base:
    TABLE = frozenset(NAMES)
def build(features):
    inner = lambda: [name for name in NAMES if name in Base.TABLE and LOCK]
    return inner
print(code_digest(build))
"""


@pytest.mark.process
def test_the_digest_is_the_same_in_another_process() -> None:
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        found.add(done.stdout)
    assert len(found) == 1
