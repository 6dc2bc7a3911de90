"""L4: a server that is away is reported within seconds; a reachable one is left to MLflow."""

import socket
import urllib.request
from types import SimpleNamespace

import pytest

from mirrorspark.scoring.model.stored.uri import check_listening

REFUSED = ConnectionRefusedError(111, "Connection refused")


class Network:
    """Simulated sockets and clock: every try ends as the next of `outcomes` does.

    Attributes:
        tries: Address and time limit of each try.
        pauses: Seconds between the tries.
    """

    def __init__(self, *outcomes: Exception | None) -> None:
        self.tries: list[tuple[tuple[str, int], float]] = []
        self.pauses: list[float] = []
        self._outcomes = list(outcomes)

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.tries.append((address, timeout))
        if (outcome := self._outcomes.pop(0)) is not None:
            raise outcome
        return socket.socket()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"{scheme}_proxy" for scheme in urllib.request.getproxies()), "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def plugged(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> Network:
    network = Network(*outcomes)
    monkeypatch.setattr(
        "mirrorspark.scoring.model.stored.uri.socket", SimpleNamespace(create_connection=network.connect)
    )
    monkeypatch.setattr("mirrorspark.scoring.model.stored.uri.time", SimpleNamespace(sleep=network.pauses.append))
    return network


def test_a_server_that_is_away_is_tried_twice_and_told_within_12_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plugged(monkeypatch, TimeoutError("timed out"), REFUSED)
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        check_listening("http://mlflow.example:5000")
    assert [address for address, _ in network.tries] == [("mlflow.example", 5000)] * 2
    assert sum(limit for _, limit in network.tries) + sum(network.pauses) == 12


def test_the_second_try_may_find_a_server_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plugged(monkeypatch, REFUSED, None)
    check_listening("http://mlflow.example:5000")
    assert len(network.tries) == 2


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("http://mlflow.example", ("mlflow.example", 80)),
        ("HTTPS://ann:s3cret@mlflow.example/path", ("mlflow.example", 443)),
        ("http://[::1]:5000/", ("::1", 5000)),
    ],
)
def test_a_server_that_listens_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, address: str, place: tuple[str, int]
) -> None:
    network = plugged(monkeypatch, None)
    check_listening(address)
    assert [tried for tried, _ in network.tries] == [place]
    assert network.pauses == []


@pytest.mark.parametrize(
    "address",
    [
        "databricks",
        "databricks://profile",
        "sqlite:///mlflow.db",
        "postgresql://ann:s3cret@db.example:5432/mlflow",
        "file:///runs",
        "/runs",
        "http://",
        "http://ann:s/cret@mlflow.example:5000",
        "http://[::1",
    ],
)
def test_stores_without_http_are_left_to_mlflow(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    network = plugged(monkeypatch, REFUSED, REFUSED)
    check_listening(address)
    assert network.tries == []


def test_a_name_that_no_host_can_have_is_left_to_mlflow() -> None:
    check_listening(f"http://{'a' * 64}.example:5000")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_behind_a_proxy_nobody_is_tried_but_whom_it_leaves_out(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    network = plugged(monkeypatch, None)
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    check_listening("http://mlflow.example:5000")
    assert network.tries == []
    check_listening("http://mlflow.inside.example:5000")
    assert [address for address, _ in network.tries] == [("mlflow.inside.example", 5000)]


def test_a_proxy_of_the_other_scheme_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plugged(monkeypatch, None)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    check_listening("http://mlflow.example:5000")
    assert len(network.tries) == 1
