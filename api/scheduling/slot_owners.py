"""Whose slot it is: every command about a slot has to know, and it never changes.

Slot lists teach it; what is not known is read from the database, one query for all that wait while the query before is
under way. Ids of no slot are not remembered: a slot of that id may come.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Final

from fastapi import Depends, Request

KNOWN_MAX: Final = 65_536
WAITING_MAX: Final = 5_000


class TooManyWaiting(Exception):
    """More slots are being looked up than the database can keep up with."""


class SlotOwners:
    """Knows the doctor of the ``known_max`` slots that were asked for last; ``load`` finds the others."""

    def __init__(
        self, load: Callable[[list[str]], Awaitable[Mapping[str, str]]], *, known_max: int = KNOWN_MAX
    ) -> None:
        self._load = load
        self._known_max = known_max
        self._known: OrderedDict[str, str] = OrderedDict()
        self._querying = asyncio.Lock()
        self._next: _Batch | None = None

    async def doctor_of(self, slot_id: str) -> str | None:
        """The doctor whose slot it is; ``None`` where there is no such slot.

        Raises:
            TooManyWaiting: ``WAITING_MAX`` others wait already.
            Exception: whatever ``load`` raised.
        """
        if (doctor_id := self._known.get(slot_id)) is not None:
            self._known.move_to_end(slot_id)
            return doctor_id
        if self._next is None:
            self._next = _Batch()
            self._next.owners = asyncio.create_task(self._find(self._next), name="slot owners")
        batch = self._next
        if len(batch.slot_ids) >= WAITING_MAX:
            raise TooManyWaiting
        batch.slot_ids.add(slot_id)
        # Shielded: one caller that goes away must not take the answer from the others.
        return (await asyncio.shield(batch.owners)).get(slot_id)

    def learn(self, owners: Iterable[tuple[str, str]]) -> None:
        """Remember pairs of a slot and its doctor."""
        known = self._known
        for slot_id, doctor_id in owners:
            known[slot_id] = doctor_id
            known.move_to_end(slot_id)
        while len(known) > self._known_max:
            known.popitem(last=False)

    async def _find(self, batch: _Batch) -> Mapping[str, str]:
        async with self._querying:  # Until it is this batch's turn, more slots join it.
            self._next = None
            owners = await self._load(sorted(batch.slot_ids))
        self.learn(owners.items())
        return owners


class _Batch:
    """Slots looked up together."""

    __slots__ = ("owners", "slot_ids")

    owners: asyncio.Task[Mapping[str, str]]

    def __init__(self) -> None:
        self.slot_ids: set[str] = set()


async def slot_owners_of(request: Request) -> SlotOwners:
    """The one of this process."""
    owners: SlotOwners = request.app.state.slot_owners
    return owners


TheSlotOwners = Annotated[SlotOwners, Depends(slot_owners_of)]
