"""The routes for those who run it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.fields import Answer
from api.operations.metrics import Metrics
from api.operations.readiness import Readiness
from api.routing import Json, router

routes = router(tag="Operations")


class Health(Answer):
    """The process answers."""

    status: Literal["ok"]


class Ready(Answer):
    """What can be reached; Redis is reported and not needed."""

    status: Literal["ready", "not_ready"]
    postgres: bool
    ray: bool
    redis: bool


@routes.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """The process lives."""
    return Json({"status": "ok"}, headers={"Cache-Control": "no-store"})


@routes.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "It cannot serve."}})
async def readyz(request: Request) -> Response:
    """Whether it can serve: PostgreSQL and Ray are needed, Redis is not."""
    readiness: Readiness = request.app.state.readiness
    reached = await readiness.check()
    ready = reached["postgres"] and reached["ray"]
    body: dict[str, Any] = {"status": "ready" if ready else "not_ready", **reached}
    headers = {"Cache-Control": "no-store"} | ({} if ready else {"Retry-After": "2"})
    return Json(body, status_code=200 if ready else 503, headers=headers)


@routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    counted: Metrics = request.app.state.metrics
    return Response(generate_latest(counted.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
