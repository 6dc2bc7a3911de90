"""Quality of ``ms.fit`` without settings on tables of identifiers, next to CatBoost's defaults.

``python -m benchmarks.quality_id_tables FOLDER`` prints a row per table, model and seed. FOLDER has the Parquet files
of :data:`SETS`, whose rows with a number that 5 divides are the test rows. ``ms.fit`` chooses by a tenth of the other
rows; CatBoost, in an environment of its own, trains on all of them, with the columns of :data:`SETS` as its categories.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import mirrorspark as ms
from benchmarks.other_environment import OtherProcess, environment_with, started
from benchmarks.report import REPOSITORY, print_cells, print_titles
from mirrorspark.data_pipelines.any_table import in_memory
from mirrorspark.evaluation.metrics import binary_metrics

CATBOOST = "catboost==1.2.10"
EVERY = 5
VALIDATION_SHARE = 0.1
_PEER_PROCESS = Path(__file__).with_name("peer_process.py")


@dataclass(frozen=True)
class IdTable:
    """A table of identifiers.

    Attributes:
        label: The first column; ``positive`` is its value that counts as 1.
        categories: The columns that CatBoost takes as categories; None for all.
    """

    label: str
    positive: Any = 1
    categories: Sequence[str] | None = None


SETS: Mapping[str, IdTable] = {
    "click_small": IdTable(
        "click",
        categories=(
            *("url_hash", "ad_id", "advertiser_id", "query_id"),
            *("keyword_id", "title_id", "description_id", "user_id"),
        ),
    ),
    "flights_late15": IdTable("late15", categories=("carrier", "flight", "tailnum", "origin", "dest")),
    "open_payments_60k": IdTable("status", "allowed"),
}
"""The tables by the names of their files."""

FITS: Mapping[str, Mapping[str, Any]] = {
    "network, without means of the label": {"register": "model", "encodings": False},
    "network": {"register": "model"},
    "`ms.fit`, no settings": {},
}
"""What each row changes of the defaults."""


def with_split(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows with their split: every fifth is for the test, and a share of the others for validation."""
    is_test = np.arange(len(table)) % EVERY == 0
    is_validation = np.random.default_rng(seed).random(len(table)) < VALIDATION_SHARE
    split = np.where(is_test, "test", np.where(is_validation, "validation", "train"))
    return table.assign(split=split, row=np.arange(len(table)))


def fitted(table: pd.DataFrame, label: str, seed: int, settings: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return the metrics by split of a training on a table, and its seconds."""
    given = dict(settings)
    rows = in_memory(pa.Table.from_pandas(table, preserve_index=False))
    begin = time.monotonic()
    spec = ms.default_spec(rows, label, keys=("row",), encodings=given.pop("encodings", True))
    with tempfile.TemporaryDirectory() as output:
        result = ms.fit(table, label, spec=spec, output=output, name="ids", seed=seed, **given)
        return result.metrics, time.monotonic() - begin


def catboost_row(peer: OtherProcess, name: str, of: IdTable, table: pd.DataFrame, folder: Path, seed: int) -> None:
    """Print the row of CatBoost's defaults."""
    columns = [column for column in table.columns if column not in (of.label, "split", "row")]
    categories = list(columns if of.categories is None else of.categories)
    plain = table.astype(dict.fromkeys(categories, "object"))
    plain[categories] = plain[categories].where(plain[categories].notna(), "").astype(str)
    plain["y"] = (table[of.label] == of.positive).astype(int)
    file = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pandas(plain[[*columns, "y", "split"]], preserve_index=False), file)
    answer = peer.ask(file=str(file), categories=categories, seed=seed)
    test = plain["y"][table["split"] == "test"].to_numpy(np.float32)
    metrics = binary_metrics(test, np.asarray(answer["scores"], np.float64))
    figures = [f"{metrics[name]:.4f}" for name in ("auc", "log_loss")]
    print_cells(name, f"CatBoost {answer['version']}, default", seed, "", *figures, round(answer["seconds"]))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder of the tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--environment", type=Path, help="folder of CatBoost's environment, kept for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        python = environment_with([CATBOOST, "pyarrow"], (arguments.environment or scratch / "catboost").absolute())
        command = [str(python), str(_PEER_PROCESS), "catboost", str(os.cpu_count())]
        print_titles("table", "model", "seed", "validation AUC", "test AUC", "test log loss", "seconds")
        with started(command, {"PYTHONPATH": str(REPOSITORY)}, scratch / "catboost.log") as peer:
            for name in arguments.sets:
                of, table = SETS[name], pd.read_parquet(arguments.folder / f"{name}.parquet")
                for seed in arguments.seeds:
                    rows = with_split(table, seed)
                    for what, settings in FITS.items():
                        metrics, seconds = fitted(rows, of.label, seed, settings)
                        figures = [metrics["validation"]["auc"], metrics["test"]["auc"], metrics["test"]["log_loss"]]
                        print_cells(name, what, seed, *(f"{figure:.4f}" for figure in figures), round(seconds))
                    catboost_row(peer, name, of, rows, scratch, seed)


if __name__ == "__main__":
    main()
