from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from actors.availability import Weekday
from persistence.identifiers import new_id
from persistence.tables import app_user, calendar, closure, doctor
from tests.integration.application import Application
from tests.integration.clinic import code, days_on, new_doctor, open_clinic, pointers, weekly

ID = "01a203f1-3cf2-732b-9eb8-316bba9cc488"
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/admin/locations", {"timezone": "Mars/Olympus"}, "/timezone"),
    ("/v1/admin/locations", {"timezone": "../etc/passwd"}, "/timezone"),
    ("/v1/admin/locations", {"name": "  "}, "/name"),
    ("/v1/admin/locations", {"name": "x" * 201}, "/name"),
    ("/v1/admin/locations", {"name": "a\x00b"}, "/name"),
    ("/v1/admin/locations", {"name": "a\nb"}, "/name"),
    ("/v1/admin/locations", {"address": 5}, "/address"),
    ("/v1/admin/services", {"minutes": 1441}, "/minutes"),
    ("/v1/admin/services", {"minutes": "30"}, "/minutes"),
    ("/v1/admin/services", {"price": {"amount_minor": -1, "currency": "EUR"}}, "/price/amount_minor"),
    ("/v1/admin/services", {"price": {"amount_minor": 2**70, "currency": "EUR"}}, "/price/amount_minor"),
    ("/v1/admin/services", {"price": {"amount_minor": 1, "currency": "eur"}}, "/price/currency"),
    ("/v1/admin/services", {"price": {"currency": "EUR"}}, "/price/amount_minor"),
    ("/v1/admin/doctors", {"password": "short"}, "/password"),
    ("/v1/admin/doctors", {"email": "nobody"}, "/email"),
    ("/v1/admin/doctors", {"phone": "12"}, "/phone"),
    ("/v1/admin/doctors", {"specialties": []}, "/specialties"),
    ("/v1/admin/doctors", {"specialties": ["a", "a"]}, "/specialties"),
    ("/v1/admin/doctors", {"specialties": ["x" * 101]}, "/specialties/0"),
    ("/v1/admin/doctors", {"location_ids": []}, "/location_ids"),
    ("/v1/admin/doctors", {"location_ids": [ID]}, "/location_ids/0"),
    ("/v1/admin/doctors", {"service_ids": [ID]}, "/service_ids/0"),
    ("/v1/admin/doctors", {"service_ids": ["one"]}, "/service_ids/0"),
]

CALLS = [
    ("POST", "/v1/admin/locations"),
    ("PATCH", f"/v1/admin/locations/{ID}"),
    ("POST", "/v1/admin/services"),
    ("PATCH", f"/v1/admin/services/{ID}"),
    ("POST", "/v1/admin/doctors"),
    ("PATCH", f"/v1/admin/doctors/{ID}"),
    ("POST", f"/v1/admin/doctors/{ID}/templates"),
    ("GET", f"/v1/admin/doctors/{ID}/templates"),
    ("DELETE", f"/v1/admin/doctors/{ID}/templates/{ID}"),
    ("POST", f"/v1/admin/doctors/{ID}/publish"),
    ("POST", f"/v1/admin/doctors/{ID}/closures"),
    ("GET", f"/v1/admin/doctors/{ID}/closures"),
    ("DELETE", f"/v1/admin/doctors/{ID}/closures/{ID}"),
    ("POST", f"/v1/admin/slots/{ID}/block"),
    ("POST", f"/v1/admin/slots/{ID}/unblock"),
    ("POST", f"/v1/admin/slots/{ID}/cancel"),
    ("GET", "/v1/admin/users"),
    ("PATCH", f"/v1/admin/users/{ID}"),
    ("GET", "/v1/admin/audit"),
]
OWN_CALLS = [
    ("POST", "/v1/doctor/closures"),
    ("GET", "/v1/doctor/closures"),
    ("DELETE", f"/v1/doctor/closures/{ID}"),
]
VALID: dict[str, Any] = {
    "/v1/admin/locations": {"name": "Park", "address": "Parkstrasse 1", "timezone": "Europe/Berlin"},
    "/v1/admin/services": {"name": "Check-up", "minutes": 30},
    "/v1/admin/doctors": new_doctor("dr.who", ID),
    f"/v1/admin/doctors/{ID}/templates": {
        "name": "Days",
        "location_id": ID,
        "valid_from": "2026-01-01",
        "rules": [{"weekday": "tue", "start": "09:00", "slot_minutes": 30, "slots": 10}],
    },
    f"/v1/admin/doctors/{ID}/publish": {"from": "2026-11-24", "to": "2026-11-24"},
    f"/v1/admin/doctors/{ID}/closures": {"from": "2026-11-24", "to": "2026-11-24", "reason": "Conference"},
    "/v1/doctor/closures": {"from": "2026-11-24", "to": "2026-11-24", "reason": "Conference"},
}


async def test_only_administrators_administer_and_what_is_not_there_is_not_found(api: Application) -> None:
    clinic = await open_clinic(api)
    await api.register("patient")
    patient = await api.sign_in("patient")
    await clinic.doctor("dr.house", await clinic.location())
    house = await api.sign_in("dr.house")
    for method, path in [*CALLS, *OWN_CALLS]:
        body = VALID.get(path, {})
        json = body if method in ("POST", "PATCH") and "/slots/" not in path else None

        async def ask(headers: dict[str, str], method: str = method, path: str = path, json: Any = json) -> Any:
            return await api.http.request(method, path, json=json, headers=headers)

        assert code(await ask({})) == (401, "unauthenticated"), path
        assert code(await ask(patient)) == (403, "forbidden"), path
        if (method, path) in CALLS:
            assert code(await ask(house)) == (403, "forbidden"), path
        else:
            assert code(await ask(clinic.admin)) == (403, "forbidden"), path
        if ID in path:
            asker = clinic.admin if (method, path) in CALLS else house
            assert code(await ask(asker)) == (404, "not_found"), path


async def test_locations_and_services_are_changed_in_part(api: Application) -> None:
    clinic = await open_clinic(api)
    location_id = await clinic.location()
    service = await clinic.post(
        "/v1/admin/services",
        {"name": "Consultation", "minutes": 30, "price": {"amount_minor": 4500, "currency": "EUR"}},
    )

    async def patch(path: str, body: Any) -> Any:
        return await api.http.patch(path, json=body, headers=clinic.admin)

    changed = await patch(f"/v1/admin/locations/{location_id}", {"timezone": "Europe/Moscow"})
    assert changed.json() == {
        "id": location_id,
        "name": "Clinic at the park",
        "address": "Parkstrasse 1",
        "timezone": "Europe/Moscow",
    }
    assert (await clinic.get("/v1/locations"))["items"] == [changed.json()]
    path = f"/v1/admin/services/{service['id']}"
    assert (await patch(path, {"minutes": 45})).json() == service | {"minutes": 45}
    assert (await patch(path, {"price": None})).json() == service | {"minutes": 45, "price": None}
    assert (await patch(path, {})).json() == service | {"minutes": 45, "price": None}
    assert pointers(await patch(path, {"surprise": 1})) == ["/surprise"]
    assert pointers(await patch(path, {"minutes": 0})) == ["/minutes"]
    assert pointers(await patch(path, {"name": None})) == ["/name"]


async def test_what_is_refused_says_where_it_is_wrong(api: Application) -> None:
    clinic = await open_clinic(api)
    location_id = await clinic.location()
    for path, changed, pointer in WRONG:
        body = (new_doctor("dr.new", location_id) if path.endswith("doctors") else VALID[path]) | changed
        answer = await api.http.post(path, json=body, headers=clinic.admin)
        assert pointer in pointers(answer), (path, changed, answer.text)
    for content in (b"{", b'{"name": "\\ud800"}', b"[]", b'"x"', b"\xff", b"[" * 5000):
        headers = clinic.admin | {"Content-Type": "application/json"}
        answer = await api.http.post("/v1/admin/locations", content=content, headers=headers)
        assert code(answer) == (422, "validation_error"), content[:20]
    async with api.services.unit_of_work() as work:
        assert await work.connection.scalar(select(func.count()).select_from(doctor)) == 0


async def test_a_doctor_is_made_whole_or_not_at_all(api: Application) -> None:
    clinic = await open_clinic(api)
    park, river = await clinic.location("Park"), await clinic.location("River")
    answer = await api.http.post("/v1/admin/doctors", json=new_doctor("dr.house", park), headers=clinic.admin)
    assert answer.status_code == 201
    made = answer.json()
    assert made == {
        "id": made["id"],
        "name": "Gregory House",
        "specialties": ["cardiology"],
        "location_ids": [park],
        "service_ids": [],
    }
    assert answer.headers["location"] == f"/v1/doctors/{made['id']}"
    assert await clinic.get(f"/v1/doctors/{made['id']}") == made

    me = (await api.http.get("/v1/me", headers=await api.sign_in("dr.house"))).json()
    assert (me["role"], me["doctor_id"], me["email_verified"], me["phone_verified"]) == (
        "doctor",
        made["id"],
        True,
        True,
    )

    for body, refusal in (
        (new_doctor("DR.House", park), "login_taken"),
        (new_doctor("other", park, email="dr.house@clinic.example"), "email_taken"),
        (new_doctor("other", park, phone=me["phone"]), "phone_taken"),
    ):
        again = await api.http.post("/v1/admin/doctors", json=body, headers=clinic.admin)
        assert code(again) == (409, refusal)
    async with api.services.unit_of_work() as work:
        counts = [
            await work.connection.scalar(select(func.count()).select_from(table))
            for table in (doctor, calendar, app_user)
        ]
    assert counts == [1, 1, 2]

    change = {"name": "Greg House", "location_ids": [park, river]}
    path = f"/v1/admin/doctors/{made['id']}"
    changed = await api.http.patch(path, json=change, headers=clinic.admin)
    assert changed.json() == made | change
    assert [each["id"] for each in (await clinic.get("/v1/doctors", q="greg"))["items"]] == [made["id"]]
    assert (await clinic.get("/v1/doctors", q="gregory"))["items"] == []
    assert (await api.http.get("/v1/me", headers=await api.sign_in("dr.house"))).json()["name"] == "Greg House"
    for wrong, pointer in (
        ({"location_ids": []}, "/location_ids"),
        ({"location_ids": [park, ID]}, "/location_ids/1"),
        ({"service_ids": [ID]}, "/service_ids/0"),
        ({"specialties": None}, "/specialties"),
        ({"login": "x"}, "/login"),
    ):
        assert pointers(await api.http.patch(path, json=wrong, headers=clinic.admin)) == [pointer]


async def test_templates_are_checked_kept_and_removed(api: Application) -> None:
    clinic = await open_clinic(api)
    park, river = await clinic.location("Park"), await clinic.location("River")
    doctor_id = await clinic.doctor("dr.house", park)
    path = f"/v1/admin/doctors/{doctor_id}/templates"
    rule = {"weekday": "tue", "start": "09:00", "slot_minutes": 30, "slots": 10}
    body = {"name": "Tuesdays", "location_id": park, "valid_from": "2026-01-01", "rules": [rule]}
    made = await clinic.post(path, body)
    assert made == body | {
        "id": made["id"],
        "doctor_id": doctor_id,
        "valid_to": None,
        "rules": [rule | {"break_minutes": 0, "service_id": None}],
    }
    for changed, pointer in (
        ({"location_id": river}, "/location_id"),
        ({"location_id": ID}, "/location_id"),
        ({"rules": []}, "/rules"),
        ({"rules": [rule] * 101}, "/rules"),
        ({"rules": [rule, rule]}, "/rules/1"),
        ({"rules": [rule, rule | {"start": "25:00"}]}, "/rules/1/start"),
        ({"rules": [rule | {"slots": 49}]}, "/rules/0/slots"),
        ({"rules": [rule | {"service_id": ID}]}, "/rules/0/service_id"),
        ({"valid_to": "2025-01-01"}, "/valid_to"),
        ({"valid_from": "2026-02-30"}, "/valid_from"),
        ({"valid_from": 20260101}, "/valid_from"),
    ):
        assert pointers(await api.http.post(path, json=body | changed, headers=clinic.admin)) == [pointer], changed
    assert await clinic.get(path) == {"items": [made], "next_cursor": None}
    gone = await api.http.delete(f"{path}/{made['id']}", headers=clinic.admin)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await clinic.get(path))["items"] == []
    assert code(await api.http.delete(f"{path}/{made['id']}", headers=clinic.admin)) == (404, "not_found")


async def test_publishing_opens_what_is_not_open_yet(api: Application) -> None:
    clinic = await open_clinic(api)
    location_id = await clinic.location()
    doctor_id = await clinic.doctor("dr.house", location_id)
    day = days_on(3)
    path = f"/v1/admin/doctors/{doctor_id}/publish"
    await clinic.template(doctor_id, location_id, weekly(slots=4))
    assert await clinic.publish(doctor_id, day, day, dry_run=True) == {"opened": 4, "kept": 0, "skipped": []}
    assert await clinic.slots() == []
    assert await clinic.publish(doctor_id, day, day) == {"opened": 4, "kept": 0, "skipped": []}
    opened = await clinic.slots()
    assert len(opened) == 4
    assert await clinic.publish(doctor_id, day, day) == {"opened": 0, "kept": 4, "skipped": []}

    # Another template over the same time: what is there stays, what is new is opened, what collides is named.
    await clinic.template(doctor_id, location_id, weekly(slots=3, start="10:45"), name="Late")
    published = await clinic.publish(doctor_id, day, day)
    assert (published["opened"], published["kept"]) == (2, 4)
    assert [each["why"] for each in published["skipped"]] == ["overlap"]
    assert len(await clinic.slots()) == 6

    past = await clinic.publish(doctor_id, day - timedelta(days=14), day - timedelta(days=14))
    assert (past["opened"], {each["why"] for each in past["skipped"]}) == (0, {"past", "overlap"})

    for body, pointer in (
        ({"from": day.isoformat(), "to": (day - timedelta(days=1)).isoformat()}, "/to"),
        ({"from": day.isoformat(), "to": (day + timedelta(days=366)).isoformat()}, "/to"),
        ({"from": day.isoformat()}, "/to"),
        ({"from": "soon", "to": day.isoformat()}, "/from"),
        ({"from": day.isoformat(), "to": day.isoformat(), "dry_run": "yes"}, "/dry_run"),
    ):
        assert pointers(await api.http.post(path, json=body, headers=clinic.admin)) == [pointer], body


async def test_a_publication_is_bounded_and_has_one_effect_under_one_key(api: Application) -> None:
    clinic = await open_clinic(api)
    location_id = await clinic.location()
    doctor_id = await clinic.doctor("dr.house", location_id)
    rules = [{"weekday": each, "start": "00:00", "slot_minutes": 15, "slots": 96} for each in Weekday]
    await clinic.template(doctor_id, location_id, *rules)
    path = f"/v1/admin/doctors/{doctor_id}/publish"
    year = {"from": days_on(1).isoformat(), "to": days_on(60).isoformat()}
    assert pointers(await api.http.post(path, json=year, headers=clinic.admin)) == ["/to"]

    # Not from tomorrow on: late in the evening that has begun where the location is.
    week = {"from": days_on(2).isoformat(), "to": days_on(8).isoformat()}
    keyed = clinic.admin | {"Idempotency-Key": "publish-1"}
    answers = await asyncio.gather(*(api.http.post(path, json=week, headers=keyed) for _ in range(5)))
    assert {each.status_code for each in answers} == {200}
    assert len({each.text for each in answers}) == 1
    assert answers[0].json()["opened"] == 7 * 96
    assert (await api.http.post(path, json=week, headers=keyed)).text == answers[0].text
    other = await api.http.post(path, json=week | {"to": days_on(6).isoformat()}, headers=keyed)
    assert code(other) == (422, "idempotency_key_reused")


async def test_an_absence_blocks_slots_and_displaces_visits(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id, day = await clinic.working_doctor()
    slots = await clinic.slots(doctor_id=doctor_id)
    user = await api.register("patient")
    patient = await api.sign_in("patient")
    booked = await api.http.post(
        "/v1/appointments", json={"slot_id": slots[1]["id"], "reason": "Headaches"}, headers=patient
    )
    assert booked.status_code == 201, booked.text
    path = f"/v1/admin/doctors/{doctor_id}/closures"
    body = {"from": day.isoformat(), "to": day.isoformat(), "reason": "Conference in Rome"}

    tried = await clinic.post(path, body | {"dry_run": True})
    assert (tried["id"], tried["blocked"], len(tried["displaced"])) == (None, 4, 1)
    assert len(await clinic.slots(doctor_id=doctor_id)) == 3
    assert (await clinic.get(path))["items"] == []

    made = await clinic.post(path, body, key="closure-1")
    (displaced,) = made["displaced"]
    assert (made["blocked"], displaced["id"], displaced["displaced"]) == (4, booked.json()["id"], True)
    assert displaced["reason"] == "Headaches"
    assert displaced["patient"]["name"] == user["name"]
    assert displaced["version"] == booked.json()["version"] + 1
    shown = await clinic.get(f"/v1/appointments/{displaced['id']}")
    assert shown | {"updated_at": None} == displaced | {"updated_at": None}
    assert await clinic.slots(doctor_id=doctor_id) == []
    assert len(await clinic.slots(doctor_id=doctor_id, status="blocked")) == 4
    assert await clinic.post(path, body, key="closure-1") == made

    (listed,) = (await clinic.get(path))["items"]
    assert (listed["id"], listed["reason"]) == (made["id"], "Conference in Rome")
    (window,) = listed["windows"]
    assert datetime.fromisoformat(window["start"]) <= datetime.fromisoformat(slots[0]["start"])
    async with api.services.unit_of_work() as work:
        sealed = await work.connection.scalar(select(closure.c.reason))
    assert sealed is not None
    assert b"Rome" not in sealed

    closed = await clinic.publish(doctor_id, day, day)
    assert (closed["opened"], closed["kept"]) == (0, 4)

    assert (await api.http.delete(f"{path}/{made['id']}", headers=clinic.admin)).status_code == 204
    assert (await clinic.get(path))["items"] == []
    assert len(await clinic.slots(doctor_id=doctor_id)) == 3
    assert (await clinic.get(f"/v1/appointments/{displaced['id']}"))["displaced"] is False
    assert code(await api.http.delete(f"{path}/{made['id']}", headers=clinic.admin)) == (404, "not_found")


async def test_an_absence_of_instants_and_one_over_two_zones(api: Application) -> None:
    clinic = await open_clinic(api)
    berlin, auckland = await clinic.location(), await clinic.location("Harbour", "Pacific/Auckland")
    doctor_id = await clinic.doctor("dr.house", berlin, auckland)
    day = days_on(5)
    for location_id in (berlin, auckland):
        await clinic.template(doctor_id, location_id, weekly(day=day, start="09:00", slots=2))
    await clinic.publish(doctor_id, day, day)
    path = f"/v1/admin/doctors/{doctor_id}/closures"
    # No longer a place of the doctor's, but there are slots.
    left = await api.http.patch(f"/v1/admin/doctors/{doctor_id}", json={"location_ids": [berlin]}, headers=clinic.admin)
    assert left.status_code == 200
    whole = await clinic.post(path, {"from": day.isoformat(), "to": day.isoformat(), "reason": "Leave"})
    assert whole["blocked"] == 4
    ((listed),) = (await clinic.get(path))["items"]
    assert sorted(window["location_id"] for window in listed["windows"]) == sorted([berlin, auckland])
    await api.http.delete(f"{path}/{whole['id']}", headers=clinic.admin)

    first, second = await clinic.slots(doctor_id=doctor_id, location_id=berlin)
    part = await clinic.post(path, {"from": first["start"], "to": second["start"], "reason": "Meeting"})
    assert part["blocked"] == 1
    assert [each["id"] for each in await clinic.slots(doctor_id=doctor_id, location_id=berlin)] == [second["id"]]
    for body, pointer in (
        ({"from": day.isoformat(), "to": second["start"], "reason": "x"}, "/to"),
        ({"from": second["start"], "to": first["start"], "reason": "x"}, "/to"),
        ({"from": "2026-11-24T09:00:00", "to": second["start"], "reason": "x"}, "/from"),
        ({"from": day.isoformat(), "to": (day + timedelta(days=366)).isoformat(), "reason": "x"}, "/to"),
        ({"from": day.isoformat(), "to": day.isoformat()}, "/reason"),
        ({"from": day.isoformat(), "to": day.isoformat(), "reason": " "}, "/reason"),
    ):
        assert pointers(await api.http.post(path, json=body, headers=clinic.admin)) == [pointer], body


async def test_a_doctor_closes_their_own_calendar_only(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id, day = await clinic.working_doctor("dr.house")
    other_id = await clinic.doctor("dr.other", (await clinic.get("/v1/locations"))["items"][0]["id"])
    house, other = await api.sign_in("dr.house"), await api.sign_in("dr.other")
    body = {"from": day.isoformat(), "to": day.isoformat(), "reason": "Conference"}
    made = await api.http.post("/v1/doctor/closures", json=body, headers=house)
    assert (made.status_code, made.json()["blocked"]) == (201, 4)
    closure_id = made.json()["id"]
    listed = await api.http.get("/v1/doctor/closures", headers=house)
    assert [(each["id"], each["doctor_id"]) for each in listed.json()["items"]] == [(closure_id, doctor_id)]
    assert (await api.http.get("/v1/doctor/closures", headers=other)).json()["items"] == []
    # The reason was sealed by the doctor; administrators read it too.
    (seen,) = (await clinic.get(f"/v1/admin/doctors/{doctor_id}/closures"))["items"]
    assert seen["reason"] == "Conference"
    for headers in (other, other | {"Idempotency-Key": "k"}):
        refused = await api.http.delete(f"/v1/doctor/closures/{closure_id}", headers=headers)
        assert code(refused) == (404, "not_found")
    elsewhere = await api.http.delete(f"/v1/admin/doctors/{other_id}/closures/{closure_id}", headers=clinic.admin)
    assert code(elsewhere) == (404, "not_found")
    assert (await api.http.delete(f"/v1/doctor/closures/{closure_id}", headers=house)).status_code == 204
    assert len(await clinic.slots(doctor_id=doctor_id)) == 4


async def test_single_slots_are_blocked_opened_and_withdrawn(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id, day = await clinic.working_doctor()
    slot, *_ = await clinic.slots(doctor_id=doctor_id)
    path = f"/v1/admin/slots/{slot['id']}"
    assert await clinic.post(f"{path}/block", status=200) == slot | {"status": "blocked"}
    assert await clinic.post(f"{path}/block", status=200) == slot | {"status": "blocked"}
    assert await clinic.post(f"{path}/unblock", status=200) == slot
    assert len(await clinic.slots(doctor_id=doctor_id)) == 4
    assert await clinic.post(f"{path}/cancel", status=200, key="c") == slot | {"status": "cancelled"}
    assert await clinic.post(f"{path}/cancel", status=200, key="c") == slot | {"status": "cancelled"}
    assert [each["id"] for each in await clinic.slots(status="cancelled")] == [slot["id"]]
    refused = await api.http.post(f"{path}/unblock", headers=clinic.admin)
    assert code(refused) == (409, "slot_unavailable")
    assert (await clinic.publish(doctor_id, day, day))["skipped"] == [{"start": slot["start"], "why": "cancelled"}]
    unknown = await api.http.post(f"/v1/admin/slots/{new_id()}/block", headers=clinic.admin)
    assert code(unknown) == (404, "not_found")
    assert (await api.http.post("/v1/admin/slots/first/block", headers=clinic.admin)).status_code == 422


async def test_accounts_are_disabled_let_in_again_and_made_something_else(api: Application) -> None:
    clinic = await open_clinic(api)
    user = await api.register("patient")
    patient, refresh = await api.sign_in("patient"), (await api.tokens("patient"))["refresh_token"]
    chief = (await clinic.get("/v1/me"))["id"]

    async def patch(user_id: str, body: Any, headers: dict[str, str] = clinic.admin) -> Any:
        return await api.http.patch(f"/v1/admin/users/{user_id}", json=body, headers=headers)

    disabled = await patch(user["id"], {"disabled": True})
    assert disabled.json() == user | {"disabled": True}
    assert (await api.http.get("/v1/me", headers=patient)).status_code == 401
    renewed = await api.http.post("/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": refresh})
    assert renewed.status_code in (400, 401)
    assert (await patch(user["id"], {"disabled": False})).json()["disabled"] is False
    patient = await api.sign_in("patient")

    assert code(await patch(user["id"], {"role": "doctor"})) == (409, "not_a_doctor")
    assert pointers(await patch(user["id"], {"role": "chief"})) == ["/role"]
    assert pointers(await patch(user["id"], {"disabled": "yes"})) == ["/disabled"]
    for body in ({"disabled": True}, {"role": "patient"}):
        assert code(await patch(chief, body)) == (409, "last_admin")

    assert (await patch(user["id"], {"role": "admin"})).json()["role"] == "admin"
    assert (await api.http.get("/v1/admin/users", headers=patient)).status_code == 200
    # Each takes the other's role away at the same time: one of them stays.
    answers = await asyncio.gather(
        patch(chief, {"role": "patient"}, patient), patch(user["id"], {"role": "patient"}, clinic.admin)
    )
    assert sorted(each.status_code for each in answers) == [200, 409]


async def test_accounts_and_the_audit_trail_are_read_page_by_page(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id, _ = await clinic.working_doctor()
    patient = await api.register("patient")
    first = await clinic.get("/v1/admin/users", limit=2)
    rest = await clinic.get("/v1/admin/users", limit=2, cursor=first["next_cursor"])
    assert [each["login"] for each in [*first["items"], *rest["items"]]] == ["chief", "dr.house", "patient"]
    assert rest["items"] == [patient | {"disabled": False}]
    assert rest["next_cursor"] is None
    assert "x-as-of" in (await api.http.get("/v1/admin/users", headers=clinic.admin)).headers

    slot, *_ = await clinic.slots(doctor_id=doctor_id)
    assert (await clinic.post(f"/v1/admin/slots/{slot['id']}/block", status=200))["status"] == "blocked"
    seen, params = [], {"limit": 2}
    while True:
        page = await clinic.get("/v1/admin/audit", **params)
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == sorted(seen, key=lambda entry: (entry["at"], entry["id"]), reverse=True)
    chief = (await clinic.get("/v1/me"))["id"]
    done = [(each["action"], each["subject"], each["role"]) for each in seen if each["user_id"] == chief]
    assert done[:5] == [
        ("block_slot", "slot", "admin"),
        ("publish_slots", "doctor", "admin"),
        ("create_template", "template", "admin"),
        ("create_doctor", "doctor", "admin"),
        ("create_location", "location", "admin"),
    ]
    assert (seen[0]["subject_id"], seen[0]["override_reason"]) == (slot["id"], None)
    assert seen[3]["subject_id"] == doctor_id


async def test_administrators_read_by_which_override_it_was_done(api: Application) -> None:
    clinic = await open_clinic(api)
    doctor_id, _ = await clinic.working_doctor()
    user = await api.register("patient")
    slot, *_ = await clinic.slots(doctor_id=doctor_id)
    body = {"slot_id": slot["id"], "patient_id": user["patient_id"], "override_reason": "The chief's own mother"}
    booked = await clinic.post("/v1/appointments", body)
    entry = (await clinic.get("/v1/admin/audit"))["items"][0]
    assert (entry["action"], entry["subject_id"]) == ("book_appointment", booked["id"])
    assert entry["override_reason"] == "The chief's own mother"
