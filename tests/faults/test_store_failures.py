"""T6: every request to an object store fails once: old or new stays, and all goes on."""

import re
from collections.abc import Iterator

import pytest
from pyarrow import fs

from mirrorspark.storage import paths
from mirrorspark.storage.paths import StoragePath
from tests.faults.conftest import Count
from tests.faults.io_failures import (
    CHANGES,
    READS,
    Fault,
    ThrottledStore,
)
from tests.faults.operations import SCORES, Operation, end_process

pytestmark = [pytest.mark.full, pytest.mark.timeout(900), pytest.mark.usefixtures("operations_here")]


@pytest.fixture(scope="module")
def throttled() -> Iterator[tuple[str, ThrottledStore]]:
    """Yield ``BUCKET?OPTIONS`` as the fixture ``s3_bucket`` does, and what makes its requests fail."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = store = ThrottledStore(server._server.app)
    _, port = server.get_host_and_port()
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    system, _ = fs.FileSystem.from_uri(f"s3://throttled?{options}&allow_bucket_creation=true")
    system.create_dir("throttled")
    yield f"throttled?{options}", store
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
    bucket, store = throttled
    bucket, _, options = bucket.partition("?")
    address = options.partition("endpoint_override=")[2].partition("&")[0]
    # Arrow tries a request to a store that is gone for six seconds.
    patient, hasty = (
        fs.S3FileSystem(
            endpoint_override=address,
            scheme="http",
            region="us-east-1",
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            request_timeout=1,
        )
        for attempts in (3, 1)
    )
    is_failing = False

    def system(scheme: str, path: str, query: str) -> tuple[fs.FileSystem, str]:
        return hasty if is_failing and is_gone else patient, path

    monkeypatch.setattr(paths, "_arrow_store", system)
    operation, number, ended = operations[name], 0, 0

    def place() -> str:
        return f"s3://{bucket}/{re.sub('[^a-z]', '-', name)}-{is_gone}-{len(fault)}-{len(methods)}/{number}?{options}"

    operation.prepare(place())
    old = operation.look(place())
    operation.act(place())
    new = operation.look(place())
    names = remote_tree(place())
    while True:
        number += 1
        operation.prepare(place())
        error: Exception | None = None
        with store.failing(number, float("inf") if is_gone else number, fault, methods):
            is_failing = True
            try:
                operation.act(place())
            except Exception as raised:
                error = raised
            is_failing = False
            is_over = store.count < number
        told = f"request {number}: {error!r}"
        end_process()
        if error is not None:
            ended += 1
            assert isinstance(error, OSError), told
            operation.recover(place())
            assert operation.look(place()) in (old, new), told
        else:
            assert operation.look(place()) == new, told
        if operation.look(place()) != new or (error is not None and operation.is_repeatable):
            operation.act(place())
        operation.recover(place())
        assert operation.look(place()) == new, told
        assert remote_tree(place()) == names, told
        if is_over:
            break
    assert number > 3
    count("requests that failed", {name: number - 1, "that ended the operation": ended})


def remote_tree(place: str) -> list[str]:
    root = StoragePath.of(place)
    names = (file.path.relative_to(root) for file in root.files())
    return sorted(re.sub(r"[0-9a-f]{8,}", "#", name) for name in names if not name.startswith("store/FENCE-"))
