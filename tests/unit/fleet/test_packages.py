"""M17: a model that a fleet cannot compute itself is packed into it, and computed by its own library."""

import io
import shutil
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mirrorspark.fleet import packages
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.imports.packaged import fleet_from_models
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.packages import PackagedModelError, check_trust, packages_of
from mirrorspark.fleet.runs.failures import CheckedFleet
from mirrorspark.fleet.scorer import FleetScorer, bytes_of_models
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.model.stored.consent import UntrustedModelError
from mirrorspark.scoring.package import package_model
from mirrorspark.scoring.task import Scorer
from tests.unit.scoring.exported_models import FLIGHTS, export_flights
from tests.unit.scoring.other_models import NAMES, boxes, logistic, people, save_logistic_onnx, save_sklearn

pytestmark = pytest.mark.filterwarnings("ignore:.*pickle:UserWarning")

ROWS = 20
TABLE = pa.Table.from_pandas(people())
for name in NAMES:
    TABLE = TABLE.append_column(name, boxes(ROWS, missing=0.3)[name])
TAKEN = FLIGHTS.take(np.arange(ROWS) % FLIGHTS.num_rows)
for name in ("carrier", "hour", "stops", "distance"):
    TABLE = TABLE.append_column(name, TAKEN[name])
CUTS, THRESHOLD = [0.2, 0.5, 0.8], 0.5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_sklearn(folder / "pipeline")
    return {
        "late": export_flights(folder / "late", seed=3),
        "box": package_model(save_logistic_onnx(folder / "m.onnx"), folder / "box", columns=NAMES),
        "pipeline": folder / "pipeline",
    }


@pytest.fixture(scope="module")
def fleet(folders: dict[str, Path]) -> Fleet:
    """Return three packages around a linear model that reads a column of one of them."""
    given = {"thresholds": {"box": THRESHOLD}, "cut_points": {"box": CUTS}}
    others = fleet_from_models(folders, **given)
    linear = fleet_from_coefficients(pa.table({"model": ["linear"], "column": ["height"], "coefficient": [2.0]}))
    return others.with_models(linear).select(["late", "linear", "box", "pipeline"])


def scored(fleet: Fleet, *outputs: str) -> pa.RecordBatch:
    scorer = FleetScorer(fleet, Layout.of(fleet, "wide", outputs))
    rows = TABLE.combine_chunks().to_batches()[0]
    scorer.check(rows.schema)
    ((batch, nulls),) = scorer.batches(rows, [])
    assert nulls == sum(batch.column(f"{name}_score").null_count for name in fleet.names)
    assert (scorer.seconds > 0).all()
    return batch


def test_packages_give_what_their_models_give_beside_models_that_the_fleet_computes(
    fleet: Fleet, folders: dict[str, Path]
) -> None:
    """M3, M17: also for rows that they cannot score, with thresholds and cut-points."""
    found = scored(fleet, "score", "binary", "Rank")
    for name in ("late", "pipeline"):
        (expected,) = LoadedModel(folders[name]).score_arrow(TABLE.combine_chunks().to_batches()[0]).values()
        np.testing.assert_array_equal(found.column(f"{name}_score"), expected.cast(pa.float32()))
    height = TABLE["height"].to_numpy()
    np.testing.assert_allclose(found.column("linear_score").to_numpy(zero_copy_only=False), 2 * height, rtol=1e-6)
    # ONNX takes NaN, and gives NaN; a null is a row that it does not take.
    expected = logistic(TABLE)
    is_known = ~np.isnan(expected)
    assert 0 < is_known.sum() < ROWS
    own = found.column("box_score")
    assert (own.is_valid().to_numpy(zero_copy_only=False) == is_known).all()
    np.testing.assert_allclose(own.to_numpy(zero_copy_only=False)[is_known], expected[is_known], rtol=1e-6)
    binary, rank = (found.column(f"box_{of}").to_numpy(zero_copy_only=False)[is_known] for of in ("binary", "Rank"))
    np.testing.assert_array_equal(binary, expected[is_known] >= THRESHOLD)
    np.testing.assert_array_equal(rank, len(CUTS) + 1 - np.searchsorted(CUTS, expected[is_known], side="right"))


def test_a_fleet_with_packages_is_saved_and_replaced_model_by_model(
    fleet: Fleet, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert fleet.save(tmp_path / "fleet") == 4
    loaded = Fleet.load(tmp_path / "fleet")
    assert loaded.digests == fleet.digests
    assert loaded.columns == fleet.columns
    assert scored(loaded, "score") == scored(fleet, "score")
    touched = tmp_path / "touched"
    shutil.copytree(folders["pipeline"], touched)
    (touched / "__pycache__").mkdir()
    (touched / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"cache")
    again = fleet_from_models({**folders, "pipeline": touched})
    assert again.digests[2] == fleet.digests[3], "the same files have the same digest"
    other = fleet_from_models({"pipeline": folders["box"]})
    assert loaded.with_models(other).save(tmp_path / "fleet") == 1
    # A former version of this library reads fleets without packages.
    fleet.select(["linear"]).save(tmp_path / "plain")
    versions = [
        pa.ipc.open_file(tmp_path / name / "fleet.arrow").schema.metadata[b"mirrorspark_fleet"]
        for name in ("fleet", "plain")
    ]
    assert versions == [b"3", b"1"]
    assert bytes_of_models(fleet)[0] > bytes_of_models(fleet)[1]


def test_code_that_a_model_brings_needs_consent(fleet: Fleet) -> None:
    """S12."""
    with pytest.raises(UntrustedModelError, match="model 'pipeline' of the fleet brings Python code"):
        check_trust(fleet, trust=False)
    check_trust(fleet, trust=True)
    check_trust(fleet.without(["pipeline"]), trust=False)


def test_a_package_with_code_is_refused_before_it_is_unpacked(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str] = []
    monkeypatch.setattr(packages, "_unpacked", lambda content, name: unpacked.append(name))

    with pytest.raises(UntrustedModelError, match="model 'pipeline' of the fleet brings Python code"):
        check_trust(fleet.select(["pipeline"]), trust=False)

    assert unpacked == []


def archive(*entries: tuple[str, bytes], packing: int = zipfile.ZIP_STORED, mode: int = 0) -> pa.Buffer:
    sink = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "w", packing) as file:
        warnings.simplefilter("ignore", UserWarning)  # of two files of one name
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            file.writestr(entry, content, packing)
    return pa.py_buffer(sink.getvalue())


@pytest.mark.parametrize(
    ("package", "problem"),
    [
        (archive(("a", b"0" * 20_000_000), packing=zipfile.ZIP_DEFLATED), "has 19 MB in 0.0 MB"),
        (archive(*((f"{number}", b"") for number in range(10_001))), "has 10,001 files, and a model has up to 10,000"),
        (archive(("../outside", b"x")), r"has the entry '../outside', which is a link or leads out"),
        (archive(("/etc/outside", b"x")), "has the entry '/etc/outside', which is a link or leads out"),
        (archive(("a/../../outside", b"x")), "has the entry .*, which is a link or leads out"),
        (archive(("a\\..\\outside", b"x")), "has the entry .*, which is a link or leads out"),
        (archive(("__pycache__/hooks.cpython-311.pyc", b"x")), "has the entry .*, which is a link or leads out"),
        (archive(("n" * 300, b"x")), "has the entry .*, which is a link or leads out"),
        (archive(("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "has the entry 'link', which is a link"),
        (archive(("pipe", b""), mode=stat.S_IFIFO | 0o777), "has the entry 'pipe', which is a link"),
        (archive(("a", b"1"), ("a", b"2")), "has two files of one name"),
        (pa.py_buffer(b"PK no archive"), "are damaged"),
        (pa.py_buffer(b""), "are damaged"),
        (archive(("mirrorspark.json", b"[]")), "is damaged"),
        (archive(("mirrorspark.json", b"{")), "are damaged"),
    ],
)
def test_a_package_that_is_no_model_is_refused_and_leaves_nothing(
    package: pa.Buffer, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(packages, "_scratch", lambda: tmp_path / "scratch")
    model = packages.FleetPackage("m", pa.scalar(package.to_pybytes(), pa.large_binary()), "score")

    with pytest.raises(ModelDirectoryError, match=problem):
        packages._check_described(package, "m")
    if "json" not in package.to_pybytes().decode("latin-1"):
        with pytest.raises(ModelDirectoryError, match=problem):
            _ = model.directory

    assert list((tmp_path / "scratch").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_a_package_with_a_bit_turned_ends_in_an_error_of_ours_or_is_the_same(folders: dict[str, Path]) -> None:
    whole = packages.packed(folders["box"], "box")
    random = np.random.default_rng(50)
    for place in [*random.integers(0, len(whole), 40), *range(len(whole) - 60, len(whole), 5)]:
        turned = bytearray(whole)
        turned[place] ^= 1 << int(random.integers(8))
        try:
            packages._check_described(pa.py_buffer(bytes(turned)), "box")
            _ = packages.FleetPackage("box", pa.scalar(bytes(turned)), "score").directory
        except ModelDirectoryError:
            continue


def test_an_error_of_a_library_that_looks_like_one_of_a_store_is_the_models(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M8: a store that fails is waited for, a model is left out."""

    def fails(*_: Any) -> Any:
        raise OSError("libgomp.so.1: cannot open shared object file")

    (package, *_) = packages_of(fleet)
    monkeypatch.setattr(Scorer, "load", fails)
    with pytest.raises(PackagedModelError, match="OSError: libgomp"):
        package.load()


def test_models_without_a_number_per_row_and_large_ones_are_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sklearn(tmp_path / "lists", outputs="probabilities")
    with pytest.raises(FleetError, match=r"'m' .* has the outputs .*array.*, and a fleet takes one number per row"):
        fleet_from_models({"m": tmp_path / "lists"})
    with pytest.raises(FleetError, match=r"has no number .rank. among its outputs \{.score.: .float.\}"):
        fleet_from_models({"late": folders["late"]}, output="rank")
    monkeypatch.setattr(packages, "MOST_BYTES", 1_000)
    with pytest.raises(FleetError, match=r"model 'late' takes .* MB, and a fleet holds models of up to"):
        fleet_from_models({"late": folders["late"]})


def test_a_package_that_is_damaged_or_lacks_its_columns_fails_alone(fleet: Fleet) -> None:
    """M8."""
    places = [field.name for field in fleet.table.schema]
    content = fleet.table["package"].to_pylist()
    content[2] = content[2][:-30]
    broken = fleet.table.set_column(places.index("package"), "package", pa.array(content, pa.large_binary()))
    columns = TABLE.drop(["visits"]).append_column("visits", pc.cast(TABLE["visits"], pa.string())).schema
    checked = CheckedFleet.of(Fleet.of(broken)).against(columns)
    messages = {failure.model: failure.message for failure in checked.failures}
    assert sorted(messages) == ["box", "pipeline"]
    assert "the files of model 'box' are damaged" in messages["box"]
    assert "'visits'" in messages["pipeline"]
    assert checked.fleet.is_packaged.tolist() == [True, False, False, False]
