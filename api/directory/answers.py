"""How what anybody may read is answered: as of an instant, with a tag by which a client asks whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.dependencies import as_of, content_tag, unchanged
from api.routing import Json


def tagged(request: Request, content: Mapping[str, Any], instant: datetime) -> Response:
    """The content as it was at that instant, or 304 where the client has just that."""
    answer = Json(content)
    tag = content_tag(bytes(answer.body))
    response = unchanged(request, tag) or answer
    # To be kept, but never used without asking.
    response.headers.update({"ETag": tag, "Cache-Control": "no-cache", **as_of(instant)})
    return response


READ_HEADERS: dict[str, Any] = {
    "ETag": {"schema": {"type": "string"}, "description": "For `If-None-Match`."},
    "X-As-Of": {
        "schema": {"type": "string", "format": "date-time"},
        "description": "The instant that the answer is true for.",
    },
}

READ_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": READ_HEADERS},
    304: {"description": "What `If-None-Match` names is what there is.", "headers": READ_HEADERS},
}
"""What such an operation may answer with besides problems."""
