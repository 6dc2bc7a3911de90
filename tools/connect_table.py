"""Writes the table in docs/platforms.md of the calls that are tested over Spark Connect."""

import inspect
from pathlib import Path
from typing import Any

import mirrorspark as ms
from tests.cluster.programs.connect_calls import CONTRACTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "platforms.md"

_BEGIN = "| subject | calls | classic | Spark Connect, on shared compute, too |\n|---|---|---|---|\n"
_SAME = "the same results"
# Classes that take DataFrames.
_STAGES = ("TrainedModel", "TrainingEstimator")
# Calls with a difference.
_REMARKS = {
    "Counters": "on a cluster they need `spark.mirrorspark.sharedFolder`, a folder that client and tasks share",
    "watch_stream": "the function that gets the windows runs where the server is, as that of `foreachBatch` does",
}


def table() -> str:
    """Return the table."""
    tested = {name for one in CONTRACTS.values() for name in one.names}
    rows: dict[tuple[str, str], list[str]] = {}
    for subject, names in ms.SUBJECTS.items():
        for name in names:
            if name in tested and (name in (*_REMARKS, *_STAGES) or inspect.isfunction(getattr(ms, name))):
                rows.setdefault((subject, _REMARKS.get(name, _SAME)), []).append(f"`{name}`")
    return _BEGIN + "".join(
        f"| {subject} | {', '.join(names)} | yes | {words} |\n" for (subject, words), names in rows.items()
    )


def not_listed() -> list[str]:
    """Return the public functions of sessions and DataFrames that the table lacks."""
    listed = table()
    functions = [(name, getattr(ms, name)) for names in ms.SUBJECTS.values() for name in names]
    return [
        name
        for name, value in functions
        if inspect.isfunction(value) and _takes_spark(value) and f"`{name}`" not in listed
    ]


def _takes_spark(function: Any) -> bool:
    annotations = inspect.get_annotations(function).values()
    return any(word in str(one) for one in annotations for word in ("pyspark", "DataFrame", "SparkSession"))


def page(text: str) -> str:
    """Return the text of the page with the table of today."""
    before, _, rest = text.partition(_BEGIN)
    lines = rest.splitlines(keepends=True)
    length = next((place for place, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + table() + "".join(lines[length:])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
