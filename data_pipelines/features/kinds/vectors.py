"""The kinds of features that are vectors, as plain data: sparse and dense ones, and embedded texts and images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mirrorspark.data_pipelines.features.kinds.checks import FeatureSpecError, check_count, check_encoder
from mirrorspark.data_pipelines.features.kinds.forms import Column, RawForm


@dataclass(frozen=True)
class Sparse(Column):
    """A long, mostly zero vector; becomes a sparse float32 ``[batch, size]`` and is never densified.

    It is stored as compressed sparse rows, by rising index; repeated indices are kept, and add up in a product. A null
    or NaN value is missing: its entry is left out.

    Attributes:
        name: Column of the table, and name of the model's input: a Spark ML vector, or a map from whole numbers to
            numbers. With ``indices`` and ``values`` there is no such column.
        size: Length of the vector; an index outside it is an error.
        indices: Column of the indices, an array of whole numbers.
        values: Column of the values, an array of numbers of the same length.
    """

    kind: ClassVar[Literal["sparse"]] = "sparse"
    form: ClassVar[Literal["sparse"]] = "sparse"
    size: int
    indices: str | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        check_count(self.name, "size", self.size)
        if (self.indices is None) != (self.values is None):
            raise FeatureSpecError(f"feature '{self.name}': give both indices and values, or neither for one column")
        if self.indices is not None and self.indices == self.values:
            raise FeatureSpecError(
                f"feature '{self.name}': indices and values are both column '{self.indices}'; name one column for each"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the feature is read from."""
        return (self.name,) if self.indices is None or self.values is None else (self.indices, self.values)

    @property
    def raw(self) -> Mapping[str, RawForm]:
        """The raw columns of the exported model: the columns of the table, or the two parts of one column."""
        if self.indices is None or self.values is None:
            return {f"{self.name}_indices": "indices", f"{self.name}_values": "values"}
        return {self.indices: "indices", self.values: "values"}

    @property
    def parts(self) -> tuple[str, str, str]:
        """Names of the dense tensors that replace a sparse one: indices, values, row lengths."""
        return (f"{self.name}_indices", f"{self.name}_values", f"{self.name}_row_lengths")


@dataclass(frozen=True)
class Vector(Column):
    """A list of numbers of fixed length, such as the embedding of a text; becomes float32 ``[batch, size]``.

    The numbers are used as they are. A missing vector (null, or an empty list) becomes zeros, and so does a missing
    number (null or NaN) in a vector.

    Attributes:
        name: Column of the table (an array of numbers), and name of the model's input.
        size: Length of the vectors; a list of another length is an error.
    """

    kind: ClassVar[Literal["vector"]] = "vector"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "values"
    size: int

    def __post_init__(self) -> None:
        check_count(self.name, "size", self.size)


@dataclass(frozen=True)
class TextEmbedding(Column):
    """A text as the vector that an encoder gives it; becomes float32 ``[batch, size]``, zeros for a missing text.

    The encoder is frozen: a conversion computes the vectors once, and the exported model brings the encoder along.
    White space between words counts as one space; at the ends of a text it is ignored.

    Attributes:
        name: Column of the table (strings), and name of the model's input.
        encoder: Folder, file or URI of the encoder; see :func:`scoring.embedding.embed_text`.
        signature: Signature of a SavedModel, where it is not the usual one.
        model_output: The encoder's output that is the vector, if it has several.
        max_length: Most tokens of a text, for an encoder that takes token ids.
        size: Length of the vectors; 0 until a conversion records it.
        digest: Digest of the encoder's files; empty until a conversion records it. An encoder that differs from either
            is an error.
    """

    kind: ClassVar[Literal["text_embedding"]] = "text_embedding"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "token"
    encoder: str
    signature: str | None = None
    model_output: str | None = None
    max_length: int = 128
    size: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder)
        # The tokens that begin and end a text count.
        check_count(self.name, "max_length", self.max_length, least=3)
        check_count(self.name, "size", self.size, least=0)


@dataclass(frozen=True)
class ImageEmbedding(Column):
    """An image as the vector that an encoder gives it; becomes float32 ``[batch, size]``, zeros for a missing image.

    An image is the bytes of a JPEG or PNG, decoded and resized to the encoder's input (bilinear, pixels from 0 to 255)
    where the encoder runs. Its limits are checked by its header. Other attributes are as those of a text.

    Attributes:
        name: Column of the table (bytes), and name of the model's input.
        encoder: Folder, file or URI of an encoder that takes one array of images, ``[batch, height, width, channels]``
            or ``[batch, channels, height, width]``, and gives vectors ``[batch, size]``.
        max_bytes: Most bytes of an image.
        max_pixels: Most pixels of an image, its height times its width.
    """

    kind: ClassVar[Literal["image_embedding"]] = "image_embedding"
    form: ClassVar[Literal["vector"]] = "vector"
    raw_form: ClassVar[RawForm] = "bytes"
    encoder: str
    signature: str | None = None
    model_output: str | None = None
    max_bytes: int = 16 * 2**20
    max_pixels: int = 25_000_000
    size: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder)
        for option, least in (("max_bytes", 1), ("max_pixels", 1), ("size", 0)):
            check_count(self.name, option, getattr(self, option), least=least)
