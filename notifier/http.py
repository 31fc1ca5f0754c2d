"""What providers that are spoken to by HTTP have in common: one client, short timeouts, what an answer means."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from notifier.senders import Failed, Refused

TIMEOUT: Final = httpx.Timeout(8.0, connect=4.0)
LIMITS: Final = httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=20.0)
RETRY_AFTER_MAX_S: Final = 900.0
_OURS: Final = frozenset({401, 403, 404, 405})
"""It is how we ask that is wrong, not the message: another setting may put it right."""
_PASSING: Final = frozenset({408, 425, 429})


def open_client() -> httpx.AsyncClient:
    """A client that follows no redirects: they would lead a message to who knows whom."""
    return httpx.AsyncClient(timeout=TIMEOUT, limits=LIMITS, follow_redirects=False, trust_env=False)


async def post(client: httpx.AsyncClient, url: str, **request: Any) -> httpx.Response:
    """The answer, whatever it is.

    Raises:
        Failed: there is none.
    """
    try:
        return await client.post(url, **request)
    except httpx.HTTPError as failure:
        raise Failed(type(failure).__name__, away=True) from None


def check(answer: httpx.Response) -> None:
    """Let a good answer pass.

    Raises:
        Refused, Failed
    """
    status = answer.status_code
    code = f"HTTP {status}"
    if 200 <= status < 300:
        return
    if status in _PASSING or status >= 500:
        raise Failed(code, away=status >= 500, retry_after_s=retry_after_s(answer.headers))
    if status in _OURS or status < 400:
        raise Failed(code, away=True)
    raise Refused(code)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks us to wait, in seconds (RFC 9110, 10.2.3)."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said) if said.isdigit() else (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
