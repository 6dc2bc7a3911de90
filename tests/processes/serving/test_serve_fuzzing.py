"""Q5: no request keeps a server from answering a probe, costs memory that stays, or is answered as the model's failure.

The same by hand with 100,000 requests: ``python -m tests.processes.serving.fuzzing``.
"""

from pathlib import Path

import psutil
import pytest

from tests.processes.serving.fuzzing import Figures, Target, ask_large, fuzz, large_bodies, probe_seconds, probing
from tests.processes.serving.served import serving as serving_models
from tests.processes.serving.test_lookup import serving as serving_rows
from tests.processes.serving.test_lookup import store_of
from tests.unit.scoring.exported_models import ORDERS, export_orders

PROBE_SECONDS = 0.1
# Other programs on the machine delay a probe as well, but hardly each time: the best try shows the server's own time.
TRIES = 5
GROWTH_BYTES = 100 * 2**20

pytestmark = pytest.mark.timeout(480)


def check(target: Target, process_id: int) -> None:
    server = psutil.Process(process_id)
    probe_seconds(target)
    for name in large_bodies():
        ask_large(target, name)  # buffers have their size now
        before, worst = server.memory_info().rss, []
        while len(worst) < TRIES and min(worst, default=1.0) > PROBE_SECONDS:
            figures = Figures()
            with probing(target, figures):
                status = ask_large(target, name)
            worst.append(figures.worst_probe_seconds)
        assert min(worst) <= PROBE_SECONDS, (name, worst)
        assert status != 500, name
        assert server.memory_info().rss - before < GROWTH_BYTES, name
    figures = Figures()
    fuzz(target, 300, 0, figures)
    assert not figures.failed, figures.failed
    assert figures.requests == 300


def test_hostile_requests_for_models_delay_no_probe_and_are_no_failures_of_the_model(tmp_path: Path) -> None:
    model = export_orders(tmp_path / "orders")
    with serving_models("--model", str(model)) as (port, process):
        check(Target(port, "/ping", model.name, tuple(ORDERS.column_names[1:])), process.pid)


@pytest.mark.full
def test_hostile_requests_for_rows_delay_no_probe(tmp_path: Path) -> None:
    with serving_rows(store_of(tmp_path, [*range(1000)])) as (port, process):
        check(Target(port, "/health"), process.pid)
