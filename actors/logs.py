"""Logs: a constant event name and fields, one line each, on standard error; for people or as JSON for machines.

A request's id, bound with ``structlog.contextvars.bind_contextvars(request_id=…)``, is on every line written for it.
Logs hold ids, never what is known about a person: a field that is named like personal data or a secret is withheld
here, whoever wrote it.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

WITHHELD = frozenset(
    {
        "authorization",
        "birth_date",
        "email",
        "login",
        "name",
        "password",
        "phone",
        "token",
    }
)
OURS = "zapis"
"""The one logger of this project. Libraries have theirs: what they say below a warning nobody asked for, and it names
whom it is about, as the addresses of requests do."""
LOUD = ("ray",)
"""Loggers of libraries that have a level of their own."""


def configure_logging(level: str, log_format: str) -> None:
    """Send structlog's and the standard library's records through the same processors.

    ``level`` is debug, info, warning or error; ``log_format`` console or json.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _withhold,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: logging.getLogger(OURS),
        cache_logger_on_first_use=True,
    )
    render: list[Processor]
    if log_format == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback  # Never the local variables: they may hold what is personal.
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    ours = logging.getLogger(OURS)
    ours.setLevel(level.upper())
    for logger in (root, *map(logging.getLogger, LOUD)):
        logger.setLevel(max(logging.WARNING, ours.level))


def _withhold(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for field in event.keys() & WITHHELD:
        event[field] = "[withheld]"
    return event
