"""From a request to a command of a calendar, and from its reply to an answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from fastapi import Request
from fastapi.responses import Response

from actors.errors import IdempotencyKeyReused, from_plain
from actors.messages import Command, Done, NotDecided, Pending, RefusedFor, Rejected, Reply, ReserveForMove
from api.dependencies import Principal, services_of, wants_async
from api.errors import Problem
from api.routing import Json
from cluster.bootstrap import Services
from persistence.identifiers import new_id
from persistence.repositories.appointments import Appointments
from persistence.sealed import Vault, place
from persistence.unit_of_work import DatabaseUnavailable

LOOK_UP_TIMEOUT_S: Final = 1.0


class AnsweredPending(Exception):
    """The command is decided and not committed: the request is answered with 202 and the command's address."""

    def __init__(self, command_id: str) -> None:
        super().__init__(command_id)
        self.command_id = command_id

    def response(self) -> Response:
        """The 202."""
        return Json(
            {"command_id": self.command_id, "status": "pending"},
            status_code=202,
            headers={"Location": f"/v1/commands/{self.command_id}"},
        )


def header(
    request: Request,
    principal: Principal,
    *,
    doctor_id: str,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
    override_reason: str | None = None,
    prefer: str | None = None,
) -> dict[str, Any]:
    """What every command says of itself, from the request that asks for it.

    The fingerprint is of the method, the path and the body as they were understood: field order, spaces and the case of
    ids do not matter.

    Raises:
        Problem: 403, a patient gives an override reason.
    """
    services = services_of(request)
    command_id = new_id() if key is None else keyed_command_id(principal.user_id, key)
    override = None
    if override_reason is not None:
        if not principal.staff:
            raise Problem("forbidden", "Only staff may pass a cut-off or a limit.")
        override = seal_own(services, principal, override_reason, "override")
    return {
        "command_id": command_id,
        "doctor_id": doctor_id,
        "requester": principal.requester,
        "fingerprint": fingerprint(services.vault, request.method, request.scope["path"].lower(), body),
        "deadline": datetime.now(UTC) + timedelta(seconds=services.settings.request_deadline_s),
        "respond_async": wants_async(prefer),
        "override": override,
    }


def keyed_command_id(user_id: str, key: str) -> str:
    """The command id that an Idempotency-Key of a user stands for: the same key of another user is another id.

    It has the form of every id (UUIDv7), but its time is as meaningless as the rest.
    """
    digest = hashlib.sha256(f"{user_id}\x00{key}".encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-7{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def fingerprint(vault: Vault, method: str, path: str, body: Mapping[str, Any] | None) -> str:
    """What makes two requests the same one. Keyed, because it is stored and a body may hold what a person wrote."""
    content = orjson.dumps([method, path, body], option=orjson.OPT_SORT_KEYS)
    return vault.index("fingerprint", content.decode()).hex()[:32]


def seal_own(services: Services, principal: Principal, text: str, column: str) -> str:
    """What a user wrote, sealed under the user's own data key, as commands carry it."""
    key = principal.data_key(services.vault)
    return encode_sealed(key.seal(text.encode(), place("app_user", principal.user_id, column)))


def encode_sealed(sealed: bytes) -> str:
    """Sealed bytes as the wire and the journal carry them: base64."""
    return base64.b64encode(sealed).decode()


async def run(services: Services, command: Command, *, key: str | None = None) -> Mapping[str, Any]:
    """The answer to a command, which has its id from the ``key`` if there is one.

    Raises:
        Rejection: it was refused.
        AnsweredPending: it is decided and not committed.
        Problem: 503, no decision stands, or its outcome is unknown.
    """
    if key is not None and command.respond_async:
        known = await _stored_of(services, command)
        if known is not None:
            return answer_of(known)
    return answer_of(await services.calendars.send(command))


async def move(services: Services, reserve: ReserveForMove, *, key: str | None) -> Mapping[str, Any]:
    """The answer to a move to another doctor, as ``run`` gives it; one that stays refused keeps no slot again."""
    if key is not None and isinstance(known := await _stored_of(services, reserve), Rejected):
        return answer_of(known)
    return answer_of(await services.moves.move(reserve))


async def _stored_of(services: Services, command: Command) -> Reply | None:
    return await stored(
        services,
        command_id=command.command_id,
        user_id=command.requester.user_id,
        fingerprint=command.fingerprint,
    )


async def stored(services: Services, *, command_id: str, user_id: str, fingerprint: str) -> Reply | None:
    """What was answered under a command id before; ``None``: nothing, or the database is away.

    Calendars look there before they refuse anything. This is for a request that does not get as far as to one, or
    that does not wait until it has looked.

    Raises:
        IdempotencyKeyReused: it was another request.
    """
    try:
        async with asyncio.timeout(LOOK_UP_TIMEOUT_S), services.unit_of_work() as work:
            found = await Appointments(work.connection).answer(command_id)
    except (DatabaseUnavailable, TimeoutError):
        return None
    if found is None:
        return None
    if (found.user_id, found.fingerprint) != (user_id, fingerprint):
        raise IdempotencyKeyReused
    return Rejected(**found.answer["rejected"]) if "rejected" in found.answer else Done(answer=found.answer["done"])


def answer_of(reply: Reply) -> Mapping[str, Any]:
    """As ``run``, of a reply that is already there."""
    match reply:
        case Done():
            return reply.answer
        case Rejected():
            raise from_plain({"code": reply.code, "detail": reply.detail})
        case Pending():
            raise AnsweredPending(reply.command_id)
        case NotDecided():
            if reply.why is RefusedFor.OVERLOADED:
                raise Problem("unavailable", "Too much is waiting for this calendar: try again in a moment.")
            raise Problem("unavailable")
