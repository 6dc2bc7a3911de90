"""The known name that an unknown one was probably meant to be."""

import difflib
from collections.abc import Iterable, Sequence

# Least similarity, from 0 to 1: ``batch_size`` suggests ``global_batch_size``.
_LIKENESS = 0.7
# Letters of a beginning, such as that of ``validation``, that one known name alone has.
_LEAST_BEGINNING = 3
# Names that a message lists; of more it says how many.
_LISTED = 5


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that is closest to an unknown one, whatever its case; None if none is near."""
    by_lower, lower = {one.lower(): one for one in known}, name.lower()
    likely = difflib.get_close_matches(lower, by_lower, n=1, cutoff=_LIKENESS)
    if not likely and len(lower) >= _LEAST_BEGINNING:
        begun = [one for one in by_lower if one.startswith(lower)]
        likely = begun if len(begun) == 1 else []
    return by_lower[likely[0]] if likely else None


def meant(name: str, known: Iterable[str]) -> str:
    """Return a hint, to append to a message, at the name in ``known`` that is closest to the unknown ``name``."""
    found = nearest(name, known)
    if found is None:
        return ""
    return f" (did you mean '{found}'?{' Upper and lower case count' if found.lower() == name.lower() else ''})"


def each_meant(names: Sequence[str], known: Iterable[str]) -> str:
    """Return the unknown ``names``, five at most, each with the hint of :func:`meant`."""
    candidates, left = list(known), len(names) - _LISTED
    listed = ", ".join(f"'{name}'{meant(name, candidates)}" for name in names[:_LISTED])
    return f"{listed} and {left} more" if left > 0 else listed


def lacking(what: str, missing: Sequence[str], known: Iterable[str]) -> str:
    """Return the message that ``what`` lacks columns: the missing ones, those that it has, and what was meant."""
    names = list(known)
    hints = "".join(meant(name, names) for name in missing[:_LISTED])
    return f"{what} lacks the columns {list(missing)}; it has {names}{hints}"


def likely_meant(unknown: Iterable[str], known: Iterable[str], otherwise: str) -> str:
    """Return the question if the known names closest to the unknown ones were meant; ``otherwise`` if none is near."""
    names = list(known)
    near = [found for name in unknown if (found := nearest(name, names)) is not None]
    return f"did you mean {' and '.join(dict.fromkeys(near))}?" if near else otherwise
