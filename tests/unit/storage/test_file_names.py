"""Names that cannot be those of files and folders."""

from pathlib import Path

import pytest

from mirrorspark.storage import file_names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a" * 256, "has 256 bytes, and 255 are the most"),
        ("ж" * 128, "has 256 bytes"),
        ("late.", "ends with a blank or a dot"),
        ("late ", "ends with a blank or a dot"),
        (" late", "begins with a blank"),
        ("..", "ends with a blank or a dot"),
        ("a\0b", "control character"),
        ("a\nb", "line break"),
        ("a\u2028b", "line break"),
        ("a\x1b[31mb", "control character"),
        ("a\u202eb", "control character"),
        ("a\ud800", "half a character"),
        *((name, "a device on Windows") for name in ("con", "CON", "nul.txt", "Lpt1", "aux.tar.gz")),
    ],
)
def test_a_name_is_refused_with_the_reason(name: str, reason: str) -> None:
    assert reason in (file_names.why_unfit(name) or "")


@pytest.mark.parametrize("name", ["late", "späte Flüge", "a.b", ".hidden", "console", "com10", "a" * 255, "क\u200dष"])
def test_other_names_are_fit(name: str) -> None:
    assert file_names.why_unfit(name) is None


def test_a_path_is_refused_by_its_part_unless_it_is_there(tmp_path: Path) -> None:
    assert file_names.unfit_folder(f"{tmp_path}/new/../deep/./folder") is None
    assert "its part 'a\\nb' has a line break" in (file_names.unfit_folder(f"{tmp_path}/a\nb/c") or "")
    assert file_names.unfit_folder("") == "it is empty"
    assert file_names.unfit_folder("a\0b") == "its part 'a\\x00b' has a line break or another control character"
    (tmp_path / "con").mkdir()
    assert "is the name of a device" in (file_names.unfit_folder("con/new") or "")
    assert file_names.unfit_folder(str(tmp_path / "con" / "new")) is None


def test_a_long_name_is_shown_by_its_beginning() -> None:
    assert file_names.shown("a" * 300) == "a" * 40 + "…"
