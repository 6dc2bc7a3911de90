"""Kernels are compiled once, and work where nothing can be kept."""

import logging

import numba
import numpy as np
import numpy.typing as npt
import pytest

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_kernel


def test_a_kernel_takes_writable_and_read_only_arrays() -> None:
    @compile_kernel(numba.types.int64(READ_ONLY_BYTES))
    def count_of_bytes(content: npt.NDArray[np.uint8]) -> int:
        return content.size

    assert count_of_bytes(np.zeros(3, np.uint8)) == count_of_bytes(np.frombuffer(b"abc", np.uint8)) == 3


def test_kernel_works_without_a_cache_folder_and_the_log_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    def first_byte(content: npt.NDArray[np.uint8]) -> int:
        return content[0]

    # Numba finds no folder for a function whose source file does not exist.
    first_byte.__code__ = first_byte.__code__.replace(co_filename="/nowhere/kernel.py")
    with caplog.at_level(logging.WARNING):
        kernel = compile_kernel(numba.types.int64(READ_ONLY_BYTES))(first_byte)
    assert kernel(np.array([7], np.uint8)) == 7
    assert "set NUMBA_CACHE_DIR to a writable folder" in caplog.text
