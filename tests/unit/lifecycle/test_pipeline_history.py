"""The page of all dates of a pipeline: outcomes, alerts, and what changed over time (L7)."""

import json
import re
from pathlib import Path
from typing import Any

from mirrorspark.lifecycle.pipeline.history import HISTORY_FILE, history_page, write_history
from mirrorspark.lifecycle.pipeline.record import RECORD_FILE, PipelineRecord, folder_of, records_in
from mirrorspark.lifecycle.pipeline.stages import StageRecord

SETTINGS = {"pipeline": {"drift_at_most": 0.5, "gates": {"thresholds": [{"metric": "auc", "at_least": 0.7}]}}}
MOVED = "columns have drifted since the former date: <b>age</b> (index 0.61)"


def date(run_date: str, version: str, *, drift: float = 0.0, failed: str | None = None) -> PipelineRecord:
    """Return the record of a date that has finished, or stopped at the gate."""
    facts: dict[str, dict[str, Any]] = {
        "data": {"rows": 1_234},
        "convert": {"drift": {"age": drift, "city": 0.01}, "warnings": [MOVED] if drift > 0.5 else []},
        "evaluate": {
            "metrics": {"log_loss": 0.5, "auc": 0.81},
            "change": {"auc": 0.01},
            "scores": {"edges": [0.2, 0.6], "counts": [5, 3, 2], "mean": 0.4},
            "score_drift": 0.02,
        },
        "gate": {"failed": []},
        "promote": {"version": version},
    }
    stages = {name: StageRecord("passed", 0.0, 2.5, facts=found) for name, found in facts.items()}
    if failed is not None:
        del stages["promote"]
        stages["gate"] = StageRecord("failed", 0.0, 2.5, problem=failed)
    return PipelineRecord("churn", run_date, SETTINGS, stages, is_finished=failed is None)


def save(output: Path, record: PipelineRecord) -> Path:
    folder = folder_of(output, record.name, record.run_date)
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return folder.parent


def test_each_date_has_a_row_with_its_outcome_and_alerts_the_latest_first(tmp_path: Path) -> None:
    for record in (
        date("2026-01-17", "2", drift=0.61),
        date("2026-01-10", "1"),
        date("2026-01-24", "3", failed="auc in overall is 0.5, at least 0.7"),
    ):
        parent = save(tmp_path, record)
    (parent / "scores.db").write_bytes(b"no folder of a date")

    write_history(parent)

    page = (parent / HISTORY_FILE).read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index('class="dates"') :])[1:]
    cells = [[re.sub("<[^>]*>", "", cell) for cell in re.findall("<td.*?</td>", row)] for row in rows]
    assert [row[0] for row in cells] == ["2026-01-24", "2026-01-17", "2026-01-10"]
    assert cells[1] == ["2026-01-17", "finished", "2", "1", "1,234", *(["2.5"] * 5), "12.5"]
    assert "stopped at gate" in rows[0]
    assert 'href="2026-01-24/pipeline.html"' in rows[0]
    alerts = page[page.index("<h2>Alerts") : page.index("<h2>Dates")]
    assert "gate: auc in overall is 0.5, at least 0.7" in alerts
    assert "&lt;b&gt;age&lt;/b&gt; (index 0.61)" in alerts
    assert "2026-01-10" not in alerts
    assert "http" not in page.replace("http-equiv", "")


def test_pictures_begin_with_the_metric_that_has_a_bound_and_come_with_the_second_date() -> None:
    dates = [date("2026-01-10", "1"), date("2026-01-17", "2")]

    page = history_page(dates)

    assert re.findall(r'<svg [^>]*aria-label="([^"]+)"', page) == [
        "auc of candidate and champion by date",
        "log loss of candidate and champion by date",
        "drift of columns by date",
        "drift of scores by date",
        "rows by date",
        "time by date",
        "distribution of the scores by date",
    ]
    assert "<svg" not in history_page(dates[:1])


def test_a_date_whose_stages_have_not_begun_or_whose_record_is_damaged_hides_no_other(tmp_path: Path) -> None:
    for record in (date("2026-01-10", "1"), date("2026-01-17", "2"), PipelineRecord("churn", "2026-01-24", {})):
        parent = save(tmp_path, record)
    (parent / "2026-01-10" / RECORD_FILE).write_text(json.dumps({"version": 9}))

    assert [record.run_date for record in records_in(parent)] == ["2026-01-17", "2026-01-24"]
    page = history_page(records_in(parent))

    assert "2026-01-24: Between two stages" in page
    assert page.count("<svg") == 7
