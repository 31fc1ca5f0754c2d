"""The texts of messages, for administrators: what is said now, other words for it, and how they would look."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import Field
from starlette.responses import Response

from api.dependencies import Admin, TheServices, as_of, problems
from api.errors import Problem, invalid
from api.fields import Answer, Body
from api.routing import Json
from api.routing import router as strict_router
from notifier.languages import LANGUAGES
from notifier.plan import ACCOUNT, TOPICS
from notifier.rendering import (
    SHOWN_TO_ANYBODY,
    TEMPLATE_LENGTH_MAX,
    TEST,
    TemplateRefused,
    Words,
    built_in,
    put_in_words,
    sample,
)
from persistence.repositories.notifications import Notifications
from persistence.repositories.templates import Template, Templates

KINDS: Final = tuple(kind for kind in (*TOPICS, *ACCOUNT) if kind != TEST)
Kind = Annotated[str, Path(description=f"One of {', '.join(KINDS)}.")]
Language = Annotated[Literal["en", "ru"], Path()]
Source = Annotated[str, Field(min_length=1, max_length=TEMPLATE_LENGTH_MAX)]

router = strict_router(prefix="/v1/admin/templates", tag="Notifications")


class TemplateBody(Body):
    """A template, in Jinja's language. The subject and the short text may use what anybody may see only."""

    subject: Annotated[Source, Field(max_length=300, examples=["Your visit on {{ day }} at {{ time }}"])]
    text: Source
    short: Annotated[Source, Field(max_length=1000, description="For SMS and push.")]

    def template(self) -> Template:
        """What is kept of it."""
        return Template(subject=self.subject, text=self.text, short=self.short)


class TemplateAnswer(Answer):
    """A template, and its version: 0 is the one that is built in."""

    kind: str = Field(examples=["booked"])
    language: str = Field(examples=["en"])
    version: int
    subject: str
    text: str
    short: str


class TemplateList(Answer):
    """Every template, with the names that it may use."""

    items: list[TemplateAnswer]
    next_cursor: None
    variables: list[str]
    variables_shown_to_anybody: list[str]


class PreviewAnswer(Answer):
    """A message with made-up data."""

    subject: str
    text: str
    html: str
    short: str


@router.get("", response_model=TemplateList, responses=problems("forbidden"))
async def list_message_templates(_: Admin, services: TheServices) -> Response:
    """What is said of each kind in each language."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        written = {(each.kind, each.language): each for each in await Templates(work.connection).last_versions()}

    def plain() -> Iterator[dict[str, Any]]:
        for kind in KINDS:
            for language in LANGUAGES:
                found = written.get((kind, language))
                template = found.template if found is not None else built_in(kind, language)
                yield _plain(kind, language, found.version if found is not None else 0, template)

    body = {
        "items": list(plain()),
        "next_cursor": None,
        "variables": sorted(sample(LANGUAGES[0])),
        "variables_shown_to_anybody": sorted(SHOWN_TO_ANYBODY),
    }
    return Json(body, headers=as_of(now))


@router.put(
    "/{kind}/{language}",
    response_model=TemplateAnswer,
    responses=problems("forbidden", "not_found", "validation_error"),
)
async def put_message_template(
    kind: Kind, language: Language, body: TemplateBody, admin: Admin, services: TheServices
) -> Response:
    """Say it in other words from now on. What does not render is refused; the versions before are kept."""
    _rendered(kind, language, body.template())
    async with services.unit_of_work() as work:
        version = await Templates(work.connection).add(
            kind, language, body.template(), created_by=admin.user_id, now=datetime.now(UTC)
        )
        await work.audit.record(
            user_id=admin.user_id, role=admin.role.value, action="write", subject=f"template {kind} {language}"
        )
    return Json(_plain(kind, language, version, body.template()))


@router.delete("/{kind}/{language}", response_model=TemplateAnswer, responses=problems("forbidden", "not_found"))
async def reset_message_template(kind: Kind, language: Language, admin: Admin, services: TheServices) -> Response:
    """Say it again as it is built in: that becomes another version."""
    _known(kind)
    template = built_in(kind, language)
    async with services.unit_of_work() as work:
        version = await Templates(work.connection).add(
            kind, language, template, created_by=admin.user_id, now=datetime.now(UTC)
        )
        await work.audit.record(
            user_id=admin.user_id, role=admin.role.value, action="reset", subject=f"template {kind} {language}"
        )
    return Json(_plain(kind, language, version, template))


@router.post(
    "/{kind}/{language}/preview",
    response_model=PreviewAnswer,
    responses=problems("forbidden", "not_found", "validation_error"),
)
async def preview_message_template(kind: Kind, language: Language, body: TemplateBody, _: Admin) -> Response:
    """How a message would look, with made-up data."""
    words = _rendered(kind, language, body.template())
    return Json({"subject": words.subject, "text": words.text, "html": words.html, "short": words.short})


@router.post(
    "/{kind}/{language}/test",
    status_code=202,
    response_model=PreviewAnswer,
    responses=problems("forbidden", "not_found", "validation_error"),
)
async def send_test_message(
    kind: Kind, language: Language, body: TemplateBody, admin: Admin, services: TheServices
) -> Response:
    """Send it by e-mail to the caller, with made-up data."""
    words = _rendered(kind, language, body.template())
    async with services.unit_of_work() as work:
        user = await work.users.get(admin.user_id)
        if user is None or not user.email:
            raise invalid("", "You have no e-mail address: PATCH /v1/me.")
        await Notifications(work.connection).cause(
            TEST,
            user.id,
            body.model_dump() | {"language": language},
            key=work.users.data_key(user),
            now=datetime.now(UTC),
        )
    return Json(
        {"subject": words.subject, "text": words.text, "html": words.html, "short": words.short}, status_code=202
    )


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise Problem("not_found", f"There are templates for {', '.join(KINDS)}.")


def _rendered(kind: str, language: str, template: Template) -> Words:
    """The template with made-up data, for oneself and for somebody else: both have to render."""
    _known(kind)
    allowed = _variables(kind, language)
    try:
        put_in_words(template, allowed | {"patient": ""}, language=language, unsubscribe_url=None)
        return put_in_words(template, allowed, language=language, unsubscribe_url=None)
    except TemplateRefused as refusal:
        raise invalid("", f"It does not render: {refusal}.") from None


def _variables(kind: str, language: str) -> dict[str, str]:
    """Those that a message of this kind has."""
    of_visit = {"patient", "doctor", "location", "address", "day", "time", "zone"}
    of_account = {"new_device": {"until"}, "refused": set[str]()}.get(kind, {"code", "until"})
    names = {"name"} | (of_visit if kind in TOPICS else of_account)
    return {name: value for name, value in sample(language).items() if name in names}


def _plain(kind: str, language: str, version: int, template: Template) -> dict[str, Any]:
    return {
        "kind": kind,
        "language": language,
        "version": version,
        "subject": template.subject,
        "text": template.text,
        "short": template.short,
    }
