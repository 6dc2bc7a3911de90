"""Prose of code, messages, tests and pages: a table of patterns, each with its reason and a better form."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


class Pattern(NamedTuple):
    """Words that a text avoids."""

    expression: str
    better: str
    in_openings: bool = False  # only at the beginning of a docstring


PATTERNS = (
    # A question may open a benchmark, whose page begins with it.
    Pattern(
        r"(?:What|Whether|How|Why|Who|Where|Which|Whose)\b(?!.*\?$)", "open with a noun or a verb", in_openings=True
    ),
    Pattern(r"(?:Return|Yield|Say|Tell) (?:what|how|who|where|which)\b", "name the value", in_openings=True),
    Pattern(r"(?:As|By|From|In|Of|On|With)\b", "open with a noun or a verb", in_openings=True),
    Pattern(
        r"(?<!\bthere )\b(?:is|are|was|were) no (?!longer|more|less|later|earlier|better|worse|larger|smaller|one\b)\w",
        "is not a, are not",
    ),
    Pattern(r", say\b(?! (?:that|so|which|who|where|what)\b)|(?<!callers) say[.;)]", "for example"),
    Pattern(r"\bas for\b", "as in, as of"),
    Pattern(r"\bbeside\b(?!:)", "next to"),
    Pattern(r"\bbesides\b", "also, in addition"),
    Pattern(r"\bso many\b", "this number of, as many"),
    Pattern(r"\b(?:is|are|was|were) gone\b", "is missing, is lost, was removed"),
    Pattern(r"\b(?:is|are|was|were) spent\b", "is used up"),
    Pattern(r"\b(?:told|tells?|telling|hears?|heard)\b(?!:)(?!(?: \S+){0,6} apart)", "report, log, get, receive"),
    Pattern(r"\b(?:says?|said) (?:otherwise|nothing)\b", "sets another value, sets none"),
    Pattern(r"\bat the (?:most|least)\b", "at most, at least"),
    Pattern(r"\b(?:stands?|stood) (?!for\b|still\b|out\b)\w", "is, lies"),
    Pattern(r"\b(?:the one|that|those) of today\b|\bof (?:now|then)\b", "the current one, the earlier one"),
    Pattern(r"\b(?:mend|mends|mended)\b", "correct, repair"),
    Pattern(r"\bknobs?\b", "setting"),
    Pattern(r"(?:(?<=[.!:] )|(?<=\n)|(?<=^# ))(?-i:What|Whoever|Who) [a-z][^.?!]*(?:\.|$)", "begin with the noun"),
    Pattern(r"[;:]\s+what\s(?![^.;:]*\?)", "begin the clause with its noun"),
    Pattern(r"(?<=[.;:!])\s+one that\b", "repeat the noun"),
    Pattern(r",\s+which\b[^.;:,(]*,\s+which\b", "two sentences"),
    Pattern(r"\bthere to be\b", "name what is done"),
    Pattern(r"(?<=\n)\s*\w+: (?-i:Of)\b", "begin an attribute with its noun"),
)

ANYWHERE = re.compile("|".join(pattern.expression for pattern in PATTERNS if not pattern.in_openings), re.IGNORECASE)

PAGES = sorted(path for pages in ("*.md", "*/README.md", "docs/*.md") for path in REPOSITORY.glob(pages))
# A page made from docstrings, and the one that lists words to avoid.
LEFT_OUT = ("api.md", "glossary.md")
FOLDERS = sorted(
    {path.parent for path in REPOSITORY.glob("*/__init__.py")}
    | {REPOSITORY / name for name in ("src", "tests", "tools")}
)


def hits_of_code(source: str) -> Iterator[tuple[int, str, Pattern]]:
    """Yield line, words and pattern of each hit in docstrings, comments and messages."""
    tree = ast.parse(source)
    openings = {id(node.body[0].value) for node in ast.walk(tree) if has_docstring(node)}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from hits(node.value, node.lineno, is_docstring=id(node) in openings)
    for number, line in enumerate(source.splitlines(), start=1):
        comment = re.search(r"(?:^ *|  )(# .*)", line)
        if comment:
            yield from hits(comment[1], number)


def has_docstring(node: ast.AST) -> bool:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return documented and ast.get_docstring(node) is not None  # type: ignore[arg-type]


def hits(text: str, line: int = 1, *, is_docstring: bool = False) -> Iterator[tuple[int, str, Pattern]]:
    """Yield line, words and pattern of each hit in a text."""
    prose = re.sub(r"``[^`]*``|`[^`]*`", "`x`", text)
    for pattern in PATTERNS:
        if (
            is_docstring
            and pattern.in_openings
            and (found := re.match(pattern.expression, prose.lstrip(), re.MULTILINE))
        ):
            yield line, found[0], pattern
    if not ANYWHERE.search(prose):  # most texts
        return
    for pattern in PATTERNS:
        if not pattern.in_openings:
            for found in re.finditer(pattern.expression, prose, re.IGNORECASE):
                yield line + prose.count("\n", 0, found.start()), found[0], pattern


def prose_of_page(text: str) -> str:
    """Return a page without its samples, on the same lines."""
    text = re.sub(r"^```.*?^```", lambda sample: "\n" * sample[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(?: {4}|\t)(?! *[-*] ).*$", "", text, flags=re.MULTILINE)


def shown(place: str, line: int, words: str, pattern: Pattern) -> str:
    return f"{place}:{line}: {words!r}; better: {pattern.better}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in LEFT_OUT], ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_pages_are_in_plain_english(page: Path) -> None:
    found = [
        shown(str(page.relative_to(REPOSITORY)), *hit) for hit in hits(prose_of_page(page.read_text(encoding="utf-8")))
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_code_is_in_plain_english(folder: Path) -> None:
    paths = [path for path in sorted(folder.rglob("*.py")) if path != Path(__file__) and not path.is_symlink()]
    found = [
        shown(str(path.relative_to(REPOSITORY)), *hit)
        for path in paths
        for hit in hits_of_code(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x is no table", 1),
        ("there is no table", 0),
        ("x is no longer a table", 0),
        ("an hour, say", 1),
        ("users, say that", 0),
        ("`beside` the table", 0),
        ("beside the table", 1),
        ("tell a row and a column apart", 0),
        ("the driver tells the task", 1),
    ],
)
def test_patterns_find_words_in_prose_alone(text: str, count: int) -> None:
    assert len(list(hits(text))) == count


def test_openings_of_docstrings_are_nouns_or_verbs() -> None:
    sources = [
        f'def f():\n    """{opening}"""\n'
        for opening in ("What it is.", "Return what it is.", "How fast is it?", "Value.")
    ]
    assert [len(list(hits_of_code(source))) for source in sources] == [1, 1, 0, 0]
