"""The notifier while the database, a push service or itself is away: nothing comes twice, nobody waits for others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from notifier.notifier import Notifier, NotifierLimits
from notifier.preferences import Channel
from notifier.push import PushKeys, PushSender
from notifier.senders import Failed, Message
from persistence.identifiers import new_id
from persistence.repositories.push_subscriptions import PushSubscriptions
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork
from tests.integration.test_notifier import QUICK, Desk, clinic, desk, reminders_of
from tests.providers import BROWSER, provider

__all__ = ["clinic", "desk"]  # The fixtures.

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT_LEASE = replace(QUICK, lease_s=0.6, send_timeout_s=0.3)


class Postman:
    """A sender that does what it is told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.handed_in = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.failure: Exception | None = None
        self.tried = 0

    async def send(self, message: Message) -> None:
        """See ``Sender``."""
        self.tried += 1
        if self.failure is not None:
            raise self.failure
        self.handed_in.set()
        await self.goes_on.wait()
        self.sent.append(message.content.notification.id)

    async def close(self) -> None:
        """See ``Sender``."""


class Door:
    """The way to the database, which can be shut."""

    def __init__(self, notifier: Notifier) -> None:
        self._begin = notifier._begin
        self.shut = False
        notifier._begin = self

    def __call__(self) -> UnitOfWork:
        if self.shut:
            raise DatabaseUnavailable("away")
        return self._begin()


async def test_what_was_sent_before_an_outage_is_not_sent_again_after_it(desk: Desk) -> None:
    postman = Postman()
    postman.goes_on.clear()
    notifiers = [desk.notifier(SHORT_LEASE, sender=sender) for sender in (postman, Postman())]
    doors = [Door(notifier) for notifier in notifiers]
    await desk.book()
    notifiers[0].start()
    await desk.until(postman.handed_in.is_set)
    notifiers[1].start()
    for door in doors:
        door.shut = True
    postman.goes_on.set()
    await desk.until(lambda: len(postman.sent) == 1)
    await asyncio.sleep(2 * SHORT_LEASE.lease_s)  # Its lease ends meanwhile.
    for door in doors:
        door.shut = False
    try:
        await desk.until_rows(("booked", "", "sent"), *reminders_of(1))
        await asyncio.sleep(2 * SHORT_LEASE.lease_s)
    finally:
        for notifier in notifiers:
            await notifier.stop()
    other = notifiers[1]._sender
    assert isinstance(other, Postman)
    assert len(postman.sent + other.sent) == 1


async def test_who_is_told_to_stop_sees_through_what_is_being_sent(desk: Desk) -> None:
    postman = Postman()
    postman.goes_on.clear()
    notifier = desk.notifier(sender=postman)
    await desk.book()
    notifier.start()
    await desk.until(postman.handed_in.is_set)
    stopping = asyncio.create_task(notifier.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    postman.goes_on.set()
    await stopping
    await desk.until_rows(("booked", "", "sent"), *reminders_of(1))


async def test_what_fails_in_passing_is_tried_for_as_long_as_it_matters(desk: Desk) -> None:
    postman = Postman()
    postman.failure = Failed("SMTP 452")
    limits = replace(QUICK, pause_s=0.01, pause_max_s=0.02, tried_for=timedelta(seconds=3))
    await desk.book()
    async with desk.notifying(limits, sender=postman):
        await desk.until_rows(("booked", "", "dead"), *reminders_of(1))
    assert postman.tried > limits.bugs_max


async def test_what_would_not_matter_at_the_next_attempt_is_dead(desk: Desk) -> None:
    postman = Postman()
    postman.failure = Failed("SMTP 452", retry_after_s=9 * 86_400)
    await desk.book()
    async with desk.notifying(replace(QUICK, pause_max_s=4 * 86_400), sender=postman):
        await desk.until_rows(("booked", "", "dead"), *reminders_of(1))


async def test_a_push_service_that_does_not_answer_delays_nobody_elses(desk: Desk) -> None:
    desk = replace(desk, channel=Channel.PUSH)
    await desk.api.register(f"{desk.login}.other", phone="+49 30 791234")
    other = await desk.api.sign_in(f"{desk.login}.other")
    keys = PushKeys(desk.api.services.vault, subject="mailto:no-reply@clinic.example")

    async def forget(_: str) -> None:
        raise AssertionError("who does not answer is not gone")

    async with provider() as (taking, port):
        for headers, endpoint in (
            (desk.headers, "http://127.0.0.1:1/push/x"),
            (other, f"http://127.0.0.1:{port}/push/y"),
        ):
            answer = await desk.api.http.post(
                "/v1/me/push-subscriptions", json=BROWSER.subscription(endpoint), headers=headers
            )
            assert answer.status_code == 201, answer.text
        for _ in range(8):
            await desk.change(await desk.book(), "cancel")
        sender = PushSender(keys, forget=forget)
        async with desk.notifying(NotifierLimits(poll_s=0.05), channel=Channel.PUSH, sender=sender) as notifier:
            await desk.until(lambda: notifier._counts["cancelled_by_patient", "failed"] >= 8)
            booked = await desk.api.http.post("/v1/appointments", json={"slot_id": desk.slots[3]["id"]}, headers=other)
            assert booked.status_code == 201, booked.text
            async with asyncio.timeout(3.0):
                while not taking.accepted:
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("channel", [Channel.EMAIL, Channel.PUSH])
async def test_only_where_there_is_one_provider_it_is_away_when_it_does_not_answer(
    desk: Desk, channel: Channel
) -> None:
    desk = replace(desk, channel=channel)
    postman = Postman()
    postman.goes_on.clear()
    limits = replace(QUICK, send_timeout_s=0.1, pause_s=0.01, away_row_pause_max_s=0.02, pause_max_s=0.02)
    await desk.book()
    async with desk.notifying(limits, channel=channel, sender=postman) as notifier:
        await desk.until(lambda: notifier._counts["booked", "failed"] > limits.away_after)
        assert notifier._away is (channel is Channel.EMAIL)
        postman.goes_on.set()
        await desk.until_rows(("booked", "", "sent"), *reminders_of(1))


async def test_a_subscription_that_nobody_can_read_costs_no_other_browser_its_message(desk: Desk) -> None:
    desk = replace(desk, channel=Channel.PUSH)
    keys = PushKeys(desk.api.services.vault, subject="mailto:no-reply@clinic.example")
    forgotten: list[str] = []

    async def forget(subscription_id: str) -> None:
        forgotten.append(subscription_id)

    async with provider() as (taking, port):
        good = f"http://127.0.0.1:{port}/push/good"
        for endpoint in (f"{good}0", f"{good}1"):
            subscription = BROWSER.subscription(endpoint)
            answer = await desk.api.http.post("/v1/me/push-subscriptions", json=subscription, headers=desk.headers)
            assert answer.status_code == 201, answer.text
        async with desk.api.services.unit_of_work() as work:
            subscriptions = PushSubscriptions(work.connection, work.vault)
            user = await work.users.get(desk.patient["id"])
            assert user is not None
            (first, _) = (await subscriptions.of([user.id]))[user.id]
            # As no browser makes it and the API takes it from nobody.
            broken = replace(first, id=new_id(), endpoint=f"{good}2", p256dh="AAAA")
            assert await subscriptions.put(broken, key=work.users.data_key(user), most=9)
        await desk.book()
        async with desk.notifying(channel=Channel.PUSH, sender=PushSender(keys, forget=forget)):
            await desk.until_rows(("booked", "", "sent"), *reminders_of(1))
    assert len(taking.accepted) == 2
    assert forgotten == [], "it may be a fault of ours"
