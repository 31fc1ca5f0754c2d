"""Notifiers as Ray actors: who decides how they work and how many there are, and what becomes of one that dies."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import structlog
import time_machine
from sqlalchemy import Row, text

from actors import detached
from cluster.bootstrap import Services, close_services, open_services
from cluster.notifiers import notifier_config
from cluster.settings import Settings
from notifier import actor
from notifier.actor import NAME, NotifierConfig, RayNotifier, RayNotifiers
from notifier.clock import DatabaseClock
from notifier.email import MailServer
from notifier.notifier import NotifierLimits
from notifier.preferences import Channel
from notifier.sms import SmsProvider
from persistence.database import open_database
from persistence.sealed import Vault
from persistence.unit_of_work import UnitOfWork
from tests.e2e.clinic import LONG
from tests.faults.proxy import Proxy
from tests.integration.test_notifier import SENDER, Desk, clinic, desk
from tests.mail import MailServer as RealMailServer
from tests.mail import mail_server, make_certificate
from tests.providers import BROWSER, Provider, provider

__all__ = ["clinic", "desk"]  # The fixtures.

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMTP = "smtp://127.0.0.1:1"
OLDER = datetime(2026, 1, 1, tzinfo=UTC)
NEWER = OLDER + timedelta(minutes=1)
PATIENCE_S = 30.0
MESSAGES = 7000 if LONG else 120
"""On each channel."""
AWAY_S = 60.0 if LONG else 2.0
WITHHELD = 5
LIMITS = (
    NotifierLimits(a_day_max=0, pause_max_s=5.0)
    if LONG
    else NotifierLimits(
        a_day_max=0,
        lease_s=4.0,
        send_timeout_s=2.0,
        pause_s=0.2,
        pause_max_s=1.0,
        away_pause_max_s=0.5,
        away_row_pause_max_s=1.0,
    )
)
"""In the long form leases and timeouts as everybody has them; there is no time in the short one for them to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A namespace of Ray, and how notifiers work in it."""

    namespace: str
    config: NotifierConfig
    services: Services | None = None

    def names(self) -> set[str]:
        """The notifiers that there are."""
        return {name.removeprefix(NAME) for name in detached.running(self.namespace, (NAME,))}

    def process(self, name: str) -> int:
        """That of a notifier."""
        handle: Any = ray.get_actor(f"{NAME}{name}", namespace=self.namespace)
        found: int = ray.get(handle.__ray_call__.remote(_process_of), timeout=20)
        return found


@asynccontextmanager
async def deployment(settings: Settings) -> AsyncIterator[Deployment]:
    """One without any notifiers yet."""
    settings = settings.model_copy(update={"smtp_url": SMTP, "push_hosts": ("127.0.0.1",)})
    services = await open_services(settings)
    try:
        yield Deployment(namespace=settings.ray_namespace, config=notifier_config(settings), services=services)
    finally:
        await RayNotifiers(settings.ray_namespace).stop()
        await services.supervisor.stop()
        await services.calendar_actors.drain(PATIENCE_S)
        await close_services(services)


def one_each(here: Deployment) -> Callable[[], Awaitable[set[str]]]:
    """What has one notifier work for each channel, and tells who answers."""
    notifiers = RayNotifiers(here.namespace)

    async def run() -> set[str]:
        return _names(await notifiers.run(here.config, actors=1, since=OLDER))

    return run


async def until(run: Callable[[], Awaitable[set[str]]], names: set[str]) -> None:
    """Ask until these are who answers: an actor that is still starting does not."""
    async with asyncio.timeout(PATIENCE_S):
        while await run() != names:
            await asyncio.sleep(0.1)


async def test_who_was_started_last_decides_how_many_there_are_and_the_others_look_on(settings: Settings) -> None:
    async with deployment(settings) as here:
        older, newer = RayNotifiers(here.namespace), RayNotifiers(here.namespace)

        async def older_runs() -> set[str]:
            return _names(await older.run(here.config, actors=2, since=OLDER))

        async def newer_runs(config: NotifierConfig) -> set[str]:
            return _names(await newer.run(config, actors=1, since=NEWER))

        everyone = {"email:0", "email:1", "push:0", "push:1"}
        await until(older_runs, everyone)
        assert here.names() == everyone
        assert await newer_runs(here.config) == here.names() == {"email:0", "push:0"}
        assert await older_runs() == here.names() == {"email:0", "push:0"}, "it looks on"

        without_push = replace(here.config, push_subject=None)
        assert await newer_runs(without_push) == here.names() == {"email:0"}
        assert await older_runs() == here.names() == {"email:0"}


async def test_a_notifier_whose_process_dies_is_back_and_works(settings: Settings) -> None:
    async with deployment(settings) as here:
        run = one_each(here)
        await until(run, {"email:0", "push:0"})
        process = here.process("email:0")

        os.kill(process, signal.SIGKILL)

        await until(run, {"email:0", "push:0"})
        assert here.process("email:0") != process


async def test_what_actors_log_holds_no_local_variables(settings: Settings) -> None:
    async with deployment(settings) as here:
        run = one_each(here)
        await until(run, {"email:0", "push:0"})
        assert here.services is not None
        await here.services.calendars.start_actors()
        actors = detached.running(here.namespace, ("notifier:", "calendar"))
        assert {name.partition(":")[0] for name in actors} >= {"notifier", "calendars"}
        for name, handle in actors.items():
            asked: Any = handle
            written = ray.get(asked.__ray_call__.remote(_log_failure), timeout=20)
            assert "ZeroDivisionError" in written, name
            assert "secret" not in written, name


async def test_who_has_gone_decides_no_more(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "DECIDES_FOR_S", 0.5)
    monkeypatch.setattr(actor, "configure_logging", lambda *_: None)  # This process is not its own.
    one = notifier_config(settings.model_copy(update={"smtp_url": SMTP}))
    other = replace(one, push_subject="mailto:somebody@clinic.example")
    notifier = RayNotifier("email")
    try:
        await notifier.run(one, NEWER)
        await notifier.run(other, OLDER)
        assert (await notifier.decided_by(), notifier._config) == (NEWER, one)

        async with asyncio.timeout(PATIENCE_S):
            while await notifier.decided_by() is not None:
                await asyncio.sleep(0.05)
        await notifier.run(other, OLDER)
        assert (await notifier.decided_by(), notifier._config) == (OLDER, other)
    finally:
        await notifier.stop()


async def test_a_wrong_clock_of_its_node_is_nothing_to_a_notifier(database_url: str) -> None:
    database = open_database(database_url, pool_max=1)
    clock = DatabaseClock()
    try:
        async with UnitOfWork(database, Vault(bytes(32))) as work:
            right = await clock.read(work)
            with time_machine.travel(right + timedelta(hours=1)):
                assert abs(await clock.read(work) - right) < timedelta(seconds=PATIENCE_S)
                assert abs(clock() - right) < timedelta(seconds=PATIENCE_S)
    finally:
        await database.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """One of each kind, behind proxies that can be taken away."""

    mail: RealMailServer
    sms: Provider
    push: Provider
    proxies: Mapping[Channel, Proxy]

    @property
    def times(self) -> Mapping[Channel, Counter[str]]:
        """How often each message was taken, by its id."""
        mails = Counter({each.strip("<>").partition("@")[0]: n for each, n in self.mail.by_message_id.items()})
        return {Channel.EMAIL: mails, Channel.SMS: self.sms.by_key, Channel.PUSH: self.push.by_key}

    @property
    def answers_withheld(self) -> Mapping[Channel, int]:
        """How often one took a message and its answer said otherwise."""
        return {
            Channel.EMAIL: self.mail.answers_withheld,
            Channel.SMS: self.sms.answers_withheld,
            Channel.PUSH: self.push.answers_withheld,
        }

    async def leave(self) -> None:
        """Nobody answers any more."""
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))

    async def come_back(self) -> None:
        """They answer again."""
        await asyncio.gather(*(proxy.start() for proxy in self.proxies.values()))


@asynccontextmanager
async def bad_providers(directory: Path) -> AsyncIterator[tuple[Providers, Path]]:
    """Providers that fail 30 of 100 messages, are slow and keep some answers to themselves; and who vouches."""
    certificate = make_certificate(directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with (
        mail_server(tls=context) as mail,
        provider() as (sms, sms_port),
        provider() as (push, push_port),
    ):
        ports = {Channel.EMAIL: mail.port, Channel.SMS: sms_port, Channel.PUSH: push_port}
        providers = Providers(
            mail=mail, sms=sms, push=push, proxies={channel: Proxy(port) for channel, port in ports.items()}
        )
        for each in (mail, sms, push):
            each.failing, each.slow_s, each.withheld = 0.3, 0.02, WITHHELD
        await providers.come_back()
        try:
            yield providers, certificate
        finally:
            await providers.leave()


@pytest.mark.timeout(1200 if LONG else 120)
async def test_every_message_arrives_on_every_channel_whatever_the_providers_do(desk: Desk, tmp_path: Path) -> None:
    await desk.switch_on(Channel.SMS)
    visit = await desk.book()
    async with bad_providers(tmp_path) as (providers, certificate):
        ports = {channel: proxy.port for channel, proxy in providers.proxies.items()}
        subscription = BROWSER.subscription(f"http://127.0.0.1:{ports[Channel.PUSH]}/push/one")
        answer = await desk.api.http.post("/v1/me/push-subscriptions", json=subscription, headers=desk.headers)
        assert answer.status_code == 201, answer.text
        await _rows(desk, "UPDATE app_user SET phone_verified_at = now() WHERE id = :user", user=desk.patient["id"])
        config = replace(
            notifier_config(desk.api.services.settings),
            mail=MailServer.from_url(
                f"smtps://127.0.0.1:{ports[Channel.EMAIL]}", sender=SENDER, ca_file=str(certificate)
            ),
            sms=SmsProvider.from_url(f"http://:secret@127.0.0.1:{ports[Channel.SMS]}/sms"),
            limits=LIMITS,
        )
        here = Deployment(namespace=desk.api.services.settings.ray_namespace, config=config)
        keeping = asyncio.create_task(_keep(here))
        try:
            await _until(desk, planned=True)
            await _rows(desk, MAKE_DUE, visit=visit["id"], count=MESSAGES)
            await _until(desk, left=2 * MESSAGES)
            deaths = 0
            for name in here.names():
                os.kill(here.process(name), signal.SIGKILL)
                deaths += 1
            await _until(desk, left=MESSAGES)
            await providers.leave()
            await asyncio.sleep(AWAY_S)
            await providers.come_back()
            await _until(desk, left=0)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await RayNotifiers(here.namespace).stop()

        sent = await _rows(desk, SENT, visit=visit["id"])
        for channel in Channel:
            ids = {str(row.id) for row in sent if row.channel == channel}
            times = providers.times[channel]
            assert len(ids) >= MESSAGES
            assert set(times) == ids, "every one has come, and none that is not written down"
            assert providers.answers_withheld[channel] == WITHHELD
            assert times.total() - len(ids) <= WITHHELD + LIMITS.sending_max * deaths
        assert {row.outcome for row in sent} == {"sent"}


async def _keep(here: Deployment) -> None:
    notifiers = RayNotifiers(here.namespace)
    while True:
        await notifiers.run(here.config, actors=1, since=OLDER)
        await asyncio.sleep(0.2)


async def _until(desk: Desk, *, left: int = 0, planned: bool = False) -> None:
    """Wait until no more than so many messages are due; or until there are any, and none is due."""
    due = "count(*) FILTER (WHERE ended_at IS NULL AND due_at <= now())"
    query = f"SELECT {due} AS due, count(*) AS known FROM notification"
    async with asyncio.timeout(1000 if LONG else 60):
        while True:
            (row,) = await _rows(desk, query)
            if row.due <= left and (row.known or not planned):
                return
            await asyncio.sleep(0.05)


async def _rows(desk: Desk, query: str, **parameters: object) -> Sequence[Row[Any]]:
    async with desk.api.services.unit_of_work() as work:
        found = await work.connection.execute(text(query), parameters)
        return found.all() if found.returns_rows else []


MAKE_DUE = """
    INSERT INTO notification
        (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version, due_at, expires_at, next_at)
    SELECT uuidv7(), uuidv7(), 'booked', '', channel, a.booked_by, a.id, a.version, now(), a.starts_at, now()
    FROM appointment AS a, generate_series(1, :count), unnest(ARRAY['email', 'sms', 'push']) AS channel
    WHERE a.id = :visit
"""
SENT = "SELECT id, channel, outcome FROM notification WHERE appointment_id = :visit AND due_at <= now()"


def _names(figures: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name.removeprefix(NAME) for name in figures}


def _process_of(_: object) -> int:
    return os.getpid()


def _log_failure(_: object) -> str:
    """What the process of an actor writes of an exception, in whose frames there is a secret."""
    written = io.StringIO()
    with redirect_stderr(written):
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(written)
        try:
            fail_with("sec" + "ret")
        except ZeroDivisionError as failure:
            structlog.get_logger().error("failed", exc_info=failure)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.__stderr__)
    return written.getvalue()


def fail_with(name: str) -> float:
    """Fail while a local variable holds something."""
    return len(name) / 0
