"""How many steps per second does each of the newer models train, next to plain Keras `fit` and to PyTorch DDP?

Two processes with one thread each on all sides: the product's ring, reader and loop; Keras' ``fit`` of the same model
under ``MultiWorkerMirroredStrategy``, compiled with Keras' own Adam and the same loss and metrics, 50 steps per
execution (fewer where a step is long), on the same TFRecords, read by TensorFlow alone; for two models PyTorch DDP over
gloo, on the same batches, which lie in memory, without metrics. In addition, Keras' ``fit`` without a strategy, in one
process of two threads with the rows of both. The processes stay; the sides take turns, model by model, after steps that
do not count.

Then SASRec next to the LSTM on the same interactions, and the time of a step with an embedding table of 10,000 and of a
million rows.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.other_environment import OtherProcess, UnavailableError, started
from benchmarks.report import REPOSITORY, Report, Table, rate, significant
from benchmarks.train_models_data import LSTM, MODELS, SASREC, SASREC_ROWS, TABLES, Case, table_case, write_rows
from benchmarks.train_steps import torch_python
from mirrorspark.data_pipelines.dataset.manifest import TRAIN_SPLIT
from mirrorspark.data_pipelines.features.kinds import TokenFeature
from mirrorspark.data_pipelines.reading.batching import LABEL
from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, batches
from mirrorspark.models import catalog
from mirrorspark.training.configuration.fields import Optimizer
from mirrorspark.training.executor.child_process import DEFAULT_VARIABLES

WORKERS = 2
OURS, PLAIN, ALONE, DDP = "ours", "plain fit", "plain fit, one process", "PyTorch DDP"
SECONDS = 1.0  # of a turn
_BATCHES_IN_MEMORY = 64
# Those that move only the rows of a table that a batch has read.
OPTIMIZERS: tuple[Optimizer, ...] = ("lazy_adam", "adagrad")


@dataclass(frozen=True)
class Team:
    """The ranks of one side."""

    ranks: Sequence[OtherProcess]

    def ask(self, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the answers of all ranks, which work at the same time; one request for all of them, or one each."""
        each = requests if len(requests) > 1 else requests * len(self.ranks)
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            return list(pool.map(lambda rank, request: rank.ask(**request), self.ranks, each))

    def seconds(self, *requests: Mapping[str, Any]) -> float:
        """Return the seconds of a step, in the mean of the ranks, which wait for each other in every one."""
        return float(np.mean([answer["seconds"] for answer in self.ask(*requests)]))


def run(options: Options) -> Report:
    """Measure the models, then the tables of embeddings."""
    cases = [*MODELS, SASREC_ROWS, *(table_case(name, rows) for name in OPTIMIZERS for rows in TABLES)]
    for data in {case.data for case in cases}:
        write_rows(data, options.rows, options.scratch / data)
    timings: dict[Case, dict[str, Timing]] = {}
    with contextlib.ExitStack() as ending:
        open_team = partial(_tensorflow, options.scratch, ending)
        teams = {OURS: open_team("ring"), PLAIN: open_team("mirrored"), ALONE: open_team("alone")}
        torch, about_torch = _torch(options, ending)
        if torch is not None:
            teams[DDP] = torch
        seconds = SECONDS * options.rows / BENCHMARK.rows
        for case in cases:
            sides = {name: team for name, team in teams.items() if _takes_part(name, case)}
            contenders = [_begun(name, team, case, options.scratch, seconds) for name, team in sides.items()]
            timings[case] = interleave(contenders, options.rounds, warm_ups=0)
    return Report(
        BENCHMARK.name,
        BENCHMARK.question,
        tables_of(timings),
        marks_of(timings),
        conditions={
            "rounds": f"median of {options.rounds} turns, interleaved, after steps that do not count",
            "PyTorch": about_torch,
        },
    )


def _takes_part(side: str, case: Case) -> bool:
    if case not in MODELS:
        return side == OURS
    return side != DDP or case.peer is not None


def _begun(side: str, team: Team, case: Case, scratch: Path, seconds: float) -> Contender:
    """Return the side with a model of ``case``, which has made its first steps; a turn takes about ``seconds``."""
    dataset = scratch / case.data
    if side == DDP:
        requests = [_peer(case, Dataset.open(dataset), rank, scratch) for rank in range(WORKERS)]
        pace = team.seconds(*({"work": "begin", "steps": case.steps_per_execution, **one} for one in requests))
        # Its first steps are slower.
        turn: dict[str, Any] = {"work": "train", "steps": max(1, round(seconds / pace))}
    else:
        begin = {"work": "begin", "case": asdict(case), "dataset": str(dataset), "executions": 1}
        pace = team.seconds(begin)
        turn = {"work": "train", "executions": max(1, round(seconds / pace / case.steps_per_execution))}
    return Contender(side, partial(team.seconds, turn))


def _peer(case: Case, dataset: Dataset, rank: int, scratch: Path) -> dict[str, Any]:
    """Return the request for the same model in PyTorch, and write the batches of a rank."""
    plan = ReadPlan(TRAIN_SPLIT, case.batch * WORKERS, rank=rank, workers=WORKERS, seed=1, remainder="drop")
    chunks: list[dict[str, Any]] = []
    for chunk in batches(dataset, plan):
        chunks.append({name: np.array(column) for name, column in chunk.items()})
        if sum(len(of[LABEL]) for of in chunks) >= _BATCHES_IN_MEMORY:
            break
    columns = {name: np.concatenate([of[name] for of in chunks])[:_BATCHES_IN_MEMORY] for name in chunks[0]}
    settings, features = catalog.settings(case.model, case.options), dataset.features
    if case.peer == "dcn":
        tokens = [feature for feature in dataset.spec if isinstance(feature, TokenFeature)]
        numbers = [feature for feature in dataset.spec if feature.form == "value"]
        given = [np.stack([columns[one.name] for one in kind], axis=-1) for kind in (tokens, numbers)] + [
            columns[LABEL]
        ]
        sizes: dict[str, Any] = {
            "ids": [features.id_count(feature) for feature in tokens],
            "numbers": len(numbers),
            "dim": settings.embedding_dim,
            "layers": settings.cross_layers,
            "rank": settings.cross_rank,
            "units": settings.hidden_units,
        }
    else:
        given = [columns["history"], columns["item"]]
        sizes = {
            "ids": features.id_count(dataset.spec.candidate),
            "longest": given[0].shape[-1],
            "dim": settings.embedding_dim,
            "blocks": settings.blocks,
            "dropout": settings.dropout,
            "negatives": settings.negatives,
        }
    path = scratch / f"{case.peer}-{rank}.npz"
    np.savez(path, *given)
    return {"peer": case.peer, "sizes": sizes, "batches": str(path)}


def tables_of(timings: Mapping[Case, Mapping[str, Timing]]) -> tuple[Table, ...]:
    """Return the tables of the seconds of a step, by case and side."""
    return _models_table(timings), _sequences_table(timings), _tables_table(timings)


def marks_of(timings: Mapping[Case, Mapping[str, Timing]]) -> tuple[Mark, ...]:
    """Return the marks of the same; those of PyTorch are missing where it is."""
    return (*_model_marks(timings), *_sequence_marks(timings), *_table_marks(timings))


def _models_table(timings: Mapping[Case, Mapping[str, Timing]]) -> Table:
    sides = (OURS, PLAIN, ALONE, DDP)
    rows = []
    for case in MODELS:
        of = timings[case]
        speeds = [f"{significant(1 / of[side].median)} ± {of[side].spread:.0%}" if side in of else "" for side in sides]
        times = [f"{speed_ratio(of, OURS, side):.2f}" if side in of else "" for side in sides[1:]]
        rows.append((case.name, f"{case.batch}", *speeds, *times))
    columns = (
        "model",
        "batch per worker",
        *(f"{side}, steps/s" for side in sides),
        *(f"ours / {one}" for one in sides[1:]),
    )
    note = (
        "With each speed the spread of its turns. A step trains the rows of both workers; *one process* has them all."
    )
    return Table("Steps per second", columns, tuple(rows), note)


def _sequences_table(timings: Mapping[Case, Mapping[str, Timing]]) -> Table:
    rows = []
    for case in (LSTM, SASREC_ROWS, SASREC):
        examples = case.batch * WORKERS / timings[case][OURS].median
        rows.append((case.name, rate(examples), rate(examples * case.learnt)))
    note = (
        "Histories of up to 50 items of 17,632, as LastFM has. A row per user teaches each of its items, from those "
        "before it, so it stands for 51 rows of the others."
    )
    return Table("Sequences", ("model", "rows/s", "interactions learnt per second"), tuple(rows), note)


def _tables_table(timings: Mapping[Case, Mapping[str, Timing]]) -> Table:
    rows = []
    for name in OPTIMIZERS:
        small, large = (timings[table_case(name, count)][OURS] for count in TABLES)
        milliseconds = (f"{1e3 * of.median:.2f} ± {of.spread:.0%}" for of in (small, large))
        rows.append((f"`{name}`", *milliseconds, f"{large.median / small.median:.2f}"))
    note = "Eight ids a row, all equally frequent, 32 numbers each."
    columns = ("optimizer", *(f"{count:,} rows, ms a step" for count in TABLES), "ratio")
    return Table("Embedding tables", columns, tuple(rows), note)


def _model_marks(timings: Mapping[Case, Mapping[str, Timing]]) -> Iterator[Mark]:
    for case in MODELS:
        for side, limit in ((PLAIN, 3.0), (DDP, 1.2)):
            if side in timings[case]:
                yield Mark(f"{case.name}: ours / {side}", speed_ratio(timings[case], OURS, side), limit)


def _sequence_marks(timings: Mapping[Case, Mapping[str, Timing]]) -> Iterator[Mark]:
    def learnt(case: Case) -> float:
        return case.batch * case.learnt / timings[case][OURS].median

    yield Mark("SASRec / LSTM, interactions learnt per second", learnt(SASREC) / learnt(LSTM), 3.0)
    yield Mark("SASRec / LSTM, row for row", learnt(SASREC_ROWS) / learnt(LSTM), 3.0)


def _table_marks(timings: Mapping[Case, Mapping[str, Timing]]) -> Iterator[Mark]:
    for name in OPTIMIZERS:
        small, large = (timings[table_case(name, count)][OURS].median for count in TABLES)
        yield Mark(f"a step with `{name}`, a million rows / 10,000 rows", large / small, 1.2, "at most")


def _tensorflow(scratch: Path, ending: contextlib.ExitStack, side: str) -> Team:
    """Return the ranks of a side of TensorFlow: one of two threads for ``alone``, else two of one thread."""
    threads = WORKERS if side == "alone" else 1
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    workers = [f"127.0.0.1:{_free_port()}" for _ in range(WORKERS)]
    token = secrets.token_hex(16)
    ranks = []
    for rank in range(WORKERS // threads):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        environment = {name: str(threads) for name in names} | {"TF_CONFIG": json.dumps(config)}
        environment |= DEFAULT_VARIABLES if side == "ring" else {}
        command = [sys.executable, "-m", "benchmarks.train_models_rank", side, token]
        ranks.append(ending.enter_context(_started(command, environment, scratch / f"{side}-{rank}.log")))
    return Team(ranks)


def _torch(options: Options, ending: contextlib.ExitStack) -> tuple[Team | None, str]:
    """Return the ranks of PyTorch and its version, or None and the reason why there are none."""
    try:
        python = torch_python(options)
        shared = {"WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [python, "-m", "benchmarks.torch_peer", "models"]
        ranks = [
            ending.enter_context(
                _started(command, {**shared, "RANK": str(rank)}, options.scratch / f"torch-{rank}.log")
            )
            for rank in range(WORKERS)
        ]
        team = Team(ranks)
        return team, f"{team.ask({'work': 'versions'})[0]['torch']}, DDP over gloo, batches in memory"
    except UnavailableError as error:
        return None, f"skipped: {error}"


def _started(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> contextlib.AbstractContextManager[OtherProcess]:
    return started(command, {"PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}", **environment}, log)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


BENCHMARK = Benchmark("train_models", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
