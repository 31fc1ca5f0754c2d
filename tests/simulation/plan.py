"""What is to happen in a run: scripts of clients and faults, drawn from a seed; each of them can be left out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from actors.calendar_actor import ActorLimits
from tests.clinic import CUDDY, HOUSE, WILSON

DOCTORS = (HOUSE, WILSON, CUDDY)
SLOTS = 4
BY_STAFF = ("close", "reopen", "block", "unblock")
BY_SYSTEM = ("expire", "sweep")
CALM = 0.2
"""Of all plans, those in which nothing goes wrong: there every answer has to be a definite one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client wants: sent up to ``sends`` times under one command id, until there is an answer."""

    name: str
    kind: str
    """Of a patient: ``hold``, ``release``, ``book``, ``move``, ``cancel``; of staff: ``close``, ``reopen``, ``block``,
    ``unblock``. ``again`` repeats an earlier request, ``expire`` and ``sweep`` do what the supervisor does."""
    who: str
    doctor: str = HOUSE
    slot: int = 0
    about: str = ""
    """The name of the request that booked the visit, made the hold, closed the calendar or is to be repeated."""
    hold_first: bool = False
    respond_async: bool = False
    pause_s: float = 0.0
    sends: int = 3
    also_by: int | None = None
    """Sent by this API server at the same time, too, under the same id."""
    patience_s: float = 60.0
    """The client goes away after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Requests one after another, to one API server."""

    server: int
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A process dies before it takes its ``step``-th step; which one: counted in the order in which they started."""

    process: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBrain:
    """A second process comes up under the name of a running one; some API servers see the one, some the other."""

    at_s: float
    lasts_s: float
    which: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFault:
    """What befalls the ``number``-th batch: ``twice``, ``late``, ``lost``, ``reply lost``, ``error after success``."""

    number: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFault:
    """What befalls the ``number``-th call of a name.

    ``unavailable``, ``slow``; to an append also ``conflict``, ``lost``, ``committed and lost``, ``ends late``.
    """

    call: str
    number: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The database is away for a while."""

    at_s: float
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Calendars are placed anew: over so many actors, or each in its own (none)."""

    at_s: float
    actors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStep:
    """The clock of a calendar actor's host is wrong for a while."""

    at_s: float
    lasts_s: float
    which: int
    by_s: float


Fault: TypeAlias = Crash | SplitBrain | CallFault | JournalFault | Outage | Placed | ClockStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of a run but the order of what happens at once, which ``seed`` draws."""

    seed: int
    clients: tuple[Client, ...]
    faults: tuple[Fault, ...] = ()
    actors: int = 1
    """Calendar actors at the start; none: one for each doctor."""
    limits: ActorLimits = field(default_factory=ActorLimits)
    delay_s: float = 0.01
    """Roughly how long a message takes."""

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong and no limit is in anybody's way."""
        return not self.faults and self.limits == ActorLimits()

    def smaller(self) -> Iterator[Plan]:
        """The same with something left out, much at first."""
        for number in range(len(self.clients)):
            yield replace(self, clients=self.clients[:number] + self.clients[number + 1 :])
        for number in range(len(self.faults)):
            yield replace(self, faults=self.faults[:number] + self.faults[number + 1 :])
        for number, client in enumerate(self.clients):
            for left_out in range(len(client.requests)):
                requests = client.requests[:left_out] + client.requests[left_out + 1 :]
                shorter = replace(client, requests=requests)
                yield replace(self, clients=(*self.clients[:number], shorter, *self.clients[number + 1 :]))
        if self.limits != ActorLimits():
            yield replace(self, limits=ActorLimits())
        for number, client in enumerate(self.clients):
            for changed, request in enumerate(client.requests):
                for simpler in _simpler(request):
                    requests = (*client.requests[:changed], simpler, *client.requests[changed + 1 :])
                    calmer = replace(client, requests=requests)
                    yield replace(self, clients=(*self.clients[:number], calmer, *self.clients[number + 1 :]))


def _simpler(request: Request) -> Iterator[Request]:
    if request.also_by is not None:
        yield replace(request, also_by=None)
    if request.hold_first:
        yield replace(request, hold_first=False)
    if request.respond_async:
        yield replace(request, respond_async=False)
    if request.sends > 1:
        yield replace(request, sends=1)


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    dice = random.Random(seed)
    clients = _clients(dice)
    actors, delay_s = dice.choice((1, 1, 2, 0)), dice.choice((0.001, 0.01, 0.05))
    if dice.random() < CALM:
        return Plan(seed=seed, clients=clients, actors=actors, delay_s=delay_s)
    usual = ActorLimits()
    limits = ActorLimits(
        commit_timeout_s=dice.choice((usual.commit_timeout_s,) * 5 + (20 * delay_s,)),
        journal_backlog_max=dice.choice((usual.journal_backlog_max,) * 5 + (2,)),
        append_commands_max=dice.choice((usual.append_commands_max,) * 3 + (1,)),
        redecide_max=dice.choice((usual.redecide_max,) * 3 + (1,)),
        active_calendars_max=dice.choice((usual.active_calendars_max,) * 6 + (1, 2)),
        calendar_idle_s=dice.choice((usual.calendar_idle_s,) * 2 + (0.5,)),
    )
    faults = tuple(_fault(dice) for _ in range(dice.choice((1, 1, 2, 3, 4, 6))))
    return Plan(seed=seed, clients=clients, faults=faults, actors=actors, limits=limits, delay_s=delay_s)


def _clients(dice: random.Random) -> tuple[Client, ...]:
    patients = ("anna", "boris", "clara")[: dice.choice((1, 2, 2, 3))]
    slots = dice.choice((1, 2, SLOTS))
    doctors = DOCTORS[: dice.choice((1, 2, 3, 3))]
    made: list[Request] = []
    clients = []
    for number in range(dice.choice((2, 3, 3, 4))):
        requests = []
        for _ in range(dice.choice((2, 3, 4, 5))):
            requests.append(_request(dice, f"r{len(made)}", dice.choice(patients), doctors, slots, made))
            made.append(requests[-1])
        clients.append(Client(server=number % 2, requests=tuple(requests)))
    return tuple(clients)


def _request(
    dice: random.Random, name: str, who: str, doctors: Sequence[str], slots: int, made: list[Request]
) -> Request:
    visits = [other for other in made if other.kind == "book"]
    holds = [other for other in made if other.kind == "hold"]
    closures = [other for other in made if other.kind == "close"]
    kinds = {"book": 6, "hold": 1.5, "close": 0.4, "block": 0.4, "unblock": 0.3, "expire": 0.2}
    kinds |= {"reopen": 1} if closures else {}
    kinds |= {"move": 5, "cancel": 1.5, "sweep": 0.7} if visits else {}
    kinds |= {"release": 1} if holds else {}
    again = [other for other in made if other.kind not in ("again", *BY_SYSTEM)]
    kinds |= {"again": 2} if again else {}
    (kind,) = dice.choices(list(kinds), list(kinds.values()))
    about = ""
    if kind in ("move", "cancel"):
        about = dice.choice(visits).name
    elif kind in ("release", "again", "reopen"):
        chosen = dice.choice({"release": holds, "again": again, "reopen": closures}[kind])
        about, who = chosen.name, chosen.who
    if kind in BY_STAFF:
        who = "chief"
    return Request(
        name=name,
        kind=kind,
        who=who,
        doctor=dice.choice(doctors),
        slot=dice.randrange(slots),
        about=about,
        hold_first=kind == "book" and dice.random() < 0.2,
        respond_async=dice.random() < 0.06,
        pause_s=dice.choice((0, 0, 0.01, 0.1, 1)) * dice.random(),
        sends=dice.choice((1, 2, 4)),
        also_by=dice.choice((None,) * 4 + (0, 1)),
        patience_s=dice.choice((60,) * 20 + (0.02, 0.2, 1)),
    )


def _fault(dice: random.Random) -> Fault:
    when_s = dice.choice((0.05, 0.5, 3)) * dice.random()
    match dice.choices(("crash", "split", "call", "journal", "outage", "placed", "clock"), (5, 6, 4, 8, 1, 1, 1))[0]:
        case "crash":
            return Crash(process=dice.choice((0, 0, 1, 2)), step=dice.choice((10, 40, 120)) - dice.randrange(10))
        case "split":
            return SplitBrain(at_s=when_s / 2, lasts_s=dice.choice((0.3, 1, 5)), which=dice.randrange(3))
        case "call":
            befalls = ("twice", "late", "lost", "reply lost", "error after success")
            return CallFault(number=dice.randrange(12), kind=dice.choice(befalls))
        case "journal":
            call = dice.choices(("append", "claim", "load", "look_up", "facts"), (12, 1, 1, 1, 1))[0]
            kinds: tuple[str, ...] = ("unavailable", "slow")
            if call == "append":
                kinds = (*kinds, "conflict", "lost", "committed and lost", "ends late")
            return JournalFault(
                call=call, number=dice.randrange(12 if call == "append" else 4), kind=dice.choice(kinds)
            )
        case "outage":
            return Outage(at_s=when_s, lasts_s=dice.choice((0.1, 3)))
        case "placed":
            return Placed(at_s=when_s, actors=dice.choice((0, 1, 2)))
        case _:
            return ClockStep(
                at_s=when_s, lasts_s=dice.choice((0.5, 4)), which=dice.randrange(3), by_s=dice.choice((-3600, 3600))
            )
