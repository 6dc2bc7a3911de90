"""T6: every request to an object store fails once: old or new stays, and all goes on."""

import functools
import re
from collections.abc import Iterable, Iterator

import pytest
from pyarrow import fs

from mirrorspark.storage import paths
from tests.faults.conftest import Count
from tests.faults.io_failures import (
    CHANGES,
    READS,
    Fault,
    StoredObjects,
    ThrottledStore,
)
from tests.faults.operations import SCORES, Operation, end_process

pytestmark = [pytest.mark.full, pytest.mark.timeout(900), pytest.mark.usefixtures("operations_here")]

BUCKET = "throttled"


@pytest.fixture(scope="module")
def throttled() -> Iterator[tuple[str, ThrottledStore]]:
    """Yield the options of a server of S3's protocol, as a URI has them, and what makes its requests fail."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = store = ThrottledStore(server._server.app)
    _, port = server.get_host_and_port()
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    system, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}?{options}&allow_bucket_creation=true")
    system.create_dir(BUCKET)
    yield options, store
    server.stop()


REMOTE = ["a new folder", "an overwrite", "an append", "a checkpoint", SCORES]


@pytest.mark.parametrize(
    ("is_gone", "fault", "methods"),
    [
        (False, "refused", CHANGES),
        (False, "done, but the answer is lost", CHANGES),
        (False, "half of the body arrives", CHANGES),
        (False, "no answer", CHANGES),
        (False, "refused", READS),
        (False, "no answer", READS),
        (True, "refused", CHANGES),
    ],
    ids=[
        "one request",
        "one answer",
        "half a body",
        "one time-out",
        "one read",
        "one read's time-out",
        "all from then on",
    ],
)
@pytest.mark.parametrize("name", REMOTE)
def test_a_store_fails_at_a_request(
    name: str,
    is_gone: bool,
    fault: Fault,
    methods: tuple[str, ...],
    operations: dict[str, Operation],
    throttled: tuple[str, ThrottledStore],
    monkeypatch: pytest.MonkeyPatch,
    count: Count,
) -> None:
    """An object store that throttles, loses an answer or half of a body, or is silent or gone and comes back."""
    options, store = throttled
    address = options.partition("endpoint_override=")[2].partition("&")[0]
    # Arrow tries a request to a store that is away for six seconds. This strategy tries again at once, where AWS's
    # standard one waits for up to a second, and after some fifty time-outs no longer tries again.
    patient, hasty = (
        fs.S3FileSystem(
            endpoint_override=address,
            scheme="http",
            region="us-east-1",
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=retries),
            request_timeout=1,
        )
        for retries in (2, 0)
    )
    is_failing = False

    def system(scheme: str, path: str, query: str) -> tuple[fs.FileSystem, str]:
        return hasty if is_failing and is_gone else patient, path

    monkeypatch.setattr(paths, "_arrow_store", system)
    operation, number, ended = operations[name], 0, 0
    place, objects = f"s3://{BUCKET}/place?{options}", StoredObjects(BUCKET)

    @functools.cache
    def found_in(contents: frozenset[tuple[str, bytes]]) -> object:
        """Return the state that readers find, who are asked once for all stores of the same names and contents."""
        return operation.look(place)

    def found() -> object:
        return found_in(frozenset(objects.contents().items()))

    objects.restore({})
    operation.prepare(place)
    prepared = objects.copies()
    old = found()
    operation.act(place)
    new, names = found(), without_random_parts(objects.contents())
    assert old != new
    while True:
        number += 1
        objects.restore(prepared)
        error: Exception | None = None
        with store.failing(number, float("inf") if is_gone else number, fault, methods):
            is_failing = True
            try:
                operation.act(place)
            except Exception as raised:
                error = raised
            is_failing = False
            is_over = store.count < number
        told = f"request {number}: {error!r}"
        end_process()
        if error is not None:
            ended += 1
            assert isinstance(error, OSError), told
            operation.recover(place)
        state = found()
        assert state in ((new,) if error is None else (old, new)), told
        if state != new or (error is not None and operation.is_repeatable):
            operation.act(place)
        operation.recover(place)
        assert found() == new, told
        assert without_random_parts(objects.contents()) == names, told
        if is_over:
            break
    assert number > 3
    count("requests that failed", {name: number - 1, "that ended the operation": ended})


def without_random_parts(names: Iterable[str]) -> list[str]:
    """Return the names of a bucket's objects but the attempts' fences, without what is random in them."""
    inside = (name.removeprefix("place/") for name in names if not name.endswith("/"))
    return sorted(re.sub(r"[0-9a-f]{8,}", "#", name) for name in inside if not name.startswith("store/FENCE-"))
