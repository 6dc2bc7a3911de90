"""The same words of eight ranks are one line."""

from mirrorspark.training.protocol.outcomes.words import numbers_in_words, ranks_in_words
from mirrorspark.training.run_records.live.messages import Messages, message_key


def test_ranks_in_words() -> None:
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([1, 0]) == "ranks 0, 1"
    assert ranks_in_words([5, 0, 1, 2, 2, 7, 8, 9]) == "ranks 0-2, 5, 7-9"
    assert ranks_in_words([2, 2]) == "rank 2"


def test_records_are_drawn_together_as_ranks_are() -> None:
    assert numbers_in_words((3, 4, 5, 9, 11, 12)) == "3-5, 9, 11, 12"


def test_the_same_words_with_other_addresses_have_the_same_sense() -> None:
    texts = ["rank 1 (10.0.0.1:41234) at 0x7f01, pid 12", "rank 7 (10.0.0.1:52345) at 0x7f99, pid 998"]
    assert len({message_key(text) for text in texts}) == 1
    assert message_key("loss is nan at step 10") != message_key("loss is nan at step 11")


def test_eight_ranks_that_say_the_same_make_one_line_in_the_order_of_the_first() -> None:
    messages = Messages()
    messages.add("a", 3, ": first", 0.0)
    for rank in range(8):
        messages.add("b", rank, ": second", 0.1)
    assert messages.lines(0.5) == []
    assert messages.lines(1.2) == ["rank 3: first", "ranks 0-7: second"]
    assert messages.lines(9.0) == []


def test_repeated_messages_are_counted_once_a_minute() -> None:
    messages = Messages()
    messages.add("a", 0, ": slow", 0.0)
    assert messages.lines(1.0) == ["rank 0: slow"]
    for second in range(2, 62):
        messages.add("a", 0, ": slow", float(second))
        assert messages.lines(float(second)) == ([] if second < 61 else ["rank 0: slow (60 times more)"])
    assert messages.lines(122.0) == []
    messages.add("a", 0, ": slow", 123.0)
    assert messages.lines(123.0, everything=True) == ["rank 0: slow"]
