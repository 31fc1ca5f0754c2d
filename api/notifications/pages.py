"""The few pages that the API shows by itself: no script, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from notifier.languages import language_of

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
WORDS: Final[dict[str, dict[str, Any]]] = {
    "en": {
        "title": "Notifications",
        "question": "Do you want to get no more messages about",
        "done": "You will get no more messages about",
        "button": "Yes, no more of these",
        "topics": {
            "booked": "visits that were booked",
            "moved": "visits that were moved",
            "cancelled": "visits that were cancelled",
            "displaced": "visits that cannot take place as planned",
            "reminder": "visits to come",
        },
        "channels": {"email": "e-mail", "sms": "SMS", "push": "push"},
    },
    "ru": {
        "title": "Уведомления",
        "question": "Больше не присылать уведомления:",
        "done": "Больше не будем присылать уведомления:",
        "button": "Да, не присылать",
        "topics": {
            "booked": "о новых записях",
            "moved": "о переносе записей",
            "cancelled": "об отмене записей",
            "displaced": "о приёмах, которые не могут состояться",
            "reminder": "напоминания о приёмах",
        },
        "channels": {"email": "по электронной почте", "sms": "по SMS", "push": "push"},
    },
}


def html_page(name: str, locale: str, **variables: Any) -> Response:
    """A page of ``html``, in the language of a locale."""
    language = language_of(locale)
    content = _environment().get_template(name).render(language=language, words=WORDS[language], **variables)
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).with_name("html"))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
