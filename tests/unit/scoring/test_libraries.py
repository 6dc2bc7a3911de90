"""S5: libraries of models are imported when they are needed; the error of a missing one has advice."""

import gc
import sys
from pathlib import Path

import pytest

from mirrorspark.scoring.backends.libraries import library

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
