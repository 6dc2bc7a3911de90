"""The names of a run's folders and files, and the rule for the name of a run. Imports no other module of ours."""

import re

RUNS_FOLDER = "runs"
WARM_START_FOLDER = "warm_start"
STATE_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
SUMMARY_FILE = "summary.json"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def is_name(text: str) -> bool:
    """Return True if ``text`` is a valid name of a run, which also names folders and the registered model."""
    return _NAME.fullmatch(text) is not None
