"""The description of the interface at ``/openapi.json``: FastAPI's, with the problems put right."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.dependencies import problems
from api.errors import MEDIA_TYPE, PROBLEMS

METHODS: Final = ("get", "put", "post", "delete", "patch", "options", "head")
DESCRIPTION: Final = """
Patients find a free slot and book, move or cancel a visit; doctors run their day; administrators publish schedules.

Register or sign in at `POST /v1/auth/token` and send `Authorization: Bearer <access token>`. Every refusal is a problem
by RFC 9457 with a `code` for programs; 429 and 503 carry `Retry-After`. A command with an `Idempotency-Key` has one
effect however often it is sent. Clients ignore fields and codes that they do not know.

`WS /v1/doctors/{id}/feed?from=&to=&since=` sends a calendar, then every change to it, with numbers that have no gap:
`{"type": "snapshot", "sequence", "slots"}`, `{"type": "change", "sequence", "at", "slots"}` and
`{"type": "ping", "sequence"}`. `WS /v1/me/feed` sends the caller's own appointments and each that changes:
`{"type": "appointment", "appointment"}`. The token goes as the subprotocol `bearer.<access token>` beside `zapis.v1`.
Close codes: 4401 bad or expired token, 4404 no such doctor, 4008 too slow, 1008 a bad query, 1013 too many, 1012
restart.
"""

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A refusal (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": ["urn:zapis:problem:slot_taken"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {"type": "string", "examples": sorted(PROBLEMS), "description": "For programs; more may be added."},
        "error": {"type": "string", "description": "At the token endpoint: the code of RFC 6749, section 5.2."},
        "errors": {
            "type": "array",
            "description": "What is wrong where, of a validation error.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "Into the body, or below /query, /path or /header."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=app.openapi_tags
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for fastapis_own in ("HTTPValidationError", "ValidationError"):
            schemas.pop(fastapis_own, None)
        schemas["Problem"] = PROBLEM_SCHEMA
        for path in schema["paths"].values():
            for method in METHODS:
                if method in path:
                    _complete(path[method])
        app.openapi_schema = schema
    return app.openapi_schema


def _complete(operation: dict[str, Any]) -> None:
    """Add to an operation what any operation of its kind may refuse with."""
    responses: dict[str, Any] = operation["responses"]
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]  # FastAPI's own form of validation errors, which is never answered here.
    codes = ["rate_limited", "unavailable"]
    if "security" in operation:
        codes.append("unauthenticated")
    if "requestBody" in operation:
        codes += ["validation_error", "content_too_large", "unsupported_media_type", "request_timeout"]
    if "parameters" in operation:
        codes.append("validation_error")
    for status, added in problems(*codes).items():
        entry = responses.setdefault(str(status), added)
        if entry is not added:
            content = entry.setdefault("content", {}).setdefault(MEDIA_TYPE, added["content"][MEDIA_TYPE])
            content["examples"] = added["content"][MEDIA_TYPE]["examples"] | content.get("examples", {})
    responses.setdefault(
        "default",
        {
            "description": "Any other problem.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    )
    for status, entry in responses.items():
        if status[0] == "2" or status == "304":
            entry.setdefault("headers", {})["X-Request-ID"] = {"schema": {"type": "string"}}
        if status in ("429", "503"):
            entry.setdefault("headers", {})["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
