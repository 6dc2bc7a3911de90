"""The proof of a token, addresses, and hosts that vanish."""

import socket

import pytest

from mirrorspark.training.protocol.handshake import is_proof, keep_alive, proof, split_address


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
