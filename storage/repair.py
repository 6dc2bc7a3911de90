"""Shows the unfinished writes to a folder, and finishes or takes back those whose owner is dead.

    python -m mirrorspark.storage.repair PATH [--apply]

The next write to the folder does the same. Use this command for a folder to which no further write is planned.
"""

import argparse
import sys
from collections.abc import Sequence

from mirrorspark.storage.credentials import one_line
from mirrorspark.storage.lease import STALE_SECONDS, Timing
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import clear, is_foreign, living, stagings, state_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if ``--apply`` met a living write or an error occurred, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m mirrorspark.storage.repair", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("path", help="folder that was written to: a local path or a URI")
    parser.add_argument("--apply", action="store_true", help="finish or take back the writes whose owner is dead")
    parser.add_argument(
        "--watch-seconds",
        type=float,
        default=STALE_SECONDS,
        help="how long the lease of an owner on another host may stay the same (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    try:
        return _repair(StoragePath.of(given.path), given.apply, Timing(stale_seconds=given.watch_seconds))
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def _repair(target: StoragePath, is_applied: bool, timing: Timing) -> int:
    if target.is_local:
        target = StoragePath.of(target.local.resolve())
    everything = stagings(target)
    found = [staging for staging in everything if not is_foreign(staging)]
    alive = living([staging.folder for staging in found if not staging.is_over], timing)
    if not everything:
        print(f"{target}: no write is pending")
    for staging in everything:
        if staging not in found:
            print(f"{staging.folder}\n  is by another user, or a link: left alone")
    for staging in found:
        owner = staging.owner or "an unknown process"
        if staging.folder in alive:
            print(f"{staging.folder}\n  {owner} is alive and writes there: left alone")
            continue
        print(f"{staging.folder}\n  {owner} is dead: {state_of(staging)}")
        if is_applied:
            clear(staging)
            print("  done")
    if len(found) > len(alive) and not is_applied:
        print("Nothing was changed; use --apply to finish or take back these writes")
    return 1 if is_applied and alive else 0


if __name__ == "__main__":
    sys.exit(main())
