"""Clients who book, hold, move and cancel, each for themselves, and ask again under the same key until told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from loadtests.connection import Connection, NoAnswer
from tests.faults.history import Attempt, History, Kind, Operation, Outcome
from tests.people import Person

VISITS_MAX = 12
"""Live visits of one client."""
HOT_SLOTS = 6
"""Of every calendar, wanted by many."""
HOT = 0.15
REPEATED = 0.04
"""Of the answered: asked once more, which must change nothing."""
AT_ONCE = 0.03
"""Sent twice at the same moment."""
RETRY_S = 0.1
WISHES = {Kind.BOOK: 40, Kind.HOLD: 8, Kind.MOVE: 17, Kind.MOVE_AWAY: 15, Kind.CANCEL: 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The slots of all doctors, by doctor, all at the same times."""

    slots: dict[str, list[str]]

    @property
    def doctor_ids(self) -> list[str]:
        """Whose they are."""
        return list(self.slots)


@dataclass(slots=True, kw_only=True)
class Pace:
    """How fast all clients go."""

    rest_s: float = 0.0
    """Of each, between two wishes."""


@dataclass(slots=True, kw_only=True)
class _Visit:
    id: str
    doctor_id: str
    number: int
    """Of its slot in the calendar."""


@dataclass(slots=True, kw_only=True)
class _Wish:
    operation: Operation
    path: str
    body: bytes
    number: int = 0
    visit: _Visit | None = None


@dataclass(slots=True, kw_only=True)
class Client:
    """One patient with an account. ``stopping`` ends what is not answered by then."""

    person: Person
    offer: Offer
    ports: Sequence[int]
    history: History
    dice: random.Random
    stopping: asyncio.Event
    pace: Pace
    _visits: list[_Visit] = field(default_factory=list)
    _connections: dict[int, list[Connection]] = field(default_factory=dict)
    _serial: int = 0
    _held: tuple[str, str, int] | None = None
    """Hold, doctor and number of the slot."""

    async def run(self, resting: asyncio.Event) -> None:
        """Wish for one thing after another until ``resting`` is set, then see the last one through."""
        try:
            while not resting.is_set():
                await self._fulfil(self._wish())
                if self.pace.rest_s:
                    await asyncio.sleep(self.pace.rest_s)
        finally:
            for connections in self._connections.values():
                for connection in connections:
                    connection.close()

    async def _fulfil(self, wish: _Wish) -> None:
        operation = wish.operation
        self.history.begin(operation)
        twice = self.dice.random() < AT_ONCE
        while True:
            await asyncio.gather(*(self._attempt(wish) for _ in range(2 if twice else 1)))
            twice = False
            if operation.attempts[-1].outcome is not Outcome.UNKNOWN or operation.good is not None:
                break
            if self.stopping.is_set():
                return
            await asyncio.sleep(RETRY_S)
        self._note(wish)
        if self.dice.random() < REPEATED:
            await self._attempt(wish)

    async def _attempt(self, wish: _Wish) -> None:
        port = self.dice.choice(self.ports)
        idle = self._connections.setdefault(port, [])
        connection = idle.pop() if idle else Connection(port)
        token = self.person.headers["Authorization"].removeprefix("Bearer ")
        attempt = Attempt(invoked_at=time.monotonic())
        wish.operation.attempts.append(attempt)
        try:
            attempt.status, attempt.body = await connection.send(
                "POST", wish.path, token, wish.body, wish.operation.key
            )
        except NoAnswer:
            pass
        else:
            attempt.returned_at = time.monotonic()
        idle.append(connection)
        self.history.attempted(wish.operation, attempt)

    def _note(self, wish: _Wish) -> None:
        """Know one's visits by what was told."""
        good, visit = wish.operation.good, wish.visit
        if wish.operation.kind is Kind.HOLD:
            self._held = None if good is None else (good.answer["id"], wish.operation.doctor_id, wish.number)
        elif good is None:
            if visit is not None and wish.operation.outcome is Outcome.UNKNOWN:
                self._visits.remove(visit)  # Wherever it is by now.
        elif visit is None:
            told = _Visit(id=good.answer["id"], doctor_id=wish.operation.doctor_id, number=wish.number)
            self._visits.append(told)
        elif wish.operation.kind is Kind.CANCEL:
            self._visits.remove(visit)
        else:
            visit.doctor_id, visit.number = wish.operation.doctor_id, wish.number

    def _wish(self) -> _Wish:
        if self._held is not None:
            hold_id, doctor_id, number = self._held
            self._held = None
            if self.dice.random() < 0.5:
                return self._about(Kind.BOOK, doctor_id, number, hold_id=hold_id)
        kind = self.dice.choices(list(WISHES), list(WISHES.values()))[0]
        if not self._visits or len(self._visits) >= VISITS_MAX:
            kind = Kind.CANCEL if self._visits else Kind.BOOK
        number = self._free_number()
        if kind in (Kind.BOOK, Kind.HOLD):
            return self._about(kind, self.dice.choice(self.offer.doctor_ids), number)
        visit = self.dice.choice(self._visits)
        doctor_id = visit.doctor_id
        if kind is Kind.MOVE_AWAY:
            doctor_id = self.dice.choice([each for each in self.offer.doctor_ids if each != doctor_id])
        return self._about(kind, doctor_id, number, visit=visit)

    def _about(
        self, kind: Kind, doctor_id: str, number: int, *, visit: _Visit | None = None, hold_id: str | None = None
    ) -> _Wish:
        slot_id = None if kind is Kind.CANCEL else self.offer.slots[doctor_id][number]
        self._serial += 1
        operation = Operation(
            kind=kind,
            user_id=self.person.user_id,
            key=f"{kind}-{self._serial}",
            doctor_id=doctor_id,
            slot_id=slot_id,
            visit_id=None if visit is None else visit.id,
        )
        body = {name: value for name, value in (("slot_id", slot_id), ("hold_id", hold_id)) if value is not None}
        path = "/v1/holds" if kind is Kind.HOLD else "/v1/appointments"
        if visit is not None:
            path += f"/{visit.id}/{'cancel' if kind is Kind.CANCEL else 'reschedule'}"
        return _Wish(operation=operation, path=path, body=orjson.dumps(body), number=number, visit=visit)

    def _free_number(self) -> int:
        """A time at which one has no visit oneself, as far as one knows."""
        count = len(next(iter(self.offer.slots.values())))
        own = {visit.number for visit in self._visits}
        while True:
            number = self.dice.randrange(HOT_SLOTS if self.dice.random() < HOT else count)
            if number not in own:
                return number
            if self.dice.random() < HOT:
                return number
