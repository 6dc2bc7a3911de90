"""T6: the event channel under cut lines, partitions, pauses, kills, strangers, slow receivers and any order of threads.

Server, clients and the handshake between them are real; their threads, clock and network are simulated from a seed. A
failure is repeated by its seed: ``World(4711).run()``.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

import pytest

from mirrorspark.training.protocol.messages import admissions, event_client, event_server, handshake
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import DROPPABLE, FOR_RANKS, RETAINED, Event, Sender
from tests.faults.conftest import Count, run_seeds, seeds
from tests.faults.simulated import Process, Room
from tests.faults.simulated_network import STAND_INS, simulate

SEEDS, PARTS = 10_000, 4
# A client that nothing disturbs is connected after this time: a dead connection is noticed, a pause between two
# attempts is over, and the lines of a handshake have come.
_CALM_SECONDS = 90.0
_CLOSE_SECONDS = 40.0
_MOST_UNPROVEN = 4
# The server's limits at its end: the last words, the threads whose connections it closes, and the receiver.
_EXIT_SECONDS = 3.0 + 5.0 + 5.0
_KINDS = ("phase", "epoch_end", "log", "error", "progress", "alive")

Stranger = Literal["silent", "rubbish", "slow", "another token"]


class Client:
    """A rank or a task with its client of the channel, and the messages that it has sent and received."""

    def __init__(self, world: "World", rank: int, sender: Sender) -> None:
        self.world, self.rank, self.sender = world, rank, sender
        self.process = Process(world.room, f"{sender} {rank}", world.room.chance.uniform(-100, 100))
        self.said: list[int] = []
        self.heard: list[Event] = []
        self.commands: list[tuple[str, int]] = []
        self.is_hasty = world.room.chance.random() < 0.2
        self.may_close = self.is_closed = False

    @property
    def stays(self) -> bool:
        """It lives, and closes when it is asked to."""
        return not self.is_hasty and not self.process.is_killed

    def work(self) -> None:
        """Send the driver events from time to time; close at the end."""
        room, chance = self.world.room, self.world.room.chance
        room.sleep(chance.uniform(0, self.world.trouble_seconds))
        client = self._connect()
        for _ in range(chance.randint(0, 12)):
            self._say(client)
            room.sleep(chance.choice([0.0, 0.0, chance.expovariate(0.3)]))
        while not (self.is_hasty or self.may_close or self.world.is_over):
            room.sleep(5.0)
        for _ in range(chance.randint(0, 5)):
            self._say(client)
        seconds = _CLOSE_SECONDS if self.may_close else chance.choice([0.0, 5.0])
        with self.within(seconds, "closing"):
            client.close(seconds)
        self.is_closed = True

    @contextlib.contextmanager
    def within(self, seconds: float, what: str) -> Iterator[None]:
        began, paused = self.world.room.now, self.process.paused_seconds
        yield
        took = self.world.room.now - began - (self.process.paused_seconds - paused)
        assert took <= seconds + 1e-6, f"{what} takes {took:g} s"

    def is_meant(self, command: str) -> bool:
        return (self.sender == "rank") == (command in FOR_RANKS)

    def _connect(self) -> EventClient:
        while True:
            # A client that gets no thread for it receives an error, and ends.
            with contextlib.suppress(RuntimeError):
                return EventClient(
                    self.world.server.address,
                    self.rank,
                    1,
                    on_command=lambda command: self.commands.append((command["command"], command["number"])),
                    sender=self.sender,
                    clock=lambda: self.world.room.now,
                )
            self.world.room.sleep(1.0)

    def _say(self, client: EventClient) -> None:
        kind = self.world.room.chance.choice(_KINDS)
        number = self.world.next_number()
        if kind not in DROPPABLE:
            self.said.append(number)
        text = "x" * self.world.room.chance.choice([0, 0, 3_000])
        with self.within(0.0, "sending"):
            client.send({"event": kind, "number": number, "by": self.world.clients.index(self), "text": text})


class World:
    """A driver, its ranks and tasks, and what happens to them, from a seed."""

    def __init__(self, seed: int) -> None:
        self.room = Room(seed)
        chance = self.room.chance
        self.trouble_seconds = chance.choice([5.0, 40.0, 100.0])
        self.ends_in_peace = chance.random() < 0.7
        self.faults = chance.choice([0, 0, 2, 8])
        self.slow_seconds = chance.choice([0.0, 0.0, 1.0, 30.0])
        self.queue_length = chance.choice([1_000, 1_000, 1_000, 5])
        self.driver = Process(self.room, "driver", chance.uniform(-100, 100))
        self.clients: list[Client] = []
        self.retained: dict[str, int] = {}
        self.is_calm = self.is_over = False
        self.server: EventServer
        self._numbers = 0

    def run(self) -> int:
        """Run the simulation, check its invariants, and return the number of events received."""
        with pytest.MonkeyPatch.context() as patch:
            simulate(patch, admissions, event_client, event_server, handshake)
            patch.setattr(handshake.read_line, "__defaults__", (STAND_INS["time"].monotonic,))
            patch.setattr(event_server, "_MOST_UNPROVEN", _MOST_UNPROVEN)
            patch.setattr(event_client, "_QUEUE_LENGTH", self.queue_length)
            for module in (admissions, event_client, event_server):
                patch.setattr(module.logger, "disabled", True)
            self.room.run(self._drive, self.driver)
        return sum(len(client.heard) for client in self.clients)

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _drive(self) -> None:
        room, chance = self.room, self.room.chance
        self.server = EventServer("driver", self._hear)
        with self.server:
            for rank in range(chance.randint(1, 3)):
                self._begin(rank, "rank")
                self._begin(rank, "task")
            Process(room, "the world").start(self._disturb, "faults")
            for stranger in range(chance.choice([0, 0, 3, 12])):
                Process(room, f"stranger {stranger}").start(self._intrude, "work")
            self._command_until(self.trouble_seconds)
            if self.ends_in_peace:
                self.is_calm = True
                # A client that took a killed one's place begins by then.
                room.sleep(self.trouble_seconds + _CALM_SECONDS)
                self._check_commands()
                self._close()
            began, paused = room.now, self.driver.paused_seconds
        took = room.now - began - (self.driver.paused_seconds - paused)
        assert took <= _EXIT_SECONDS + 1e-6, f"the server takes {took:g} s to end"
        self.is_over = True
        self._check_events()

    def _begin(self, rank: int, sender: Sender) -> None:
        client = Client(self, rank, sender)
        self.clients.append(client)
        client.process.start(client.work, "work")

    def _hear(self, event: Event) -> None:
        if self.is_over or event["number"] < 0:
            self.room.stop(AssertionError(f"this was heard: {event}"))
        self.clients[event["by"]].heard.append(event)
        chance = self.room.chance
        if not self.is_calm and chance.random() < 0.2:
            self.room.sleep(chance.choice([0.1, 1.0]) * self.slow_seconds)
        if chance.random() < 0.05:
            raise OSError(28, "No space left on device")

    def _command_until(self, end: float) -> None:
        chance = self.room.chance
        while True:
            self.room.sleep(chance.expovariate(6 / self.trouble_seconds))
            if self.room.now > end:
                return
            self._command(chance.choice(["lease", *sorted(RETAINED)]))

    def _command(self, command: str) -> int:
        number = self.next_number()
        if command in RETAINED:
            self.retained[command] = number
        self.server.command({"command": command, "number": number})
        return number

    def _disturb(self) -> None:
        """Let something go wrong from time to time; all is well at the end of the trouble."""
        room, chance = self.room, self.room.chance
        for at in sorted(chance.uniform(0, self.trouble_seconds) for _ in range(self.faults)):
            room.sleep(max(0.0, at - room.now))
            seconds = min(self.trouble_seconds - room.now, chance.choice([1.0, 12.0, 60.0]))
            client = chance.choice(self.clients)
            process = chance.choice([self.driver, client.process, client.process])
            match chance.choice(["cut", "cut off", "pause", "kill", "no threads"]):
                case "cut":
                    process.cut()
                case "cut off":
                    process.cut_off(seconds)
                case "pause":
                    process.pause(seconds)
                case "kill" if process is not self.driver:
                    process.kill()
                    self._begin(client.rank, client.sender)
                case "no threads":
                    process.refuses_threads = True
                    room.sleep(seconds)
                    process.refuses_threads = False

    def _intrude(self) -> None:
        """Connect as somebody who does not know the token."""
        room, chance = self.room, self.room.chance
        room.sleep(chance.uniform(0, self.trouble_seconds + 20.0))
        kind: Stranger = chance.choice(["silent", "rubbish", "slow", "another token"])
        address = self.server.address
        if kind == "another token":
            client = EventClient(dataclasses.replace(address, token="guessed"), 0, 1, clock=lambda: room.now)
            client.send({"event": "error", "number": -1})
            room.sleep(60.0)
            client.close(0.0)
            return
        with (
            contextlib.suppress(OSError),
            STAND_INS["socket"].create_connection((address.host, address.port), 10.0) as connection,
        ):
            for _ in range(6):
                if kind == "rubbish":
                    connection.sendall(chance.randbytes(1_000))
                if kind == "slow":
                    connection.sendall(b"0")
                room.sleep(8.0)

    def _close(self) -> None:
        """Let all clients close, each of them with one cut line at most."""
        staying = [client for client in self.clients if client.stays]
        for client in staying:
            client.may_close = True
        for client in staying:
            if self.room.chance.random() < 0.3:
                self.room.sleep(self.room.chance.uniform(0, 3.0))
                client.process.cut()
        self.room.sleep(_CLOSE_SECONDS + 10.0)
        assert all(client.is_closed for client in staying)

    def _check_commands(self) -> None:
        """The last retained command is there, and others arrive now."""
        lease = self._command("lease")
        self.room.sleep(10.0)
        for client in self.clients:
            expected = {last for last in self.retained.items() if client.is_meant(last[0])}
            if client.sender == "task":
                expected.add(("lease", lease))
            if client.stays:
                assert expected <= set(client.commands), f"{client.process.name} did not receive {expected}"

    def _check_events(self) -> None:
        """Events arrive once and in order; those that may not be dropped arrive without a gap."""
        for client in self.clients:
            numbers = [event["number"] for event in client.heard]
            assert numbers == sorted(set(numbers)), (
                f"events of {client.process.name} arrived in another order: {numbers}"
            )
            kept = [event["number"] for event in client.heard if event["event"] not in DROPPABLE]
            assert set(kept) <= set(client.said)
            if self.queue_length >= 1_000:
                assert kept == client.said[: len(kept)], f"events of {client.process.name} arrived with a gap"
                if self.ends_in_peace and client.stays:
                    assert kept == client.said, f"the last events of {client.process.name} did not arrive"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("some", seeds(SEEDS, PARTS, usual=100))
def test_every_event_is_heard_once_and_in_order_and_everything_ends(some: range, count: Count) -> None:
    events = run_seeds(some, lambda seed: World(seed).run(), "World({}).run()")
    count("simulated events", {"seeds": len(some), "events received": events})


def test_a_seed_repeats_its_world() -> None:
    worlds = [World(7), World(7)]
    for world in worlds:
        world.run()
    first, second = ([client.heard for client in world.clients] for world in worlds)
    assert first == second
    assert worlds[0].room.now == worlds[1].room.now
