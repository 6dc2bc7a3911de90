"""Each call of the API over Spark Connect, in a client without a JVM: the same results as on a classic session."""

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.scoring.package import package_model
from tests.cluster.programs import connect_calls
from tests.cluster.programs.connect_calls import CONTRACTS, Inputs
from tests.conftest import PATIENCE
from tests.unit.scoring.encoders import save_onnx_encoder
from tests.unit.scoring.exported_models import FLIGHTS, export_flights, export_movies

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = 3_000

pytestmark = pytest.mark.timeout(300)


def write_inputs(folder: Path) -> Path:
    """Write what all calls read."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "region": random.choice(["north", "south", "east"], ROWS),
            "x": random.normal(size=ROWS),
            "y": random.normal(size=ROWS),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 100 * 86_400, ROWS), unit="s"),
        }
    )
    frame["late"] = (frame.x + random.normal(size=ROWS) > 0).astype("int64")
    (folder / "rows").mkdir(parents=True)
    for number, part in enumerate((frame[: ROWS // 2], frame[ROWS // 2 :])):
        part.to_parquet(folder / "rows" / f"{number}.parquet", index=False, coerce_timestamps="us")
    frame.drop(columns="when").to_csv(folder / "rows.csv", index=False)
    package_model({"coefficients": {"x": 1.5, "y": -0.25}, "intercept": 0.1, "link": "logit"}, folder / "one")
    package_model({"coefficients": {"x": -1.0, "y": 2.0}, "link": "logit"}, folder / "two")
    return folder


def write_trained_models(folder: Path) -> None:
    """Write models of TensorFlow, and an encoder."""
    pq.write_table(FLIGHTS, folder / "flights.parquet")
    export_flights(folder / "flights", 1)
    export_movies(folder / "movies", scann=False)
    save_onnx_encoder(folder / "encoder" / "model.onnx")


@pytest.fixture(scope="module")
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs") / "given")
    if {"trained_model", "recommend", "embed_text"} & asked(request):
        write_trained_models(folder)
    return folder


def asked(request: pytest.FixtureRequest) -> set[str]:
    """Return the calls that are tested."""
    return {item.callspec.params["name"] for item in request.session.items if "name" in item.fixturenames}


@pytest.fixture(scope="module")
def over_connect(
    request: pytest.FixtureRequest, connect_url: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """Return the outcome of each call that is tested, by one client for all of them."""
    output = tmp_path_factory.mktemp("over connect")
    program = [sys.executable, "-m", connect_calls.__name__, connect_url, str(inputs), str(output)]
    names = [name for name in CONTRACTS if name in asked(request)]
    # The client has no Java.
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": "/usr/bin:/bin"}
    subprocess.run([*program, *names], check=True, cwd=REPOSITORY, env=environment, timeout=PATIENCE * 280)
    outcomes: Mapping[str, Any] = pickle.loads((output / "outcomes.pickle").read_bytes())  # noqa: S301 - our own
    return outcomes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if one.is_small else pytest.mark.full) for name, one in CONTRACTS.items()]
)
def test_a_call_over_connect_has_the_result_of_a_classic_session(
    name: str, spark: "SparkSession", over_connect: Mapping[str, Any], inputs: Path, tmp_path: Path
) -> None:
    has_result, found = over_connect[name]
    assert has_result, found

    expected = CONTRACTS[name].run(spark, Inputs(inputs, tmp_path))
    for one, other in zip(as_parts(found), as_parts(expected), strict=True):
        assert_equal(one, other)


def as_parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_equal(found: Any, expected: Any) -> None:
    """Check that two results are the same to the bit."""
    if isinstance(expected, pd.DataFrame):
        found, expected = (pa.Table.from_pandas(table).replace_schema_metadata() for table in (found, expected))
    if isinstance(expected, pa.Table):
        assert found.schema == expected.schema
        assert found.num_rows == expected.num_rows > 0 or found.num_rows == 0
    assert found == expected
