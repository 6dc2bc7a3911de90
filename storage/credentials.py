"""Removal of passwords, tokens and store keys from text that people read, such as addresses and error messages."""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

# A password may contain "@" and "/" unescaped, so everything between the first ":" and the last "@" is removed. This
# may drop part of an address (`http://host:5000/a@b`); the opposite mistake would show part of a password. An address
# that passed through pathlib has one slash (`postgresql:/u:p@host`). `models:/name@alias` has one too, but no password.
_USER_AND_PASSWORD = re.compile(r"(?<=:/)(?P<slash>/|(?<!\bmodels:/))[^\s/?#:]*(?::(?:(?!://)\S)*)?@")

# What settings with a secret are called, in the environment, in connection strings and in the options of stores. A bare
# "key" or "token" is not among them: it names columns and words of a text more often.
_NAMES = (
    r"passw(?:or)?d|passphrase|[._-]pwd|secret|secret[._-]?(?:access[._-]?)?key"
    r"|(?:access|account|api|private|shared|storage)[._-]?key|shared[._-]?access[._-]?(?:key|signature)"
    r"|connection[._-]?string|account[._-]key[._-][\w.-]+|fs\.azure\.sas\.[\w.-]+"
)
# The value is removed in `secret_access_key=...`, `"password": "..."`, `X-Amz-Signature=...`, `Pwd={...};`.
_NAMED = re.compile(
    rf"(?P<name>(?:{_NAMES}|(?:session|security|access|tracking|auth|refresh|sas)[._-]?token"
    r"|\bpwd|x-amz-(?:signature|credential)|[?&]sig|[?&]token)\\?['\"]?\s*[=:]\s*)"
    r"(?P<open>\\?['\"])?(?P<value>(?(open)(?:(?!(?P=open)).)+|(?:\{[^}]+\}|[^\s'\",;&}\]]+)))",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"(?P<name>authorization['\"]?\s*[=:]\s*['\"]?(?:\w+\s+)?|\bbearer\s+)(?P<value>[^\s'\",;]{8,})", re.IGNORECASE
)

_SECRET_NAME = re.compile(rf"(?:(?:^|[._-])token|{_NAMES})$", re.IGNORECASE)
# A shorter value is more often a common word (`MY_TOKEN=yes`) than a secret.
_SECRET_CHARACTERS = 8

_PASSWORD_OF_ADDRESS = re.compile(r"://[^\s/?#:@]*:(?P<password>(?:(?!://)\S)+)@")

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Return ``text`` without the secrets in it.

    User name and password are removed from every URI. ``***`` replaces the value after a name such as ``password=`` or
    ``Authorization:``, and the value of every environment variable named like a secret (``MLFLOW_TRACKING_TOKEN``,
    ``AWS_SECRET_ACCESS_KEY``), or within one that is an address or a connection string.
    """
    for value in _secrets_of(tuple(os.environ.items())):
        text = text.replace(value, HIDDEN)
    text = _USER_AND_PASSWORD.sub(r"\g<slash>", text)
    text = _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", text)
    return _NAMED.sub(lambda found: f"{found['name']}{found['open'] or ''}{HIDDEN}", text)


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


@functools.lru_cache(maxsize=1)  # keyed by the environment, since a notebook may set variables at any time
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the secrets in environment variables: the values of secret names, and what connection strings contain."""
    found = {value for name, value in environment if is_secret_name(name)}
    for _, value in environment:
        found |= {match["value"] for match in _NAMED.finditer(value)}
        found |= {match["password"] for match in _PASSWORD_OF_ADDRESS.finditer(value)}
    # Longest first: one secret may be part of another.
    return sorted((value for value in found if len(value) >= _SECRET_CHARACTERS), key=len, reverse=True)
