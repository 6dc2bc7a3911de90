"""The definition of an experiment: its variants and their buckets, its holdout and its layer; and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.experiments.allocation import BUCKETS, Ranges, allocated, buckets_of, reallocated
from mirrorspark.storage import atomic_file, load_yaml, meant, read_text

HOLDOUT = "holdout"
"""The variant of units that are held out: they take part in no experiment."""


class ExperimentError(ClearError, ValueError):
    """Raised for an experiment, a log or a result that makes no sense; the message names the value and the remedy."""


@dataclass(frozen=True)
class Experiment:
    """A randomised comparison of variants; the first variant is the control.

    Attributes:
        name: Name in exposure logs.
        weights: Weight of each variant among the units of the experiment, of any sum: ``{"control": 50, "deep": 50}``.
            A weight of 0 pauses a variant.
        salt: Text that is hashed with the unit; by default the name. Experiments with different salts are independent.
        holdout: Share of all units, from 0 to below 1, that take part in no experiment.
        holdout_salt: Experiments with the same one hold out the same units; of two shares, the larger one contains the
            smaller one.
        layer: Exclusion group. Experiments of one layer have disjoint parts of it, so they share no unit; those of
            different layers are independent.
        part: Part of the layer's units that the experiment takes, from a share up to another one.
        allocation: The buckets of each variant; by default those that the weights give. :meth:`reweighted` changes it.
    """

    name: str
    weights: Mapping[str, float]
    salt: str = ""
    holdout: float = 0.0
    holdout_salt: str = HOLDOUT
    layer: str = ""
    part: tuple[float, float] = (0.0, 1.0)
    allocation: Mapping[str, Ranges] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ExperimentError(f"an experiment has the name {self.name!r}; give it a text that logs can carry")
        for of, text in (("salt", self.salt), ("holdout_salt", self.holdout_salt), ("layer", self.layer)):
            if not isinstance(text, str):
                raise ExperimentError(f"experiment '{self.name}' has the {of} {text!r}; use a text, in quotes in YAML")
        _check_weights(self.name, self.weights)
        if not (_is_number(self.holdout) and 0 <= self.holdout < 1):
            raise ExperimentError(f"experiment '{self.name}' holds out {self.holdout!r}; use a share from 0 to below 1")
        start, end = self.part
        if not (_is_number(start) and _is_number(end) and 0 <= start < end <= 1 and self.part_buckets):
            raise ExperimentError(f"experiment '{self.name}' has the part {self.part}; use shares 0 <= from < to <= 1")
        if not self.layer and (start, end) != (0, 1):
            raise ExperimentError(f"experiment '{self.name}' has the part {self.part} of no layer; name the layer")
        # Later changes to the caller's mapping must not change the experiment.
        object.__setattr__(self, "weights", dict(self.weights))
        if not self.salt:
            object.__setattr__(self, "salt", self.name)
        if self.salt in (self.holdout_salt, self.layer_salt):
            raise ExperimentError(
                f"experiment '{self.name}' has the salt '{self.salt}', which decides who takes part; use another"
            )
        if not self.allocation:
            object.__setattr__(self, "allocation", allocated(self.weights))
        _check_allocation(self.name, self.weights, self.allocation)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants, the control first."""
        return tuple(self.weights)

    @property
    def control(self) -> str:
        """Name of the first variant, with which the others are compared."""
        return self.variants[0]

    @property
    def shares(self) -> dict[str, float]:
        """Share of each variant among the units of the experiment; they sum to 1."""
        return {name: sum(last - first for first, last in of) / BUCKETS for name, of in self.allocation.items()}

    @cached_property
    def variant_numbers(self) -> NDArray[np.int64]:
        """Number of the variant of each bucket, int64 ``[buckets]``; computed once, for a server asks by unit."""
        numbers = np.empty(BUCKETS, np.int64)
        for number, name in enumerate(self.variants):
            numbers[buckets_of(self.allocation[name])] = number
        numbers.setflags(write=False)
        return numbers

    @property
    def layer_salt(self) -> str:
        """Text that is hashed with a unit for its place in the layer."""
        return f"layer:{self.layer}"

    @property
    def part_buckets(self) -> range:
        """The buckets of the layer that the experiment takes."""
        # Both ends are rounded alike, so parts that touch stay disjoint.
        start, end = (round(share * BUCKETS) for share in self.part)
        return range(start, end)

    @property
    def held_out_buckets(self) -> int:
        """Number of buckets, from 0 on, whose units are held out."""
        return round(self.holdout * BUCKETS)

    def reweighted(self, weights: Mapping[str, float]) -> Experiment:
        """Return the experiment with other weights; the fewest possible units change their variant.

        From 50/50 to 60/40, 10 % of the units move. New variants take from those that shrink, and variants that are
        left out give up all units.

        Args:
            weights: Weight of each variant, the control first.

        Raises:
            ExperimentError: There is no variant, or a weight is negative.
        """
        _check_weights(self.name, weights)
        return replace(self, weights=weights, allocation=reallocated(self.allocation, weights))

    @classmethod
    def of(cls, declaration: Any, source: str | Path = "the declaration") -> Experiment:
        """Return the experiment that a mapping of YAML or JSON declares.

        Args:
            declaration: The fields by name; ``allocation`` has lists of pairs.
            source: Where it comes from, for messages.

        Raises:
            ExperimentError: It is not a mapping, has unknown fields, or is invalid.
        """
        known = [one.name for one in fields(cls)]
        if not isinstance(declaration, Mapping) or not {"name", "weights"} <= set(declaration):
            raise ExperimentError(f"{source} is not an experiment; it needs a name and weights by variant")
        if unknown := sorted(set(map(str, declaration)) - set(known)):
            hint = meant(unknown[0], known)
            raise ExperimentError(f"{source} has the fields {unknown}{hint}; an experiment has {known}")
        values = dict(declaration)
        try:
            values["part"] = tuple(values.get("part", (0.0, 1.0)))
            values["allocation"] = {
                str(name): tuple((int(first), int(last)) for first, last in ranges)
                for name, ranges in dict(values.get("allocation") or {}).items()
            }
            return cls(**values)
        except ExperimentError as error:
            raise ExperimentError(f"{source}: {error}") from error
        except (TypeError, ValueError) as error:
            raise ExperimentError(
                f"{source} has a part or an allocation that is not a list of pairs ({error})"
            ) from error

    def declaration(self) -> dict[str, Any]:
        """Return all fields as plain values, for YAML or JSON; :meth:`of` reads them."""
        return {
            "name": self.name,
            "weights": dict(self.weights),
            "salt": self.salt,
            "holdout": self.holdout,
            "holdout_salt": self.holdout_salt,
            "layer": self.layer,
            "part": list(self.part),
            "allocation": {name: [list(pair) for pair in ranges] for name, ranges in self.allocation.items()},
        }

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read an experiment from a file of YAML or JSON.

        Raises:
            ExperimentError: The file holds no experiment.
            OSError: It cannot be read.
        """
        try:
            # JSON is YAML, too.
            return cls.of(load_yaml(read_text(Path(path))), path)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ExperimentError(f"{path} is neither YAML nor JSON: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the experiment to a file: JSON if its name ends with ``.json``, otherwise YAML."""
        plain = self.declaration()
        if Path(path).suffix == ".json":
            text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        atomic_file.write_atomically(Path(path), text)


def check_experiments(experiments: Iterable[Experiment]) -> None:
    """Check that experiments can run at the same time.

    Raises:
        ExperimentError: Two have one name, or one salt, so that their variants are the same units; or two of one layer
            share units.
    """
    for one, other in combinations(experiments, 2):
        if one.name == other.name:
            raise ExperimentError(f"two experiments have the name '{one.name}'; logs could not tell them apart")
        if one.salt == other.salt:
            raise ExperimentError(
                f"experiments '{one.name}' and '{other.name}' have the salt '{one.salt}', so their variants are the "
                f"same units; give each its own"
            )
        is_shared = (
            one.part_buckets.start < other.part_buckets.stop and other.part_buckets.start < one.part_buckets.stop
        )
        if one.layer and one.layer == other.layer and is_shared:
            raise ExperimentError(
                f"experiments '{one.name}' and '{other.name}' take the parts {one.part} and {other.part} of the layer "
                f"'{one.layer}'; give them parts that do not overlap"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_weights(experiment: str, weights: Mapping[str, float]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise ExperimentError(f"experiment '{experiment}' has the weights {weights!r}; give a weight by variant")
    for name, weight in weights.items():
        if not isinstance(name, str) or not name or name == HOLDOUT:
            raise ExperimentError(
                f"experiment '{experiment}' has a variant {name!r}; use a text other than '{HOLDOUT}', the mark of "
                f"units without an experiment"
            )
        if not _is_number(weight) or weight < 0:
            raise ExperimentError(f"variant '{name}' of experiment '{experiment}' weighs {weight!r}; use 0 or more")
    if not sum(weights.values()) > 0:
        raise ExperimentError(f"all weights of experiment '{experiment}' are 0; give one variant a weight above 0")


def _check_allocation(experiment: str, weights: Mapping[str, float], allocation: Mapping[str, Ranges]) -> None:
    if set(allocation) != set(weights):
        raise ExperimentError(
            f"experiment '{experiment}' has buckets for {sorted(allocation)} and weights for {sorted(weights)}; "
            f"change weights with reweighted"
        )
    if any(not 0 <= first < last <= BUCKETS for ranges in allocation.values() for first, last in ranges):
        raise ExperimentError(f"experiment '{experiment}' has buckets outside 0 to {BUCKETS}, or an empty range")
    owners = np.bincount(np.concatenate([buckets_of(ranges) for ranges in allocation.values()]), minlength=BUCKETS)
    if (owners != 1).any():
        bucket = int(np.flatnonzero(owners != 1)[0])
        raise ExperimentError(
            f"bucket {bucket} of experiment '{experiment}' belongs to {owners[bucket]} variants; each belongs to one"
        )
    total = sum(weights.values())
    for name, ranges in allocation.items():
        count, wanted = len(buckets_of(ranges)), BUCKETS * weights[name] / total
        if abs(count - wanted) >= 1 + 1e-6:
            raise ExperimentError(
                f"variant '{name}' of experiment '{experiment}' has {count} buckets, and its weight asks for "
                f"{wanted:.1f}; change weights with reweighted"
            )
