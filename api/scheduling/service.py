"""Between a request about holds or appointments and the calendars: who may, whose calendar it is, what is told."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from fastapi import Request

from actors.client import ActorLost
from actors.errors import NotLive, VersionConflict
from actors.messages import (
    BookAppointment,
    CancelAppointment,
    FulfilAppointment,
    HoldSlot,
    RecordArrival,
    RecordNoShow,
    ReleaseHold,
    RescheduleAppointment,
    ReserveForMove,
    Role,
)
from api.dependencies import Principal, services_of
from api.errors import Problem, invalid
from api.scheduling import commands, schemas
from api.scheduling.appointment_view import AppointmentView, instant, reason_place
from api.scheduling.slot_owners import SlotOwners
from persistence.identifiers import new_id
from persistence.repositories.appointments import AppointmentRow, Appointments, AppointmentSearch, HoldRow
from persistence.sealed import DataKey, Unreadable, patient_owner

ATTEMPTS_MAX = 4
"""How often a command follows an appointment that is moving from calendar to calendar."""
_MOVES = uuid.UUID("01a203db-5120-7014-85d5-19da62801f5c")

VisitCommand = type[RecordArrival] | type[FulfilAppointment] | type[RecordNoShow]
Send = Callable[[AppointmentRow], Awaitable[Mapping[str, Any]]]
"""Sends a command about an appointment to the calendar that has it; gives the answer."""


class Scheduling:
    """Serves one request about holds or appointments.

    A doctor is staff in their own calendar. In another's they do what any patient may: see, move and cancel the visits
    of those whom they may book for as a person, within the cut-offs; and they book there for whomever they send on.
    """

    def __init__(self, request: Request, principal: Principal) -> None:
        self._request = request
        self._principal = principal
        self._services = services_of(request)
        self._view = AppointmentView(self._services, request.app.state.location_directory, principal)
        self._slot_owners: SlotOwners = request.app.state.slot_owners

    # Holds

    async def hold(self, body: schemas.HoldRequest, key: str | None, prefer: str | None) -> dict[str, Any]:
        """Keep a slot for the caller."""
        doctor_id = await self._doctor_of(body.slot_id)
        header = self._addressed(self._header(doctor_id, body.model_dump(), key, prefer=prefer), doctor_id)
        command = HoldSlot(**header, hold_id=new_id(), slot_id=body.slot_id)
        answer = await commands.run(self._services, command, key=key)
        held: dict[str, Any] = dict(answer["hold"])
        held["expires_at"] = instant(held["expires_at"])
        return held

    async def holds(self, now: datetime) -> list[HoldRow]:
        """The caller's holds."""
        async with self._services.unit_of_work() as work:
            return await Appointments(work.connection).holds_of(self._principal.user_id, now)

    async def release(self, hold_id: str) -> None:
        """End one of the caller's holds."""
        async with self._services.unit_of_work() as work:
            held = await Appointments(work.connection).hold(hold_id)
        if held is None or held.user_id != self._principal.user_id:
            raise Problem("not_found")
        header = self._addressed(self._header(held.doctor_id, None, None), held.doctor_id)
        await commands.run(self._services, ReleaseHold(**header, hold_id=hold_id))

    # Appointments

    async def book(self, body: schemas.BookingRequest, key: str | None, prefer: str | None) -> dict[str, Any]:
        """Book a visit."""
        patient_id, data_key = await self._patient_to_book_for(body.patient_id)
        doctor_id = await self._doctor_of(body.slot_id)
        header = self._header(doctor_id, body.model_dump(), key, body.override_reason, prefer)
        appointment_id = new_id()
        sealed = None
        if body.reason is not None:
            sealed = commands.encode_sealed(data_key.seal(body.reason.encode(), reason_place(patient_id)))
        command = BookAppointment(
            **self._addressed(header, doctor_id),
            appointment_id=appointment_id,
            slot_id=body.slot_id,
            patient_id=patient_id,
            hold_id=body.hold_id,
            reason=sealed,
        )
        answer = await commands.run(self._services, command, key=key)
        return await self._view.answered(answer["appointment"], body.reason)

    async def get(self, appointment_id: str) -> dict[str, Any]:
        """One appointment that the caller may see."""
        row = await self.visible(appointment_id)
        return (await self._view.shown([row]))[0]

    async def search(self, search: AppointmentSearch) -> list[AppointmentRow]:
        """Those that the caller may see, of those asked for."""
        async with self._services.unit_of_work() as work:
            return await Appointments(work.connection).search(search)

    async def reschedule(
        self,
        appointment_id: str,
        body: schemas.RescheduleRequest,
        if_version: int | None,
        key: str | None,
        prefer: str | None,
    ) -> dict[str, Any]:
        """Move a visit to another slot, of the same doctor or of another.

        An override counts in both calendars, so only who is staff in both may give a reason for one.
        """
        target_doctor_id = await self._doctor_of(body.slot_id)
        unaddressed = self._header(target_doctor_id, body.model_dump(), key, body.override_reason, prefer)

        async def send(row: AppointmentRow) -> Mapping[str, Any]:
            self._addressed(unaddressed, target_doctor_id)
            header = self._addressed(unaddressed, row.doctor_id) | {"doctor_id": target_doctor_id}
            if row.doctor_id == target_doctor_id:
                return await commands.run(
                    self._services,
                    RescheduleAppointment(
                        **header,
                        appointment_id=row.id,
                        slot_id=body.slot_id,
                        hold_id=body.hold_id,
                        if_version=if_version,
                    ),
                    key=key,
                )
            if not self._services.policy.cross_doctor_moves:
                raise Problem("forbidden", "A visit cannot be moved to another doctor here.")
            reserve = ReserveForMove(
                **header,
                # Of the request, not of its key alone: under one key a move to another slot is another move.
                move_id=str(uuid.uuid5(_MOVES, f"{header['command_id']} {header['fingerprint']}")),
                slot_id=body.slot_id,
                appointment_id=row.id,
                source_doctor_id=row.doctor_id,
                hold_id=body.hold_id,
                if_version=if_version,
            )
            return await commands.move(self._services, reserve, key=key)

        return await self._follow(appointment_id, send, unaddressed, if_version, key)

    async def cancel(
        self,
        appointment_id: str,
        body: schemas.CancelRequest,
        if_version: int | None,
        key: str | None,
        prefer: str | None,
    ) -> dict[str, Any]:
        """Cancel a visit."""
        sealed = None
        if body.reason is not None:
            sealed = commands.seal_own(self._services, self._principal, body.reason, "cancel_reason")
        header = self._header("", body.model_dump(), key, body.override_reason, prefer)

        async def send(row: AppointmentRow) -> Mapping[str, Any]:
            command = CancelAppointment(
                **self._addressed(header, row.doctor_id), appointment_id=row.id, reason=sealed, if_version=if_version
            )
            return await commands.run(self._services, command, key=key)

        return await self._follow(appointment_id, send, header, if_version, key)

    async def note(
        self, kind: VisitCommand, appointment_id: str, if_version: int | None, key: str | None, prefer: str | None
    ) -> dict[str, Any]:
        """Note that the patient arrived, was seen or did not come."""
        header = self._header("", None, key, prefer=prefer)

        async def send(row: AppointmentRow) -> Mapping[str, Any]:
            addressed = self._addressed(header, row.doctor_id)
            if not addressed["requester"].staff:
                raise Problem("forbidden", "A doctor notes this in their own calendar.")
            command = kind(**addressed, appointment_id=row.id, if_version=if_version)
            return await commands.run(self._services, command, key=key)

        return await self._follow(appointment_id, send, header, if_version, key)

    # Commands

    async def command_state(self, command_id: str) -> dict[str, Any]:
        """What has become of a command of the caller's."""
        user_id = self._principal.user_id
        for last in (False, True):
            async with self._services.unit_of_work() as work:
                appointments = Appointments(work.connection)
                stored = await appointments.answer(command_id)
                on_its_way = stored is None and await appointments.open_move_of(command_id, user_id)
            if stored is not None and stored.user_id == user_id:
                return {"command_id": command_id} | await self._outcome(stored.answer)
            if stored is not None or last:
                break
            try:
                pending = on_its_way or await self._services.calendars.find_pending(command_id, user_id) is not None
            except ActorLost as failure:
                raise Problem("unavailable") from failure
            if pending:
                return {"command_id": command_id, "status": "pending"}
        raise Problem("not_found")

    async def _outcome(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        if "rejected" in answer:
            rejected = answer["rejected"]
            return {"status": "rejected", "problem": Problem(rejected["code"], rejected["detail"]).body()}
        plain = answer["done"].get("appointment")
        if plain is None:
            return {"status": "done"}
        async with self._services.unit_of_work() as work:
            row = await Appointments(work.connection).get(plain["id"])
            reason = None if row is None else await self._view.reason(work, row)
        return {"status": "done", "appointment": await self._view.answered(plain, reason)}

    async def shown(self, rows: list[AppointmentRow]) -> list[dict[str, Any]]:
        """Appointments out of the database, as the caller gets them."""
        return await self._view.shown(rows)

    # Who may, and where

    def _header(
        self,
        doctor_id: str,
        body: Mapping[str, Any] | None,
        key: str | None,
        override_reason: str | None = None,
        prefer: str | None = None,
    ) -> dict[str, Any]:
        return commands.header(
            self._request,
            self._principal,
            doctor_id=doctor_id,
            body=body,
            key=key,
            override_reason=override_reason,
            prefer=prefer,
        )

    def _addressed(self, header: Mapping[str, Any], doctor_id: str) -> dict[str, Any]:
        """The header for that doctor's calendar, from the caller as what they are in it.

        Raises:
            Problem: 403, they give an override reason and are no staff there.
        """
        requester = self._principal.requester_in(doctor_id)
        if header["override"] is not None and not requester.staff:
            raise Problem("forbidden", "A doctor passes a cut-off or a limit in their own calendar only.")
        return {**header, "doctor_id": doctor_id, "requester": requester}

    async def _doctor_of(self, slot_id: str) -> str:
        doctor_id = await self._slot_owners.doctor_of(slot_id)
        if doctor_id is None:
            raise Problem("not_found", "There is no such slot.")
        return doctor_id

    async def _patient_to_book_for(self, asked_for: str | None) -> tuple[str, DataKey]:
        """The patient, and the key that seals what concerns it.

        Raises:
            Problem: no such patient, or not one that the caller may book for.
        """
        principal, vault = self._principal, self._services.vault
        patient_id = asked_for or principal.patient_id
        if patient_id is None:
            raise invalid("/patient_id", "Staff have to say for whom they book.")
        try:
            if principal.books_for(patient_id):
                return patient_id, principal.patient_data_key(vault, patient_id)
            if principal.staff:
                async with self._services.unit_of_work() as work:
                    keys = await work.patients.wrapped_keys([patient_id])
                return patient_id, vault.data_key(patient_owner(patient_id), keys.get(patient_id))
        except Unreadable:
            pass
        raise Problem("not_found", "There is no such patient.")

    async def visible(self, appointment_id: str) -> AppointmentRow:
        """The appointment as committed.

        Raises:
            Problem: there is none, or the caller may not see it.
        """
        async with self._services.unit_of_work() as work:
            row = await Appointments(work.connection).get(appointment_id)
        if row is None or not self._may_see(row):
            raise Problem("not_found", "There is no such appointment.")
        return row

    def _may_see(self, row: AppointmentRow) -> bool:
        principal = self._principal
        match principal.role:
            case Role.ADMIN:
                return True
            case Role.DOCTOR if principal.doctor_id == row.doctor_id:
                return True
            case _:
                return principal.books_for(row.patient_id)

    async def _follow(
        self, appointment_id: str, send: Send, header: Mapping[str, Any], if_version: int | None, key: str | None
    ) -> dict[str, Any]:
        """Send a command to the calendar that has the appointment, and after it where it has gone meanwhile.

        An appointment on its way to another doctor is taken in there first. One that is not live has left its calendar,
        so whether it is still the version asked for is seen here: that comes first (RFC 9110, 13.2.2).
        """
        try:
            row = await self.visible(appointment_id)
        except Problem:
            told = None if key is None else await self._told_before(header)
            if told is None:
                raise
            return told
        for attempt in range(ATTEMPTS_MAX):
            if row.open_move_id is not None:
                await self._services.moves.drive_on(row.open_move_id)
            try:
                answer = await send(row)
            except NotLive:
                now = await self.visible(appointment_id)
                gone_on = now.doctor_id != row.doctor_id or now.open_move_id is not None
                if not gone_on or attempt == ATTEMPTS_MAX - 1:
                    if if_version is not None and if_version != now.version:
                        raise VersionConflict from None
                    raise
                row = now
                continue
            async with self._services.unit_of_work() as work:
                reason = await self._view.reason(work, row)
            return await self._view.answered(answer["appointment"], reason)
        raise Problem("unavailable")

    async def _told_before(self, header: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to the same command: a doctor who has given a visit away does not see it any more."""
        reply = await commands.stored(
            self._services,
            command_id=header["command_id"],
            user_id=self._principal.user_id,
            fingerprint=header["fingerprint"],
        )
        if reply is None:
            return None
        plain = commands.answer_of(reply)["appointment"]
        async with self._services.unit_of_work() as work:
            row = await Appointments(work.connection).get(plain["id"])
            reason = None if row is None else await self._view.reason(work, row)
        return await self._view.answered(plain, reason)
