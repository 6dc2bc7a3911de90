"""The page says what was found, needs nothing but itself, and no value can break out of its text."""

import dataclasses
import re
import time
from datetime import datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.kinds import Categorical, Feature, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.page import PageFacts, dataset_page
from mirrorspark.data_pipelines.quality.profiling import SplitCounts, profile_columns
from mirrorspark.data_pipelines.quality.validation import validate

EVIL = "<script>alert('x')</script>\"&"
ROWS = 200
SPEC = FeatureSpec(
    (Numeric("distance"), Categorical("carrier"), MultiValued("earlier", max_length=3), Numeric("never")),
    Label("late"),
    ("flight",),
)


class Elements(HTMLParser):
    """Counts elements and gathers their attributes and text."""

    VOID = ("meta", "input", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def flights(seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "flight": [f"secret-key-{seed}-{n}" for n in range(ROWS)],
            "late": generator.integers(0, 2, ROWS),
            "distance": generator.normal(1_000, 100, ROWS),
            "carrier": generator.choice(["UA", EVIL, "ü"], ROWS),
            "earlier": [["UA", EVIL][: n % 3] for n in range(ROWS)],
            "never": pa.nulls(ROWS, pa.float64()),
        }
    )


def page(*, reference: bool = False) -> str:
    former = profile_columns({"train": flights(9)}, SPEC) if reference else None
    counts = {split: SplitCounts(10 * ROWS, 3_456_789, 4) for split in ("train", "test")}
    profile = profile_columns({"train": flights(1), "test": flights(2)}, SPEC, counts=counts, reference=former)
    report = validate(profile, SPEC, former)
    facts = PageFacts(
        title=f"flights {EVIL}",
        written="2024-01-02 03:04 UTC",
        spec_hash="abc123",
        source={"files": {"flights": {"name": EVIL}}},
        versions={"pyarrow": "25"},
        reference="flights-old" if reference else "",
    )
    return dataset_page(facts, profile, report, former)


def test_the_page_tells_rows_bytes_findings_and_how_it_was_made() -> None:
    text = Elements(page()).text
    for wanted in (
        "4,000 rows",
        "6.91 MB in shards",
        "sampled for this page",
        "'never' has no value in any of the 2,000 training rows",
        "feature spec abc123",
        "written 2024-01-02 03:04 UTC",
        "there is no former dataset to compare with",
        "pyarrow 25",
    ):
        assert wanted in text, wanted


def test_the_page_is_well_formed_and_values_stay_text() -> None:
    elements = Elements(page(reference=True))
    assert elements.open == []
    assert elements.names.count("script") == 1
    assert elements.names.count("style") == 1
    assert EVIL in elements.text


def test_the_page_fetches_nothing() -> None:
    content = page(reference=True)
    assert not re.search(r'(?:src|href)="(?!#)', content)
    assert "url(" not in content
    assert "@import" not in content
    assert set(re.findall(r"https?://[^\"' ]+", content)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in content


def test_every_link_has_its_target() -> None:
    attributes = Elements(page(reference=True)).attributes
    targets = [value for name, value in attributes if name == "id"]
    links = {value for name, value in attributes if name == "href"}
    assert links
    assert links <= {f"#{target}" for target in targets}
    assert len(targets) == len(set(targets))


def test_a_column_that_the_table_lacks_is_named_without_a_link() -> None:
    spec = dataclasses.replace(SPEC, features=(*SPEC.features, Numeric("gone")))
    profile = profile_columns({"train": flights(1)}, spec)
    elements = Elements(dataset_page(PageFacts("flights"), profile, validate(profile, spec)))
    assert "column 'gone' of the spec is not in the table" in elements.text.lower()
    assert ("href", "#column-gone") not in elements.attributes
    assert ("href", "#column-never") in elements.attributes


def test_keys_are_not_shown() -> None:
    assert "secret-key" not in page()


def test_drift_against_the_former_dataset_is_shown_beside_it() -> None:
    former = profile_columns({"train": flights(9)}, SPEC)
    moved = flights(1)
    moved = moved.set_column(2, "distance", pa.array(moved["distance"].to_numpy() + 500))
    profile = profile_columns({"train": moved}, SPEC, reference=former)
    text = Elements(dataset_page(PageFacts("flights"), profile, validate(profile, SPEC, former), former)).text
    assert "train vs former" in text
    assert "'distance' has moved far since the former dataset" in text
    assert "compare with the former dataset" in text


NUMBERS = st.one_of(st.just(0.0), st.floats(width=64), st.sampled_from([5e-324, -5e-324, 1.7e308, -1.7e308]))


@given(
    values=st.lists(NUMBERS, min_size=1, max_size=40).map(np.array),
    repeats=st.sampled_from([1, 400]),
    other=st.lists(NUMBERS, max_size=5).map(lambda values: np.array(values, float)),
)
@example(values=np.array([0.01] * 4 + [0.0] * 1000), repeats=1, other=np.zeros(1))
@example(values=np.array([5e-324, 0.0]), repeats=1, other=np.zeros(0))
@example(values=np.array([1.7976931348623157e308]), repeats=1, other=np.zeros(0))
@example(values=np.array([np.inf]), repeats=1, other=np.array([1.0]))
def test_any_numbers_can_be_shown(values: np.ndarray, repeats: int, other: np.ndarray) -> None:
    spec = FeatureSpec((Numeric("x"),), Label("late"), ("id",))
    samples = {"train": np.append(np.repeat(values[:1], repeats), values), "test": other}
    tables = {
        split: pa.table({"id": np.arange(len(x)), "late": np.arange(len(x)) % 2, "x": x})
        for split, x in samples.items()
    }
    former = profile_columns(tables, spec)
    profile = profile_columns(tables, spec, reference=former)
    shown = Elements(dataset_page(PageFacts("numbers"), profile, validate(profile, spec, former), former))
    assert "nan" not in {value for name, value in shown.attributes if name in ("x", "width")}
    column = profile.column("x")
    assert column is not None
    has_numbers = bool(np.isfinite(samples["train"]).any())
    assert (len(column.edges) > 1) == has_numbers
    assert "rect" in shown.names or not has_numbers  # The label has bars, too.


def test_a_profile_with_too_few_edges_for_a_bar_is_shown_without_its_figure() -> None:
    profile = profile_columns({"train": flights(1)}, SPEC)
    columns = tuple(dataclasses.replace(column, edges=column.edges[:1]) for column in profile.columns)
    profile = dataclasses.replace(profile, columns=columns)
    shown = Elements(dataset_page(PageFacts("x"), profile, validate(profile, SPEC)))
    assert ("class", "bar") not in shown.attributes


def test_times_are_shown_as_dates() -> None:
    times = [datetime(2024, 1, 1) + timedelta(days=n) for n in range(ROWS)]
    table = flights(1).set_column(2, "distance", pa.array(times))
    profile = profile_columns({"train": table}, SPEC)
    assert "2024-01-01" in Elements(dataset_page(PageFacts("flights"), profile, validate(profile, SPEC))).text


def test_without_findings_the_page_says_so() -> None:
    spec = FeatureSpec((Numeric("distance"),), Label("late"), ("flight",))
    samples = {split: flights(seed) for seed, split in enumerate(("train", "validation", "test"))}
    profile = profile_columns(samples, spec)
    content = dataset_page(PageFacts("flights"), profile, validate(profile, spec))
    assert "Nothing stands out in any column." in content
    assert "All figures are of all rows." in content


def test_two_hundred_columns_make_a_light_page_quickly() -> None:
    generator = np.random.default_rng(0)
    columns = {f"n{n}": generator.normal(size=ROWS) for n in range(100)}
    tokens = {f"c{n}": generator.integers(0, 50, ROWS) for n in range(100)}
    table = pa.table({"flight": range(ROWS), "late": np.arange(ROWS) % 2} | columns | tokens)
    features: list[Feature] = [Numeric(name) for name in columns]
    spec = FeatureSpec((*features, *(Categorical(name) for name in tokens)), Label("late"), ("flight",))
    samples = {"train": table, "validation": table, "test": table}
    profile = profile_columns(samples, spec)
    report = validate(profile, spec)
    start = time.process_time()
    content = dataset_page(PageFacts("wide"), profile, report)
    # A twentieth of a second here; the bounds leave room for slow machines, not for a figure library.
    assert time.process_time() - start < 3
    assert len(content) < 3_000_000
