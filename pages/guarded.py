"""Pages and pictures that accompany a result: a failure is logged, and the result stays complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Picture = TypeVar("Picture")

_LOGGER = logging.getLogger(__name__)


@contextmanager
def beside_the_result(what: str) -> Iterator[None]:
    """Log a failure of the block as a warning with its reason, and go on after the block.

    Only for optional parts of a result: its page, its pictures. Drawing libraries raise errors of any kind, and the
    result may have taken hours of training.

    Args:
        what: The page or picture, such as ``report.html``.
    """
    try:
        yield
    except Exception as error:
        _LOGGER.warning("%s is missing: %s. The result is complete without it", what, reason_of(error))
        _LOGGER.debug("%s is missing", what, exc_info=error)


def drawn(pictures: Mapping[str, Callable[[], Picture]]) -> dict[str, Picture]:
    """Return pictures or pages by name; those that fail are left out and logged as warnings."""
    found = {}
    for name, draw in pictures.items():
        with beside_the_result(f"'{name}'"):
            found[name] = draw()
    return found


def reason_of(error: Exception) -> str:
    """Return the kind of an error and the first line of its message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
