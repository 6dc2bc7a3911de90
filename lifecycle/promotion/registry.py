"""Registries of models behind one protocol: MLflow's, and a plain folder that needs no server."""

import contextlib
import getpass
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import Holder, atomic_file, file_lock, leads_out, without_credentials

# Of a process that promotes. It makes a few requests, so another one need not wait for long.
LOCK_SECONDS = 30.0

_LOCK_SUFFIX = "-promotion-lock"


class RegistryError(ClearError, RuntimeError):
    """A registry has no such model or version, or another process holds its lock."""


class Registry(Protocol):
    """Aliases and tags of the versions of models."""

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that has the alias; None if none has.

        Raises:
            RegistryError: There is no such model.
        """

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias to a version.

        Raises:
            RegistryError: There is no such version.
        """

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it is there."""

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """Return the tags of a version.

        Raises:
            RegistryError: There is no such version.
        """

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version."""

    def digest(self, name: str, version: str) -> str:
        """Return the digest of a version's files, that of :class:`scoring.model.stored.PinnedModel`.

        Raises:
            ModelNotFoundError: There is no such version, or its files are missing.
        """

    def changing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep all other promotions of a model out while the block runs.

        Raises:
            RegistryError: Another one has been changing it for longer than :data:`LOCK_SECONDS`.
        """


class FolderRegistry:
    """A folder: ``NAME/VERSION/`` holds a model, ``NAME/registry.json`` the aliases and tags.

    Its lock is that of a file, which the kernel releases when a process ends, however it ends. Hosts that share the
    folder see each other's locks where its file system has them (NFS 4 has).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def alias(self, name: str, alias: str) -> str | None:
        """See :class:`Registry`."""
        found: str | None = self._read(name)["aliases"].get(alias)
        return found

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See :class:`Registry`."""
        self._require(name, version)
        document = self._read(name)
        document["aliases"][alias] = version
        self._write(name, document)

    def delete_alias(self, name: str, alias: str) -> None:
        """See :class:`Registry`."""
        document = self._read(name)
        document["aliases"].pop(alias, None)
        self._write(name, document)

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """See :class:`Registry`."""
        self._require(name, version)
        found: dict[str, str] = self._read(name)["tags"].get(version, {})
        return found

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        """See :class:`Registry`."""
        self._require(name, version)
        document = self._read(name)
        document["tags"].setdefault(version, {})[key] = value
        self._write(name, document)

    def digest(self, name: str, version: str) -> str:
        """See :class:`Registry`."""
        from mirrorspark.scoring.model.stored import resolve

        self._require(name, version)
        return resolve(self._place(name, version)).digest

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """See :class:`Registry`."""
        self._read(name)
        with _locked(self._place(name) / "registry.lock", name):
            yield

    def _place(self, name: str, version: str | None = None) -> Path:
        """Return the folder of a model, or of a version.

        Raises:
            RegistryError: A name leads out of the registry, or can be the name of no folder.
        """
        for part in (name, *([] if version is None else [version])):
            if not isinstance(part, str) or part in ("", ".", "..") or "/" in part or "\\" in part or leads_out(part):
                raise RegistryError(
                    f"{part!r} cannot be the name of a model or version in {self.folder}; give the name of a folder in "
                    f"it, without slashes"
                )
        return self.folder / name if version is None else self.folder / name / version

    def _read(self, name: str) -> dict[str, Any]:
        folder = self._place(name)
        if not folder.is_dir():
            raise RegistryError(f"there is no model '{name}' in {self.folder}; copy versions to {name}/1, {name}/2 …")
        file = folder / "registry.json"
        try:
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return {"aliases": document["aliases"], "tags": document["tags"]}
        except FileNotFoundError:
            return {"aliases": {}, "tags": {}}
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{file} is damaged ({error}); restore it from a copy") from error

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        atomic_file.write_atomically(
            self._place(name) / "registry.json", json.dumps(document, indent=2, sort_keys=True) + "\n"
        )

    def _require(self, name: str, version: str) -> None:
        if not self._place(name, version).is_dir():
            raise RegistryError(f"there is no version {version} of '{name}' in {self.folder}")


class MLflowRegistry:
    """MLflow's model registry: a server, a database, or Databricks.

    MLflow moves an alias without looking at where it was, so a lock keeps two promotions apart. For an SQLite file it
    is the lock of a file next to it. Elsewhere it is an empty registered model, ``NAME-promotion-lock``, since a store
    lets only one caller create a name. A process that is killed while it holds it leaves it behind. The next call on
    the same machine removes it; from another machine or container, which cannot see that process, :meth:`break_lock`
    does.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client = tracking_store.store_client(tracking_uri)

    def alias(self, name: str, alias: str) -> str | None:
        """See :class:`Registry`."""
        model = self._get(lambda: self._client.get_registered_model(name), f"there is no model '{name}'")
        found = model.aliases.get(alias)
        return None if found is None else str(found)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See :class:`Registry`."""
        self._get(
            lambda: self._client.set_registered_model_alias(name, alias, version),
            f"there is no version {version} of '{name}'",
        )

    def delete_alias(self, name: str, alias: str) -> None:
        """See :class:`Registry`."""
        self._client.delete_registered_model_alias(name, alias)

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """See :class:`Registry`."""
        absence = f"there is no version {version} of '{name}'"
        return dict(self._get(lambda: self._client.get_model_version(name, version), absence).tags)

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        """See :class:`Registry`."""
        self._client.set_model_version_tag(name, version, key, value)

    def digest(self, name: str, version: str) -> str:
        """See :class:`Registry`."""
        from mirrorspark.scoring.model.stored import resolve

        return resolve(f"models:/{name}/{version}", tracking_uri=self.tracking_uri).digest

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """See :class:`Registry`."""
        self.alias(name, "champion")  # raises if there is no such model
        if (database := tracking_store.sqlite_file(self.tracking_uri)) is not None:
            with _locked(database.absolute().with_name(f".{database.name}.{_short(name)}.lock"), name):
                yield
            return
        self._take_lock(name)
        try:
            yield
        finally:
            self.break_lock(name)

    def break_lock(self, name: str) -> None:
        """Remove the lock that a process which was killed has left in a server's registry, if there is one.

        Only call this if that process is dead: its promotion and another one would change the aliases together.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_registered_model(name + _LOCK_SUFFIX)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _take_lock(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        deadline, pause = time.monotonic() + LOCK_SECONDS, 0.05
        tags = _tags(Holder.here())
        words = f"held by {tags['user']}@{tags['host']}, process {tags['process']}"
        while True:
            try:
                self._client.create_registered_model(name + _LOCK_SUFFIX, tags, words)
            except MlflowException as error:
                # A server looks a name up that it could not create; if its holder has deleted it by then, it says that.
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                    raise
            else:
                return
            if self._remove_abandoned_lock(name):
                continue
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"another process has been changing '{name}' for {LOCK_SECONDS:.0f} s: the registered model "
                    f"'{name}{_LOCK_SUFFIX}' says which; if that process is dead, delete it (break_lock)"
                )
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def _remove_abandoned_lock(self, name: str) -> bool:
        """Remove the lock of a dead process of this machine; return True if it was there."""
        from mlflow.exceptions import MlflowException

        # One caller at a time looks at it and removes it: another one could remove the lock that follows it.
        place = Path(tempfile.gettempdir(), f"mirrorspark-{getpass.getuser()}-{_short(self.tracking_uri + name)}.lock")
        with _locked(place, name):
            try:
                tags = self._client.get_registered_model(name + _LOCK_SUFFIX).tags
            except MlflowException:  # released meanwhile, or the store is away, which the next request shows
                return False
            if not _is_gone(tags):
                return False
            self.break_lock(name)
        return True

    def _get(self, request: Any, absence: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return request()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            store = without_credentials(self.tracking_uri)
            raise RegistryError(
                f"{absence} in {store}; see the Models page of MLflow for those that are there"
            ) from None


def _locked(path: Path, name: str) -> contextlib.AbstractContextManager[object]:
    try:
        return file_lock(path, LOCK_SECONDS)
    except BlockingIOError as error:
        raise RegistryError(f"another process has been changing '{name}' for {LOCK_SECONDS:.0f} s") from error


def _tags(holder: Holder) -> dict[str, str]:
    """Return the tags of a lock: an id of its holder among all processes, those of its number included."""
    who = {"user": getpass.getuser(), "host": holder.host, "process": str(holder.pid)}
    return who | {"started": f"{holder.started:.2f}"} | ({"boot": holder.boot} if holder.boot else {})


def _is_gone(tags: Mapping[str, str]) -> bool:
    """Return True if the holder of a lock was a process of this user on this machine, and has ended."""
    # Without the machine's own id, a container of the same name could be another one.
    if tags.get("user") != getpass.getuser() or not tags.get("boot"):
        return False
    return Holder(tags.get("host", ""), int(tags["process"]), float(tags["started"]), tags["boot"]).has_ended is True


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
