"""Appointments as those who may see them get them: with their reason, and for staff with their patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from api.dependencies import Principal
from api.directory.location_directory import LocationDirectory
from cluster.bootstrap import Services
from persistence.repositories.appointments import AppointmentRow
from persistence.repositories.patients import Patient
from persistence.sealed import patient_owner, place
from persistence.unit_of_work import UnitOfWork


class AppointmentView:
    """What one user sees of appointments. Whether they may is not asked here."""

    def __init__(self, services: Services, locations: LocationDirectory, principal: Principal) -> None:
        self._services = services
        self._locations = locations
        self._principal = principal

    async def answered(self, plain: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        """An appointment out of a calendar's answer, as the caller gets it."""
        shown = await self._public(plain, reason)
        if self._principal.staff:
            async with self._services.unit_of_work() as work:
                shown["patient"] = _patient(await work.patients.get(plain["patient_id"]))
        return shown

    async def shown(self, rows: list[AppointmentRow]) -> list[dict[str, Any]]:
        """Appointments out of the database, as the caller gets them."""
        async with self._services.unit_of_work() as work:
            keys = await work.patients.wrapped_keys({row.patient_id for row in rows})
            patients = await work.patients.get_many({row.patient_id for row in rows}) if self._principal.staff else {}
        shown = []
        for row in rows:
            each = await self._public(asdict(row), self._unsealed(row, keys.get(row.patient_id)))
            if self._principal.staff:
                each["patient"] = _patient(patients.get(row.patient_id))
            shown.append(each)
        return shown

    async def _public(self, plain: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        policy = self._services.policy
        start = instant(plain["start"])
        return {
            "id": plain["id"],
            "doctor_id": plain["doctor_id"],
            "patient_id": plain["patient_id"],
            "booked_by": plain["booked_by"],
            "slot_id": plain["slot_id"],
            "location_id": plain["location_id"],
            "service_id": plain["service_id"],
            "timezone": await self._locations.timezone_of(plain["location_id"]),
            "start": start,
            "end": instant(plain["end"]),
            "status": plain["status"],
            "displaced": plain["displaced"],
            "version": plain["version"],
            "reason": reason,
            "move_until": policy.move_until(start),
            "cancel_until": policy.cancel_until(start),
            "created_at": instant(plain["created_at"]),
            "updated_at": instant(plain["updated_at"]),
        }

    async def reason(self, work: UnitOfWork, row: AppointmentRow) -> str | None:
        """Why the patient comes, in clear."""
        if row.sealed_reason is None:
            return None
        keys = await work.patients.wrapped_keys([row.patient_id])
        return self._unsealed(row, keys.get(row.patient_id))

    def _unsealed(self, row: AppointmentRow, wrapped_key: bytes | None) -> str | None:
        if row.sealed_reason is None or wrapped_key is None:
            return None
        key = self._services.vault.data_key(patient_owner(row.patient_id), wrapped_key)
        return key.unseal(row.sealed_reason, reason_place(row.patient_id)).decode()


def reason_place(patient_id: str) -> bytes:
    """Reasons are tied to their patient, not to one appointment: a repeated command seals anew under another id."""
    return place("patient", patient_id, "appointment_reason")


def instant(value: str | datetime) -> datetime:
    """An instant out of a calendar's answer, which may have come as JSON."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _patient(patient: Patient | None) -> dict[str, Any] | None:
    return None if patient is None else asdict(patient)
