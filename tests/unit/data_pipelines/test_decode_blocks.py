"""Blocks into slots and out again: the kernels agree with the plain decoder, whatever the bytes (T1, F9)."""

import contextlib
import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.decode_blocks import (
    BlockLayout,
    BlockSlots,
    DamagedBlockError,
    ListColumn,
    SparseSteps,
    copy_ranges,
)
from mirrorspark.data_pipelines.tfrecord.examples import encode_example
from mirrorspark.data_pipelines.tfrecord.records import DamagedRecordError, RecordWriter

LAYOUT = BlockLayout(
    floats=("distance", "weight/w"),
    int64s=("carrier",),
    lists=(ListColumn("earlier/row_lengths", "earlier"), ListColumn("v/row_lengths", "v/indices", "v/values")),
    vectors=(("picture", 3), ("sound", 2)),
)
INT64 = st.one_of(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**14, 2**21, 2**63 - 1]))


def record(columns: dict[str, np.ndarray]) -> np.ndarray:
    file = io.BytesIO()
    RecordWriter(file).write(encode_example(columns))
    return np.frombuffer(file.getvalue(), np.uint8)


def block(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    earlier, entries = rng.integers(0, 4, rows), rng.integers(0, 3, rows)
    return {
        "carrier": rng.integers(0, 300, rows),
        "distance": rng.normal(size=rows).astype(np.float32),
        "earlier": rng.integers(0, 40000, earlier.sum()),
        "earlier/row_lengths": earlier,
        "key/id": rng.integers(0, 9, rows),
        "picture": rng.normal(size=3 * rows).astype(np.float32),
        "sound": rng.normal(size=2 * rows).astype(np.float32),
        "v/indices": rng.integers(0, 2**40, entries.sum()),
        "v/row_lengths": entries,
        "v/values": rng.normal(size=entries.sum()).astype(np.float32),
        "weight/w": np.ones(rows, np.float32),
    }


def read_back(slots: BlockSlots, rows: int) -> dict[str, np.ndarray]:
    """Cut all rows of slot 0 as one step."""
    whole = np.array([[0, 0, 0, rows, 0]])
    copies = copy_ranges(whole, lane_rows=np.array([0, rows]), first_lane=0, first_row=0, batch=rows)
    floats = np.full((1, slots.floats.shape[1], rows), np.nan, np.float32)
    int64s, ids = np.full((1, 1, rows), -1), np.full((1, rows, 3), -1)
    slots.cut(copies, floats, int64s)
    slots.cut_ids(copies, 0, ids)
    sound = np.full((1, rows, 2), np.nan, np.float32)
    slots.cut_vectors(copies, 1, sound)
    sparse = SparseSteps(1, rows)
    slots.cut_sparse(copies, 1, sparse)
    coordinates, values, starts = sparse.coordinates()
    assert starts.tolist() == [0, len(values)]
    return {
        "floats": floats[0],
        "carrier": int64s[0, 0],
        "earlier": ids[0],
        "sound": sound[0],
        "at": coordinates,
        "values": values,
    }


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_block_comes_out_in_the_order_that_was_asked_for(rows: int) -> None:
    stored = block(rows)
    positions = np.random.default_rng(1).permutation(rows).astype(np.uint32)
    slots = BlockSlots(LAYOUT, 2, 100, constants=(7.0,))
    slots.decode(0, record(stored), 0, positions)
    found = read_back(slots, rows)
    source = np.argsort(positions)  # the stored row that is at each place
    np.testing.assert_array_equal(found["carrier"], stored["carrier"][source])
    np.testing.assert_array_equal(found["floats"][0], stored["distance"][source])
    np.testing.assert_array_equal(found["floats"][1:], [[1.0] * rows, [7.0] * rows])
    np.testing.assert_array_equal(found["sound"], stored["sound"].reshape(rows, 2)[source])
    earlier = np.split(stored["earlier"], np.cumsum(stored["earlier/row_lengths"])[:-1])
    assert found["earlier"].tolist() == [[*earlier[row], 0, 0, 0][:3] for row in source]
    stops = np.cumsum(stored["v/row_lengths"])
    entries = [range(stops[row] - stored["v/row_lengths"][row], stops[row]) for row in source]
    flat = [entry for row in entries for entry in row]
    assert found["at"][:, 0].tolist() == [place for place, row in enumerate(entries) for _ in row]
    np.testing.assert_array_equal(found["at"][:, 1], stored["v/indices"][flat])
    np.testing.assert_array_equal(found["values"], stored["v/values"][flat])


@given(values=st.lists(INT64, min_size=1, max_size=40))
def test_int64s_of_any_length_are_decoded(values: list[int]) -> None:
    slots = BlockSlots(BlockLayout(int64s=("n",)), 1, 40)
    slots.decode(0, record({"n": np.array(values, np.int64)}), 0, np.arange(len(values), dtype=np.uint32))
    assert slots.int64s[0, 0, : len(values)].tolist() == values


def test_blocks_that_tensorflow_wrote_are_decoded() -> None:
    # Protobuf writes the entries of a map in any order it likes.
    features = {
        "n": tf.train.Feature(int64_list=tf.train.Int64List(value=[-1, 5])),
        "a": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 2.0])),
        "x": tf.train.Feature(int64_list=tf.train.Int64List(value=[])),
        "x/row_lengths": tf.train.Feature(int64_list=tf.train.Int64List(value=[0, 0])),
    }
    file = io.BytesIO()
    example = tf.train.Example(features=tf.train.Features(feature=features))
    RecordWriter(file).write(example.SerializeToString())
    slots = BlockSlots(BlockLayout(("a",), ("n",), (ListColumn("x/row_lengths", "x"),)), 1, 2)
    slots.decode(0, np.frombuffer(file.getvalue(), np.uint8), 0, np.array([0, 1], np.uint32))
    assert (slots.int64s.tolist(), slots.floats.tolist()) == ([[[-1, 5]]], [[[0.5, 2.0]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carrier": None}, "column 'carrier' is missing or holds another kind of values"),
        ({"carrier": np.zeros(5, np.float32)}, "column 'carrier' is missing or holds another kind"),
        ({"carrier": np.zeros(4, np.int64)}, "column 'carrier' has 4 values for 5 rows"),
        ({"distance": np.zeros(6, np.float32)}, "column 'distance' has 6 values for 5 rows"),
        ({"sound": np.zeros(9, np.float32)}, "column 'sound' has 9 values for 5 rows"),
        ({"earlier": np.zeros(99, np.int64)}, "the lengths in column 'earlier' do not add up to its values"),
        ({"v/values": np.zeros(99, np.float32)}, "the lengths in column 'v/values' do not add up to its values"),
        ({"v/row_lengths": np.array([1, 0, -1, 0, 0])}, "the lengths in column 'v/row_lengths' do not add up"),
        ({"v/row_lengths": np.full(5, 2**62)}, "the lengths in column 'v/row_lengths' do not add up"),
    ],
)
def test_a_block_that_is_not_what_it_should_be_is_refused(change: dict[str, np.ndarray | None], message: str) -> None:
    columns = {name: values for name, values in (block(5) | change).items() if values is not None}
    with pytest.raises(DamagedBlockError, match=f"shard: the block at byte 0 is damaged: {message}.*convert again"):
        BlockSlots(LAYOUT, 1, 5).decode(0, record(columns), 0, np.arange(5, dtype=np.uint32), name="shard")


def test_no_room_is_made_for_values_that_are_not_in_the_block() -> None:
    """L16: a false length far below the file's size, in a column after one that is whole."""
    slots = BlockSlots(LAYOUT, 1, 5)
    false = np.full(5, 10**6)
    file = np.concatenate([record(block(5) | {"v/row_lengths": false}), np.zeros(10**7, np.uint8)])
    with pytest.raises(DamagedBlockError, match="'v/indices' do not add up"):
        slots.decode(0, file, 0, np.arange(5, dtype=np.uint32))
    assert slots._list_int64s.size == slots._list_floats.size == 0


@pytest.mark.parametrize("offset", [-(2**63), -(10**12), -1, 10**12, 2**63 - 1])
def test_no_byte_outside_the_file_is_read(offset: int) -> None:
    """L16."""
    with pytest.raises(ValueError, match=r"truncated header|is negative"):
        BlockSlots(LAYOUT, 1, 5).decode(0, record(block(5)), offset, np.arange(5, dtype=np.uint32))


def test_a_class_that_is_none_is_refused() -> None:
    slots = BlockSlots(BlockLayout(lists=(ListColumn("y/row_lengths", "y"),)), 1, 1)
    slots.decode(0, record({"y": np.array([3]), "y/row_lengths": np.array([1])}), 0, np.zeros(1, np.uint32))
    whole = np.array([[0, 0, 0, 1, 0]])
    copies = copy_ranges(whole, lane_rows=np.array([0, 1]), first_lane=0, first_row=0, batch=1)
    with pytest.raises(DamagedBlockError, match="a class that is not one of 3"):
        slots.cut_classes(copies, 0, np.zeros((1, 1, 3), np.float32))


def test_a_record_that_is_damaged_is_named_with_its_offset() -> None:
    content = record(block(5)).copy()
    content[40] ^= 1
    with pytest.raises(DamagedRecordError, match="shard: payload checksum mismatch in the record at byte 0"):
        BlockSlots(LAYOUT, 1, 5).decode(0, content, 0, np.arange(5, dtype=np.uint32), name="shard")


@pytest.mark.parametrize("size", [0, 11, 15, 16, 100])
def test_a_record_that_is_cut_off_is_named(size: int) -> None:
    with pytest.raises(DamagedRecordError, match="truncated"):
        BlockSlots(LAYOUT, 1, 5).decode(0, record(block(5))[:size], 0, np.arange(5, dtype=np.uint32))


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 30),
)
def test_mutated_blocks_are_decoded_or_refused_and_nothing_else_is_touched(
    changes: list[tuple[int, int]], cut: int
) -> None:
    payload = bytearray(encode_example(block(5)))
    for at, byte in changes:
        payload[at % len(payload)] = byte
    file = io.BytesIO()
    RecordWriter(file).write(bytes(payload[: len(payload) - cut]))  # with the right checksums
    slots = BlockSlots(LAYOUT, 3, 5)
    with contextlib.suppress(DamagedBlockError):
        slots.decode(1, np.frombuffer(file.getvalue(), np.uint8), 0, np.arange(5, dtype=np.uint32))
    assert not slots.floats[[0, 2]].any()
    assert not slots.int64s[[0, 2]].any()
    assert not slots.vectors[[0, 2]].any()


@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    steps=st.integers(1, 4),
    borders=st.tuples(st.integers(0, 20), st.integers(1, 20)),
)
def test_copy_ranges_cover_the_worker_s_part_of_every_step_once(
    widths: list[int], steps: int, borders: tuple[int, int]
) -> None:
    lane_rows = np.cumsum([0, *widths])
    first_row = borders[0] % sum(widths)
    batch = 1 + borders[1] % (sum(widths) - first_row)
    ranges = np.array([[lane, 0, 10, 10 + steps * width, 0] for lane, width in enumerate(widths)])
    found = {
        (step, place + n): (slot, row + n)
        for slot, row, step, place, rows in copy_ranges(
            ranges, lane_rows=lane_rows, first_lane=0, first_row=first_row, batch=batch
        ).tolist()
        for n in range(rows)
    }
    # The values that each lane gives to a step are in the global batch lane after lane, in the order of the lane.
    given = [(lane, row) for lane, width in enumerate(widths) for row in range(width)]
    assert found == {
        (step, place): (lane, 10 + step * widths[lane] + row)
        for step in range(steps)
        for place, (lane, row) in enumerate(given[first_row : first_row + batch])
    }
