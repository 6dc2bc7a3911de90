"""Interactions of users with items, as the rows that a retrieval model learns from, and as the history of each user."""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType

from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.quality import SPLIT_COLUMN

INTERACTION_KEY = "interaction"
HISTORY = "recent_items"
SEEN = "seen_items"
DERIVED = (INTERACTION_KEY, HISTORY, SEEN, SPLIT_COLUMN)
"""The columns of :func:`interaction_rows` next to user and item."""

# Of as many as the recipes for MovieLens read.
HISTORY_ITEMS = 50
# A user with fewer interactions has none to spare for validation and test.
LEAST_HELD_OUT = 4

_TRAIN, _VALIDATION, _TEST = SPLITS
# Names that no table of users has.
_TIME, _POSITION, _COUNT, _PLACE, _LATER = "__time", "__position", "__count", "__place", "__later"


@dataclass(frozen=True)
class InteractionColumns:
    """The columns of a table of interactions, a row per user and item, or per user and list of items.

    Attributes:
        time: Orders the interactions of a user, before the places of items in a list; without either a hash does.
        rating: The number that a user gave the item, which passes through; None if nothing is learnt from it.
    """

    user: str
    item: str
    time: str | None = None
    rating: str | None = None

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that pass through."""
        return (self.user, self.item, *((self.rating,) if self.rating else ()))


def interaction_rows(df: DataFrame, columns: InteractionColumns, *, in_windows: bool = False) -> DataFrame:
    """Return a row per user and item, with what the user had met before; see the end for lists of items.

    Of several interactions of a user with an item the first counts. Added are :data:`INTERACTION_KEY`, the last
    50 items before in :data:`HISTORY`, the split unless the table has one, and in rows of validation and test
    :data:`SEEN`, all items before, which are not to be recommended. The last interaction of each user with four or more
    is for the test, and the one before it for validation.

    Where the items are lists in a table with splits, the rows have lists, too: all items of a user in validation or in
    test are one row, with what the user had met before the first of them, and rows for training have one item.

    The histories of training rows have training items alone, so that nothing held back is learnt from, whatever the
    splits are. With ``in_windows``, for models that learn every item of a history, the training items of a user are
    divided into windows of 51, the newest first: a training row each, whose item is the last one of the window.
    """
    first = _first_of_pairs(df, columns)
    item, user = quoted(columns.item), Window.partitionBy(quoted(columns.user))
    by_time = user.orderBy(_TIME, quoted(columns.item))
    counted = first.withColumns({_POSITION: F.row_number().over(by_time), _COUNT: F.count(F.lit(1)).over(user)})
    if SPLIT_COLUMN not in df.columns:
        counted = counted.withColumn(SPLIT_COLUMN, _last_are_held_out())
    is_train = quoted(SPLIT_COLUMN) == _TRAIN
    of_user, of_training = user.orderBy(_POSITION), Window.partitionBy(quoted(columns.user), is_train)
    last, all_before = (-HISTORY_ITEMS, -1), (Window.unboundedPreceding, -1)
    of_known = F.collect_list(item).over(of_training.orderBy(_POSITION).rowsBetween(*last))
    counted = counted.withColumns(
        {
            HISTORY: F.when(is_train, of_known).otherwise(F.collect_list(item).over(of_user.rowsBetween(*last))),
            SEEN: F.collect_list(item).over(of_user.rowsBetween(*all_before)),
        }
    )
    if in_windows:
        later = F.row_number().over(of_training.orderBy(F.desc(_POSITION))) - 1
        is_last = F.col(_LATER) % (HISTORY_ITEMS + 1) == 0
        counted = counted.withColumn(_LATER, later).where(~is_train | is_last).drop(_LATER)
    seen = F.when(is_train, F.slice(SEEN, 1, 0)).otherwise(quoted(SEEN))
    key = F.concat_ws("-", quoted(columns.user).cast("string"), F.col(_POSITION))
    rows = counted.withColumns({SEEN: seen, INTERACTION_KEY: key})
    if has_lists(df, columns) and SPLIT_COLUMN in df.columns:
        rows = _one_row_of_held_out_items(rows, columns)
    return rows.select(INTERACTION_KEY, *map(quoted, columns.kept), HISTORY, SEEN, SPLIT_COLUMN)


def has_lists(df: DataFrame, columns: InteractionColumns) -> bool:
    """Return whether a row of a table of interactions has a list of items."""
    return isinstance(df.schema[columns.item].dataType, ArrayType)


def item_type(df: DataFrame, item: str) -> DataType:
    """Return the type of an item in a table of interactions, or of those in its lists."""
    found = df.schema[item].dataType
    return found.elementType if isinstance(found, ArrayType) else found


def user_histories(df: DataFrame, columns: InteractionColumns) -> DataFrame:
    """Return a row per user with all items so far in :data:`SEEN`, and the last 50 in :data:`HISTORY`."""
    entry = F.struct(F.col(_TIME), quoted(columns.item).alias("item"))
    met = F.transform(F.sort_array(F.collect_list(entry)), lambda one: one["item"])
    users = _first_of_pairs(df, columns).groupBy(quoted(columns.user)).agg(met.alias(SEEN))
    start = F.greatest(F.size(SEEN) - (HISTORY_ITEMS - 1), F.lit(1))
    return users.withColumn(HISTORY, F.slice(SEEN, start, HISTORY_ITEMS))


def _first_of_pairs(df: DataFrame, columns: InteractionColumns) -> DataFrame:
    """Return the first interaction of each user with each item, and its time; rows without either are left out."""
    user, item = quoted(columns.user), quoted(columns.item)
    time: Column = quoted(columns.time) if columns.time else F.xxhash64(user, item)
    kept = [*columns.kept, *([SPLIT_COLUMN] if SPLIT_COLUMN in df.columns else [])]
    is_ordered = bool(columns.time)
    if has_lists(df, columns):
        others = [name for name in df.columns if name != columns.item]
        df = df.select(*map(quoted, others), F.posexplode(item).alias(_PLACE, columns.item))
        time, is_ordered = _order_of_lists(df, columns), True
    known = df.where(user.isNotNull() & item.isNotNull()).select(*map(quoted, kept), time.alias(_TIME))
    pair = Window.partitionBy(user, item).orderBy(*([_TIME] if is_ordered else []), *map(quoted, kept))
    return known.withColumn(_POSITION, F.row_number().over(pair)).where(F.col(_POSITION) == 1).drop(_POSITION)


def _order_of_lists(df: DataFrame, columns: InteractionColumns) -> Column:
    """Return the order of items that came in lists: by time, by split, and by their places."""
    times = [quoted(columns.time)] if columns.time else []
    number = {split: place for place, split in enumerate(SPLITS)}
    splits = [F.create_map(*(F.lit(part) for pair in number.items() for part in pair))[quoted(SPLIT_COLUMN)]]
    return F.struct(*times, *(splits if SPLIT_COLUMN in df.columns else []), F.col(_PLACE))


def _one_row_of_held_out_items(rows: DataFrame, columns: InteractionColumns) -> DataFrame:
    """Return rows with lists of items, in which those of a user in validation or test are one row."""
    item, split = quoted(columns.item), quoted(SPLIT_COLUMN)
    ordered = F.sort_array(F.collect_list(F.struct(F.col(_POSITION), item.alias("item"))))
    first = {name: F.min_by(name, _POSITION).alias(name) for name in (INTERACTION_KEY, HISTORY, SEEN)}
    held_out = (
        rows.where(split != _TRAIN)
        .groupBy(quoted(columns.user), split)
        .agg(F.transform(ordered, lambda one: one["item"]).alias(columns.item), *first.values())
    )
    return rows.where(split == _TRAIN).withColumn(columns.item, F.array(item)).unionByName(held_out, True)


def _last_are_held_out() -> Column:
    is_spared = F.col(_COUNT) >= LEAST_HELD_OUT
    return (
        F.when(is_spared & (F.col(_POSITION) == F.col(_COUNT)), _TEST)
        .when(is_spared & (F.col(_POSITION) == F.col(_COUNT) - 1), _VALIDATION)
        .otherwise(_TRAIN)
    )
