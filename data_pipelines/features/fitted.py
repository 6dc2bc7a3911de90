"""Fitted features: a feature spec with the vocabularies and statistics of the training rows, and a hash of them."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import arithmetic
from mirrorspark.data_pipelines.features.kinds import (
    FIRST_VOCABULARY_ID,
    RANGE,
    Bucketed,
    Numeric,
    TargetEncoding,
    VocabularyOwner,
)
from mirrorspark.data_pipelines.features.names import file_name
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.features.vocabulary import Vocabulary
from mirrorspark.storage import StoragePath

SPEC_FILE = "features.json"
ITEMS_FOLDER = "items"
ITEMS_FILE = "items.arrow"
VOCABULARY_FOLDER = "vocabularies"
TARGET_MEANS_FOLDER = "target_means"

_MEANS_SCHEMA = pa.schema([("means", pa.float64())])


class FeatureMismatchError(ClearError, ValueError):
    """Fitted features that differ from those of the data or the model."""


@dataclass(frozen=True)
class NumericStatistics:
    """Statistics of one numeric feature over the training rows with a value, after clip and logarithm (float64)."""

    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    count: int


@dataclass(frozen=True)
class ItemTable:
    """The candidates' own features: a fitted spec of the item table, and its rows.

    Attributes:
        features: The spec with the vocabularies and statistics of the item table. The key has the candidates' ids.
        content: An Arrow file with a row per item: the key as a string, and the raw columns of the features.
    """

    features: "FittedFeatures"
    content: pa.Buffer

    @cached_property
    def rows(self) -> pa.Table:
        """The rows."""
        return pa.ipc.open_file(self.content).read_all()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the rows."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def hash(self) -> str:
        """Hex digits that change with the features or a row."""
        return f"{self.features.hash} {self.digest}"

    def save(self, folder: Path) -> None:
        """Write both into the local ``folder``."""
        self.features.save(folder)
        (folder / ITEMS_FILE).write_bytes(self.content)

    @classmethod
    def load(cls, folder: Path) -> "ItemTable":
        """Map saved items into memory."""
        return cls(FittedFeatures.load(folder), pa.memory_map(str(folder / ITEMS_FILE)).read_buffer())


@dataclass(frozen=True)
class FittedFeatures:
    """A feature spec with everything that its transform needs.

    Attributes:
        vocabularies: Per vocabulary name, its tokens and their counts; a learnt label's vocabulary has the label's
            name.
        statistics: Per numeric or bucketed feature, its statistics over the training rows.
        quantiles: Per bucketed feature, the rising boundaries between its buckets; per numeric feature, those between
            the bins of its embedding, after clip and logarithm.
        column_types: Per raw column, its type in training in Arrow's notation (``bool``, ``list<element: int64>``).
            Empty if types were not recorded.
        items: The candidates' own features, if the spec has some.
        categories: The columns that were categoricals of pandas or Polars, or dictionaries of Arrow, in training.
        target_means: Per encoding by the label's mean, the smoothed mean of each id (Arrow float64); of a binary label
            as log-odds.
    """

    spec: FeatureSpec
    vocabularies: Mapping[str, Vocabulary]
    statistics: Mapping[str, NumericStatistics]
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    column_types: Mapping[str, str] = field(default_factory=dict)
    items: ItemTable | None = None
    categories: tuple[str, ...] = ()
    target_means: Mapping[str, pa.DoubleArray] = field(default_factory=dict)

    def vocabulary(self, feature: VocabularyOwner) -> Vocabulary:
        """Return the vocabulary of ``feature``."""
        return self.vocabularies[self.spec.vocabulary_name(feature)]

    def id_count(self, feature: VocabularyOwner | Bucketed) -> int:
        """Return the number of ids of ``feature``, including the missing and the out-of-vocabulary id."""
        if isinstance(feature, Bucketed):
            return len(self.boundaries(feature)) + 1 + FIRST_VOCABULARY_ID
        tokens = self.spec.hash_buckets(feature) or len(self.vocabulary(feature))
        return tokens + FIRST_VOCABULARY_ID

    @property
    def user(self) -> str | None:
        """The feature whose values are a recommender's users (:attr:`FeatureSpec.user_feature`); None without users."""
        return self.spec.user_feature

    def boundaries(self, feature: Bucketed) -> npt.NDArray[np.float64]:
        """Return the rising boundaries between the buckets of ``feature``, one fewer than there are buckets."""
        return np.array(self.quantiles[feature.name], np.float64)

    @property
    def classes(self) -> int:
        """Number of classes of a label of kind ``multi_class``, ``multi_label`` or ``ordinal``."""
        label = self.spec.label
        return label.classes if isinstance(label.classes, int) else len(self.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in their order: the label's tokens, or their numbers as text."""
        label = self.spec.label
        if label.order is not None:
            return label.order
        if isinstance(label.classes, int):
            return tuple(map(str, range(label.classes)))
        return tuple(self.vocabularies[label.name].tokens.to_pylist())

    def imputed(self, feature: Numeric) -> float:
        """Return the replacement for a missing value of ``feature``: a raw number, or the mean after clip and log."""
        return self.statistics[feature.name].mean if feature.impute == "mean" else float(feature.impute)

    def scaling(self, feature: Numeric) -> tuple[float, float]:
        """Return (offset, divisor) of ``feature``: the input is ``(value - offset) / divisor``."""
        if not feature.standardise:
            return 0.0, 1.0
        statistics = self.statistics[feature.name]
        # A constant column has no spread to divide by; it becomes zeros instead of NaN.
        return statistics.mean, statistics.standard_deviation or 1.0

    def bounds(self, feature: Numeric) -> tuple[float, float] | None:
        """Return the learnt bounds of ``feature``, after the logarithm; None where it has none."""
        if feature.clip != RANGE:
            return None
        statistics = self.statistics[feature.name]
        spread = statistics.standard_deviation
        return statistics.minimum - spread, statistics.maximum + spread

    @cached_property
    def target_inputs(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """The model's input for each id, per encoding by the label's mean."""
        means = {feature: self.target_means[feature.name] for feature in self.spec.target_encodings}
        return {feature.name: self.standardised_means(feature, of.to_numpy()) for feature, of in means.items()}

    def standardised_means(self, feature: TargetEncoding, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return the model's inputs for means of any shape."""
        return np.asarray(arithmetic.standardised(means, 0.0, *self.scaling(feature), arithmetic.NUMPY))

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that change with the spec, a vocabulary, a statistic or a recorded type."""
        digest = hashlib.sha256(self.spec.hash.encode())
        for name in sorted(self.vocabularies):
            digest.update(name.encode() + b"\0")
            digest.update(_vocabulary_digest(self.vocabularies[name]))
        digest.update(json.dumps(self._plain_parts(), sort_keys=True).encode())
        for name in sorted(self.target_means):
            digest.update(name.encode() + b"\0" + self.target_means[name].to_numpy().tobytes())
        if self.items is not None:
            digest.update(self.items.hash.encode())
        return digest.hexdigest()[:16]

    def _plain_parts(self) -> dict[str, object]:
        parts: dict[str, object] = {
            "statistics": {name: asdict(statistics) for name, statistics in self.statistics.items()},
            "quantiles": {name: list(boundaries) for name, boundaries in self.quantiles.items()},
        }
        # Features that were fitted before types and categories were recorded keep their hash.
        parts |= {"column_types": dict(self.column_types)} if self.column_types else {}
        return parts | ({"categories": list(self.categories)} if self.categories else {})

    def save(self, folder: Path | StoragePath) -> None:
        """Write the spec, the statistics and one Arrow file per vocabulary into ``folder``."""
        target = StoragePath.of(folder)
        with _local_copy(target, download=False) as local:
            (local / VOCABULARY_FOLDER).mkdir(parents=True, exist_ok=True)
            for name, vocabulary in self.vocabularies.items():
                vocabulary.save(_vocabulary_path(local, name))
            for name, means in self.target_means.items():
                _save_means(means, _means_path(local, name))
            document = {"hash": self.hash, "spec": self.spec.to_dict(), **self._plain_parts()}
            if self.target_means:
                document["target_means"] = list(self.target_means)
            (local / SPEC_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")
            if self.items is not None:
                self.items.save(local / ITEMS_FOLDER)
            if not target.is_local:
                for file in StoragePath.of(local).files():
                    (target / file.path.relative_to(StoragePath.of(local))).upload(file.path.local)

    @classmethod
    def load(cls, folder: Path | StoragePath) -> "FittedFeatures":
        """Load saved features; vocabularies are mapped into memory, not copied.

        Raises:
            FileNotFoundError: ``folder`` holds no fitted features.
            FeatureMismatchError: They are damaged, or their hash differs from the saved one.
        """
        # A remote folder's local copy is deleted once opened; the mapped files stay readable.
        with _local_copy(StoragePath.of(folder), download=True) as local:
            text = (local / SPEC_FILE).read_bytes()
            try:
                document = json.loads(text)
                spec = FeatureSpec.from_dict(document["spec"])
                names = [owner.name for owner in spec.vocabulary_owners]
                fitted = cls(
                    spec=spec,
                    vocabularies={name: Vocabulary.load(_vocabulary_path(local, name)) for name in names},
                    statistics={name: NumericStatistics(**values) for name, values in document["statistics"].items()},
                    quantiles={name: tuple(boundaries) for name, boundaries in document["quantiles"].items()},
                    column_types=dict(document.get("column_types", {})),
                    items=ItemTable.load(local / ITEMS_FOLDER) if spec.items else None,
                    categories=tuple(document.get("categories", ())),
                    target_means={
                        name: _load_means(_means_path(local, name)) for name in document.get("target_means", ())
                    },
                )
                written_hash = document["hash"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # also JSON's and Arrow's own errors
                raise FeatureMismatchError(
                    f"the fitted features in {folder} are damaged ({error}); convert the data again"
                ) from error
        if fitted.hash != written_hash:
            raise FeatureMismatchError(
                f"the fitted features in {folder} have hash {fitted.hash}, written was {written_hash}; "
                f"a vocabulary or statistic was changed: convert the data again"
            )
        return fitted


def _vocabulary_path(folder: Path, name: str) -> Path:
    return folder / VOCABULARY_FOLDER / f"{file_name(name)}.arrow"


def _means_path(folder: Path, name: str) -> Path:
    return folder / TARGET_MEANS_FOLDER / f"{file_name(name)}.arrow"


def _save_means(means: pa.DoubleArray, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _MEANS_SCHEMA) as writer:
        writer.write_table(pa.table([means], schema=_MEANS_SCHEMA))


def _load_means(path: Path) -> pa.DoubleArray:
    """Read the file of :func:`_save_means`.

    Raises:
        ValueError: It is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["means"].combine_chunks()


def _vocabulary_digest(vocabulary: Vocabulary) -> bytes:
    """Return a digest of the tokens and counts that does not depend on their division into arrays."""
    lengths, content, counts = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for piece in vocabulary.pieces():
        _, offset_buffer, content_buffer = piece.buffers()
        offsets = np.frombuffer(offset_buffer or b"", np.int32)[piece.offset : piece.offset + len(piece) + 1]
        lengths.update(np.diff(offsets).tobytes())
        if len(offsets) and content_buffer is not None:
            content.update(memoryview(content_buffer)[int(offsets[0]) : int(offsets[-1])])
    for numbers in pa.chunked_array(vocabulary.counts).chunks:
        counts.update(numbers.to_numpy().tobytes())
    return lengths.digest() + content.digest() + counts.digest()


@contextmanager
def _local_copy(folder: StoragePath, *, download: bool) -> Iterator[Path]:
    """Yield ``folder`` if it is local, or else a temporary folder, with a copy of the files if ``download`` is set."""
    if folder.is_local:
        yield folder.local
        return
    with tempfile.TemporaryDirectory(prefix="mirrorspark-features-") as temporary:
        for file in folder.files() if download else ():
            file.path.download(Path(temporary) / file.path.relative_to(folder))
        yield Path(temporary)
