"""Alerts: events that are sent to a webhook, by e-mail or to the log, without secrets."""

import base64
import json
import logging
import os
import smtplib
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import clean, one_line, without_credentials

# The server that takes e-mail: smtp://user:password@host:587 (encrypted if the server offers it) or smtps://host:465.
SMTP_VARIABLE = "MIRRORSPARK_SMTP"
# The sender's address.
SENDER_VARIABLE = "MIRRORSPARK_ALERTS_FROM"

# For all that a target takes: the look-up of its name, the connection, and an answer that comes byte by byte.
_SECONDS = 10.0
_SUBMISSION_PORT, _TLS_PORT = 587, 465

logger = logging.getLogger(__name__)


class AlertError(ClearError, RuntimeError):
    """An alert could not be sent, or a target makes no sense; the message has no secret of the target."""


@dataclass(frozen=True)
class Alert:
    """Something that people should know.

    Attributes:
        title: The event, in one line.
        text: The whole message.
        facts: The same for programs: values that JSON has.
    """

    title: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def cleaned(self) -> "Alert":
        """Return the alert without passwords, tokens and keys."""
        title = " ".join(without_credentials(self.title).split())
        return Alert(title, without_credentials(self.text), clean(dict(self.facts)))


def report(alert: Alert, targets: Sequence[str]) -> str | None:
    """Send an alert to every target, and log failures: an alert never ends the work that it reports.

    Args:
        alert: As in :func:`send`.
        targets: As in :func:`send`.

    Returns:
        Which targets did not get it, without what may be secret in them; None if all did.
    """
    try:
        send(alert, targets)
    except AlertError as error:
        logger.error("%s", error)  # noqa: TRY400 - its message is whole, and a traceback may quote a target
        return str(error)
    return None


def send(alert: Alert, targets: Sequence[str], *, seconds: float = _SECONDS) -> None:
    """Send an alert to every target, even if some of them cannot be reached.

    Args:
        alert: The alert; secrets are removed from it.
        targets: Each is ``log``, the address of a webhook (``https://…``, which gets JSON with ``title``, ``text`` and
            ``facts``; chat programs show ``text``), or ``mailto:`` with one or more addresses, separated by commas.
            E-mail goes through the server in the environment variable ``MIRRORSPARK_SMTP``. Redirects of a webhook
            are not followed.
        seconds: Longest time for one target.

    Raises:
        AlertError: Some targets did not get it; the message names them, without what may be secret in them.
    """
    alert, problems = alert.cleaned(), []
    for target in targets:
        try:
            _within(seconds, _sender(target, seconds), alert)
        except AlertError as error:
            problems.append(str(error))
        except Exception as error:  # Whatever libraries raise must not take the place of what is reported.
            problems.append(f"{shown(target)}: {_harmless(error, target)}")
    if problems:
        raise AlertError(f"{len(problems)} of {len(targets)} targets did not get the alert: {'; '.join(problems)}")


def check_targets(targets: Sequence[str]) -> None:
    """Check that each target makes sense, before there is anything to send.

    Raises:
        AlertError: A target is unknown, or e-mail has no server.
    """
    for target in targets:
        _sender(target, _SECONDS)


def shown(target: str) -> str:
    """Return a target for people: of a webhook only its host, since the rest of its address is often a secret."""
    channel = _channel_of(target)
    return without_credentials(target) if channel is None else channel.shown(target)


Sender = Callable[[Alert], None]


@dataclass(frozen=True)
class _Channel:
    """A way by which alerts go out.

    Attributes:
        form: Its targets as users write them.
        takes: Returns True for its targets.
        sender: Returns the function that sends an alert to a target within a number of seconds; raises ``AlertError``
            for a target that makes no sense.
        shown: Returns a target for people.
        addresses: Returns the addresses that an error may quote, parts of which are secret.
    """

    form: str
    takes: Callable[[str], bool]
    sender: Callable[[str, float], Sender]
    shown: Callable[[str], str] = without_credentials
    addresses: Callable[[str], Sequence[str]] = lambda target: (target,)


def _channel_of(target: str) -> _Channel | None:
    return next((channel for channel in _CHANNELS if channel.takes(target)), None)


def _sender(target: str, seconds: float) -> Sender:
    channel = _channel_of(target)
    if channel is None:
        *forms, last = [channel.form for channel in _CHANNELS]
        raise AlertError(f"alert target '{shown(target)}' is unknown; give {', '.join(forms)} or {last}")
    return channel.sender(target, seconds)


def _log_sender(target: str, seconds: float) -> Sender:
    return lambda alert: logger.warning("%s\n%s", alert.title, alert.text)


def _webhook_sender(target: str, seconds: float) -> Sender:
    webhook = _webhook(target)
    return lambda alert: _post(webhook, alert, seconds)


def _mail_sender(target: str, seconds: float) -> Sender:
    addresses = [address.strip() for address in target.removeprefix("mailto:").split(",")]
    if not all("@" in address for address in addresses):
        raise AlertError(f"alert target '{shown(target)}' has no address; give one as mailto:team@example.com")
    server = _mail_server()
    return lambda alert: _mail(server, addresses, alert, seconds)


def _shown_webhook(target: str) -> str:
    try:
        parts = urlsplit(target)
    except ValueError:  # brackets that enclose no address
        return f"{target.partition(':')[0]}://…"
    return f"{parts.scheme}://{parts.hostname}/…"


def _within(seconds: float, sender: Callable[[Alert], None], alert: Alert) -> None:
    """Call a sender, and give up on it after some time: timeouts of sockets begin anew with each byte.

    Raises:
        TimeoutError: It took longer.
        Exception: The sender's error.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            sender(alert)
        except Exception as error:  # It is raised below, in the caller's thread.
            raised.append(error)

    # A daemon, so that a target which never ends its answer does not keep the process.
    thread = threading.Thread(target=call, name="alert", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"it has not taken the alert within {seconds:g} s")
    if raised:
        raise raised[0]


def _harmless(error: Exception, target: str) -> str:
    """Return an error's text without the parts of its target, which libraries and servers may quote."""
    text = one_line(error)
    for part in sorted(set(_secret_parts(target)), key=len, reverse=True):
        text = text.replace(part, "…")
    return text


def _secret_parts(target: str) -> Iterator[str]:
    channel = _channel_of(target)
    for address in (target,) if channel is None else channel.addresses(target):
        whole, _, rest = address.partition("://")
        authority, _, path = rest.partition("/")
        parts = [address, f"/{path}", path, *path.replace("?", "/").replace("&", "/").replace("=", "/").split("/")]
        user, at, _ = rest.rpartition("@") if "@" in rest else authority.rpartition("@")
        parts += [user, *user.split(":")] if at else []
        # A short word, such as the `x` of a path, shows nothing, and is part of other words.
        yield from (form for part in parts for form in (part, unquote(part)) if len(form) > 3 and form != whole)


@dataclass(frozen=True)
class _Webhook:
    """The address of a webhook without user and password, and the header that has those."""

    address: str
    headers: Mapping[str, str]


def _webhook(target: str) -> _Webhook:
    """Return a webhook.

    Raises:
        AlertError: It is not an address.
    """
    try:
        parts = urlsplit(target)
        port = parts.port
    except ValueError:
        # Its text about a port quotes a password that has a colon or a slash in it.
        raise AlertError(
            f"alert target '{shown(target)}' is not an address; give https://host/path, and %2F for a slash, %3A for a "
            f"colon and %40 for an at sign in a user name or a password"
        ) from None
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    if not host or any(character.isspace() or not character.isprintable() for character in target):
        raise AlertError(f"alert target '{shown(target)}' has no host, or a space in it; give https://host/path")
    headers = {"Content-Type": "application/json"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    netloc = host if port is None else f"{host}:{port}"
    return _Webhook(parts._replace(netloc=netloc, fragment="").geturl(), headers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the error that it is: the alert must not go where somebody else sends it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(webhook: _Webhook, alert: Alert, seconds: float) -> None:
    body = json.dumps({"title": alert.title, "text": f"{alert.title}\n{alert.text}", "facts": alert.facts}).encode()
    request = urllib.request.Request(webhook.address, body, dict(webhook.headers), method="POST")  # noqa: S310
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        remedy = "; redirects are not followed, give the address itself" if error.code // 100 == 3 else ""
        raise AlertError(f"{shown(webhook.address)}: it answered with status {error.code}{remedy}") from None


def _mail_server() -> SplitResult:
    try:
        found = urlsplit(os.environ.get(SMTP_VARIABLE, ""))
        _ = found.port
    except ValueError:  # its message quotes the address
        raise AlertError(f"{SMTP_VARIABLE} is not an address; set it to smtp://user:password@host:587") from None
    if found.scheme not in ("smtp", "smtps") or not found.hostname:
        raise AlertError(f"there is no server for e-mail; set {SMTP_VARIABLE} to smtp://user:password@host:587")
    return found


def _mail(server: SplitResult, addresses: Sequence[str], alert: Alert, seconds: float) -> None:
    message = EmailMessage()
    message["Subject"], message["To"] = alert.title, ", ".join(addresses)
    message["From"] = os.environ.get(SENDER_VARIABLE, f"mirrorspark@{server.hostname}")
    message.set_content(alert.text)
    host, context = str(server.hostname), ssl.create_default_context()
    if server.scheme == "smtps":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(host, server.port or _TLS_PORT, timeout=seconds, context=context)
    else:
        connection = smtplib.SMTP(host, server.port or _SUBMISSION_PORT, timeout=seconds)
    with connection:
        connection.ehlo_or_helo_if_needed()
        if server.scheme == "smtp" and connection.has_extn("starttls"):
            connection.starttls(context=context)
        elif server.scheme == "smtp" and server.username:
            raise AlertError(f"{host} offers no encryption, so it gets no password; use smtps:// in {SMTP_VARIABLE}")
        if server.username:
            connection.login(unquote(server.username), unquote(server.password or ""))
        connection.send_message(message)


# A new channel is one entry here.
_CHANNELS = (
    _Channel("log", lambda target: target == "log", _log_sender),
    _Channel(
        "https://…",
        lambda target: target.lower().startswith(("http://", "https://")),
        _webhook_sender,
        shown=_shown_webhook,
    ),
    _Channel(
        "mailto:…",
        lambda target: target.startswith("mailto:"),
        _mail_sender,
        addresses=lambda target: (target, os.environ.get(SMTP_VARIABLE, "")),
    ),
)
