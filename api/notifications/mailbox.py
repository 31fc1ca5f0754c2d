"""``/dev/mailbox``: what a demonstration has sent, for everybody on this machine. It exists on loopback only."""

from __future__ import annotations

import asyncio
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.errors import Problem
from api.notifications.pages import html_page
from cluster.mail_server import kept_mail, kept_mails
from cluster.settings import is_loopback

PATH: Final = "/dev/mailbox"
SHOWN_MAX: Final = 200


def add_mailbox(app: FastAPI, directory: Path) -> None:
    """Add the routes."""

    async def index(request: Request) -> Response:
        _check_loopback(request)
        mails = await asyncio.to_thread(kept_mails, directory, limit=SHOWN_MAX)
        return html_page("mailbox.html", "en", mails=[_header(each.key, each.mail) for each in mails], mail=None)

    async def one(request: Request) -> Response:
        _check_loopback(request)
        key = request.path_params["key"]
        mail = await asyncio.to_thread(kept_mail, directory, key)
        if mail is None:
            raise Problem("not_found")
        return html_page("mailbox.html", "en", mail=_header(key, mail) | _content(mail), mails=[])

    app.add_route(PATH, index, include_in_schema=False)
    app.add_route(f"{PATH}/{{key}}", one, include_in_schema=False)


def _check_loopback(request: Request) -> None:
    """That it is really somebody here who asks, by the name of this machine: no page elsewhere has it read mail."""
    if request.client is None or not is_loopback(request.client.host) or not is_loopback(request.url.hostname or ""):
        raise Problem("not_found")


def _header(key: str, mail: EmailMessage) -> dict[str, Any]:
    return {"key": key, "subject": str(mail["Subject"]), "to": str(mail["To"]), "date": str(mail["Date"])}


def _content(mail: EmailMessage) -> dict[str, Any]:
    html, text = mail.get_body(("html",)), mail.get_body(("plain",))
    others = [
        (part.get_content_type(), part.get_content())
        for part in mail.walk()
        if part.get_content_type() not in ("text/plain", "text/html") and not part.is_multipart()
    ]
    return {
        "html": html.get_content() if html is not None else None,
        "text": text.get_content() if text is not None else "",
        "others": [(name, content if isinstance(content, str) else repr(content)) for name, content in others],
    }
