"""Browsers that a user wants messages pushed to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Path, Request
from pydantic import Field
from starlette.responses import Response

from api.dependencies import CurrentUser, Page, TheServices, problems
from api.directory.service import page_by_key
from api.errors import Problem, invalid
from api.fields import Answer, Body, Id
from api.routing import Json
from api.routing import router as strict_router
from notifier.push import PushKeys, is_browser_key, is_push_service
from persistence.identifiers import new_id
from persistence.repositories.push_subscriptions import PushSubscription, PushSubscriptions

SUBSCRIPTIONS_MAX: Final = 10

router = strict_router(prefix="/v1", tag="Notifications")


class BrowserKeys(Body):
    """What the browser's ``PushSubscription`` has as ``keys``."""

    p256dh: str = Field(max_length=200)
    auth: str = Field(max_length=100)


class NewSubscription(Body):
    """A browser's ``PushSubscription``, as ``JSON.stringify`` writes it."""

    endpoint: str = Field(max_length=1000, examples=["https://updates.push.services.mozilla.com/wpush/v2/gAAAA"])
    keys: BrowserKeys
    expiration_time: int | None = Field(None, alias="expirationTime", description="Not used.")


class SubscriptionAnswer(Answer):
    """A browser that is pushed to."""

    id: Id
    created_at: datetime


class SubscriptionPage(Answer):
    """One's browsers."""

    items: list[SubscriptionAnswer]
    next_cursor: str | None


class PushKeyAnswer(Answer):
    """The ``applicationServerKey`` to subscribe with."""

    public_key: str


@router.get("/push-key", response_model=PushKeyAnswer, responses=problems("not_found"))
async def get_push_key(request: Request) -> Response:
    """The key that a browser subscribes with (RFC 8292). 404: nothing is pushed here."""
    keys: PushKeys | None = request.app.state.push_keys
    if keys is None:
        raise Problem("not_found", "Nothing is pushed here.")
    return Json({"public_key": keys.public_key}, headers={"Cache-Control": "public, max-age=3600"})


@router.post(
    "/me/push-subscriptions",
    status_code=201,
    response_model=SubscriptionAnswer,
    responses=problems("limit_reached", "validation_error"),
)
async def subscribe(body: NewSubscription, principal: CurrentUser, services: TheServices) -> Response:
    """Have messages pushed to a browser."""
    if not is_push_service(body.endpoint, services.settings.push_hosts):
        raise invalid("/endpoint", "This is no push service that is known here.")
    if not is_browser_key(body.keys.p256dh, body.keys.auth):
        raise invalid("/keys", "These are not the keys of a browser.")
    new = PushSubscription(
        id=new_id(),
        user_id=principal.user_id,
        endpoint=body.endpoint,
        p256dh=body.keys.p256dh,
        auth=body.keys.auth,
        created_at=datetime.now(UTC),
    )
    async with services.unit_of_work() as work:
        user = await work.users.get(principal.user_id, lock=True)
        if user is None:
            raise Problem("unauthenticated")
        subscriptions = PushSubscriptions(work.connection, work.vault)
        if not await subscriptions.put(new, key=work.users.data_key(user), most=SUBSCRIPTIONS_MAX):
            raise Problem("limit_reached", f"You may have {SUBSCRIPTIONS_MAX} browsers: remove one.")
    return Json(_plain(new), status_code=201)


@router.get("/me/push-subscriptions", response_model=SubscriptionPage, responses=problems())
async def list_subscriptions(principal: CurrentUser, services: TheServices, page: Page) -> Response:
    """The caller's browsers."""
    after = page.after("push-subscriptions", 1)
    async with services.unit_of_work() as work:
        of_all = await PushSubscriptions(work.connection, work.vault).of([principal.user_id])
    found = [each for each in of_all.get(principal.user_id, []) if after is None or each.id > after[0]]
    return Json(
        page_by_key(page, "push-subscriptions", found[: page.limit + 1], key=lambda each: (each.id,), plain=_plain)
    )


@router.delete("/me/push-subscriptions/{subscription_id}", status_code=204, responses=problems("not_found"))
async def unsubscribe_browser(
    subscription_id: Annotated[Id, Path(description="The subscription's id.")],
    principal: CurrentUser,
    services: TheServices,
) -> None:
    """Push nothing more to a browser."""
    async with services.unit_of_work() as work:
        subscriptions = PushSubscriptions(work.connection, work.vault)
        if not await subscriptions.remove(subscription_id, user_id=principal.user_id):
            raise Problem("not_found")


def _plain(subscription: PushSubscription) -> dict[str, object]:
    return {"id": subscription.id, "created_at": subscription.created_at}
