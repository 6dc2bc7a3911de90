#!/bin/sh
# Run the core of the tests in environments with other versions: all of tools/matrix, or those that are named. An
# environment is made once, in .matrix, from the constraints of its file, whose first line names the Python.
set -eu
cd "$(dirname "$0")/.."
JAVA_HOME="$(tools/java.sh)"
export JAVA_HOME
# Data path, the main job with a kill, scoring in all ways, Spark Connect, MLflow's registry and loader, and a notebook in
# a user's run on an MLflow server.
core="tests/cluster/test_tfrecord_source.py tests/cluster/test_main_job.py tests/cluster/test_scoring.py
tests/cluster/test_score_files.py tests/cluster/test_missing_values.py tests/cluster/test_connect.py
tests/unit/scoring/test_mlflow_model.py
tests/cluster/test_quickstart_notebook.py::test_in_a_users_run_a_table_of_the_catalog_gets_a_model_in_sql_and_a_table_of_scores[classic]"

if [ $# -eq 0 ]; then
    for file in tools/matrix/*.txt; do set -- "$@" "$(basename "$file" .txt)"; done
fi
for name in "$@"; do
    file=tools/matrix/$name.txt
    environment=.matrix/$name
    python=$(sed -n '1s/^# python //p' "$file")
    if [ ! "$environment/made" -nt "$file" ] || [ ! "$environment/made" -nt setup.cfg ]; then
        .venv/bin/uv venv --quiet --clear --python "$python" "$environment"
        sed -n 's/^# override //p' "$file" >"$environment/overrides"
        .venv/bin/uv pip install --quiet --python "$environment/bin/python" --constraint "$file" \
            --override "$environment/overrides" --editable ".[train,keras,fleet,serve,local,demo,notebook,dev]"
        touch "$environment/made"
    fi
    echo "$name: $("$environment/bin/python" -c "
from importlib.metadata import version
print('Python $python,', ', '.join(f'{one} {version(one)}' for one in ('pyspark', 'mlflow', 'tensorflow', 'numpy', 'pandas')))")"
    # Warnings of other versions than the locked ones are no errors.
    "$environment/bin/python" -m pytest --quiet --override-ini filterwarnings=ignore --dist loadfile -n 2 $core
done
