"""The page of a validation: blocking problems come first, and texts are escaped."""

from dataclasses import replace

from mirrorspark.lifecycle.gate.page import validation_page
from mirrorspark.lifecycle.gate.thresholds import Gates, Threshold
from tests.unit.lifecycle.gate_facts import facts_of, slice_of, validation_of

GATES = Gates((Threshold("auc", gain_at_least=-0.01, slices=("all",)),), same_schema=False)
BAD, SMALL = (
    replace(slice_of(value, 0.8, slicing="carrier", name=name, spread=0.01), examples=examples)
    for value, name, examples in ((0.7, "<b>B6</b>", 500), (0.7, "HA", 12))
)


def test_what_blocks_stands_before_what_has_passed() -> None:
    page = validation_page(validation_of(facts_of(slice_of(0.81, 0.8, spread=0.01), BAD, SMALL), GATES))

    assert "1 of 4 findings block a promotion." in page
    places = [page.index(text) for text in ("is -0.1, at least", "12 examples, fewer than 100", "<summary>2 passed")]
    assert places == sorted(places)
    assert "carrier = &lt;b&gt;B6&lt;/b&gt;" in page
    assert "<b>B6" not in page
    assert page.count("<svg ") == 1
    assert "http" not in page.replace("http-equiv", "")


def test_a_first_version_has_no_champion_and_no_picture_of_changes() -> None:
    page = validation_page(validation_of(gates=Gates((Threshold("auc", at_least=0.7),)), champion=None))

    assert "All gates passed: it may be promoted." in page
    assert "there is no champion to compare with" in page
    assert "<svg " not in page
