"""Print the packages and the size of each extra, and the changes of an installation next to a platform's.

`python tools/weight.py` makes the tables of docs/platforms.md: it builds the wheel, and an environment for each row, by
uv and, next to a platform's packages, by pip. They take two minutes, once uv has downloaded the packages.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
UV = str(Path(sysconfig.get_path("scripts")) / "uv")

EXTRAS = ("", "data", "score", "fleet", "serve", "local", "train", "train,keras", "all")
PLATFORM = ("pyspark==4.0.1", "mlflow==3.0.*", "tensorflow==2.19.*")
"""Packages of an older platform."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the interpreter of this process."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, *requirements: str) -> "Environment":
        """Return a new environment with pip and the newest packages that fit the requirements."""
        environment = cls(folder)
        _uv("venv", "--seed", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--python", environment.python, *requirements)
        return environment

    @property
    def python(self) -> str:
        """Path of its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def versions(self) -> dict[str, str]:
        """Version by package, without those of the seed."""
        listed = json.loads(_uv("pip", "list", "--format", "json", "--python", self.python))
        return {one["name"]: one["version"] for one in listed if one["name"] not in ("pip", "setuptools", "wheel")}

    @property
    def megabytes(self) -> float:
        """Size of the packages as they are unpacked, without bytecode; those of the seed are left out."""
        (packages,) = self.folder.glob("lib/python*/site-packages")
        seed = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources")
        files = (
            file
            for part in packages.iterdir()
            if part.name.partition("-")[0] not in seed
            for file in (part.rglob("*") if part.is_dir() else (part,))
            if file.is_file() and file.suffix != ".pyc"
        )
        return sum(file.lstat().st_size for file in files) / 1e6

    def pip_install(self, *requirements: str) -> None:
        """Install by pip, which prefers the packages that are there."""
        command = [self.python, "-m", "pip", "--quiet", "install", "--no-compile", *requirements]
        subprocess.run(command, check=True, env=_outside())


def built(folder: Path) -> Path:
    """Build the sdist of this clone and from it the wheel, and return the wheel."""
    _uv("build", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder), str(REPOSITORY))
    (wheel,) = folder.glob("*.whl")
    return wheel


def requirement(wheel: Path, extra: str) -> str:
    """Return the requirement of the wheel with an extra, or with none if it is empty."""
    return f"mirrorspark{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Return the packages of before that have another version after."""
    return {name: f"{number} → {after.get(name)}" for name, number in before.items() if after.get(name) != number}


def _uv(*arguments: str) -> str:
    command = [UV, "--quiet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_outside()).stdout


def _outside() -> dict[str, str]:
    """Return this process's environment without PYTHONPATH, on which a clone looks like an installation."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def main(extras: Sequence[str] = EXTRAS) -> None:
    """Print the two tables."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        wheel = built(folder / "dist")
        print("| extra | packages | MB |\n|---|---|---|")
        for extra in extras:
            environment = Environment.made(folder / (extra or "core"), requirement(wheel, extra))
            print(f"| {extra or 'none'} | {len(environment.versions)} | {environment.megabytes:,.0f} |", flush=True)
        platform = Environment.made(folder / "platform", *PLATFORM)
        before = platform.versions
        platform.pip_install(requirement(wheel, "train"))
        after = platform.versions
        print("\n| package | before | after |\n|---|---|---|")
        for name in ("pyspark", "mlflow", "tensorflow", "protobuf", "numpy", "pandas"):
            print(f"| {name} | {before[name]} | {after[name]} |")
        print(f"\n{len(before)} packages, {len(after) - len(before)} new, changed: {changed(before, after) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:] or EXTRAS)
