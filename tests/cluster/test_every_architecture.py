"""Every architecture is scored alike by Spark, in SQL, from files, online and through MLflow (F14, S15, #23)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.data_pipelines.features.raw_columns import raw_inputs
from mirrorspark.models import catalog
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.model import mirrorspark_pyfunc
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.sql import register_sql
from mirrorspark.serving.precomputed.precomputation import precompute
from mirrorspark.serving.precomputed.store import PrecomputedScores
from tests.processes.serving.served import ask, serving
from tests.unit.models import test_every_architecture as contract
from tests.unit.models.test_every_architecture import RECOMMENDER_OPTIONS, ROWS, WITH_ITEMS, Trained

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(600)

comment = contract.comment
# One of rows, and one with vectors and items, are in every run of the tests.
FAMILIES = ("multi_class", "two_tower" + WITH_ITEMS)
OTHERS = sorted({*catalog.ARCHITECTURES, *RECOMMENDER_OPTIONS} - {contract.name_of(case) for case in FAMILIES})


def by_mlflow(folder: Path, saved: Path, trained: Trained) -> Any:
    """Return the model's scores in MLflow's own form."""
    code = [str(mirrorspark_pyfunc.__file__)]
    mlflow.pyfunc.save_model(
        saved, loader_module="mirrorspark_pyfunc", data_path=str(folder), code_paths=code, pip_requirements=[]
    )
    return mlflow.pyfunc.load_model(str(saved)).predict(raw_inputs(ROWS, trained.fitted.spec).to_pandas())


def by_server(folders: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the answers of one server of all models, by case: JSON has times as numbers, sparse vectors as objects."""
    times = ROWS["viewed_at"].cast(pa.list_(pa.int64()))
    rows = ROWS.set_column(ROWS.column_names.index("viewed_at"), "viewed_at", times).to_pylist()
    for row in rows:
        row["basket"] = None if row["basket"] is None else dict(row["basket"])
    # NaN is a missing value, as null is.
    rows[2]["picture"][0] = None
    with serving(*(f"--model={folder}" for folder in folders.values())) as (port, _):
        answers = {
            case: ask(port, "POST", f"/v1/models/{folder.name}:predict", {"instances": rows})
            for case, folder in folders.items()
        }
    found = {}
    for case, (status, answer, _) in answers.items():
        assert status == 200, answer
        (name, *others) = ModelDirectory.open(folders[case]).description.outputs
        # The protocol leaves out the name of an only output.
        found[case] = answer["predictions"] if others else [{name: values} for values in answer["predictions"]]
    return found


@pytest.mark.parametrize("cases", [FAMILIES, pytest.param(OTHERS, marks=pytest.mark.full)], ids=["families", "others"])
def test_spark_sql_files_look_up_servers_and_mlflow_give_the_scores_of_the_trained_model(
    cases: tuple[str, ...], spark: "SparkSession", comment: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(ROWS, file)
    table = spark.read.parquet(str(file))
    trained, folders = {}, {}
    for place, case in enumerate(cases):
        if case in RECOMMENDER_OPTIONS:
            trained[case] = contract.recommender(case, comment)
        else:
            (tmp_path / f"training-{place}").mkdir()
            trained[case] = contract.train(case, comment, tmp_path / f"training-{place}")
        folders[case] = contract.exported(trained[case], tmp_path / f"model-{place}")
        register_sql(spark, f"score_{place}", folders[case])
    functions = [f"score_{place}(struct(*)) AS s{place}" for place in range(len(cases))]
    of_sql = table.selectExpr("order_id", *functions).orderBy("order_id").collect()
    served = by_server(folders)
    for place, case in enumerate(cases):
        folder, output, store = folders[case], tmp_path / f"scores-{place}", tmp_path / f"store-{place}.db"
        score_files(spark, file, folder, output, keys="order_id")
        precompute(str(output), store, key="order_id")
        with PrecomputedScores.open(store) as scores:
            found = [scores.get(key) or {} for key in ROWS["order_id"].to_pylist()]
        by_spark = score(table, folder, keys="order_id", outputs="columns")
        ways = {
            "server": served[case],
            "look-up": found,
            "SQL": [row[f"s{place}"].asDict() for row in of_sql],
            "Spark": [row.asDict() for row in by_spark.orderBy("order_id").collect()],
            "files": pq.read_table(output).sort_by("order_id").to_pylist(),
            "MLflow": by_mlflow(folder, tmp_path / f"mlflow-{place}", trained[case]).to_dict("records"),
        }
        columns = {way: {name: [row[name] for row in rows] for name in rows[0]} for way, rows in ways.items()}
        contract.assert_all_agree(trained[case], columns)
