"""No password, token or store key reaches what people read."""

import json

import pytest

from mirrorspark.storage.credentials import clean, is_secret_name, without_credentials
from tests.unit.storage.secret_forms import FORMS, Form


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
        ("sc://host:15002/;token=abcdefgh;user_id=me failed", "sc://host:15002/;*** failed"),
        ("--remote 'sc://me:pw@host/;x-databricks-cluster-id=1'", "--remote 'sc://host/;***'"),
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
        "token 12 of 40",
        "max_tokens=100, MAX_TOKENS=100",
        "tokens=['a', 'b']",
        "vocabulary of tokens = 5",
        "{'token': 'rides', 'tokens': 3}",
        "PAD_TOKEN='[PAD]'",
        "secretary=Ann, BYPASS=1, compass=north",
        "(secretary,Ann) and (token,rides)",
        "<title>password</title>",
        "the password of the store is missing",
        "key=7, code=404, auth=basic, sig=0.05, token=rides",
        "needs_auth=True, glob_pat=*.csv, AUTHOR=Ann, PATH=/usr/bin, DSN=rides, MIN_PATS_OF=2",
        "read from https://hooks.example/docs/webhooks/introduction and /webhooks/",
        "https://discord.com/channels/112233445566778899 and https://www.office.com/launch",
        "GET /v1/models/flights?page=2&codes=4&keys=a&tokens=b",
        "https://example.com/integrations/webhooks/getting-started-with-webhooks",
        "a monkey=1&donkey=2",
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
        ("PGPASSWORD=s3cret psql", "PGPASSWORD=*** psql"),
        ("MYSQL_PWD='s3 cr3t' mysql", "MYSQL_PWD='***' mysql"),
        ("AZURE_STORAGE_KEY=a/b+c==", "AZURE_STORAGE_KEY=***"),
        ("AccountName=n;AccountKey=a/b+c==;EndpointSuffix=core", "AccountName=n;AccountKey=***;EndpointSuffix=core"),
        ("fs.azure.account.key.n.dfs.core.windows.net=a/b==", "fs.azure.account.key.n.dfs.core.windows.net=***"),
        ("fs.azure.sas.box.n.blob.core.windows.net=sv=1", "fs.azure.sas.box.n.blob.core.windows.net=***"),
        ("SharedAccessSignature=sv=2024&sig=ab", "SharedAccessSignature=***&sig=***"),
        ("Server=db;Uid=sa;Pwd=s3cret;Timeout=3", "Server=db;Uid=sa;Pwd=***;Timeout=3"),
        ("Uid=sa;Pwd={s3;cr3t};Timeout=3", "Uid=sa;Pwd=***;Timeout=3"),
        ("client_secret=abc&grant_type=x", "client_secret=***&grant_type=x"),
        ("passphrase: 'correct horse battery'", "passphrase: '***'"),
        ('password="two words" next', 'password="***" next'),
        (r"{\"password\": \"two words\", 3}", r"{\"password\": \"***\", 3}"),
        ("s3://b/f?access_key=AKIA&secret_key=wJalr&region=eu", "s3://b/f?access_key=***&secret_key=***&region=eu"),
        ("abfs://n/f?account_key=a/b==", "abfs://n/f?account_key=***"),
        ("spark.ssl.keyStorePassword=s3cret", "spark.ssl.keyStorePassword=***"),
        ("spark.authenticate.secret=abc", "spark.authenticate.secret=***"),
        ("private_key: abc", "private_key: ***"),
        ("refresh_token=abc", "refresh_token=***"),
        ("spark.executorEnv.DATABRICKS_TOKEN=abc spark.x=y", "spark.executorEnv.DATABRICKS_TOKEN=*** spark.x=y"),
        ("password=b's3cret' next", "password=b'***' next"),
        ("{b'Authorization': b'Basic YW5u', b'Host': b'h'}", "{b'Authorization': b'Basic ***', b'Host': b'h'}"),
        ("Map(password -> s3cret, user -> ann)", "Map(password -> ***, user -> ann)"),
        ("((fs.s3a.secret.key,wJalr/XUtn),(a.b,c))", "((fs.s3a.secret.key,***),(a.b,c))"),
        ("<password>s3cret</password><user>ann</user>", "<password>***</password><user>ann</user>"),
        (r"{\\\"password\\\": \\\"a\\\\\\\"b\\\", 3}", r"{\\\"password\\\": \\\"***\\\", 3}"),
        ("if password == 's3cret':", "if password == '***':"),
        ("GET /rows?key=abc&page=2", "GET /rows?key=***&page=2"),
        ("https://hooks.slack.com/services/T0/B0/abc failed", "https://hooks.slack.com/services/*** failed"),
        ("https://discord.com/api/webhooks/12/abc failed", "https://discord.com/api/webhooks/*** failed"),
        ("REDIS_AUTH=abc SENTRY_DSN=def x=y", "REDIS_AUTH=*** SENTRY_DSN=*** x=y"),
    ],
)
def test_values_with_the_name_of_a_secret_are_hidden(text: str, expected: str) -> None:
    """T7."""
    assert without_credentials(text) == expected


def test_values_of_secret_environment_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefgh")
    monkeypatch.setenv("STORE_SECRET_KEY", "abcdefgh-and-more")
    monkeypatch.setenv("SHORT_TOKEN", "yes")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    text = "abcdefgh-and-more, abcdefgh, yes, disabled"
    assert without_credentials(text) == "***, ***, yes, disabled"


def test_secrets_within_environment_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """T7: a driver's error may quote the password alone."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:hunter22@db/rides")
    monkeypatch.setenv("STORE", "AccountName=n;AccountKey=abcdefgh==;EndpointSuffix=core")
    monkeypatch.setenv("PWD", "/home/ann/rides")
    text = "FATAL: 'hunter22' is wrong; abcdefgh== in /home/ann/rides"
    assert without_credentials(text) == "FATAL: '***' is wrong; *** in /home/ann/rides"


def test_a_document_is_cleaned_in_all_its_parts() -> None:
    document = {"error": {"lines": ["http://u:p@host", 3]}, "token": b"abc", "empty": {"password": ""}, "none": None}
    assert clean(document) == {
        "error": {"lines": ["http://host", 3]},
        "token": "***",
        "empty": {"password": ""},
        "none": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        "tracking_token",
        "store.password",
        "AWS_SECRET_ACCESS_KEY",
        "api-key",
        "secret",
        "PGPASSWORD",
        "MYSQL_PWD",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "fs.azure.account.key.n.dfs.core.windows.net",
        "client_secret",
        "passphrase",
        "spark.ssl.keyPassword",
        "fs.azure.account.oauth2.client.secret.n.dfs.core.windows.net",
        "spark.executorEnv.DATABRICKS_TOKEN",
        "DBPASS",
        "REDIS_AUTH",
        "redis_auth",
        "MYSQL_PASSWD",
        "SENTRY_DSN",
        "sentry.dsn",
        "CONTAINER_SAS",
        "AZURE_DEVOPS_EXT_PAT",
        "DB_CONN_STR",
        "teams_webhook_url",
        "SLACK_WEBHOOK",
        "PAGERDUTY_ROUTING_KEY",
        "SECRET_KEY_BASE",
    ],
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "keys",
        "monitor",
        "key",
        "tokenizer",
        "passwords_seen",
        "secretary",
        "PWD",
        "OLDPWD",
        "PATH",
        "GLOB_PATTERN",
        "glob_pat",
        "auth",
        "AUTHOR",
        "sort_key",
        "SSH_AUTH_SOCK",
    ],
)
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_no_form_of_a_secret_is_left(form: Form) -> None:
    texts = [form.text, f"failed: {form.text}"]
    if '"' not in form.text:  # Texts are cleaned before they become JSON.
        texts.append(json.dumps({"message": form.text}))
    for text in texts:
        assert form.found_in(without_credentials(text)) == []


@pytest.mark.parametrize("part", ["a", '"'])
def test_a_megabyte_without_secrets_is_unchanged(part: str) -> None:
    """T7: a log or an answer of a server may be as long."""
    text = part * 1_000_000
    assert without_credentials(text) == text


@pytest.mark.parametrize(
    "part",
    [
        ":/a",
        "a:/@",
        "eyJ-",
        "pwd={;",
        "jdbc:oracle:a:",
        "account.key.",
        "(a.",
        "<a",
        "\\",
        "/hooks/",
        "/hooks/1",
        "/webhooks/aaaaaaaaaaaaaaaa-",
        "A_",
        "?key",
        "%26",
    ],
)
def test_the_time_grows_with_the_length_of_a_text_and_not_with_its_square(part: str) -> None:
    """T7: the square would be hours for some of these."""
    without_credentials(part * (200_000 // len(part)))
