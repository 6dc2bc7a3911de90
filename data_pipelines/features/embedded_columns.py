"""Columns of embedded texts and images: the content of each row, and the vector that an encoder gave it."""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features.kinds import Feature, ImageEmbedding, TextEmbedding

TEXT, IMAGE, VECTOR = "text", "image", "vector"
"""Fields of a column of embedded texts or images, whose rows are null where there is none: the text, or the SHA-256 of
the image in hexadecimal digits, and its vector.
"""

CONTENTS: Mapping[type[Feature], str] = {TextEmbedding: TEXT, ImageEmbedding: IMAGE}
"""The first of these fields by kind of feature."""


def embedded_type(content: str) -> pa.DataType:
    """Return the type of a column of embedded texts or images, given its first field."""
    return pa.struct([(content, pa.string()), (VECTOR, pa.list_(pa.float32()))])


def embedded_column(contents: pa.StringArray, vectors: np.ndarray, content: str = TEXT) -> pa.StructArray:
    """Return a column of embedded texts or images, which is read as their vectors.

    Args:
        contents: The texts, or the SHA-256 of images, null where there is none.
        vectors: float32 ``[contents that are not null, size]``.
        content: Name of the first field.
    """
    is_missing = contents.is_null()
    ends = np.cumsum(np.where(is_missing.to_numpy(zero_copy_only=False), 0, vectors.shape[1]))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32()), mask=is_missing)
    return pa.StructArray.from_arrays([contents, lists], fields=[*embedded_type(content)], mask=is_missing)


def embedded_content(column_type: pa.DataType) -> str | None:
    """Return the first field of a column of embedded texts or images, given its type; None for any other column."""
    names = [field.name for field in column_type] if pa.types.is_struct(column_type) else []
    return names[0] if names in ([TEXT, VECTOR], [IMAGE, VECTOR]) else None


def unembedded_type(column_type: pa.DataType) -> pa.DataType:
    """Return the type that a column had before its texts or images were embedded; any other type stays."""
    content = embedded_content(column_type)
    return {TEXT: pa.string(), IMAGE: pa.binary(), None: column_type}[content]


def as_contents(table: pa.Table, vectors_of: Collection[str] = ()) -> pa.Table:
    """Return ``table`` with texts and the SHA-256 of images in place of embedded ones, or vectors in ``vectors_of``."""
    for place, field in enumerate(table.schema):
        if (content := embedded_content(field.type)) is not None:
            part = VECTOR if field.name in vectors_of else content
            table = table.set_column(place, field.name, pc.struct_field(table.column(place), part))
    return table
