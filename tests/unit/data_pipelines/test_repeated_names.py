"""Names that come more than once are told once, in their order."""

from data_pipelines.repeated_names import repeated_names


def test_names_that_come_more_than_once_are_told_once() -> None:
    assert repeated_names(["b", "a", "c", "b", "a", "b"]) == ["a", "b"]
    assert repeated_names(name for name in ("a", "A")) == []
