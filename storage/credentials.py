"""Removal of passwords, tokens and store keys from text that people read, such as addresses and error messages."""

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

# A password may contain "@" and "/" unescaped, so everything between the first ":" and the last "@" is removed. This
# may drop part of an address (`http://host:5000/a@b`); the opposite mistake would show part of a password. An address
# that passed through pathlib has one slash (`postgresql:/u:p@host`). `models:/name@alias` has one too, but no password.
_USER_AND_PASSWORD = re.compile(r"(?<=:/)(?P<slash>/|(?<!\bmodels:/))[^\s/?#:]*(?::(?:(?!://)\S)*)?@")
_ORACLE = re.compile(r"(?P<name>jdbc:oracle:\w+:)[^\s/@]*/\S{0,256}(?=@)")

# What settings with a secret are called, in the environment, in connection strings and in the options of stores. A bare
# "key" or "token" is not among them: it names columns and words of a text more often.
_NAMES = (
    r"passw(?:or)?d|passphrase|[._-]pwd|[._-]pass|secret|secret[._-]?(?:access[._-]?)?key"
    r"|(?:access|account|api|private|shared|storage|signing|encryption)[._-]?key"
    r"|shared[._-]?access[._-]?(?:key|signature)"
    r"|connection[._-]?string|account[._-]key[._-][\w.-]+|fs\.azure\.sas\.[\w.-]+"
)
_TEXT_NAMES = (
    rf"(?:{_NAMES}|(?:session|security|access|tracking|auth|refresh|sas)[._-]?token"
    r"|(?:\b|(?<=%3B))pwd|x-amz-(?:signature|credential)|[?&]sig|[?&]token)"
)
_QUOTED = r"(?:(?!(?P=open))(?:\\\\\\.|\\.|.))+"
# The value is removed in `secret_access_key=...`, `"password": "..."`, `X-Amz-Signature=...`, `Pwd={...};`, in what is
# encoded as an address, and in the XML of Hadoop.
_NAMED = re.compile(
    rf"(?P<name>{_TEXT_NAMES}\\?['\"]?\s*(?:[=:]|%3[AD]|</name>\s*<value>)\s*)"
    rf"(?P<open>\\?['\"])?(?P<value>(?(open){_QUOTED}|(?:\{{[^}}]+\}}|[^\s'\",;&}}\]]+)))",
    re.IGNORECASE,
)
# `--password ...`, `'--password', '...'` and `('fs.s3a.secret.key', '...')`.
_NEXT = re.compile(
    rf"(?P<name>(?:(?<![\w.-])--|\(\\?['\"])[\w.-]{{0,64}}?(?:{_TEXT_NAMES}|(?<=[._-])token)(?:\\?['\"],)?\s+)"
    rf"(?P<open>\\?['\"])?(?P<value>(?(open){_QUOTED}|[^\s'\",;]{{8,}}))",
    re.IGNORECASE,
)
# A line of spark-defaults.conf, whose separator may be a space.
_PROPERTY = re.compile(r"(?P<name>(?<![\w.-])\w[\w-]*(?:\.[\w-]+)+)(?P<space>[ \t]+)\S{8,}")

_PARAMETER = r"[\w-]+=(?:\"[^\"]*\"|[^\s,'\"]*)"
_HEADER = re.compile(
    r"(?P<name>authorization\\?['\"]?\s*[=:]\s*\\?['\"]?(?:[\w-]+[ \t]+)?)"
    rf"(?:{_PARAMETER}(?:,[ \t]*{_PARAMETER})*|[^\s'\",;]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<name>\bbearer\s+)[^\s'\",;]{8,}", re.IGNORECASE)
_COOKIE = re.compile(r"(?P<name>\bcookie\\?['\"]?\s*:\s*\\?['\"]?)[^\r\n'\"\\]+", re.IGNORECASE)

_PRIVATE_KEY = re.compile(
    r"(?P<name>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?P<end>-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# Secrets that their first letters give away, by who issues them.
_ISSUED = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bAIza[\w-]{35}"  # Google
    r"|\bdapi[0-9a-f]{32}"  # Databricks
    r"|\b(?:gh[opsur]_|github_pat_)\w{20,}"  # GitHub
    r"|\bglpat-[\w-]{20,}"  # GitLab
    r"|\bxox[a-z]-[\w-]{10,}|(?<=hooks\.slack\.com/services/)[\w/]+"  # Slack
    r"|\bhf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\bsk-(?:\w+-){0,4}\w{20,}[\w-]*"  # OpenAI and others
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON web tokens
)

_SECRET_NAME = re.compile(rf"(?:(?:^|[._-])token|{_NAMES})$", re.IGNORECASE)
# A shorter value is more often a common word (`MY_TOKEN=yes`) than a secret.
_SECRET_CHARACTERS = 8

_PASSWORD_OF_ADDRESS = re.compile(r"://[^\s/?#:@]*:(?P<password>(?:(?!://)\S)+)@")

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Return ``text`` without the secrets in it.

    User name and password are removed from every URI. ``***`` replaces the value after a name such as ``password=`` or
    ``Authorization:``, private keys, tokens that their first letters give away, and the value of every environment
    variable named like a secret (``MLFLOW_TRACKING_TOKEN``, ``AWS_SECRET_ACCESS_KEY``), or within one that is an
    address or a connection string.
    """
    for value in _secrets_of(tuple(os.environ.items())):
        text = text.replace(value, HIDDEN)
    text = _USER_AND_PASSWORD.sub(r"\g<slash>", text)
    text = _PRIVATE_KEY.sub(rf"\g<name>{HIDDEN}\g<end>", text)
    text = _ISSUED.sub(HIDDEN, text)
    for headers in (_ORACLE, _HEADER, _BEARER, _COOKIE):
        text = headers.sub(rf"\g<name>{HIDDEN}", text)
    for named in (_NAMED, _NEXT):
        text = named.sub(lambda found: f"{found['name']}{found['open'] or ''}{HIDDEN}", text)
    return _PROPERTY.sub(_without_value, text)


def is_secret_name(name: str) -> bool:
    """Return whether a setting of that name is a secret: ``tracking_token``, ``store.password``, ``s3.secret_key``."""
    return _SECRET_NAME.search(name) is not None


def clean(value: Any, *, names: bool = True) -> Any:
    """Return a nested value of mappings, lists and strings without the secrets in it.

    Args:
        value: The value.
        names: Whether a key that is called like a secret hides its text; not where keys are names of columns, one of
            which may be called ``token``.
    """
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        # Numbers are never secrets: a metric may be called loss_per_token.
        hidden = {
            key for key, item in value.items() if names and isinstance(item, str) and item and is_secret_name(str(key))
        }
        return {key: HIDDEN if key in hidden else clean(item, names=names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item, names=names) for item in value]
    return value


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line and without secrets, or its type if the message is empty."""
    return without_credentials(" ".join(str(error).split())) or type(error).__name__


def _without_value(found: "re.Match[str]") -> str:
    return f"{found['name']}{found['space']}{HIDDEN}" if is_secret_name(found["name"]) else found[0]


@functools.lru_cache(maxsize=1)  # keyed by the environment, since a notebook may set variables at any time
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the secrets in environment variables: the values of secret names, and what connection strings contain."""
    found = {value for name, value in environment if is_secret_name(name)}
    for _, value in environment:
        found |= {match["value"] for match in _NAMED.finditer(value)}
        found |= {match["password"] for match in _PASSWORD_OF_ADDRESS.finditer(value)}
    spelled = {spelling for value in found for spelling in _spellings(value)}
    # Longest first: one secret may be part of another.
    return sorted((value for value in spelled if len(value) >= _SECRET_CHARACTERS), key=len, reverse=True)


def _spellings(secret: str) -> Iterator[str]:
    """Yield a secret as it is, in an address, in JSON, and, if it has several lines such as a key's, each of them."""
    yield from (secret, unquote(secret), quote(secret, safe="", errors="replace"), json.dumps(secret)[1:-1])
    lines = secret.replace("\\n", "\n").splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if not line.startswith("-----"))
