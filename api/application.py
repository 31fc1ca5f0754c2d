"""FastAPI without the layers that do nothing here, and which every request would pass through."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Application(FastAPI):
    """FastAPI with our middleware as its outermost layers.

    Left out are its answer to what nobody foresaw and its limit of bodies, which ``api.middleware`` has, and its
    telemetry: what is measured is said by ``api.operations.metrics``.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """What was added, the last outermost; within it the handlers of exceptions, and what closes uploaded files."""
        handlers: dict[Any, Any] = dict(self.exception_handlers)
        assert not handlers.keys() & {500, Exception}, "that is RequestContext's to answer, and to log"
        app: ASGIApp = ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=handlers)
        for layer, arguments, options in reversed(self.user_middleware):
            app = layer(app, *arguments, **options)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette's: FastAPI's own looks for telemetry, and for a root path, at each request."""
        await Starlette.__call__(self, scope, receive, send)
