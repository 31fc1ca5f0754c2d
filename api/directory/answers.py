"""How what anybody may read is answered: as of an instant, with a tag by which a client asks whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from api.dependencies import tagged
from api.routing import encoded


def answer(request: Request, content: Mapping[str, Any], instant: datetime) -> Response:
    """The content as it was at that instant, or 304 where the client has just that."""
    return tagged(request, encoded(content), at=instant)


_HEADERS: Final[dict[str, Any]] = {
    "ETag": {"schema": {"type": "string"}, "description": "For `If-None-Match`."},
    "X-As-Of": {
        "schema": {"type": "string", "format": "date-time"},
        "description": "The instant that the answer is true for.",
    },
}

READ: Final[dict[int | str, dict[str, Any]]] = {
    200: {"headers": _HEADERS},
    304: {"description": "What `If-None-Match` names is what there is.", "headers": _HEADERS},
}
"""What such an operation may answer with besides problems."""
