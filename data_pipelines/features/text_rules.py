"""Text to tokens: the definition of normalised text, applied to Arrow columns.

A text is normalised as ``NFKC(casefold(NFKD(text)))``: compatibility forms are expanded, all marks are put in canonical
order, Unicode's full case folding is applied, and characters are composed where possible. Folding comes between the two
forms because U+0345 (Greek iota below) is a mark that folds to a letter: it must be in its canonical place before that.
Normalisation is idempotent, and canonically or compatibility equivalent texts become the same text. No
language-specific rules apply: ``I`` becomes ``i`` in Turkish too.

The exported model contains the same steps as graph operations (:mod:`models.serving.text_normalisation`), with the
same bytes as result. This requires one version of Unicode wherever a model is trained, exported or scored:
:data:`UNICODE_VERSION`, that of the oldest Python this package runs on. Characters of later versions stay unchanged
whatever Python knows about them, and are neither letter nor mark nor number. Properties of existing characters do not
change between versions.

Sources: The Unicode Standard 14.0, sections 3.11 (normalisation) and 3.13 (caseless matching, D146, which differs by
one folding before the first step; it changes no single character).
"""

import functools
import itertools
import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.clear_error import ClearError

UNICODE_VERSION = "14.0.0"
"""The version of Unicode for normalising and splitting texts."""

ASSIGNED_LATER: tuple[tuple[int, int], ...] = (
    (0xCF3, 0xCF3),
    (0xECE, 0xECE),
    (0x2FFC, 0x2FFF),
    (0x31EF, 0x31EF),
    (0x10EFD, 0x10EFF),
    (0x1123F, 0x11241),
    (0x11B00, 0x11B09),
    (0x11F00, 0x11F10),
    (0x11F12, 0x11F3A),
    (0x11F3E, 0x11F59),
    (0x1342F, 0x1342F),
    (0x13439, 0x13455),
    (0x1B132, 0x1B132),
    (0x1B155, 0x1B155),
    (0x1D2C0, 0x1D2D3),
    (0x1DF25, 0x1DF2A),
    (0x1E030, 0x1E06D),
    (0x1E08F, 0x1E08F),
    (0x1E4D0, 0x1E4F9),
    (0x1F6DC, 0x1F6DC),
    (0x1F774, 0x1F776),
    (0x1F77B, 0x1F77F),
    (0x1F7D9, 0x1F7D9),
    (0x1FA75, 0x1FA77),
    (0x1FA87, 0x1FA88),
    (0x1FAAD, 0x1FAAF),
    (0x1FABB, 0x1FABD),
    (0x1FABF, 0x1FABF),
    (0x1FACE, 0x1FACF),
    (0x1FADA, 0x1FADB),
    (0x1FAE8, 0x1FAE8),
    (0x1FAF7, 0x1FAF8),
    (0x2B739, 0x2B739),
    (0x2EBF0, 0x2EE5D),
    (0x31350, 0x323AF),
)
"""First and last code points of the characters added by versions up to 15.1 (that of Python 3.13)."""

DEFAULT_SEPARATORS = r"[^\p{L}\p{M}\p{N}]+"
"""The default pattern of separators: everything but letters, marks and numbers."""

WHITE_SPACE = r"[\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
"""Runs of Unicode's white space, as a pattern that RE2 (Arrow, TensorFlow) and Java (Spark) read alike."""

CODE_POINTS = 0x110000
"""One more than the last code point of Unicode."""

TOKEN_BREAK = b"\xff"
"""The separator between tokens while a text is split: a byte that is not in any UTF-8 text."""

# Python and RE2 read it alike. The group makes split() keep the separators.
_LATER_CHARACTER = "([" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ASSIGNED_LATER) + "])"

# Shorter runs of marks cost milliseconds at most, and the search for runs costs time in every text.
_LONG_RUN = 1_000
_MAYBE_LONG_RUN_OF_MARKS = rf"[^\x00-\x7f]{{{_LONG_RUN}}}"

# The categories that RE2 has under these names, but C without unassigned code points and surrogates.
_MINORS = {"L": "ultmo", "M": "nce", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfo"}
_CLASSES = {major: [major + minor for minor in minors] for major, minors in _MINORS.items()} | {
    major + minor: [major + minor] for major, minors in _MINORS.items() for minor in minors
}

# The parts of an RE2 pattern that matter here. Quoted and escaped characters come first, so that they match nothing
# else.
_PATTERN_PART = re.compile(
    r"""
      (?P<quoted>    \\Q .*? (?: \\E | \Z ) )
    | (?P<class>     \\ (?P<letter> [pP] ) (?: \{ (?P<negated> \^? ) (?P<long_name> [^}]* ) \} | (?P<name> . ) ) )
    | (?P<byte>      \\C )
    | (?P<escaped>   \\ . )
    | (?P<any_case>  \( \? [a-zA-Z]* i )
    | (?P<posix>     \[ : \^? [a-z]+ : \] )
    | (?P<opening>   \[ \^? \]? )
    | (?P<closing>   \] )
    """,
    re.VERBOSE | re.DOTALL,
)


class SeparatorPatternError(ClearError, ValueError):
    """An unsupported pattern of separators; the message names the part of it and the remedy."""


def normalise_text(text: str) -> str:
    """Return ``text`` normalised as this module defines it, independent of Python's version of Unicode."""
    # Even places have known characters, odd places one later character each.
    pieces = re.split(_LATER_CHARACTER, text)
    pieces[::2] = [_normalised(piece) for piece in pieces[::2]]
    return "".join(pieces)


def normalise(texts: pa.Array) -> pa.StringArray:
    """Return ``texts`` normalised as this module defines it; null stays null.

    Bytes that are not UTF-8 become U+FFFD, one for each longest run that could have begun a character, as The Unicode
    Standard recommends (section 3.9, table 3-8) and Python and TensorFlow do.

    Args:
        texts: string, binary, or null ``[rows]``.

    Raises:
        TypeError: ``texts`` is of another type.
    """
    strings = _strings(texts)
    is_ascii = pc.string_is_ascii(strings).fill_null(True)
    # In ASCII text, normalising changes only the case of letters.
    lowered = pc.ascii_lower(strings)
    if pc.all(is_ascii).as_py() is not False:
        return lowered
    others = pc.invert(is_ascii)
    encoded = strings.view(pa.binary()).filter(others).dictionary_encode()
    # Searching text by text for later characters takes twice as all the rest; Arrow searches a whole column.
    has_later = pc.any(pc.match_substring_regex(encoded.dictionary.view(pa.string()), _LATER_CHARACTER)).as_py()
    normalise_one = normalise_text if has_later else _normalised
    distinct = [normalise_one(text.decode("utf-8", "replace")) for text in encoded.dictionary.to_pylist()]
    return pc.replace_with_mask(lowered, others, pa.array(distinct, pa.string()).take(encoded.indices))


def single_spaced(texts: pa.StringArray) -> pa.StringArray:
    """Return texts with single spaces for all white space, none at the ends; null if nothing is left."""
    trimmed = pc.utf8_trim(pc.replace_substring_regex(texts, WHITE_SPACE, " "), " ")
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def split_tokens(texts: pa.Array, pattern: str = DEFAULT_SEPARATORS) -> pa.ListArray:
    """Return the tokens of each text, list<string> ``[rows]``: the parts between matches of ``pattern``.

    Empty tokens are left out; null stays null. Matches are found from the left, without overlap; an empty match splits
    too, so that the empty pattern gives single code points.

    Args:
        texts: string ``[rows]`` of valid UTF-8, as :func:`normalise` returns.
        pattern: RE2 pattern of separators, with the limits of :func:`spelled_out`.

    Raises:
        SeparatorPatternError: ``pattern`` cannot be used.
        TypeError: ``texts`` is of another type.
    """
    broken = pc.replace_substring_regex(_strings(texts), spelled_out(pattern), TOKEN_BREAK)
    pieces = pc.split_pattern(broken.view(pa.binary()), TOKEN_BREAK)
    tokens = pieces.values.view(pa.string())
    is_token = pc.greater(pc.binary_length(tokens), 0)
    tokens_before = np.concatenate([[0], np.cumsum(is_token.to_numpy(zero_copy_only=False))])
    offsets = tokens_before[pieces.offsets.to_numpy()].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), tokens.filter(is_token), mask=pieces.is_null())


def subwords(words: pa.Array, sizes: tuple[int, int]) -> pa.ListArray:
    """Return each word and its n-grams, list<string> ``[words]``: tokens that unknown words share with known ones.

    The word comes first, between the marks ``<`` and ``>``, which distinguish a prefix or a suffix from the same
    characters within a word. The n-grams of the marked word that are shorter than it follow, long ones first, those of
    one size from the left. Characters are code points.

    Source: Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information" (fastText).

    Args:
        words: string ``[words]`` of valid UTF-8, as :func:`split_tokens` returns, without null.
        sizes: The fewest and the most characters of an n-gram, from 2 on.
    """
    fewest, most = sizes
    found = []
    for word in words.to_pylist():
        marked = f"<{word}>"
        lengths = range(min(most, len(marked) - 1), fewest - 1, -1)
        found.append([marked, *(marked[at : at + size] for size in lengths for at in range(len(marked) - size + 1))])
    return pa.array(found, pa.list_(pa.string()))


@functools.lru_cache(maxsize=256)
def spelled_out(pattern: str) -> str:
    r"""Return ``pattern`` with its classes of characters, ``\p{L}`` or ``\PN``, as ranges of code points.

    Libraries have different versions of Unicode in their RE2, so ``\p{L}`` differs between them; ranges do not. Texts
    are case-folded, so a pattern must not ignore the case, which would depend on the version too. Perl's classes and
    ``[[:alpha:]]`` mean ASCII everywhere.

    Raises:
        SeparatorPatternError: RE2 cannot read the pattern; or it has a class that is not a general category (a script),
            ``(?i)``, or ``\C``, which matches parts of characters.
    """
    parts = []
    at = 0
    is_in_brackets = False
    for match in _PATTERN_PART.finditer(pattern):
        parts.append(pattern[at : match.start()])
        at = match.end()
        kind = match.lastgroup
        if kind == "any_case" and not is_in_brackets:
            raise SeparatorPatternError(
                f"pattern {pattern!r} ignores the case by '(?i)'; leave it out and write lower case: texts are folded"
            )
        if kind == "byte":
            raise SeparatorPatternError(rf"pattern {pattern!r} has '\C', which cuts characters; use '.' instead")
        if kind == "class":
            ranges = _class_ranges(pattern, match)
            parts.append(ranges if is_in_brackets else f"[{ranges}]")
        else:
            parts.append(match.group())
        if kind == "opening":
            is_in_brackets = True
        elif kind == "closing":
            is_in_brackets = False
    spelled = "".join([*parts, pattern[at:]])
    try:
        pc.match_substring_regex(pa.array([""]), spelled)
    except pa.ArrowInvalid as error:
        raise SeparatorPatternError(f"pattern {pattern!r} is not an RE2 pattern: {error}") from error
    return spelled


def _normalised(text: str) -> str:
    is_long = len(text) >= _LONG_RUN and re.search(_MAYBE_LONG_RUN_OF_MARKS, text) is not None
    decomposed = _decomposed_in_linear_time(text) if is_long else unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFKC", decomposed.casefold())


def _decomposed_in_linear_time(text: str) -> str:
    """Return ``NFKD(text)`` in linear time for any text.

    Python sorts marks by insertion: a text of 200,000 marks took 100 s; here it takes 0.1 s. A text of letters takes 40
    times as with ``unicodedata`` alone, 0.5 microseconds per character.
    """
    decomposed = "".join([unicodedata.normalize("NFKD", character) for character in text])
    runs = itertools.groupby(decomposed, key=lambda character: unicodedata.combining(character) > 0)
    return "".join(["".join(sorted(run, key=unicodedata.combining) if is_marks else run) for is_marks, run in runs])


def _strings(texts: pa.Array) -> pa.StringArray:
    """Return ``texts`` as strings, whose bytes may not be UTF-8.

    Raises:
        TypeError: They are neither text nor bytes nor null.
    """
    if pa.types.is_null(texts.type):
        return texts.cast(pa.string())
    if pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type):
        return texts.view(pa.large_binary()).cast(pa.binary()).view(pa.string())
    if pa.types.is_string(texts.type) or pa.types.is_binary(texts.type):
        return texts.view(pa.string())
    raise TypeError(f"texts have type {texts.type}; cast them to string")


def _class_ranges(pattern: str, match: re.Match[str]) -> str:
    """Return the inside of the bracket expression that is equivalent to ``match``, a class of characters."""
    name = match["name"] or match["long_name"]
    if name not in _CLASSES:
        raise SeparatorPatternError(
            f"pattern {pattern!r} has the class '{match.group()}'; use a general category, one of "
            rf"{', '.join(sorted(_CLASSES))}, or write the characters as a range, such as \x{{370}}-\x{{3ff}}"
        )
    members = np.isin(_category_of_code_points(), _CLASSES[name])
    if (match["letter"] == "P") != bool(match["negated"]):
        members = ~members
    edges = np.flatnonzero(np.diff(members, prepend=False, append=False))
    return "".join(rf"\x{{{first:x}}}-\x{{{stop - 1:x}}}" for first, stop in edges.reshape(-1, 2).tolist())


@functools.cache
def _category_of_code_points() -> npt.NDArray[np.str_]:
    """Return the general category of every code point, ``<U2 [CODE_POINTS]``, in :data:`UNICODE_VERSION`."""
    categories = np.array([unicodedata.category(chr(code_point)) for code_point in range(CODE_POINTS)])
    for first, last in ASSIGNED_LATER:
        categories[first : last + 1] = "Cn"
    return categories
