"""Totals that tasks add to without a Spark context: files in a folder that the tasks and this process share."""

import copy
import pickle
import secrets
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pyspark import TaskContext

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath, signed_content

T = TypeVar("T")

_BEGUN = "begun"
_TERMS = ".terms"
_KEY_BYTES = 32


class ForeignTermsError(ClearError, ValueError):
    """A file among those of a total that none of its tasks has written."""


@dataclass(frozen=True, eq=False)
class SharedTotal(Generic[T]):
    """A total of one file per attempt of a task, of which one attempt per task counts.

    Others may be able to write to the folder, so a file is signed with a key that only this process and its tasks have,
    and the tasks read none.

    Attributes:
        folder: Folder of the files; it is removed with the total.
        zero: The empty total.
        merge: Adds its second argument to its first one.
        key: Key of the signatures; it reaches the tasks with their function.
    """

    folder: StoragePath
    zero: T
    merge: Callable[[T, T], T]
    key: bytes = field(repr=False)
    _own: dict[Any, "_Terms[T]"] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[type["SharedTotal[T]"], tuple[StoragePath, T, Callable[[T, T], T], bytes]]:
        """Pickle without the terms of this process, which it writes itself."""
        return type(self), (self.folder, self.zero, self.merge, self.key)

    @classmethod
    def begin(cls, folder: StoragePath, zero: T, merge: Callable[[T, T], T]) -> "SharedTotal[T]":
        """Return the total of this process."""
        (folder / _BEGUN).write_bytes(b"")
        total = cls(folder, zero, merge, secrets.token_bytes(_KEY_BYTES))
        weakref.finalize(total, folder.delete)
        return total

    @property
    def value(self) -> T:
        """The total of all files so far.

        Of a task's attempts the one that has added most often counts, as does the newest of several such ones. An
        attempt that was ended early, by a failure or because a speculative twin was faster, has added less often than
        the one that has finished; Spark numbers attempts in the order of their starts.

        Raises:
            ForeignTermsError: A file was not written by a task of this total.
        """
        attempts: dict[Any, dict[int, list[_Terms[T]]]] = defaultdict(lambda: defaultdict(list))
        for file in self.folder.files():
            if file.path.name.endswith(_TERMS):
                terms = self._read(file.path)
                attempts[terms.task][terms.attempt].append(terms)
        total = copy.deepcopy(self.zero)
        for of_task in attempts.values():
            _, chosen = max((sum(terms.additions for terms in of_task[number]), number) for number in of_task)
            for terms in of_task[chosen]:
                total = self.merge(total, terms.sum)
        return total

    def add(self, term: T, /) -> None:
        """Add a term to those of this attempt of the task."""
        if not (self.folder / _BEGUN).exists():
            return  # nobody can read it any more
        context = TaskContext.get()
        place = None if context is None else (context.stageId(), context.partitionId(), context.taskAttemptId())
        terms = self._own.get(place)
        if terms is None:
            # Several processes of an attempt may add, so each has a file of its own.
            writer = secrets.token_hex(8)
            task, attempt = (writer, 0) if place is None else (place[:2], place[2])
            name = writer if place is None else "-".join(map(str, (*place, writer)))
            terms = self._own[place] = _Terms(name + _TERMS, task, attempt, 1, copy.deepcopy(term))
        else:
            terms.additions, terms.sum = terms.additions + 1, self.merge(terms.sum, term)
        content = pickle.dumps(terms)
        # The name counts, too: a copy under another one would be added again.
        (self.folder / terms.name).write_bytes(signed_content.signed(content, terms.name, self.key))

    def _read(self, file: StoragePath) -> "_Terms[T]":
        content = signed_content.verified(file.read_bytes(), file.name, self.key)
        if content is None:
            raise ForeignTermsError(
                f"{file} does not have the signature of a task of this session, and is not read; let nobody else write "
                "to the folder that tasks and this program share, and run again"
            )
        terms: _Terms[T] = pickle.loads(content)  # noqa: S301 - the signature is that of our own tasks
        return terms


@dataclass
class _Terms(Generic[T]):
    """The terms that one process has added in one attempt of a task."""

    name: str
    task: Any
    attempt: int
    additions: int
    sum: T
