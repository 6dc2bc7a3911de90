"""Alerts reach a real webhook and a real mail server, and have no secret in them (L11)."""

import base64
import http.server
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mirrorspark.lifecycle.pipeline.alerts import (
    SENDER_VARIABLE,
    SMTP_VARIABLE,
    Alert,
    AlertError,
    check_targets,
    report,
    send,
)

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
        self.server.credentials = self.headers["Authorization"]  # type: ignore[attr-defined]
        self.send_response(500 if "broken" in self.path else 302 if "moved" in self.path else 200)
        if "moved" in self.path:
            self.send_header("Location", f"http://{self.headers['Host']}/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class MailServer(socketserver.StreamRequestHandler):
    """A server with the part of SMTP that a message needs; it offers neither encryption nor passwords."""

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


class Answers(socketserver.StreamRequestHandler):
    """Answers every caller with bytes, whatever it asks, and without an end if the bytes have none."""

    answer: bytes = b""
    is_endless = False

    def handle(self) -> None:
        try:
            self.request.recv(1 << 16)
            self.wfile.write(self.answer)
            while self.is_endless and not over.wait(0.02):
                self.wfile.write(b"x")
        except OSError:
            return  # the caller has hung up


over = threading.Event()


def answering(answer: bytes, *, is_endless: bool = False) -> type[Answers]:
    return type("Answering", (Answers,), {"answer": answer, "is_endless": is_endless})


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


def test_a_webhook_gets_the_user_and_the_password_of_its_address_as_a_header() -> None:
    with served(Webhook) as webhook:
        send(ALERT, [f"http://alerts:s3cret%2Fpass@127.0.0.1:{webhook.server_address[1]}/hook?room=7"])

    ((path, _),) = webhook.received
    assert path == "/hook?room=7"
    assert webhook.credentials == "Basic " + base64.b64encode(b"alerts:s3cret/pass").decode()


def test_an_alert_does_not_go_where_a_redirect_leads() -> None:
    with (
        served(Webhook) as webhook,
        pytest.raises(AlertError, match="answered with status 302; redirects are not followed"),
    ):
        send(ALERT, [f"http://127.0.0.1:{webhook.server_address[1]}/moved/secretpath"])

    assert [path for path, _ in webhook.received] == ["/moved/secretpath"]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example.com ready\r\n",
        b"HTTP/1.1 banana secretpath\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"",
    ],
    ids=["ssh", "smtp", "bad status", "many heads", "long line", "redirect to a file", "nothing"],
)
def test_what_answers_no_http_is_logged_and_ends_nothing(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with served(answering(answer)) as odd, served(Webhook) as webhook:
        target = f"http://127.0.0.1:{odd.server_address[1]}/services/secretpath?key=hunter2hunter2"
        unsent = report(ALERT, [target, f"http://127.0.0.1:{webhook.server_address[1]}/next"])

    assert unsent is not None
    assert unsent.startswith("1 of 2 targets did not get the alert: http://127.0.0.1/…: ")
    assert unsent in caplog.text
    assert "secretpath" not in caplog.text + unsent
    assert "hunter2" not in caplog.text + unsent
    assert [path for path, _ in webhook.received] == ["/next"]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"220 "], ids=["webhook", "mail"])
def test_an_answer_that_never_ends_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(answering(head, is_endless=True)) as endless:
        port = endless.server_address[1]
        monkeypatch.setenv(SMTP_VARIABLE, f"smtp://127.0.0.1:{port}")
        target = f"http://127.0.0.1:{port}/hook" if head.startswith(b"HTTP") else "mailto:team@example.com"
        over.clear()
        try:
            with pytest.raises(AlertError, match=r"it has not taken the alert within 0\.3 s"):
                send(ALERT, [target], seconds=0.3)
        finally:
            over.set()


@pytest.mark.parametrize(
    "target",
    [
        "https://hooks:hunter2hunter2/B0@example.invalid/services/secretpath",
        "https://hooks:hunter2hunter2@example.invalid:port/secretpath",
        "https://[hunter2hunter2/secretpath",
        "https:///hunter2hunter2",
        "https://example.invalid/secretpath hunter2hunter2",
        "HTTPS://hooks:hunter2hunter2@exa\nmple.invalid/",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(target: str) -> None:
    for refusing in (lambda: check_targets([target]), lambda: send(ALERT, [target])):
        with pytest.raises(AlertError) as failure:
            refusing()
        assert "hunter2" not in str(failure.value)
        assert "secretpath" not in str(failure.value)


def test_an_address_for_mail_that_is_none_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SMTP_VARIABLE, "smtp://me:hunter2/hunter2@mail.example.com")

    with pytest.raises(AlertError, match=f"{SMTP_VARIABLE} is not an address") as failure:
        check_targets(["mailto:team@example.com"])

    assert "hunter2" not in str(failure.value)


def test_a_fact_that_json_lacks_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with served(Webhook) as webhook:
        report(Alert("title", "text", {"odd": {1, 2}}), [f"http://127.0.0.1:{webhook.server_address[1]}/x", "log"])

    assert "not JSON serializable" in caplog.text
    # Spark, where it has started in this process, formats the log as JSON.
    assert any("title\ntext" in record.getMessage() for record in caplog.records)
