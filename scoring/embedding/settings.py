"""Settings of encoders of texts and of images."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from mirrorspark.scoring.errors import ScoringError

# Raise these if an unchanged encoder would give other vectors: another tokenizer, pooling or way to resize.
_FORMAT_VERSION = 1
_IMAGE_FORMAT_VERSION = 1


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder of texts; checked when built.

    Attributes:
        signature: Signature of a SavedModel; None chooses ``serving_default``, the only one, or the module's own call.
        model_output: Name of the output that is the vector; None if the encoder has one.
        max_length: Longest number of tokens of a text, further ones are dropped; for encoders that take token ids.
        batch_size: Texts of ``max_length`` tokens in a call; of shorter ones as many more.
    """

    signature: str | None = None
    model_output: str | None = None
    max_length: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ScoringError(f"max_length {self.max_length} leaves no token of the text; use 3 or more")
        _check_batch_size(self.batch_size)

    def digest(self, files: str) -> str:
        """Return the digest of everything that affects the vector of a text; ``files`` is the encoder's."""
        deciding = {"signature": self.signature, "model_output": self.model_output, "max_length": self.max_length}
        return _digest([_FORMAT_VERSION, files, deciding])


@dataclass(frozen=True)
class ImageSettings:
    """Settings of an encoder of images; checked when built.

    Attributes:
        signature: As of an encoder of texts, like the next one.
        max_bytes: Most bytes of an image.
        max_pixels: Most pixels of an image, its height times its width.
        batch_size: Images in a call.
    """

    signature: str | None
    model_output: str | None
    max_bytes: int
    max_pixels: int
    batch_size: int = EncoderSettings.batch_size

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)

    def digest(self, files: str) -> str:
        """Return the digest of everything that affects the vector of an image; ``files`` is the encoder's."""
        deciding = {"images": _IMAGE_FORMAT_VERSION, "signature": self.signature, "model_output": self.model_output}
        return _digest([files, deciding])


Settings: TypeAlias = EncoderSettings | ImageSettings


def _check_batch_size(size: int) -> None:
    if size < 1:
        raise ScoringError(f"batch_size {size} is below 1; use some dozens")


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
