"""Alerts reach a real webhook and a real mail server, and have no secret in them (L11)."""

import http.server
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mirrorspark.lifecycle.pipeline.alerts import SENDER_VARIABLE, SMTP_VARIABLE, Alert, AlertError, check_targets, send

ALERT = Alert(
    "churn of 2026-01-31: stage 'gate' has failed",
    "auc of country=DE is 0.61, the bound is 0.70\nstore postgresql://mlflow:hunter2@db/mlflow",
    {"stage": "gate", "store": "postgresql://mlflow:hunter2@db/mlflow", "api_key": "hunter2"},
)


@contextmanager
def served(handler: type[socketserver.BaseRequestHandler]) -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=10)


class Webhook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(500 if "broken" in self.path else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class MailServer(socketserver.StreamRequestHandler):
    """As much of SMTP as a message needs; it offers neither encryption nor passwords."""

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        for line in self.rfile:
            command = line.split()[0].upper() if line.split() else b""
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.received.append(b"".join(lines).decode())  # type: ignore[attr-defined]
            self.wfile.write(b"250 ok\r\n" if command != b"QUIT" else b"221 bye\r\n")
            if command == b"QUIT":
                return


def test_a_webhook_and_a_mail_server_get_the_alert_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served(Webhook) as webhook, served(MailServer) as mail:
        monkeypatch.setenv(SMTP_VARIABLE, f"smtp://127.0.0.1:{mail.server_address[1]}")
        monkeypatch.setenv(SENDER_VARIABLE, "models@example.com")
        address = f"http://127.0.0.1:{webhook.server_address[1]}/services/T0/B0/secretpath"
        with caplog.at_level(logging.WARNING):
            send(ALERT, [address, "mailto:team@example.com, lead@example.com", "log"])

    ((path, sent),) = webhook.received
    assert path == "/services/T0/B0/secretpath"
    assert sent["title"] == ALERT.title
    assert sent["facts"]["stage"] == "gate"
    assert sent["text"].startswith(f"{ALERT.title}\nauc of country=DE is 0.61")
    (message,) = mail.received
    assert f"Subject: {ALERT.title}" in message
    assert "From: models@example.com" in message
    assert "To: team@example.com, lead@example.com" in message
    assert "auc of country=DE" in caplog.text
    for text in (json.dumps(sent), message, caplog.text):
        assert "hunter2" not in text


def test_every_target_is_tried_and_the_error_names_those_that_failed_without_their_secrets() -> None:
    with served(Webhook) as webhook:
        base = f"http://127.0.0.1:{webhook.server_address[1]}"
        targets = [f"{base}/broken/secretpath", "http://127.0.0.1:9/secretpath", f"{base}/services/x"]
        with pytest.raises(AlertError) as failure:
            send(ALERT, targets)

    assert str(failure.value).startswith(
        "2 of 3 targets did not get the alert: http://127.0.0.1/…: it answered with status 500"
    )
    assert "secretpath" not in str(failure.value)
    assert webhook.received[-1][0] == "/services/x", "the one behind them got it"


def test_a_password_is_sent_to_no_server_without_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(MailServer) as mail:
        monkeypatch.setenv(SMTP_VARIABLE, f"smtp://me:hunter2@127.0.0.1:{mail.server_address[1]}")
        with pytest.raises(AlertError, match="offers no encryption, so it gets no password") as failure:
            send(ALERT, ["mailto:team@example.com"])

    assert mail.received == []
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("slack", "alert target 'slack' is unknown; give log, https://… or mailto:…"),
        ("mailto:team", "alert target 'mailto:team' has no address"),
        ("mailto:team@example.com", f"there is no server for e-mail; set {SMTP_VARIABLE}"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused_before_there_is_anything_to_send(target: str, problem: str) -> None:
    with pytest.raises(AlertError) as failure:
        check_targets([target])

    assert str(failure.value).startswith(problem)
