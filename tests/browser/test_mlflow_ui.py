"""MLflow's own pages show our runs and their curves, in the version that the lock file pins."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from mirrorspark.callbacks.mlflow.shared_view import share_view
from mirrorspark.callbacks.mlflow.tracking_store import own_store, run_page
from mirrorspark.training.run_records.tracked_run import TrackedRun
from tests.mlflow_server import mlflow_server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PAGE_SECONDS = 45
EPOCHS = 5
METRICS = ("loss", "val_auc")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrackedRun]:
    """Return two finished runs, by name, in a new store."""
    output = tmp_path_factory.mktemp("store")
    tracked = {}
    for name, slope in (("slow-learner", 0.01), ("fast-learner", 0.02)):
        run = TrackedRun(own_store(output), "flights", output, None, name)
        run.log_params({"learning_rate": slope})
        for epoch in range(1, EPOCHS + 1):
            run.log_metrics({"loss": 1 - slope * epoch, "val_auc": 0.6 + slope * epoch}, epoch)
        run.finish("FINISHED")
        tracked[name] = run
    return tracked


@pytest.fixture(scope="module")
def pages(runs: dict[str, TrackedRun], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the store's pages on loopback and yield their address."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, next(iter(runs.values())).uri, str(folder / "files")) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.full
@pytest.mark.timeout(240)
def test_runs_page_lists_both_runs_and_draws_their_curves_together(
    browser: "Chrome", pages: str, runs: dict[str, TrackedRun]
) -> None:
    """T7: people compare runs in the MLflow UI."""
    experiment = next(iter(runs.values())).experiment_id

    browser.get(f"{pages}/#/experiments/{experiment}/runs?compareRunsMode=CHART")

    wait_until(browser, lambda: all(name in text_of(browser, "[role=grid], [role=treegrid], table") for name in runs))
    # One line per run in each chart.
    wait_until(browser, lambda: lines_per_chart(browser) == [len(runs)] * len(METRICS))


@pytest.mark.timeout(240)
def test_the_link_to_compare_runs_opens_their_charts_with_the_quality_metric_first(
    browser: "Chrome", pages: str, runs: dict[str, TrackedRun]
) -> None:
    """L6: MLflow sorts the charts by name otherwise."""
    run = runs["fast-learner"]

    browser.get(f"{pages}{share_view(run.client, str(run.experiment_id), 'val_auc')}")

    wait_until(browser, lambda: lines_per_chart(browser) == [len(runs)] * len(METRICS))
    shown = text_of(browser, "[data-testid=experiment-view-compare-runs-chart-area]")
    assert list(dict.fromkeys(re.findall("|".join(METRICS), shown))) == ["val_auc", "loss"]


@pytest.mark.timeout(240)
def test_page_of_a_run_shows_a_curve_with_a_point_per_epoch_for_every_metric(
    browser: "Chrome", pages: str, runs: dict[str, TrackedRun]
) -> None:
    """T7: the curve of a run is whole."""
    run = runs["fast-learner"]

    browser.get(f"{pages}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics")

    wait_until(browser, lambda: points_per_line(browser) == [EPOCHS] * len(METRICS))
    shown = text_of(browser, "body")
    assert "fast-learner" in shown
    assert all(metric in shown for metric in METRICS)


@pytest.mark.full
@pytest.mark.timeout(240)
def test_the_link_to_a_run_opens_it_among_trainings(browser: "Chrome", pages: str, runs: dict[str, TrackedRun]) -> None:
    """L6: MLflow opens its pages among judges and traces otherwise."""
    run = runs["fast-learner"]
    link = run_page(pages, str(run.experiment_id), str(run.run_id))
    assert link is not None

    browser.get(link)

    wait_until(browser, lambda: "About this run" in text_of(browser, "body"))
    shown = text_of(browser, "body")
    assert "fast-learner" in shown
    assert "Judges" not in shown


def wait_until(browser: "Chrome", condition: Callable[[], bool]) -> None:
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    # The page redraws its tables while they are read.
    patience = WebDriverWait(browser, PAGE_SECONDS, 0.2, ignored_exceptions=[StaleElementReferenceException])
    try:
        patience.until(lambda _: condition())
    except TimeoutException:
        pytest.fail(f"not so after {PAGE_SECONDS} s; the page shows: {text_of(browser, 'body')[:2000]}")


def text_of(browser: "Chrome", selector: str) -> str:
    return " ".join(element.text for element in browser.find_elements("css selector", selector))


def drawn_points(browser: "Chrome") -> list[list[int]]:
    """Return, per chart, the number of points of each line as drawn; MLflow adds an empty line for each."""
    script = """
        const count = (parent, selector) => parent.querySelectorAll(selector).length;
        return [...document.querySelectorAll('.js-plotly-plot')].map(chart =>
            [...chart.querySelectorAll('.scatterlayer .trace')]
                .filter(line => count(line, 'path.js-line') > 0)
                .map(line => count(line, 'path.point'))
                .filter(points => points > 0));
    """
    found = browser.execute_script(script)
    assert isinstance(found, list)
    return found


def lines_per_chart(browser: "Chrome") -> list[int]:
    return [len(lines) for lines in drawn_points(browser)]


def points_per_line(browser: "Chrome") -> list[int]:
    return [points for lines in drawn_points(browser) for points in lines]
