"""L18, T3, F13: pages run as they are written, and what they say of their results holds."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def names_of(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the samples of a page in a folder, as a notebook would; return the names that they define."""
    monkeypatch.chdir(folder)  # the pages name no output folder
    monkeypatch.syspath_prepend(str(folder))  # type: ignore[no-untyped-call]
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n(?:\n+(?=    ))?)+", text, re.MULTILINE)
    made: dict[str, Any] = {"__name__": "__main__"}
    exec("\n".join(map(textwrap.dedent, blocks)), made)  # noqa: S102 - a page of ours
    return made


def test_the_page_of_shipping_cost_learns_means_an_interval_and_ratings(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = names_of("shipping-cost.md", tmp_path, monkeypatch)
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


def test_the_page_of_texts_and_pictures_learns_encoders_along_and_takes_the_tagger_with_the_model(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = names_of("texts-and-pictures.md", tmp_path, monkeypatch)
    # Nobody has chosen one of these pictures, of which a tenth are of each digit.
    assert made["shares"]["frozen"] > 0.6
    assert made["shares"]["learnt"] > max(0.9, made["shares"]["frozen"] + 0.05)
    assert made["learnt"].trained.attempts[-1].workers == 2
    # The titles of the test rows are new; scored as titles they have the scores of their tags.
    assert made["sold"].metrics["test"]["auc"] > 0.75
    adverts = made["adverts"]
    words = {split: {*" ".join(rows["title"]).split()} for split, rows in adverts.groupby("split")}
    assert words["train"] & words["test"] == {"as", "new", "used", "broken"}
    by_tags = made["sold"].score(adverts).sort_values("advert")["score"].to_numpy()
    assert np.array_equal(made["scores"].sort_values("advert")["score"].to_numpy(), by_tags)
