"""Commands as such: their keys, which versions they ask for, and what becomes of those that nobody waited for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text

from actors.messages import Command, FinishMove, MoveOut, NotDecided, RefusedFor, Reply
from api.scheduling.commands import keyed_command_id
from cluster.supervisor import MOVE_LEFT_BEHIND
from persistence.identifiers import new_id
from tests.integration.practice import Practice, content, days_on, eventually, instant, refusal
from tests.people import Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = timedelta(minutes=1)


# Keys


async def test_every_command_has_one_effect_under_its_key(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, two, three, _) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    first: dict[str, httpx.Response] = {}

    async def under(key: str, who: Person, path: str, body: Any = None) -> httpx.Response:
        """The second answer is the first, byte by byte."""
        answers = [await practice.send(who, "POST", path, body, idempotency_key=key) for _ in range(2)]
        assert answers[0].status_code in (200, 201), answers[0].text
        _same(answers[0], answers[1])
        first[key] = answers[0]
        return answers[0]

    await under("hold", anna, "/v1/holds", {"slot_id": one})
    visit = (await under("book", anna, "/v1/appointments", {"slot_id": one, "reason": "Headaches"})).json()
    path = f"/v1/appointments/{visit['id']}"
    await under("within", anna, f"{path}/reschedule", {"slot_id": two})
    await under("across", anna, f"{path}/reschedule", {"slot_id": elsewhere})
    await under("back", anna, f"{path}/reschedule", {"slot_id": three})
    await under("arrive", house, f"{path}/arrive")
    last = (await under("cancel", anna, f"{path}/cancel", {"reason": "Feeling better"})).json()

    assert (last["version"], last["status"]) == (6, "cancelled")
    assert await practice.get(anna, path) == last
    # However long ago, and whatever has become of it since.
    again = {
        "hold": ("/v1/holds", {"slot_id": one}),
        "book": ("/v1/appointments", {"reason": "Headaches", "slot_id": one.upper()}),
        "within": (f"{path}/reschedule", {"slot_id": two, "hold_id": None}),
        "across": (f"{path}/reschedule", {"slot_id": elsewhere}),
        "back": (f"{path}/reschedule", {"slot_id": three}),
        "cancel": (f"{path}/cancel", {"reason": "Feeling better"}),
    }
    for key, (address, body) in again.items():
        _same(await practice.send(anna, "POST", address, body, idempotency_key=key), first[key])
    _same(await practice.send(house, "POST", f"{path}/arrive", idempotency_key="arrive"), first["arrive"])
    assert await practice.get(anna, path) == last
    assert await practice.differences() == []


async def test_a_key_is_of_one_request_of_one_user(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, (one, two, three, _) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = content(await practice.send(anna, "POST", "/v1/appointments", {"slot_id": one}, idempotency_key="key"), 201)

    for path, body in (
        ("/v1/appointments", {"slot_id": two}),
        ("/v1/appointments", {"slot_id": elsewhere}),
        ("/v1/appointments", {"slot_id": one, "reason": "Headaches"}),
        ("/v1/holds", {"slot_id": two}),
        (f"/v1/appointments/{visit['id']}/cancel", {}),
        (f"/v1/appointments/{visit['id']}/reschedule", {"slot_id": two}),
        (f"/v1/appointments/{visit['id']}/reschedule", {"slot_id": elsewhere}),
    ):
        answer = await practice.send(anna, "POST", path, body, idempotency_key="key")
        assert refusal(answer) == "422 idempotency_key_reused", (path, body)

    assert await practice.get(anna, f"/v1/appointments/{visit['id']}") == visit
    other = await practice.send(boris, "POST", "/v1/appointments", {"slot_id": three}, idempotency_key="key")
    assert content(other, 201)["patient_id"] == boris.patient_id
    assert await practice.differences() == []


async def test_a_refusal_is_not_remembered(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, (slot, *_) = await practice.doctor_with_slots()
    theirs = await practice.book(boris, slot)
    mine = await practice.book(anna, (await practice.doctor_with_slots(first=days_on(4)))[1][0])

    async def book() -> httpx.Response:
        return await practice.send(anna, "POST", "/v1/appointments", {"slot_id": slot}, idempotency_key="again")

    async def move() -> httpx.Response:
        path = f"/v1/appointments/{mine['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": slot}, idempotency_key="move")

    assert [refusal(await book()) for _ in range(2)] == ["409 slot_taken"] * 2
    assert [refusal(await move()) for _ in range(2)] == ["409 slot_taken"] * 2
    await practice.change(boris, theirs, "cancel")
    booked = content(await book(), 201)
    _same_content(await book(), booked)
    await practice.change(anna, booked, "cancel")
    moved = content(await move(), 200)
    assert moved["slot_id"] == slot
    _same_content(await move(), moved)
    assert await practice.differences() == []


async def test_a_move_that_was_refused_by_its_source_is_decided_anew_under_its_key(practice: Practice) -> None:
    anna = await practice.people.patient()
    first = days_on(3)
    _, (one, *_) = await practice.doctor_with_slots(first=first)
    _, (_, target, *_) = await practice.doctor_with_slots(first=first)
    _, (_, busy, *_) = await practice.doctor_with_slots(first=first)
    visit, other = await practice.book(anna, one), await practice.book(anna, busy)

    async def move() -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": target}, idempotency_key="move")

    assert [refusal(await move()) for _ in range(3)] == ["409 patient_overlap"] * 3
    await practice.change(anna, other, "cancel")
    assert content(await move(), 200)["slot_id"] == target
    assert content(await move(), 200)["version"] == 2
    assert await practice.differences() == []


async def test_under_one_key_a_move_to_another_slot_is_another_move(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt has kept its slot and got no further; the second goes where it says, and the first is freed."""
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    target, (first, second, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    stuck = _StuckMoves(practice, monkeypatch)

    async def move(slot: str) -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": slot}, idempotency_key="move")

    assert refusal(await move(first)) == "503 unavailable"
    stuck.go_on()
    assert content(await move(second), 200)["slot_id"] == second
    assert refusal(await move(first)) == "422 idempotency_key_reused"
    await stuck.drive_on()
    assert (await practice.get(anna, f"/v1/appointments/{visit['id']}"))["slot_id"] == second
    assert [await practice.slot_status(target, slot) for slot in (first, second)] == ["free", "booked"]
    assert await practice.differences() == []


async def test_a_move_under_the_key_of_one_that_was_refused_moves_its_own_visit(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await practice.people.patient()
    _, (one, _, other, _) = await practice.doctor_with_slots(first=days_on(3))
    _, (_, taken, *_) = await practice.doctor_with_slots(first=days_on(4))
    _, (_, overlapping, free, _) = await practice.doctor_with_slots(first=days_on(4))
    refused, wanted = await practice.book(anna, one), await practice.book(anna, other)
    await practice.book(anna, taken)
    stuck = _StuckMoves(practice, monkeypatch)
    stuck.go_on()

    async def move(visit: dict[str, Any], slot: str) -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": slot}, idempotency_key="move")

    assert refusal(await move(refused, overlapping)) == "409 patient_overlap"
    stuck.stop()
    assert refusal(await move(wanted, free)) == "503 unavailable"
    stuck.go_on()
    await stuck.drive_on()
    assert (await practice.get(anna, f"/v1/appointments/{wanted['id']}"))["slot_id"] == free
    assert await practice.get(anna, f"/v1/appointments/{refused['id']}") == refused
    assert content(await move(wanted, free), 200)["id"] == wanted["id"]
    assert await practice.differences() == []


async def test_a_pending_move_that_is_refused_says_so_at_its_address(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    target, (kept, *_) = await practice.doctor_with_slots(first=days_on(4))
    _, (same_time, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit, other = await practice.book(anna, one), await practice.book(anna, same_time)

    async def move() -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": kept}, idempotency_key="move")

    async with await psycopg.AsyncConnection.connect(practice.api.services.settings.database_url or "") as connection:
        # The slot cannot be kept yet, and so nobody knows that the move is not to be.
        await connection.execute("SELECT FROM calendar WHERE doctor_id = %s FOR UPDATE", [target.doctor_id])
        command_id = content(await move(), 202)["command_id"]

    outcome = await _outcome(practice, anna, command_id)
    assert (outcome["status"], outcome["problem"]["code"]) == ("rejected", "patient_overlap")
    await practice.change(anna, other, "cancel")
    assert refusal(await move()) == "409 patient_overlap", "it is remembered, as of every command that was pending"
    assert await practice.get(anna, f"/v1/appointments/{visit['id']}") == visit
    assert await practice.slot_status(target, kept) == "free"
    async with practice.api.services.unit_of_work() as work:
        told = text("SELECT count(*) FROM outbox WHERE kind = 'refused' AND user_id = :id")
        assert await work.connection.scalar(told, {"id": anna.user_id}) == 1
    assert await practice.differences() == []


async def test_a_move_is_tried_anew_though_the_slot_of_the_refused_one_is_still_kept(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    _, (target, *_) = await practice.doctor_with_slots(first=days_on(4))
    _, (same_time, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit, other = await practice.book(anna, one), await practice.book(anna, same_time)
    calendars = practice.api.services.calendars
    send = calendars.send

    async def send_some(command: Command) -> Reply:
        return NotDecided(why=RefusedFor.UNAVAILABLE) if isinstance(command, FinishMove) else await send(command)

    async def move(prefer: str) -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": target}, idempotency_key="move", prefer=prefer)

    with monkeypatch.context() as patch:
        patch.setattr(calendars, "send", send_some)
        assert refusal(await move("wait=5")) == "409 patient_overlap"
    await practice.change(anna, other, "cancel")
    pending = content(await move("respond-async"), 202)
    assert (await _outcome(practice, anna, pending["command_id"]))["appointment"]["slot_id"] == target
    assert await practice.differences() == []


async def test_a_key_of_a_move_of_long_ago_is_used_up(practice: Practice) -> None:
    """Its answer is not stored any more, and the move is done: it is not done again, and nothing goes on for ever."""
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)

    async def move() -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": elsewhere}, idempotency_key="move")

    assert (await move()).status_code == 200
    async with practice.api.services.unit_of_work() as work:
        await work.connection.execute(
            text("DELETE FROM command WHERE command_id = :id"), {"id": keyed_command_id(anna.user_id, "move")}
        )
    back = content(
        await practice.send(anna, "POST", f"/v1/appointments/{visit['id']}/reschedule", {"slot_id": one}), 200
    )
    assert refusal(await move()) == "422 idempotency_key_reused"
    assert await practice.get(anna, f"/v1/appointments/{visit['id']}") == back


async def test_a_repeat_may_write_ids_and_headers_in_another_way(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (one, two, *_) = await practice.doctor_with_slots()
    visit = await practice.book(anna, one)

    async def move(visit_id: str, slot_id: str) -> httpx.Response:
        path = f"/v1/appointments/{visit_id}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": slot_id}, idempotency_key="move")

    _same(await move(visit["id"], two), await move(visit["id"].upper(), two.upper()))
    lines = [*anna.headers.items(), ("Prefer", "wait=5"), ("Prefer", "respond-async")]
    path = f"/v1/appointments/{visit['id']}/cancel"
    cancelled = await practice.api.http.post(path, json={}, headers=lines)
    assert cancelled.status_code == 202, "several lines are one list"


class _StuckMoves:
    """Moves that get no further than to a slot that is kept, until ``go_on``."""

    def __init__(self, practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
        self._services = practice.api.services
        self._stuck = True
        send = self._services.calendars.send

        async def send_some(command: Command) -> Reply:
            if self._stuck and isinstance(command, MoveOut):
                return NotDecided(why=RefusedFor.UNAVAILABLE)
            return await send(command)

        monkeypatch.setattr(self._services.calendars, "send", send_some)

    def stop(self) -> None:
        self._stuck = True

    def go_on(self) -> None:
        self._stuck = False

    async def drive_on(self) -> None:
        """As the supervisor does with those that were left behind; none is left."""
        open_moves = text("SELECT id::text FROM move WHERE state IN ('reserved', 'moved', 'aborted')")
        async with self._services.unit_of_work() as work:
            move_ids = list(await work.connection.scalars(open_moves))
        assert move_ids
        for move_id in move_ids:
            await self._services.moves.drive_on(move_id)
        async with self._services.unit_of_work() as work:
            assert not list(await work.connection.scalars(open_moves))


async def test_a_repeat_of_a_move_is_told_when_it_has_been_taken_in(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    _, (target, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    calendars = practice.api.services.calendars
    send, let_go, go_on = calendars.send, asyncio.Event(), asyncio.Event()

    async def send_slowly(command: Command) -> Reply:
        if isinstance(command, FinishMove) and not let_go.is_set():
            let_go.set()
            await go_on.wait()
        return await send(command)

    monkeypatch.setattr(calendars, "send", send_slowly)

    async def move() -> httpx.Response:
        path = f"/v1/appointments/{visit['id']}/reschedule"
        return await practice.send(anna, "POST", path, {"slot_id": target}, idempotency_key="move")

    first = asyncio.create_task(move())
    await let_go.wait()
    again = content(await move(), 200)
    async with practice.api.services.unit_of_work() as work:
        states = await work.connection.scalars(text("SELECT state FROM move WHERE appointment_id = :id"), visit)
        assert list(states) == ["done"], "taken in before it was told"
    go_on.set()
    assert content(await first, 200) == again


async def test_a_doctor_who_gives_a_visit_away_is_told_so_again(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, two, *_) = await practice.doctor_with_slots()
    wilson, (elsewhere, other, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one, reason="Headaches")
    path = f"/v1/appointments/{visit['id']}"

    async def give_away(slot: str, **headers: str) -> httpx.Response:
        body = {"slot_id": slot}
        return await practice.send(house, "POST", f"{path}/reschedule", body, idempotency_key="away", **headers)

    given = await give_away(elsewhere)
    assert content(given, 200)["doctor_id"] == wilson.doctor_id
    await practice.get(house, path, expect=404)
    _same(await give_away(elsewhere), given)
    _same(await give_away(elsewhere, prefer="respond-async"), given)
    assert refusal(await give_away(other)) == "422 idempotency_key_reused"
    assert refusal(await practice.send(house, "POST", f"{path}/cancel", idempotency_key="other")) == "404 not_found"
    again = await practice.send(wilson, "POST", f"{path}/reschedule", {"slot_id": two}, idempotency_key="away")
    assert content(again, 200)["doctor_id"] == house.doctor_id


async def test_the_same_key_twenty_times_at_once(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (slot, *_) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))

    async def twenty(path: str, body: Any) -> httpx.Response:
        answers = await asyncio.gather(
            *(practice.send(anna, "POST", path, body, idempotency_key="twenty" + path) for _ in range(20))
        )
        for answer in answers:
            _same(answer, answers[0])
        return answers[0]

    visit = content(await twenty("/v1/appointments", {"slot_id": slot}), 201)
    moved = content(await twenty(f"/v1/appointments/{visit['id']}/reschedule", {"slot_id": elsewhere}), 200)
    assert moved["version"] == 2
    assert len((await practice.get(anna, "/v1/appointments"))["items"]) == 1
    assert await practice.differences() == []


@pytest.mark.parametrize("key", ["x" * 129, "", "a b", "a\tb", "\x7f", "naïve"])
async def test_a_key_that_is_none(practice: Practice, key: str) -> None:
    anna = await practice.people.patient()
    _, (slot, *_) = await practice.doctor_with_slots(1)
    answer = await practice.api.http.post(
        "/v1/appointments",
        json={"slot_id": slot},
        headers=[
            *((n.encode(), v.encode()) for n, v in anna.headers.items()),
            (b"Idempotency-Key", key.encode("latin-1")),
        ],
    )
    assert refusal(answer) == "422 validation_error"
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/header/Idempotency-Key"]
    longest = await practice.send(anna, "POST", "/v1/appointments", {"slot_id": slot}, idempotency_key="x" * 128)
    content(longest, 201)


# Versions


async def test_a_command_may_ask_for_a_version(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, two, _, _) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    path = f"/v1/appointments/{visit['id']}"

    for how, who, body in (
        ("reschedule", anna, {"slot_id": two}),
        ("reschedule", anna, {"slot_id": elsewhere}),
        ("cancel", anna, {}),
        ("arrive", house, None),
        ("fulfil", house, None),
        ("no-show", house, None),
    ):
        for tag in ('"2"', '"0"', 'W/"1"', "1", '"one"', '"', '""', "", '"99999999999999999999"', '"1", "2"'):
            answer = await practice.send(who, "POST", f"{path}/{how}", body, if_match=tag)
            assert refusal(answer) == "412 version_conflict", (how, tag)
    assert await practice.get(anna, path) == visit
    moving = await practice.send(anna, "POST", f"{path}/reschedule", {"slot_id": two}, if_match='"1"')
    assert content(moving, 200)["version"] == 2

    moved = await practice.get(anna, path)
    assert (moved["version"], moved["slot_id"]) == (2, two)
    assert content(await practice.send(anna, "POST", f"{path}/cancel", if_match="*"), 200)["version"] == 3
    assert refusal(await practice.send(anna, "POST", f"{path}/cancel", if_match='"2"')) == "412 version_conflict"
    assert refusal(await practice.send(anna, "POST", f"{path}/cancel", if_match='"3"')) == "409 not_live"


async def test_one_of_two_changes_to_the_same_version_counts(practice: Practice) -> None:
    anna = await practice.people.patient()
    house, (one, two, three, _) = await practice.doctor_with_slots()
    _, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    path = f"/v1/appointments/{visit['id']}"

    answers = await asyncio.gather(
        practice.send(anna, "POST", f"{path}/reschedule", {"slot_id": two}, if_match='"1"'),
        practice.send(anna, "POST", f"{path}/reschedule", {"slot_id": elsewhere}, if_match='"1"'),
        practice.send(house, "POST", f"{path}/reschedule", {"slot_id": three}, if_match='"1"'),
        practice.send(house, "POST", f"{path}/arrive", if_match='"1"'),
    )

    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 3}
    assert (await practice.get(anna, path))["version"] == 2
    assert await practice.differences() == []


async def test_who_has_it_already_is_told_so(practice: Practice) -> None:
    anna = await practice.people.patient()
    doctor, (one, *_) = await practice.doctor_with_slots()
    visit = await practice.book(anna, one)
    path = f"/v1/appointments/{visit['id']}"

    answer = await practice.send(anna, "GET", path)
    tag = answer.headers["etag"]
    assert tag.startswith('"1-')
    assert abs(instant(answer.headers["x-as-of"]) - datetime.now(UTC)) < MINUTE
    for given in (tag, f"W/{tag}", f'"0", {tag}', "*"):
        unchanged = await practice.send(anna, "GET", path, if_none_match=given)
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag), given
        assert unchanged.headers["x-as-of"]
    for given in ('"2"', "1", "nonsense"):
        assert (await practice.send(anna, "GET", path, if_none_match=given)).status_code == 200, given

    staffs = (await practice.send(doctor, "GET", path)).headers["etag"]
    assert staffs != tag, "they see who the patient is"
    own = tag
    assert (await practice.send(anna, "PATCH", "/v1/me", {"name": "Anna Sergeeva"})).status_code == 200
    assert (await practice.send(doctor, "GET", path, if_none_match=staffs)).status_code == 200

    slots = {"doctor_id": doctor.doctor_id, "status": "free,booked"}
    listed = await practice.send(None, "GET", "/v1/slots", params=slots)
    tag = listed.headers["etag"]
    unchanged = await practice.send(None, "GET", "/v1/slots", params=slots, if_none_match=tag)
    assert (unchanged.status_code, unchanged.content) == (304, b"")

    await practice.change(anna, visit, "cancel")
    assert (await practice.send(anna, "GET", path, if_none_match=own)).headers["etag"].startswith('"2-')
    assert (await practice.send(None, "GET", "/v1/slots", params=slots, if_none_match=tag)).status_code == 200


# Not waiting


async def test_a_command_that_nobody_waits_for_can_be_followed(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    house, (one, two, three, _) = await practice.doctor_with_slots()

    pending = await _not_waiting(practice, anna, "/v1/appointments", {"slot_id": one, "reason": "Headaches"})
    done = await _outcome(practice, anna, pending)

    visit = done["appointment"]
    assert done == {"command_id": pending, "status": "done", "appointment": visit}
    assert visit == await practice.get(anna, f"/v1/appointments/{visit['id']}")
    assert visit["reason"] == "Headaches"
    for stranger in (boris, house, practice.admin):
        assert refusal(await practice.send(stranger, "GET", f"/v1/commands/{pending}")) == "404 not_found"
    assert refusal(await practice.send(None, "GET", f"/v1/commands/{pending}")) == "401 unauthenticated"
    assert refusal(await practice.send(anna, "GET", f"/v1/commands/{new_id()}")) == "404 not_found"

    path = f"/v1/appointments/{visit['id']}"
    moved = await _not_waiting(practice, anna, f"{path}/reschedule", {"slot_id": two})
    assert (await _outcome(practice, anna, moved))["appointment"]["slot_id"] == two
    arrived = await _not_waiting(practice, house, f"{path}/arrive", None)
    outcome = await _outcome(practice, house, arrived)
    assert (outcome["appointment"]["status"], outcome["appointment"]["patient"]["id"]) == ("arrived", anna.patient_id)
    cancelled = await _not_waiting(practice, anna, f"{path}/cancel", {})
    assert (await _outcome(practice, anna, cancelled))["appointment"]["status"] == "cancelled"
    held = await _not_waiting(practice, anna, "/v1/holds", {"slot_id": three})
    assert await _outcome(practice, anna, held) == {"command_id": held, "status": "done"}
    assert [hold["slot_id"] for hold in (await practice.get(anna, "/v1/holds"))["items"]] == [three]
    # What was true when it was decided, not what has become of it.
    assert (await practice.get(anna, f"/v1/commands/{pending}"))["appointment"]["status"] == "booked"


async def test_a_move_to_another_doctor_that_nobody_waits_for_comes_about(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (one, *_) = await practice.doctor_with_slots(first=days_on(3))
    wilson, (elsewhere, *_) = await practice.doctor_with_slots(first=days_on(4))
    visit = await practice.book(anna, one)
    path = f"/v1/appointments/{visit['id']}"

    hurry = {"idempotency_key": "across", "prefer": "respond-async"}
    pending = await practice.send(anna, "POST", f"{path}/reschedule", {"slot_id": elsewhere}, **hurry)
    command_id = content(pending, 202)["command_id"]
    moved = (await _outcome(practice, anna, command_id))["appointment"]

    assert (moved["doctor_id"], moved["slot_id"], moved["version"]) == (wilson.doctor_id, elsewhere, 2)
    # The rest does not wait until the move looks as if it were left behind.
    asked_at = time.monotonic()

    async def is_taken_in() -> bool:
        return await practice.slot_status(wilson, elsewhere) == "booked"

    await eventually(is_taken_in)
    assert time.monotonic() - asked_at < MOVE_LEFT_BEHIND.total_seconds() / 2
    again = await practice.send(anna, "POST", f"{path}/reschedule", {"slot_id": elsewhere}, **hurry)
    assert content(again, 200) == moved
    assert await practice.differences() == []


async def test_a_command_is_pending_until_it_is_committed(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    doctor, (one, two, *_) = await practice.doctor_with_slots()

    async def book(who: Person, slot: str, **headers: str) -> httpx.Response:
        return await practice.send(who, "POST", "/v1/appointments", {"slot_id": slot}, **headers)

    hurry = {"idempotency_key": "pending", "prefer": "respond-async"}
    database_url = practice.api.services.settings.database_url
    assert database_url is not None
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        # Nothing of this calendar can be committed while somebody else has its row.
        await connection.execute("SELECT FROM calendar WHERE doctor_id = %s FOR UPDATE", [doctor.doctor_id])
        first = await book(anna, one, **hurry)
        address = first.headers["location"]
        assert await practice.get(anna, address) == content(first, 202)
        assert (await practice.get(anna, address))["status"] == "pending"
        assert (await book(anna, one, **hurry)).content == first.content
        for stranger in (boris, doctor, practice.admin):
            await practice.get(stranger, address, expect=404)
        # It promises nothing, so nobody is told of it, nor refused because of it.
        assert (await practice.get(anna, "/v1/appointments"))["items"] == []
        assert await practice.slot_status(doctor, one) == "free"
        refused = asyncio.create_task(book(boris, one))
        taken = asyncio.create_task(book(boris, two))
        assert not (await asyncio.wait({refused, taken}, timeout=0.2))[0]

    done = await _outcome(practice, anna, address.rpartition("/")[2])
    assert done["appointment"]["slot_id"] == one
    # Where it took longer than they wait, they were told that nothing is known yet.
    assert refusal(await refused) in ("409 slot_taken", "503 unavailable")
    assert (await taken).status_code in (201, 202)
    _same_content(await book(anna, one, **hurry), done["appointment"])
    assert await practice.differences() == []


async def test_what_is_refused_at_once_is_answered_at_once(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, (one, *_) = await practice.doctor_with_slots()
    await practice.book(boris, one)

    answer = await practice.send(anna, "POST", "/v1/appointments", {"slot_id": one}, prefer="respond-async")

    assert refusal(answer) == "409 slot_taken"


async def test_what_the_database_refuses_later_is_told_at_the_commands_address(practice: Practice) -> None:
    anna, boris = await practice.people.patients(2)
    _, (one, *_) = await practice.doctor_with_slots()
    doctor, (same_time, *_) = await practice.doctor_with_slots()
    await practice.book(anna, one)

    # Her other visit is in a calendar that this one cannot see.
    pending = await _not_waiting(practice, anna, "/v1/appointments", {"slot_id": same_time})
    outcome = await _outcome(practice, anna, pending)

    assert outcome.keys() == {"command_id", "status", "problem"}
    assert outcome["status"] == "rejected"
    assert (outcome["problem"]["status"], outcome["problem"]["code"]) == (409, "patient_overlap")
    assert refusal(await practice.send(boris, "GET", f"/v1/commands/{pending}")) == "404 not_found"
    assert await practice.slot_status(doctor, same_time) == "free"
    assert await practice.differences() == []


async def test_repeating_with_the_key_leads_to_the_answer(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, (one, two, *_) = await practice.doctor_with_slots()

    async def book(slot: str, **headers: str) -> httpx.Response:
        return await practice.send(
            anna, "POST", "/v1/appointments", {"slot_id": slot}, idempotency_key="followed", **headers
        )

    pending = await book(one, prefer="respond-async")
    assert pending.status_code == 202
    visit = content(await book(one), 201)

    _same_content(await book(one, prefer="respond-async"), visit)
    followed = await practice.get(anna, pending.headers["location"])
    assert followed["appointment"] == visit
    assert refusal(await book(two, prefer="respond-async")) == "422 idempotency_key_reused"
    assert refusal(await book(two)) == "422 idempotency_key_reused"


@pytest.mark.parametrize(
    ("prefer", "is_async"),
    [
        ("respond-async", True),
        ("Respond-Async; x=y, wait=10", True),
        ("handling=lenient, respond-async", True),
        ("respond", False),
        ("respond-asynchronously", False),
        (";;,,", False),
    ],
)
async def test_what_may_be_preferred(practice: Practice, prefer: str, is_async: bool) -> None:
    anna = await practice.people.patient()
    _, (slot, *_) = await practice.doctor_with_slots(1)
    answer = await practice.send(anna, "POST", "/v1/appointments", {"slot_id": slot}, prefer=prefer)
    assert answer.status_code == (202 if is_async else 201)


async def _not_waiting(practice: Practice, who: Person, path: str, body: Any) -> str:
    """The id of a command that is answered with 202."""
    answer = await practice.send(who, "POST", path, body, prefer="respond-async")
    pending = content(answer, 202)
    assert pending == {"command_id": pending["command_id"], "status": "pending"}
    assert answer.headers["location"] == f"/v1/commands/{pending['command_id']}"
    return str(pending["command_id"])


async def _outcome(practice: Practice, who: Person, command_id: str) -> dict[str, Any]:
    """What has become of a command, once something has."""
    state: dict[str, Any] = {}

    async def decided() -> bool:
        nonlocal state
        state = await practice.get(who, f"/v1/commands/{command_id}")
        assert state["status"] in ("pending", "done", "rejected")
        if state["status"] == "pending":
            assert state == {"command_id": command_id, "status": "pending"}
        return bool(state["status"] != "pending")

    await eventually(decided)
    return state


def _same(answer: httpx.Response, other: httpx.Response) -> None:
    """Two answers are equal in all that a client looks at."""
    assert (answer.status_code, answer.content) == (other.status_code, other.content)
    for header in ("etag", "location", "content-type"):
        assert answer.headers.get(header) == other.headers.get(header)


def _same_content(answer: httpx.Response, expected: dict[str, Any]) -> None:
    assert answer.status_code in (200, 201), answer.text
    assert answer.json() == expected
