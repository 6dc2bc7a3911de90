"""The signs of memory that has run out."""

from pathlib import Path

import pytest

from mirrorspark.storage import out_of_memory


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 14.9 GiB", True),
        ("pyarrow.lib.ArrowMemoryError: malloc of size 64 failed", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("OOM when allocating tensor with shape[9] and type float", True),
        ("[Errno 12] Cannot allocate memory", True),
        ("java.lang.OutOfMemoryError: Java heap space", True),
        ("Received message larger than max (5 vs. 4)", False),
        ("there is no room for 3 more rows", False),
    ],
)
def test_messages_of_libraries_and_the_kernel_are_known(text: str, *, is_told: bool) -> None:
    assert out_of_memory.is_reported_in(text) is is_told


def test_the_kernels_counter_is_read_and_0_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = tmp_path / "vmstat"
    of_group = tmp_path / "memory.events"
    monkeypatch.setattr(out_of_memory, "_COUNTERS", counters)
    monkeypatch.setattr(out_of_memory, "_COUNTERS_OF_GROUP", of_group)
    of_old_group = tmp_path / "memory.oom_control"
    monkeypatch.setattr(out_of_memory, "_COUNTERS_OF_OLD_GROUP", of_old_group)
    assert out_of_memory.kernel_kills() == 0
    of_group.write_text("low 0\noom 4\noom_kill 3\n")
    assert out_of_memory.kernel_kills() == 3
    counters.write_text("nr_free_pages 7\nnot_oom_kill 5\noom_kill 12\ndrop_slab 0\n")
    assert out_of_memory.kernel_kills() == 15
    of_old_group.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert out_of_memory.kernel_kills() == 16


def test_a_signal_is_named_and_one_without_a_name_numbered() -> None:
    assert out_of_memory.killed_by(-9) == "killed by signal SIGKILL"
    assert out_of_memory.killed_by(-99) == "killed by signal 99"
