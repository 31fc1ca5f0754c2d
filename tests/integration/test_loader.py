"""Loading a clinic into the real application: everything once, whatever went before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Table, func, select

from cluster.clinic import parse, read_demo
from cluster.clinic_parts import Clinic
from cluster.loader import LoadFailed, LoadReport, load
from cluster.public_api import Account, PublicApi
from cluster.settings import Settings
from persistence.tables import patient
from tests.integration.application import Application, running

ADMIN, ADMIN_PASSWORD, PASSWORD = "admin", "Admin-Horse-9", "Every-Account-7"
TODAY = datetime.now(UTC).date()
DEMO = read_demo(today=TODAY)
SMALL = b"""\
publish: {days: 8}
locations: [{name: North, address: 1 North Road, timezone: Europe/Moscow}]
services: [{name: Talk, minutes: 30, price: {amount_minor: 5000, currency: EUR}}]
doctors:
  - login: dr.one
    name: Ada One
    email: one@example.org
    phone: "+1 202 555 0101"
    specialties: [cardiology]
    locations: [North]
    services: [Talk]
    schedules:
      - name: week
        location: North
        valid_to: today+300
        rules:
          - {weekday: tue, start: 10:00, slot_minutes: 30, slots: 4, break_minutes: 5, service: Talk}
          - {weekday: fri, start: 10:00, slot_minutes: 30, slots: 4}
patients:
  - login: pat
    name: Pat Patient
    birth_date: 1980-02-29
    email: pat@example.com
    phone: "+12025550102"
    children: [{name: Pat Patient, birth_date: 2020-01-01}]
visits:
  - {patient: pat, doctor: dr.one, day: 1, time: 10:00, reason: A cough}
  - {patient: pat, child: Pat Patient, doctor: dr.one, day: 1, slot: 1}
"""


def small(today: date = TODAY) -> Clinic:
    return parse(SMALL, source="small.yaml", today=today)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Application]:
    changed = {"rate_limit": 0, "admin_login": ADMIN, "admin_password": ADMIN_PASSWORD}
    async with running(settings.model_copy(update=changed)) as application:
        yield application


class Cut(Exception):
    """The loading process was killed."""


class CutOff(httpx.ASGITransport):
    """Lets so many requests through; the next is acted on, its answer is lost and nothing comes after it."""

    def __init__(self, api: Application, requests: int) -> None:
        super().__init__(api.app)
        self.left = requests

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.left < 0:
            raise Cut
        self.left -= 1
        response = await super().handle_async_request(request)
        if self.left < 0:
            raise Cut
        return response


async def into(
    api: Application, clinic: Clinic, through: httpx.ASGITransport | None = None, **changed: Any
) -> LoadReport:
    given: dict[str, Any] = {
        "url": "http://zapis.test",
        "admin_login": ADMIN,
        "admin_password": ADMIN_PASSWORD,
        "account_password": PASSWORD,
        "patience_s": 30,
        "transport": through or httpx.ASGITransport(api.app),
    }
    return await load(clinic, **(given | changed))


async def contents(api: Application) -> dict[str, Any]:
    """How many there are of everything that a clinic file makes."""
    public = PublicApi(api.http)
    admin = Account(public, ADMIN, ADMIN_PASSWORD)
    slots = await public.items(
        "/v1/slots", {"status": "free,booked,held,blocked,cancelled", "to": DEMO.publish_to.isoformat()}
    )
    doctors = await public.items("/v1/doctors")
    templates = [await admin.items(f"/v1/admin/doctors/{doctor['id']}/templates") for doctor in doctors]
    return {
        "locations": len(await public.items("/v1/locations")),
        "services": len(await public.items("/v1/services")),
        "doctors": len(doctors),
        "templates": sum(map(len, templates)),
        "slots": len(slots),
        "users": len(await admin.items("/v1/admin/users")),
        "patients": await _count(api, patient),
        "appointments": len(await admin.items("/v1/appointments")),
    }


async def _count(api: Application, table: Table) -> int:
    async with api.services.unit_of_work() as work:
        rows = await work.connection.execute(select(func.count()).select_from(table))
        return int(rows.scalar_one())


async def test_the_demo_is_loaded_once(api: Application) -> None:
    first = await into(api, DEMO)
    before = await contents(api)
    again = await into(api, DEMO)

    assert first.refused == again.refused == []
    assert first.doctors.made == 12
    assert first.patients.made == 20
    assert first.visits.made == 14
    assert first.slots.made > 2000
    assert again.made == 0
    assert again.slots.kept == first.slots.made
    assert await contents(api) == before
    assert before["users"] == 1 + 12 + 20
    assert before["patients"] == 20 + sum(len(patient.children) for patient in DEMO.patients)


async def test_what_the_file_says_is_what_is_there(api: Application) -> None:
    report = await into(api, small())
    public = PublicApi(api.http)
    (doctor,) = await public.items("/v1/doctors")
    (location,) = await public.items("/v1/locations")
    (service,) = await public.items("/v1/services")
    admin = Account(public, ADMIN, ADMIN_PASSWORD)
    (template,) = await admin.items(f"/v1/admin/doctors/{doctor['id']}/templates")
    own, childs = sorted(
        await Account(public, "pat", PASSWORD).items("/v1/appointments"), key=lambda visit: visit["start"]
    )

    assert report.refused == []
    assert location["timezone"] == "Europe/Moscow"
    assert service["price"] == {"amount_minor": 5000, "currency": "EUR"}
    assert doctor["location_ids"] == [location["id"]]
    assert template["name"] == "week"
    assert template["rules"][0] == {
        "weekday": "tue",
        "start": "10:00",
        "slot_minutes": 30,
        "slots": 4,
        "break_minutes": 5,
        "service_id": service["id"],
    }
    # The child has the name of its parent, and is another patient all the same.
    assert own["patient_id"] != childs["patient_id"]
    assert [datetime.fromisoformat(visit["start"]) for visit in (own, childs)] == [
        visit.start for visit in small().visits
    ]
    assert (own["reason"], childs["reason"]) == ("A cough", None)


async def test_killed_anywhere_and_loaded_again_everything_is_there_once(api: Application) -> None:
    requests = 0
    while True:
        try:
            await into(api, small(), CutOff(api, requests))
            break
        except Cut:
            requests += 1
    there = await contents(api)

    assert requests > 15
    assert (there["locations"], there["services"], there["doctors"], there["templates"]) == (1, 1, 1, 1)
    assert (there["users"], there["patients"], there["appointments"]) == (3, 2, 2)
    assert (await into(api, small())).made == 0


async def test_a_slot_that_is_gone_is_replaced_by_the_next(api: Application) -> None:
    bare = parse(SMALL[: SMALL.index(b"visits:")], source="small.yaml", today=TODAY)
    await into(api, bare)
    wanted = small().visits[0].start
    await api.register("first")
    first = Account(PublicApi(api.http), "first", "Correct-Horse-9")
    slots = await PublicApi(api.http).items("/v1/slots", {"to": DEMO.publish_to.isoformat()})
    (slot,) = (slot["id"] for slot in slots if datetime.fromisoformat(slot["start"]) == wanted)
    await first.book(slot, key="first")

    report = await into(api, small())

    assert (report.refused, report.visits.made) == ([], 2)


async def test_a_patient_with_a_password_of_their_own_is_left_alone(api: Application) -> None:
    await api.register("pat")

    report = await into(api, small())

    assert report.refused == ["patient pat: there with another password, so its children and visits are left alone"]
    assert (report.doctors.made, report.patients.kept, report.visits.made) == (1, 1, 0)


async def test_a_doctors_login_that_is_somebody_elses_is_told(api: Application) -> None:
    await api.register("dr.one")

    report = await into(api, small())

    assert report.refused == ["doctor dr.one: the login is another person's"]
    assert report.patients.made == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"admin_password": "wrong"}, "refuses: 401"),
        ({"account_password": None}, "need a password"),
        ({"url": "http://127.0.0.1:9", "transport": None, "patience_s": 1}, "does not answer"),
        ({"url": "ftp://127.0.0.1", "transport": None}, "does not answer"),
        ({"url": "http://[::1", "transport": None}, "Invalid port"),
        ({"transport": httpx.MockTransport(lambda request: httpx.Response(200, text="hello"))}, "is that a zapis"),
    ],
)
async def test_what_cannot_begin_changes_nothing(api: Application, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        await into(api, small(), **changed)
    assert (await contents(api))["users"] == 1
