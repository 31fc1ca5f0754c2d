"""Notifiers as Ray actors: named, detached, one or more for each channel, on any node.

An actor begins to work when it is asked to ``run``, and is asked again and again: one that Ray has started anew, after
its process or its node died, goes on with the next question. ``run`` is also how it is looked at.

Where those who ask differ, as while a release is rolled out, the one who was started last decides, for as long as it
asks: how notifiers work, on which channels and how many there are. The others look on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import RayError
from sqlalchemy.ext.asyncio import AsyncEngine

from actors import detached
from actors.client import freeze_heap
from actors.detached import Found
from actors.logs import configure_logging
from notifier.clock import DatabaseClock
from notifier.email import EmailSender, MailServer
from notifier.notifier import Notifier, NotifierLimits
from notifier.preferences import Channel
from notifier.push import PushKeys, PushSender
from notifier.senders import Sender
from notifier.sms import SmsProvider, SmsSender
from notifier.unsubscribe import link_maker
from persistence.announcements import hear
from persistence.database import open_database
from persistence.repositories.push_subscriptions import PushSubscriptions
from persistence.sealed import Vault, decode_key
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

NAME: Final = "notifier:"
_ALL: Final = "all"
POOL: Final = 4
CPUS: Final = 0.05
"""Of a node, as Ray counts them: an actor that takes nothing makes its node look idle to the autoscaler."""
ANSWER_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = NotifierLimits().send_timeout_s + ANSWER_TIMEOUT_S
"""What is being sent is sent, and written down."""
DECIDES_FOR_S: Final = 10.0
"""Who has not asked for so long has gone, and the one who was started before it decides again."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifierConfig:
    """What a notifier on any node works with."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    signals: str
    """The channel of Redis where changes are announced."""
    master_key: str | None = field(repr=False)
    """Its base64, unless ``master_key_file`` holds that on every node."""
    master_key_file: str | None
    mail: MailServer | None
    sms: SmsProvider | None
    push_subject: str | None
    """How a push service reaches whoever runs this; without it nothing is pushed."""
    public_url: str | None
    """Where people reach the API: links lead there."""
    limits: NotifierLimits
    log_level: str
    log_format: str

    @property
    def channels(self) -> frozenset[Channel]:
        """Those that somebody sends on."""
        providers = {Channel.EMAIL: self.mail, Channel.SMS: self.sms, Channel.PUSH: self.push_subject}
        return frozenset(channel for channel, provider in providers.items() if provider is not None)


def open_notifier(config: NotifierConfig, channel: Channel, vault: Vault, database: AsyncEngine) -> Notifier:
    """The notifier of a channel."""
    return Notifier(
        channel=channel,
        channels=config.channels,
        begin=partial(UnitOfWork, database, vault),
        sender=_sender(config, channel, vault, database),
        signals=partial(_signals, config),
        clock=DatabaseClock(),
        unsubscribe_url=link_maker(vault, config.public_url) if config.public_url is not None else None,
        limits=config.limits,
    )


def _sender(config: NotifierConfig, channel: Channel, vault: Vault, database: AsyncEngine) -> Sender:
    match channel:
        case Channel.EMAIL if config.mail is not None:
            return EmailSender(config.mail)
        case Channel.SMS if config.sms is not None:
            return SmsSender(config.sms)
        case Channel.PUSH if config.push_subject is not None:
            return PushSender(PushKeys(vault, subject=config.push_subject), forget=partial(_forget, database, vault))
    raise ValueError(f"there is nobody who sends by {channel}")


async def _forget(database: AsyncEngine, vault: Vault, subscription_id: str) -> None:
    try:
        async with UnitOfWork(database, vault) as work:
            await PushSubscriptions(work.connection, vault).remove(subscription_id)
    except DatabaseUnavailable:
        pass  # It is found to be gone the next time, too.


def _signals(config: NotifierConfig) -> AsyncIterator[object]:
    return hear(config.redis_url, config.signals)


class RayNotifier:
    """A ``Notifier`` behind Ray's door. Cheap to construct: it begins when it is asked to."""

    def __init__(self, channel: str) -> None:
        self._channel = Channel(channel)
        self._config: NotifierConfig | None = None
        self._notifier: Notifier | None = None
        self._database: AsyncEngine | None = None
        self._decided_by: datetime | None = None
        self._asked_at = 0.0
        self._turn = asyncio.Lock()

    async def run(self, config: NotifierConfig, since: datetime) -> dict[str, Any]:
        """Work by this configuration; its figures, empty while the database is away.

        ``since`` is when who asks was started: if somebody who was started later decides, nothing changes.
        """
        async with self._turn:
            newest = await self.decided_by()
            if newest is None or newest <= since:
                self._decided_by, self._asked_at = since, asyncio.get_running_loop().time()
                await self._work_by(config)
        return await self.status()

    async def decided_by(self) -> datetime | None:
        """When who decides how this works was started; ``None``: nobody does."""
        if asyncio.get_running_loop().time() > self._asked_at + DECIDES_FOR_S:
            return None
        return self._decided_by

    async def _work_by(self, config: NotifierConfig) -> None:
        if self._notifier is None or not self._notifier.running or config != self._config:
            await self._end()
            configure_logging(config.log_level, config.log_format)
            self._config = config
            self._database = open_database(config.database_url, pool_max=POOL)
            self._notifier = open_notifier(config, self._channel, _vault(config), self._database)
            self._notifier.start()
            freeze_heap()

    async def status(self) -> dict[str, Any]:
        """Its figures; empty before it runs, and while the database is away."""
        try:
            return await self._notifier.status() if self._notifier is not None else {}
        except DatabaseUnavailable:
            return {}

    async def stop(self) -> None:
        """End in order."""
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        if self._notifier is not None:
            await self._notifier.stop()
            self._notifier = None
        if self._database is not None:
            await self._database.dispose()
            self._database = None


class RayNotifiers:
    """The notifiers of a deployment, as actors of one namespace. ``ray.init`` has been called."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._look_ups = detached.LookUps()
        self._running = partial(detached.running, namespace, (NAME,))

    async def run(self, config: NotifierConfig, *, actors: int, since: datetime) -> Mapping[str, Mapping[str, Any]]:
        """Have so many work for each channel that has a provider, and no others; the figures of those that answer.

        Unless somebody who was started later than ``since`` decides: then these are the figures of those that there
        are.
        """
        there = await self._there()
        decided_by = await _answers({name: _ask(name, handle.decided_by) for name, handle in there.items()})
        if any(each > since for each in decided_by.values()):
            return await _answers({name: _ask(name, handle.status) for name, handle in there.items()})
        wanted = {f"{NAME}{channel.value}:{number}" for channel in config.channels for number in range(actors)}
        await _stop({name: handle for name, handle in there.items() if name not in wanted})
        return await _answers({name: self._run(name, config, since) for name in wanted})

    async def status(self) -> Mapping[str, Mapping[str, Any]]:
        """The figures of all that there are, by name; whoever does not answer is left out."""
        handles = await self._look_ups.find(_ALL, self._running)
        return await _answers({name: _ask(name, handle.status) for name, handle in handles.items()})

    async def stop(self) -> None:
        """End all that there are, in order."""
        await _stop(await self._look_ups.find(_ALL, self._running))

    def close(self) -> None:
        """Look nobody up any more. The notifiers stay."""
        self._look_ups.close()

    async def _run(self, name: str, config: NotifierConfig, since: datetime) -> Mapping[str, Any] | None:
        handle = self._handles.get(name)
        if handle is None:
            start = partial(
                detached.get_or_start, RayNotifier, name, name.split(":")[1], namespace=self._namespace, cpus=CPUS
            )
            handle = await self._look(name, start)
            if handle is None:
                return None
            self._handles[name] = handle
        figures: Mapping[str, Any] | None = await _ask(name, handle.run, config, since)
        if figures is None:
            self._handles.pop(name, None)
        return figures

    async def _there(self) -> Mapping[str, ActorHandle[Any]]:
        """Those that there are; while Ray does not say, those that were found before."""
        found = await self._look(_ALL, self._running)
        return dict(self._handles) if found is None else found

    async def _look(self, what: str, look: Callable[[], Found]) -> Found | None:
        """What is found, if in time."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._look_ups.find(what, look)
        except (RayError, ValueError, ConnectionError, RuntimeError, TimeoutError) as failure:
            log.warning("notifier_not_found", actor=what, reason=type(failure).__name__)
            return None


async def _stop(handles: Mapping[str, ActorHandle[Any]]) -> None:
    stopping = (_ask(name, handle.stop, timeout_s=STOP_TIMEOUT_S) for name, handle in handles.items())
    await asyncio.gather(*stopping)
    for handle in handles.values():
        ray.kill(handle)


async def _ask(name: str, method: Any, *arguments: object, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
    """What an actor answers; ``None``: nothing, or not in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await method.remote(*arguments)
    except (RayError, TimeoutError) as failure:
        log.warning("notifier_lost", actor=name, reason=type(failure).__name__)
        return None


async def _answers(asked: Mapping[str, Coroutine[Any, Any, Any]]) -> dict[str, Any]:
    answers = await asyncio.gather(*asked.values())
    return {name: answer for name, answer in zip(asked, answers, strict=True) if answer is not None}


def _vault(config: NotifierConfig) -> Vault:
    if config.master_key is not None:
        return Vault(decode_key(config.master_key))
    assert config.master_key_file is not None, "there is a master key"
    return Vault(decode_key(Path(config.master_key_file).read_text(encoding="ascii")))
