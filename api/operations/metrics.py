"""Figures of the process for Prometheus. No label ever names a person, a doctor or an address with an id in it."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
UNKNOWN_ROUTE: Final = "unknown"
SERIES_MAX: Final = 2048
"""Time series that are found quickly; prometheus-client looks them up anew each time."""
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Metrics:
    """What is counted; ``registry`` gives it out."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "zapis_http_requests_total",
            "Requests by method, route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "zapis_http_request_seconds",
            "Time to the start of the answer, by route.",
            ("route",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self._requests_of = lru_cache(SERIES_MAX)(self.requests.labels)
        self._seconds_of = lru_cache(SERIES_MAX)(self.seconds.labels)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request whose answer has begun."""
        self._requests_of(method if method in METHODS else "other", route, status).inc()
        self._seconds_of(route).observe(seconds)

    def turned_away(self, method: str) -> None:
        """Count a request that was answered 503 before it was one."""
        self._requests_of(method if method in METHODS else "other", UNKNOWN_ROUTE, 503).inc()

    def add(self, collector: Collector) -> None:
        """Have something else asked for its figures too."""
        self.registry.register(collector)


class CountRequests:
    """ASGI middleware: counts what passes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
                self._metrics.answered(scope["method"], route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)
