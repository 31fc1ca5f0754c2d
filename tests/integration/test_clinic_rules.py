"""The clinic's rules as settings: cut-offs, limits and the life of a hold, and how staff pass them.

Each test has a practice of its own, since its settings are its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.settings import Settings
from tests.integration.practice import Practice, days_on, eventually, instant, open_practice, refusal
from tests.people import Person

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def test_a_hold_ends_by_itself(settings: Settings) -> None:
    async with open_practice(settings, hold_ttl_s=1, holds_max=1) as practice:
        anna, boris = await practice.people.patients(2)
        doctor, (one, two, _, _) = await practice.doctor_with_slots()
        hold = await practice.post(anna, "/v1/holds", {"slot_id": one}, expect=201)
        assert refusal(await practice.send(anna, "POST", "/v1/holds", {"slot_id": two})) == "409 limit_reached"

        async def ended() -> bool:
            return await practice.slot_status(doctor, one) == "free"

        await eventually(ended)

        assert (await practice.get(anna, "/v1/holds"))["items"] == []
        named = {"slot_id": one, "hold_id": hold["id"]}
        assert refusal(await practice.send(anna, "POST", "/v1/appointments", named)) == "409 hold_expired"
        assert refusal(await practice.send(anna, "DELETE", f"/v1/holds/{hold['id']}")) == "404 not_found"
        await practice.book(boris, one)
        await practice.post(anna, "/v1/holds", {"slot_id": two}, expect=201)
        assert await practice.differences() == []


@asynccontextmanager
async def _with_rules(settings: Settings, **rules: Any) -> AsyncIterator[tuple[Practice, Person]]:
    async with open_practice(settings, **rules) as practice:
        yield practice, await practice.people.patient()
        assert await practice.differences() == []


async def test_cut_offs(settings: Settings) -> None:
    rules = {"book_cutoff_minutes": 60, "move_cutoff_minutes": 120, "cancel_cutoff_minutes": 240, "horizon_days": 10}
    async with _with_rules(settings, **rules) as (practice, anna):
        now = datetime.now(UTC)
        house = await practice.doctor()
        starts = [now + timedelta(minutes=minutes) for minutes in (50, 90, 180, 300, 400)]
        near, soon, later, fine, last = await practice.open_slots(house, *starts)
        (far,) = await practice.open_slots(house, now + 11 * DAY)

        for path in ("/v1/appointments", "/v1/holds"):
            assert refusal(await practice.send(anna, "POST", path, {"slot_id": near})) == "409 too_late"
            assert refusal(await practice.send(anna, "POST", path, {"slot_id": far})) == "409 slot_unavailable"
        # In an hour and a half: may be booked, but not moved or cancelled any more.
        first = await practice.book(anna, soon)
        assert instant(first["start"]) - instant(first["move_until"]) == 120 * MINUTE
        assert instant(first["start"]) - instant(first["cancel_until"]) == 240 * MINUTE
        # In three hours: may be moved, not cancelled.
        second = await practice.book(anna, later)
        cancel = f"/v1/appointments/{second['id']}/cancel"
        assert refusal(await practice.send(anna, "POST", cancel)) == "409 too_late"
        move = f"/v1/appointments/{first['id']}/reschedule"
        assert refusal(await practice.send(anna, "POST", move, {"slot_id": fine})) == "409 too_late"
        assert (await practice.change(anna, second, "reschedule", {"slot_id": fine}))["status"] == "rescheduled"
        onto = f"/v1/appointments/{second['id']}/reschedule"
        assert refusal(await practice.send(anna, "POST", onto, {"slot_id": near})) == "409 too_late"
        assert (await practice.change(anna, second, "cancel"))["status"] == "cancelled"

        # Patients may not override; staff may, and it is told who did and why.
        why = {"override_reason": "Arrived from afar"}
        for path, body in (("/v1/appointments", {"slot_id": near}), (move, {"slot_id": fine}), (cancel, {})):
            assert refusal(await practice.send(anna, "POST", path, body | why)) == "403 forbidden"
        assert refusal(await practice.send(house, "POST", move, {"slot_id": last})) == "409 too_late"
        await practice.change(house, first, "reschedule", {"slot_id": last} | why)
        third = await practice.book(practice.admin, near, patient_id=anna.patient_id, **why)
        assert refusal(await practice.send(house, "POST", f"/v1/appointments/{third['id']}/cancel")) == "409 too_late"
        await practice.change(practice.admin, third, "cancel", why)
        trail = (await practice.get(practice.admin, "/v1/admin/audit"))["items"]
        assert [
            (entry["action"], entry["user_id"], entry["role"], entry["subject_id"])
            for entry in trail
            if entry["override_reason"] == why["override_reason"]
        ] == [
            ("cancel_appointment", practice.admin.user_id, "admin", third["id"]),
            ("book_appointment", practice.admin.user_id, "admin", third["id"]),
            ("reschedule_appointment", house.user_id, "doctor", first["id"]),
        ]


async def test_a_visit_is_moved_so_often_and_within_its_calendar(settings: Settings) -> None:
    async with _with_rules(settings, moves_max=1, cross_doctor_moves=False) as (practice, anna):
        house, (one, two, three, four) = await practice.doctor_with_slots()
        _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
        visit = await practice.book(anna, one)
        path = f"/v1/appointments/{visit['id']}/reschedule"

        for who in (anna, practice.admin):
            assert refusal(await practice.send(who, "POST", path, {"slot_id": elsewhere})) == "403 forbidden"
        await practice.change(anna, visit, "reschedule", {"slot_id": two})
        for who in (anna, house):
            assert refusal(await practice.send(who, "POST", path, {"slot_id": three})) == "409 limit_reached"
        moved = await practice.change(house, visit, "reschedule", {"slot_id": four, "override_reason": "I am away"})
        assert (moved["slot_id"], moved["version"]) == (four, 3)


async def test_the_limits_span_doctors(settings: Settings) -> None:
    async with _with_rules(settings, live_appointments_max=2, moves_max=1) as (practice, anna):
        calendars = [await practice.doctor_with_slots(first=days_on(day)) for day in (3, 4, 5)]
        (_, one), (_, two), (wilson, three) = calendars
        first = await practice.book(anna, one[0])
        await practice.book(anna, two[0])

        body = {"patient_id": anna.patient_id}
        for slot in (one[1], three[0]):
            for who in (anna, practice.admin):
                answer = await practice.send(who, "POST", "/v1/appointments", {"slot_id": slot} | body)
                assert refusal(answer) == "409 limit_reached"
        await practice.book(wilson, three[0], **body, override_reason="Cannot wait")
        assert refusal(await practice.send(anna, "POST", "/v1/appointments", {"slot_id": one[1]})) == (
            "409 limit_reached"
        )
        # The number of moves goes with the visit.
        moved = await practice.change(anna, first, "reschedule", {"slot_id": two[1]})
        path = f"/v1/appointments/{moved['id']}/reschedule"
        for slot in (two[2], one[0]):
            assert refusal(await practice.send(anna, "POST", path, {"slot_id": slot})) == "409 limit_reached"
        over = {"slot_id": one[0], "override_reason": "I am away"}
        assert (await practice.change(practice.admin, moved, "reschedule", over))["version"] == 3


async def test_no_limits(settings: Settings) -> None:
    async with _with_rules(settings, live_appointments_max=0, holds_max=0, moves_max=0, horizon_days=0) as (
        practice,
        anna,
    ):
        house, slots = await practice.doctor_with_slots(14)
        (far,) = await practice.open_slots(house, days_on(700))
        for slot in slots[:5]:
            await practice.post(anna, "/v1/holds", {"slot_id": slot}, expect=201)
        visits = [await practice.book(anna, slot) for slot in slots[:12]]
        for number in range(7):
            await practice.change(anna, visits[0], "reschedule", {"slot_id": slots[12 + number % 2]})
        await practice.book(anna, far)
