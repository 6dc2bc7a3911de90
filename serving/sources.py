"""The URIs whose models answer, each with its current version; a new version is loaded next to the old one."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from mirrorspark.scoring.model.loading import freeze_gc
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.precomputed import store_identity
from mirrorspark.serving.servable import Servable, label_of
from mirrorspark.serving.stored_rows import StoredRows, digest_of

_LOGGER = logging.getLogger(__name__)

State = Literal["LOADING", "AVAILABLE", "END"]
"""States of a version, as TensorFlow Serving calls them."""


@dataclass(frozen=True)
class Refused:
    """A version that the URI leads to and that does not answer, or the look-up that failed."""

    version: str
    reason: str


@dataclass
class Source:
    """The models under a name, and their states. Used only in the event loop.

    Attributes:
        uri: The model's URI, such as ``models:/flights@champion``, or the store's file.
        model: The version that answers.
        refused: Why a newer version does not answer, or None.
        loading: The version that is being loaded, or None.
        example: Values by column of the last row that was computed, with which the next version is warmed up.
    """

    uri: str
    model: Servable
    refused: Refused | None = None
    loading: str | None = None
    loads: int = 1
    failures: int = 0
    example: Mapping[str, Sequence[Any]] | None = field(default=None, repr=False)

    @property
    def alias(self) -> str | None:
        """The alias in the URI, which TensorFlow Serving calls a label."""
        path = self.uri.rpartition("/")[2]
        return path.rpartition("@")[2] if urlparse(self.uri).scheme == "models" and "@" in path else None

    @property
    def states(self) -> list[tuple[str, State, str]]:
        """Version, state and error of all versions that are known."""
        found: list[tuple[str, State, str]] = [(self.model.version, "AVAILABLE", "")]
        if self.loading is not None:
            found.insert(0, (self.loading, "LOADING", ""))
        elif self.refused is not None and self.refused.version:
            # The reason may hold paths, addresses and rows: it is for the log alone.
            found.insert(0, (self.refused.version, "END", "it cannot be loaded; the log of the server says why"))
        return found

    async def refresh(self) -> None:
        """Look for another version, and let it answer from now on."""
        raise NotImplementedError

    async def follow(self, seconds: float) -> None:
        """Look the URI up periodically, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.refresh()

    def _refuse(self, version: str, reason: str) -> None:
        refused = Refused(version, reason)
        self.failures += 1
        if refused != self.refused:
            what = f"version {version} of {self.uri} does not answer" if version else f"{self.uri} was not looked up"
            _LOGGER.warning("%s, %s goes on: %s", what, label_of(self.model), reason)
        self.refused = refused


@dataclass(kw_only=True)
class ModelSource(Source):
    """A model's URI; a new version is loaded next to the old one.

    Attributes:
        find: Returns the version that the URI leads to now; may take a minute.
        load: Loads a version; may take seconds.
    """

    find: Callable[[str], PinnedModel]
    load: Callable[[PinnedModel], Servable]

    @classmethod
    def open(
        cls, uri: str, find: Callable[[str], PinnedModel], load: Callable[[PinnedModel], Servable]
    ) -> "ModelSource":
        """Load the version that ``uri`` leads to, and warm it up.

        Raises:
            ValueError: There is no such model, or it cannot be loaded, as the errors of
                :func:`scoring.model.stored.resolve` and :class:`scoring.predictor.Predictor` describe. Some of them are
                an ``OSError`` or a ``RuntimeError``.
        """
        model = load(find(uri))
        if not model.warm_up():
            _LOGGER.info("model %s was not warmed up: no made-up row fits its columns", label_of(model))
        return cls(uri, model, find=find, load=load)

    async def refresh(self) -> None:
        """Look the URI up; where it leads to another version, load that one, warm it up, and let it answer from now on.

        Requests that came before are answered by the earlier version. Where the new one cannot be loaded, the earlier
        one goes on.
        """
        pinned: PinnedModel | None = None
        try:
            pinned = await in_daemon_thread(self.find, self.uri)
            if (pinned.version, pinned.digest) == (self.model.version, self.model.digest):
                self.refused = None
                return
            self.loading = pinned.version
            model = await asyncio.to_thread(self._loaded, pinned)
        except Exception as error:
            # Stores, files and the model's own code may raise anything; the version that answers stays.
            self._refuse(pinned.version if pinned else "", f"{type(error).__name__}: {error}")
            return
        finally:
            self.loading = None
        _LOGGER.info("model %s answers in place of %s", label_of(model), label_of(self.model))
        self.model, self.refused = model, None
        self.loads += 1
        # The old version is dropped once its last batch has ended.
        await asyncio.to_thread(freeze_gc, has_dropped=True)

    def _loaded(self, pinned: PinnedModel) -> Servable:
        model = self.load(pinned)
        if not (self.example and model.warm_up(self.example)):
            model.warm_up()
        return model


@dataclass(kw_only=True)
class StoreSource(Source):
    """A store of rows; a file that replaces it is opened and verified next to the old one."""

    _refused_digest: str = ""

    @classmethod
    def open(cls, name: str, file: str) -> "StoreSource":
        """Open a store.

        Raises:
            FileNotFoundError, StoreError: There is no store in the file, or it is damaged.
        """
        return cls(file, StoredRows(name, file))

    async def refresh(self) -> None:
        """Reload the store from its file. If the file is invalid, keep serving the old one."""
        digest = ""
        try:
            digest = digest_of(await asyncio.to_thread(store_identity, Path(self.uri)))
            if digest == self.model.digest:
                self.refused = None
            elif digest != self._refused_digest:  # verifying reads the whole file
                self.model, self.refused = await asyncio.to_thread(StoredRows, self.model.name, self.uri), None
                self.loads += 1
        except (OSError, ValueError) as error:
            self._refused_digest = digest
            self._refuse("", str(error))


async def in_daemon_thread(function: Callable[[str], PinnedModel], uri: str) -> PinnedModel:
    """Return the result of a function, in a thread that does not delay the end of the process.

    A look-up may wait a minute for a store that does not answer.
    """
    found: Future[PinnedModel] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            found.set_result(function(uri))
        except Exception as error:  # raised where it is awaited
            found.set_exception(error)

    threading.Thread(target=run, name=f"look-up of {uri}", daemon=True).start()
    return await asyncio.wrap_future(found)


class ServedSources:
    """All models of a server, by name, version and label. The first source of a name answers for it."""

    def __init__(self, sources: Iterable[Source], hidden: Iterable[Source] = ()) -> None:
        """Take the sources, and those which no request can name.

        Raises:
            ValueError: There is none, or two have the same name and alias.
        """
        self._named = tuple(sources)
        self.all = (*self._named, *hidden)
        if not self.all:
            raise ValueError(
                "there is nothing to serve; name a model with --model, a store with --store, or a file with --traffic"
            )
        # A version that stays has no alias, and only its number distinguishes it.
        places = [f"{one.model.name}@{one.alias}" if one.alias else label_of(one.model) for one in self._named]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            raise ValueError(f"the models {twice} are given twice; give each name and alias once")

    @property
    def names(self) -> list[str]:
        """Names for requests, sorted."""
        return sorted({one.model.name for one in self._named})

    @property
    def served(self) -> list[Servable]:
        """The models and stores that answer for a name, in the order of the command."""
        return list({one.model.name: one.model for one in reversed(self._named)}.values())[::-1]

    def of(self, name: str) -> list[Source]:
        """Return the sources with a name.

        Raises:
            RequestError: There is none.
        """
        found = [one for one in self._named if one.model.name == name]
        if not found:
            raise RequestError(404, f"model '{name}' is not served here; there is {self.names}")
        return found

    def find(self, name: str, version: str | None = None, label: str | None = None) -> Source:
        """Return the source that answers for a name, and for its version or label if one is given.

        Raises:
            RequestError: There is none.
        """
        found = self.of(name)
        if version is not None:
            wanted = [one for one in found if one.model.version == version]
            what, known = f"version {version}", [one.model.version for one in found]
        else:
            wanted = [one for one in found if label is None or one.alias == label]
            what, known = f"label '{label}'", [one.alias for one in found if one.alias]
        if not wanted:
            raise RequestError(404, f"model '{name}' has no {what} here; there is {known}")
        return wanted[0]
