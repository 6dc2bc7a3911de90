"""Do a year of weekly pipelines promote the good models alone, and tell of drift when it comes, and only then?

Each week brings new customers, drawn from a seed, and one run of the pipeline: convert, train from the champion's
weights, measure beside the champion, judge, try, promote. From one week on the customers earn more: the date has to say
that the column has drifted, and no other date may, since all later ones are like the one before. In another week the
labels are noise: that model must stop at the gate, and the champion stay. All dates run in one process and one Spark
session; the trainings, exports and trials of single rows have processes of their own, as always.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.benchmark import PAGES, Benchmark, Options, answer, question_of, scratch_folder
from benchmarks.measure import Mark
from benchmarks.report import Report, Table

if TYPE_CHECKING:
    from mirrorspark.lifecycle.pipeline.record import PipelineRecord

NAME = "lifecycle_year"
MODEL = "buyers"
SLOTS = 2
FIRST_DATE = date(2026, 1, 3)
SEED = 1
ROWS = 4_000
CITIES = ("Oslo", "Rome", "Bonn", "Bern", "Wien", "Linz")
MINUTES_MARK = 30.0
FALSE_ALARMS_MARK = 0.01
# Drift of income, in its standard deviations.
SHIFT = 1.0

# JSON is YAML.
RECIPE = {
    "tables": {"people": "id bigint, age double, income double, city string, bought int"},
    "label": "bought",
    "keys": "id",
    "features": {"age": {"kind": "numeric"}, "income": {"kind": "numeric"}, "city": {"kind": "categorical"}},
    "epochs": 6,
    "patience": 0,
    "global_batch_size": 128,
    "learning_rate": 0.02,
    "shards": 1,
    "baseline": "none",
    "explain": False,
    "model": {"name": "multi_field", "embedding_dim": 2, "hidden_units": [8]},
}
SQL = """
SELECT id, age, income, city, bought,
       CASE WHEN part < 6 THEN 'train' WHEN part < 7 THEN 'validation' ELSE 'test' END AS split
FROM (SELECT *, pmod(xxhash64(id), 10) AS part FROM people)
"""
PIPELINE = {
    "slices": ["city"],
    "gates": {
        "thresholds": [
            {"metric": "auc", "at_least": 0.7},
            {"metric": "auc", "gain_at_least": -0.03},
            {"metric": "auc", "gain_at_least": -0.03, "slices": ["city"], "interval": "may_pass"},
        ]
    },
    "cache_table": True,
}


@dataclass(frozen=True)
class Year:
    """What is simulated.

    Attributes:
        weeks: Number of dates.
        drift_week: Week, from 1, from which on the customers earn more.
        bad_week: Week whose labels are noise.
        rows: Customers of a week.
    """

    weeks: int = 52
    drift_week: int = 30
    bad_week: int = 40
    rows: int = ROWS

    def table(self, week: int) -> pa.Table:
        """Return the customers of a week; no other week has one of them."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([SEED, week])))
        age = generator.uniform(18, 80, self.rows)
        wealth = generator.normal(size=self.rows) + (SHIFT if week >= self.drift_week else 0.0)
        city = generator.integers(0, len(CITIES), self.rows)
        logit = 1.5 * wealth + 0.8 * (city - 2.5) + (age - 49) / 15
        bought = generator.random(self.rows) < 1 / (1 + np.exp(-logit))
        if week == self.bad_week:
            bought = generator.permutation(bought)  # as many, so that nothing but the model is bad
        columns = {
            "id": np.arange(self.rows) + week * 1_000_000,
            "age": age,
            "income": 40_000 + 12_000 * wealth,
            "city": np.array(CITIES)[city],
            "bought": bought.astype(np.int32),
        }
        return pa.table(columns)

    def date(self, week: int) -> str:
        """Return the date of a week."""
        return (FIRST_DATE + timedelta(weeks=week - 1)).isoformat()


@dataclass(frozen=True)
class Week:
    """What came of a week.

    Attributes:
        week: Its number, from 1.
        seconds: How long its date took.
        stages: The same by stage.
        stopped: The stage that has failed; None if the date has finished.
        champion: The version that is the champion afterwards.
        auc: AUC of the candidate and of the champion before it; NaN for what was not measured.
        drift: Largest index of a column, beyond chance.
        score_drift: That of the scores.
        warnings: What the date has warned of, in words.
    """

    week: int
    seconds: float
    stages: Mapping[str, float]
    stopped: str | None
    champion: str | None
    auc: tuple[float, float]
    drift: float
    score_drift: float
    warnings: Sequence[str]

    @classmethod
    def of(cls, week: int, record: "PipelineRecord", champion: str | None, seconds: float) -> "Week":
        """Return what the record of a date says."""
        from mirrorspark.lifecycle.pipeline.weekly import warnings_of

        auc = (record.fact("evaluate", "metrics") or {}).get("auc", math.nan)
        change = (record.fact("evaluate", "change") or {}).get("auc", math.nan)
        return cls(
            week,
            seconds,
            {name: one.seconds for name, one in record.stages.items()},
            next((name for name, one in record.stages.items() if one.state == "failed"), None),
            champion,
            (auc, auc - change),
            max((record.fact("convert", "drift") or {}).values(), default=0.0),
            record.fact("evaluate", "score_drift") or 0.0,
            warnings_of({name: one.facts for name, one in record.stages.items()}),
        )


def run(options: Options, year: Year, keep: Path | None = None) -> Report:
    """Run all weeks, and print a line for each.

    Args:
        options: Its scratch folder is used.
        year: What is simulated.
        keep: Folder to which the pages and records of the dates are copied; None for none.
    """
    from mirrorspark.spark_session.start import open_session

    folder = options.scratch
    (folder / "recipe").mkdir()
    for name, text in (("recipe", json.dumps(RECIPE)), ("pipeline", json.dumps(PIPELINE))):
        (folder / "recipe" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "recipe" / "table.sql").write_text(SQL, encoding="utf-8")
    session = open_session(f"local[{SLOTS}]", SLOTS, app_name="mirrorspark-benchmark")
    weeks = []
    for week in range(1, year.weeks + 1):
        weeks.append(_run_week(folder, year, week))
        print(in_words(weeks[-1]), flush=True)
        if keep is not None:
            shutil.copytree(folder / "output" / "pipelines" / MODEL, keep, dirs_exist_ok=True)
    session.stop()
    return report(year, weeks)


def _run_week(folder: Path, year: Year, week: int) -> Week:
    import mirrorspark as ms
    from mirrorspark.lifecycle.pipeline.record import PipelineRecord
    from mirrorspark.lifecycle.pipeline.run import folder_of_date

    data, output = folder / "data" / year.date(week), folder / "output"
    data.mkdir(parents=True)
    pq.write_table(year.table(week), data / "people.parquet")
    config = ms.RunConfig.from_recipe(
        str(folder / "recipe"), data=str(data), output=str(output), name=MODEL, run_date=year.date(week), workers=1
    )
    start = time.monotonic()
    # A date that stops is a finding, not the end of the year.
    with contextlib.suppress(ms.StageFailedError):
        ms.run_pipeline(config)
    seconds = time.monotonic() - start
    record = PipelineRecord.load(folder_of_date(config))
    assert record is not None, "the pipeline has run"
    champion = None
    with contextlib.suppress(ms.RegistryError):  # the first week may have promoted nothing
        champion = ms.MLflowRegistry(f"sqlite:///{output / 'mlflow.db'}").alias(MODEL, "champion")
    return Week.of(week, record, champion, seconds)


def in_words(week: Week) -> str:
    """Return a line on a week."""
    outcome = f"stopped at {week.stopped}" if week.stopped else "finished"
    auc, champion = week.auc
    line = f"week {week.week:>2}: {outcome}, champion {week.champion}, AUC {auc:.3f} (champion {champion:.3f}), "
    line += f"drift {week.drift:.2f}, of scores {week.score_drift:.2f}, {week.seconds:.0f} s"
    return "; ".join([line, *week.warnings])


def report(year: Year, weeks: Sequence[Week]) -> Report:
    """Return the page of a year, with a mark for each thing that it was to show."""
    former = {after.week: before.champion for before, after in itertools.pairwise(weeks)}
    good = [one for one in weeks if one.week != year.bad_week]
    quiet = [one for one in good if one.week != year.drift_week]
    marks = [Mark("good models that were promoted, share", share(one.stopped is None for one in good), 1.0)]
    for one in weeks:
        if one.week == year.drift_week:
            told = any("columns have drifted" in text and "income" in text for text in one.warnings)
            marks.append(Mark(f"the drift of week {one.week} was told then", float(told), 1.0))
        if one.week == year.bad_week:
            held = one.stopped == "gate" and one.champion == former.get(one.week)
            marks.append(Mark(f"the bad model of week {one.week} stopped at the gate", float(held), 1.0))
    alarms = share(bool(one.warnings) for one in quiet)
    marks.append(Mark("other weeks with a warning, share", alarms, FALSE_ALARMS_MARK, "at most"))
    marks.append(Mark("minutes", sum(one.seconds for one in weeks) / 60, MINUTES_MARK, "at most"))
    tables = (_weeks_table(year, weeks), _stages_table(weeks))
    return Report(NAME, question_of(__doc__), tables, tuple(marks), conditions={"rounds": "one", "seed": str(SEED)})


def share(found: Iterable[bool]) -> float:
    """Return the share of values that are true, NaN of none."""
    values = list(found)
    return sum(values) / len(values) if values else math.nan


def _weeks_table(year: Year, weeks: Sequence[Week]) -> Table:
    planted = {year.drift_week: "drift", year.bad_week: "noise"}
    rows = tuple(
        (
            str(one.week),
            planted.get(one.week, ""),
            one.stopped or "promoted",
            str(one.champion),
            *("-" if math.isnan(value) else f"{value:.3f}" for value in (*one.auc, one.drift, one.score_drift)),
            "; ".join(one.warnings),
            f"{one.seconds:.0f}",
        )
        for one in weeks
    )
    columns = ("week", "planted", "outcome", "champion", "AUC", "champion's AUC", "drift", "of scores", "told", "s")
    note = (
        f"{year.rows:,} customers a week. AUC on the week's test rows, of the candidate and of the champion before it. "
        "Drift is the stability index beyond chance against the last date that finished, the largest of the columns."
    )
    return Table("Weeks", columns, rows, note)


def _stages_table(weeks: Sequence[Week]) -> Table:
    names = list(dict.fromkeys(name for one in weeks for name in one.stages))
    times = {name: [one.stages[name] for one in weeks if name in one.stages] for name in names}
    times["between stages"] = [one.seconds - sum(one.stages.values()) for one in weeks]
    rows = tuple((name, f"{seconds[0]:.1f}", f"{median(seconds):.1f}") for name, seconds in times.items())
    return Table("Seconds of a week", ("stage", "first week", "median"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate what the command line asks for; exit status 1 if a mark is not met."""
    usual = Year()
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=question_of(__doc__))
    parser.add_argument("--weeks", type=int, default=usual.weeks, help=f"default {usual.weeks}; fewer are a try")
    for name in ("drift_week", "bad_week", "rows"):
        default = getattr(usual, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default:,}")
    parser.add_argument("--output", type=Path, default=PAGES, help="folder of the page (default: docs/benchmarks)")
    parser.add_argument("--scratch", type=Path, help="folder for tables and outputs (default: a temporary one)")
    parser.add_argument("--keep", type=Path, help="folder to which the pages of the dates are copied")
    flags = parser.parse_args(arguments)
    given = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Year)}
    year = Year(**given)
    benchmark = Benchmark(NAME, question_of(__doc__), year.rows, partial(run, year=year, keep=flags.keep))
    with scratch_folder(flags.scratch) as scratch:
        found = answer(benchmark, Options(year.rows, 3, scratch))
    other = [f" --{name.replace('_', '-')} {value}" for name, value in given.items() if value != getattr(usual, name)]
    found = dataclasses.replace(found, command=found.command + "".join(other))
    print(found.markdown())
    print(f"written to {found.save(flags.output)}")
    if missed := [mark.what for mark in found.marks if not mark.is_met]:
        sys.exit(f"not met: {', '.join(missed)}")


if __name__ == "__main__":
    main()
