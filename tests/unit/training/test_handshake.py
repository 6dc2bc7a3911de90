"""The proof of a token, addresses, and hosts that vanish."""

import io
import logging
import socket

import pytest

from mirrorspark.training.protocol.messages.handshake import (
    RefusalLog,
    is_proof,
    keep_alive,
    proof,
    read_line,
    split_address,
)


@pytest.mark.parametrize(
    ("address", "parts"), [("host0:4000", ("host0", 4000)), ("[::1]:80", ("::1", 80)), ("::1:80", ("::1", 80))]
)
def test_addresses_are_split_at_the_last_colon(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_a_proof_holds_for_its_token_its_role_and_both_nonces_alone() -> None:
    answer = proof("secret", "member", "theirs", "mine")
    assert is_proof(answer, "secret", "member", "theirs", "mine")
    assert "secret" not in answer
    assert not is_proof(answer, "guess", "member", "theirs", "mine")
    assert not is_proof(answer, "secret", "coordinator", "theirs", "mine")
    assert not is_proof(answer, "secret", "member", "mine", "theirs")
    assert not is_proof("\ufffd", "secret", "member", "theirs", "mine")


def test_a_host_that_vanishes_is_asked_after_ten_seconds_of_silence() -> None:
    with socket.socket() as connection:
        keep_alive(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10


class TricklingStream(io.BytesIO):
    """A stream whose every byte takes some seconds of its clock."""

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__(content)
        self.now, self._seconds = 0.0, seconds

    def read(self, size: int | None = -1, /) -> bytes:
        self.now += self._seconds
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.now += self._seconds * len(line)
        return line


def test_a_caller_that_sends_a_byte_now_and_then_has_no_more_time_than_a_silent_one() -> None:
    """S12: each byte comes within the time that a socket waits for it."""
    quick = TricklingStream(b"secret\n", seconds=1)
    assert read_line(quick, lambda: quick.now) == "secret"
    slow = TricklingStream(b"x" * 100, seconds=6)
    with pytest.raises(TimeoutError, match="has not sent a line within 10 s"):
        read_line(slow, lambda: slow.now)
    assert slow.now < 20
    with pytest.raises(ConnectionResetError):
        read_line(io.BytesIO(b"half a line"))


def test_refused_callers_are_a_line_a_minute_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    """S12: a caller that tries a thousand times a second does not fill the log."""
    now = [0.0]
    refusals = RefusalLog(logging.getLogger("rides"), "an event connection", clock=lambda: now[0])
    for now[0], calls in ((0.0, 1000), (59.9, 1000), (60.0, 1), (119.9, 5), (200.0, 1)):
        for number in range(calls):
            refusals.add(f"10.0.0.{number % 250}")
    assert caplog.messages == [
        "refused an event connection from 10.0.0.0: wrong token",
        "refused an event connection from 10.0.0.0 and 1999 more since the last such line: wrong token",
        "refused an event connection from 10.0.0.0 and 5 more since the last such line: wrong token",
    ]
