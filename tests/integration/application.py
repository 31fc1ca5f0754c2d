"""The application over real servers, spoken to as a client would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from cluster.bootstrap import Services
from cluster.settings import Settings
from persistence.repositories.codes import MESSAGES, Purpose
from persistence.sealed import place, user_owner
from persistence.tables import app_user, outbox

PASSWORD = "Correct-Horse-9"
DRAIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """An application that runs in this event loop, and a client of it."""

    app: FastAPI
    http: httpx.AsyncClient

    @property
    def services(self) -> Services:
        """What it works with."""
        services: Services = self.app.state.services
        return services

    async def register(self, login: str, /, **changed: Any) -> dict[str, Any]:
        """A new patient's account."""
        answer = await self.http.post("/v1/auth/register", json=registration(login, **changed))
        assert answer.status_code == 201, answer.text
        user: dict[str, Any] = answer.json()
        return user

    async def sign_in(self, login: str, password: str = PASSWORD) -> dict[str, str]:
        """The headers of who is signed in."""
        return bearer((await self.tokens(login, password))["access_token"])

    async def tokens(self, login: str, password: str = PASSWORD) -> dict[str, Any]:
        """What the token endpoint answers to the right password."""
        answer = await self.http.post(
            "/v1/auth/token", data={"grant_type": "password", "username": login, "password": password}
        )
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def sent_codes(self, user_id: str, purpose: Purpose) -> list[str]:
        """The codes in the outbox for a user, the latest last: what the notifier would send."""
        async with self.services.unit_of_work() as work:
            wrapped = await work.connection.scalar(
                app_user.select().with_only_columns(app_user.c.data_key).where(app_user.c.id == user_id)
            )
            key = self.services.vault.data_key(user_owner(user_id), wrapped)
            rows = await work.connection.execute(
                outbox.select()
                .where(outbox.c.user_id == user_id, outbox.c.kind == MESSAGES[purpose])
                .order_by(outbox.c.id)
            )
            return [key.unseal_json(row.sealed, place("outbox", row.id, "sealed"))["code"] for row in rows]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Application]:
    """An application over these settings, for as long as the block lasts."""
    app = create_app(settings, warm_up=False)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://zapis.test") as http:
            yield Application(app=app, http=http)
        await app.state.services.calendar_actors.drain(DRAIN_TIMEOUT_S)


def registration(login: str, /, **changed: Any) -> dict[str, Any]:
    """A body that registers."""
    return {
        "login": login,
        "password": PASSWORD,
        "name": "Anna Petrova",
        "birth_date": "1990-04-12",
        "email": f"{login}@mail.example",
        "phone": "+49 30 901820",
    } | changed


def bearer(access_token: str) -> dict[str, str]:
    """The header that a token goes in."""
    return {"Authorization": f"Bearer {access_token}"}
