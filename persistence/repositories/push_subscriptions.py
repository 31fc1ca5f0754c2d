"""Browsers in which users have asked for push messages; where and how to reach one is sealed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.sealed import DataKey, Vault, place, user_owner
from persistence.tables import app_user, push_subscription


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSubscription:
    """A browser that can be pushed to (https://www.w3.org/TR/push-api/)."""

    id: str
    user_id: str
    endpoint: str = field(repr=False)
    p256dh: str = field(repr=False)
    auth: str = field(repr=False)
    created_at: datetime


class PushSubscriptions:
    """Reads and writes them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def put(self, new: PushSubscription, *, key: DataKey, most: int) -> bool:
        """Keep one, in the place of who had that browser before; whether the user may have it: ``most`` at once."""
        index = self._vault.index("push-endpoint", new.endpoint)
        await self._connection.execute(delete(push_subscription).where(push_subscription.c.endpoint_index == index))
        count = await self._connection.scalar(select(func.count()).where(push_subscription.c.user_id == new.user_id))
        if (count or 0) >= most:
            return False
        sealed = key.seal_json(
            {"endpoint": new.endpoint, "p256dh": new.p256dh, "auth": new.auth},
            place("push_subscription", new.id, "sealed"),
        )
        await self._connection.execute(
            insert(push_subscription).values(
                id=new.id, user_id=new.user_id, endpoint_index=index, sealed=sealed, created_at=new.created_at
            )
        )
        return True

    async def of(self, user_ids: Collection[str]) -> dict[str, list[PushSubscription]]:
        """By user, the browsers of these users, in the order in which they subscribed."""
        rows = await self._connection.execute(
            select(push_subscription, app_user.c.data_key)
            .join(app_user, app_user.c.id == push_subscription.c.user_id)
            .where(push_subscription.c.user_id.in_(user_ids), app_user.c.data_key.is_not(None))
            .order_by(push_subscription.c.id)
        )
        found: dict[str, list[PushSubscription]] = {}
        for row in rows:
            key = self._vault.data_key(user_owner(row.user_id), row.data_key)
            opened = key.unseal_json(row.sealed, place("push_subscription", row.id, "sealed"))
            subscription = PushSubscription(id=row.id, user_id=row.user_id, created_at=row.created_at, **opened)
            found.setdefault(row.user_id, []).append(subscription)
        return found

    async def remove(self, subscription_id: str, *, user_id: str | None = None) -> bool:
        """Forget one, of that user if one is named; whether there was such a one."""
        statement = delete(push_subscription).where(push_subscription.c.id == subscription_id)
        if user_id is not None:
            statement = statement.where(push_subscription.c.user_id == user_id)
        return await self._connection.scalar(statement.returning(push_subscription.c.id)) is not None

    async def remove_all(self, user_id: str) -> None:
        """Forget all of a user."""
        await self._connection.execute(delete(push_subscription).where(push_subscription.c.user_id == user_id))
