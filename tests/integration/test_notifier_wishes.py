"""What people have chosen, and what they are told while calendars are closed and opened again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from notifier.preferences import Preferences
from persistence.repositories.notifications import NewNotification, Notifications
from tests.integration.application import PASSWORD
from tests.integration.test_notifier import Desk, clinic, desk, reminders_of

__all__ = ["clinic", "desk"]  # The fixtures.

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAITING = (("reminder", "P1D", None), ("reminder", "PT2H", None))
VOID = (("reminder", "P1D", "void"), ("reminder", "PT2H", "void"))


async def choose(desk: Desk, **chosen: Any) -> None:
    answer = await desk.api.http.put("/v1/me/notification-preferences", json=chosen, headers=desk.headers)
    assert answer.status_code == 200, answer.text


async def close_day(desk: Desk, visit: dict[str, Any]) -> str:
    """A closure that the visit is in."""
    day = visit["start"][:10]
    closure = await desk.clinic.post(
        f"/v1/admin/doctors/{visit['doctor_id']}/closures", {"from": day, "to": day, "reason": "ill"}
    )
    return str(closure["id"])


async def test_a_visit_that_takes_place_after_all_is_told_and_reminded_of(desk: Desk) -> None:
    await choose(desk, quiet_hours=None)
    visit = await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), *WAITING)
        closure_id = await close_day(desk, visit)
        await desk.until_rows(("booked", "", "sent"), ("displaced", "", "sent"), *VOID)
        path = f"/v1/admin/doctors/{visit['doctor_id']}/closures/{closure_id}"
        answer = await desk.api.http.delete(path, headers=desk.clinic.admin)
        assert answer.status_code == 204, answer.text
        await desk.until(lambda: len(desk.mail.mails) == 3)
        assert "takes place after all" in str(desk.mail.mails[-1]["Subject"])
    rows = await desk.rows()
    assert sorted((row for row in rows if row[0] == "reminder"), key=str) == sorted([*VOID, *WAITING], key=str)


async def test_nobody_is_reminded_of_a_visit_that_cannot_take_place(desk: Desk) -> None:
    await choose(desk, quiet_hours=None)
    visit = await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), *WAITING)
        await close_day(desk, visit)
        await desk.until_rows(("booked", "", "sent"), ("displaced", "", "sent"), *VOID)
        await choose(desk)
        assert all(outcome is not None for _, _, outcome in await desk.rows())


async def test_choosing_again_loses_no_reminder_that_waits(desk: Desk) -> None:
    visit = await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), *WAITING)
    # Its moment has come and it was not sent: a provider was away, say.
    await _rows(
        desk,
        "UPDATE notification SET due_at = now() - interval '1 minute', next_at = now() + interval '1 minute'"
        " WHERE appointment_id = :visit AND ahead = 'P1D'",
        visit=visit["id"],
    )
    ends = "SELECT id, ended_at FROM notification WHERE channel = 'email'"
    before = {row.id: row.ended_at for row in await _rows(desk, ends)}
    await choose(desk)
    assert {row.id: row.ended_at for row in await _rows(desk, ends)} == before
    await choose(desk, reminders=["PT2H"])
    assert sorted(await desk.rows(), key=str)[1:] == [("reminder", "P1D", "void"), ("reminder", "PT2H", None)]
    await choose(desk, reminders=["PT2H", "P1D"])
    assert sorted(await desk.rows(), key=str)[1:] == [*WAITING]


async def test_what_comes_late_does_not_come_at_night(desk: Desk) -> None:
    visit = await desk.book()
    start = datetime.fromisoformat(visit["start"])  # Nine o'clock in Berlin.
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), *WAITING)
    desk.clock.ahead = start - timedelta(hours=6) - datetime.now(UTC)
    await _rows(desk, "UPDATE notification SET expires_at = :start WHERE ahead = 'P1D'", start=start)
    async with desk.notifying():
        (waiting,) = await _until_some(
            desk, "SELECT next_at FROM notification WHERE ahead = 'P1D' AND attempts = 1 AND leased_until IS NULL"
        )
        assert waiting.next_at - start == timedelta(hours=-2)
        assert len(desk.mail.mails) == 1
        desk.clock.ahead = start - timedelta(hours=2) - datetime.now(UTC)
        await desk.until(lambda: len(desk.mail.mails) == 3)


async def test_a_reminder_that_was_planned_by_old_preferences_is_not_sent(desk: Desk) -> None:
    await choose(desk, reminders=["P1D"], quiet_hours=None)
    visit = await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None))
        now = datetime.now(UTC)
        async with desk.api.services.unit_of_work() as work:
            reminder = NewNotification(
                outbox_id=await work.connection.scalar(text("SELECT max(id::text) FROM outbox")),
                kind="reminder",
                ahead="PT5H",
                channel="email",
                user_id=desk.patient["id"],
                appointment_id=visit["id"],
                version=1,
                due_at=now,
                expires_at=now + timedelta(hours=1),
            )
            await Notifications(work.connection).add([reminder])
        await desk.until_rows(("booked", "", "sent"), ("reminder", "PT5H", "unwanted"), ("reminder", "P1D", None))


async def test_preferences_of_a_newer_release_are_read_as_far_as_they_are_known(desk: Desk) -> None:
    chosen = Preferences().plain()
    chosen["channels"] |= {"bill": {"email": True}}
    chosen["channels"]["booked"] |= {"pigeon": True}
    assert Preferences.from_plain(chosen) == Preferences()

    await _rows(
        desk,
        "INSERT INTO notification_preference VALUES (:user, '{\"channels\": 7}', now())",
        user=desk.patient["id"],
    )
    await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), *reminders_of(1))


async def test_nobody_is_written_to_by_who_only_says_that_an_address_is_theirs(desk: Desk) -> None:
    """Registering with somebody else's address, and a name that says something, makes one mail without the name."""
    login = f"mallory.{desk.login}"
    address = f"{desk.login}@victim.example"
    name = "FREE MONEY at https://evil.example now"
    await desk.api.register(login, name=name, email=address, phone="+49 30 791235")
    async with desk.notifying():
        for number in range(5):
            form = {"grant_type": "password", "username": login, "password": PASSWORD}
            answer = await desk.api.http.post("/v1/auth/token", data=form, headers={"User-Agent": f"browser {number}"})
            assert answer.status_code == 200, answer.text
        query = "SELECT FROM outbox WHERE planned_at IS NULL UNION ALL SELECT FROM notification WHERE ended_at IS NULL"
        async with asyncio.timeout(desk.patience_s):
            while await _rows(desk, query):
                await asyncio.sleep(0.05)
    (mail,) = desk.mail.to(address)
    assert str(mail["Subject"]) == "Confirm your e-mail address"
    assert "MONEY" not in mail.as_string()


async def _rows(desk: Desk, query: str, **parameters: object) -> list[Any]:
    async with desk.api.services.unit_of_work() as work:
        found = await work.connection.execute(text(query), parameters)
        return list(found.all()) if found.returns_rows else []


async def _until_some(desk: Desk, query: str) -> list[Any]:
    async with asyncio.timeout(desk.patience_s):
        while not (found := await _rows(desk, query)):
            await asyncio.sleep(0.05)
    return found
