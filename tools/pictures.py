"""Takes pictures for the documentation: two runs in MLflow's pages, and one call of ``ms.fit`` for each kind of table.

``python -m tools.pictures runs`` trains the flights twice, and writes ``docs/images/mlflow-runs.png``. ``python -m
tools.pictures calls DATA`` makes the calls, an hour on two cores, and writes ``docs/images/fit-*.png``; DATA has the
data sets of docs/quality.md, and ``--only NAME`` takes one of them. It needs Chromium with its driver.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.quality_tables import adult_tables
from tests.chromium import MISSING, chromium, is_installed
from tests.mlflow_server import mlflow_server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WAIT_SECONDS = 60
_WIDTH = 900
_LEAST_CHART = 200
_WITHOUT_TOOLS = """
    const style = document.createElement("style");
    style.textContent = ".modebar {display: none}";
    document.head.append(style);
"""
# Learning rates whose curves differ.
_RATES = ("0.001", "0.0001")


@dataclass(frozen=True)
class Call:
    """A call of ``ms.fit``.

    Attributes:
        code: Lines that set ``result``; they see ``ms`` and the tables.
        tables: Returns the tables by their names in the lines, given the folder of the sets.
    """

    code: str
    tables: Callable[[Path], Mapping[str, pd.DataFrame]]


def _adult(data: Path) -> Mapping[str, pd.DataFrame]:
    splits = adult_tables(data / "adult")
    return {"people": pd.concat([rows.assign(split=split) for split, rows in splits.items()], ignore_index=True)}


def _id_table(file: str, name: str) -> Callable[[Path], Mapping[str, pd.DataFrame]]:
    return lambda data: {name: pd.read_parquet(data / "id_tables" / f"{file}.parquet")}


def _movies(data: Path) -> Mapping[str, pd.DataFrame]:
    return {name: pd.read_csv(data / "ml_latest_small" / f"{name}.csv") for name in ("ratings", "movies")}


def _purchases(data: Path) -> Mapping[str, pd.DataFrame]:
    lines = [line.split() for line in (data / "amazon_beauty_seq" / "Beauty.txt").read_text().splitlines()]
    begin = pd.Timestamp("2014-01-01")  # the file has the order alone
    rows = [
        (user, f"i{item}", begin + pd.Timedelta(days=place))
        for user, *items in lines
        for place, item in enumerate(items)
    ]
    return {"purchases": pd.DataFrame(rows, columns=["user", "item", "bought_at"])}


CALLS: Mapping[str, Call] = {
    "adult": Call('result = ms.fit(people, label="income")', _adult),
    "flights": Call('result = ms.fit(flights, label="late15")', _id_table("flights_late15", "flights")),
    "clicks": Call('result = ms.fit(searches, label="click")', _id_table("click_small", "searches")),
    "payments": Call('result = ms.fit(payments, label="status")', _id_table("open_payments_60k", "payments")),
    "movies": Call('result = ms.fit(ratings, label="movieId", items=movies)', _movies),
    "purchases": Call('result = ms.fit(purchases, label={"name": "item", "kind": "candidate"})', _purchases),
}


def take_runs() -> None:
    """Train the flights twice, and take the picture of their curves in MLflow's pages."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        summary = Path(folder, "summary.json")
        for rate in _RATES:
            command = [sys.executable, "-m", "mirrorspark.training.run", "--workers", "2", "--learning-rate", rate]
            subprocess.run([*command, "--patience", "0", "--epochs", "8", "--summary", str(summary)], check=True)
        _take_curves(Path(folder), json.loads(summary.read_text(encoding="utf-8")))


def _take_curves(folder: Path, summary: Mapping[str, Any]) -> None:
    from mlflow import MlflowClient

    from mirrorspark.callbacks.mlflow.shared_view import share_view

    store = summary["tracking_uri"]
    client = MlflowClient(store)
    experiment = client.get_run(summary["run_id"]).info.experiment_id
    place = share_view(client, experiment, "val_auc")
    with mlflow_server(folder, store, str(folder / "artifacts")) as port, chromium() as browser:
        browser.set_window_size(1500, 900)
        browser.get(f"http://127.0.0.1:{port}{place}")
        _wait(browser, lambda: _lines(browser) >= len(_RATES))
        for label in ("Close", "Hide banner"):  # MLflow's assistant, and the notice that a view is shared
            for button in browser.find_elements("css selector", f'button[aria-label="{label}"]'):
                button.click()
        # The charts' tools show under a pointer alone, which this browser lacks.
        browser.execute_script(_WITHOUT_TOOLS)
        # MLflow draws the charts anew where they get more room.
        _wait(browser, lambda: _width(browser) > _LEAST_CHART)
        browser.save_screenshot(str(IMAGES / "mlflow-runs.png"))


def _width(browser: "Chrome") -> float:
    """Return the width of the first chart in pixels."""
    script = "return document.querySelector('.js-plotly-plot .scatterlayer')?.closest('svg').clientWidth ?? 0"
    return float(browser.execute_script(script))


def _lines(browser: "Chrome") -> int:
    return len(browser.find_elements("css selector", ".js-plotly-plot .scatterlayer .trace path.js-line"))


def take_call(name: str, data: Path) -> None:
    """Make a call, and take the picture of its lines and of what a notebook shows for its result."""
    import mirrorspark as ms

    call = CALLS[name]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        names: dict[str, Any] = {"ms": ms, **call.tables(data)}
        exec(call.code, names)  # noqa: S102 - the picture shows the very lines that ran
        page = Path("page.html").resolve()
        body = f"<pre>{escape(call.code)}</pre>{names['result']._repr_html_()}"
        page.write_text(f'<meta charset="utf-8"><body style="margin:16px">{body}</body>', encoding="utf-8")
        with chromium() as browser:
            browser.set_window_size(_WIDTH, 900)
            browser.get(page.as_uri())
            height = browser.execute_script("return document.body.scrollHeight + 32")
            clip = {"x": 0, "y": 0, "width": _WIDTH, "height": height, "scale": 1}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            (IMAGES / f"fit-{name}.png").write_bytes(base64.b64decode(taken["data"]))


def _wait(browser: "Chrome", condition: Callable[[], bool]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_SECONDS).until(lambda _: condition())


def main() -> None:
    """Take the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("runs")
    calls = commands.add_parser("calls")
    calls.add_argument("data", type=Path)
    calls.add_argument("--only", choices=CALLS)
    arguments = parser.parse_args()
    if not is_installed():
        sys.exit(MISSING)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if arguments.command == "runs":
        take_runs()
    else:
        data = arguments.data.resolve()
        for name in [arguments.only] if arguments.only else CALLS:
            take_call(name, data)


if __name__ == "__main__":
    main()
