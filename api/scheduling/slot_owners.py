"""Whose slot it is: every command about a slot has to know, and it never changes.

Slot lists teach it; what is not known is read from the database. Ids of no slot are not remembered: a slot of that id
may come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Final

from fastapi import Depends, Request

from api.gathering import Gathering

KNOWN_MAX: Final = 65_536


class SlotOwners:
    """Knows the doctor of the ``known_max`` slots that were asked for last; ``read`` finds the others."""

    def __init__(
        self, read: Callable[[list[str]], Awaitable[Mapping[str, str]]], *, known_max: int = KNOWN_MAX
    ) -> None:
        self._known_max = known_max
        self._known: OrderedDict[str, str] = OrderedDict()
        self._gathering = Gathering(read, self._remember, name="slot owners")

    async def doctor_of(self, slot_id: str) -> str | None:
        """The doctor whose slot it is; ``None`` where there is no such slot.

        Raises:
            DatabaseUnavailable: it cannot be read.
        """
        if (doctor_id := self._known.get(slot_id)) is not None:
            self._known.move_to_end(slot_id)
            return doctor_id
        return await self._gathering.ask(slot_id)

    def learn(self, owners: Iterable[tuple[str, str]]) -> None:
        """Remember pairs of a slot and its doctor."""
        known = self._known
        for slot_id, doctor_id in owners:
            known[slot_id] = doctor_id
            known.move_to_end(slot_id)
        while len(known) > self._known_max:
            known.popitem(last=False)

    async def close(self) -> None:
        """Stop reading."""
        await self._gathering.close()

    def _remember(self, slot_id: str, doctor_id: str | None, _: float) -> None:
        if doctor_id is not None:
            self.learn([(slot_id, doctor_id)])


async def slot_owners_of(request: Request) -> SlotOwners:
    """The one of this process."""
    owners: SlotOwners = request.app.state.slot_owners
    return owners


TheSlotOwners = Annotated[SlotOwners, Depends(slot_owners_of)]
