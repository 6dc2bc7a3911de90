"""Requests for one name, divided between versions: variants by an experiment, shadows, and the end of a bad variant."""

import asyncio
import hashlib
import json
import logging
import logging.handlers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from mirrorspark.lifecycle.experiments.assignment import assign
from mirrorspark.lifecycle.experiments.definition import HOLDOUT, Experiment, ExperimentError
from mirrorspark.lifecycle.pipeline.alerts import Alert, AlertError, send
from mirrorspark.lifecycle.serve.errors import RequestError
from mirrorspark.lifecycle.serve.live_checks import Window, fault
from mirrorspark.lifecycle.serve.servable import Outputs, Servable, label_of
from mirrorspark.lifecycle.serve.sources import Source
from mirrorspark.lifecycle.serve.traffic_settings import TrafficError, TrafficFile
from mirrorspark.storage.atomic_file import write_atomically
from mirrorspark.storage.credentials import one_line

_LOGGER = logging.getLogger(__name__)
_SECONDS = 1.0
_LOCK_SECONDS = 10.0


@dataclass
class Variant:
    """One of the models that the requests for a name are divided between.

    Attributes:
        name: Its name in the experiment, or the shadow's.
        source: Its model.
        window: Its last requests, since the version of now answers.
    """

    name: str
    source: Source
    window: Window
    _model: Servable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._model = self.source.model

    def add(self, model: Servable, seconds: float, outputs: Outputs | None) -> None:
        """Take a request that ``model`` answered; without outputs it has failed."""
        if self._model is not self.source.model:
            self._model, self.window = self.source.model, Window(self.window.most)
        if model is self._model:
            self.window.add(seconds, has_failed=outputs is None, scores=scores_of(outputs or {}))


class Traffic:
    """The variants and shadows of a name. Used in the event loop alone, but for files and alerts."""

    def __init__(self, file: TrafficFile, sources: Mapping[str, Source]) -> None:
        """Take what answers.

        Args:
            file: The settings.
            sources: The model of each variant and shadow, by name.
        """
        self.file = file
        window = file.settings.checks.window
        self.variants = {name: Variant(name, sources[name], Window(window)) for name in file.settings.models}
        self.shadows = {name: Variant(name, sources[name], Window(window)) for name in file.settings.shadows}
        exposures = file.settings.exposures
        self._log = ExposureLog(file.path.parent / exposures) if exposures else None
        self._stopped: dict[str, str] = {}
        self._problem = ""
        self._read_stopped()

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.file.settings.name

    @property
    def experiment(self) -> Experiment:
        """The experiment of now."""
        return self.file.experiment

    @property
    def control(self) -> Variant:
        """The variant that answers whenever no other one may."""
        return self.variants[self.experiment.control]

    @property
    def sources(self) -> Iterator[Source]:
        """The models of all variants, the control's first."""
        yield self.control.source
        yield from (one.source for one in self.variants.values() if one is not self.control)

    def is_stopped(self, variant: Variant) -> bool:
        """Return whether the variant's version of now must not answer."""
        return variant.source.model.digest in self._stopped

    def variant_of(self, unit: str | None) -> Variant | None:
        """Return the variant of a unit.

        None means that the control answers, and that nothing is logged: there is no unit, it takes no part in the
        experiment, or its variant was stopped.

        Raises:
            RequestError: The unit is a text that UTF-8 cannot hold.
        """
        if unit is None:
            return None
        try:
            name = assign(unit, self.experiment)
        except ExperimentError as error:
            raise RequestError(400, str(error)) from None
        if name is None or name == HOLDOUT or self.is_stopped(self.variants[name]):
            return None
        return self.variants[name]

    def log_exposure(self, unit: str, variant: Variant, model: Servable) -> None:
        """Write down that a unit got an answer as a member of a variant; ``model`` is what computed it."""
        if self._log is not None:
            self._log.add(unit, self.experiment, variant.name, label_of(model))

    async def watch(self) -> None:
        """Look every second at the file, at what other processes have stopped, and at the variants, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                self._read_changes()
                await self.check()
            except Exception:
                # Files and alerts may fail in any way; requests are answered as before.
                _LOGGER.exception("the traffic of %s was not looked at", self.name)

    async def check(self) -> None:
        """Stop each variant that does not keep what it must, and tell so."""
        control = self.control.window.measured()
        for variant in self.variants.values():
            if variant is self.control or self.is_stopped(variant):
                continue
            if reason := fault(variant.window.measured(), control, self.file.settings.checks):
                await self._stop(variant, reason)

    async def _stop(self, variant: Variant, reason: str) -> None:
        model = variant.source.model
        # From here on its units get the control's answers, whatever happens to the file and to the alert.
        self._stopped[model.digest] = reason
        text = f"{label_of(model)} no longer answers as variant '{variant.name}' of {self.name}: {reason}"
        _LOGGER.error("%s", text)
        facts = {"name": self.name, "variant": variant.name, "version": label_of(model), "reason": reason}
        await asyncio.to_thread(self._record_stopped, model.digest, facts)
        alert = Alert(f"{self.name}: variant '{variant.name}' was stopped", text, facts)
        try:
            await asyncio.to_thread(send, alert, self.file.settings.alerts)
        except AlertError as error:
            _LOGGER.error("%s", error)  # noqa: TRY400 - its message is whole, and without secrets

    @property
    def _stopped_file(self) -> Path:
        return self.file.path.with_suffix(".stopped.json")

    def _record_stopped(self, digest: str, facts: Mapping[str, Any]) -> None:
        with FileLock(f"{self._stopped_file}.lock", timeout=_LOCK_SECONDS):
            known = self._stopped_versions() | {digest: dict(facts, time=datetime.now(UTC).isoformat())}
            write_atomically(self._stopped_file, json.dumps(known, indent=2) + "\n")

    def _stopped_versions(self) -> dict[str, Any]:
        try:
            found = json.loads(self._stopped_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise TrafficError(f"{self._stopped_file} is no JSON ({error}); mend it, or delete it") from error
        if not isinstance(found, dict):
            raise TrafficError(f"{self._stopped_file} holds no stopped versions; mend it, or delete it")
        return found

    def _read_stopped(self) -> None:
        self._stopped |= {digest: str(facts.get("reason")) for digest, facts in self._stopped_versions().items()}

    def _read_changes(self) -> None:
        self._read_stopped()
        try:
            file = TrafficFile.load(self.file.path)
            if file.text == self.file.text:
                return
            if (file.settings.name, file.settings.models, file.settings.shadows) != (
                self.name,
                self.file.settings.models,
                self.file.settings.shadows,
            ):
                raise TrafficError(f"{file.path} has other models than before; start the server anew")
        except (ValueError, OSError) as error:
            if (problem := one_line(error)) != self._problem:
                _LOGGER.warning("the traffic of %s stays as it is: %s", self.name, problem)
            self._problem = problem
            return
        _LOGGER.info("%s has the shares %s now", self.name, file.experiment.shares)
        self.file, self._problem = file, ""


class ExposureLog:
    """A file with a line of JSON for each answer; rotated by whoever moves it away."""

    def __init__(self, path: Path) -> None:
        """Open the file, at its end.

        Raises:
            OSError: It cannot be written.
        """
        self._handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")

    def add(self, unit: str, experiment: Experiment, variant: str, model_version: str) -> None:
        """Write a line: the columns of the exposure log (``ms.EXPOSURE_COLUMNS``)."""
        now = datetime.now(UTC)
        micros = int(now.timestamp()) * 1_000_000 + now.microsecond
        # As log_exposures makes it.
        event_id = hashlib.sha256(f"{experiment.name}:{unit}:{micros}".encode()).hexdigest()
        line = {
            "event_id": event_id,
            "unit": unit,
            "experiment": experiment.name,
            "variant": variant,
            "weight": experiment.shares[variant],
            "model_version": model_version,
            "time": now.isoformat(timespec="microseconds"),
        }
        text = json.dumps(line, ensure_ascii=False)
        self._handler.handle(logging.LogRecord(__name__, logging.INFO, "", 0, text, None, None))


def scores_of(outputs: Outputs) -> list[float]:
    """Return the score of each row: the first output of numbers, the mean of a list; empty if there is none."""
    for values in outputs.values():
        if all(isinstance(one, float) for one in values):
            return list(values)
        if all(isinstance(one, list) and one and isinstance(one[0], float) for one in values):
            return [sum(one) / len(one) for one in values]
    return []


def differences(outputs: Outputs, others: Outputs) -> Iterable[float]:
    """Yield for each row how far the scores of two models are apart."""
    for one, other in zip(scores_of(outputs), scores_of(others), strict=False):
        yield abs(one - other)
