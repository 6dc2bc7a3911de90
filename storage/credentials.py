"""Removal of passwords, tokens and store keys from text that people read, such as addresses and error messages."""

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from mirrorspark.clear_error import visible

# A password may contain "@" and "/" unescaped, so everything between the first ":" and the last "@" is removed. This
# may drop part of an address (`http://host:5000/a@b`); the opposite mistake would show part of a password. An address
# that passed through pathlib has one slash (`postgresql:/u:p@host`). `models:/name@alias` has one too, but no password.
# Like all patterns here it takes time in proportion to the text: it reads no part of an address twice.
_AUTHORITY = re.compile(r"(?<=:/)(?P<slash>/|(?<!\bmodels:/))(?P<user>[^\s/?#:]*)(?P<password>:(?:(?!://)\S)*)?")
_ORACLE = re.compile(r"(?P<name>jdbc:oracle:\w+:)[^\s/@]{0,256}/\S{0,256}(?=@)")

# Names of settings with a secret, in the environment, in connection strings and in the options of stores. A bare
# "key" or "token" is not among them: it names columns and words of a text more often.
_NAMES = (
    r"passw(?:or)?d\d{0,3}|passphrase|[._-]pwd|[._-]pass|secret|secret[._-]?(?:access[._-]?)?key"
    r"|(?:admin|db|ftp|key|ldap|mail|my|pg|proxy|redis|root|smtp|sql|ssh|store|user)pass"
    r"|(?:access|account|api|private|shared|storage|signing|encryption|fernet|hmac|master)[._-]?key"
    r"|(?:auth|functions|instrumentation|integration|licen[cs]e|routing|service|subscription|webhook|write)[._-]?key"
    r"|shared[._-]?access[._-]?(?:key|signature)|shared[._-]?secret[._-]?value|secret[._-]?key[._-]?base"
    r"|conn(?:ection)?[._-]?str(?:ing)?s?|sas[._-]?(?:token|url|uri|key)|web[._-]?hook(?:[._-]?ur[li])?|redis[._-]?auth"
    # Azure's end with the name of an account.
    r"|(?:account[._-]key[._-]|client\.secret\.|fs\.azure\.sas\.)[\w.-]{1,256}"
)
# Environment variables are in capitals; so are the special tokens of a text.
_ENDS_OF_VARIABLES = r"_(?:AUTH|CREDENTIAL|DSN|PAT|PSK|PW|SAS|TOKEN)"
_VARIABLES = rf"(?-i:\b(?!(?:BOS|CLS|EOS|MASK|OOV|PAD|SEP|UNK)_)[A-Z][A-Z0-9_]{{0,64}}{_ENDS_OF_VARIABLES})"
# Parameters of an address. Elsewhere, a `key` or a `code` is a word like any other.
_PARAMETERS = (
    r"(?:[?&]|&amp;|%3F|%26)"
    r"(?:access_?token|api-?key|auth(?:key)?|code|hapikey|id_token|key|pass|sas|sig(?:nature)?|st|token|x-goog-credential)"
)
_TEXT_NAMES = (
    rf"(?:{_NAMES}|{_VARIABLES}"
    r"|(?:access|api|auth|bot|databricks|deploy|github|gitlab|hf|id|job|private|refresh|sas|security|session|tracking"
    r"|vault)[._-]?token"
    rf"|(?:\b|(?<=%3B))pwd|x-(?:amz|goog)-(?:signature|credential)|{_PARAMETERS})"
)
# Quotes have more backslashes before them the deeper a text is in JSON. Those of bytes have a letter before them.
_QUOTE = r"\\{0,15}['\"]"
_VALUE_BEGINS = rf"(?:[bru]{{1,2}}(?={_QUOTE}))?"
_OPEN = rf"(?P<open>'{{3}}|\"{{3}}|{_QUOTE})?"
# Up to the same quote, with as many backslashes.
_QUOTED = r"(?:(?!(?<!\\)(?P=open)).)+"
_SEPARATOR = r"(?:[-=]>|:=|={1,3}|:|%3[AD]|</name>\s*<value>)"
# The value is removed in `secret_access_key=...`, `"password": "..."`, `X-Amz-Signature=...`, `Pwd={...};`, in what is
# encoded as an address, in the XML of Hadoop, and in Scala's `password -> ...`.
_NAMED = re.compile(
    rf"(?P<name>{_TEXT_NAMES}(?:{_QUOTE})?\s*{_SEPARATOR}\s*{_VALUE_BEGINS}){_OPEN}"
    rf"(?P<value>(?(open){_QUOTED}|(?:\{{[^}}]{{1,1024}}+\}}|[^\s'\",;&}}\]]+)))",
    re.IGNORECASE,
)
# `--password ...`, `'--password', '...'` and `('fs.s3a.secret.key', '...')`.
_NEXT = re.compile(
    rf"(?P<name>(?:(?<![\w.-])--|\({_QUOTE})[\w.-]{{0,64}}?(?:{_TEXT_NAMES}|(?<=[._-])token)"
    rf"(?:{_QUOTE},\s*|\s+){_VALUE_BEGINS}){_OPEN}(?P<value>(?(open){_QUOTED}|[^\s'\",;]{{8,}}))",
    re.IGNORECASE,
)
# A tuple of Scala, which ends with a parenthesis; so may a password.
_TUPLE = re.compile(
    rf"(?P<name>\([\w.-]{{0,64}}?(?:{_TEXT_NAMES}|(?<=[._-])token),)(?:(?!\)(?:[\s,)\]]|\Z))[^\s'\"]){{8,}}",
    re.IGNORECASE,
)
_ELEMENT = re.compile(
    rf"(?P<name><[\w.:-]{{0,64}}?{_TEXT_NAMES}>\s*(?:<!\[CDATA\[)?)[^<]+(?=</)",
    re.IGNORECASE,
)
# A line of spark-defaults.conf, whose separator may be a space.
_PROPERTY = re.compile(r"(?P<name>(?<![\w.-])\w[\w-]*(?:\.[\w-]+)+)(?P<space>[ \t]+)\S{8,}")

_PARAMETER = r"[\w-]+=(?:\"[^\"]*\"|[^\s,'\"]*)"
_HEADER = re.compile(
    rf"(?P<name>authorization(?:{_QUOTE})?\s*[=:]\s*{_VALUE_BEGINS}(?:{_QUOTE})?(?:[\w-]+[ \t]+)?)"
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
    r"|\b(?:GOCSPX-|ya29\.)[\w-]{20,}"  # Google's OAuth
    r"|\bxox[a-z]-[\w-]{10,}|\bxapp-\d-[\w-]{10,}"  # Slack
    r"|\bhf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\b(?:[rs]k_(?:live|test)|whsec)_\w{16,}"  # Stripe
    r"|\bSG\.[\w-]{16,64}\.[\w-]{16,}"  # SendGrid
    r"|\bhv[bs]\.[\w-]{20,}"  # Vault
    r"|\bgl(?:sa|c)_\w{20,}"  # Grafana
    r"|\b(?:npm_\w{30,}|pypi-[\w-]{40,}|do[opr]_v1_[0-9a-f]{40,})"  # npm, PyPI, DigitalOcean
    r"|\bsk-(?:\w+-){0,4}\w{20,}[\w-]*"  # OpenAI and others
    r"|\beyJ[\w-]{10,2048}+\.[\w-]{10,}\.[\w-]*"  # JSON web tokens
)

# Parameters of a server of Spark Connect: a token, and headers of any name.
_CONNECT = re.compile(r"(?P<name>\bsc://[^\s;'\"]*;)[^\s'\"]+")

# Addresses that are secrets: whoever knows one may write. The part that a service gives out ends with the address.
_WEBHOOK = re.compile(
    r"(?P<name>\b(?:"
    r"hooks\.slack(?:-gov)?\.com/\w+/"  # services, workflows, triggers
    r"|webhook\.office\.com/(?:webhook\w*/)?|outlook\.office(?:365)?\.com/webhook\w*/"  # Teams
    r"|(?:logic\.azure|powerplatform)\.com(?::\d{1,5})?/"  # Teams by Power Automate
    r"|discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/"
    r"|chat\.googleapis\.com/v1/spaces/"
    r"|pagerduty\.com/(?:integration|x-ere)/|victorops\.com/integrations/"
    r"|api\.telegram\.org/bot"
    r"|hooks\.zapier\.com/hooks/catch/|maker\.ifttt\.com/|hook\.(?:\w{1,8}\.)?make\.com/"
    r"|(?:feishu\.cn|larksuite\.com)/open-apis/bot/|webexapis\.com/v1/webhooks/incoming/"
    r"|hc-ping\.com/|webhook\.site/"
    # Servers of one's own: Mattermost, Rocket.Chat, Grafana OnCall.
    r"|(?<=/)(?:hooks|webhooks?|incoming-webhook)/(?=[\w/-]{0,128}?[\w-]{16,128}(?![\w-]))(?=[\w/-]{0,128}?\d)"
    r"))[^\s'\"<>|\\]+"
)

_SECRET_NAME = re.compile(
    rf"(?:(?:^|[._-])token|{_NAMES}|(?-i:{_ENDS_OF_VARIABLES})|[._-](?:auth|dsn|sas))$", re.IGNORECASE
)
# A shorter value is more often a common word (`MY_TOKEN=yes`) than a secret.
_SECRET_CHARACTERS = 8

_PASSWORD_OF_ADDRESS = re.compile(r"://[^\s/?#:@]*:(?P<password>(?:(?!://)\S)+)@")

HIDDEN = "***"


def without_credentials(text: str) -> str:
    """Return ``text`` without the secrets in it.

    User name and password are removed from every URI. ``***`` replaces the value after a name such as ``password=`` or
    ``Authorization:``, what is secret in the address of a webhook, private keys, tokens that their first letters give
    away, and the value of every environment
    variable named like a secret (``MLFLOW_TRACKING_TOKEN``, ``AWS_SECRET_ACCESS_KEY``), or within one that is an
    address or a connection string.
    """
    for value in _secrets_of(tuple(os.environ.items())):
        text = text.replace(value, HIDDEN)
    text = _AUTHORITY.sub(_without_user, text)
    text = _PRIVATE_KEY.sub(rf"\g<name>{HIDDEN}\g<end>", text)
    text = _ISSUED.sub(HIDDEN, text)
    for before in (_CONNECT, _WEBHOOK, _ORACLE, _HEADER, _BEARER, _COOKIE, _TUPLE, _ELEMENT):
        text = before.sub(rf"\g<name>{HIDDEN}", text)
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
            key
            for key, item in value.items()
            if names and isinstance(item, str | bytes) and item and is_secret_name(str(key))
        }
        return {key: HIDDEN if key in hidden else clean(item, names=names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item, names=names) for item in value]
    return value


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line and without secrets, or its type if the message is empty."""
    return without_credentials(visible(" ".join(str(error).split()))) or type(error).__name__


def _without_user(found: "re.Match[str]") -> str:
    user, password = found["user"], found["password"] or ""
    if "@" in password:
        user, password = "", password.rpartition("@")[2]
    return found["slash"] + user.rpartition("@")[2] + password


def _without_value(found: "re.Match[str]") -> str:
    return f"{found['name']}{found['space']}{HIDDEN}" if is_secret_name(found["name"]) else found[0]


@functools.lru_cache(maxsize=1)  # keyed by the environment, since a notebook may set variables at any time
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the secrets in environment variables: the values of secret names, and those in connection strings."""
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
