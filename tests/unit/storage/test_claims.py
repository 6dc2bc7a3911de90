"""Claims are of object stores: on a disk, where folders are renamed, none is written or found (T6)."""

from pathlib import Path

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import claims


def test_a_disk_has_no_claims(tmp_path: Path) -> None:
    staging = StoragePath.of(tmp_path)

    claims.open_write(staging)
    claims.claim(staging)
    claims.record_outcome(staging, is_finished=True)

    assert list(tmp_path.iterdir()) == []
    assert claims.recorded_outcome(staging) is None
    claims.close_write(staging)
    assert claims.is_open(staging)
    assert not claims.is_lost(staging)
