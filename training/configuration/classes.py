"""The classes of a label as settings name them: by the label's own values, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.storage import meant
from mirrorspark.training.configuration.fields import ConfigError

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.reading import Dataset

# Values of a binary label that does not say which value is positive.
_BINARY = {"0": 0, "false": 0, "1": 1, "true": 1}
_SHOWN = 10


def class_text(name: Any) -> str:
    """Return a class as text, in the form of a key of JSON: ``True`` is ``true``, ``1.0`` is ``1``."""
    if isinstance(name, bool):
        return str(name).lower()
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def by_class_text(setting: str, given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values of ``setting`` by the classes as text.

    Raises:
        ConfigError: Two classes are the same text.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if (text := class_text(name)) in found:
            raise ConfigError(f"{setting} names class '{text}' twice; leave one of them out")
        found[text] = value
    return found


@dataclass(frozen=True)
class Classes:
    """The classes of a label.

    Attributes:
        label: The label.
        names: Its classes in order, of several, or values of a binary label; empty if only the rows have them.
        is_whole: Whether a binary label has no other values than ``names``.
    """

    label: kinds.Label
    names: tuple[str, ...] = ()
    is_whole: bool = True

    @classmethod
    def of_label(cls, label: kinds.Label) -> Self:
        """Return the classes as far as the spec has them."""
        if label.kind == "binary":
            return cls(label, ("0", "1") if label.positive is None else (), is_whole=label.positive is None)
        numbered = tuple(map(str, range(label.classes))) if isinstance(label.classes, int) else ()
        return cls(label, label.order or numbered)

    @classmethod
    def of_dataset(cls, dataset: "Dataset") -> Self:
        """Return the classes of a converted table."""
        label = dataset.spec.label
        if label.kind != "binary":
            return cls(label, dataset.features.class_names)
        return cls.of_label(label) if label.positive is None else cls(label, *_words(dataset))

    @classmethod
    def of_values(cls, label: kinds.Label, values: Sequence[Any]) -> Self:
        """Return the classes of a label whose ``values`` are all different ones of its column."""
        known = cls.of_label(label)
        # The texts of other types are not those of the vocabulary.
        is_plain = label.kind in ("binary", "multi_class") and all(isinstance(value, str | int) for value in values)
        return cls(label, tuple(map(class_text, values))) if is_plain and not known.names else known

    def numbers(self, setting: str, given: Sequence[str]) -> dict[str, int]:
        """Return the number of each class that ``setting`` names; empty while the classes are not known.

        Raises:
            ConfigError: The label does not have such a class, or two names are the same class.
        """
        if self.label.kind != "binary" and not self.names:
            return {}
        found: dict[str, int] = {}
        for name in given:
            number = self._number(name)
            if number is None:
                shown = f"{', '.join(self.names[:_SHOWN])}{' and more' * (len(self.names) > _SHOWN)}"
                raise ConfigError(
                    f"{setting} names class '{name}', which label '{self.label.name}' does not have"
                    f"{meant(name, self.names)}; use {shown}"
                )
            if same := [other for other in found if found[other] == number]:
                raise ConfigError(
                    f"{setting} names '{same[0]}' and '{name}', which are one class of label '{self.label.name}': "
                    f"leave one of them out"
                )
            found[name] = number
        return found

    def guesses(self, given: Sequence[str]) -> list[str]:
        """Return those of ``given`` that count as the other class of a binary label without being among its values."""
        positive = self.label.positive
        if positive is None or self.is_whole:
            return []
        return [name for name in given if not any(_is_same(name, word) for word in (positive, *self.names))]

    def _number(self, name: str) -> int | None:
        if self.label.kind != "binary":
            return self.names.index(name) if name in self.names else None
        if self.label.positive is None:
            return _BINARY.get(name.lower())
        if _is_same(name, self.label.positive):
            return 1
        # Every other value of the column is the other class.
        return 0 if not self.is_whole or any(_is_same(name, word) for word in self.names) else None


def _is_same(name: str, word: str) -> bool:
    """Return whether two texts are the same, or the same number in two forms."""
    try:
        return name == word or float(name) == float(word)
    except ValueError:
        return False


def _words(dataset: "Dataset") -> tuple[tuple[str, ...], bool]:
    """Return the values of a binary label in the profile, and True if they are those of every training row."""
    from mirrorspark.data_pipelines import read_profile  # workers read no profile
    from mirrorspark.data_pipelines.quality import PROFILE_FILE

    if not (dataset.path / PROFILE_FILE).is_file():
        return (), False
    profile = read_profile(dataset.path)
    column, size = profile.column(dataset.spec.label.name), profile.splits.get("train")
    if column is None or size is None:
        return (), False
    values = column.splits["train"]
    is_whole = size.sampled >= size.rows and values.distinct == len(values.commonest)
    return tuple(each.value for each in values.commonest), is_whole
