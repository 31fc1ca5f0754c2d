"""A user's own appointments as they change. Each is told as it is now; its ``version`` tells order and repeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Final

from actors.changes import AppointmentChange
from api.dependencies import Principal
from api.feed.stream import ChangeStream
from api.routing import encoded
from api.scheduling.appointment_view import AppointmentView
from cluster.bootstrap import Services
from persistence.repositories.appointments import AppointmentRow, Appointments, AppointmentSearch

LIVE: Final = ("booked", "rescheduled", "arrived")
LIVE_MAX: Final = 1000
"""Live appointments that are told at the beginning."""


class AppointmentReader:
    """One who follows their appointments. Use it once, and ``close`` it."""

    def __init__(
        self,
        stream: ChangeStream,
        services: Services,
        principal: Callable[[], Awaitable[Principal]],
        view: Callable[[], AppointmentView],
    ) -> None:
        """``principal`` says who the user is now, and for whom they may book."""
        self._stream = stream
        self._services = services
        self._principal = principal
        self._view = view
        self._patients: set[str] = set()
        self._changed: set[str] = set()
        self._told: dict[str, int] = {}
        """The version of each appointment that was told."""
        self._begins_anew = False
        self._wake = asyncio.Event()
        self._wake.set()

    def close(self) -> None:
        """Follow no more."""
        for patient_id in self._patients:
            self._stream.unconcern(patient_id, self)

    def note(self, change: AppointmentChange) -> None:
        """See ``Concerned``."""
        if self._told.get(change.id, 0) < change.version:
            self._changed.add(change.id)
            self._wake.set()

    def lose(self) -> None:
        """See ``Concerned``."""
        self._begins_anew = True
        self._wake.set()

    def wake(self) -> None:
        """Have ``next`` come to an end, and see for whom the user may book now."""
        self._wake.set()

    async def next(self) -> AsyncIterator[str]:
        """What there is to tell, once there is something.

        Raises:
            DatabaseUnavailable
        """
        await self._wake.wait()
        self._wake.clear()
        mine = set((await self._principal()).patient_keys)
        new = mine if self._begins_anew else mine - self._patients
        self._begins_anew = False
        for patient_id in self._patients - mine:
            self._stream.unconcern(patient_id, self)
        for patient_id in mine - self._patients:
            self._stream.concern(patient_id, self)
        self._patients = mine
        changed, self._changed = self._changed, set()
        rows = await self._read(new, changed)
        fresh = [row for row in rows if row.patient_id in mine and self._told.get(row.id, 0) < row.version]
        shown = await self._view().shown(fresh) if fresh else []
        for row, appointment in zip(fresh, shown, strict=True):
            self._told[row.id] = row.version
            yield encoded({"type": "appointment", "appointment": appointment}).decode()

    async def _read(self, patients: Collection[str], appointment_ids: Collection[str]) -> list[AppointmentRow]:
        """The live appointments of the patients, and these, whatever they are."""
        if not patients and not appointment_ids:
            return []
        async with self._services.unit_of_work() as work:
            appointments = Appointments(work.connection)
            rows = []
            if patients:
                rows = await appointments.search(
                    AppointmentSearch(limit=LIVE_MAX, patient_ids=sorted(patients), statuses=LIVE)
                )
            known = {row.id for row in rows}
            return rows + await appointments.get_many([each for each in appointment_ids if each not in known])
