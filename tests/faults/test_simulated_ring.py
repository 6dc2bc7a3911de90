"""T6: the ring's collectives under any order of events: partial transfers, pauses, lost ranks, changed bits.

The network is simulated and everything on it is drawn from a seed; the ring is real. One rank runs at a time, until it
has to wait. A failure is repeated by its seed: ``World(4711).run()``.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest

from mirrorspark.training.protocol.ring.errors import RingError, RingMismatchError
from mirrorspark.training.protocol.ring.ring import Ring
from tests.faults.conftest import Count, run_seeds, seeds
from tests.faults.simulated import Process, Room, this_room

pytestmark = pytest.mark.timeout(1800)

SEEDS, PARTS = 10_000, 4
_CAPACITY = 1 << 15

Kind = Literal["none", "pause", "lost", "bit", "other program"]
Program = list[tuple[str, list[list[np.ndarray[Any, Any]]]]]


class Link:
    """A TCP connection in one direction, as both of its sockets."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.content = bytearray()
        self.is_closed = False
        self.sent = 0
        self.flipped_bit: int | None = None

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        """Take a part of the bytes, as the system does."""
        if self.is_closed:
            raise BrokenPipeError(32, "Broken pipe")
        content = bytearray(b"".join(views))
        room = min(len(content), _CAPACITY - len(self.content))
        if room <= 0 or self.chance.random() < 0.2:
            raise BlockingIOError
        del content[self._some(room) :]
        if self.flipped_bit is not None and self.sent <= (byte := self.flipped_bit // 8) < self.sent + len(content):
            content[byte - self.sent] ^= 1 << self.flipped_bit % 8
        self.sent += len(content)
        self.content += content
        return len(content)

    def recvmsg_into(self, views: Sequence[memoryview]) -> tuple[int]:
        """Give a part of the bytes, or 0 at the end."""
        if not self.content and self.is_closed:
            return (0,)
        if not self.content or self.chance.random() < 0.2:
            raise BlockingIOError
        count = self._some(min(len(self.content), sum(map(len, views))))
        given = memoryview(bytes(self.content[:count]))
        del self.content[:count]
        for view in views:
            part = given[: len(view)]
            view[: len(part)] = part
            given = given[len(part) :]
        return (count,)

    def close(self) -> None:
        self.is_closed = True

    def _some(self, most: int) -> int:
        return most if self.chance.random() < 0.5 else self.chance.randint(1, most)


class World:
    """A ring and its program from a seed."""

    def __init__(self, seed: int) -> None:
        self.room = Room(seed)
        self.chance = self.room.chance
        self.workers = self.chance.randint(2, 5)
        self.fault: Kind = self.chance.choice(["none", "pause", "lost", "bit", "other program"])
        self.program = self._drawn_program()
        self.links = [Link(self.chance) for _ in range(self.workers)]
        self.rings = [
            Ring(rank, self.workers, self.links[rank], self.links[rank - 1])  # type: ignore[arg-type] # as sockets
            for rank in range(self.workers)
        ]
        self.results: list[list[Any]] = [[] for _ in range(self.workers)]
        self.errors: dict[int, Exception] = {}
        self.wrong_from = self.workers, len(self.program)

    def run(self) -> None:
        """Run the program on all ranks, and check what has to hold."""
        victim = self.chance.randrange(self.workers)
        if self.fault == "bit":
            self.links[victim].flipped_bit = self.chance.randrange(8 * 4_000)
        if self.fault == "other program":
            self.wrong_from = victim, self.chance.randrange(len(self.program))
        self.room.run(partial(self._run_all, victim), Process(self.room, "the world"))
        self._check(victim)

    def _run_all(self, victim: int) -> None:
        ranks = [Process(self.room, f"rank {rank}") for rank in range(self.workers)]
        for rank, process in enumerate(ranks):
            process.start(partial(self._run_rank, rank), "ring")
        self.room.sleep(self.chance.uniform(0, 20))
        if self.fault == "lost":
            ranks[victim].kill()
        if self.fault == "pause":
            ranks[victim].pause(self.chance.uniform(0, 1_000))

    def _run_rank(self, rank: int) -> None:
        ring = self.rings[rank]
        try:
            for number, (kind, inputs) in enumerate(self.program):
                mine = inputs[rank]
                if (rank, number) == self.wrong_from:
                    mine = [np.zeros(7, np.float64)]
                self.results[rank].append(self._call(ring, kind, mine))
        except (RingError, RingMismatchError) as error:
            self.errors[rank] = error
        finally:
            self._close(rank)

    def _close(self, rank: int) -> None:
        self.links[rank].close()
        self.links[rank - 1].close()

    def _call(self, ring: Ring, kind: str, mine: list[np.ndarray[Any, Any]]) -> Any:
        match kind:
            case "sum":
                return ring.all_reduce(mine[0])
            case "gather":
                return ring.all_gather_many(mine)
            case _:
                return ring.broadcast(mine[0])

    def _drawn_program(self) -> Program:
        numbers = np.random.default_rng(self.chance.getrandbits(32))
        program: Program = []
        for _ in range(self.chance.randint(1, 6)):
            kind = self.chance.choice(["sum", "sum", "gather", "broadcast"])
            size = self.chance.choice([0, 1, 3, 100, 1_000, 5_000])
            lengths = [size + rank * (kind == "gather") for rank in range(self.workers)]
            count = 1 + (kind == "gather")
            program.append((kind, [[numbers.normal(size=n).astype(np.float32)] * count for n in lengths]))
        return program

    def _check(self, victim: int) -> None:
        if self.fault in ("none", "pause"):
            assert not self.errors, self.errors
            assert all(len(results) == len(self.program) for results in self.results)
        if self.fault == "bit" and self.links[victim].sent > (self.links[victim].flipped_bit or 0) // 8:
            assert self.errors, "a changed bit went unnoticed"
        for number, (kind, inputs) in enumerate(self.program):
            if self.fault == "other program" and number >= self.wrong_from[1]:
                break  # an array of another size in a gather is allowed
            found = [results[number] for results in self.results if len(results) > number]
            for result in found:
                for mine, theirs in zip(_arrays(result), _arrays(found[0]), strict=True):
                    np.testing.assert_array_equal(mine, theirs)
                _check_value(kind, inputs, result)


def _check_value(kind: str, inputs: Sequence[Sequence[np.ndarray[Any, Any]]], result: Any) -> None:
    if kind == "sum":
        np.testing.assert_allclose(result, np.sum([parts[0] for parts in inputs], axis=0), rtol=1e-4, atol=1e-5)
        return
    expected = [part for parts in inputs for part in parts] if kind == "gather" else inputs[0]
    for mine, theirs in zip(_arrays(result), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _arrays(result: Any) -> list[np.ndarray[Any, Any]]:
    return [array for part in result for array in part] if isinstance(result, list) else [result]


def _wait(ring: Ring, *, reading: bool, writing: bool) -> None:
    room = this_room()
    room.sleep(room.chance.uniform(0, 2))


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "_wait", _wait)


def has_errors(seed: int) -> bool:
    world = World(seed)
    world.run()
    return bool(world.errors)


@pytest.mark.parametrize("some", seeds(SEEDS, PARTS, usual=100))
def test_all_ranks_get_the_same_bits_or_an_error_and_none_waits_for_ever(some: range, count: Count) -> None:
    errors = run_seeds(some, has_errors, "World({}).run()")
    count("simulated ring", {"seeds": len(some), "of them with errors": errors})
