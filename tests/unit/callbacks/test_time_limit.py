"""F6, T10: a time limit becomes a number of epochs, once."""

from collections.abc import Callable, Sequence

import pytest
import tf_keras

from mirrorspark.callbacks.time_limit import AgreedTimeLimit


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def epochs_of(
    limit: AgreedTimeLimit,
    clock: Clock,
    seconds: Callable[[int], Sequence[float]],
    first: int = 0,
    most: int = 50,
    until: int = 50,
) -> int:
    """Return the completed epochs of a training whose epochs take the sum of ``seconds``, one number per step."""
    model = tf_keras.Sequential()
    model.stop_training = False
    limit.set_model(model)
    limit.set_params({"epochs": most})
    limit.on_train_begin()
    for epoch in range(first, min(most, until)):
        for batch, step in enumerate(seconds(epoch)):
            clock.now += step
            limit.on_train_batch_end(batch)
        limit.on_epoch_end(epoch)
        if model.stop_training:
            return epoch + 1
    return most


@pytest.mark.parametrize(
    ("seconds", "first", "others", "expected"),
    [
        (60, (2, 3), (2, 3), 12),
        (60, (20, 3), (2, 3), 8),  # 23 s, 5 s, and 32 s for six more
        (60, (57, 4), (1, 1), 1),
        (60, (56, 1), (1, 2), 2),  # 3 s are left, more than the first epoch took after its first step
        (60, (2, 28), (1, 28), 2),  # 30 s, 29 s: none is left
        (60, (2, 40), (1, 40), 1),
        (0.5, (2, 3), (2, 3), 1),
    ],
)
def test_the_number_of_epochs_is_settled_by_the_second_one_or_by_the_first_if_no_other_fits(
    seconds: float, first: Sequence[float], others: Sequence[float], expected: int
) -> None:
    clock, settled = Clock(), list[int]()
    limit = AgreedTimeLimit(seconds, settled=settled.append, clock=clock)
    assert epochs_of(limit, clock, lambda epoch: others if epoch else first) == expected
    assert (settled, limit.epochs) == ([expected], expected)
    # A driver that was killed after the last checkpoint and before its end trains no further epoch.
    again = AgreedTimeLimit(seconds, settled=settled.append)
    assert not again.stopped
    again.set_state(limit.get_state())
    assert again.stopped


def test_no_more_epochs_are_settled_than_fit_has_and_none_where_early_stopping_has_ended_it() -> None:
    clock, settled = Clock(), list[int]()
    limit = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    assert epochs_of(limit, clock, lambda epoch: (1,), most=7) == 7
    assert settled == [7]
    limit.model.stop_training = True
    limit.on_train_begin()
    limit.on_epoch_end(0)
    limit.on_epoch_end(1)
    assert (settled, limit.epochs) == ([7], None)


def test_an_epoch_that_takes_longer_later_changes_nothing_and_a_second_fit_starts_afresh() -> None:
    clock, settled = Clock(), list[int]()
    limit = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    assert epochs_of(limit, clock, lambda epoch: (5,) if epoch < 2 else (500,)) == 12
    assert epochs_of(limit, clock, lambda epoch: (10,)) == 6
    assert settled == [12, 6]


def test_a_restart_keeps_the_number_and_before_that_the_time_that_is_spent() -> None:
    clock, settled = Clock(), list[int]()
    first = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    epochs_of(first, clock, lambda epoch: (5,), most=50, until=3)
    again = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    again.set_state(first.get_state())
    assert epochs_of(again, clock, lambda epoch: (100,), first=3) == 12
    assert again.params == {"epochs": 12}
    assert settled == [12, 12]

    early = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    epochs_of(early, clock, lambda epoch: (5,), most=50, until=1)
    assert early.get_state() == {"epoch": 1, "epochs": None, "spent": 5.0}
    later = AgreedTimeLimit(60, settled=settled.append, clock=clock)
    later.set_state(early.get_state())
    # 5 s before, 20 s and 5 s after: 30 s for six more.
    assert epochs_of(later, clock, lambda epoch: (20,) if epoch == 1 else (5,), first=1) == 9


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="seconds is 0"):
        AgreedTimeLimit(0, settled=lambda epochs: None)
