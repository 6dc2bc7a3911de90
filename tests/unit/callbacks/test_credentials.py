"""No form of user name and password in an address reaches what people read."""

import pytest

from callbacks.credentials import without_credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ann:s3cret@host:5000/base", "http://host:5000/base"),
        ("http://token@host", "http://host"),
        ("http://u:p@ss@host", "http://host"),
        ("http://u:a/b@host", "http://host"),
        ("http://u:a?b#c@host", "http://host"),
        ("http://u:a@b/c@host", "http://host"),
        ("http://me@corp.example:p@ss@host", "http://host"),
        ("postgresql+psycopg2://u:p@host/db refused", "postgresql+psycopg2://host/db refused"),
        ("http://u:p@one,http://u:p@two", "http://one,http://two"),
        ("'http://u:p@one' or\nhttp://u:p@two", "'http://one' or\nhttp://two"),
    ],
)
def test_user_and_password_are_cut_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


@pytest.mark.parametrize(
    "text",
    ["http://host:5000/path", "http://host/users/me@corp.example", "models:/flights@champion", "me@corp.example", ""],
)
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text
