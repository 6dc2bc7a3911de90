"""What the training rows taught a feature spec: vocabularies and statistics, with a hash that tells two apart."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.features import (
    FIRST_VOCABULARY_ID,
    Categorical,
    FeatureSpec,
    MultiValued,
    Numeric,
)

SPEC_FILE = "features.json"
VOCABULARY_FOLDER = "vocabularies"


class FeatureMismatchError(ValueError):
    """Fitted features that are not those the data or the model was made with."""


@dataclass(frozen=True)
class NumericStatistics:
    """Statistics of one numeric feature over the training rows that have it (float64)."""

    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    count: int


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a feature.

    Attributes:
        tokens: Arrow strings, the most frequent first; token ``i`` has id ``i + 2``.
        counts: How often each occurs in the training rows (Arrow int64).
    """

    tokens: pa.StringArray
    counts: pa.Int64Array

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class FittedFeatures:
    """A feature spec with everything that its transform needs.

    Attributes:
        spec: The specification.
        vocabularies: Per vocabulary name its tokens and their counts.
        statistics: Per numeric feature its statistics over the training rows.
    """

    spec: FeatureSpec
    vocabularies: Mapping[str, Vocabulary]
    statistics: Mapping[str, NumericStatistics]

    def vocabulary(self, feature: Categorical | MultiValued) -> Vocabulary:
        """Return the vocabulary that ``feature`` is looked up in."""
        return self.vocabularies[self.spec.vocabulary_name(feature)]

    def id_count(self, feature: Categorical | MultiValued) -> int:
        """Return the number of ids of ``feature``, the missing and the out-of-vocabulary id included."""
        return len(self.vocabulary(feature)) + FIRST_VOCABULARY_ID

    def imputed(self, feature: Numeric) -> float:
        """Return what stands in for a missing value of ``feature``, before standardising."""
        return self.statistics[feature.name].mean if feature.impute == "mean" else float(feature.impute)

    def scaling(self, feature: Numeric) -> tuple[float, float]:
        """Return (offset, divisor) of ``feature``: the input is ``(value - offset) / divisor``."""
        if not feature.standardise:
            return 0.0, 1.0
        statistics = self.statistics[feature.name]
        # A constant column has no spread to divide by; it becomes zeros instead of NaN.
        return statistics.mean, statistics.standard_deviation or 1.0

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that change when the spec, a vocabulary or a statistic does."""
        digest = hashlib.sha256(self.spec.hash.encode())
        for name in sorted(self.vocabularies):
            digest.update(name.encode() + b"\0")
            for token in self.vocabularies[name].tokens.to_pylist():
                encoded = token.encode()
                digest.update(len(encoded).to_bytes(4, "little") + encoded)
            digest.update(self.vocabularies[name].counts.to_numpy().tobytes())
        digest.update(json.dumps(self._statistics_as_dict(), sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def _statistics_as_dict(self) -> dict[str, dict[str, float]]:
        return {name: asdict(statistics) for name, statistics in self.statistics.items()}

    def save(self, folder: Path) -> None:
        """Write the spec, the statistics and one Parquet file per vocabulary into ``folder``."""
        (folder / VOCABULARY_FOLDER).mkdir(parents=True, exist_ok=True)
        for name, vocabulary in self.vocabularies.items():
            pq.write_table(pa.table(vars(vocabulary)), _vocabulary_path(folder, name))
        document = {"hash": self.hash, "spec": self.spec.to_dict(), "statistics": self._statistics_as_dict()}
        (folder / SPEC_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "FittedFeatures":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: ``folder`` holds no fitted features.
            FeatureMismatchError: They are damaged, or the content does not have the hash that was written with it.
        """
        text = (folder / SPEC_FILE).read_bytes()
        try:
            document = json.loads(text)
            spec = FeatureSpec.from_dict(document["spec"])
            names = sorted({spec.vocabulary_name(feature) for feature in spec.token_features})
            fitted = cls(
                spec=spec,
                vocabularies={name: _read_vocabulary(_vocabulary_path(folder, name)) for name in names},
                statistics={name: NumericStatistics(**values) for name, values in document["statistics"].items()},
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
    return folder / VOCABULARY_FOLDER / f"{name}.parquet"


def _read_vocabulary(path: Path) -> Vocabulary:
    table = pq.read_table(path).combine_chunks()
    return Vocabulary(*(table.column(name).combine_chunks() for name in ("tokens", "counts")))
