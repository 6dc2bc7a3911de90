"""H9: an unknown name suggests the known one that was probably meant, everywhere by the same rule."""

import pytest

from mirrorspark.storage.near_names import each_meant, likely_meant, meant, nearest


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("epoch", ["epochs", "seed"], "epochs"),
        ("batch_size", ["global_batch_size", "accumulate"], "global_batch_size"),
        ("LATE", ["late", "town"], "late"),
        ("valid", ["train", "validation", "test"], "validation"),
        ("t", ["train", "test"], None),
        ("tes", ["tested-1", "testing"], None),
        ("zzz", ["epochs"], None),
        ("", ["epochs"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_name_is_suggested_and_none_that_is_far(name: str, known: list[str], found: str | None) -> None:
    assert nearest(name, known) == found


def test_hints_read_as_parts_of_a_message() -> None:
    assert meant("twn", ["town"]) == " (did you mean 'town'?)"
    assert meant("Town", ["town"]) == " (did you mean 'town'? Upper and lower case count)"
    assert meant("zzz", ["town"]) == ""
    assert each_meant(["twn", "zzz"], ["town"]) == "'twn' (did you mean 'town'?), 'zzz'"
    assert each_meant(list("abcdefg"), []) == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert likely_meant(["epoch", "sed", "epohcs"], ["epochs", "seed"], "no") == "did you mean epochs and seed?"
    assert likely_meant(["zzz"], ["epochs"], "use some") == "use some"
