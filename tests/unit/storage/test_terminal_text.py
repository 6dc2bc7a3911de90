"""Text at a terminal breaks between words (H9)."""

import io

import pytest

from mirrorspark.storage.terminal_text import for_stream, wrapped


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_breaks_between_words_and_keeps_its_indentation() -> None:
    assert wrapped("  a finding that is long\nshort", 16) == "  a finding that\n    is long\nshort"


def test_a_path_stays_whole_to_be_copied() -> None:
    assert wrapped("see /a/path/that/is-long/er now", 12) == "see\n  /a/path/that/is-long/er\n  now"


def test_columns_of_a_line_that_fits_are_left_alone() -> None:
    assert wrapped("preflight     3.3 s  slots: 2\n  epoch  1/40", 30) == "preflight     3.3 s  slots: 2\n  epoch  1/40"


def test_characters_that_steer_a_terminal_are_written_out() -> None:
    assert for_stream("a\x1b[31m\0\n\tb", io.StringIO()) == "a\\x1b[31m\\x00\n\tb"


def test_a_terminal_gets_broken_lines_and_a_file_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    assert for_stream("one two three four", Terminal()) == "one two\n  three four"
    assert for_stream("one two three four", io.StringIO()) == "one two three four"
