"""The ceiling of searches: a FastAPI endpoint that returns the same bytes from memory, whatever it is asked for.

The bytes are those of ``answer.json`` in the data directory. It has nothing else: no middleware, no parameters, no
limits, no entity tags.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response

from actors.client import freeze_heap
from cluster.settings import read_settings

ANSWER = "answer.json"


def create_app() -> FastAPI:
    """The service over the settings in the environment."""
    body = (read_settings().data_dir / ANSWER).read_bytes()
    app = FastAPI(openapi_url=None)

    @app.get("/v1/slots")
    async def list_slots() -> Response:
        return Response(body, media_type="application/json")

    @app.get("/readyz")
    async def ready() -> Response:
        freeze_heap()
        return Response()

    return app
