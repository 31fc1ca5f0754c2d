"""The description of the interface at ``/openapi.json``, and a page to read and try it at ``/docs``.

The page is Swagger UI, served from an installed package: it works where there is no way out to the internet, and no
other host learns who reads it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.openapi import describe
from api.routing import Json

OPENAPI_PATH: Final = "/openapi.json"
DOCS_PATH: Final = "/docs"
POLICY: Final = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>zapis: the interface</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<noscript>This page needs JavaScript. The description itself is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/show.js"></script>
</body>
</html>
"""
SHOW: Final = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null});\n'
_FOR_A_DAY: Final = {"Cache-Control": "public, max-age=86400"}


def add_documentation(app: FastAPI) -> None:
    """Add the routes; the document is made when it is first asked for."""
    document: bytes | memoryview | None = None

    async def openapi(_: Request) -> Response:
        nonlocal document
        if document is None:
            document = Json(describe(app)).body
        return Response(document, media_type="application/json", headers={"Cache-Control": "public, max-age=300"})

    async def docs(_: Request) -> Response:
        return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    async def show(_: Request) -> Response:
        return Response(SHOW, media_type="text/javascript", headers=_FOR_A_DAY)

    app.add_route(OPENAPI_PATH, openapi, include_in_schema=False)
    app.add_route(DOCS_PATH, docs, include_in_schema=False)
    app.add_route(f"{DOCS_PATH}/show.js", show, include_in_schema=False)
    for name, media_type in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        _add_file(app, name, media_type)


def _add_file(app: FastAPI, name: str, media_type: str) -> None:
    async def file(_: Request) -> Response:
        content = files("fastapi_swagger").joinpath("resources", name).read_bytes()
        return Response(content, media_type=media_type, headers=_FOR_A_DAY)

    app.add_route(f"{DOCS_PATH}/{name}", file, include_in_schema=False)
