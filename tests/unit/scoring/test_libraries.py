"""S5: libraries of models are imported when they are needed; the error of a missing one has advice."""

import gc
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mirrorspark.scoring.backends import libraries
from mirrorspark.scoring.backends.libraries import import_scann, library
from mirrorspark.scoring.backends.protocol import UnsupportedModelError

WATCHES = "import gc\nwas_enabled = gc.isenabled()\n"


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_rests_during_an_import_and_is_then_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_enabled: bool
) -> None:
    name = f"watches_the_collector_{is_enabled}".lower()
    (tmp_path / f"{name}.py").write_text(WATCHES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]  # and is removed again after this test
    try:
        if not is_enabled:
            gc.disable()
        assert library(name, "this needs it").was_enabled is False
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable()


def test_it_is_on_again_behind_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"this needs it, but .* has no module 'no_such_module'"):
        library("no_such_module", "this needs it")
    assert gc.isenabled()


OF_ANOTHER_TENSORFLOW = """
import tensorflow as tf
raise tf.errors.NotFoundError(None, None, "scann_ops.so: undefined symbol: _ZN10tensorflow8OpKernel")
"""


def test_a_scann_that_is_built_for_another_tensorflow_is_named_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scann", reason="scann is not installed: it has wheels for Linux on x86-64 alone")
    (tmp_path / "scann.py").write_text(OF_ANOTHER_TENSORFLOW, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scann")
    monkeypatch.setattr(libraries, "distribution_of", lambda _: "tensorflow-cpu")
    message = (
        f"scann {version('scann')} does not load with TensorFlow {version('tensorflow')}; install tensorflow-cpu~=2"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        import_scann()
