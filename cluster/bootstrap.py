"""The composition root: everything an API process works with, made in one place from the settings."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import ray
from redis.asyncio import BlockingConnectionPool, Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from actors.calendar_actor import ActorLimits
from actors.client import CalendarClient, ClientLimits, Placement, PlacementUnknown, RayCalendarActors, freeze_heap
from actors.logs import configure_logging
from actors.policy import Policy
from cluster.moves import MoveDriver
from cluster.notifiers import NotifierKeeper
from cluster.settings import Settings, SettingsError, variable
from cluster.supervisor import Supervisor
from persistence.announcements import Announcement, RedisAnnouncer, channel_of, listen
from persistence.database import open_database
from persistence.journal import PostgresJournal
from persistence.lookups import Lookups
from persistence.repositories.placement import Placements
from persistence.sealed import Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

REDIS_CONNECTIONS: Final = 32
REDIS_TIMEOUT_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What requests are served with. One for each process and event loop."""

    settings: Settings
    policy: Policy
    vault: Vault
    database: AsyncEngine
    replica: AsyncEngine | None
    """For searches, where there is one."""
    lookups: Lookups
    redis: Redis
    calendar_actors: RayCalendarActors
    calendars: CalendarClient
    moves: MoveDriver
    supervisor: Supervisor
    notifiers: NotifierKeeper

    def unit_of_work(self) -> UnitOfWork:
        """A transaction for one request."""
        return UnitOfWork(self.database, self.vault)

    def begin_on_replica(self) -> UnitOfWork:
        """A transaction on the replica, which there has to be; it may be behind."""
        assert self.replica is not None, "there is a replica"
        return UnitOfWork(self.replica, self.vault)

    def listen(self) -> AsyncIterator[list[Announcement] | None]:
        """What calendar actors announce: see ``persistence.announcements.listen``."""
        redis_url = _required(self.settings.redis_url, "redis_url")
        return listen(redis_url, channel_of(self.settings.ray_namespace))

    async def warm_up(self) -> None:
        """Have what takes its time to start begin now, so that the first request need not wait for it."""
        await self.calendars.start_actors()
        self.notifiers.start()


async def open_services(settings: Settings) -> Services:
    """Connect to Ray and put the rest in place; PostgreSQL and Valkey are connected to when first needed.

    Raises:
        SettingsError: a setting that is needed here is missing.
        ConnectionError: there is no Ray at its address.
        DatabaseUnavailable: the placement could not be read.
    """
    database_url = _required(settings.database_url, "database_url")
    policy = policy_of(settings)
    vault = Vault(settings.master_key_bytes())
    database = open_database(database_url, pool_max=settings.database_pool_max)
    replica = None
    if settings.read_database_url is not None:
        replica = open_database(settings.read_database_url, pool_max=settings.database_pool_max)
    redis = open_redis(_required(settings.redis_url, "redis_url"))
    await _connect_to_ray(_required(settings.ray_address, "ray_address"), settings.ray_namespace)
    placement = await _place(database, vault, settings)
    actors = calendar_actors(settings, policy)
    calendars = CalendarClient(
        actors=actors,
        read_placement=partial(_read_placement, database, vault, placement),
        limits=ClientLimits(lane_depth_max=settings.lane_depth_max, lane_batch_max=settings.lane_batch_max),
    )
    moves = MoveDriver(database=database, calendars=calendars, deadline_s=settings.request_deadline_s)
    supervisor = Supervisor(database=database, calendars=calendars, moves=moves)
    supervisor.start()
    freeze_heap()
    return Services(
        settings=settings,
        policy=policy,
        vault=vault,
        database=database,
        replica=replica,
        lookups=Lookups(database_url),
        redis=redis,
        calendar_actors=actors,
        calendars=calendars,
        moves=moves,
        supervisor=supervisor,
        notifiers=NotifierKeeper(settings, partial(UnitOfWork, database, vault)),
    )


async def close_services(services: Services) -> None:
    """Let everything go. Calendar actors and notifiers stay: other API processes use them too."""
    await services.notifiers.stop()
    await services.supervisor.stop()
    await services.calendars.close()
    services.calendar_actors.close()
    await services.redis.aclose()
    await services.lookups.close()
    await services.database.dispose()
    if services.replica is not None:
        await services.replica.dispose()
    await asyncio.to_thread(ray.shutdown)


def policy_of(settings: Settings) -> Policy:
    """The clinic's rules."""
    return Policy(
        book_cutoff=timedelta(minutes=settings.book_cutoff_minutes),
        move_cutoff=timedelta(minutes=settings.move_cutoff_minutes),
        cancel_cutoff=timedelta(minutes=settings.cancel_cutoff_minutes),
        horizon=timedelta(days=settings.horizon_days) if settings.horizon_days else None,
        hold_ttl=timedelta(seconds=settings.hold_ttl_s),
        live_appointments_max=settings.live_appointments_max,
        holds_max=settings.holds_max,
        moves_max=settings.moves_max,
        cross_doctor_moves=settings.cross_doctor_moves,
    )


def calendar_actors(settings: Settings, policy: Policy) -> RayCalendarActors:
    """The calendar actors of this deployment; ``ray.init`` has been called."""
    return RayCalendarActors(
        namespace=settings.ray_namespace,
        make_journal=partial(
            PostgresJournal,
            database_url=_required(settings.database_url, "database_url"),
            live_appointments_max=policy.live_appointments_max,
            holds_max=policy.holds_max,
        ),
        make_announcer=partial(
            RedisAnnouncer,
            redis_url=_required(settings.redis_url, "redis_url"),
            channel=channel_of(settings.ray_namespace),
        ),
        policy=policy,
        limits=ActorLimits(
            commit_timeout_s=settings.commit_timeout_s,
            journal_backlog_max=settings.journal_backlog_max,
            redecide_max=settings.redecide_max,
            active_calendars_max=settings.active_calendars_max,
            calendar_idle_s=settings.calendar_idle_s,
        ),
        set_up_logs=partial(configure_logging, settings.log_level, settings.log_format),
    )


def open_redis(url: str) -> Redis:
    """A client of so many connections at most; whoever has waited too long for one gets a ``ConnectionError``."""
    return Redis.from_pool(
        BlockingConnectionPool.from_url(
            url,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            protocol=3,
        )
    )


async def _connect_to_ray(address: str, namespace: str) -> None:
    """Become a driver. Ray takes the handlers of signals away from Python: they are put back."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    await asyncio.to_thread(
        ray.init,
        address=address,
        namespace=namespace,
        log_to_driver=False,
        configure_logging=False,
        ignore_reinit_error=True,
    )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def _required(value: str | None, name: str) -> str:
    if value is None:
        raise SettingsError(f"{variable(name)}: is needed and not set")
    return value


async def _place(database: AsyncEngine, vault: Vault, settings: Settings) -> Placement:
    """Have the placement that the settings ask for; with several API processes the last to start decides."""
    async with UnitOfWork(database, vault) as work:
        return await Placements(work.connection).put(
            dedicated=settings.calendar_placement == "dedicated", actors=settings.calendar_actors
        )


async def _read_placement(database: AsyncEngine, vault: Vault, at_start: Placement) -> Placement:
    try:
        async with UnitOfWork(database, vault) as work:
            return await Placements(work.connection).read() or at_start
    except DatabaseUnavailable as failure:
        raise PlacementUnknown from failure
