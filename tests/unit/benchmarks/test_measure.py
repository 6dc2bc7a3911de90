"""Rounds, medians, spreads, ratios and marks, on times that are given."""

import pytest

from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio


class FakeClock:
    """A clock that the work itself moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rounds_go_through_all_contenders_and_begin_with_another_one_each_time() -> None:
    calls: list[str] = []
    clock = FakeClock()

    def work(name: str, seconds: float) -> None:
        calls.append(name)
        clock.now += seconds

    contenders = [
        Contender("a", lambda: work("a", 1.0)),
        Contender("b", lambda: work("b", 2.0)),
        Contender("c", lambda: work("c", 3.0)),
    ]

    timings = interleave(contenders, rounds=3, warm_ups=1, clock=clock)

    assert calls == [*"cab", *"abc", *"bca", *"cab"]
    assert {name: timing.seconds for name, timing in timings.items()} == {
        "a": (1.0,) * 3,
        "b": (2.0,) * 3,
        "c": (3.0,) * 3,
    }


def test_warm_up_rounds_do_not_count() -> None:
    clock = FakeClock()
    durations = iter([100.0, 2.0, 3.0, 4.0])

    def work() -> None:
        clock.now += next(durations)

    timings = interleave([Contender("a", work)], rounds=3, warm_ups=1, clock=clock)

    assert timings["a"].seconds == (2.0, 3.0, 4.0)


def test_preparation_is_not_measured() -> None:
    clock = FakeClock()

    def prepare() -> None:
        clock.now += 50.0

    def work() -> None:
        clock.now += 1.5

    timings = interleave([Contender("a", work, prepare)], rounds=2, warm_ups=0, clock=clock)

    assert timings["a"].seconds == (1.5, 1.5)


def test_a_float_that_the_work_returns_is_its_time_and_any_other_result_is_not() -> None:
    clock = FakeClock()

    def write() -> int:
        clock.now += 3.0
        return 1_000

    contenders = [Contender("child process", lambda: 0.25), Contender("writer", write)]

    timings = interleave(contenders, rounds=1, warm_ups=0, clock=clock)

    assert timings["child process"].seconds == (0.25,)
    assert timings["writer"].seconds == (3.0,)


def test_contenders_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'a'\].*rename one"):
        interleave([Contender("a", lambda: 1.0), Contender("a", lambda: 1.0)], rounds=1)


def test_median_and_spread() -> None:
    timing = Timing("a", (2.0, 2.5, 4.0))

    assert timing.median == 2.5
    assert timing.spread == pytest.approx(0.8)  # (4 - 2) / 2.5


@pytest.mark.parametrize("seconds", [(), (1.0, 0.0)])
def test_times_that_nothing_can_be_divided_by_are_refused(seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="'a' has the times"):
        Timing("a", seconds)


def test_speed_ratio_compares_medians() -> None:
    timings = {"new": Timing("new", (1.0, 2.0, 9.0)), "old": Timing("old", (8.0, 7.0, 1.0))}

    assert speed_ratio(timings, "new", "old") == 3.5


@pytest.mark.parametrize(
    ("bound", "found", "is_met"),
    [("at least", 0.9, True), ("at least", 0.89, False), ("at most", 0.9, True), ("at most", 0.91, False)],
)
def test_mark_is_met_up_to_its_limit(bound: str, found: float, is_met: bool) -> None:
    mark = Mark("a / b", found, 0.9, bound)  # type: ignore[arg-type]

    assert mark.is_met is is_met
