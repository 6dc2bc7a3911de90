"""Keeps passwords, tokens and store keys out of what people read: addresses carry them, and so do errors."""

import os
import re
from collections.abc import Mapping
from typing import Any

# A password may hold "@" and "/" as they are, so everything between the first ":" and the last "@" goes. Where that is
# not the password (`http://host:5000/a@b`), a part of an address is lost; the other way round, a part of a password
# would be shown. An address that was taken for a path has one slash left (`postgresql:/u:p@host`); so has
# `models:/name@alias`, which is none.
_USER_AND_PASSWORD = re.compile(r"(?<=:/)(?P<slash>/|(?<!\bmodels:/))[^\s/?#:]*(?::(?:(?!://)\S)*)?@")

# `secret_access_key=...`, `"password": "..."`, `X-Amz-Signature=...`, `fs.s3a.secret.key=...`: the value goes.
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
# A shorter value is more often a word that stands in any text (`MY_TOKEN=yes`) than a secret.
_SECRET_CHARACTERS = 8

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Return ``text`` without the secrets in it.

    User name and password are cut out of every URI; what follows a name such as ``password=`` or ``Authorization:``,
    and the value of every environment variable named like a secret (``MLFLOW_TRACKING_TOKEN``,
    ``AWS_SECRET_ACCESS_KEY``), is replaced by ``***``.
    """
    for value in _secrets_of(os.environ):
        text = text.replace(value, HIDDEN)
    text = _USER_AND_PASSWORD.sub(r"\g<slash>", text)
    text = _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<name>{HIDDEN}", text)


def is_secret_name(name: str) -> bool:
    """Whether a setting of that name holds a secret: ``tracking_token``, ``store.password``, ``s3.secret_key``."""
    return _SECRET_NAME.search(name) is not None


def clean(value: Any) -> Any:
    """Return a value of mappings, lists and texts without the secrets in it."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        # Numbers are no secrets: a metric may be called loss_per_token.
        return {
            key: HIDDEN if isinstance(item, str) and item and is_secret_name(str(key)) else clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line and without secrets; its type where it says nothing."""
    return without_credentials(" ".join(str(error).split())) or type(error).__name__


def _secrets_of(environment: Mapping[str, str]) -> list[str]:
    # The longest first: one secret may be a part of another. Read at each call: a notebook sets them at any time.
    found = {value for name, value in environment.items() if is_secret_name(name) and len(value) >= _SECRET_CHARACTERS}
    return sorted(found, key=len, reverse=True)
