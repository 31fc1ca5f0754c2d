"""How many requests are under way: who counts, and who is turned away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.errors import UnreadableBody
from api.middleware import BODY_LENGTH, ROOM_MIN, Admission, Admit, BodyLimit, Proxies, leave_admission


class Request:
    """A request whose body comes when the test says so, and which ends when the test says so."""

    def __init__(self) -> None:
        self.body = asyncio.Event()
        self.end = asyncio.Event()
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        await self.body.wait()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    async def through(self, admit: Admit, path: str = "/v1/holds") -> None:
        """Pass the middleware."""
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": [], "request": self}
        await admit(scope, self.receive, self.send)


async def app(scope: Scope, receive: Receive, _: Send) -> None:
    await receive()
    await scope["request"].end.wait()


@pytest.fixture
def admission() -> Admission:
    return Admission(1, lambda _: None, Proxies())


async def test_who_waited_for_a_body_is_turned_away_when_the_place_has_been_taken(admission: Admission) -> None:
    admit = Admit(app, admission=admission)
    slow, quick = Request(), Request()
    waiting = asyncio.create_task(slow.through(admit))
    await asyncio.sleep(0)
    assert admission.under_way == 0, "who sends slowly is not under way"
    quick.body.set()
    working = asyncio.create_task(quick.through(admit))
    await asyncio.sleep(0)
    assert admission.full

    slow.body.set()
    with pytest.raises(UnreadableBody) as refusal:
        await waiting
    assert refusal.value.problem.code == "unavailable"
    assert admission.under_way == 1

    quick.end.set()
    await working
    assert admission.under_way == 0


async def test_the_place_of_one_that_is_cancelled_is_free_again(admission: Admission) -> None:
    admit = Admit(app, admission=admission)
    for sent in (False, True):
        request = Request()
        if sent:
            request.body.set()
        going = asyncio.create_task(request.through(admit))
        await asyncio.sleep(0)
        assert admission.full is sent
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert admission.under_way == 0


async def test_one_too_many_gets_503_at_once_and_nobody_asks_after_health_in_vain(admission: Admission) -> None:
    admission.under_way = 1
    asked = []

    async def note(scope: Scope, _: Receive, __: Send) -> None:
        asked.append(scope["path"])

    admit = Admit(note, admission=admission)
    refused, health = Request(), Request()
    await refused.through(admit)
    await health.through(admit, "/healthz")

    assert refused.answer[0]["status"] == 503
    assert asked == ["/healthz"]
    assert admission.under_way == 1


async def test_there_is_room_for_what_is_answered_in_a_moment() -> None:
    now = 0.0
    admission = Admission(2000, lambda _: None, Proxies(), clock=lambda: now)

    def answers(rate: int) -> int:
        """The room after two seconds of so many answers a second."""
        nonlocal now
        for _ in range(2 * rate):
            now += 1 / rate
            admission.ended()
        return admission.room

    assert admission.room == ROOM_MIN, "before anything is known"
    assert answers(100) == ROOM_MIN
    assert 1190 <= answers(8000) <= 1210
    assert answers(100_000) == 2000
    now += 3600
    admission.ended()
    assert admission.room == ROOM_MIN, "what was long ago says nothing"
    assert Admission(5, lambda _: None, Proxies()).room == 5


async def test_what_was_answered_here_counts_as_answered() -> None:
    """A feed that ends, and what was turned away while its body came, say nothing of how quickly answers are given."""
    ended = []
    admission = Admission(1, lambda _: None, Proxies(), clock=lambda: 0.0)
    admission.ended = lambda: ended.append(True)  # type: ignore[method-assign]

    async def feed(scope: Scope, _: Receive, __: Send) -> None:
        leave_admission(scope)

    await Request().through(Admit(feed, admission=admission))
    assert not ended

    refused = Request()
    waiting = asyncio.create_task(refused.through(Admit(app, admission=admission)))
    await asyncio.sleep(0)
    admission.under_way = 1
    refused.body.set()
    with pytest.raises(UnreadableBody):
        await waiting
    admission.under_way = 0
    assert not ended

    answered = Request()
    answered.body.set()
    answered.end.set()
    await answered.through(Admit(app, admission=admission))
    assert ended == [True]


@pytest.mark.parametrize(("length", "status"), [(10, 204), (11, 413)])
async def test_a_body_that_is_there_is_measured_at_once(length: int, status: int) -> None:
    async def receive() -> Message:
        raise AssertionError("there is nothing to wait for")

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    answer: list[Message] = []

    async def send(message: Message) -> None:
        answer.append(message)

    scope = {"type": "http", "path": "/", "headers": [], BODY_LENGTH: lambda scope: length}
    await BodyLimit(app, bytes_max=10, seconds_max=1)(scope, receive, send)
    assert answer[0]["status"] == status
