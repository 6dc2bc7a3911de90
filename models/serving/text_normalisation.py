"""Text normalisation and tokenisation as graph operations, so that an exported model accepts raw texts.

It is byte-equal to :mod:`text_rules` of the features, which defines normalisation; tests verify that. Only stock
TensorFlow operations are used, so that the SavedModel runs without this package.
"""

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mirrorspark.data_pipelines.features import text_rules

# Ranks: the role of a character in canonical ordering and composition. A mark's rank is its combining class plus one.
_STARTER = 0
_JOINING_STARTER = 1  # composes with the starter directly before it
_FIRST_MARK = 2

_IOTA_MARK = 0x345
_IOTA = 0x3B9
# Precedes each text while a batch is processed as one row: a starter with which nothing composes.
_TEXT_START = text_rules.CODE_POINTS

_PAGE_BITS = 7
_PAGE = 1 << _PAGE_BITS

_HANGUL_LEADING = 0x1100
_HANGUL_VOWEL = 0x1161
_HANGUL_TRAILING = 0x11A7  # the code point before the first trailing consonant
_HANGUL_SYLLABLE = 0xAC00
_HANGUL_LEADINGS = 19
_HANGUL_VOWELS = 21
_HANGUL_TRAILINGS = 28
_HANGUL_SYLLABLES = _HANGUL_LEADINGS * _HANGUL_VOWELS * _HANGUL_TRAILINGS


@dataclass(frozen=True)
class _Tables:
    """Unicode data for the graph.

    Attributes:
        page_of: int16 ``[CODE_POINTS / _PAGE + 1]``, the page of ``entries`` for ``_PAGE`` consecutive code points.
        entries: int16 ``[pages * _PAGE]``, the entry of a code point; 0 for a plain starter that does not change.
        starts: int16 ``[entries + 1]``, the index in ``pieces`` where an entry begins.
        pieces: int32, the decomposed and folded code points; only U+0345 is not folded yet.
        ranks: uint8, the rank of each of ``pieces``.
        pairs: int64, first code point shifted left by 21 bits plus the second, ascending.
        composites: int32, the composite of each of ``pairs``.
    """

    page_of: npt.NDArray[np.int16]
    entries: npt.NDArray[np.int16]
    starts: npt.NDArray[np.int16]
    pieces: npt.NDArray[np.int32]
    ranks: npt.NDArray[np.uint8]
    pairs: npt.NDArray[np.int64]
    composites: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Characters:
    """The concatenated characters of a batch of texts, with ``_TEXT_START`` before each text.

    Attributes:
        code_points: int32 ``[characters]``.
        ranks: int32 ``[characters]``.
    """

    code_points: tf.Tensor
    ranks: tf.Tensor


class GraphNormaliser(tf.Module):
    """Normalises texts in a graph, as :func:`data_pipelines.features.text_rules.normalise` does.

    One instance can serve any number of inputs: its tables, 144 kB, are stored once.
    """

    def __init__(self) -> None:
        super().__init__(name="text_normaliser")
        tables = _tables()
        self._page_of = tf.constant(tables.page_of)
        self._entries = tf.constant(tables.entries)
        self._starts = tf.constant(tables.starts)
        self._pieces = tf.constant(tables.pieces)
        self._ranks = tf.constant(tables.ranks)
        self._pairs = tf.constant(tables.pairs)
        self._composites = tf.constant(tables.composites)

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string)])
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Return the normalised ``texts``, a string tensor of any shape."""
        flat = tf.reshape(texts, [-1])
        is_ascii = tf.strings.regex_full_match(flat, r"[\x00-\x7f]*")
        # Without an encoding, only the letters A to Z become lower case; other bytes stay.
        lowered = tf.strings.lower(flat)

        def replace_others() -> tf.Tensor:
            others = tf.where(tf.logical_not(is_ascii))
            return tf.tensor_scatter_nd_update(lowered, others, self._normalised(tf.gather_nd(flat, others)))

        # Texts are in the host's memory; moving code points to another device and back costs more than it saves.
        with tf.device("/device:CPU:0"):
            normalised = tf.cond(tf.reduce_all(is_ascii), lambda: lowered, replace_others)
        return tf.reshape(normalised, tf.shape(texts))

    def _normalised(self, texts: tf.Tensor) -> tf.Tensor:
        """Return the normalised ``texts``, string ``[rows]``, by the full algorithm."""
        # A leading space is replaced by the start marker, and does not combine with the text.
        decoded = tf.strings.unicode_decode(tf.strings.join([" ", texts]), "UTF-8", errors="replace")
        starts = decoded.row_splits[:-1]
        code_points = tf.tensor_scatter_nd_update(
            decoded.flat_values, starts[:, None], tf.fill(tf.shape(starts), _TEXT_START)
        )
        characters = self._composed(_folded_iota(_ordered(self._decomposed(code_points))))
        return _encoded(characters.code_points)

    def _decomposed(self, code_points: tf.Tensor) -> _Characters:
        """Return the decomposed and folded characters of ``code_points``, int32 ``[any]``."""
        page = tf.cast(tf.gather(self._page_of, tf.bitwise.right_shift(code_points, _PAGE_BITS)), tf.int32)
        entry = tf.gather(self._entries, page * _PAGE + tf.bitwise.bitwise_and(code_points, _PAGE - 1))
        starts = tf.gather(self._starts, entry)
        stops = tf.gather(self._starts, entry + 1)
        pieces = tf.ragged.range(tf.cast(starts, tf.int32), tf.cast(stops, tf.int32), row_splits_dtype=tf.int64)
        places = pieces.row_splits[:-1]
        piece = pieces.flat_values
        itself = tf.scatter_nd(places[:, None], code_points, tf.shape(piece, tf.int64))
        return _Characters(
            tf.where(tf.equal(piece, 0), itself, tf.gather(self._pieces, piece)),
            tf.cast(tf.gather(self._ranks, piece), tf.int32),
        )

    def _composed(self, characters: _Characters) -> _Characters:
        """Return ``characters`` after canonical composition."""

        def compose(_: tf.Tensor, code_points: tf.Tensor, ranks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            after = self._composed_once(_Characters(code_points, ranks))
            is_shorter = tf.less(tf.size(after.ranks), tf.size(ranks))
            return is_shorter & _may_compose(after.ranks), after.code_points, after.ranks

        # Each round composes one more character into every starter. The longest chain of compositions needs three
        # rounds; one more finds that nothing is left.
        _, code_points, ranks = tf.while_loop(
            lambda goes_on, *_: goes_on,
            compose,
            [_may_compose(characters.ranks), characters.code_points, characters.ranks],
            shape_invariants=[tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None])],
        )
        return _Characters(code_points, ranks)

    def _composed_once(self, characters: _Characters) -> _Characters:
        """Return ``characters`` with the first pair of each starter composed."""
        starter, second = _unblocked_pairs(characters.ranks)
        composite = self._composite(
            tf.gather(characters.code_points, starter), tf.gather(characters.code_points, second)
        )
        exists = tf.greater(composite, 0)
        starter, second, composite = (tf.boolean_mask(values, exists) for values in (starter, second, composite))
        # A starter that composes with the one before it never begins a pair, so pairs of two starters do not overlap.
        is_first = tf.not_equal(starter, tf.concat([[-1], starter[:-1]], 0))
        starter, second, composite = (tf.boolean_mask(values, is_first) for values in (starter, second, composite))
        code_points = tf.tensor_scatter_nd_update(characters.code_points, starter[:, None], composite)
        is_kept = tf.tensor_scatter_nd_update(
            tf.ones_like(code_points, tf.bool), second[:, None], tf.zeros_like(second, tf.bool)
        )
        return _Characters(tf.boolean_mask(code_points, is_kept), tf.boolean_mask(characters.ranks, is_kept))

    def _composite(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """Return the composites of ``first`` and ``second``, int32 ``[pairs]``; 0 if a pair has none."""
        pair = tf.bitwise.left_shift(tf.cast(first, tf.int64), 21) + tf.cast(second, tf.int64)
        # The table has an extra last pair, so the place is valid even for a pair beyond all others.
        place = tf.searchsorted(self._pairs, pair)
        composite = tf.where(tf.equal(tf.gather(self._pairs, place), pair), tf.gather(self._composites, place), 0)
        leading, vowel = first - _HANGUL_LEADING, second - _HANGUL_VOWEL
        syllable = _HANGUL_SYLLABLE + (leading * _HANGUL_VOWELS + vowel) * _HANGUL_TRAILINGS
        composite = tf.where(
            _is_below(leading, _HANGUL_LEADINGS) & _is_below(vowel, _HANGUL_VOWELS), syllable, composite
        )
        open_syllable, trailing = first - _HANGUL_SYLLABLE, second - _HANGUL_TRAILING
        closes = (
            _is_below(open_syllable, _HANGUL_SYLLABLES)
            & tf.equal(open_syllable % _HANGUL_TRAILINGS, 0)
            & _is_below(trailing - 1, _HANGUL_TRAILINGS - 1)
        )
        return tf.where(closes, first + trailing, composite)


def graph_split(texts: tf.Tensor, pattern: str = text_rules.DEFAULT_SEPARATORS) -> tf.RaggedTensor:
    """Return the tokens of each text, string ``[rows, any]``.

    They are those of :func:`data_pipelines.features.text_rules.split_tokens`.

    Args:
        texts: string ``[rows]`` of valid UTF-8, such as the result of :class:`GraphNormaliser`.
        pattern: RE2 pattern of separators, with the limits of :func:`data_pipelines.features.text_rules.spelled_out`.

    Raises:
        SeparatorPatternError: ``pattern`` cannot be used.
    """
    broken = tf.strings.regex_replace(texts, text_rules.spelled_out(pattern), text_rules.TOKEN_BREAK)
    pieces = tf.strings.split(broken, text_rules.TOKEN_BREAK)
    # tf.ragged.boolean_mask would allocate rows times the tokens of the longest text.
    is_token = tf.not_equal(pieces.flat_values, "")
    tokens_before = tf.concat([[0], tf.cumsum(tf.cast(is_token, tf.int64))], 0)
    return tf.RaggedTensor.from_row_splits(
        tf.boolean_mask(pieces.flat_values, is_token), tf.gather(tokens_before, pieces.row_splits), validate=False
    )


def graph_subwords(words: tf.RaggedTensor, sizes: tuple[int, int]) -> tf.RaggedTensor:
    """Return the words of each row and their n-grams, string ``[rows, any]``, word by word.

    They are those of :func:`data_pipelines.features.text_rules.subwords`, in its order.

    Args:
        words: string ``[rows, any]``, as :func:`graph_split` returns.
        sizes: The fewest and the most characters of an n-gram.
    """
    fewest, most = sizes
    marked = tf.strings.join(["<", words.flat_values, ">"])
    characters = tf.strings.unicode_split(marked, "UTF-8")
    # A word of one of the sizes is its own longest n-gram, and so comes first without being added.
    ngrams = tf.strings.ngrams(characters, [*range(most, fewest - 1, -1)], separator="")
    length = characters.row_lengths()
    is_added = (length < fewest) | (length > most)
    added = tf.RaggedTensor.from_row_lengths(
        tf.boolean_mask(marked, is_added), tf.cast(is_added, tf.int64), validate=False
    )
    parts = tf.concat([added, ngrams], axis=1)
    return tf.RaggedTensor.from_row_splits(
        parts.flat_values, tf.gather(parts.row_splits, words.row_splits), validate=False
    )


def _ordered(characters: _Characters) -> _Characters:
    """Return ``characters`` with the marks after each starter in canonical order: a stable sort by combining class."""
    code_points, ranks = characters.code_points, characters.ranks
    is_mark = _is_mark(ranks)
    # Marks may change places only if they have the same number of starters before them.
    key = tf.cumsum(tf.cast(tf.logical_not(is_mark), tf.int64)) * 256 + tf.cast(ranks, tf.int64)
    is_disorder = tf.less(key[1:], key[:-1]) & is_mark[1:]

    def sort_marks() -> tuple[tf.Tensor, tf.Tensor]:
        place = tf.where(is_mark)
        origin = tf.gather(place, tf.argsort(tf.gather_nd(key, place), stable=True))
        return (
            tf.tensor_scatter_nd_update(code_points, place, tf.gather_nd(code_points, origin)),
            tf.tensor_scatter_nd_update(ranks, place, tf.gather_nd(ranks, origin)),
        )

    return _Characters(*tf.cond(tf.reduce_any(is_disorder), sort_marks, lambda: (code_points, ranks)))


def _folded_iota(characters: _Characters) -> _Characters:
    """Return ordered ``characters`` with U+0345 folded: the only mark that folds, to a letter."""
    is_iota = tf.equal(characters.code_points, _IOTA_MARK)
    return _Characters(tf.where(is_iota, _IOTA, characters.code_points), tf.where(is_iota, _STARTER, characters.ranks))


def _unblocked_pairs(ranks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the positions of pairs that may compose: int64 ``[pairs]`` of starters and of their seconds, ascending.

    A second is blocked if a starter, or a mark of an equal or higher combining class, is between it and its starter.
    Since marks are in order, only the character directly before has to be checked.
    """
    is_mark = _is_mark(ranks)
    second = tf.where(tf.greater(ranks, _STARTER))[:, 0]
    rank_before = tf.gather(tf.where(is_mark, ranks, _STARTER), second - 1)
    second = tf.boolean_mask(second, tf.less(rank_before, tf.gather(ranks, second)))
    starters = tf.where(tf.logical_not(is_mark))[:, 0]
    starters_before = tf.cumsum(tf.cast(tf.logical_not(is_mark), tf.int32), exclusive=True)
    return tf.gather(starters, tf.gather(starters_before, second) - 1), second


def _may_compose(ranks: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(tf.greater(ranks, _STARTER))


def _is_mark(ranks: tf.Tensor) -> tf.Tensor:
    return tf.greater_equal(ranks, _FIRST_MARK)


def _encoded(code_points: tf.Tensor) -> tf.Tensor:
    """Return ``code_points`` as texts, string ``[rows]``."""
    is_start = tf.equal(code_points, _TEXT_START)
    starts = tf.where(is_start)[:, 0]
    # The start markers of a text and of all earlier ones have been removed, which shifts its position.
    stops = tf.concat([starts, [tf.size(is_start, tf.int64)]], 0) - tf.range(tf.size(starts, tf.int64) + 1)
    texts = tf.RaggedTensor.from_row_splits(
        tf.boolean_mask(code_points, tf.logical_not(is_start)), stops, validate=False
    )
    return tf.strings.unicode_encode(texts, "UTF-8")


def _is_below(values: tf.Tensor, limit: int) -> tf.Tensor:
    return tf.greater_equal(values, 0) & tf.less(values, limit)


@functools.cache
def _tables() -> _Tables:
    decomposed = {code_point: _decomposed_and_folded(chr(code_point)) for code_point in _known_code_points()}
    composites = _composites(decomposed)
    joining = {second for _, second in composites if not unicodedata.combining(chr(second))}
    joining |= set(range(_HANGUL_VOWEL, _HANGUL_VOWEL + _HANGUL_VOWELS))
    joining |= set(range(_HANGUL_TRAILING + 1, _HANGUL_TRAILING + _HANGUL_TRAILINGS))
    texts = [" "]
    entry_of: npt.NDArray[np.int16] = np.zeros(text_rules.CODE_POINTS + _PAGE, np.int16)
    for code_point, text in decomposed.items():
        if text != chr(code_point) or code_point in joining or unicodedata.combining(text):
            entry_of[code_point] = len(texts)
            texts.append(text)
    pages: dict[bytes, int] = {}
    page_of = [pages.setdefault(page.tobytes(), len(pages)) for page in entry_of.reshape(-1, _PAGE)]
    pieces = [ord(character) for text in texts for character in text]
    ranks = [_rank(piece, joining) for piece in pieces]
    pairs = sorted(composites)
    return _Tables(
        page_of=np.array(page_of, np.int16),
        entries=np.frombuffer(b"".join(pages), np.int16),
        starts=np.cumsum([0, *map(len, texts)]).astype(np.int16),
        pieces=np.array(pieces, np.int32),
        ranks=np.array(ranks, np.uint8),
        pairs=np.array([*(first << 21 | second for first, second in pairs), np.iinfo(np.int64).max], np.int64),
        composites=np.array([*(composites[pair] for pair in pairs), 0], np.int32),
    )


def _known_code_points() -> list[int]:
    """Return the code points with relevant properties: no surrogates, and none that later versions of Unicode added.

    Hangul syllables are left out too: they are starters, so the composed result is the same with or without prior
    decomposition, and they are composed by arithmetic.
    """
    known = np.ones(text_rules.CODE_POINTS, bool)
    known[0xD800:0xE000] = False
    known[_HANGUL_SYLLABLE : _HANGUL_SYLLABLE + _HANGUL_SYLLABLES] = False
    for first, last in text_rules.ASSIGNED_LATER:
        known[first : last + 1] = False
    # Nine in ten are not assigned or private: nothing changes them, and to see that of each takes a second.
    return [
        number for number in np.flatnonzero(known).tolist() if unicodedata.category(chr(number)) not in ("Cn", "Co")
    ]


def _decomposed_and_folded(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character)
    return "".join(piece if ord(piece) == _IOTA_MARK else piece.casefold() for piece in decomposed)


def _composites(decomposed: dict[int, str]) -> dict[tuple[int, int], int]:
    """Return the composites by pair, for the pairs that folded text may contain."""
    pairs = {}
    for code_point in decomposed:
        character = chr(code_point)
        parts = unicodedata.decomposition(character).split()
        # Nothing composes to a character with one part, or with a tag such as <compat>, or with an exclusion from
        # composition, which its NFC form shows.
        if len(parts) == 2 and not parts[0].startswith("<") and unicodedata.normalize("NFC", character) == character:
            first, second = (int(part, 16) for part in parts)
            pairs[first, second] = code_point
    return pairs


def _rank(code_point: int, joining: set[int]) -> int:
    combining_class = unicodedata.combining(chr(code_point))
    if combining_class:
        return combining_class + 1
    return _JOINING_STARTER if code_point in joining else _STARTER
