"""The call that makes the report of a run: read it, write the page and the tables, log them in MLflow."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from mirrorspark.callbacks.mlflow import metric_requests
from mirrorspark.fleet.bins import Distribution
from mirrorspark.fleet.runs.counts import read_counts
from mirrorspark.fleet.runs.kept import read_records
from mirrorspark.fleet.runs.plan import RUN_FOLDER, RunPlan
from mirrorspark.fleet.runs.report.page import report_page
from mirrorspark.fleet.runs.report.report import FleetReport, report_of
from mirrorspark.pages import beside_the_result
from mirrorspark.scoring import open_store
from mirrorspark.storage import Location, StoragePath

PAGE_FILE = "report.html"

_TABLES = ("models", "microbatches")


def fleet_report(
    output: Location,
    *,
    ledger: str | Path | None = None,
    former: Location | None = None,
    price_per_core_hour: float | None = None,
    experiment: str | None = None,
    tracking_uri: str | None = None,
) -> FleetReport:
    """Report a run of a fleet, finished or not: speed, cost, failed models, and drift of the scores.

    ``_run`` in the output gets the page ``report.html``, and the tables ``report_models.parquet`` and
    ``report_microbatches.parquet``; a former report is replaced.

    Args:
        output: Folder of the run.
        ledger: The ledger of the run, unless that is the file in its folder.
        former: Folder of the run whose scores these are compared with.
        price_per_core_hour: Price of a core for an hour, in any currency; without it, no cost is given.
        experiment: MLflow experiment that gets a run with the numbers and the files; by default none does.
        tracking_uri: MLflow tracking server or store; by default as in ``register_fleet``.

    Raises:
        FileNotFoundError: One of the folders has no run.
        LedgerError: The ledger cannot be used, is not named, or does not have the run.
        FleetError: The run's copy of the fleet is damaged.
        ScoringError: The price is below 0.
        ModelStoreError: The store cannot be used; the files are written.
    """
    records = read_records(output, ledger)
    before = ("", {}) if former is None else (str(former), _distributions(RunPlan.load(StoragePath.of(former)), former))
    report = report_of(records, _distributions(records.plan, output), before, price_per_core_hour)
    with TemporaryDirectory() as scratch:
        with beside_the_result(f"the page {PAGE_FILE}"):
            (Path(scratch) / PAGE_FILE).write_text(report_page(report), encoding="utf-8")
        for name in _TABLES:
            pq.write_table(getattr(report, name), Path(scratch) / f"report_{name}.parquet")
        for file in sorted(Path(scratch).iterdir()):
            (StoragePath.of(output) / RUN_FOLDER / file.name).upload(file)
        if experiment is not None:
            _log(report, scratch, experiment, tracking_uri)
    return report


def _distributions(plan: RunPlan, output: Location) -> dict[str, Distribution]:
    return read_counts(StoragePath.of(output) / one.folder for one in plan.microbatches)


def _log(report: FleetReport, folder: str, experiment: str, tracking_uri: str | None) -> None:
    """Log a report as an MLflow run, the same one for each report of a run."""
    with open_store(tracking_uri, may_be_new=True) as client:
        run = metric_requests.start_run(
            client, metric_requests.Target(None, client.tracking_uri, experiment, report.run)
        )
        for name, value in report.totals.items():
            client.log_metric(run, name, value)
        for name in ("run", "output", "fleet", "former", "ledger"):
            client.set_tag(run, f"fleet.{name}", getattr(report, name))
        client.log_artifacts(run, folder)
        client.set_terminated(run)
