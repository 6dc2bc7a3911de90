"""The results of stages at length: the inferred spec, and the findings of validation."""

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
    lines, more = spec.features_text(), len(spec.features) - _MOST_FEATURES
    shown = [*lines[:_MOST_FEATURES], *([f"and {more} more"] if more > 0 else [])]
    about = f"{len(spec.features)} features; keys {', '.join(spec.keys)}"
    return Details((f"keys {', '.join(spec.keys)}", *shown), details_html(about, spec.features_html()))


def add_findings(stage: Stage, dataset: Dataset) -> None:
    """Add the findings about a dataset to its stage: their number, the first errors and warnings, and the page."""
    findings = dataset.manifest.findings
    if not findings:
        return
    stage.note += f"; validation: {findings_in_words(findings)}"
    grave = [finding for finding in findings if finding["severity"] != Severity.NOTE]
    shown, more = grave[:_MOST_FINDINGS], len(findings) - min(len(grave), _MOST_FINDINGS)
    page = f"{f'and {more} more' if more else 'more about the columns'}: {dataset.path / PAGE_FILE}"
    lines = [f"{finding['severity']}: {finding['sentence']}" for finding in shown]
    markup = findings_html(shown) if shown else ""
    stage.details = Details((*lines, page), markup + remark_html(page))
