"""The way to a calendar, without Ray: lanes, batches, resending, placement and limits, over actors made up here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from actors.client import (
    ActorLost,
    CalendarActorRef,
    CalendarClient,
    ClientLimits,
    Placement,
    PlacementUnknown,
    decode_batch,
    encode_replies,
)
from actors.messages import Command, Done, HoldSlot, NotDecided, Pending, RefusedFor, Rejected, Reply
from tests.fakes.actor_house import settle, until
from tests.given import ask

QUICK = ClientLimits(resend_delay_s=0.0005, resend_delay_max_s=0.001)
ONE_ACTOR = Placement(generation=1, dedicated=False, actors=1)
UNAVAILABLE = NotDecided(why=RefusedFor.UNAVAILABLE)

Answer = Callable[[int, Sequence[Command]], Awaitable[Sequence[Reply]]]


def command(name: str = "c", *, doctor: str = "house", seconds: float = 60, hold_id: str = "h") -> HoldSlot:
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    return ask(HoldSlot, doctor=doctor, command_id=name, deadline=deadline, hold_id=hold_id, slot_id="s")


def done(each: Command) -> Done:
    return Done(answer={"to": each.command_id})


async def agree(_: int, commands: Sequence[Command]) -> Sequence[Reply]:
    return [done(each) for each in commands]


class Actor:
    """An actor that answers as it is told to and remembers what it was asked."""

    def __init__(self, answer: Answer = agree) -> None:
        self.answer = answer
        self.calls: list[tuple[int, list[str]]] = []
        self.numbers: list[tuple[str, int]] = []
        self.in_flight = 0
        self.in_flight_most = 0
        self.pending: set[tuple[str, str]] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def decide_batch(self, batch: bytes) -> bytes:
        came = decode_batch(batch)
        self.calls.append((came.generation, [each.command_id for each in came.commands]))
        self.numbers.append((came.sender, came.number))
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            await self.gate.wait()
            return encode_replies(await self.answer(came.generation, came.commands))
        finally:
            self.in_flight -= 1

    async def command_status(self, command_id: str, user_id: str) -> bool:
        return (command_id, user_id) in self.pending

    @property
    def sent(self) -> list[str]:
        """The ids of all commands that came, in order."""
        return [each for _, batch in self.calls for each in batch]


class Actors:
    """Actors by name, made when they are asked for."""

    def __init__(self, **known: Actor) -> None:
        self.known: dict[str, Actor] = dict(known)
        self.forgotten: list[str] = []
        self.lost = 0
        """How many more times nobody can be had."""

    def __getitem__(self, name: str) -> Actor:
        return self.known.setdefault(name, Actor())

    async def get(self, name: str) -> CalendarActorRef:
        if self.lost:
            self.lost -= 1
            raise ActorLost("starting")
        return self[name]

    def forget(self, name: str) -> None:
        self.forgotten.append(name)

    async def running(self) -> dict[str, CalendarActorRef]:
        return dict(self.known)


class Placements:
    """The row of the placement, and how often it was read."""

    def __init__(self, placement: Placement = ONE_ACTOR) -> None:
        self.placement = placement
        self.reads = 0
        self.unknown = 0

    async def __call__(self) -> Placement:
        self.reads += 1
        await asyncio.sleep(0)
        if self.unknown:
            self.unknown -= 1
            raise PlacementUnknown
        return self.placement


def client_of(actors: Actors, placements: Placements | None = None, limits: ClientLimits = QUICK) -> CalendarClient:
    return CalendarClient(actors=actors, read_placement=placements or Placements(), limits=limits)


def sending(client: CalendarClient, *commands: Command) -> list[asyncio.Task[Reply]]:
    return [asyncio.create_task(client.send(each)) for each in commands]


# Lanes and batches


async def test_a_command_gets_its_own_reply() -> None:
    actors = Actors()
    client = client_of(actors)
    commands = [command(str(number)) for number in range(10)]

    replies = await asyncio.gather(*sending(client, *commands))

    assert list(replies) == [done(each) for each in commands]


async def test_one_call_is_in_flight_and_what_comes_meanwhile_travels_together() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors)
    first = sending(client, command("first"))
    await until(lambda: actor.in_flight == 1)
    others = sending(client, *(command(str(number)) for number in range(5)))
    await settle()
    assert len(actor.calls) == 1

    actor.gate.set()
    await asyncio.gather(*first, *others)

    assert [batch for _, batch in actor.calls] == [["first"], ["0", "1", "2", "3", "4"]]
    assert actor.in_flight_most == 1


async def test_a_call_carries_only_so_many() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors, limits=ClientLimits(lane_batch_max=3))
    tasks = sending(client, *(command(str(number)) for number in range(8)))
    await settle()

    actor.gate.set()
    await asyncio.gather(*tasks)

    assert [len(batch) for _, batch in actor.calls] == [3, 3, 2]
    assert actor.sent == [str(number) for number in range(8)]


async def test_a_lane_that_has_just_emptied_takes_what_comes_next() -> None:
    """Whoever is answered and sends again at once finds the lane's task at its very end."""
    client = client_of(Actors())

    async def talk() -> None:
        for number in range(20):
            assert await client.send(command(str(number))) == Done(answer={"to": str(number)})

    async with asyncio.timeout(5):
        await asyncio.gather(*(talk() for _ in range(3)))


async def test_lanes_do_not_wait_for_each_other() -> None:
    actors = Actors()
    client = client_of(actors, Placements(Placement(generation=1, dedicated=True, actors=1)))
    actors["calendar:house"].gate.clear()
    stuck = sending(client, command(doctor="house"))

    assert await client.send(command(doctor="wilson")) == Done(answer={"to": "c"})

    actors["calendar:house"].gate.set()
    await asyncio.gather(*stuck)


async def test_a_full_lane_refuses_at_once() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors, limits=ClientLimits(lane_depth_max=2))
    in_flight = sending(client, command("in flight"))
    await until(lambda: actor.in_flight == 1)
    waiting = sending(client, command("1"), command("2"))
    await settle()

    assert await client.send(command("3")) == NotDecided(why=RefusedFor.OVERLOADED)

    actor.gate.set()
    await asyncio.gather(*in_flight, *waiting)
    assert actor.sent == ["in flight", "1", "2"]


async def test_who_has_gone_is_not_asked_for() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors)
    first = sending(client, command("first"))
    await until(lambda: actor.in_flight == 1)
    gone, stays = sending(client, command("gone"), command("stays"))
    await settle()
    gone.cancel()
    await asyncio.wait({gone})

    actor.gate.set()

    assert await stays == Done(answer={"to": "stays"})
    assert actor.sent == ["first", "stays"]
    await asyncio.gather(*first)


# Sending again


async def test_what_was_not_decided_is_sent_again_under_the_same_id() -> None:
    times: Counter[str] = Counter()

    async def answer(_: int, commands: Sequence[Command]) -> Sequence[Reply]:
        times.update(each.command_id for each in commands)
        return [
            done(each) if times[each.command_id] > 3 else NotDecided(why=RefusedFor.NOT_ACTIVE) for each in commands
        ]

    actors = Actors(**{"calendars:0": Actor(answer)})

    assert await client_of(actors).send(command("key")) == Done(answer={"to": "key"})
    assert actors["calendars:0"].sent == ["key"] * 4


async def test_when_an_actor_dies_its_commands_are_sent_again_to_whoever_comes_after_it() -> None:
    async def die(_: int, __: Sequence[Command]) -> Sequence[Reply]:
        actors.known["calendars:0"] = successor
        raise ActorLost("died")

    successor = Actor()
    actors = Actors(**{"calendars:0": Actor(die)})
    client = client_of(actors)

    replies = await asyncio.gather(*sending(client, command("a"), command("b")))

    assert replies == [Done(answer={"to": "a"}), Done(answer={"to": "b"})]
    assert sorted(successor.sent) == ["a", "b"]
    assert actors.forgotten == ["calendars:0"]


async def test_an_actor_that_cannot_be_had_yet_is_asked_for_again() -> None:
    actors = Actors()
    actors.lost = 3

    assert await client_of(actors).send(command("key")) == Done(answer={"to": "key"})
    assert len(actors.forgotten) == 3


async def test_a_call_without_an_answer_is_given_up_and_sent_again() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors, limits=ClientLimits(call_timeout_s=0.01, resend_delay_s=0.0005))
    (task,) = sending(client, command("key"))
    await until(lambda: len(actor.calls) >= 2)

    actor.gate.set()

    assert await task == Done(answer={"to": "key"})
    assert set(actor.sent) == {"key"}


async def test_the_calls_of_a_client_are_numbered_whatever_lane_they_take() -> None:
    actors = Actors()
    client = client_of(actors, Placements(Placement(generation=1, dedicated=True, actors=1)))

    for doctor in ("house", "wilson", "house"):
        await client.send(command(doctor, doctor=doctor))

    numbers = sorted(actors["calendar:house"].numbers + actors["calendar:wilson"].numbers, key=lambda each: each[1])
    assert [number for _, number in numbers] == [1, 2, 3]
    assert len({sender for sender, _ in numbers}) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Done(answer={}),
        Rejected(code="slot_taken", detail="Taken."),
        Pending(command_id="c"),
        NotDecided(why=RefusedFor.OVERLOADED),
        NotDecided(why=RefusedFor.UNAVAILABLE),
    ],
)
async def test_every_other_reply_is_the_reply(reply: Reply) -> None:
    async def answer(_: int, commands: Sequence[Command]) -> Sequence[Reply]:
        return [reply for _ in commands]

    actors = Actors(**{"calendars:0": Actor(answer)})

    assert await client_of(actors).send(command()) == reply
    assert len(actors["calendars:0"].calls) == 1


# Deadlines


async def test_a_command_needs_a_deadline() -> None:
    with pytest.raises(AssertionError):
        await client_of(Actors()).send(ask(HoldSlot, hold_id="h", slot_id="s"))


@pytest.mark.parametrize("why", [RefusedFor.NOT_ACTIVE, RefusedFor.EXPIRED])
async def test_what_is_never_decided_ends_at_its_deadline(why: RefusedFor) -> None:
    async def never(_: int, commands: Sequence[Command]) -> Sequence[Reply]:
        return [NotDecided(why=why) for _ in commands]

    client = client_of(Actors(**{"calendars:0": Actor(never)}))

    assert await client.send(command(seconds=0.05)) == UNAVAILABLE


async def test_an_actor_that_says_nothing_holds_nobody_past_the_deadline() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors, limits=ClientLimits(call_timeout_s=60))

    async with asyncio.timeout(5):
        replies = await asyncio.gather(*sending(client, command("in flight", seconds=0.05)))
        replies += await asyncio.gather(*sending(client, command("waiting", seconds=0.05)))

    assert replies == [UNAVAILABLE, UNAVAILABLE]
    assert actor.sent == ["in flight"]
    actor.gate.set()
    assert await client.send(command("later")) == Done(answer={"to": "later"})


async def test_a_deadline_that_has_passed_is_not_sent() -> None:
    actors = Actors()

    assert await client_of(actors).send(command(seconds=-1)) == UNAVAILABLE
    assert actors["calendars:0"].calls == []


# Placement


def test_a_doctor_always_has_the_same_actor() -> None:
    doctors = [f"doctor {number}" for number in range(1000)]
    placement = Placement(generation=1, dedicated=False, actors=4)

    names = Counter(placement.actor_name(doctor) for doctor in doctors)

    assert set(names) == set(placement.shared_names()) == {f"calendars:{number}" for number in range(4)}
    assert min(names.values()) > 200
    assert placement.actor_name("house") == "calendars:3", "it must never change: actors of two releases share it"
    assert Placement(generation=9, dedicated=True, actors=4).actor_name("house") == "calendar:house"


async def test_the_placement_is_read_once_for_all_who_ask() -> None:
    placements = Placements()
    client = client_of(Actors(), placements)

    await asyncio.gather(*sending(client, *(command(str(number)) for number in range(10))))
    await client.send(command("later"))

    assert placements.reads == 1


async def test_whoever_was_misplaced_reads_the_placement_again_and_goes_where_it_says() -> None:
    async def moved_away(generation: int, commands: Sequence[Command]) -> Sequence[Reply]:
        placements.placement = Placement(generation=2, dedicated=True, actors=1)
        return [NotDecided(why=RefusedFor.MISPLACED) for _ in commands]

    placements = Placements()
    actors = Actors(**{"calendars:0": Actor(moved_away)})
    client = client_of(actors, placements)

    assert await client.send(command("key")) == Done(answer={"to": "key"})

    assert actors["calendars:0"].calls == [(1, ["key"])]
    assert actors["calendar:house"].calls == [(2, ["key"])]
    assert placements.reads == 2


async def test_commands_under_two_placements_travel_apart() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    placements = Placements()
    client = client_of(actors, placements)
    await client.send(command("known"))
    actor.gate.clear()
    old = sending(client, command("in flight"), command("old"))
    await until(lambda: actor.in_flight == 1)
    old += sending(client, command("old too"))
    await settle()
    placements.placement = Placement(generation=2, dedicated=False, actors=1)
    client._placement = None
    new = sending(client, command("new"))
    await settle()

    actor.gate.set()
    await asyncio.gather(*old, *new)

    assert actor.calls[1:] == [(1, ["in flight", "old"]), (1, ["old too"]), (2, ["new"])]


async def test_a_placement_that_cannot_be_read_is_asked_for_until_the_deadline() -> None:
    placements = Placements()
    placements.unknown = 3
    client = client_of(Actors(), placements)

    assert await client.send(command("key")) == Done(answer={"to": "key"})
    assert placements.reads == 4
    placements.unknown = 10**9
    client._placement = None
    assert await client.send(command("late", seconds=0.05)) == UNAVAILABLE


async def test_who_gives_up_while_the_placement_is_read_takes_it_from_nobody() -> None:
    placements = Placements()
    client = client_of(Actors(), placements)
    gone, stays = sending(client, command("gone"), command("stays"))
    await asyncio.sleep(0)
    gone.cancel()

    assert await stays == Done(answer={"to": "stays"})
    assert placements.reads == 1


async def test_shared_actors_can_be_started_ahead() -> None:
    actors = Actors()
    client = client_of(actors, Placements(Placement(generation=3, dedicated=False, actors=2)))
    await client.start_actors()

    assert set(actors.known) == {"calendars:0", "calendars:1"}
    await client.send(command())
    assert [generation for actor in actors.known.values() for generation, _ in actor.calls] == [3]


# Bounds and bugs


async def test_lanes_are_bounded_and_an_idle_one_makes_room() -> None:
    actors = Actors()
    placements = Placements(Placement(generation=1, dedicated=True, actors=1))
    client = client_of(actors, placements, ClientLimits(lanes_max=2))
    await client.send(command(doctor="first"))
    actors["calendar:second"].gate.clear()
    busy = sending(client, command(doctor="second"))
    await until(lambda: actors["calendar:second"].in_flight == 1)

    assert await client.send(command(doctor="third")) == Done(answer={"to": "c"})
    assert actors.forgotten == ["calendar:first"]
    actors["calendar:third"].gate.clear()
    busy += sending(client, command(doctor="third"))
    await until(lambda: actors["calendar:third"].in_flight == 1)
    assert await client.send(command(doctor="fourth")) == NotDecided(why=RefusedFor.OVERLOADED)

    actors["calendar:second"].gate.set()
    actors["calendar:third"].gate.set()
    await asyncio.gather(*busy)


async def too_few(_: int, commands: Sequence[Command]) -> Sequence[Reply]:
    return [done(each) for each in commands][1:]


async def test_a_bug_costs_one_batch_its_answers_and_nobody_hangs() -> None:
    actors = Actors(**{"calendars:0": Actor(too_few)})
    client = client_of(actors)

    async with asyncio.timeout(5):
        assert await client.send(command("unlucky")) == UNAVAILABLE
        # What no wire can carry.
        assert await client.send(command("unlucky too", hold_id="\ud800")) == UNAVAILABLE

    actors["calendars:0"].answer = agree
    assert await client.send(command("lucky")) == Done(answer={"to": "lucky"})


async def test_what_waits_behind_a_bug_is_sent() -> None:
    async def too_few_once(generation: int, commands: Sequence[Command]) -> Sequence[Reply]:
        actor.answer = agree
        return await too_few(generation, commands)

    actor = Actor(too_few_once)
    actors = Actors(**{"calendars:0": actor})
    actor.gate.clear()
    client = client_of(actors)
    unlucky = sending(client, command("unlucky"))
    await until(lambda: actor.in_flight == 1)
    behind = sending(client, command("behind"))
    await settle()

    actor.gate.set()

    async with asyncio.timeout(5):
        assert await asyncio.gather(*unlucky, *behind) == [UNAVAILABLE, Done(answer={"to": "behind"})]


# The end


async def test_closing_answers_whoever_waits_or_is_in_flight() -> None:
    actors = Actors()
    actor = actors["calendars:0"]
    actor.gate.clear()
    client = client_of(actors)
    in_flight = sending(client, command("in flight"))
    await until(lambda: actor.in_flight == 1)
    waiting = sending(client, command("waiting"))
    await settle()

    await client.close()

    async with asyncio.timeout(5):
        assert await asyncio.gather(*in_flight, *waiting) == [UNAVAILABLE, UNAVAILABLE]


async def test_somewhere_a_command_may_be_pending() -> None:
    actors = Actors(one=Actor(), other=Actor())
    actors["other"].pending.add(("key", "anna"))
    client = client_of(actors)

    assert await client.find_pending("key", "anna") == Pending(command_id="key")
    assert await client.find_pending("key", "boris") is None
    assert await client.find_pending("another", "anna") is None


async def test_not_knowing_whether_a_command_is_pending_is_no_no() -> None:
    class Dead(Actor):
        async def command_status(self, command_id: str, user_id: str) -> bool:
            raise ActorLost("died")

    with pytest.raises(ActorLost):
        await client_of(Actors(one=Actor(), other=Dead())).find_pending("key", "anna")
