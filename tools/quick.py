"""Run the unit tests nearest to what has changed since the last commit: ``python tools/quick.py`` in the repository.

Nearest are the changed test files and those that are named after a changed module, then all that import one, then those
of its folder, then those of the folders that import its folder. After ``--seconds`` no further test begins, and the
last lines say what is left.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
UNIT = "tests/unit"
_IMPORT = re.compile(
    r"^\s*(?:from|import) +((?:mirrorspark|benchmarks|tools|tests)[\w.]*)(?: import (\([^)]*\)|[^#\n]*))?", re.MULTILINE
)
# Seconds for which the workers of pytest may begin tests. Before that they import for some twenty seconds.
_SECONDS = "MIRRORSPARK_QUICK_SECONDS"
_DEADLINE = pytest.StashKey[float]()


def main() -> int:
    """Choose and run the tests, and return pytest's exit status, or 0 when nothing has to run."""
    parser = argparse.ArgumentParser(description="Run the unit tests nearest to what has changed since a commit.")
    parser.add_argument("--since", default="HEAD", help="commit to compare the working tree with")
    parser.add_argument("--seconds", type=float, default=60.0, help="begin no test after this time of tests")
    parser.add_argument("--files", type=int, default=40, help="take no more than the nearest files")
    parser.add_argument("--list", action="store_true", help="print the test files, nearest first, and run nothing")
    options, others = parser.parse_known_args()
    changed = changed_files(options.since)
    chosen = nearest(changed, imports(REPOSITORY))
    print(f"{len(changed)} files have changed since {options.since}: {len(chosen)} files of unit tests are near them")
    chosen, far = chosen[: options.files], chosen[options.files :]
    if far:
        folders = sorted({file.rpartition("/")[0] for file in far})
        print(f"left out, as they are the farthest: {len(far)} files in {', '.join(folders)}")
    if elsewhere := [file for file in changed if re.match(r"tests/(?!unit/).*/test_\w+\.py$", file)]:
        print(f"left out, as they start processes: {', '.join(elsewhere)}")
    if options.list or not chosen:
        print("\n".join(chosen))
        return 0
    os.environ[_SECONDS] = str(options.seconds)
    # Two processes, a file in one of them, the nearest first.
    usual = ["-m", "not process", "--dist", "loadfile", "--no-loadscope-reorder", "-n", "2", "-p", "tools.quick"]
    return subprocess.call([sys.executable, "-m", "pytest", *usual, *others, *chosen], cwd=REPOSITORY)


def changed_files(since: str) -> list[str]:
    """Return the paths that differ from the commit ``since``, new and removed ones included."""
    found: set[str] = set()
    for arguments in (["diff", "--name-only", since], ["ls-files", "--others", "--exclude-standard"]):
        listed = subprocess.check_output(["git", *arguments], cwd=REPOSITORY, text=True)  # noqa: S607 - on PATH
        found.update(listed.splitlines())
    return sorted(found)


def imports(root: Path) -> Mapping[str, frozenset[str]]:
    """Return the folders and modules that each Python file imports, as paths without a suffix."""
    files = (path for path in root.glob("[a-z]*/**/*.py") if not path.is_relative_to(root / "src"))
    return {path.relative_to(root).as_posix(): frozenset(_imported(path.read_text("utf-8"))) for path in files}


def _imported(source: str) -> Iterator[str]:
    for module, names in _IMPORT.findall(source):
        path = module.removeprefix("mirrorspark.").replace(".", "/")
        yield path
        for name in re.findall(r"\w+", names):
            yield f"{path}/{name}"


def nearest(changed: Iterable[str], imported: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the files of unit tests that concern the changed files, the nearest first.

    Args:
        changed: Paths relative to the repository.
        imported: Imports of each Python file, by its path.
    """
    paths = [PurePosixPath(path) for path in changed]
    modules = {str(path.with_suffix("")) for path in paths if path.suffix == ".py"}
    names = {f"test_{path.stem}" for path in paths if path.suffix == ".py"}
    names |= {"test_documentation"} if any(path.suffix == ".md" for path in paths) else set()
    folders = {str(path.parent) for path in paths if len(path.parts) > 1 and path.suffix != ".md"}
    shared = {folder for folder in folders if f"{folder}/conftest" in modules}
    users = {str(PurePosixPath(file).parent) for file, of in imported.items() if _touches(of, folders)} - folders
    ranks: dict[str, int] = {}
    for file, of in imported.items():
        path = PurePosixPath(file)
        if not (file.startswith(UNIT) and path.name.startswith("test_")):
            continue
        if str(path.with_suffix("")) in modules or path.stem in names:
            ranks[file] = 0
        elif of & modules:
            ranks[file] = 1
        elif _touches(of, folders) or str(path.parent) in shared:
            ranks[file] = 2
        elif _touches(of, users):
            ranks[file] = 3
    return sorted(ranks, key=lambda file: (ranks[file], file))


def _touches(imported: frozenset[str], folders: Set[str]) -> bool:
    """Return whether one of the folders, or something directly in one, is imported."""
    return not folders.isdisjoint({path.rpartition("/")[0] for path in imported} | imported)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the time begin."""
    session.config.stash[_DEADLINE] = time.monotonic() + float(os.environ[_SECONDS])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no test after the deadline; pytest's last line counts those that are left out."""
    if time.monotonic() > item.config.stash[_DEADLINE]:
        pytest.skip("the time is over; `make unit` runs all")


if __name__ == "__main__":
    sys.exit(main())
