"""The notifier over the real database and a real mail server: who hears of what, once, and of nothing else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from icalendar import Calendar
from sqlalchemy import text

from actors import tasks
from api.notifications.schemas import delivery_plain
from cluster.settings import Settings
from notifier.email import EmailSender, MailServer
from notifier.notifier import Notifier, NotifierLimits
from notifier.preferences import Channel, Preferences, Topic
from notifier.push import PushKeys, PushSender
from notifier.senders import Message, Sender
from notifier.sms import SmsProvider, SmsSender
from notifier.unsubscribe import link_maker
from persistence.identifiers import new_id
from persistence.repositories.codes import Purpose
from persistence.repositories.notifications import NewNotification, Notifications
from persistence.repositories.push_subscriptions import PushSubscriptions
from persistence.unit_of_work import UnitOfWork
from tests.integration.application import PASSWORD, Application, running
from tests.integration.clinic import Clinic, open_clinic
from tests.mail import MailServer as RealMailServer
from tests.mail import mail_server, make_certificate
from tests.providers import BROWSER, provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENDER = "Clinic at the park <no-reply@clinic.example>"
QUICK = NotifierLimits(poll_s=0.05, pause_s=0.05, away_pause_max_s=0.1, send_timeout_s=1.0, lease_s=2.5)


@dataclass(slots=True)
class Clock:
    """A clock that can be put forward."""

    ahead: timedelta = timedelta(0)

    async def read(self, _: UnitOfWork) -> datetime:
        return self()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A clinic with a doctor, a patient whose address is known to be theirs, and their mail."""

    clinic: Clinic
    mail: RealMailServer
    login: str
    patient: dict[str, Any]
    headers: dict[str, str]
    slots: list[dict[str, Any]]
    clock: Clock
    channel: Channel = Channel.EMAIL
    """Whose messages are looked at."""
    patience_s: float = 15.0

    @property
    def api(self) -> Application:
        """The application."""
        return self.clinic.api

    async def book(self, number: int = 0) -> dict[str, Any]:
        """Book one of the slots."""
        answer = await self.api.http.post(
            "/v1/appointments", json={"slot_id": self.slots[number]["id"]}, headers=self.headers
        )
        assert answer.status_code == 201, answer.text
        visit: dict[str, Any] = answer.json()
        return visit

    async def change(self, visit: dict[str, Any], what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Move or cancel a visit."""
        answer = await self.api.http.post(
            f"/v1/appointments/{visit['id']}/{what}", json=body or {}, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return changed

    def notifier(
        self, limits: NotifierLimits = QUICK, *, channel: Channel = Channel.EMAIL, sender: Sender | None = None
    ) -> Notifier:
        """A notifier by this desk's clock; for e-mail, unless another channel and its sender are given."""
        server = MailServer.from_url(f"smtp://127.0.0.1:{self.mail.port}", sender=SENDER)
        return Notifier(
            channel=channel,
            channels=frozenset({channel}),
            begin=self.api.services.unit_of_work,
            sender=sender or EmailSender(server),
            signals=None,
            clock=self.clock,
            unsubscribe_url=link_maker(self.api.services.vault, "https://clinic.example"),
            limits=limits,
        )

    @asynccontextmanager
    async def notifying(
        self, limits: NotifierLimits = QUICK, *, channel: Channel = Channel.EMAIL, sender: Sender | None = None
    ) -> AsyncIterator[Notifier]:
        """A notifier at work."""
        notifier = self.notifier(limits, channel=channel, sender=sender)
        notifier.start()
        try:
            yield notifier
            assert notifier.running
        finally:
            await notifier.stop()

    async def switch_on(self, channel: Channel) -> None:
        """Have everything said on a channel."""
        chosen = Preferences(channels={topic: frozenset(Channel) for topic in Topic}).plain()
        answer = await self.api.http.put(
            "/v1/me/notification-preferences", json={"channels": chosen["channels"]}, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["channels"]["booked"][channel.value]

    async def rows(self) -> list[tuple[str, str, str | None]]:
        """Kind, offset and outcome of every message on the channel, in the order in which they were or are due."""
        async with self.api.services.unit_of_work() as work:
            found = await work.connection.execute(
                text(
                    "SELECT kind, ahead, outcome FROM notification"
                    " WHERE appointment_id IS NOT NULL AND channel = :channel ORDER BY due_at, id"
                ),
                {"channel": self.channel},
            )
            return [(row.kind, row.ahead, row.outcome) for row in found]

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(self.patience_s):
            while not so():
                await asyncio.sleep(0.02)

    async def until_ended(self) -> None:
        """Wait until no message is left that could be sent."""
        async with asyncio.timeout(self.patience_s):
            while None in {outcome for _, _, outcome in await self.rows()}:
                await asyncio.sleep(0.05)

    async def until_failed(self, failure: str) -> None:
        """Wait until sending something has failed with that, and is to be tried again."""
        failures = "SELECT count(*) FROM notification WHERE failure = :failure AND ended_at IS NULL"
        async with asyncio.timeout(self.patience_s):
            while True:
                async with self.api.services.unit_of_work() as work:
                    if await work.connection.scalar(text(failures), {"failure": failure}):
                        return
                await asyncio.sleep(0.05)

    async def until_rows(self, *expected: tuple[str, str, str | None]) -> None:
        """Wait until the messages are these."""
        rows: list[tuple[str, str, str | None]] = []
        try:
            async with asyncio.timeout(self.patience_s):
                while (rows := await self.rows()) != list(expected):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"the messages are {rows}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clinic(
    new_database: Callable[[], AbstractContextManager[str]], settings_over: Callable[[str], Settings]
) -> AsyncIterator[Clinic]:
    """A clinic that has e-mail and push. What sends is up to each test."""
    given = {"smtp_url": "smtp://127.0.0.1:1", "push_hosts": ("127.0.0.1",), "rate_limit": 0}
    with new_database() as database_url:
        async with running(settings_over(database_url).model_copy(update=given)) as api:
            yield await open_clinic(api)


_numbers = count(1)


@pytest_asyncio.fixture(loop_scope="module")
async def desk(clinic: Clinic) -> AsyncIterator[Desk]:
    """A doctor, a patient and a mail server of the test's own; nothing is left to be said."""
    number = next(_numbers)
    async with mail_server() as mail:
        doctor_id, day = await clinic.working_doctor(f"dr.house{number}", slots=8, phone=f"+49 30 77{number:04}")
        login = f"anna.petrova{number}"
        patient = await clinic.api.register(login, timezone="Europe/Berlin", phone=f"+49 30 78{number:04}")
        async with clinic.api.services.unit_of_work() as work:
            for statement in (
                "UPDATE app_user SET email_verified_at = now() WHERE email_index IS NOT NULL",
                "UPDATE outbox SET planned_at = now()",
                "TRUNCATE notification, notification_template",
            ):
                await work.connection.execute(text(statement))
        yield Desk(
            clinic=clinic,
            mail=mail,
            login=login,
            patient=patient,
            headers=await clinic.api.sign_in(login),
            slots=await clinic.slots(**{"doctor_id": doctor_id, "from": day.isoformat(), "to": day.isoformat()}),
            clock=Clock(),
        )


async def test_a_booking_is_confirmed_once_with_an_invitation(desk: Desk) -> None:
    visit = await desk.book()
    async with desk.notifying(), desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
    (mail,) = desk.mail.to(f"{desk.login}@mail.example")
    assert mail["From"] == SENDER
    assert str(mail["Subject"]).startswith("Your visit on ")
    assert str(mail["Message-ID"]).endswith("@clinic.example>")
    body = mail.get_body(("plain",))
    assert body is not None
    assert "Clinic at the park, Parkstrasse 1" in body.get_content()
    (calendar,) = [part for part in mail.walk() if part.get_content_type() == "text/calendar"]
    assert calendar.get_param("method") == "REQUEST"
    (event,) = Calendar.from_ical(calendar.get_content()).walk("VEVENT")
    assert str(event["uid"]) == f"{visit['id']}@zapis"


async def test_what_is_no_longer_true_is_not_said(desk: Desk) -> None:
    visit = await desk.book()
    async with desk.notifying():
        await desk.until(lambda: len(desk.mail.mails) == 1)
        visit = await desk.change(visit, "reschedule", {"slot_id": desk.slots[2]["id"]})
        await desk.until_rows(
            ("booked", "", "sent"),
            ("moved", "", "sent"),
            ("reminder", "P1D", "void"),
            ("reminder", "P1D", None),
            ("reminder", "PT2H", "void"),
            ("reminder", "PT2H", None),
        )
        await desk.change(visit, "cancel")
        await desk.until(lambda: len(desk.mail.mails) == 3)
        await desk.until_ended()
    subjects = [str(mail["Subject"]) for mail in desk.mail.mails]
    assert ["moved" in subjects[1], "cancelled" in subjects[2]] == [True, True]
    assert len(subjects) == 3
    assert {outcome for _, _, outcome in await desk.rows()} == {"sent", "void"}


async def test_reminders_come_when_they_are_due(desk: Desk) -> None:
    visit = await desk.book()
    start = datetime.fromisoformat(visit["start"])
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
        desk.clock.ahead = start - timedelta(hours=23) - datetime.now(UTC)
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", "sent"), ("reminder", "PT2H", None))
        desk.clock.ahead = start - timedelta(hours=1) - datetime.now(UTC)
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", "sent"), ("reminder", "PT2H", "sent"))
    assert [str(mail["Subject"])[:9] for mail in desk.mail.mails[1:]] == ["Reminder:"] * 2


async def test_after_a_long_silence_only_what_still_matters_is_said(desk: Desk) -> None:
    visit = await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
    desk.clock.ahead = datetime.fromisoformat(visit["start"]) - timedelta(hours=1) - datetime.now(UTC)
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", "late"), ("reminder", "PT2H", "sent"))
    assert len(desk.mail.mails) == 2


async def test_what_fails_in_passing_is_tried_again_and_known_as_the_same(desk: Desk) -> None:
    desk.mail.failing, desk.mail.withheld = 0.3, 2
    for number in range(6):
        await desk.book(number)
    async with desk.notifying():
        await desk.until(lambda: len(desk.mail.by_message_id) == 6)
        await desk.until_rows(*[("booked", "", "sent")] * 6, *reminders_of(6))
    assert sum(desk.mail.by_message_id.values()) == 6 + desk.mail.answers_withheld


async def test_a_bad_recipient_ends_and_delays_nobody(desk: Desk) -> None:
    desk.mail.refused.add(f"{desk.login}@mail.example")
    await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "dead"), ("reminder", "P1D", None), ("reminder", "PT2H", None))


async def test_a_server_that_is_away_is_waited_for(desk: Desk) -> None:
    await desk.mail.stop()
    await desk.book()
    async with desk.notifying():
        await desk.until_failed("SMTPConnectError")
        assert (await desk.rows())[0] == ("booked", "", None)
        await desk.mail.start()
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
    assert len(desk.mail.mails) == 1


async def test_who_dies_while_sending_leaves_it_to_the_next(desk: Desk) -> None:
    desk.mail.slow_s = 60.0
    await desk.book()
    dying = desk.notifier()
    dying.start()
    await desk.until(lambda: desk.mail.in_hand == 1)
    await kill(dying)
    desk.mail.slow_s = 0.0
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
    assert len(desk.mail.mails) == 1


async def test_who_dies_after_sending_leaves_a_mail_that_is_known_as_the_same(desk: Desk) -> None:
    await desk.book()
    dying = desk.notifier()
    dying._mark = lambda _: None  # type: ignore[assignment, method-assign]  # It dies before it has marked anything.
    dying.start()
    await desk.until(lambda: len(desk.mail.mails) == 1)
    await kill(dying)
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
    assert list(desk.mail.by_message_id.values()) == [2]


async def test_what_cannot_be_sent_in_a_way_that_nobody_foresaw_delays_nobody(desk: Desk) -> None:
    visits = [await desk.book(number) for number in range(4)]
    notifier = desk.notifier()
    send = notifier._sender.send

    async def send_all_but_one(message: Message) -> None:
        if message.content.notification.appointment_id == visits[1]["id"]:
            raise ZeroDivisionError
        await send(message)

    notifier._sender.send = send_all_but_one  # type: ignore[method-assign]
    notifier.start()
    try:
        await desk.until(lambda: len(desk.mail.mails) == 3)
        assert notifier.running
        assert (await notifier.status())["counts"][-1] == ["booked", "sent", 3]
    finally:
        await notifier.stop()


async def test_a_row_that_this_release_does_not_understand_delays_nobody(desk: Desk) -> None:
    async with desk.notifying():
        await desk.book(0)
        await desk.until_rows(("booked", "", "sent"), *reminders_of(1))
        async with desk.api.services.unit_of_work() as work:
            # As a newer one may have written them, of this visit and of a cause.
            await work.connection.execute(
                text("UPDATE notification SET kind = 'invented', next_at = now() WHERE ahead = 'P1D'")
            )
            await work.connection.execute(
                text("INSERT INTO outbox (id, kind, user_id, due_at) VALUES (:id, 'invented', :id, now())"),
                desk.patient,
            )
        await desk.book(1)
        await desk.until(lambda: len(desk.mail.mails) == 2)


def due_now(desk: Desk, count: int) -> list[NewNotification]:
    """Reminders of invented visits."""
    now = datetime.now(UTC)
    return [
        NewNotification(
            outbox_id=new_id(),
            kind="reminder",
            ahead="P1D",
            channel=Channel.SMS,
            user_id=desk.patient["id"],
            appointment_id=new_id(),
            version=1,
            due_at=now,
            expires_at=now,
        )
        for _ in range(count)
    ]


async def test_more_messages_than_fit_into_one_statement_are_planned(desk: Desk) -> None:
    async with desk.api.services.unit_of_work() as work:
        await Notifications(work.connection).add(due_now(desk, 7_000))
        assert (await Notifications(work.connection).backlog(Channel.SMS, now=datetime.now(UTC))).due == 7_000


async def test_a_lease_writes_no_index_and_shows_until_it_ends(desk: Desk) -> None:
    async with desk.api.services.unit_of_work() as work:
        await Notifications(work.connection).add(due_now(desk, 5))
    now = datetime.now(UTC)
    until = now + timedelta(minutes=1)
    async with desk.api.services.unit_of_work() as work:
        notifications = Notifications(work.connection)
        leased = await notifications.lease(Channel.SMS, now=now, until=until, limit=3)
        assert [delivery_plain(each)["next_at"] for each in leased] == [until] * 3
        updated = await work.connection.execute(
            text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'notification'")
        )
        assert updated.one() == (3, 3)
        for at, free in ((now, 2), (until - timedelta(seconds=1), 2), (until, 5)):
            assert (await notifications.backlog(Channel.SMS, now=at)).due == free
        assert len(await notifications.lease(Channel.SMS, now=now, until=until, limit=5)) == 2
        assert await notifications.next_at(Channel.SMS, now=now) is None
        assert await notifications.next_at(Channel.SMS, now=until) is not None


async def test_a_sender_that_the_server_does_not_want_is_no_fault_of_the_message(desk: Desk) -> None:
    desk.mail.wants_sender = False
    await desk.book()
    async with desk.notifying():
        await desk.until_failed("SMTP 550")
        assert (await desk.rows())[0] == ("booked", "", None)
        desk.mail.wants_sender = True
        await desk.until_rows(("booked", "", "sent"), *reminders_of(1))


async def test_a_channel_that_was_switched_off_meanwhile_is_silent(desk: Desk) -> None:
    await desk.book()
    async with desk.notifying():
        await desk.until_rows(("booked", "", "sent"), ("reminder", "P1D", None), ("reminder", "PT2H", None))
        await desk.book(2)
        await desk.until(lambda: len(desk.mail.mails) == 2)
        token = str(desk.mail.mails[0]["List-Unsubscribe"]).partition("token=")[2].rstrip(">")
        answer = await desk.api.http.post(
            "/v1/notifications/unsubscribe", params={"token": token}, data={"List-Unsubscribe": "One-Click"}
        )
        assert answer.status_code == 200, answer.text
        await desk.book(4)
        await desk.until_rows(
            *[("booked", "", "sent")] * 2, *[("reminder", "P1D", None)] * 3, *[("reminder", "PT2H", None)] * 3
        )
    assert len(desk.mail.mails) == 2


async def test_only_so_many_a_day(desk: Desk) -> None:
    for number in range(4):
        await desk.book(number)
    async with desk.notifying(replace(QUICK, a_day_max=3)):
        await desk.until_rows(*[("booked", "", "sent")] * 3, ("booked", "", "capped"), *reminders_of(4))


async def test_an_address_that_may_be_somebody_elses_learns_no_name(desk: Desk) -> None:
    async with desk.api.services.unit_of_work() as work:
        await work.connection.execute(text("UPDATE app_user SET email_verified_at = NULL WHERE id = :id"), desk.patient)
    await desk.book()
    async with desk.notifying():
        await desk.until(lambda: len(desk.mail.mails) == 1)
    said = desk.mail.mails[0].as_string()
    assert "Petrova" not in said
    assert "House" not in said
    assert "Clinic at the park" in said
    assert "text/calendar" not in said


SECURE = pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])


@SECURE
async def test_mail_goes_out_encrypted_to_a_server_that_somebody_vouches_for(
    desk: Desk, scheme: str, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    await desk.book()
    async with mail_server(context, starttls=scheme == "smtp+starttls") as secure:
        url = f"{scheme}://127.0.0.1:{secure.port}"
        distrusting = EmailSender(MailServer.from_url(url, sender=SENDER))
        async with desk.notifying(sender=distrusting):
            await desk.until_failed("SMTPConnectError" if scheme == "smtps" else "SSLCertVerificationError")
        assert secure.mails == []
        trusting = EmailSender(MailServer.from_url(url, sender=SENDER, ca_file=str(certificate)))
        async with desk.notifying(sender=trusting):
            await desk.until(lambda: len(secure.mails) == 1)


@pytest.mark.parametrize("kind", ["webhook", "twilio"])
async def test_sms_go_to_verified_numbers_and_a_repeat_is_known(desk: Desk, kind: str) -> None:
    desk = replace(desk, channel=Channel.SMS)
    await desk.switch_on(Channel.SMS)
    async with provider() as (taking, port):
        url = {
            "webhook": f"http://:secret@127.0.0.1:{port}/sms",
            "twilio": f"twilio+http://AC1:t@127.0.0.1:{port}?from=%2B1",
        }
        sender = SmsSender(SmsProvider.from_url(url[kind]))
        await desk.book(0)
        taking.failing, taking.withheld = 0.3, 1
        async with desk.notifying(channel=Channel.SMS, sender=sender):
            await desk.until_rows(("booked", "", "unreachable"), *reminders_of(1))
            async with desk.api.services.unit_of_work() as work:
                await work.connection.execute(
                    text("UPDATE app_user SET phone_verified_at = now() WHERE id = :id"), desk.patient
                )
            for number in range(1, 5):
                await desk.book(number)
            await desk.until_rows(("booked", "", "unreachable"), *[("booked", "", "sent")] * 4, *reminders_of(5))
    assert len(taking.by_key) == 4
    assert sum(taking.by_key.values()) == 4 + taking.answers_withheld == 5
    said = taking.accepted[0][1]
    assert said["to" if kind == "webhook" else "To"] == desk.patient["phone"]
    words = said["text" if kind == "webhook" else "Body"]
    assert words.startswith("Your visit is booked: ")
    assert "House" not in words
    (authorization,) = taking.authorizations
    assert authorization == ("Bearer secret" if kind == "webhook" else "Basic QUMxOnQ=")


async def test_push_reaches_browsers_and_forgets_those_that_are_gone(desk: Desk) -> None:
    desk = replace(desk, channel=Channel.PUSH)
    keys = PushKeys(desk.api.services.vault, subject="mailto:no-reply@clinic.example")

    async def forget(subscription_id: str) -> None:
        async with desk.api.services.unit_of_work() as work:
            await PushSubscriptions(work.connection, work.vault).remove(subscription_id)

    async with provider() as (taking, port):
        sender = PushSender(keys, forget=forget)
        async with desk.notifying(channel=Channel.PUSH, sender=sender):
            await desk.book(0)
            await desk.until_rows(("booked", "", "unreachable"), *reminders_of(1))
            answer = await desk.api.http.post(
                "/v1/me/push-subscriptions",
                json=BROWSER.subscription(f"http://127.0.0.1:{port}/push/one"),
                headers=desk.headers,
            )
            assert answer.status_code == 201, answer.text
            await desk.book(1)
            await desk.until_rows(("booked", "", "unreachable"), ("booked", "", "sent"), *reminders_of(2))
            ((_, pushed),) = taking.accepted
            assert pushed["body"].startswith("Your visit is booked: ")
            assert int(pushed["ttl"]) > 0
            taking.status = 410
            await desk.book(2)
            await desk.until_rows(
                ("booked", "", "unreachable"), ("booked", "", "sent"), ("booked", "", "unreachable"), *reminders_of(3)
            )
    left = await desk.api.http.get("/v1/me/push-subscriptions", headers=desk.headers)
    assert left.json()["items"] == []


async def test_what_an_administrator_has_written_is_what_is_said(desk: Desk) -> None:
    template = {"subject": "Bis bald um {{ time }}", "text": "Guten Tag {{ name }}", "short": "{{ time }}"}
    path = "/v1/admin/templates/booked/en"
    answer = await desk.api.http.put(path, json=template, headers=desk.clinic.admin)
    assert answer.status_code == 200, answer.text
    await desk.book()
    async with desk.notifying():
        await desk.until(lambda: len(desk.mail.mails) == 1)
        assert str(desk.mail.mails[0]["Subject"]) == "Bis bald um 09:00"
        # It did render when it was saved. If it does not any more, people hear of their visits all the same.
        async with desk.api.services.unit_of_work() as work:
            await work.connection.execute(text("UPDATE notification_template SET subject = '{{ gone }}'"))
        await desk.book(1)
        await desk.until(lambda: len(desk.mail.mails) == 2)
    assert str(desk.mail.mails[1]["Subject"]).startswith("Your visit on")


async def test_messages_about_an_account_are_sent_whatever_was_chosen(desk: Desk) -> None:
    async with desk.notifying():
        answer = await desk.api.http.post("/v1/auth/password/forgot", json={"login": desk.login})
        assert answer.status_code == 202, answer.text
        await desk.until(lambda: len(desk.mail.mails) == 1)
        body = desk.mail.mails[0].get_body(("plain",))
        assert body is not None
        (code,) = await desk.api.sent_codes(desk.patient["id"], Purpose.PASSWORD)
        assert code in body.get_content()
        # The first device is no news; another one is.
        form = {"grant_type": "password", "username": desk.login, "password": PASSWORD}
        await desk.api.http.post("/v1/auth/token", data=form, headers={"User-Agent": "Another browser"})
        await desk.until(lambda: len(desk.mail.mails) == 2)
        assert str(desk.mail.mails[1]["Subject"]) == "A new sign-in to your account"
        again = await desk.api.http.post("/v1/auth/token", data=form, headers={"User-Agent": "Another browser"})
        assert again.status_code == 200
        async with desk.api.services.unit_of_work() as work:
            news = text("SELECT count(*) FROM outbox WHERE kind = 'new_device' AND user_id = :user")
            assert await work.connection.scalar(news, {"user": desk.patient["id"]}) == 1
    assert len(desk.mail.mails) == 2


async def kill(notifier: Notifier) -> None:
    """End it as a killed process ends: nothing is tidied up, nothing written down."""
    await tasks.end(*notifier._tasks, *notifier._sending)


def reminders_of(visits: int) -> list[tuple[str, str, str | None]]:
    """Those of so many visits of one day."""
    return [*[("reminder", "P1D", None)] * visits, *[("reminder", "PT2H", None)] * visits]
