"""Two runs of the frozen commands: exact results are compared exactly, ratios within their spread."""

from typing import Any

import pytest

from tools.frozen import SPREAD, compare

PART: dict[str, Any] = {
    "exact": {"train: weights": "abc", "train: attempts": 1},
    "ratios": {"encode_rows: numbers": 100.0},
    "texts": {"refused": "no column hour"},
    "seconds": {"train": 60.0},
    "error": "",
}


def run(**changed: Any) -> dict[str, Any]:
    """Return a run of one part, some of whose results are others."""
    return {"main job": {**PART, **changed}}


def test_equal_runs_do_not_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(run(), run()) == 0
    assert capsys.readouterr().out == "2 exact results before, 2 after; 0 differences\n"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"exact": {"train: weights": "abd", "train: attempts": 1}}, "DIFFERS main job, train: weights"),
        ({"exact": {"train: weights": "abc"}}, "  after  (missing)"),
        ({"ratios": {"encode_rows: numbers": 100 * (1 + SPREAD) + 1}}, "OUTSIDE main job, encode_rows: numbers"),
        ({"ratios": {"encode_rows: numbers": 100 * (1 - SPREAD) - 1}}, "OUTSIDE main job, encode_rows: numbers"),
        ({"ratios": {}}, "OUTSIDE main job, encode_rows: numbers: 100.0 before, (missing) after"),
        ({"error": "Traceback\nRuntimeError: no Java"}, "FAILED main job, after: RuntimeError: no Java"),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(run(), run(**changed)) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"ratios": {"encode_rows: numbers": 100 * (1 + SPREAD) - 1}},
        {"texts": {"refused": "the column hour is missing"}},
        {"seconds": {"train": 600.0}},
    ],
)
def test_ratios_within_the_spread_texts_and_seconds_judge_nothing(changed: dict[str, Any]) -> None:
    assert compare(run(), run(**changed)) == 0


def test_parts_of_one_run_alone_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(run(), run() | {"lookup": PART}) == 0
    assert "lookup: not compared, in one file only" in capsys.readouterr().out
