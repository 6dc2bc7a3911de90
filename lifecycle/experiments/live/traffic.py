"""Requests for one name, divided between versions: variants by an experiment, shadows, and the end of a bad variant."""

import asyncio
import json
import logging
import logging.handlers
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from mirrorspark.lifecycle.experiments.definition import HOLDOUT, Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.live.checks import VariantComparison
from mirrorspark.lifecycle.experiments.live.settings import TrafficError, TrafficFile
from mirrorspark.lifecycle.experiments.units import assign, exposure, signed_unit
from mirrorspark.lifecycle.pipeline import Alert, report
from mirrorspark.serving import DeclaredSplit, Outputs, RequestError, Servable, Source, Variant, label_of, scores_of
from mirrorspark.storage import atomic_file, one_line

_LOGGER = logging.getLogger(__name__)
_SECONDS = 1.0
_LOCK_SECONDS = 10.0


class ExperimentSplit:
    """A traffic split by an experiment. Used only in the event loop, except for files and alerts."""

    def __init__(self, file: TrafficFile, sources: Mapping[str, Source]) -> None:
        """Keep the settings and the versions.

        Args:
            file: The settings.
            sources: The model of each variant and shadow, by name.
        """
        self.file = file
        self.variants = {name: Variant(name, sources[name]) for name in file.settings.models}
        self.shadows = {name: Variant(name, sources[name]) for name in file.settings.shadows}
        self._unit_key = file.unit_key()
        exposures = file.settings.exposures
        self._log = ExposureLog(file.path.parent / exposures) if exposures else None
        # Reasons by digest: those in the file, and those that could not be written there.
        self._stopped: Mapping[str, Any] = self._stopped_versions()
        self._unwritten: dict[str, Any] = {}
        self._stamp = file.stamp()
        self._problem = ""
        self._comparisons: dict[str, VariantComparison] = {}
        self._compared: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        """Public model name."""
        return self.file.settings.name

    @property
    def path(self) -> Path:
        """File with the settings."""
        return self.file.path

    @property
    def unit_header(self) -> str:
        """Header of a request with the unit."""
        return self.file.settings.unit_header

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the units by variant."""
        return self.file.experiment.shares

    @property
    def experiment(self) -> Experiment:
        """The current experiment."""
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
        """Return whether the variant's current version must not answer; the control always may."""
        digest = variant.source.model.digest
        return variant is not self.control and (digest in self._stopped or digest in self._unwritten)

    @property
    def trusts_callers(self) -> bool:
        """True if only trusted callers can choose a unit."""
        return self._unit_key is not None or self.file.settings.trusts_callers

    def unit_of(self, text: str) -> str:
        """Return the unit that a header has.

        Raises:
            RequestError: Units are signed, and this one is not.
        """
        if self._unit_key is None:
            return text
        unit = signed_unit(text, self._unit_key)
        if unit is None:
            raise RequestError(
                400, f"the header {self.file.settings.unit_header} has no unit that is signed with this server's key"
            )
        return unit

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

    def add(
        self,
        variant: Variant,
        model: Servable,
        seconds: float,
        outputs: Outputs | None,
        *,
        is_trusted: bool = True,
    ) -> None:
        """Take a request that a variant, or a shadow, answered with ``model``; without outputs it has failed.

        Of a caller who is not trusted, the time and the scores do not count: rows make both, and the caller has chosen
        them, and the variant.
        """
        comparisons = self._comparisons_of_now()
        if model is not variant.source.model:
            return
        scores = None if outputs is None else scores_of(outputs) if is_trusted else []
        is_slow = is_trusted and self.file.settings.checks.is_slow(seconds)
        if variant is self.control:
            for comparison in comparisons.values():
                comparison.control.add(scores, is_slow=is_slow)
        elif variant.name in comparisons:
            comparisons[variant.name].variant.add(scores, is_slow=is_slow)

    def _comparisons_of_now(self) -> dict[str, VariantComparison]:
        """Return each variant's requests and the control's; another version of any, or other checks, begin anew."""
        now = (*(one.source.model for one in self.variants.values()), self.file.settings.checks)
        if now != self._compared:
            self._compared = now
            self._comparisons = {
                name: VariantComparison() for name, one in self.variants.items() if one is not self.control
            }
        return self._comparisons

    def log_exposure(self, unit: str, variant: Variant, model: Servable) -> bool:
        """Write down that a unit got an answer as a member of a variant, and return whether that was possible.

        Args:
            unit: The unit.
            variant: Its variant.
            model: Model that computed the answer: the control, if the variant has failed.
        """
        return self._log is None or self._log.add(unit, self.experiment, variant.name, label_of(model))

    async def watch(self) -> None:
        """Check the file, other processes' stops and the variants every second, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            # Files may be on a disk that is slow, and the event loop must not wait for it.
            await asyncio.to_thread(self.look_at_files)
            await self.check()

    def look_at_files(self) -> None:
        """Take over the stops of other processes, and new weights or checks; the log names invalid ones."""
        try:
            changed, stopped = self._changed_file(), self._stopped_versions()
        except (ValueError, OSError) as error:
            if (problem := one_line(error)) != self._problem:
                _LOGGER.warning("the traffic of %s stays as it is: %s", self.name, problem)
            self._problem = problem
            return
        self._problem = ""
        if changed is not None:
            _LOGGER.info("%s has the shares %s now", self.name, changed.experiment.shares)
            self.file = changed
        self._take_stopped(stopped)

    def _take_stopped(self, stopped: Mapping[str, Any]) -> None:
        before = [variant for variant in self.variants.values() if self.is_stopped(variant)]
        self._stopped = stopped
        for variant in before:
            if not self.is_stopped(variant):  # somebody lets it answer again: its former figures do not count
                self._comparisons[variant.name] = VariantComparison()

    async def check(self) -> None:
        """Stop each variant that does not pass its checks, and send alerts."""
        for name in [*self._comparisons_of_now()]:
            # Stopping a variant takes a while, in which the next one may get another version.
            comparison, variant = self._comparisons_of_now()[name], self.variants[name]
            if not self.is_stopped(variant) and (reason := comparison.broken(self.file.settings.checks)):
                await self._stop(variant, reason)

    async def _stop(self, variant: Variant, reason: str) -> None:
        model = variant.source.model
        text = f"{label_of(model)} no longer answers as variant '{variant.name}' of {self.name}: {reason}"
        facts = {"name": self.name, "variant": variant.name, "version": label_of(model), "reason": reason}
        # From here on its units get the control's answers, whatever happens to the file and to the alert.
        self._unwritten[model.digest] = facts
        _LOGGER.error("%s", text)
        try:
            await asyncio.to_thread(self._record_stopped, model.digest, facts)
            self._stopped = {**self._stopped, model.digest: facts}
            del self._unwritten[model.digest]
        except (ValueError, OSError) as error:
            text += f". This could not be written down for other processes: {one_line(error)}"
            _LOGGER.error("%s", text)  # noqa: TRY400 - its message is whole
        alert = Alert(f"{self.name}: variant '{variant.name}' was stopped", text, facts)
        await asyncio.to_thread(report, alert, self.file.settings.alerts)

    @property
    def _stopped_file(self) -> Path:
        return self.file.path.with_suffix(".stopped.json")

    def _record_stopped(self, digest: str, facts: Mapping[str, Any]) -> None:
        with FileLock(f"{self._stopped_file}.lock", timeout=_LOCK_SECONDS):
            known = self._stopped_versions() | {digest: dict(facts, time=datetime.now(UTC).isoformat())}
            atomic_file.write_atomically(self._stopped_file, json.dumps(known, indent=2) + "\n")

    def _stopped_versions(self) -> dict[str, Any]:
        try:
            found = json.loads(self._stopped_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise TrafficError(f"{self._stopped_file} is not JSON ({error}); correct it, or delete it") from error
        if not isinstance(found, dict):
            raise TrafficError(f"{self._stopped_file} holds no stopped versions; correct it, or delete it")
        return found

    def _changed_file(self) -> TrafficFile | None:
        """Return the file as it is now, or None if it is as before.

        Raises:
            TrafficError: It asks for a change that needs a new start, or makes no sense.
            ExperimentError: The experiment is invalid.
            OSError: It cannot be read.
        """
        stamp = self.file.stamp()
        if stamp == self._stamp:
            return None
        file, old = TrafficFile.load(self.file.path), self.file
        fixed = ("name", "models", "shadows", "exposures", "unit_header", "unit_key_file")
        changed = [name for name in fixed if getattr(file.settings, name) != getattr(old.settings, name)]
        if file.experiment.control != old.experiment.control:
            changed.append("control (the first variant)")
        if changed:
            raise TrafficError(f"{file.path} has another {', '.join(changed)} than before; start the server anew")
        self._stamp = stamp
        return None if file.text == old.text else file


def read_split(path: Path) -> DeclaredSplit:
    """Return the traffic split that a file declares.

    Raises:
        TrafficError: The file cannot be read, or makes no sense.
        ExperimentError: Its experiment makes no sense.
    """
    file = TrafficFile.load(path)
    settings = file.settings
    return DeclaredSplit(settings.name, settings.models, settings.shadows, partial(ExperimentSplit, file))


class ExposureLog:
    """A file with a line of JSON for each answer; moving it away rotates it."""

    def __init__(self, path: Path) -> None:
        """Open the file, at its end.

        Raises:
            OSError: It cannot be written.
        """
        self._handler = _Handler(path, encoding="utf-8")

    def add(self, unit: str, experiment: Experiment, variant: str, model_version: str) -> bool:
        """Write a line, and return whether that was possible; the first failure of a row is logged."""
        line = exposure(unit, experiment, variant, model_version, datetime.now(UTC))
        self._handler.has_failed = False
        record = logging.LogRecord(__name__, logging.INFO, "", 0, json.dumps(line, ensure_ascii=False), None, None)
        try:
            self._handler.handle(record)
        except OSError:  # a file that was moved away cannot be opened anew
            self._handler.handleError(record)
        return not self._handler.has_failed


class _Handler(logging.handlers.WatchedFileHandler):
    has_failed = False
    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Take note of a line that was not written; logging calls this in an exception."""
        if not self._is_told:
            _LOGGER.exception("exposures cannot be written to %s", self.baseFilename)
        self.has_failed = self._is_told = True
