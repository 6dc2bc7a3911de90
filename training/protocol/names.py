"""The names of a run's folders and files. Imports no other module of ours."""

RUNS_FOLDER = "runs"
WARM_START_FOLDER = "warm_start"
STATE_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
SUMMARY_FILE = "summary.json"
