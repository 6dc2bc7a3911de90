"""Runs the commands, with secrets in what they are given and in what fails: they succeed, fail, and look things up.

Usage: secretive_commands.py OUTPUT INPUTS

INPUTS has ``secrets.txt``, the recipes ``good`` and ``failing`` with their ``data``, and ``hooks.py``. The environment
has the secrets of the test, the address of the tracking server, and that of the checkpoints.
"""

import base64
import os
import sys
import traceback
from pathlib import Path

from mirrorspark.__main__ import main as mirrorspark
from mirrorspark.data_pipelines.spark.tasks import WriteError
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.package import package_model
from mirrorspark.serving.precomputed.precomputation import precompute
from mirrorspark.spark_session.start import open_session
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.entry_points.launch import run_train_fn
from tests.cluster.programs.secretive_training import secretive
from tests.unit.storage.secret_forms import in_one_line

COMMON = ("--experiment=planted", "--epochs=1")


def sql_text(text: str) -> str:
    """Return a text as an expression of SQL that holds it in another form."""
    return f"decode(unbase64('{base64.b64encode(text.encode()).decode()}'), 'utf-8')"


def command(*arguments: str) -> None:
    """Run a command, and show how it ended."""
    print(f"status {mirrorspark(arguments)} of {arguments[0]}", flush=True)


def main(output: str, inputs: str) -> None:
    secrets = (Path(inputs) / "secrets.txt").read_text(encoding="utf-8")
    tracking = os.environ["RIDES_TRACKING"]
    spark = open_session("local[2]", 2)
    places = (f"--data={inputs}/data", f"--output={output}", f"--tracking-uri={tracking}", *COMMON)
    told = f"--description={secrets}"
    good, failing = (f"--recipe={inputs}/{name}" for name in ("good", "failing"))
    checkpoints = f"--checkpoints={os.environ['RIDES_CHECKPOINTS']}"

    command("train", good, *places, told, checkpoints, "--workers=2", "--verbose", f"--summary={output}/summary.json")
    command("train", failing, *places, told, "--verbose", f"--summary={output}/failed.json")
    command("train", good, *places, told, "--dry-run")
    search = ("--trials=2", "--search=learning_rate=choice:0.05,1e30", "--sampler=grid", "--study=planted")
    command("sweep", good, *places, told, *search, f"--summary={output}/sweep.json")
    command("runs", "list", "--output", output, "--json")
    command("runs", "compare", "--output", output, "latest", "latest")
    command("doctor", f"--output={output}", f"--tracking-uri={tracking}")

    database = os.environ["RIDES_DATABASE"]
    kwargs = {"database": database, "secrets": secrets, "arguments": str(Path(output) / "arguments.txt")}
    knobs = {"output": output, "tracking_uri": tracking, "strategy": "ring", "spark": spark, "verbose": True}
    try:
        run_train_fn(secretive(), name="function", kwargs=kwargs, **knobs)
    except TrainingFailedError:
        traceback.print_exc()

    model = package_model({"coefficients": {"age": 1.0}, "intercept": 0.0, "link": "logit"}, Path(output) / "linear")
    hooked = package_model(
        {"coefficients": {"age": 1.0}, "intercept": 0.0, "link": "logit"},
        Path(inputs) / "hooked",
        columns=[Column("age", "float")],
        hooks=Path(inputs) / "hooks.py",
    )
    rows = spark.read.csv(
        f"{inputs}/data/people.csv", header=True, schema="id int, age double, city string, bought int"
    )
    rows.write.parquet(f"{output}/rows")
    try:
        precompute(
            rows.selectExpr("id", f"raise_error({sql_text(in_one_line())}) AS age"), f"{output}/none.db", key="id"
        )
    except WriteError as error:  # its cause is Spark's own error, which quotes the plan
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    files = ("--input", f"{output}/rows", "--keys", "id", "--tracking-uri", tracking)
    # Each ends the session.
    command("score", *files, "--model", str(hooked), "--output", f"{output}/unscored")
    command("score", *files, "--model", "models:/none/1", "--output", f"{output}/unscored")
    command("score", *files, "--model", "models:/good@challenger", "--output", f"{output}/scores", "--json")
    command("score", *files, "--model", str(model), "--output", f"{output}/linear-scores")
    precompute(f"{output}/scores", f"{output}/scores.db", key="id")


if __name__ == "__main__":
    main(*sys.argv[1:])
