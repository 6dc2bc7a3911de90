"""Alerts: what has happened, sent to a webhook, by e-mail or to the log, without secrets (requirement L11)."""

import json
import logging
import os
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from mirrorspark.storage.credentials import clean, one_line, without_credentials

# The server that takes e-mail: smtp://user:password@host:587 (encrypted if the server offers it) or smtps://host:465.
SMTP_VARIABLE = "MIRRORSPARK_SMTP"
# The sender's address.
SENDER_VARIABLE = "MIRRORSPARK_ALERTS_FROM"

_SECONDS = 10.0
_SUBMISSION_PORT, _TLS_PORT = 587, 465

logger = logging.getLogger(__name__)


class AlertError(RuntimeError):
    """An alert could not be sent, or a target makes no sense; the message has no secret of the target."""


@dataclass(frozen=True)
class Alert:
    """Something that people should know.

    Attributes:
        title: What has happened, in one line.
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


def send(alert: Alert, targets: Sequence[str]) -> None:
    """Send an alert to every target, even if some of them cannot be reached.

    Args:
        alert: The alert; secrets are removed from it.
        targets: Each is ``log``, the address of a webhook (``https://…``, which gets JSON with ``title``, ``text`` and
            ``facts``; chat programs show ``text``), or ``mailto:`` with one or more addresses, separated by commas.
            E-mail goes through the server in the environment variable ``MIRRORSPARK_SMTP``.

    Raises:
        AlertError: Some targets did not get it; the message names them, without what may be secret in them.
    """
    alert, problems = alert.cleaned(), []
    for target in targets:
        try:
            _sender(target)(alert)
        except AlertError as error:
            problems.append(str(error))
        except (OSError, smtplib.SMTPException, ValueError) as error:
            # A webhook's address is its password, and some libraries quote it.
            problems.append(f"{shown(target)}: {one_line(error).replace(target, shown(target))}")
    if problems:
        raise AlertError(f"{len(problems)} of {len(targets)} targets did not get the alert: {'; '.join(problems)}")


def check_targets(targets: Sequence[str]) -> None:
    """Check that each target makes sense, before there is anything to send.

    Raises:
        AlertError: A target is unknown, or e-mail has no server.
    """
    for target in targets:
        _sender(target)


def shown(target: str) -> str:
    """Return a target for people: of a webhook only its host, since the rest of its address is often a secret."""
    if target.startswith(("http://", "https://")):
        parts = urlsplit(target)
        return f"{parts.scheme}://{parts.hostname}/…"
    return without_credentials(target)


def _sender(target: str) -> Callable[[Alert], None]:
    if target == "log":
        return lambda alert: logger.warning("%s\n%s", alert.title, alert.text)
    if target.startswith(("http://", "https://")):
        return lambda alert: _post(target, alert)
    if target.startswith("mailto:"):
        addresses = [address.strip() for address in target.removeprefix("mailto:").split(",")]
        if not all("@" in address for address in addresses):
            raise AlertError(f"alert target '{shown(target)}' has no address; give one as mailto:team@example.com")
        server = _mail_server()
        return lambda alert: _mail(server, addresses, alert)
    raise AlertError(f"alert target '{shown(target)}' is unknown; give log, https://… or mailto:…")


def _post(address: str, alert: Alert) -> None:
    body = json.dumps({"title": alert.title, "text": f"{alert.title}\n{alert.text}", "facts": alert.facts}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310 - the scheme is checked above
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise AlertError(f"{shown(address)}: it answered with status {error.code}") from None


def _mail_server() -> SplitResult:
    found = urlsplit(os.environ.get(SMTP_VARIABLE, ""))
    if found.scheme not in ("smtp", "smtps") or not found.hostname:
        raise AlertError(f"there is no server for e-mail; set {SMTP_VARIABLE} to smtp://user:password@host:587")
    return found


def _mail(server: SplitResult, addresses: Sequence[str], alert: Alert) -> None:
    message = EmailMessage()
    message["Subject"], message["To"] = alert.title, ", ".join(addresses)
    message["From"] = os.environ.get(SENDER_VARIABLE, f"mirrorspark@{server.hostname}")
    message.set_content(alert.text)
    host, context = str(server.hostname), ssl.create_default_context()
    if server.scheme == "smtps":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(host, server.port or _TLS_PORT, timeout=_SECONDS, context=context)
    else:
        connection = smtplib.SMTP(host, server.port or _SUBMISSION_PORT, timeout=_SECONDS)
    with connection:
        connection.ehlo_or_helo_if_needed()
        if server.scheme == "smtp" and connection.has_extn("starttls"):
            connection.starttls(context=context)
        elif server.scheme == "smtp" and server.username:
            raise AlertError(f"{host} offers no encryption, so it gets no password; use smtps:// in {SMTP_VARIABLE}")
        if server.username:
            connection.login(unquote(server.username), unquote(server.password or ""))
        connection.send_message(message)
