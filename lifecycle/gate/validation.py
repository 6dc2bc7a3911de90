"""The result of a validation: facts and findings, as a value that becomes JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mirrorspark.lifecycle.gate.decide import GateFinding, decide, failed
from mirrorspark.lifecycle.gate.facts import Facts
from mirrorspark.lifecycle.gate.thresholds import Gates
from mirrorspark.pages import Cell, beside_the_result, heading_html, in_digits, panel_html, rows_html
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.storage import atomic_file, clean, lakes
from mirrorspark.training.results.report import strict

JSON_FILE = "validation.json"
FORMAT_VERSION = 1
# Outcomes, those that block first.
ORDER = ("failed", "skipped", "passed")
_STYLES = {"failed": "error", "skipped": "warning", "passed": "good"}


@dataclass(frozen=True)
class ModelReference:
    """A model by its URI, name, version and the digest of its files."""

    uri: str
    name: str
    version: str
    digest: str

    @classmethod
    def of(cls, model: PinnedModel) -> ModelReference:
        """Return the reference to a pinned model."""
        return cls(model.uri, model.name, model.version, model.digest)

    @property
    def label(self) -> str:
        """Name and version, such as ``flights/3``."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Validation:
    """Findings about a candidate.

    Attributes:
        candidate: The candidate.
        champion: The model that it was compared with, if any.
        task: The models' task.
        label: SQL expression of the label.
        keys: Columns by which rows were drawn for the intervals.
        facts: Measurements.
        gates: Requested gates.
        at: Time of the validation, in ISO format, UTC.
        seed: Seed of the intervals.
    """

    candidate: ModelReference
    champion: ModelReference | None
    task: str
    label: str
    keys: tuple[str, ...]
    facts: Facts
    gates: Gates
    at: str
    seed: int

    @cached_property
    def findings(self) -> tuple[GateFinding, ...]:
        """The findings of all gates."""
        return decide(self.facts, self.gates)

    @property
    def failed(self) -> tuple[GateFinding, ...]:
        """The findings that block a promotion."""
        return failed(self.findings)

    @property
    def passed(self) -> bool:
        """True if the candidate may be promoted."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """``passed`` or ``FAILED``."""
        return "passed" if self.passed else "FAILED"

    def as_text(self) -> str:
        """Return the findings as text, those that block first."""
        order = sorted(self.findings, key=lambda one: ORDER.index(one.outcome))
        champion = self.champion.label if self.champion else "no champion"
        head = f"{self.candidate.label} against {champion}: {self.verdict}"
        return "\n".join([head, *self._metrics(), *(f"  {one.outcome:<8}{one.words}" for one in order)])

    def _metrics(self) -> Iterator[str]:
        """Yield a line with the metrics of all rows, in brackets those of the champion."""
        for one in self.facts.slices:
            if one.is_overall:
                champion = {name: f" ({in_digits(estimate.value)})" for name, estimate in one.champion.items()}
                values = [f"{name} {in_digits(it.value)}{champion.get(name, '')}" for name, it in one.candidate.items()]
                yield f"  {one.examples:,} rows: {', '.join(values)}"

    def _repr_html_(self) -> str:
        champion = self.champion.label if self.champion else "no champion"
        title = f"{self.candidate.label} against {champion}: {self.verdict}"
        return panel_html(heading_html(title), findings_table(self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Return the validation as JSON values; numbers that JSON does not have are texts: ``inf``, ``nan``."""
        facts = self.facts
        document = {
            "format_version": FORMAT_VERSION,
            "passed": self.passed,
            "at": self.at,
            "candidate": asdict(self.candidate),
            "champion": asdict(self.champion) if self.champion else None,
            "task": self.task,
            "label": self.label,
            "keys": self.keys,
            "seed": self.seed,
            "gates": asdict(self.gates),
            "findings": [asdict(one) for one in self.findings],
            "slices": [asdict(one) | {"name": one.name} for one in facts.slices],
            "parity": {name: report.to_dict() for name, report in facts.parity.items()},
            "schema_changes": facts.schema_changes,
            "latency_p99_ms": facts.latency_p99_ms,
            "model_bytes": facts.model_bytes,
        }
        plain: dict[str, Any] = clean(strict(document))
        return plain

    def to_json(self) -> str:
        """Return the document as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write ``validation.json`` and the page ``validation.html`` into a folder, and return the former's path.

        Raises:
            LakeTableError: The folder is, or lies in, a table that keeps a log.
            OSError: A file cannot be written.
        """
        from mirrorspark.lifecycle.gate.page import PAGE_FILE, validation_page  # loads matplotlib

        target = Path(folder)
        lakes.refuse_lake_write(target)
        target.mkdir(parents=True, exist_ok=True)
        with beside_the_result(f"the page {target / PAGE_FILE}"):
            atomic_file.write_atomically(target / PAGE_FILE, validation_page(self))
        # Last, because it is what a promotion reads.
        atomic_file.write_atomically(target / JSON_FILE, self.to_json())
        return target / JSON_FILE


def findings_table(findings: Sequence[GateFinding]) -> Markup:
    """Return findings as a table of a page or notebook, those that block first."""
    rows = [
        (Cell("not judged" if one.outcome == "skipped" else one.outcome, _STYLES[one.outcome]), one.gate, one.words)
        for one in sorted(findings, key=lambda one: ORDER.index(one.outcome))
    ]
    return rows_html(("", "gate", "finding"), rows, name="findings")
