"""How many examples per second do two workers train, next to plain ``fit``, PyTorch DDP, and workers without exchange?

Spark launches every side as a barrier job of two tasks with one thread each, in new processes, on rows that lie in
memory. PyTorch runs through Spark's TorchDistributor, in an environment that the folder of ``--cache`` keeps.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.other_environment import OtherProcess, UnavailableError, environment_with, started
from benchmarks.report import REPOSITORY, Report, Table, timing_table
from benchmarks.train_steps_rank import EMBEDDING_DIM, ITEMS, USERS, FitRank, Side, Work
from benchmarks.train_work import WORKERS, launch, session_with_new_workers

PLAIN_ONE = "plain fit, steps_per_execution 1"
PLAIN_MANY = "plain fit, steps_per_execution 50"
RING = "RingStrategy"
ALONE = "two processes without any exchange"
ALONE_IN_OUR_LOOP = "two processes without any exchange, in our loop of steps"
DDP = "PyTorch DDP, gloo"
DDP_SPARSE_ADAM = "PyTorch DDP, gloo, SparseAdam"
STEPS_PER_EXECUTION = 50
_MODELS = {"mlp": "feed-forward net", "two_tower": "two towers"}
SMALL_BATCH, LARGE_BATCH = 256, 2_048

_TORCH_PEER = Path(__file__).with_name("torch_peer.py")
_TORCH = "torch==2.15.0"
_WITH_TORCH = ("pyspark", "numpy", "pandas", "pyarrow")


@dataclass(frozen=True)
class Aim:
    """A mark: ``name`` trains at least ``limit`` times as many examples per second as the best of ``references``."""

    name: str
    references: tuple[str, ...]
    limit: float

    def mark(self, work: Work, timings: Mapping[str, Timing]) -> Mark | None:
        """Return the mark, or None where a side was not measured."""
        if self.name not in timings or not set(self.references) <= set(timings):
            return None
        best = min((timings[reference] for reference in self.references), key=lambda timing: timing.median)
        what = f"{_MODELS[work.model]}: {self.name} / {best.name}, batch {work.batch:,}"
        return Mark(what, best.median / timings[self.name].median, self.limit)


_TWO_TOWER_AIMS = (Aim(RING, (PLAIN_ONE, PLAIN_MANY), 1.2), Aim(RING, (DDP, DDP_SPARSE_ADAM), 1.2))
AIMS: Mapping[tuple[str, int], tuple[Aim, ...]] = {
    ("mlp", SMALL_BATCH): (Aim(RING, (PLAIN_ONE, PLAIN_MANY), 3.0), Aim(RING, (DDP,), 1.7)),
    ("mlp", LARGE_BATCH): (Aim(RING, (DDP,), 2.4),),
    ("two_tower", SMALL_BATCH): _TWO_TOWER_AIMS,
    ("two_tower", LARGE_BATCH): _TWO_TOWER_AIMS,
}


def run(options: Options) -> Report:
    """Measure both models at both batch sizes."""
    session = session_with_new_workers()
    tables: list[Table] = []
    marks: list[Mark] = []
    with _torch(options) as (torch, about_torch):
        for batch in (SMALL_BATCH, LARGE_BATCH):
            work = Work.of_rows("mlp", batch, options.rows)
            timings = interleave(_mlp_sides(work, torch), options.rounds, warm_ups=0)
            tables.append(_table("Feed-forward net 64-256-128-1, Adam", work, timings))
            marks += _marks(work, timings)
        for batch in (SMALL_BATCH, LARGE_BATCH):
            work = Work.of_rows("two_tower", batch, options.rows // 4)
            timings = interleave(_two_tower_sides(work, torch), options.rounds, warm_ups=0)
            title = f"Two towers, {USERS:,} users and {ITEMS:,} items of {EMBEDDING_DIM} numbers, Adagrad"
            tables.append(_table(title, work, timings))
            marks += _marks(work, timings)
    session.stop()
    beside = {
        "rounds": f"median of {options.rounds}, interleaved; each in new processes, after steps that do not count",
        "PyTorch": about_torch,
    }
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks), conditions=beside)


def _marks(work: Work, timings: Mapping[str, Timing]) -> list[Mark]:
    return [mark for aim in AIMS[work.model, work.batch] if (mark := aim.mark(work, timings)) is not None]


def _table(title: str, work: Work, timings: Mapping[str, Timing]) -> Table:
    reference = min((PLAIN_ONE, PLAIN_MANY), key=lambda name: timings[name].median)
    note = f"{work.steps:,} steps in one epoch; rows of both workers."
    if work.model == "mlp":
        note += " Keras keeps an AUC, PyTorch no metric."
    else:
        note += (
            " In-batch softmax, gradients of the rows that a batch names. SparseAdam, which moves no other rows, has "
            "no counterpart in Keras."
        )
    return timing_table(f"{title}, batch {work.batch:,} per worker", WORKERS * work.rows, timings, reference, note=note)


def _mlp_sides(work: Work, torch: OtherProcess | None) -> Sequence[Contender]:
    return [
        *_plain(work),
        _ours(RING, FitRank("ring", work, our_loop=True)),
        _ours(ALONE, FitRank("alone", work)),
        _ours(ALONE_IN_OUR_LOOP, FitRank("alone", work, our_loop=True)),
        *([_ddp(DDP, torch, work, "adam")] if torch else []),
    ]


def _two_tower_sides(work: Work, torch: OtherProcess | None) -> Sequence[Contender]:
    return [
        *_plain(work),
        _ours(RING, FitRank("ring", work, our_loop=True)),
        _ours(ALONE, FitRank("alone", work)),
        _ours(ALONE_IN_OUR_LOOP, FitRank("alone", work, our_loop=True)),
        *([_ddp(DDP, torch, work, "adagrad"), _ddp(DDP_SPARSE_ADAM, torch, work, "sparse_adam")] if torch else []),
    ]


def _plain(work: Work) -> list[Contender]:
    side: Side = "plain"
    return [
        Contender(PLAIN_ONE, partial(launch, FitRank(side, work, 1), makes_its_strategy=False)),
        Contender(PLAIN_MANY, partial(launch, FitRank(side, work, STEPS_PER_EXECUTION), makes_its_strategy=False)),
    ]


def _ours(name: str, rank: FitRank) -> Contender:
    """Return a side that one of our ranks trains."""
    return Contender(name, partial(launch, rank, makes_its_strategy=True))


def _ddp(name: str, torch: OtherProcess, work: Work, optimizer: str) -> Contender:
    return Contender(name, lambda: float(torch.ask(work="train", of=asdict(work), optimizer=optimizer)["seconds"]))


def torch_python(options: Options) -> str:
    """Return the Python of an environment with PyTorch, which the folder of ``--cache`` keeps.

    Raises:
        UnavailableError: It cannot be installed.
    """
    # The same versions on both sides, as both have them.
    requirements = [_TORCH, *(f"{package}=={version(package)}" for package in _WITH_TORCH)]
    return str(environment_with(requirements, (options.cache or options.scratch).absolute() / "torch"))


@contextlib.contextmanager
def _torch(options: Options) -> Iterator[tuple[OtherProcess | None, str]]:
    """Yield the process of PyTorch and its version, or None and why there is none."""
    with contextlib.ExitStack() as ending:
        try:
            command = [torch_python(options), str(_TORCH_PEER), "launcher", str(WORKERS)]
            # PyTorch's launcher leaves its folders behind.
            environment = {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(options.scratch)}
            torch = ending.enter_context(started(command, environment, options.scratch / "torch.log"))
            about = f"{torch.ask(work='versions')['torch']}, DDP over gloo through Spark's TorchDistributor"
        except UnavailableError as error:
            yield None, f"skipped: {error}"
            return
        yield torch, about


BENCHMARK = Benchmark("train_steps", question_of(__doc__), 1_228_800, run)

if __name__ == "__main__":
    main(BENCHMARK)
