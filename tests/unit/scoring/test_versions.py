"""L10: an executor whose TensorFlow is not the model's says so before it loads anything."""

from importlib.metadata import version

import pytest

from scoring.versions import ModelVersionsError, check_versions

INSTALLED = version("tensorflow")
MINOR = ".".join(INSTALLED.split(".")[:2])


@pytest.mark.parametrize(
    "exported_with",
    [{}, {"tensorflow": INSTALLED}, {"tensorflow": f"{MINOR}.99"}, {"tensorflow": INSTALLED, "numpy": "0.1"}],
)
def test_patch_versions_and_other_libraries_may_differ(exported_with: dict[str, str]) -> None:
    check_versions(exported_with, "flights/3")


def test_another_minor_version_is_refused_with_both_and_what_to_do() -> None:
    with pytest.raises(ModelVersionsError) as caught:
        check_versions({"tensorflow": "1.15.0", "numpy": "0.1"}, "flights/3")
    message = str(caught.value)
    assert "flights/3 cannot be scored by " in message
    assert f"it has tensorflow {INSTALLED} instead of 1.15.0" in message
    assert "other_versions='allow'" in message
    assert "numpy" not in message


def test_a_library_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.versions.COMPARED", {"tensorflow": ("no-such-distribution",)})
    with pytest.raises(ModelVersionsError, match="tensorflow not at all instead of"):
        check_versions({"tensorflow": INSTALLED}, "flights/3")
