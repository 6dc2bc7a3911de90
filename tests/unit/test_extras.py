"""Packages of an extra that is not installed are named, with the line that installs them."""

import configparser
import pickle
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mirrorspark import extras
from mirrorspark.distributions import distribution_of, library_version
from mirrorspark.extras import EXTRAS, MissingPackageError, install_line, missing, needed
from mirrorspark.lazy import lazy_exports

SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"


def test_each_package_of_an_extra_of_ours_is_named_with_it() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(SETUP)
    lists = dict(setup["options.extras_require"])
    names = {module: {canonicalize_name(one) for one in of} for module, of in packages_distributions().items()}
    declared = {
        (canonicalize_name(Requirement(line).name), extra)
        for extra, text in lists.items()
        for line in filter(None, text.splitlines())
    }
    assert [one for one, extra in EXTRAS.items() if not declared & {(name, extra) for name in names[one]}] == []
    brought = {name for name, extra in declared if extra in EXTRAS.values()} - {"mirrorspark"}
    assert brought <= {name for module in EXTRAS for name in names[module]}
    assert set(lists) - {"dev", "notebook", "all"} == set(EXTRAS.values())


def test_a_package_that_is_missing_is_named_with_what_needs_it_and_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_recommenders", None)
    monkeypatch.delitem(sys.modules, "tensorflow_recommenders.tasks", raising=False)
    with pytest.raises(MissingPackageError) as raised:
        needed("tensorflow_recommenders.tasks", "a model of TFRS")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - our own pickle
    assert str(raised.value) == (
        f"a model of TFRS needs the package tensorflow_recommenders, which {sys.executable} does not have; "
        f'run: pip install "mirrorspark[recommend]"'
    )
    assert needed("json", "this").dumps([1]) == "[1]"
    assert install_line("any.other") == 'pip install "mirrorspark[all]"'


@pytest.mark.parametrize(
    ("tensorflow", "line"),
    [("2.19.1", 'pip install "tf-keras==2.19.*"'), (None, 'pip install "mirrorspark[keras]"')],
)
def test_the_keras_of_the_installed_tensorflow_is_named(
    monkeypatch: pytest.MonkeyPatch, tensorflow: str | None, line: str
) -> None:
    def version(package: str) -> str:
        if tensorflow is None:
            raise PackageNotFoundError(package)
        return tensorflow

    monkeypatch.setattr(extras, "library_version", version)
    assert install_line("tf_keras.layers") == line


@pytest.mark.parametrize("distribution", ["tensorflow-cpu", "tf-nightly", "acme-tensorflow"])
def test_another_build_of_tensorflow_counts_as_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str
) -> None:
    """#53: tf-keras requires ``tensorflow``, which pip would install over that build."""
    for name, module in ((distribution, "tensorflow"), ("tensorflow-io", "tensorflow_io")):
        folder = tmp_path / f"{name.replace('-', '_')}-2.20.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.20.1\n")
        (folder / "RECORD").write_text(f"{module}/include/a.h,,\n{module}/__init__.py,sha256=0,1\n")
    own = tmp_path / "mirrorspark-0.1.0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mirrorspark\nVersion: 0.1.0\n"
        + "".join(f"Requires-Dist: {line}\n" for line in requires("mirrorspark") or ())
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert distribution_of("tensorflow") == distribution
    assert library_version("tensorflow") == "2.20.1"
    assert install_line("tf_keras") == 'pip install --no-deps "tf-keras==2.20.*"'
    training = install_line("optuna.study")
    assert training.startswith("pip install ")
    assert {'"optuna<6,>=5"', '"numba>=0.61"'} <= set(training.split())
    assert "mirrorspark" not in training
    assert '"tensorflow' not in training
    recommending = install_line("tensorflow_recommenders")
    assert recommending.endswith(' && pip install --no-deps "tf-keras==2.20.*" "tensorflow-recommenders==0.7.7"')
    assert '"tensorflow<' not in recommending
    assert install_line("numba") == 'pip install "mirrorspark[data]"'
    for absent in ("tf-keras", "scann"):
        with pytest.raises(PackageNotFoundError):
            library_version(absent)


def test_the_packages_that_bring_tensorflow_are_installed_without_what_they_require() -> None:
    """#53: their metadata name it, directly or through others."""

    def brought(package: str) -> set[str]:
        found, left = set(), [package]
        while left:
            with suppress(PackageNotFoundError):
                for one in map(Requirement, requires(left.pop()) or ()):
                    name = canonicalize_name(one.name)
                    if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
                        found.add(name)
                        left.append(name)
        return found

    packages = set(extras._packages_of("all")) - {"tensorflow"}
    assert {name for name in packages if "tensorflow" in brought(name)} == set(extras._NEED_TENSORFLOW)


@pytest.mark.parametrize("name", ["numpy.no_such_module", "no_such_module", None])
def test_the_error_of_another_import_stays_as_it_is(name: str | None) -> None:
    assert missing(ImportError("no", name=name), "this") is None


def test_a_lazy_name_whose_module_needs_an_extra_is_what_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "outermost"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from outermost.inner import trained\n"
    )
    (package / "inner.py").write_text("import optuna\ntrained = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    __import__("outermost")
    try:
        get, _ = lazy_exports("outermost")
        with pytest.raises(
            MissingPackageError, match=r'outermost\.trained needs .*run: pip install "mirrorspark\[train]'
        ):
            get("trained")
    finally:
        sys.modules.pop("outermost")
