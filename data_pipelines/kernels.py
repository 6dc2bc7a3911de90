"""Compilation of numba kernels, and the types that most of them take.

Numba takes 90 MB of a process and a second of its start. A module that a process may import without using its kernels,
as a scoring process without tokens does with the vocabularies, keeps them in a module of their own and imports that
where it calls them.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_LOGGER = logging.getLogger(__name__)

READ_ONLY_BYTES = numba.types.Array(numba.types.uint8, 1, "C", readonly=True)
"""Numba's type of a contiguous byte array that a kernel only reads; a writable array converts to it."""


def compile_kernel(signature: Any) -> Callable[[_Kernel], _Kernel]:
    """Return a decorator that compiles a function for ``signature``, to run without the GIL, and caches it on disk.

    Numba looks for a writable cache folder: ``NUMBA_CACHE_DIR``, ``__pycache__`` next to the source, the user's cache
    folder. If there is none (a read-only installation run by a user without a home), or writing there fails, each
    process compiles the function again, and the log says so. Numba compiles a kernel again when its own file changes,
    but not when a file changes whose kernels it calls; ``tools/caches.sh`` therefore clears the cache when a file of
    inner kernels changes.

    Args:
        signature: the one numba signature to compile for.
    """

    def decorate(function: _Kernel) -> _Kernel:
        try:
            compiled: _Kernel = numba.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError) as error:
            _LOGGER.warning(
                "kernel %s is compiled anew in each process: %s; set NUMBA_CACHE_DIR to a writable folder that only "
                "trusted users can write to",
                function.__qualname__,
                error,
            )
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return decorate


def compile_inner_kernel(function: _Kernel) -> _Kernel:
    """Mark a function that kernels call: it is compiled as part of each of them."""
    compiled: Any = numba.njit(nogil=True)(function)
    return cast(_Kernel, compiled)
