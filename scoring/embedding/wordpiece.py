"""WordPiece: the tokenizer of BERT, which splits a text into pieces of words by a vocabulary file.

Sources: Devlin et al., *BERT* (2019), with ``tokenization.py`` of its release; Song et al., *Fast WordPiece
Tokenization* (2021), whose greedy longest match this is, word by word.
"""

import functools
import json
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.storage import read_text

VOCABULARY_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"

_SPECIAL = ("[CLS]", "[SEP]", "[UNK]", "[PAD]")
_LONGEST_WORD = 100
# Enough for the frequent words of any language; an entry takes some 200 bytes.
_REMEMBERED_WORDS = 100_000
# Blocks of ideographs, each of which is a word.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """A tokenizer with its vocabulary."""

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        lower_case: bool = True,
        strip_accents: bool | None = None,
        split_ideographs: bool = True,
    ) -> None:
        """Take a vocabulary.

        Args:
            tokens: The tokens in the order of their ids; pieces within a word begin with ``##``.
            lower_case: Whether texts are lower-cased.
            strip_accents: Whether accents are removed; None for those of lower-cased texts.
            split_ideographs: Whether each ideograph is a word.

        Raises:
            ScoringError: A special token is missing.
        """
        self._ids = {token: number for number, token in enumerate(tokens)}
        if missing := [token for token in _SPECIAL if token not in self._ids]:
            raise ScoringError(
                f"its vocabulary of {len(tokens):,} tokens lacks {missing}, so it is none of WordPiece; export the "
                f"encoder with its preprocessing, so that it takes texts"
            )
        self._first, self._last, self._unknown, self.pad = (self._ids[token] for token in _SPECIAL)
        self._lower_case = lower_case
        self._strip_accents = lower_case if strip_accents is None else strip_accents
        self._split_ideographs = split_ideographs
        self._pieces = functools.lru_cache(_REMEMBERED_WORDS)(self._pieces_of)

    @classmethod
    def load(cls, folder: Path) -> "WordPiece | None":
        """Return the tokenizer of an encoder's folder, or None if it has no vocabulary.

        ``vocab.txt`` is in the folder (Hugging Face) or in ``assets`` (TF-Hub); ``do_lower_case``,
        ``strip_accents`` and ``tokenize_chinese_chars`` are read from ``tokenizer_config.json``.

        Raises:
            ScoringError: A special token is missing.
        """
        files = [path for path in (folder / VOCABULARY_FILE, folder / "assets" / VOCABULARY_FILE) if path.is_file()]
        if not files:
            return None
        config = files[0].with_name(CONFIG_FILE)
        settings = json.loads(read_text(config)) if config.is_file() else {}
        # Not splitlines(), which also splits at characters that are tokens.
        tokens = read_text(files[0]).removesuffix("\n").split("\n")
        return cls(
            tokens,
            lower_case=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            split_ideographs=settings.get("tokenize_chinese_chars", True),
        )

    def ids(self, text: str, max_length: int) -> list[int]:
        """Return the ids of ``text`` between those of ``[CLS]`` and ``[SEP]``, at most ``max_length`` in all."""
        pieces = [piece for word in self._words(text) for piece in self._pieces(word)]
        return [self._first, *pieces[: max_length - 2], self._last]

    def _words(self, text: str) -> Iterator[str]:
        for word in "".join(map(_cleaned, text, repeat(self._split_ideographs))).split():
            yield from "".join(map(_apart, self._folded(word))).split()

    def _folded(self, word: str) -> str:
        word = word.lower() if self._lower_case else word
        if not self._strip_accents:
            return word
        decomposed = unicodedata.normalize("NFD", word)
        return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")

    def _pieces_of(self, word: str) -> tuple[int, ...]:
        """Return the ids of the longest pieces from the left, or of the unknown token if a part is in no piece."""
        if len(word) > _LONGEST_WORD:
            return (self._unknown,)
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                return (self._unknown,)
            found.append(self._ids[prefix + word[start:end]])
            start = end
        return tuple(found)


@functools.lru_cache(4096)
def _cleaned(character: str, split_ideographs: bool) -> str:
    """Return a space for white space, nothing for a control character, and ideographs between spaces if asked to."""
    category = unicodedata.category(character)
    if character in " \t\n\r" or category == "Zs":
        return " "
    if category in ("Cc", "Cf") or character == "\N{REPLACEMENT CHARACTER}":
        return ""
    code = ord(character)
    is_word = split_ideographs and any(first <= code <= last for first, last in _IDEOGRAPHS)
    return f" {character} " if is_word else character


@functools.lru_cache(4096)
def _apart(character: str) -> str:
    """Return punctuation, which includes all symbols of ASCII, between spaces."""
    is_punctuation = unicodedata.category(character).startswith("P") or (
        character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    )
    return f" {character} " if is_punctuation else character
