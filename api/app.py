"""The application: what every request passes through, the routes, and what they work with, opened and closed here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Final

import structlog
from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from actors.logs import configure_logging
from api.accounts import router as accounts
from api.accounts.first_admin import ensure_first_admin
from api.administration import router as administration
from api.application import Application
from api.directory import router as directory
from api.directory.location_directory import LocationDirectory
from api.documentation import add_documentation
from api.errors import add_handlers
from api.feed import events
from api.feed import router as feed
from api.feed.calendars import Calendars
from api.feed.feeds import FeedConnections, Feeds
from api.feed.stream import ChangeStream
from api.gate import close_gate, open_gate
from api.ical import router as ical
from api.middleware import Admission, Admit, BodyLimit, ClientAddress, Proxies, RateLimit, RequestContext
from api.notifications import push, templates
from api.notifications import router as notifications
from api.notifications.mailbox import add_mailbox
from api.openapi import describe
from api.operations import router as operations
from api.operations.metrics import CountRequests, Metrics
from api.operations.readiness import Readiness
from api.protocol import ADMISSION
from api.scheduling import router as scheduling
from api.scheduling import slots
from api.scheduling.slot_owners import SlotOwners
from api.scheduling.slot_queries import Queries
from api.searches import Searches
from cluster.bootstrap import close_services, open_services
from cluster.settings import Settings, read_settings
from persistence.change_log import ChangeLog
from persistence.search_store import SearchStore

ALLOWED_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
)
EXPOSED_HEADERS: Final = ("ETag", "Location", "Retry-After", "X-As-Of", "X-Request-ID")
ROUTERS: Final[tuple[APIRouter, ...]] = (
    ical.before_appointments,
    scheduling.routes,
    slots.router,
    events.router,
    ical.router,
    accounts.router,
    accounts.well_known,
    directory.router,
    administration.router,
    notifications.router,
    push.router,
    templates.router,
    operations.routes,
)
"""The routes are tried in this order: those that are asked for most come first."""


def create_app(settings: Settings | None = None, *, warm_up: bool = True) -> FastAPI:
    """The application over these settings, or those of the environment. It opens its services when it starts."""
    settings = settings or read_settings()
    if not structlog.is_configured():  # structlog's own manner would print local variables, which may be personal.
        configure_logging(settings.log_level, settings.log_format)

    metrics = Metrics()
    proxies = Proxies(settings.trusted_proxies)
    admission = Admission(settings.requests_max, metrics.turned_away, proxies)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        services = app.state.services = await open_services(settings)
        try:
            gate = app.state.gate = await open_gate(
                settings, unit_of_work=services.unit_of_work, lookups=services.lookups, redis=services.redis
            )
            readiness = app.state.readiness = Readiness(services)
            metrics.add(services.notifiers)
            app.state.push_keys = services.notifiers.push_keys(services.vault)
            app.state.location_directory = LocationDirectory(services.unit_of_work)
            app.state.slot_owners = SlotOwners(services.lookups.slot_owners)
            change_log = ChangeLog(services.unit_of_work, services.lookups)
            stream = ChangeStream(listen=services.listen, log=change_log)
            app.state.searches = Searches(
                stream=stream,
                store=SearchStore(services.redis, namespace=settings.ray_namespace),
                begin=services.unit_of_work,
                begin_on_replica=None if services.replica is None else services.begin_on_replica,
            )
            app.state.feeds = Feeds(
                services=services,
                calendars=Calendars(stream, change_log, app.state.location_directory),
                connections=FeedConnections(
                    most=settings.feed_connections_max, most_per_user=settings.feed_connections_per_user_max
                ),
            )
            app.state.slot_queries = Queries(app.state.searches, app.state.location_directory)
            services.calendars.on_done(app.state.searches.note)
            stream.start()
            try:
                await ensure_first_admin(services, gate.passwords)
                if warm_up:
                    await services.warm_up()
                yield {ADMISSION: admission}
            finally:
                await stream.stop()
                readiness.close()
                await app.state.slot_owners.close()
                await close_gate(gate)
        finally:
            await close_services(services)

    app = Application(
        title="zapis",
        version=version("zapis"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_handlers(app)
    _add_routes(app, ROUTERS)
    app.router.routes.extend(feed.routes)
    add_documentation(app)
    if settings.mailbox_dir is not None:
        add_mailbox(app, settings.mailbox_dir)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]  # how FastAPI says to do it
    # The last one added is the outermost.
    if settings.rate_limit:
        app.add_middleware(RateLimit)
    app.add_middleware(BodyLimit, bytes_max=settings.body_bytes_max, seconds_max=settings.request_deadline_s)
    app.add_middleware(Admit, admission=admission)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )
    if settings.trusted_proxies:
        app.add_middleware(ClientAddress, proxies=proxies)
    app.state.metrics = metrics
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(RequestContext)
    return app


def _add_routes(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Take the routes themselves: ``include_router`` would match every request twice."""
    for router in routers:
        app.router.routes.extend(router.routes)
