"""Removal of passwords, tokens and store keys from text that people read, such as addresses and error messages."""

import os
import re
from collections.abc import Mapping
from typing import Any

# A password may contain "@" and "/" unescaped, so everything between the first ":" and the last "@" is removed. This
# may drop part of an address (`http://host:5000/a@b`); the opposite mistake would show part of a password. An address
# that passed through pathlib has one slash (`postgresql:/u:p@host`). `models:/name@alias` has one too, but no password.
_USER_AND_PASSWORD = re.compile(r"(?<=:/)(?P<slash>/|(?<!\bmodels:/))[^\s/?#:]*(?::(?:(?!://)\S)*)?@")

# The value is removed in `secret_access_key=...`, `"password": "..."`, `X-Amz-Signature=...`, `fs.s3a.secret.key=...`.
_NAMED = re.compile(
    r"(?P<name>(?:secret[._-]?(?:access[._-]?)?key|(?:session|security|access|tracking|auth)[._-]?token|api[._-]?key"
    r"|passw(?:or)?d|x-amz-(?:signature|credential)|[?&]sig|[?&]token)['\"]?\s*[=:]\s*['\"]?)"
    r"(?P<value>[^\s'\",;&}\]]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"(?P<name>authorization['\"]?\s*[=:]\s*['\"]?(?:\w+\s+)?|\bbearer\s+)(?P<value>[^\s'\",;]{8,})", re.IGNORECASE
)

_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:token|passw(?:or)?d|secret|secret[._-]key|access[._-]key|api[._-]key)$", re.IGNORECASE
)
# A shorter value is more often a common word (`MY_TOKEN=yes`) than a secret.
_SECRET_CHARACTERS = 8

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Return ``text`` without the secrets in it.

    User name and password are removed from every URI. ``***`` replaces the value after a name such as ``password=`` or
    ``Authorization:``, and the value of every environment variable named like a secret (``MLFLOW_TRACKING_TOKEN``,
    ``AWS_SECRET_ACCESS_KEY``).
    """
    for value in _secrets_of(os.environ):
        text = text.replace(value, HIDDEN)
    text = _USER_AND_PASSWORD.sub(r"\g<slash>", text)
    text = _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<name>{HIDDEN}", text)


def is_secret_name(name: str) -> bool:
    """Return whether a setting of that name is a secret: ``tracking_token``, ``store.password``, ``s3.secret_key``."""
    return _SECRET_NAME.search(name) is not None


def clean(value: Any) -> Any:
    """Return a nested value of mappings, lists and strings without the secrets in it."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        # Numbers are never secrets: a metric may be called loss_per_token.
        return {
            key: HIDDEN if isinstance(item, str) and item and is_secret_name(str(key)) else clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line and without secrets, or its type if the message is empty."""
    return without_credentials(" ".join(str(error).split())) or type(error).__name__


def _secrets_of(environment: Mapping[str, str]) -> list[str]:
    # Longest first: one secret may be part of another. Read at each call: a notebook may set variables at any time.
    found = {value for name, value in environment.items() if is_secret_name(name) and len(value) >= _SECRET_CHARACTERS}
    return sorted(found, key=len, reverse=True)
