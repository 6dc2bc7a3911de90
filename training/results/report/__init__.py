"""A run's results for people: report, model card, summary and notebook views.

A picture that cannot be drawn is logged and left out, and the report is complete without it.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.results.report import run_summary
    from mirrorspark.training.results.report.baselines import as_baseline, each_baseline, in_words
    from mirrorspark.training.results.report.cost import Cost, Reservation, cost_of
    from mirrorspark.training.results.report.facts import report_facts
    from mirrorspark.training.results.report.leaderboard import Leaderboard, leaderboard_rows, leaderboard_table
    from mirrorspark.training.results.report.model_cards import model_card
    from mirrorspark.training.results.report.report import (
        REPORT_FILE,
        better_baseline,
        metrics_table,
        verdict_sentences,
        write_report,
    )
    from mirrorspark.training.results.report.shown import (
        PagePath,
        RunComparison,
        launched_html,
        report_of,
        trained_html,
        trained_text,
    )
    from mirrorspark.training.results.report.summary import (
        CHALLENGER,
        Summary,
        make_way,
        save_document,
        strict,
        verdict_lines,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CHALLENGER",
    "REPORT_FILE",
    "Cost",
    "Leaderboard",
    "PagePath",
    "Reservation",
    "RunComparison",
    "Summary",
    "as_baseline",
    "better_baseline",
    "cost_of",
    "each_baseline",
    "in_words",
    "launched_html",
    "leaderboard_rows",
    "leaderboard_table",
    "make_way",
    "metrics_table",
    "model_card",
    "report_facts",
    "report_of",
    "run_summary",
    "save_document",
    "strict",
    "trained_html",
    "trained_text",
    "verdict_lines",
    "verdict_sentences",
    "write_report",
]
