from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import select, update

from persistence.identifiers import new_id
from persistence.tables import app_user, doctor
from tests.integration.application import Application
from tests.integration.clinic import code, days_on, open_clinic, pointers, weekly


async def test_what_is_made_is_listed_at_once_and_page_by_page(api: Application) -> None:
    clinic = await open_clinic(api)
    assert (await clinic.get("/v1/locations")) == {"items": [], "next_cursor": None}
    ids = [await clinic.location(f"Clinic {number}") for number in range(3)]
    first = await clinic.get("/v1/locations", limit=2)
    assert [each["id"] for each in first["items"]] == ids[:2]
    assert first["items"][0] == {
        "id": ids[0],
        "name": "Clinic 0",
        "address": "Parkstrasse 1",
        "timezone": "Europe/Berlin",
    }
    second = await clinic.get("/v1/locations", limit=2, cursor=first["next_cursor"])
    assert ([each["id"] for each in second["items"]], second["next_cursor"]) == (ids[2:], None)

    price = {"amount_minor": 4500, "currency": "EUR"}
    paid = await clinic.post("/v1/admin/services", {"name": "Consultation", "minutes": 30, "price": price})
    free = await clinic.post("/v1/admin/services", {"name": "Check-up", "minutes": 15})
    assert (await clinic.get("/v1/services"))["items"] == [paid, free]
    assert (paid["price"], free["price"]) == (price, None)

    answer = await api.http.get("/v1/services", params={"cursor": first["next_cursor"]})
    assert pointers(answer) == ["/query/cursor"]
    for bad in ({"cursor": "x"}, {"limit": 0}, {"limit": 201}, {"limit": "many"}):
        assert (await api.http.get("/v1/locations", params=bad)).status_code == 422


async def test_who_has_the_newest_already_is_told_so(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id = await clinic.doctor("dr.house", await clinic.location())
    for path in ("/v1/locations", "/v1/services", "/v1/specialties", "/v1/doctors", f"/v1/doctors/{doctor_id}"):
        answer = await api.http.get(path)
        assert answer.status_code == 200
        as_of = datetime.fromisoformat(answer.headers["x-as-of"])
        assert timedelta(0) <= datetime.now(UTC) - as_of < timedelta(seconds=10)
        again = await api.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
        assert "x-as-of" in again.headers
    await clinic.api.http.patch(f"/v1/admin/doctors/{doctor_id}", json={"name": "Greg House"}, headers=clinic.admin)
    changed = await api.http.get(f"/v1/doctors/{doctor_id}", headers={"If-None-Match": answer.headers["etag"]})
    assert (changed.status_code, changed.json()["name"]) == (200, "Greg House")


async def test_doctors_are_found_by_name_specialty_and_place(api: Application) -> None:
    clinic = await open_clinic(api)
    park, river = await clinic.location("Park"), await clinic.location("River")
    anna = await clinic.doctor("anna", park, name="Алёна Семёнова", specialties=["cardiology", "surgery"])
    gregory = await clinic.doctor("gregory", park, river, name="Gregory House")
    jose = await clinic.doctor("jose", river, name="José García-Núñez", specialties=["surgery"])

    async def found(**params: str) -> list[str]:
        return [each["id"] for each in (await clinic.get("/v1/doctors", **params))["items"]]

    assert await found() == [anna, gregory, jose]
    assert await found(specialty="surgery") == [anna, jose]
    assert await found(specialty="Surgery") == []
    assert await found(location_id=river) == [gregory, jose]
    assert await found(location_id=new_id()) == []
    assert await found(q="алена") == await found(q="СЕМЁН") == [anna]
    assert await found(q="nunez jos") == [jose]
    assert await found(q="ouse") == []
    assert await found(q="g") == []
    assert await found(q="g", specialty="surgery", location_id=river) == []
    assert await found(q="ga", specialty="surgery", location_id=river) == [jose]
    assert (await clinic.get("/v1/specialties"))["items"] == ["cardiology", "surgery"]

    first = await clinic.get("/v1/doctors", limit=2)
    rest = await clinic.get("/v1/doctors", limit=2, cursor=first["next_cursor"])
    assert [each["id"] for each in [*first["items"], *rest["items"]]] == [anna, gregory, jose]
    assert rest["next_cursor"] is None

    assert pointers(await api.http.get("/v1/doctors", params={"q": "-"})) == ["/query/q"]
    assert pointers(await api.http.get("/v1/doctors", params={"location_id": "park"})) == ["/query/location_id"]
    assert pointers(await api.http.get("/v1/doctors", params={"specialty": ""})) == ["/query/specialty"]
    assert code(await api.http.get(f"/v1/doctors/{new_id()}")) == (404, "not_found")
    assert (await api.http.get("/v1/doctors/house")).status_code == 422


async def test_a_doctors_name_is_nowhere_in_clear(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id = await clinic.doctor("dr.house", await clinic.location())
    async with api.services.unit_of_work() as work:
        row = (await work.connection.execute(select(doctor).where(doctor.c.id == doctor_id))).one()
        assert b"House" not in row.sealed
        assert all(len(each) == 32 for each in row.search)
        # Erased with the account: nobody finds the doctor any more.
        await work.connection.execute(update(app_user).where(app_user.c.id == row.user_id).values(data_key=None))
    assert (await clinic.get("/v1/doctors"))["items"] == []
    assert code(await api.http.get(f"/v1/doctors/{doctor_id}")) == (404, "not_found")


async def test_slots_on_the_days_of_their_locations(api: Application) -> None:
    clinic = await open_clinic(api)
    berlin, auckland = await clinic.location(), await clinic.location("Harbour", "Pacific/Auckland")
    day = days_on(5)
    everywhere = {}
    for login, location_id in (("hans", berlin), ("aroha", auckland)):
        doctor_id = await clinic.doctor(login, location_id)
        everywhere[location_id] = doctor_id
        # The first and the last half hour of the day, on the clock there.
        await clinic.template(
            doctor_id, location_id, weekly(day=day, start="00:00", slots=1), weekly(day=day, start="23:30", slots=1)
        )
        await clinic.publish(doctor_id, day, day)
    days = {"from": day.isoformat(), "to": day.isoformat()}
    slots = await clinic.slots(**days)
    assert [each["location_id"] for each in slots] == [auckland, berlin] * 2
    for each in slots:
        assert each["timezone"] == ("Europe/Berlin" if each["location_id"] == berlin else "Pacific/Auckland")
        assert datetime.fromisoformat(each["start"]).astimezone(ZoneInfo(each["timezone"])).date() == day
        assert set(each) == {"id", "doctor_id", "location_id", "service_id", "timezone", "start", "end", "status"}
    assert await clinic.slots(**days, doctor_id=everywhere[berlin]) == [
        each for each in slots if each["location_id"] == berlin
    ]
    assert await clinic.slots(**days, location_id=auckland) == [
        each for each in slots if each["location_id"] == auckland
    ]
    assert await clinic.slots(**days, location_id=new_id()) == []
    before = (day - timedelta(days=1)).isoformat()
    assert await clinic.slots(**{"from": before, "to": before}) == []
    assert len(await clinic.slots()) == 4


async def test_slots_by_service_specialty_and_status_page_by_page(api: Application) -> None:
    clinic = await open_clinic(api)
    park = await clinic.location()
    check_up = (await clinic.post("/v1/admin/services", {"name": "Check-up", "minutes": 30}))["id"]
    surgery = (await clinic.post("/v1/admin/services", {"name": "Surgery", "minutes": 30}))["id"]
    day = days_on(5)
    anybody = await clinic.doctor("anybody", park, service_ids=[check_up], specialties=["general"])
    surgeon = await clinic.doctor("surgeon", park, specialties=["surgery"])
    await clinic.template(anybody, park, weekly(day=day, slots=3))
    await clinic.template(surgeon, park, weekly(day=day, slots=2, service_id=surgery))
    for doctor_id in (anybody, surgeon):
        await clinic.publish(doctor_id, day, day)

    async def owners(**params: str) -> list[str]:
        return [each["doctor_id"] for each in await clinic.slots(**params)]

    assert await owners(service_id=check_up) == [anybody] * 3
    # Who has slots for a service offers it.
    assert await owners(service_id=surgery) == [surgeon] * 2
    assert (await clinic.get(f"/v1/doctors/{surgeon}"))["service_ids"] == [surgery]
    assert await owners(service_id=new_id()) == []
    assert await owners(specialty="general") == [anybody] * 3
    assert await owners(specialty="general", doctor_id=surgeon) == []

    slots = await clinic.slots()
    assert slots == sorted(slots, key=lambda each: (each["start"], each["id"]))
    seen, cursor = [], None
    while True:
        page = await clinic.get("/v1/slots", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["items"]) == 2
    assert seen == slots

    answer = await api.http.get("/v1/slots", params={"doctor_id": anybody})
    tag = {"If-None-Match": answer.headers["etag"]}
    assert (await api.http.get("/v1/slots", params={"doctor_id": anybody}, headers=tag)).status_code == 304
    taken = answer.json()["items"][0]["id"]
    await api.register("anna")
    anna = await api.sign_in("anna")
    hold = await api.http.post("/v1/holds", json={"slot_id": taken}, headers=anna)
    changed = await api.http.get("/v1/slots", params={"doctor_id": anybody}, headers=tag)
    assert (changed.status_code, len(changed.json()["items"])) == (200, 2)
    (held,) = await clinic.slots(status="held")
    assert (held["id"], held["status"]) == (taken, "held")
    assert len(await clinic.slots(status="held,free")) == 5
    await api.http.delete(f"/v1/holds/{hold.json()['id']}", headers=anna)
    assert await clinic.slots(status="held") == []
    assert {each["status"] for each in await clinic.slots()} == {"free"}
    assert len(await clinic.slots()) == 5


async def test_slots_that_cannot_be_asked_for(api: Application) -> None:
    for params, pointer in (
        ({"from": "2026-11-24", "to": "2026-11-23"}, "/query/to"),
        ({"from": "2026-11-01", "to": "2027-01-02"}, "/query/to"),
        ({"to": days_on(63).isoformat()}, "/query/to"),
        ({"from": "yesterday"}, "/query/from"),
        ({"from": "0"}, "/query/from"),
        ({"from": "9999-12-31"}, "/query/from"),
        ({"from": "2026-11-24T09:00:00Z"}, "/query/from"),
        ({"status": "gone"}, "/query/status"),
        ({"status": "free,"}, "/query/status"),
        ({"doctor_id": "house"}, "/query/doctor_id"),
        ({"service_id": ""}, "/query/service_id"),
        ({"cursor": "AAAA"}, "/query/cursor"),
    ):
        assert pointers(await api.http.get("/v1/slots", params=params)) == [pointer], params
    assert (await api.http.get("/v1/slots", params={"specialty": "a\x00b"})).status_code == 422
    assert (await api.http.get("/v1/slots?specialty=%ff%fe")).status_code == 200
    assert (await api.http.get("/v1/slots", params={"doctor_id": new_id()})).json()["items"] == []
