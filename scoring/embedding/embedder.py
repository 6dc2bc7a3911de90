"""Embedding of the texts and images among the features of a table when it is converted."""

from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame

from mirrorspark.data_pipelines.features import FeatureSpec, embedded_columns, kinds, raw_columns
from mirrorspark.scoring.embedding.embed import CachedEncoder
from mirrorspark.scoring.embedding.encoder import encoder_digest, pinned_encoder
from mirrorspark.scoring.embedding.model_encoders import check_digest, check_size, settings_of
from mirrorspark.storage import Location, StoragePath

# Folder of the vectors, next to the dataset.
_CACHE_FOLDER = "embeddings"


@dataclass(frozen=True)
class Embedder:
    """Gives texts and images, of the kinds ``text_embedding`` and ``image_embedding``, their vectors in a conversion.

    Attributes:
        cache: Folder of the vectors, as in :func:`scoring.embedding.embed_text`: a later conversion encodes only
            new contents. By default ``embeddings`` next to the dataset.
        batch_size: Texts or images in a call of the encoder.
        tracking_uri: Address of the MLflow store of encoders that are given as URIs; by default as in
            :func:`scoring.model.stored.resolve`.
    """

    cache: Location | None = None
    batch_size: int = 64
    tracking_uri: str | None = None

    def source(self, spec: FeatureSpec) -> dict[str, Any]:
        """Return the digests of the encoders of ``spec``, for the description of a dataset's source; empty without any.

        Raises:
            ScoringError: An encoder is missing.
            ModelNotFoundError, ModelStoreError: The URI of an encoder cannot be looked up.
        """
        digests = {
            feature.encoder: encoder_digest(pinned_encoder(feature.encoder, self.tracking_uri))
            for feature in spec.embedded
        }
        return {"encoders": digests} if digests else {}

    def embedded(
        self, df: DataFrame, spec: FeatureSpec, dataset: Location, *, progress: bool
    ) -> tuple[DataFrame, FeatureSpec]:
        """Return a table with embedded columns, and its spec with the encoders' digests and the lengths of the vectors.

        The URI of an encoder becomes the folder that it has led to.

        Args:
            df: The table. It is read once more for each of the features, and has to give the same rows.
            spec: The features of the table, without those of items.
            dataset: The dataset that it becomes.
            progress: Show a bar of Spark's tasks.

        Raises:
            ScoringError: An encoder cannot be used, or is not the one that the spec has recorded.
            ColumnError: A column holds no strings or bytes, nothing at all, or images that cannot be read.
            OSError: See :func:`scoring.embedding.embed_text`.
        """
        features: list[kinds.Feature] = []
        for feature in spec.features:
            if isinstance(feature, kinds.EmbeddedFeature):
                df, embedded = self._embedded(df, feature, dataset, progress=progress)
                features.append(embedded)
            else:
                features.append(feature)
        return df, replace(spec, features=tuple(features))

    def _embedded(
        self, df: DataFrame, feature: kinds.EmbeddedFeature, dataset: Location, *, progress: bool
    ) -> tuple[DataFrame, kinds.EmbeddedFeature]:
        folder = self.cache or StoragePath.of(dataset).parent / _CACHE_FOLDER
        settings = settings_of(feature, self.batch_size)
        encoder = CachedEncoder.of(feature.encoder, settings, folder, self.cache or dataset, self.tracking_uri)
        check_digest(feature, encoder.digest)
        table = encoder.embedded(df, feature.name, progress=progress)
        size = encoder.vectors.size(df.sparkSession) or feature.size
        if not size:
            raise raw_columns.ColumnError(
                f"column '{feature.name}' has no {embedded_columns.CONTENTS[type(feature)]} in any row; "
                f"take the feature out of the spec"
            )
        check_size(feature, size)
        return table, replace(feature, encoder=str(encoder.location), size=size, digest=encoder.digest)
