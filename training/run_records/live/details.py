"""The results of stages at length: the inferred spec, and the findings of inference and validation."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.data_pipelines.quality import PAGE_FILE, Severity
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.pages import details_html, findings_html, remark_html
from mirrorspark.training.protocol.outcomes import findings_in_words
from mirrorspark.training.run_records.live.picture import Details
from mirrorspark.training.run_records.live.view import Stage

# More would push the rest of a run off the screen.
_MOST_FEATURES = 12
_MOST_FINDINGS = 5


def spec_details(spec: FeatureSpec) -> Details:
    """Return the features of a spec: the first ones as lines, all of them as a table behind its summary."""
    about = f"{len(spec.features)} features; keys {', '.join(spec.keys)}"
    lines, markup = (f"keys {', '.join(spec.keys)}", *_feature_lines(spec)), details_html(about, spec.features_html())
    if spec.items is not None:
        of_items = f"features of the items; key {spec.items.keys[0]}"
        lines = (*lines, of_items, *_feature_lines(spec.items))
        markup += details_html(of_items, spec.items.features_html())
    return Details(lines, markup)


def _feature_lines(spec: FeatureSpec) -> list[str]:
    lines, more = spec.features_text(), len(spec.features) - _MOST_FEATURES
    return [*lines[:_MOST_FEATURES], *([f"and {more} more"] if more > 0 else [])]


def add_findings(stage: Stage, dataset: Dataset) -> None:
    """Add the findings about a dataset to its stage: their number, the first errors and warnings, and the page."""
    findings = dataset.manifest.findings
    if not findings:
        return
    stage.note += f"; validation: {findings_in_words(findings)}"
    grave = [finding for finding in findings if finding["severity"] != Severity.NOTE]
    shown, more = grave[:_MOST_FINDINGS], len(findings) - min(len(grave), _MOST_FINDINGS)
    page = f"{f'and {more} more' if shown and more else 'more about the columns'}: {dataset.path / PAGE_FILE}"
    lines = [f"{finding['severity']}: {finding['sentence']}" for finding in shown]
    markup = findings_html(shown) if shown else ""
    stage.details = Details((*lines, page), markup + remark_html(page))


@contextlib.contextmanager
def showing_warnings(stage: Stage) -> Iterator[None]:
    """Add the warnings that we log while the block runs to the details of the stage, instead of printing them.

    Handlers of the user get them as well. Without one, Python prints a warning only if no handler has seen it.
    """
    gathered, logger = _Gathered(), logging.getLogger("mirrorspark")
    logger.addHandler(gathered)
    try:
        yield
    except BaseException:
        logger.removeHandler(gathered)
        if not logger.hasHandlers() and logging.lastResort is not None:  # A stage that fails has no line.
            for record in gathered.records:
                logging.lastResort.handle(record)
        raise
    logger.removeHandler(gathered)
    if gathered.records:
        _add_warnings(stage, [record.getMessage() for record in gathered.records])


def _add_warnings(stage: Stage, sentences: Sequence[str]) -> None:
    found = [{"severity": str(Severity.WARNING), "column": "", "sentence": sentence} for sentence in sentences]
    stage.note += f"; {findings_in_words(found)}"
    shown, more = found[:_MOST_FINDINGS], found[_MOST_FINDINGS:]
    lines = [f"warning: {finding['sentence']}" for finding in shown]
    markup = findings_html(shown, are_of_one_column=True)
    if more:
        lines.append(f"and {len(more)} more warnings")
        markup += details_html(f"{len(more)} more warnings", findings_html(more, are_of_one_column=True))
    before = stage.details or Details((), "")
    stage.details = Details((*before.lines, *lines), before.markup + markup)


class _Gathered(logging.Handler):
    """Keeps the records of warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self.records.append(record)
