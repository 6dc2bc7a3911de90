"""A fleet: models as plain data, which can be selected, merged, saved and loaded together."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.fleet.checks import check_models
from mirrorspark.fleet.columns import FleetError, array, digests_of, lengths_of, some
from mirrorspark.fleet.folder import read_folder, write_folder
from mirrorspark.fleet.registry import fetch_fleet, is_registered

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Fleet:
    """Models that are scored together, each with the columns that it reads.

    A fleet computes linear models, small networks and trees itself; the libraries of other models compute those.
    ``fleet_from_coefficients``, ``fleet_from_sklearn`` and the other ``fleet_from_`` functions make one. A model has a
    name, a group, terms (a column, a transform of its values, a coefficient), a link, and, for the outputs ``binary``
    and ``Rank``, a threshold and cut-points.

    Attributes:
        table: One row per model, of :data:`fleet.columns.FLEET_SCHEMA`.
        digests: SHA-256 of each model.
    """

    table: pa.Table
    digests: tuple[str, ...]

    @classmethod
    def of(cls, table: pa.Table) -> "Fleet":
        """Return the fleet of a table's models.

        Raises:
            FleetError: There is no model, two have the same name, or some cannot be computed; the message names them.
        """
        check_models(table)
        return cls(table, digests_of(table))

    @classmethod
    def load(cls, folder: str | Path) -> "Fleet":
        """Return the fleet in a folder of :meth:`save`; its files are mapped into memory, not copied.

        Args:
            folder: The folder, or a version of a fleet in MLflow's registry: see ``register_fleet``.

        Raises:
            FleetError: The folder holds no fleet, or a file was changed since it was written; there is no such version.
        """
        if not is_registered(folder):
            return cls(*read_folder(Path(folder)))
        with TemporaryDirectory() as scratch:
            fetch_fleet(str(folder), Path(scratch))
            # The files stay mapped after their removal.
            return cls(*read_folder(Path(scratch)))

    def save(self, folder: str | Path) -> int:
        """Write the fleet into a folder, and return how many models were written.

        If the folder holds a fleet, it is replaced in one step, and models that it has already are not written again.

        Raises:
            FleetError: The folder holds something else.
            OSError: It cannot be written; the fleet that it held is unchanged.
        """
        return write_folder(self.table, self.digests, Path(folder))

    def __len__(self) -> int:
        """Return the number of models."""
        return self.table.num_rows

    def __repr__(self) -> str:
        """Return a line with the number of models, groups and columns, and the digest."""
        groups = f" in {len(self.groups):,} groups" if len(self.groups) > 1 else ""
        return (
            f"<Fleet of {len(self):,} models{groups} over {len(self.columns):,} columns, {self.digest[:_SHOWN_DIGITS]}>"
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the models, in their order."""
        return tuple(self.table["model"].to_pylist())

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order of their first models."""
        return tuple(self.table["group"].unique().to_pylist())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that any model reads, in the order of their first use."""
        return tuple(array(self.table, "column").flatten().unique().to_pylist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the models in their order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    @property
    def is_network(self) -> np.ndarray:
        """Bool ``[models]``: True for networks."""
        return lengths_of(array(self.table, "layer_sizes")) > 0

    @property
    def has_trees(self) -> np.ndarray:
        """Bool ``[models]``: True for models that are sums of trees."""
        return lengths_of(array(self.table, "tree_roots")) > 0

    @property
    def is_packaged(self) -> np.ndarray:
        """Bool ``[models]``: True for models that a backend of the scorer computes."""
        return np.asarray(self.table["package"].is_valid().to_numpy())

    def shares(self, models: np.ndarray) -> np.ndarray:
        """Return float64 ``[models]``: the share that each has in the time that some models take together.

        Models are computed together, so no clock tells them apart. A model counts 1, for its intercept and its outputs,
        and 1 for each of its terms, weights and nodes of trees.

        Args:
            models: int64 ``[models]``: their positions in the fleet.
        """
        sizes = self._sizes[models]
        return np.asarray(sizes / sizes.sum())

    @cached_property
    def _sizes(self) -> np.ndarray:
        lists = ("column", "weights", "node_features")
        return np.asarray(1 + np.sum([lengths_of(array(self.table, name)) for name in lists], axis=0))

    def readers(self, columns: Sequence[str]) -> Mapping[str, str]:
        """Return a model that reads it, for each of some columns."""
        lists = array(self.table, "column")
        owners = np.repeat(np.arange(len(self)), lengths_of(lists))
        flat = lists.flatten()
        places = pc.index_in(pa.array(columns, pa.string()), value_set=flat).to_pylist()
        return {
            name: self.names[owners[place]] for name, place in zip(columns, places, strict=True) if place is not None
        }

    def select(self, names: Sequence[str]) -> "Fleet":
        """Return some of the models, in the given order.

        Raises:
            FleetError: There is no model of such a name.
        """
        places = {name: place for place, name in enumerate(self.names)}
        if unknown := [name for name in names if name not in places]:
            raise FleetError(f"the fleet has no model {some(unknown)}{raw_columns.meant(unknown[0], self.names)}")
        return self._taken([places[name] for name in names])

    def group(self, name: str) -> "Fleet":
        """Return the models of a group.

        Raises:
            FleetError: There is no such group.
        """
        found = np.flatnonzero(pc.equal(array(self.table, "group"), name).to_numpy(zero_copy_only=False))
        if not len(found):
            raise FleetError(f"the fleet has no group '{name}'{raw_columns.meant(name, self.groups)}")
        return self._taken(found.tolist())

    def with_models(self, other: "Fleet") -> "Fleet":
        """Return the fleet with the models of ``other``, which take the places of models of the same names."""
        ours = {name: place for place, name in enumerate(self.names)}
        order = list(range(len(self)))
        for place, name in enumerate(other.names, start=len(self)):
            if name in ours:
                order[ours[name]] = place
            else:
                order.append(place)
        both = Fleet(pa.concat_tables([self.table, other.table]), (*self.digests, *other.digests))
        return both._taken(order)

    def without(self, names: Sequence[str]) -> "Fleet":
        """Return the fleet without some models.

        Raises:
            FleetError: There is no model of such a name, or none would be left.
        """
        self.select(names)
        left_out = set(names)
        return self.select([name for name in self.names if name not in left_out])

    def _taken(self, places: Sequence[int]) -> "Fleet":
        if not places:
            raise FleetError("a fleet needs at least one model")
        if len(set(places)) < len(places):
            raise FleetError("a model is named twice; name each one once")
        return Fleet(self.table.take(pa.array(places)), tuple(self.digests[place] for place in places))
