"""The plan of a fleet's run, which its folder keeps: the models and rows of every microbatch.

::

    <output>/_run/plan.json          the plan, written once
    <output>/_run/fleet/             the fleet as it was when the run began
    <output>/_run/ledger.db          the ledger, unless another one is given
    <output>/group=<group>/step=00000/rows=00000/   a microbatch: Parquet files and _manifest.json

With several prefixes, a folder ``prefix=<hash>`` is above that of the group: stores limit the requests per prefix. A
*step* is some models of a group, which are one table; a microbatch is a step on a share of the rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.fleet.columns import array, some
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.runs.failures import CheckedFleet, ModelFailure
from mirrorspark.fleet.scorer import ASSUMED_INFERENCES_PER_SECOND
from mirrorspark.scoring import ScoringError
from mirrorspark.scoring.task import DEFAULT_TASK_SECONDS, plan_tasks
from mirrorspark.storage import StoragePath, listing

RUN_FOLDER = "_run"
MANIFEST_FILE = "_manifest.json"
DEFAULT_MODELS = 500
DEFAULT_AT_ONCE = 2

_PLAN_FILE = "plan.json"
_VERSIONS_AT_A_TIME = 16
# Of the columns that steps read: with more left, the models stay in the order that people know.
_WORTH_ANOTHER_ORDER = 0.9
# A field that is added with a default needs no new format: a plan without it is read with the default, and a version
# that does not know the field refuses the plan. Any other change does.
_FORMAT = 1


@dataclass(frozen=True)
class Step:
    """Some models of a group.

    Attributes:
        number: Number of the step within its group.
        digests: By model; empty for a model that could not be read.
    """

    group: str
    number: int
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Share:
    """Consecutive row groups of the input.

    Attributes:
        first: The first one.
        rows: Rows in them.
        groups_per_task: Row groups of each task, fixed here so that every attempt writes the same files.
    """

    first: int
    rows: int
    groups_per_task: tuple[int, ...]


@dataclass(frozen=True)
class InputFile:
    """A file of the input, as it was when the run began.

    Attributes:
        bytes_decoded: Size after decoding, by the footer.
        version: Result of :meth:`StoragePath.version`; also empty in a plan of an older version of this library.
    """

    path: str
    bytes: int
    rows: int
    bytes_decoded: int
    version: str = ""

    def is_same(self, other: "InputFile") -> bool:
        """Return whether a file is the same as both are known."""
        return self == other or (not self.version and replace(other, version="") == self)


@dataclass(frozen=True)
class Microbatch:
    """A step on a share of the rows.

    Attributes:
        number: Number of the microbatch within the run.
        part: Part of the share.
        prefix: Name of the folder above that of the group; empty for none.
    """

    number: int
    step: Step
    part: int
    share: Share
    prefix: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """The names of its models."""
        return tuple(self.step.digests)

    @property
    def folder(self) -> str:
        """The folder of its outputs, relative to that of the run."""
        values = [self.prefix, self.step.group, f"{self.step.number:05d}", f"{self.part:05d}"]
        columns = folder_columns(2 if self.prefix else 1)
        return listing.partition_folder(columns, values[-len(columns) :])


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        run: Its id.
        fleet: Digest of the fleet in the run's folder, in which failed models have been replaced.
        locations: The input as it was named, in full.
        outputs: The outputs of all models together.
        ledger: Address of the ledger without credentials; empty for the file in the run's folder.
        failure_budget: Largest share of models that may fail.
        failures: The models that failed before the first microbatch.
        prefixes: Folders that the microbatches are dealt to; 1 for none but that of the run.
        model_seconds: The most seconds of a task that one model may take; None for no limit.
    """

    run: str
    fleet: str
    locations: tuple[str, ...]
    keys: tuple[str, ...]
    layout: str
    outputs: tuple[str, ...]
    ledger: str
    failure_budget: float
    steps: tuple[Step, ...]
    shares: tuple[Share, ...]
    files: tuple[InputFile, ...]
    failures: tuple[ModelFailure, ...]
    prefixes: int = 1
    model_seconds: float | None = None

    @classmethod
    def of(
        cls,
        output: StoragePath,
        fleet: CheckedFleet,
        locations: Sequence[str],
        keys: Sequence[str],
        table: Layout,
        failure_budget: float,
        steps: Sequence[Step],
        shares: Sequence[Share],
        files: Sequence[InputFile],
        prefixes: int = 1,
        model_seconds: float | None = None,
    ) -> "RunPlan":
        """Return the plan of a new run, with the ledger in its folder.

        Its id is the same for the same inputs and settings, so that drivers that begin it at the same time share it.
        """
        failed = sorted(one.model for one in fleet.failures)
        parts = [str(output), keys, table.name, table.outputs, steps, shares, files, prefixes, model_seconds, failed]
        content = json.dumps(parts, default=asdict)
        models = {name for step in steps for name in step.digests}
        return cls(
            run=f"fleet-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
            fleet=fleet.fleet.digest,
            locations=tuple(locations),
            keys=tuple(keys),
            layout=table.name,
            outputs=table.outputs,
            ledger="",
            failure_budget=failure_budget,
            steps=tuple(steps),
            shares=tuple(shares),
            files=tuple(files),
            failures=tuple(one for one in fleet.failures if one.model in models),
            prefixes=prefixes,
            model_seconds=model_seconds,
        )

    @cached_property
    def microbatches(self) -> tuple[Microbatch, ...]:
        """The microbatches, all shares of the rows of a step after each other."""
        pairs = [(step, part) for step in self.steps for part in range(len(self.shares))]
        # Hashed, so that a store that divides its keys by their order divides them well; dealt, so that microbatches
        # that run at the same time are in different ones.
        hashes = [hashlib.sha256(str(number).encode()).hexdigest()[:8] for number in range(self.prefixes)]
        prefixes = hashes if self.prefixes > 1 else [""]
        return tuple(
            Microbatch(number, step, part, self.shares[part], prefixes[number % len(prefixes)])
            for number, (step, part) in enumerate(pairs)
        )

    @cached_property
    def models(self) -> Mapping[str, str]:
        """The digests of all models by name."""
        return {name: digest for step in self.steps for name, digest in step.digests.items()}

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(share.rows for share in self.shares)

    def save(self, output: StoragePath) -> None:
        """Write the plan into the run's folder at once."""
        (output / RUN_FOLDER / _PLAN_FILE).write_bytes(json.dumps({"format": _FORMAT} | asdict(self)).encode())

    @classmethod
    def load(cls, output: StoragePath) -> "RunPlan":
        """Return the plan of the run in a folder.

        Raises:
            FileNotFoundError: The folder has no run.
            ScoringError: It was written by another version, or is damaged.
        """
        file = output / RUN_FOLDER / _PLAN_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{output} has no run of a fleet; begin one with run_fleet, or name its output")
        try:
            return cls._of_json(json.loads(file.read_bytes()))
        except (KeyError, TypeError, ValueError) as error:  # a field is missing, or unknown
            raise ScoringError(
                f"{file} was written by another version of mirrorspark, or is damaged ({type(error).__name__}: "
                f"{error}); use the version that began the run"
            ) from error

    @classmethod
    def _of_json(cls, found: dict[str, Any]) -> "RunPlan":
        if (version := found.pop("format", None)) != _FORMAT:
            raise ValueError(f"its format is {version}, not {_FORMAT}")
        lists: dict[str, Any] = {name: tuple(found[name]) for name in ("locations", "keys", "outputs")}
        lists["steps"] = tuple(Step(**step) for step in found["steps"])
        lists["shares"] = tuple(
            Share(one["first"], one["rows"], tuple(one["groups_per_task"])) for one in found["shares"]
        )
        lists["files"] = tuple(InputFile(**one) for one in found["files"])
        lists["failures"] = tuple(ModelFailure(**one) for one in found["failures"])
        return cls(**found | lists)

    @classmethod
    def is_in(cls, output: StoragePath) -> bool:
        """Return whether a folder has a run."""
        return (output / RUN_FOLDER / _PLAN_FILE).is_file()

    def check_fleet(self, fleet: CheckedFleet) -> None:
        """Compare the models with those with which the run began.

        Raises:
            ScoringError: Models of the run have changed, or are missing.
        """
        if changed := [name for name, digest in self.models.items() if fleet.digests.get(name) != digest]:
            raise ScoringError(
                f"models have changed since {self.run} began: {some(changed)}; leave the fleet out to go on with that "
                f"of the run, or score the new one into another output"
            )

    def input_of(self, files: parquet_rows.ParquetFiles) -> parquet_rows.ParquetFiles:
        """Return the files of the run among ``files``, which may be more by now.

        Raises:
            ScoringError: A file is missing or has changed.
        """
        found = {one.path: (place, one) for place, one in enumerate(input_files(files))}
        if changed := [one.path for one in self.files if one.path not in found or not one.is_same(found[one.path][1])]:
            raise ScoringError(
                f"files of the input were removed, or written again, since {self.run} began: {some(changed)}; put "
                f"them back as they were, with their times (cp -p), or score the new input into another output"
            )
        places = [found[one.path][0] for one in self.files]
        return parquet_rows.ParquetFiles(
            tuple(files.files[place] for place in places), tuple(files.footers[place] for place in places)
        )


def folder_columns(prefixes: int) -> tuple[str, ...]:
    """Return the columns that the folders of the output give to its readers; no key may have such a name."""
    return ("group", "step", "rows") if prefixes == 1 else ("prefix", "group", "step", "rows")


def plan_steps(fleet: CheckedFleet, groups: Sequence[str] | None, most_models: int) -> tuple[Step, ...]:
    """Divide the models of each group into steps: in their order, or by their columns where steps read fewer then.

    Args:
        fleet: The fleet.
        groups: The groups to score; all by default.
        most_models: The most models of a step.

    Raises:
        ScoringError: ``groups`` is empty, or ``most_models`` is not above 0.
        FleetError: There is no such group.
    """
    if groups is not None and not groups:
        raise ScoringError("groups is empty; name some of the fleet's groups, or leave it out for all")
    if most_models < 1:
        raise ScoringError(f"models_per_microbatch {most_models} is not above 0; give a number of models, such as 500")
    steps = []
    for group in dict.fromkeys(fleet.fleet.groups if groups is None else groups):
        models = fleet.fleet.group(group)
        order = _ordered(models, most_models)
        for number, first in enumerate(range(0, len(order), most_models)):
            own = [models.names[model] for model in sorted(order[first : first + most_models])]
            steps.append(Step(group, number, {name: fleet.digests[name] for name in own}))
    return tuple(steps)


def _ordered(fleet: Fleet, most_models: int) -> Sequence[int]:
    """Return the models in the order in which they are divided."""
    order: Sequence[int] = range(len(fleet))
    if len(order) <= most_models:
        return order
    columns = [set(names) for names in array(fleet.table, "column").to_pylist()]
    by_columns = sorted(order, key=lambda model: (sorted(columns[model]), model))

    def reads(models: Sequence[int]) -> int:
        parts = (models[first : first + most_models] for first in range(0, len(models), most_models))
        return sum(len(set().union(*(columns[model] for model in part))) for part in parts)

    return by_columns if reads(by_columns) < _WORTH_ANOTHER_ORDER * reads(order) else order


def plan_shares(
    rows: parquet_rows.ParquetRows, slots: int, models: int, rows_per_microbatch: int | None
) -> tuple[Share, ...]:
    """Divide the rows among microbatches, and those of a microbatch among tasks.

    Args:
        rows: The input.
        slots: Tasks that run at the same time.
        models: The most models of a microbatch.
        rows_per_microbatch: About this number, in whole row groups; by default what all slots score in two minutes.

    Raises:
        ScoringError: ``rows_per_microbatch`` is not above 0.
    """
    if rows_per_microbatch is not None and rows_per_microbatch < 1:
        raise ScoringError(f"rows_per_microbatch {rows_per_microbatch} is not above 0; give a number of rows")
    if not rows.group_rows:
        return (Share(0, 0, ()),)  # one file is needed to hold the columns
    per_task = max(1.0, DEFAULT_TASK_SECONDS * ASSUMED_INFERENCES_PER_SECOND / models)
    most = rows_per_microbatch or int(per_task * slots)
    shares: list[Share] = []
    first = 0
    for count in plan_tasks(rows.group_rows, (len(rows.group_rows),), most, 1, 1.0).groups_per_task:
        part = rows.part(first, count)
        tasks = plan_tasks(part.group_rows, part.groups_per_task(slots), per_task, slots, 1.0)
        shares.append(Share(first, part.rows, tasks.groups_per_task))
        first += count
    return tuple(shares)


def input_files(files: parquet_rows.ParquetFiles) -> list[InputFile]:
    """Return sizes and versions of files, which show later whether they have changed; their content is not read."""
    with ThreadPoolExecutor(_VERSIONS_AT_A_TIME) as pool:
        versions = pool.map(lambda file: file.path.version(), files.files)
        return [
            InputFile(str(file.path), file.bytes, sum(footer.group_rows), sum(footer.group_bytes), version)
            for file, footer, version in zip(files.files, files.footers, versions, strict=True)
        ]
