"""``/v1/me/notification-preferences``, ``/v1/me/notifications``, unsubscribing, and delivery for administrators."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.responses import Response

from api.dependencies import Admin, CurrentUser, Page, PageRequest, TheServices, as_of, problems
from api.directory.service import page_by_key
from api.errors import Problem
from api.fields import Id
from api.notifications.pages import html_page
from api.notifications.schemas import (
    STATES,
    DeliveryAnswer,
    DeliveryPage,
    NotificationPage,
    PreferencesAnswer,
    PreferencesBody,
    State,
    delivery_plain,
    notification_plain,
)
from api.routing import FORM, Json
from api.routing import router as strict_router
from cluster.bootstrap import Services
from notifier.clock import DatabaseClock
from notifier.planning import plan_reminders_anew
from notifier.preferences import Channel, Preferences
from notifier.unsubscribe import TOKEN_LENGTH_MAX, BadLink, Unsubscribed, read_link
from persistence.repositories.notifications import Notifications
from persistence.repositories.users import User
from persistence.unit_of_work import UnitOfWork

router = strict_router(prefix="/v1", tag="Notifications")

Token = Annotated[str, Query(max_length=TOKEN_LENGTH_MAX, description="As it stands in the link of a message.")]


@router.get("/me/notification-preferences", response_model=PreferencesAnswer, responses=problems())
async def get_preferences(principal: CurrentUser, services: TheServices) -> Response:
    """What the caller wants to hear of, and how."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        user, known = await _known(work, principal.user_id, lock=False)
    return Json(known.plain() | {"locale": user.locale}, headers=as_of(now))


@router.put("/me/notification-preferences", response_model=PreferencesAnswer, responses=problems("validation_error"))
async def put_preferences(body: PreferencesBody, principal: CurrentUser, services: TheServices) -> Response:
    """Choose anew. Reminders that are to come follow at once."""
    async with services.unit_of_work() as work:
        now = await DatabaseClock().read(work)
        user, known = await _known(work, principal.user_id)
        chosen = body.applied_to(known)
        if body.locale is not None and body.locale != user.locale:
            user = replace(user, locale=body.locale)
            await work.users.set_profile(user, now=now)
        await _choose(work, services, user, chosen, now)
    return Json(chosen.plain() | {"locale": user.locale})


@router.get("/me/notifications", response_model=NotificationPage, responses=problems())
async def list_notifications(principal: CurrentUser, services: TheServices, page: Page) -> Response:
    """The caller's messages, sent and to be sent, the newest first."""
    now = datetime.now(UTC)
    after = page.after("notifications", 1)
    async with services.unit_of_work() as work:
        found = await Notifications(work.connection).page(
            user_id=principal.user_id, before=after[0] if after else None, limit=page.limit + 1
        )
    return Json(
        page_by_key(page, "notifications", found, key=lambda each: (each.id,), plain=notification_plain),
        headers=as_of(now),
    )


@router.get("/admin/notifications", response_model=DeliveryPage, responses=problems("forbidden"))
async def list_deliveries(
    admin: Admin,
    services: TheServices,
    page: Page,
    state: Annotated[State | None, Query(description="`dead`: those that nobody got.")] = None,
    channel: Annotated[Channel | None, Query()] = None,
    user_id: Annotated[Id | None, Query()] = None,
) -> Response:
    """All messages that meet what is given, the newest first."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        return Json(await _deliveries(work, page, state, channel, user_id), headers=as_of(now))


@router.post(
    "/admin/notifications/{notification_id}/resend",
    response_model=DeliveryAnswer,
    responses=problems("forbidden", "not_found"),
)
async def resend(
    notification_id: Annotated[Id, Path(description="The message's id.")], admin: Admin, services: TheServices
) -> Response:
    """Have a message that ended unsent tried again. 404 where there is none, and for one that was sent or is void."""
    async with services.unit_of_work() as work:
        now = await DatabaseClock().read(work)
        notifications = Notifications(work.connection)
        if not await notifications.resend(notification_id, now=now):
            raise Problem("not_found")
        await work.audit.record(
            user_id=admin.user_id,
            role=admin.role.value,
            action="resend",
            subject="notification",
            subject_ids=[notification_id],
        )
        (again,) = await notifications.named([notification_id])
    return Json(delivery_plain(again))


@router.get("/notifications/unsubscribe", response_class=Response, responses=problems("not_found"))
async def ask_to_unsubscribe(token: Token, services: TheServices) -> Response:
    """A page that asks once more: programs follow links in mail before people do."""
    link = _read(services, token)
    async with services.unit_of_work() as work:
        user, _ = await _known(work, link.user_id, lock=False)
    return html_page("unsubscribe.html", user.locale, topic=link.topic.value, channel=link.channel.value, done=False)


@router.post(
    "/notifications/unsubscribe",
    response_class=Response,
    responses=problems("not_found"),
    openapi_extra={
        "requestBody": {"content": {form: {"schema": {"type": "object"}} for form in (FORM, "multipart/form-data")}}
    },
)
async def unsubscribe(token: Token, services: TheServices) -> Response:
    """Switch off what the link is about: by the page's button, or by a mail program, in either form (RFC 8058)."""
    link = _read(services, token)
    async with services.unit_of_work() as work:
        now = await DatabaseClock().read(work)
        user, known = await _known(work, link.user_id)
        await _choose(work, services, user, known.without(link.topic, link.channel), now)
    return html_page("unsubscribe.html", user.locale, topic=link.topic.value, channel=link.channel.value, done=True)


async def _known(work: UnitOfWork, user_id: str, *, lock: bool = True) -> tuple[User, Preferences]:
    """A user and what they have chosen; ``lock`` keeps others from changing it."""
    user = await work.users.get(user_id, lock=lock)
    if user is None:
        raise Problem("not_found")
    chosen = await Notifications(work.connection).chosen([user_id])
    return user, Preferences.from_plain(chosen.get(user_id))


async def _choose(work: UnitOfWork, services: Services, user: User, chosen: Preferences, now: datetime) -> None:
    await Notifications(work.connection).choose(user.id, chosen.plain(), now=now)
    channels = services.notifiers.channels
    await plan_reminders_anew(user.id, chosen, user.timezone, work, channels=channels, now=now)


async def _deliveries(
    work: UnitOfWork, page: PageRequest, state: str | None, channel: Channel | None, user_id: str | None
) -> dict[str, Any]:
    after = page.after("deliveries", 1)
    found = await Notifications(work.connection).page(
        user_id=user_id,
        channel=channel,
        outcome=state if state in STATES else None,
        open_only=state == "waiting",
        before=after[0] if after else None,
        limit=page.limit + 1,
    )
    return page_by_key(page, "deliveries", found, key=lambda each: (each.id,), plain=delivery_plain)


def _read(services: Services, token: str) -> Unsubscribed:
    try:
        return read_link(services.vault, token)
    except BadLink:
        raise Problem("not_found") from None
