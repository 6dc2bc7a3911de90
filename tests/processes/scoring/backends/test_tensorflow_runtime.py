"""S10: TensorFlow has the threads of the task in a task, and its own choice in a process that somebody else may use."""

import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mirrorspark.scoring.backends.tensorflow_runtime import INTER_OP, INTRA_OP, limit_tensorflow
from tests.conftest import PATIENCE
from tests.unit.scoring.exported_models import export_baskets

_LIMITED = """
import os, sys
from pathlib import Path
import psutil
from mirrorspark.scoring.backends.tensorflow_runtime import INTER_OP, INTRA_OP, limit_tensorflow
from mirrorspark.scoring.model.loading.loaded import LoadedModel
assert "tensorflow" not in sys.modules
threads = int(sys.argv[2])
limit_tensorflow(threads)
before = psutil.Process().num_threads()
model = LoadedModel(Path(sys.argv[1]), threads=threads)
print(model.threads, os.environ[INTRA_OP], os.environ[INTER_OP], psutil.Process().num_threads() - before)
tf = sys.modules["tensorflow"]
print(tf.config.get_visible_devices("GPU"), tf.config.experimental.tensor_float_32_execution_enabled())
print(dict(model._backend.graph._session._config.device_count))
"""

_RUNS_ALREADY = """
import logging, sys
import tensorflow as tf
from mirrorspark.scoring.backends.tensorflow_runtime import limit_tensorflow
logging.getLogger("mirrorspark.scoring").addHandler(logging.StreamHandler(sys.stdout))
tf.config.threading.set_intra_op_parallelism_threads(4)
tf.constant(1) + 1
for threads in (4, 1, 1):
    limit_tensorflow(threads)
"""

_PREDICTOR_STARTS_IT = """
import os, sys
from mirrorspark.scoring.predictor import Predictor
from tests.unit.scoring.exported_models import FLIGHTS
predictor = Predictor(sys.argv[1])
predictor.predict(FLIGHTS.to_pylist()[0])
print([name for name in os.environ if name.startswith("TF_NUM_")])
print(predictor._model.threads == len(os.sched_getaffinity(0)))
config = predictor._model._backend.graph._session._config
print(config.intra_op_parallelism_threads == predictor._model.threads, config.inter_op_parallelism_threads)
"""

_PREDICTOR_BESIDE_IT = """
import sys
import tensorflow as tf
from mirrorspark.scoring.predictor import Predictor
tf.config.threading.set_intra_op_parallelism_threads(99)
predictor = Predictor(sys.argv[1])
print(predictor._model.threads, predictor._model._backend.graph._session._config.intra_op_parallelism_threads)
"""

_SCORES_LISTS = """
import sys
from pathlib import Path
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from tests.unit.scoring.exported_models import BASKETS
LoadedModel(Path(sys.argv[1])).score_arrow(BASKETS)
print([name for name in ("numba", "keras", "tf_keras") if name in sys.modules])
"""

_PRINTS_AS_A_NOTEBOOK_DOES = """
import os, sys
from pathlib import Path
os.dup2(1, 2)
sys.ps1 = "In [1]: "  # TensorFlow then logs to standard output, notes included.
import mirrorspark as ms
ms.MLflowLogger  # imports TensorFlow
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from tests.unit.scoring.exported_models import BASKETS
LoadedModel(Path(sys.argv[1])).score_arrow(BASKETS)
"""

_SCORES_A_SAVED_MODEL_OF_KERAS = """
import sys
import numpy as np
from mirrorspark.scoring.backends.tensorflow_runtime import start_tensorflow
tf = start_tensorflow()
print("tf_keras" in sys.modules)
print(tf.saved_model.load(sys.argv[1]).signatures["serving_default"](tf.ones([1, 2]))["y"].numpy().tolist())
import tf_keras
print(tf_keras.models.load_model(sys.argv[1]).predict(np.ones([1, 2]), verbose=0).tolist())
print(tf.keras.optimizers.Adam.__name__)
"""


def lines_of(program: str, *arguments: object) -> list[str]:
    """Return the lines that a process of its own prints; its environment has no settings of TensorFlow's threads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_that_scores_without_tokens_has_neither_keras_nor_numba(tmp_path: Path) -> None:
    """S3, S8: they would take 200 MB, a third of what its libraries take."""
    assert lines_of(_SCORES_LISTS, export_baskets(tmp_path)) == ["[]"]


def test_a_cell_of_a_notebook_has_no_line_of_tensorflow(tmp_path: Path) -> None:
    assert lines_of(_PRINTS_AS_A_NOTEBOOK_DOES, export_baskets(tmp_path)) == []


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["Adam", "legacy.Adam", "legacy.SGD"])
def test_keras_comes_with_a_model_that_needs_it(tmp_path: Path, optimizer: str) -> None:
    """Such a model holds its optimizer, and one of the legacy kind the slots of its variables, too."""
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Input(2, name="x"), tf_keras.layers.Dense(1, name="y")])
    model.compile(operator.attrgetter(optimizer)(tf_keras.optimizers)(), "mse")
    model.fit(np.ones([4, 2]), np.ones(4), verbose=0)
    model.save(tmp_path / "model", save_format="tf")
    expected = model.predict(np.ones([1, 2]), verbose=0).tolist()

    before, of_saved_model, of_keras, name = lines_of(_SCORES_A_SAVED_MODEL_OF_KERAS, tmp_path / "model")
    assert before == "False"
    assert [json.loads(of_saved_model), json.loads(of_keras)] == [expected] * 2
    assert name == "Adam"


def test_tensorflow_starts_with_the_threads_that_it_is_limited_to(flights_model: Path) -> None:
    """The settings are exact; the number of threads is TensorFlow's choice, but more start for nine than for one."""
    (few, *devices), (many, *_) = (lines_of(_LIMITED, flights_model, threads) for threads in (1, 9))
    *of_few, started_by_few = map(int, few.split())
    *of_many, started_by_many = map(int, many.split())
    assert (of_few, of_many) == ([1] * 3, [9] * 3)
    assert started_by_many > started_by_few
    # No GPU, whatever the machine has, and no TF32.
    assert devices == ["[] False", "{'GPU': 0}"]


@pytest.mark.full
def test_tensorflow_that_runs_already_with_more_threads_is_told_once() -> None:
    (line,) = lines_of(_RUNS_ALREADY)
    assert line.startswith("TensorFlow computes with 4 threads here, more than the task's cores (1): ")
    assert "spark.executorEnv.TF_NUM_INTRAOP_THREADS=1 and spark.executorEnv.TF_NUM_INTEROP_THREADS=1" in line


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setenv(INTRA_OP, "4")
    monkeypatch.delenv(INTER_OP)
    limit_tensorflow(2)
    assert (os.environ[INTRA_OP], os.environ[INTER_OP]) == ("4", "2")


@pytest.mark.full
def test_a_predictor_leaves_the_process_its_threads_and_computes_in_the_one_that_calls(flights_model: Path) -> None:
    told, is_its_own_choice, config = lines_of(_PREDICTOR_STARTS_IT, flights_model)
    assert (told, is_its_own_choice) == ("[]", "True")
    # With -1 threads between operations, a session runs them in the thread that calls.
    assert config == "True -1"


@pytest.mark.full
def test_a_predictor_starts_tensorflow_with_the_threads_that_its_process_has_asked_for(flights_model: Path) -> None:
    """The first session of a process starts the threads of all."""
    assert lines_of(_PREDICTOR_BESIDE_IT, flights_model) == ["99 99"]
