"""One check: its line, its document, and the effect of a failure on a run."""

import pytest

from mirrorspark.training.job.readiness.checks import Check, PreflightError, require, warning


def test_a_check_is_one_line_with_its_status_first() -> None:
    assert Check("java", True, "17").as_line() == "ok   java          17"
    assert Check("java", False, "there is none; install it").as_line() == "FAIL java          there is none; install it"
    assert warning("clocks", "2 s apart; use NTP").as_line() == "warn clocks        2 s apart; use NTP"


def test_a_document_holds_what_was_measured() -> None:
    document = Check("all-reduce", True, "fast", values={"latency_seconds": 0.001}).as_document()
    expected = {"name": "all-reduce", "status": "ok", "detail": "fast", "values": {"latency_seconds": 0.001}}
    assert document == expected


def test_only_failed_checks_stop_a_run() -> None:
    require([Check("java", True, "17"), warning("clocks", "2 s apart")])
    with pytest.raises(PreflightError, match=r"^java: there is none$"):
        require([Check("java", False, "there is none"), warning("clocks", "2 s apart")])
