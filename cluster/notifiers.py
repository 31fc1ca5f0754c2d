"""The notifiers of a deployment: every API process sees to it that they run, and remembers what they say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parseaddr
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors import tasks
from cluster.settings import Settings
from notifier.actor import NotifierConfig, RayNotifiers
from notifier.clock import DatabaseClock
from notifier.email import MailServer
from notifier.notifier import NotifierLimits
from notifier.preferences import Channel
from notifier.push import PushKeys
from notifier.sms import SmsProvider
from persistence.announcements import channel_of
from persistence.sealed import Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

ROUND_S: Final = 2.0


def notifier_config(settings: Settings) -> NotifierConfig:
    """What notifiers work with; the database and Redis are given."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    mail = None
    if settings.smtp_url is not None:
        ca_file = str(settings.smtp_ca_file) if settings.smtp_ca_file is not None else None
        mail = MailServer.from_url(settings.smtp_url, sender=settings.mail_from, ca_file=ca_file)
    key_file = settings.master_key_file
    return NotifierConfig(
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        signals=channel_of(settings.ray_namespace),
        master_key=settings.master_key,
        master_key_file=str(key_file.absolute()) if settings.master_key is None and key_file is not None else None,
        mail=mail,
        sms=SmsProvider.from_url(settings.sms_url) if settings.sms_url is not None else None,
        push_subject=f"mailto:{parseaddr(settings.mail_from)[1]}" if settings.push_hosts else None,
        public_url=settings.public_url,
        limits=NotifierLimits(a_day_max=settings.notifications_a_day_max),
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


class NotifierKeeper(Collector):
    """Asks them to run, over and over; a Prometheus collector of what they answered last."""

    def __init__(self, settings: Settings, begin: Callable[[], UnitOfWork]) -> None:
        self._notifiers = RayNotifiers(settings.ray_namespace)
        self._config = notifier_config(settings)
        self._actors = settings.notifiers
        self._begin = begin
        self._keeping: asyncio.Task[None] | None = None
        self.figures: Mapping[str, Mapping[str, Any]] = {}
        """By actor, as ``Notifier.status`` gives them."""

    @property
    def channels(self) -> frozenset[Channel]:
        """Those that somebody sends on."""
        return self._config.channels

    def push_keys(self, vault: Vault) -> PushKeys | None:
        """Those that browsers subscribe with, where there is push."""
        subject = self._config.push_subject
        return PushKeys(vault, subject=subject) if subject is not None else None

    def start(self) -> None:
        """Begin."""
        self._keeping = tasks.begin(self._keep(), name="keep notifiers")

    async def stop(self) -> None:
        """Ask no more. The actors stay: other API processes ask them too."""
        if self._keeping is not None:
            await tasks.end(self._keeping)
        self._notifiers.close()

    async def _keep(self) -> None:
        since = await self._now()
        while True:
            self.figures = await self._notifiers.run(self._config, actors=self._actors, since=since)
            await asyncio.sleep(ROUND_S)

    async def _now(self) -> datetime:
        """By the database's clock, once there is a database."""
        while True:
            try:
                async with self._begin() as work:
                    return await DatabaseClock().read(work)
            except DatabaseUnavailable:
                await asyncio.sleep(ROUND_S)

    def collect(self) -> Iterator[Metric]:
        """The figures. Every API process tells those of all notifiers: take the largest of an actor, not the sum."""
        due = GaugeMetricFamily("zapis_notifications_due", "Messages that could be sent now.", labels=["channel"])
        oldest = GaugeMetricFamily(
            "zapis_notification_oldest_due_seconds", "How long the oldest of them has been waiting.", labels=["channel"]
        )
        unplanned = GaugeMetricFamily(
            "zapis_notification_causes_unplanned", "Changes of which nobody has found out yet who hears of them."
        )
        answering = GaugeMetricFamily(
            "zapis_notifiers_answering", "Notifiers that work and have told so of late.", labels=["channel"]
        )
        working = Counter(figures["channel"] for figures in self.figures.values() if figures)
        for name in self.channels:
            answering.add_metric([name.value], working[name.value])
        lag = GaugeMetricFamily(
            "zapis_notification_lag_seconds",
            "From due to sent: the median of the last thousand, by actor.",
            labels=["actor"],
        )
        ended = CounterMetricFamily(
            "zapis_notifications",
            "Messages by actor, channel, kind and what became of them.",
            labels=["actor", "channel", "kind", "outcome"],
        )
        told: set[str] = set()
        for actor, figures in self.figures.items():
            if not figures:
                continue
            channel = figures["channel"]
            if not told:
                unplanned.add_metric([], figures["unplanned"])
            if channel not in told:
                told.add(channel)
                due.add_metric([channel], figures["due"])
                oldest.add_metric([channel], figures["oldest_due_s"])
            lag.add_metric([actor], figures["lag_p50_s"])
            for kind, outcome, count in figures["counts"]:
                ended.add_metric([actor, channel, kind, outcome], count)
        yield from (due, oldest, unplanned, answering, lag, ended)
