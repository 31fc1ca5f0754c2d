"""Calendar files as two programs read them, and the secret links to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import icalendar
import pytest
import vobject
from sqlalchemy import text

from tests.integration.practice import Practice, days_on, instant

pytestmark = pytest.mark.asyncio(loop_scope="module")

REASON = "It hurts, and nobody may know."


async def fetched(practice: Practice, path: str, **headers: str) -> httpx.Response:
    """What a calendar program gets, which signs in nowhere."""
    return await practice.send(None, "GET", path, **headers)


def events(answer: httpx.Response) -> list[Any]:
    """The visits of a file, as one reader has them; another one has to agree."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/calendar; charset=utf-8"
    assert all(len(line) <= 75 for line in answer.content.split(b"\r\n")), "lines are folded (RFC 5545, 3.1)"
    found: list[Any] = list(icalendar.Calendar.from_ical(answer.content).walk("VEVENT"))
    other = vobject.readOne(answer.text)
    others = {each.uid.value: each for each in other.contents.get("vevent", [])}
    for event in found:
        twin = others[event["UID"]]
        assert twin.dtstart.value.astimezone(UTC) == event["DTSTART"].dt.astimezone(UTC)
        assert twin.dtend.value.astimezone(UTC) == event["DTEND"].dt.astimezone(UTC)
        assert int(twin.sequence.value) == event["SEQUENCE"]
        assert twin.status.value == event["STATUS"]
    assert len(others) == len(found)
    return found


async def test_a_visit_as_a_file(practice: Practice) -> None:
    doctor, slots = await practice.doctor_with_slots(2)
    patient, stranger = await practice.people.patient(), await practice.people.patient()
    visit = await practice.book(patient, slots[0], reason=REASON)
    path = f"/v1/appointments/{visit['id']}.ics"

    answer = await practice.send(patient, "GET", path)
    (event,) = events(answer)
    assert event["UID"] == f"{visit['id']}@zapis"
    assert event["DTSTART"].dt == instant(visit["start"])
    assert event["DTSTART"].params["TZID"] == "Europe/Berlin"
    assert "BEGIN:VTIMEZONE" in answer.text
    assert (event["SEQUENCE"], event["STATUS"]) == (1, "CONFIRMED")
    assert "park" in event["LOCATION"]
    assert "hurts" not in answer.text
    assert not any(specialty in answer.text.lower() for specialty in ("cardiology", "medicine"))
    again = await practice.send(patient, "GET", path, if_none_match=answer.headers["etag"])
    assert again.status_code == 304

    await practice.change(patient, visit, "reschedule", {"slot_id": slots[1]})
    (moved,) = events(await practice.send(patient, "GET", path))
    assert (moved["UID"], moved["SEQUENCE"]) == (event["UID"], 2)
    await practice.change(patient, visit, "cancel")
    (cancelled,) = events(await practice.send(patient, "GET", path))
    assert (cancelled["SEQUENCE"], cancelled["STATUS"]) == (3, "CANCELLED")

    for who, status in ((stranger, 404), (None, 401), (doctor, 200), (practice.admin, 200)):
        assert (await practice.send(who, "GET", path)).status_code == status
    assert (await practice.send(patient, "GET", "/v1/appointments/nothing.ics")).status_code == 422


async def test_the_clocks_change_within_a_file(practice: Practice) -> None:
    doctor = await practice.doctor()
    patient = await practice.people.patient()
    starts = [days_on(3), days_on(160)]  # Winter and summer, whichever it is now.
    for slot in await practice.open_slots(doctor, *starts):
        await practice.book(patient, slot)
    link = await practice.post(patient, "/v1/me/calendar-links", expect=201)
    found = events(await fetched(practice, urlsplit(link["url"]).path))
    assert [event["DTSTART"].dt.astimezone(UTC) for event in found] == starts


async def test_a_link_is_its_users_and_can_be_revoked(practice: Practice) -> None:
    doctor, slots = await practice.doctor_with_slots(3)
    patient, stranger = await practice.people.patient(), await practice.people.patient()
    visit = await practice.book(patient, slots[0], reason=REASON)
    await practice.book(stranger, slots[1])
    link = await practice.post(patient, "/v1/me/calendar-links", expect=201)
    path = urlsplit(link["url"]).path
    behind_tls = await practice.send(patient, "POST", "/v1/me/calendar-links", x_forwarded_proto="https")
    assert urlsplit(behind_tls.json()["url"]).scheme == "https"
    await practice.send(patient, "DELETE", f"/v1/me/calendar-links/{behind_tls.json()['id']}")

    answer = await fetched(practice, path)
    assert [event["UID"] for event in events(answer)] == [f"{visit['id']}@zapis"]
    assert "private" in answer.headers["cache-control"]
    assert (await fetched(practice, path, if_none_match=answer.headers["etag"])).status_code == 304
    of_doctor = await practice.post(doctor, "/v1/me/calendar-links", expect=201)
    day = await fetched(practice, urlsplit(of_doctor["url"]).path)
    assert len(events(day)) == 2
    assert patient.patient_id not in day.text

    listed = await practice.get(patient, "/v1/me/calendar-links")
    assert listed["items"] == [{"id": link["id"], "created_at": link["created_at"]}]
    assert (await practice.send(stranger, "DELETE", f"/v1/me/calendar-links/{link['id']}")).status_code == 404
    assert (await practice.send(patient, "DELETE", f"/v1/me/calendar-links/{link['id']}")).status_code == 204
    assert (await fetched(practice, path)).status_code == 404
    for wrong in ("x" * 43, "x" * 101, "%00"):
        assert (await fetched(practice, f"/v1/calendars/{wrong}.ics")).status_code in (404, 422)

    for _ in range(10):
        await practice.post(patient, "/v1/me/calendar-links", expect=201)
    refused = await practice.send(patient, "POST", "/v1/me/calendar-links")
    assert (refused.status_code, refused.json()["code"]) == (409, "limit_reached")


async def test_of_many_visits_those_nearest_to_today_are_in_the_file(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for two on either side of today."""
    monkeypatch.setattr("api.ical.router.VISITS_MAX", 2)
    doctor = await practice.doctor()
    patient = await practice.people.patient()
    slots = await practice.open_slots(doctor, *(days_on(day) for day in range(1, 7)))
    visits = [await practice.book(patient, slot) for slot in slots]
    async with practice.api.services.unit_of_work() as work:
        earlier = "SET starts_at = starts_at - interval '9 days', ends_at = ends_at - interval '9 days'"
        for table, name in (("appointment", "id"), ("slot", "slot_id")):
            await work.connection.execute(
                text(f"UPDATE {table} {earlier} WHERE id = ANY (CAST(:ids AS uuid[]))"),
                {"ids": [visit[name] for visit in visits[:3]]},
            )
    link = await practice.post(patient, "/v1/me/calendar-links", expect=201)
    found = events(await fetched(practice, urlsplit(link["url"]).path))
    assert sorted(event["UID"].removesuffix("@zapis") for event in found) == sorted(
        visit["id"] for visit in (*visits[1:3], *visits[3:5])
    )


async def test_a_cancelled_visit_stays_in_the_file_for_a_while(practice: Practice) -> None:
    _, slots = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    visit = await practice.book(patient, slots[0])
    await practice.change(patient, visit, "cancel")
    link = await practice.post(patient, "/v1/me/calendar-links", expect=201)
    (event,) = events(await fetched(practice, urlsplit(link["url"]).path))
    assert event["STATUS"] == "CANCELLED"
    assert event["DTSTAMP"].dt - datetime.now(UTC) < timedelta(minutes=1)


async def test_an_empty_file_is_a_file(practice: Practice) -> None:
    patient = await practice.people.patient()
    link = await practice.post(patient, "/v1/me/calendar-links", expect=201)
    answer = await fetched(practice, urlsplit(link["url"]).path)
    assert (answer.status_code, list(icalendar.Calendar.from_ical(answer.content).walk("VEVENT"))) == (200, [])
