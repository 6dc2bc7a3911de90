"""No password, token or store key reaches what people read."""

import pytest

from mirrorspark.storage.credentials import clean, is_secret_name, without_credentials


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
        ("postgresql:/u:p@host/db", "postgresql:/host/db"),
        ("no folder /home/ann/postgresql:/u:p@ss/w@host/db", "no folder /home/ann/postgresql:/host/db"),
        ("https:/token@host/base", "https:/host/base"),
        ("models:/flights@champion of http:/u:p@host", "models:/flights@champion of http:/host"),
        ("'http://u:p@one' or\nhttp://u:p@two", "'http://one' or\nhttp://two"),
    ],
)
def test_user_and_password_are_cut_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/path",
        "http://host/users/me@corp.example",
        "models:/flights@champion",
        "file:/home/me@corp.example/a.txt",
        "file:///home/me@corp.example/a.txt",
        "me@corp.example",
        "a basic test: no token found",
        "",
    ],
)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aws_secret_access_key = wJalr/XUtn", "aws_secret_access_key = ***"),
        ('{"password": "s3cret", "user": "ann"}', '{"password": "***", "user": "ann"}'),
        ("fs.s3a.secret.key=wJalr fs.s3a.path=b", "fs.s3a.secret.key=*** fs.s3a.path=b"),
        ("GET /o?X-Amz-Signature=abc&part=1", "GET /o?X-Amz-Signature=***&part=1"),
        ("{'Authorization': 'Bearer abcdefgh.ijk'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic YW5uOnMzY3JldA==", "Authorization: Basic ***"),
        ("sent bearer abcdefgh.ijk", "sent bearer ***"),
    ],
)
def test_values_with_the_name_of_a_secret_are_hidden(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


def test_values_of_secret_environment_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefgh")
    monkeypatch.setenv("STORE_SECRET_KEY", "abcdefgh-and-more")
    monkeypatch.setenv("SHORT_TOKEN", "yes")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    text = "abcdefgh-and-more, abcdefgh, yes, disabled"
    assert without_credentials(text) == "***, ***, yes, disabled"


def test_a_document_is_cleaned_in_all_its_parts() -> None:
    document = {"error": {"lines": ["http://u:p@host", 3]}, "token": "abc", "empty": {"password": ""}, "none": None}
    assert clean(document) == {
        "error": {"lines": ["http://host", 3]},
        "token": "***",
        "empty": {"password": ""},
        "none": None,
    }


@pytest.mark.parametrize("name", ["tracking_token", "store.password", "AWS_SECRET_ACCESS_KEY", "api-key", "secret"])
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["keys", "monitor", "key", "tokenizer", "passwords_seen", "secretary"])
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)
