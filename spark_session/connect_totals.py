"""Totals that tasks add to without a Spark context: files in a folder that the tasks and this process share."""

import copy
import pickle
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pyspark import TaskContext

from mirrorspark.storage import StoragePath

T = TypeVar("T")

_BEGUN = "begun"


@dataclass(frozen=True, eq=False)
class SharedTotal(Generic[T]):
    """A total of one file per task, which a further attempt of the task replaces.

    Attributes:
        folder: Folder of the files; it is removed with the total.
        zero: The empty total.
        merge: Adds its second argument to its first one.
    """

    folder: StoragePath
    zero: T
    merge: Callable[[T, T], T]

    @classmethod
    def begin(cls, folder: StoragePath, zero: T, merge: Callable[[T, T], T]) -> "SharedTotal[T]":
        """Return the total of this process."""
        (folder / _BEGUN).write_bytes(b"")
        total = cls(folder, zero, merge)
        weakref.finalize(total, folder.delete)
        return total

    @property
    def value(self) -> T:
        """The total of all files so far."""
        total = copy.deepcopy(self.zero)
        for file in self.folder.files():
            if file.path.name != _BEGUN:
                total = self.merge(total, self._read(file.path)[1])
        return total

    def add(self, term: T, /) -> None:
        """Add a term to that of this attempt of the task, and drop those of former attempts."""
        if not (self.folder / _BEGUN).exists():
            return  # nobody can read it any more
        context = TaskContext.get()
        if context is None:
            (self.folder / uuid.uuid4().hex).write_bytes(pickle.dumps((None, term)))
            return
        file, attempt = self.folder / f"{context.stageId()}-{context.partitionId()}", context.taskAttemptId()
        if file.exists():
            of, earlier = self._read(file)
            term = self.merge(earlier, term) if of == attempt else term
        file.write_bytes(pickle.dumps((attempt, term)))

    def _read(self, file: StoragePath) -> tuple[int | None, T]:
        attempt, term = pickle.loads(file.read_bytes())  # noqa: S301 - our own tasks have written it
        return attempt, term
