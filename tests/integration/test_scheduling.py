"""Holds, visits and their days over the real application: what each role may do, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from persistence.identifiers import new_id
from tests.integration.practice import (
    SLOT,
    Practice,
    content,
    days_on,
    eventually,
    instant,
    refusal,
)
from tests.people import Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = timedelta(minutes=1)


# Holds


async def test_a_hold_keeps_a_slot_for_its_holder(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    doctor, (slot, _, _, _) = await practice.doctor_with_slots()

    hold = await practice.post(anna, "/v1/holds", {"slot_id": slot}, expect=201)

    left = instant(hold["expires_at"]) - datetime.now(UTC)
    assert hold.keys() == {"id", "slot_id", "expires_at"}
    assert hold["slot_id"] == slot
    assert timedelta(seconds=240) < left <= timedelta(seconds=300)
    assert await practice.slot_status(doctor, slot) == "held"
    assert await practice.post(anna, "/v1/holds", {"slot_id": slot}, expect=201) == hold
    assert (await practice.get(anna, "/v1/holds"))["items"] == [hold]
    assert (await practice.get(boris, "/v1/holds"))["items"] == []
    assert refusal(await practice.send(boris, "POST", "/v1/holds", {"slot_id": slot})) == "409 slot_taken"
    assert refusal(await practice.send(boris, "POST", "/v1/appointments", {"slot_id": slot})) == "409 slot_taken"
    assert refusal(await practice.send(boris, "DELETE", f"/v1/holds/{hold['id']}")) == "404 not_found"
    with_anothers = {"slot_id": slot, "hold_id": hold["id"]}
    assert refusal(await practice.send(boris, "POST", "/v1/appointments", with_anothers)) == "409 hold_expired"

    visit = await practice.book(anna, slot, hold_id=hold["id"])
    assert visit["slot_id"] == slot
    assert (await practice.get(anna, "/v1/holds"))["items"] == []
    assert refusal(await practice.send(anna, "DELETE", f"/v1/holds/{hold['id']}")) == "404 not_found"
    assert refusal(await practice.send(anna, "POST", "/v1/holds", {"slot_id": slot})) == "409 slot_taken"


async def test_a_hold_may_be_released_or_booked_without_being_named(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, (one, two, _, _) = await practice.doctor_with_slots()
    first = await practice.post(anna, "/v1/holds", {"slot_id": one}, expect=201)
    await practice.post(anna, "/v1/holds", {"slot_id": two}, expect=201)

    released = await practice.send(anna, "DELETE", f"/v1/holds/{first['id']}")

    assert (released.status_code, released.content) == (204, b"")
    assert refusal(await practice.send(anna, "DELETE", f"/v1/holds/{first['id']}")) == "404 not_found"
    assert await practice.slot_status(doctor, one) == "free"
    named = {"slot_id": one, "hold_id": first["id"]}
    assert refusal(await practice.send(anna, "POST", "/v1/appointments", named)) == "409 hold_expired"
    await practice.book(anna, two)
    assert (await practice.get(anna, "/v1/holds"))["items"] == []


async def test_a_user_holds_three_slots_at_most_wherever_they_are(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, here = await practice.doctor_with_slots()
    _, there = await practice.doctor_with_slots()
    holds = [
        await practice.post(anna, "/v1/holds", {"slot_id": slot}, expect=201) for slot in (here[0], here[1], there[2])
    ]

    for slot in (here[3], there[3]):
        assert refusal(await practice.send(anna, "POST", "/v1/holds", {"slot_id": slot})) == "409 limit_reached"

    await practice.post(boris, "/v1/holds", {"slot_id": there[3]}, expect=201)
    await practice.send(anna, "DELETE", f"/v1/holds/{holds[0]['id']}")
    await practice.post(anna, "/v1/holds", {"slot_id": here[3]}, expect=201)


async def test_one_user_of_many_gets_a_hold(practice: Practice) -> None:
    patients = await practice.people.patients(12)
    _, (slot, *_) = await practice.doctor_with_slots()

    answers = await asyncio.gather(
        *(practice.send(patient, "POST", "/v1/holds", {"slot_id": slot}) for patient in patients)
    )

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 11}
    assert {refusal(answer) for answer in answers if answer.status_code != 201} == {"409 slot_taken"}


# Booking


async def test_a_patient_books_for_themselves(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, (slot, *_) = await practice.doctor_with_slots()
    start = days_on(3)

    answer = await practice.send(anna, "POST", "/v1/appointments", {"slot_id": slot, "reason": "  Headaches \n"})

    visit = content(answer, 201)
    assert visit == {
        "id": visit["id"],
        "doctor_id": doctor.doctor_id,
        "patient_id": anna.patient_id,
        "booked_by": anna.user_id,
        "slot_id": slot,
        "location_id": practice.location_id,
        "service_id": None,
        "timezone": "Europe/Berlin",
        "start": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{start + SLOT:%Y-%m-%dT%H:%M:%SZ}",
        "status": "booked",
        "displaced": False,
        "version": 1,
        "reason": "Headaches",
        "move_until": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "cancel_until": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "created_at": visit["created_at"],
        "updated_at": visit["created_at"],
    }
    assert abs(instant(visit["created_at"]) - datetime.now(UTC)) < MINUTE
    assert answer.headers["location"] == f"/v1/appointments/{visit['id']}"
    seen = await practice.send(anna, "GET", f"/v1/appointments/{visit['id']}")
    assert content(seen, 200) == visit
    assert seen.headers["etag"] == answer.headers["etag"]
    assert await practice.slot_status(doctor, slot) == "booked"


async def test_a_patient_books_for_their_child_and_for_nobody_elses(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, (one, two, *_) = await practice.doctor_with_slots()
    mila = await practice.post(
        anna, "/v1/me/patients", {"name": "Mila Petrova", "birth_date": "2019-06-02"}, expect=201
    )

    visit = await practice.book(anna, one, patient_id=mila["id"])
    # At the same time as the child: two patients.
    _, (elsewhere, *_) = await practice.doctor_with_slots()
    await practice.book(anna, elsewhere)

    assert (visit["patient_id"], visit["booked_by"]) == (mila["id"], anna.user_id)
    assert await practice.get(anna, f"/v1/appointments/{visit['id']}") == visit
    for patient_id in (mila["id"], anna.patient_id, new_id()):
        body = {"slot_id": two, "patient_id": patient_id}
        assert refusal(await practice.send(boris, "POST", "/v1/appointments", body)) == "404 not_found"
    await practice.get(boris, f"/v1/appointments/{visit['id']}", expect=404)
    for how, body in (("cancel", {}), ("reschedule", {"slot_id": two})):
        answer = await practice.send(boris, "POST", f"/v1/appointments/{visit['id']}/{how}", body)
        assert refusal(answer) == "404 not_found", how
    assert (await practice.get(anna, f"/v1/appointments/{visit['id']}")) == visit


async def test_staff_book_for_anyone_and_see_whom(practice: Practice) -> None:
    anna = await practice.people.patient("Anna Petrova", date(1990, 4, 12))
    house, (one, two, three, _) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    shown = {"id": anna.patient_id, "name": "Anna Petrova", "birth_date": "1990-04-12", "phone": "+4930901820"}

    for staff, slot in ((practice.admin, one), (house, two)):
        nobody = await practice.send(staff, "POST", "/v1/appointments", {"slot_id": three})
        assert refusal(nobody) == "422 validation_error"
        assert [error["pointer"] for error in nobody.json()["errors"]] == ["/patient_id"]
        visit = await practice.book(staff, slot, patient_id=anna.patient_id, reason="Brought in")
        assert visit["booked_by"] == staff.user_id
        assert visit["patient"] == shown
        assert (await practice.get(staff, f"/v1/appointments/{visit['id']}"))["patient"] == shown
        assert "patient" not in await practice.get(anna, f"/v1/appointments/{visit['id']}")
        unknown = {"slot_id": three, "patient_id": new_id()}
        assert refusal(await practice.send(staff, "POST", "/v1/appointments", unknown)) == "404 not_found"

    others = {"slot_id": elsewhere, "patient_id": anna.patient_id}
    refused = await practice.send(house, "POST", "/v1/appointments", others | {"override_reason": "A favour"})
    assert refusal(refused) == "403 forbidden"
    sent_on = await practice.book(house, elsewhere, patient_id=anna.patient_id)
    assert sent_on["patient"] == shown
    await practice.get(house, f"/v1/appointments/{sent_on['id']}", expect=404)


async def test_a_doctor_sees_the_visits_of_their_own_calendar_only(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (mine, *_) = await practice.doctor_with_slots()
    wilson, (other, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, mine)

    assert (await practice.get(house, f"/v1/appointments/{visit['id']}"))["patient"]["name"] == "Anna Petrova"
    await practice.get(wilson, f"/v1/appointments/{visit['id']}", expect=404)
    for how in ("arrive", "fulfil", "no-show", "cancel"):
        answer = await practice.send(wilson, "POST", f"/v1/appointments/{visit['id']}/{how}")
        assert refusal(answer) == "404 not_found", how
    moved = await practice.send(wilson, "POST", f"/v1/appointments/{visit['id']}/reschedule", {"slot_id": other})
    assert refusal(moved) == "404 not_found"


async def test_a_doctor_is_a_patient_like_any_other_in_another_calendar(practice: Practice) -> None:
    house, (own, *_) = await practice.doctor_with_slots(first=days_on(4))
    _, (one, two, three, _) = await practice.doctor_with_slots()
    _, (third, *_) = await practice.doctor_with_slots(first=days_on(5))
    mila = await practice.post(house, "/v1/me/patients", {"name": "Mila House", "birth_date": "2019-06-02"}, expect=201)
    visit = await practice.book(practice.admin, one, patient_id=mila["id"])
    path = f"/v1/appointments/{visit['id']}"
    why = {"override_reason": "It is my child"}

    for how in ("arrive", "fulfil", "no-show"):
        assert refusal(await practice.send(house, "POST", f"{path}/{how}")) == "403 forbidden", how
    for slot in (two, third, own):
        assert refusal(await practice.send(house, "POST", f"{path}/reschedule", {"slot_id": slot} | why)) == (
            "403 forbidden"
        )
    assert refusal(await practice.send(house, "POST", f"{path}/cancel", why)) == "403 forbidden"
    assert refusal(
        await practice.send(house, "POST", "/v1/appointments", {"slot_id": two, "patient_id": mila["id"]} | why)
    ) == ("403 forbidden")
    assert await practice.get(practice.admin, path) == visit

    hold = await practice.post(house, "/v1/holds", {"slot_id": two}, expect=201)
    moved = await practice.change(house, visit, "reschedule", {"slot_id": two, "hold_id": hold["id"]})
    moved = await practice.change(house, moved, "reschedule", {"slot_id": third})
    cancelled = await practice.change(house, moved, "cancel")
    assert (cancelled["status"], cancelled["version"]) == ("cancelled", 4)
    assert await _cancelled_by(practice, visit["id"]) == "patient"
    trail = (await practice.get(practice.admin, "/v1/admin/audit"))["items"]
    assert house.user_id not in {entry["user_id"] for entry in trail}, "nothing of it was done as staff"
    # A slot of their own calendar does not make staff of them where the visit is.
    again = await practice.book(practice.admin, three, patient_id=mila["id"])
    assert (await practice.change(house, again, "reschedule", {"slot_id": own}))["doctor_id"] == house.doctor_id
    assert (await practice.change(house, again, "arrive"))["status"] == "arrived", "now it is in their own"


async def test_a_doctor_overrides_nothing_in_the_calendar_that_a_visit_goes_to(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, *_) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    body = {"slot_id": elsewhere}
    path = f"/v1/appointments/{visit['id']}/reschedule"

    refused = await practice.send(house, "POST", path, body | {"override_reason": "I am away"})
    assert refusal(refused) == "403 forbidden"
    assert (await practice.change(house, visit, "reschedule", body))["slot_id"] == elsewhere


async def _cancelled_by(practice: Practice, appointment_id: str) -> str:
    """As what somebody cancelled a visit, by the journal."""
    async with practice.api.services.unit_of_work() as work:
        by = await work.connection.scalar(
            text(
                "SELECT payload ->> 'by' FROM event"
                " WHERE kind = 'AppointmentCancelled' AND payload ->> 'appointment_id' = :id"
            ),
            {"id": appointment_id},
        )
    return str(by)


async def test_what_nobody_can_book(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, (taken, blocked, withdrawn, held) = await practice.doctor_with_slots()
    begins_at = datetime.now(UTC) + timedelta(seconds=2)
    (begun,) = await practice.open_slots(doctor, begins_at)
    (far,) = await practice.open_slots(doctor, days_on(181))
    await practice.book(await practice.people.patient(), taken)
    await practice.post(practice.admin, f"/v1/admin/slots/{blocked}/block")
    await practice.post(practice.admin, f"/v1/admin/slots/{withdrawn}/cancel")
    await practice.post(await practice.people.patient(), "/v1/holds", {"slot_id": held}, expect=201)
    await asyncio.sleep((begins_at - datetime.now(UTC)).total_seconds() + 0.01)

    codes = {"taken": taken, "held": held, "blocked": blocked, "withdrawn": withdrawn, "begun": begun, "far": far}
    for name, slot in codes.items():
        expected = "409 slot_taken" if name in ("taken", "held") else "409 slot_unavailable"
        for path in ("/v1/appointments", "/v1/holds"):
            assert refusal(await practice.send(anna, "POST", path, {"slot_id": slot})) == expected, (name, path)
    for path in ("/v1/appointments", "/v1/holds"):
        assert refusal(await practice.send(anna, "POST", path, {"slot_id": new_id()})) == "404 not_found"
    # Staff go beyond the horizon; nobody goes into the past.
    override = {"patient_id": anna.patient_id, "override_reason": "The chief asked"}
    past = await practice.send(practice.admin, "POST", "/v1/appointments", {"slot_id": begun} | override)
    assert refusal(past) == "409 slot_unavailable"
    await practice.book(practice.admin, far, **override)


async def test_a_patient_is_in_one_place_at_a_time(practice: Practice) -> None:
    anna = await practice.people.patient()
    first = days_on(3)
    _, (one, two, *_) = await practice.doctor_with_slots(first=first)
    _, (overlapping, _, _, adjacent) = await practice.doctor_with_slots(first=first - SLOT / 2)
    booked = await practice.book(anna, one)

    for who in (anna, practice.admin):
        body = {"slot_id": overlapping, "patient_id": anna.patient_id}
        assert refusal(await practice.send(who, "POST", "/v1/appointments", body)) == "409 patient_overlap"
    await practice.book(anna, two)
    await practice.change(anna, booked, "cancel")
    await practice.book(anna, overlapping)
    await practice.book(anna, adjacent)
    assert await practice.differences() == []


async def test_one_patient_of_many_gets_a_slot(practice: Practice) -> None:
    patients = await practice.people.patients(20)
    _, (slot, *_) = await practice.doctor_with_slots()

    answers = await asyncio.gather(
        *(practice.send(patient, "POST", "/v1/appointments", {"slot_id": slot}) for patient in patients)
    )

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 19}
    assert {refusal(answer) for answer in answers if answer.status_code != 201} == {"409 slot_taken"}


# Moving


async def test_a_visit_is_moved_within_a_calendar(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    doctor, (one, two, three, four) = await practice.doctor_with_slots()
    booked = await practice.book(anna, one, reason="Headaches")
    await practice.book(boris, three)

    answer = await practice.send(anna, "POST", f"/v1/appointments/{booked['id']}/reschedule", {"slot_id": two})

    moved = content(answer, 200)
    assert answer.headers["etag"].startswith('"2-')
    changed = {name for name, value in moved.items() if booked[name] != value}
    assert changed == {"slot_id", "start", "end", "status", "version", "move_until", "cancel_until", "updated_at"}
    assert (moved["slot_id"], moved["status"], moved["version"]) == (two, "rescheduled", 2)
    assert moved["updated_at"] > booked["updated_at"]
    assert await practice.get(anna, f"/v1/appointments/{booked['id']}") == moved
    assert [await practice.slot_status(doctor, slot) for slot in (one, two)] == ["free", "booked"]

    path = f"/v1/appointments/{booked['id']}/reschedule"
    assert refusal(await practice.send(anna, "POST", path, {"slot_id": three})) == "409 slot_taken"
    assert refusal(await practice.send(anna, "POST", path, {"slot_id": two})) == "409 slot_taken"
    assert refusal(await practice.send(anna, "POST", path, {"slot_id": new_id()})) == "404 not_found"
    gone = {"slot_id": four, "hold_id": new_id()}
    assert refusal(await practice.send(anna, "POST", path, gone)) == "409 hold_expired"
    hold = await practice.post(anna, "/v1/holds", {"slot_id": four}, expect=201)
    again = await practice.change(anna, moved, "reschedule", {"slot_id": four, "hold_id": hold["id"]})
    assert (again["slot_id"], again["status"], again["version"]) == (four, "rescheduled", 3)
    assert (await practice.get(anna, "/v1/holds"))["items"] == []


async def test_a_visit_is_moved_to_another_doctor(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    first = days_on(3)
    house, (one, *_) = await practice.doctor_with_slots(first=first)
    wilson, (near, _, taken, held) = await practice.doctor_with_slots(first=first + SLOT / 2)
    booked = await practice.book(anna, one, reason="Headaches")
    await practice.book(boris, taken)
    path = f"/v1/appointments/{booked['id']}/reschedule"

    assert refusal(await practice.send(anna, "POST", path, {"slot_id": taken})) == "409 slot_taken"
    # A quarter of an hour later, so it overlaps where it was.
    moved = await practice.change(anna, booked, "reschedule", {"slot_id": near})

    changed = {name for name, value in moved.items() if booked[name] != value}
    assert changed == {
        *("slot_id", "doctor_id", "start", "end", "status", "version", "move_until", "cancel_until", "updated_at")
    }
    assert (moved["doctor_id"], moved["slot_id"], moved["version"]) == (wilson.doctor_id, near, 2)
    assert await practice.get(anna, f"/v1/appointments/{booked['id']}") == moved
    await practice.get(house, f"/v1/appointments/{booked['id']}", expect=404)
    assert (await practice.get(wilson, f"/v1/appointments/{booked['id']}"))["patient"]["name"] == "Anna Petrova"
    assert await practice.slot_status(house, one) == "free"
    assert await practice.slot_status(wilson, near) == "booked"
    hold = await practice.post(anna, "/v1/holds", {"slot_id": held}, expect=201)
    within = await practice.change(anna, moved, "reschedule", {"slot_id": held, "hold_id": hold["id"]})
    back = await practice.change(anna, within, "reschedule", {"slot_id": one})
    assert (back["doctor_id"], back["slot_id"], back["version"]) == (house.doctor_id, one, 4)
    cancelled = await practice.change(house, back, "cancel")
    assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "Headaches")
    assert await practice.differences() == []


async def test_a_move_that_the_old_doctor_refuses_leaves_nothing_behind(practice: Practice) -> None:
    anna = await practice.people.patient()
    first = days_on(3)
    _, (one, *_) = await practice.doctor_with_slots(first=first)
    wilson, slots = await practice.doctor_with_slots(first=first)
    _, (busy, *_) = await practice.doctor_with_slots(first=first + 2 * SLOT)
    visit = await practice.book(anna, one)
    await practice.book(anna, busy)
    path = f"/v1/appointments/{visit['id']}/reschedule"

    assert refusal(await practice.send(anna, "POST", path, {"slot_id": slots[2]})) == "409 patient_overlap"
    stale = await practice.send(anna, "POST", path, {"slot_id": slots[1]}, if_match='"7"')
    assert refusal(stale) == "412 version_conflict"

    assert [await practice.slot_status(wilson, slot) for slot in slots] == ["free"] * 4
    assert await practice.get(anna, f"/v1/appointments/{visit['id']}") == visit
    await practice.change(anna, visit, "cancel")
    assert refusal(await practice.send(anna, "POST", path, {"slot_id": slots[1]})) == "409 not_live"
    assert [await practice.slot_status(wilson, slot) for slot in slots] == ["free"] * 4
    assert await practice.differences() == []


async def test_two_moves_of_one_visit_at_once_leave_it_in_one_place(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots()
    doctors = [await practice.doctor_with_slots(first=days_on(day)) for day in (4, 5, 6)]
    visit = await practice.book(anna, one)
    path = f"/v1/appointments/{visit['id']}/reschedule"

    answers = await asyncio.gather(
        *(practice.send(anna, "POST", path, {"slot_id": slots[0]}) for _, slots in doctors),
        *(practice.send(anna, "POST", path, {"slot_id": slots[1]}) for _, slots in doctors),
    )

    assert {answer.status_code for answer in answers} <= {200, 409, 503}
    last = await practice.get(anna, f"/v1/appointments/{visit['id']}")
    assert last["version"] == 1 + sum(answer.status_code == 200 for answer in answers)
    booked = [
        (doctor.doctor_id, slot)
        for doctor, slots in doctors
        for slot in slots
        if await practice.slot_status(doctor, slot) == "booked"
    ]
    assert booked == [(last["doctor_id"], last["slot_id"])]
    assert await practice.differences() == []


# Cancelling


async def test_a_cancelled_visit_frees_its_slot(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    doctor, (slot, *_) = await practice.doctor_with_slots()
    booked = await practice.book(anna, slot, reason="Headaches")

    cancelled = await practice.change(anna, booked, "cancel", {"reason": "Feeling better"})

    changed = {name for name, value in cancelled.items() if booked[name] != value}
    assert changed == {"status", "version", "updated_at"}
    assert (cancelled["status"], cancelled["version"]) == ("cancelled", 2)
    assert await practice.slot_status(doctor, slot) == "free"
    for how, body in (("cancel", {}), ("reschedule", {"slot_id": slot})):
        answer = await practice.send(anna, "POST", f"/v1/appointments/{booked['id']}/{how}", body)
        assert refusal(answer) == "409 not_live"
    for how in ("arrive", "fulfil", "no-show"):
        assert refusal(await practice.send(doctor, "POST", f"/v1/appointments/{booked['id']}/{how}")) == "409 not_live"
    assert (await practice.book(boris, slot))["id"] != booked["id"]
    assert await practice.get(anna, f"/v1/appointments/{booked['id']}") == cancelled


async def test_a_displaced_visit_may_be_moved(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, (one, two, *_) = await practice.doctor_with_slots()
    booked = await practice.book(anna, one)

    await practice.post(practice.admin, f"/v1/admin/slots/{one}/block")

    displaced = await practice.get(anna, f"/v1/appointments/{booked['id']}")
    assert (displaced["displaced"], displaced["status"], displaced["version"]) == (True, "booked", 2)
    moved = await practice.change(anna, displaced, "reschedule", {"slot_id": two})
    assert (moved["displaced"], moved["status"], moved["version"]) == (False, "rescheduled", 3)
    assert await practice.slot_status(doctor, one) == "blocked"


async def test_a_visit_of_somebody_who_was_erased(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, two, *_) = await practice.doctor_with_slots()
    visit = await practice.book(anna, one, reason="Headaches")
    erasing = await practice.send(anna, "DELETE", "/v1/me")
    assert refusal(erasing) == "409 live_appointments"
    await practice.change(anna, visit, "cancel")
    assert (await practice.send(anna, "DELETE", "/v1/me")).status_code == 204

    for who in (house, practice.admin):
        seen = await practice.get(who, f"/v1/appointments/{visit['id']}")
        assert (seen["patient"], seen["reason"], seen["patient_id"]) == (None, None, anna.patient_id)
        assert (await practice.get(who, "/v1/appointments", patient_id=anna.patient_id))["items"] == [seen]
        body = {"slot_id": two, "patient_id": anna.patient_id}
        assert refusal(await practice.send(who, "POST", "/v1/appointments", body)) == "404 not_found"
        answer = await practice.send(who, "POST", f"/v1/appointments/{visit['id']}/cancel")
        assert refusal(answer) == "409 not_live"
    assert refusal(await practice.send(anna, "GET", f"/v1/appointments/{visit['id']}")) == "401 unauthenticated"


# The day of the visit


async def test_a_visit_takes_place(practice: Practice) -> None:
    anna = await practice.people.patient()
    house = await practice.doctor()
    one, two = await practice.open_slots(house, datetime.now(UTC) + 3 * SLOT, datetime.now(UTC) + 5 * SLOT)
    (soon,) = await practice.open_slots(house, datetime.now(UTC) + timedelta(seconds=2), length=MINUTE)
    visit, other = await practice.book(anna, soon), await practice.book(anna, one)

    for how in ("arrive", "fulfil", "no-show"):
        path = f"/v1/appointments/{other['id']}/{how}"
        assert refusal(await practice.send(anna, "POST", path)) == "403 forbidden"
        if how != "arrive":
            assert refusal(await practice.send(house, "POST", path)) == "409 too_early"
    arrived = await practice.change(practice.admin, visit, "arrive")
    assert (arrived["status"], arrived["version"], arrived["patient"]["id"]) == ("arrived", 2, anna.patient_id)
    for how, who, body in (
        ("arrive", house, None),
        ("no-show", house, None),
        ("reschedule", anna, {"slot_id": two}),
    ):
        answer = await practice.send(who, "POST", f"/v1/appointments/{visit['id']}/{how}", body)
        assert refusal(answer) == "409 already_arrived", how

    assert await _once_begun(practice, house, visit, "fulfil") == ("fulfilled", 3)
    for how in ("arrive", "fulfil", "no-show", "cancel"):
        answer = await practice.send(house, "POST", f"/v1/appointments/{visit['id']}/{how}")
        assert refusal(answer) == "409 not_live", how
    assert await practice.differences() == []


async def test_a_patient_does_not_come(practice: Practice) -> None:
    anna = await practice.people.patient()
    house = await practice.doctor()
    (soon,) = await practice.open_slots(house, datetime.now(UTC) + timedelta(seconds=1))
    visit = await practice.book(anna, soon)

    assert await _once_begun(practice, house, visit, "no-show") == ("noshow", 2)

    answer = await practice.send(anna, "POST", f"/v1/appointments/{visit['id']}/cancel")
    assert refusal(answer) == "409 not_live"
    assert await practice.differences() == []


async def test_a_visit_that_has_begun_is_not_cancelled_or_moved_but_by_staff(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (later, *_) = await practice.doctor_with_slots()
    (soon,) = await practice.open_slots(house, datetime.now(UTC) + timedelta(seconds=1))
    visit = await practice.book(anna, soon)

    async def begun() -> bool:
        return datetime.now(UTC) > instant(visit["start"])

    await eventually(begun)

    for how, body in (("cancel", {}), ("reschedule", {"slot_id": later})):
        for who in (anna, house):
            answer = await practice.send(who, "POST", f"/v1/appointments/{visit['id']}/{how}", body)
            assert refusal(answer) == "409 too_late", how
    moved = await practice.change(house, visit, "reschedule", {"slot_id": later, "override_reason": "Was not called"})
    assert moved["slot_id"] == later


async def _once_begun(practice: Practice, who: Person, visit: dict[str, Any], how: str) -> tuple[str, int]:
    """What becomes of the visit; until it begins, it is too early for that."""
    changed: dict[str, Any] = {}

    async def taken() -> bool:
        nonlocal changed
        answer = await practice.send(who, "POST", f"/v1/appointments/{visit['id']}/{how}")
        changed = answer.json()
        return answer.status_code == 200 or refusal(answer) != "409 too_early"

    await eventually(taken)
    assert datetime.now(UTC) >= instant(visit["start"])
    return changed["status"], changed["version"]
