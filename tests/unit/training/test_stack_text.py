"""Frames of a hung rank's stacks that reach the terminal."""

import faulthandler
import tempfile
import traceback

import pytest

from mirrorspark.training.run_records.live.stack_text import summarize_stacks

HUNG_INPUT = """\
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 359 in wait
  File "/opt/clone/training/protocol/event_client.py", line 188 in _work
  File "/usr/lib/python3.12/threading.py", line 1032 in _bootstrap

Thread 0x00007f02 (most recent call first):
  File "/home/me/my_input.py", line 41 in read_slowly
  File "/opt/v/lib/python3.12/site-packages/tensorflow/python/data/ops/dataset_ops.py", line 12 in generator_py_func

Current thread 0x00007f03 (most recent call first):
  File "/opt/v/lib/python3.12/site-packages/tensorflow/python/eager/execute.py", line 53 in quick_execute
  File "/opt/v/lib/python3.12/site-packages/tf_keras/src/engine/training.py", line 1804 in fit
  File "/opt/clone/training/programs/keras_fit/fit.py", line 80 in train
  File "/opt/clone/training/executor/worker_process.py", line 20 in <module>
"""


def test_the_main_thread_and_the_users_own_code_are_told() -> None:
    assert summarize_stacks(HUNG_INPUT) == [
        "quick_execute (execute.py:53) < train (fit.py:80)",
        "read_slowly (my_input.py:41)",
    ]


def test_a_hang_in_the_users_code_names_its_line() -> None:
    stacks = """\
Current thread 0x1 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 655 in wait
  File "/home/me/model.py", line 12 in call
  File "/opt/clone/training/executor/worker_process.py", line 20 in <module>
"""
    assert summarize_stacks(stacks) == ["wait (threading.py:655) < call (model.py:12)"]


@pytest.mark.parametrize("file", ["/home/me/training/model.py", "/home/me/training/nets/model.py"])
def test_the_users_own_folder_may_be_called_training(file: str) -> None:
    hung = HUNG_INPUT.replace("/home/me/my_input.py", file)
    assert summarize_stacks(hung)[1] == "read_slowly (model.py:41)"
    assert summarize_stacks(hung.replace("/opt/clone/", "/spark/work/other place/"))[1] == "read_slowly (model.py:41)"


def test_threads_of_this_project_are_omitted_wherever_it_is_installed() -> None:
    hung = HUNG_INPUT.replace("/home/me/my_input.py", "/opt/clone/data_pipelines/quality/splits.py")
    assert len(summarize_stacks(hung, 9)) == 1
    assert len(summarize_stacks(hung.replace("/opt/clone/", "/spark/work/other place/"), 9)) == 1


def test_stacks_of_the_traceback_module_are_read_from_the_other_end() -> None:
    stack = "".join(traceback.format_stack())
    assert summarize_stacks(stack)[0].startswith(
        "test_stacks_of_the_traceback_module_are_read_from_the_other_end (test_st"
    )


def test_a_dump_of_faulthandler_is_parsed() -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        assert "test_a_dump_of_faulthandler_is_parsed (test_stack_text.py:" in "; ".join(
            summarize_stacks(file.read(), 9)
        )


@pytest.mark.parametrize("text", ["", "the process is stopped: no stacks"])
def test_no_stacks_tell_nothing(text: str) -> None:
    assert summarize_stacks(text) == []
