"""A clinic to test with, set up through the public interface as an administrator would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx

from actors.availability import Weekday
from actors.messages import Role
from api.accounts.service import create_user
from tests.integration.application import PASSWORD, Application

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """An application with an administrator, who sets things up."""

    api: Application
    admin: dict[str, str]

    async def post(self, path: str, body: Any = None, *, status: int = 201, key: str | None = None) -> JSON:
        """What the administrator's request is answered with."""
        headers = self.admin if key is None else self.admin | {"Idempotency-Key": key}
        answer = await self.api.http.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        content: JSON = answer.json()
        return content

    async def get(self, path: str, **params: Any) -> JSON:
        """What the administrator is told."""
        answer = await self.api.http.get(path, params=params, headers=self.admin)
        assert answer.status_code == 200, answer.text
        content: JSON = answer.json()
        return content

    async def location(self, name: str = "Clinic at the park", timezone: str = "Europe/Berlin") -> str:
        """The id of a new location."""
        body = {"name": name, "address": "Parkstrasse 1", "timezone": timezone}
        return str((await self.post("/v1/admin/locations", body))["id"])

    async def doctor(self, login: str, *location_ids: str, **changed: Any) -> str:
        """The id of a new doctor."""
        body = new_doctor(login, *location_ids, **changed)
        return str((await self.post("/v1/admin/doctors", body))["id"])

    async def template(self, doctor_id: str, location_id: str, *rules: JSON, **changed: Any) -> str:
        """The id of a new template."""
        body = {"name": "Days", "location_id": location_id, "valid_from": "2020-01-01", "rules": list(rules)} | changed
        return str((await self.post(f"/v1/admin/doctors/{doctor_id}/templates", body))["id"])

    async def publish(self, doctor_id: str, first_day: date, last_day: date, **more: Any) -> JSON:
        """What became of the slots."""
        body = {"from": first_day.isoformat(), "to": last_day.isoformat()} | more
        return await self.post(f"/v1/admin/doctors/{doctor_id}/publish", body, status=200)

    async def slots(self, **params: Any) -> list[JSON]:
        """The slots that anybody sees."""
        answer = await self.api.http.get("/v1/slots", params=params)
        assert answer.status_code == 200, answer.text
        items: list[JSON] = answer.json()["items"]
        return items

    async def working_doctor(self, login: str = "dr.house", *, slots: int = 4, **changed: Any) -> tuple[str, date]:
        """A doctor with that many slots of half an hour from nine on the day returned, which is to come."""
        location_id = await self.location()
        doctor_id = await self.doctor(login, location_id, **changed)
        day = days_on(3)
        await self.template(doctor_id, location_id, weekly(slots=slots))
        await self.publish(doctor_id, day, day)
        return doctor_id, day


async def open_clinic(api: Application) -> Clinic:
    """A clinic without anything but an administrator."""
    async with api.services.unit_of_work() as work:
        await create_user(
            work,
            login="chief",
            password_hash=await api.app.state.gate.passwords.hash(PASSWORD),
            name="Chief",
            role=Role.ADMIN,
            verified=True,
        )
    return Clinic(api=api, admin=await api.sign_in("chief"))


def new_doctor(login: str, *location_ids: str, **changed: Any) -> JSON:
    """A body that makes a doctor."""
    number = sum(login.encode()) % 10_000
    return {
        "login": login,
        "password": PASSWORD,
        "name": "Gregory House",
        "email": f"{login}@clinic.example",
        "phone": f"+49 30 90{number:04}",
        "specialties": ["cardiology"],
        "location_ids": list(location_ids),
    } | changed


def weekly(*, slots: int = 4, start: str = "09:00", day: date | None = None, **more: Any) -> JSON:
    """A rule for the weekday of ``day``, by default ``days_on(3)``."""
    return {"weekday": Weekday.of(day or days_on(3)), "start": start, "slot_minutes": 30, "slots": slots} | more


def days_on(number: int) -> date:
    """The day that many days from today."""
    return datetime.now(UTC).date() + timedelta(days=number)


def code(answer: httpx.Response) -> tuple[int, str]:
    """The status and code of a refusal."""
    return answer.status_code, answer.json()["code"]


def pointers(answer: httpx.Response) -> list[str]:
    """Where a refused body is wrong."""
    assert answer.status_code == 422, answer.text
    return [error["pointer"] for error in answer.json().get("errors", ())]
