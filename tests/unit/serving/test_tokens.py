"""Tokens of the online server: where they are read, and which headers have one."""

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from mirrorspark.serving.application import TokenCheck
from mirrorspark.serving.command import TOKEN_VARIABLE, tokens_of


def status(tokens: list[str], *headers: bytes) -> int:
    """Return the status of the answer to a request with these Authorization headers; 200 if it is let through."""
    sent: list[Message] = []

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "path": "/v1/models/x", "headers": [(b"authorization", header) for header in headers]}
    asyncio.run(TokenCheck(behind, tokens)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("token", ["geheim-Schlüssel", "mot-de-passe-à", "鍵", "plain"])
def test_a_token_beyond_ascii_is_known_as_curl_and_as_python_send_it(token: str) -> None:
    assert status(["other", token], b"Bearer " + token.encode()) == 200
    if all(ord(character) < 256 for character in token):
        assert status([token], b"Bearer " + token.encode("latin-1")) == 200
    assert status([token], b"Bearer " + token.encode()[:-1]) == 401


def test_a_part_of_a_token_that_latin_1_lacks_does_not_open_the_server() -> None:
    assert status(["a鍵"], b"Bearer a") == 401
    assert status(["鍵"], b"Bearer ") == 401
    assert status(["鍵"], b"Bearer") == 401
    assert status(["x"]) == 401


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_token_is_refused_and_never_an_open_server(
    blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, blank)
    with pytest.raises(ValueError, match=f"{TOKEN_VARIABLE} is set and blank; give a token, or unset it"):
        tokens_of(None)
    (tmp_path / "tokens").write_text(blank)
    with pytest.raises(ValueError, match="holds no token; write one into each line"):
        tokens_of(tmp_path / "tokens")
    with pytest.raises(ValueError, match="a token is blank"):
        TokenCheck(lambda *_: None, ["good", blank])  # type: ignore[arg-type,return-value]


def test_without_the_variable_no_token_is_asked_and_a_file_may_begin_with_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert tokens_of(None) == []
    monkeypatch.setenv(TOKEN_VARIABLE, " schlüssel\n")
    assert tokens_of(None) == ["schlüssel"]
    (tmp_path / "tokens").write_bytes("\ufefffirst\n\n schlüssel \n".encode())
    assert tokens_of(tmp_path / "tokens") == ["first", "schlüssel"]
    (tmp_path / "tokens").write_bytes(b"schl\xfcssel\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        tokens_of(tmp_path / "tokens")
