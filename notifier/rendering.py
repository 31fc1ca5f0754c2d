"""Messages put in words: a template for each kind and language, sandboxed, and one layout for all e-mails.

A template has a ``subject`` and a ``text`` for e-mail, and a ``short`` text for SMS and push. It may use:

    name, patient           who is told; for whom the visit is, where that is somebody else
    doctor, location,       of the visit: whom, where, when by the clock there, and that clock's zone
    address, day, time,
    zone
    code, until             of an account's message

What is told by SMS, push or in a subject line can be read by others on a locked screen: ``SHOWN_TO_ANYBODY`` is all
that a template has there. Subject lines have no line breaks, whatever is put into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog
import yaml
from babel.dates import format_date, format_datetime, format_time
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment

from notifier.contents import Content
from notifier.languages import language_of
from persistence.repositories.templates import Template

TEXTS: Final = Path(__file__).with_name("texts")
SHOWN_TO_ANYBODY: Final = frozenset({"day", "time", "zone", "location", "code", "until"})
TEST: Final = "template_test"
"""The kind of a message by which an administrator tries a template out."""
TEMPLATE_LENGTH_MAX: Final = 20_000
RENDERED_LENGTH_MAX: Final = 100_000


log = structlog.get_logger()


# Names, conditions and a few filters. Nothing that repeats, multiplies or calls: a template takes no longer than it is
# long, and neither does what it says.
_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Filter),
)
_FILTERS: Final = frozenset({"upper", "lower", "title", "capitalize", "trim"})


class TemplateRefused(Exception):
    """A template that does not render."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A message in words."""

    language: str
    subject: str = field(repr=False)
    text: str = field(repr=False)
    html: str = field(repr=False)
    short: str = field(repr=False)


def render(content: Content, *, unsubscribe_url: str | None = None) -> Words:
    """The message in its user's language, by what an administrator has written for it, else by what is built in.

    Raises:
        TemplateRefused: what is built in does not render.
    """
    language = language_of(content.user.locale)
    kind = content.notification.kind
    if kind == TEST:
        return _render_test(content, language)
    variables = variables_of(content, language)
    if content.template is not None:
        try:
            return _rendered_for(content, content.template, variables, language, unsubscribe_url)
        except TemplateRefused as refusal:  # It did when it was saved. Nobody's message is lost by it.
            log.error("template_refused", kind=kind, language=language, reason=str(refusal))
    return _rendered_for(content, built_in(kind, language), variables, language, unsubscribe_url)


def _rendered_for(
    content: Content, template: Template, variables: Mapping[str, str], language: str, unsubscribe_url: str | None
) -> Words:
    if not content.confirmed and content.visit is None:
        variables = {**variables, "name": ""}  # Of an account that is being made; anybody may have named it anything.
    elif not content.confirmed:
        variables = {name: value for name, value in variables.items() if name in SHOWN_TO_ANYBODY}
        confirm = _texts(language)["words"]["confirm"]
        template = Template(subject=template.subject, text=f"{template.short}\n\n{confirm}", short=template.short)
    return put_in_words(template, variables, language=language, unsubscribe_url=unsubscribe_url)


def _render_test(content: Content, language: str) -> Words:
    """A template that an administrator tries out, with made-up data."""
    details = content.details
    template = Template(subject=details["subject"], text=details["text"], short=details["short"])
    return put_in_words(template, sample(details["language"]), language=details["language"], unsubscribe_url=None)


def sample(language: str) -> dict[str, str]:
    """Made-up data for every variable that there is."""
    made_up: dict[str, str] = _texts(language)["sample"]
    return made_up


def put_in_words(
    template: Template, variables: Mapping[str, str], *, language: str, unsubscribe_url: str | None
) -> Words:
    """A template with its variables put in.

    Raises:
        TemplateRefused: it is no template, uses what there is not, or becomes too long.
    """
    for_anybody = {name: value for name, value in variables.items() if name in SHOWN_TO_ANYBODY}
    words = _texts(language)["words"]
    subject = " ".join(_rendered(template.subject, for_anybody).split())
    text = _rendered(template.text, variables).strip()
    facts = [
        (words[label], value)
        for label, value in (
            ("patient", variables.get("patient", "")),
            ("doctor", variables.get("doctor", "")),
            ("time", _when(variables)),
            ("place", _where(variables)),
        )
        if value
    ]
    html = _layout().render(
        locale=language,
        subject=subject,
        paragraphs=[paragraph for paragraph in text.split("\n\n") if paragraph.strip()],
        facts=facts,
        words=words,
        unsubscribe_url=unsubscribe_url,
    )
    told = [*(f"{label}: {value}" for label, value in facts), ""] if facts else []
    lines = [text, "", *told, words["automatic"]]
    if unsubscribe_url is not None:
        lines.append(f"{words['unsubscribe']}: {unsubscribe_url}")
    return Words(
        language=language,
        subject=subject,
        text="\n".join(lines).strip() + "\n",
        html=html,
        short=" ".join(_rendered(template.short, for_anybody).split()),
    )


def variables_of(content: Content, language: str) -> dict[str, str]:
    """What a template may use."""
    variables = {"name": content.user.name}
    if (visit := content.visit) is not None:
        start = visit.appointment.start.astimezone(ZoneInfo(visit.location.timezone))
        variables |= {
            "patient": "" if visit.patient is None else visit.patient.name,
            "doctor": visit.doctor or "",
            "location": visit.location.name,
            "address": visit.location.address,
            "day": format_date(start, "d MMMM y" if language == "ru" else "EEEE, d MMMM y", locale=language),
            "time": format_time(start, "HH:mm", locale=language),
            "zone": format_time(start, "zzzz", locale=language),
        }
    if "code" in content.details:
        variables["code"] = content.details["code"]
    for moment in ("expires_at", "at"):
        if moment in content.details:
            instant = datetime.fromisoformat(content.details[moment]).astimezone(ZoneInfo(content.user.timezone))
            variables["until"] = format_datetime(instant, "d MMMM, HH:mm (zzzz)", locale=language)
    return variables


def built_in(kind: str, language: str) -> Template:
    """The template that there is for a kind."""
    return Template(**_texts(language)[kind])


def _when(variables: Mapping[str, str]) -> str:
    return f"{variables['day']}, {variables['time']} ({variables['zone']})" if "day" in variables else ""


def _where(variables: Mapping[str, str]) -> str:
    return ", ".join(variables[name] for name in ("location", "address") if name in variables)


def _rendered(source: str, variables: Mapping[str, str]) -> str:
    if len(source) > TEMPLATE_LENGTH_MAX:
        raise TemplateRefused(f"should have at most {TEMPLATE_LENGTH_MAX} characters")
    try:
        rendered = _compiled(source).render(variables)
    except (TemplateError, TypeError, ValueError, RecursionError, SyntaxError, MemoryError) as failure:
        raise TemplateRefused(str(failure) or type(failure).__name__) from None
    if len(rendered) > RENDERED_LENGTH_MAX:
        raise TemplateRefused("becomes too long")
    return rendered


@lru_cache(maxsize=256)
def _compiled(source: str) -> JinjaTemplate:
    parsed = _sandbox().parse(source)
    for node in parsed.find_all(nodes.Node):
        if not isinstance(node, _ALLOWED) or (isinstance(node, nodes.Filter) and node.name not in _FILTERS):
            said = node.name if isinstance(node, nodes.Filter) else type(node).__name__.lower()
            raise TemplateRefused(f"line {node.lineno}: {said} is not for templates")
    return _sandbox().from_string(parsed)


@cache
def _sandbox() -> ImmutableSandboxedEnvironment:
    # Plain text: the layout escapes what it takes into HTML. No loader: a template includes nothing.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.globals.clear()
    return environment


@cache
def _layout() -> Any:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.from_string((TEXTS / "layout.html").read_text(encoding="utf-8"))


@cache
def _texts(language: str) -> dict[str, Any]:
    texts: dict[str, Any] = yaml.safe_load((TEXTS / f"{language}.yaml").read_text(encoding="utf-8"))
    return texts
