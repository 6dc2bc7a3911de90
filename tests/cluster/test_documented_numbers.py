"""L18, T3: the page about shipping cost runs as it is written, and its intervals and means are right."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PAGE = Path(__file__).resolve().parents[2] / "docs" / "shipping-cost.md"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_page_of_shipping_cost_learns_means_an_interval_and_ratings(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the page names no output folder
    blocks = re.findall(r"(?:^    .*\n(?:\n+(?=    ))?)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    made: dict[str, Any] = {}
    exec("\n".join(map(textwrap.dedent, blocks)), made)  # noqa: S102 - a page of ours
    freight = made["table"]["freight_value"]
    assert freight.skew() > 2
    assert 0.08 < (freight == 0).mean() < 0.12
    for result in (made["squared"], made["tweedie"]):
        assert result.metrics["test"]["r2"] > 0.4
        assert abs(result.metrics["test"]["bias"]) < 0.1 * freight.mean()
    assert (made["tweedie"].score(made["table"].head(500))["score"] > 0).all()
    assert {"rmse", "mae", "bias"} <= set(made["compared"].index)
    assert made["interval"].metrics["test"]["interval_coverage"] == pytest.approx(0.8, abs=0.07)
    quotes = np.stack(made["quotes"]["quantiles"].to_numpy())
    assert (np.diff(quotes) >= 0).all()
    assert list(made["quotes"]["at_most"]) == list(quotes[:, 2])
    assert made["stars"].spec.label.kind == "numeric"
    assert made["stars"].metrics["test"]["rmse"] < 1  # of a deviation of 1.4
