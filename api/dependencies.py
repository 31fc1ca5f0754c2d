"""What handlers ask for: who calls, which page, under which key; and how what they answer is described.

``CurrentUser``, ``Staff`` and ``Admin`` are the principal of a request, ``Page`` a part of a list, ``IdempotencyKey``
and ``IfVersion`` headers that were checked. ``problems(…)`` documents the refusals of an operation.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b, sha256
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Header, Query, Request
from fastapi.openapi.models import OAuth2 as OAuth2Model
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.security.base import SecurityBase
from starlette.responses import Response

from actors.messages import Requester, Role
from api.accounts.tokens import InvalidToken
from api.errors import MEDIA_TYPE, PROBLEMS, TOKEN_PATH, Problem, invalid, title
from api.fields import rfc3339
from api.gate import Gate
from api.middleware import client_address
from cluster.bootstrap import Services
from persistence.sealed import DataKey, Vault, patient_owner, user_owner

CURSOR_LENGTH_MAX: Final = 1024
CURSOR_TAG_BYTES: Final = 16
KEY_LENGTH_MAX: Final = 128
KEY_PATTERN: Final = r"^[\x21-\x7e]+$"
LIMIT_MAX: Final = 200
_VERSION_TAG: Final = re.compile(r'"(\d{1,9})(?:-[0-9a-f]{16})?"', re.ASCII)
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"([\x21\x23-\x7e]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls: a user who is signed in and not disabled."""

    user_id: str
    role: Role
    patient_id: str | None
    doctor_id: str | None
    session_id: str
    wrapped_key: bytes | None = field(repr=False)
    patient_keys: dict[str, bytes | None] = field(repr=False)
    """The wrapped data key of every patient that the user may book for."""

    @property
    def staff(self) -> bool:
        """Whether this is a doctor or an administrator."""
        return self.role is not Role.PATIENT

    @property
    def requester(self) -> Requester:
        """As the calendar knows them."""
        return Requester(user_id=self.user_id, role=self.role)

    def requester_in(self, doctor_id: str) -> Requester:
        """As that doctor's calendar knows them: in another doctor's, a doctor is a patient like any other."""
        own = self.role is not Role.DOCTOR or self.doctor_id == doctor_id
        return self.requester if own else Requester(user_id=self.user_id, role=Role.PATIENT)

    def books_for(self, patient_id: str) -> bool:
        """Whether the patient is one of their own."""
        return patient_id in self.patient_keys

    def data_key(self, vault: Vault) -> DataKey:
        """Their own data key.

        Raises:
            Erased
        """
        return vault.data_key(user_owner(self.user_id), self.wrapped_key)

    def patient_data_key(self, vault: Vault, patient_id: str) -> DataKey:
        """The data key of a patient of their own.

        Raises:
            Erased
        """
        return vault.data_key(patient_owner(patient_id), self.patient_keys.get(patient_id))


def services_of(request: Request) -> Services:
    """What the process works with."""
    services: Services = request.app.state.services
    return services


def gate_of(request: Request) -> Gate:
    """What decides who gets in."""
    gate: Gate = request.app.state.gate
    return gate


def address_of(request: Request) -> str:
    """Who is counted when nobody is signed in."""
    return client_address(request.scope)


class _BearerToken(SecurityBase):
    """Authenticates by an access token; one object serves as the dependency and as its entry in OpenAPI."""

    def __init__(self) -> None:
        self.model = OAuth2Model(
            flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl=TOKEN_PATH, refreshUrl=TOKEN_PATH))
        )
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> Principal:
        authorization = request.headers.get("authorization", "")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Problem("unauthenticated", "A token is needed: Authorization: Bearer <access token>.")
        return await authenticate(gate_of(request), token)


async def authenticate(gate: Gate, token: str) -> Principal:
    """Whose access token this is; for WebSockets too.

    Raises:
        Problem: ``unauthenticated``.
        DatabaseUnavailable: the user was not known lately and cannot be read.
    """
    try:
        claims = await gate.tokens.verify(token)
    except InvalidToken:
        raise Problem("unauthenticated", headers=_bad_token()) from None
    access = await gate.principals.get(claims.user_id)
    if access is None or access.disabled or not access.goes_on(claims.session_id, claims.session_generation):
        raise Problem("unauthenticated", headers=_bad_token())
    return Principal(
        user_id=access.user_id,
        role=access.role,
        patient_id=access.patient_id,
        doctor_id=access.doctor_id,
        session_id=claims.session_id,
        wrapped_key=access.wrapped_key,
        patient_keys=access.patient_keys,
    )


current_user = _BearerToken()


def require_role(*roles: Role) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency: the principal, whose role has to be one of these."""

    async def checked(principal: Annotated[Principal, Depends(current_user)]) -> Principal:
        if principal.role not in roles:
            raise Problem("forbidden")
        return principal

    return checked


CurrentUser = Annotated[Principal, Depends(current_user)]
Staff = Annotated[Principal, Depends(require_role(Role.DOCTOR, Role.ADMIN))]
DoctorOnly = Annotated[Principal, Depends(require_role(Role.DOCTOR))]
Admin = Annotated[Principal, Depends(require_role(Role.ADMIN))]
# FastAPI runs a dependency in a thread unless it is async: that would cost more than most of what is done here.


async def _services(request: Request) -> Services:
    return services_of(request)


async def _gate(request: Request) -> Gate:
    return gate_of(request)


TheServices = Annotated[Services, Depends(_services)]
TheGate = Annotated[Gate, Depends(_gate)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=KEY_LENGTH_MAX,
        pattern=KEY_PATTERN,
        description="Up to 128 visible characters: the same command under the same key has one effect.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(max_length=200, description="`respond-async`: answer 202 at once, without waiting for the commit."),
]


def wants_async(prefer: str | None) -> bool:
    """Whether a ``Prefer`` header (RFC 7240) asks for an answer before the commit."""
    if prefer is None:
        return False
    return any(part.split(";")[0].strip().lower() == "respond-async" for part in prefer.split(","))


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list is asked for. ``next_cursor`` and ``after`` are each other's inverse."""

    limit: int
    cursor: str | None
    vault: Vault = field(repr=False)

    def after(self, order: str, parts: int) -> tuple[str, ...] | None:
        """The sort key after which the page begins, of so many parts; ``None``: at the beginning.

        ``order`` names the list: a cursor of another is refused.

        Raises:
            Problem: 422, it is not a cursor of ours.
        """
        if self.cursor is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(self.cursor.encode("ascii") + b"=" * (-len(self.cursor) % 4))
            tag, body = raw[:CURSOR_TAG_BYTES], raw[CURSOR_TAG_BYTES:]
            if not hmac.compare_digest(tag, self._tag(order, body)):
                raise ValueError("not signed by us")
            key = orjson.loads(body)
        except (ValueError, binascii.Error, UnicodeError):
            raise invalid("/query/cursor", "This is not a cursor of this list.") from None
        assert isinstance(key, list) and len(key) == parts, "signed, so it is as next_cursor made it"  # noqa: PT018 - one fact
        return tuple(key)

    def next_cursor(self, order: str, key: Sequence[str | datetime]) -> str:
        """The cursor of the page after the item with this sort key."""
        body = orjson.dumps(
            [rfc3339(part) if isinstance(part, datetime) else part for part in key], option=orjson.OPT_UTC_Z
        )
        return base64.urlsafe_b64encode(self._tag(order, body) + body).rstrip(b"=").decode()

    def _tag(self, order: str, body: bytes) -> bytes:
        return self.vault.index(f"cursor:{order}", sha256(body).hexdigest())[:CURSOR_TAG_BYTES]


async def page_request(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="How many items at most.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=CURSOR_LENGTH_MAX, description="`next_cursor` of the page before.")
    ] = None,
) -> PageRequest:
    """The page that the query asks for."""
    return PageRequest(limit, cursor, services_of(request).vault)


Page = Annotated[PageRequest, Depends(page_request)]


async def if_version(
    if_match: Annotated[
        str | None, Header(alias="If-Match", max_length=200, description="The ETag that it should still have.")
    ] = None,
) -> int | None:
    """The version that ``If-Match`` names; ``None``: any will do.

    Raises:
        Problem: 412, it names no version there could be.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    named = _VERSION_TAG.fullmatch(if_match.strip())
    if named is None:
        raise Problem("version_conflict")
    return int(named[1])


IfVersion = Annotated[int | None, Depends(if_version)]


def version_tag(version: int, content: bytes) -> str:
    """The entity tag of an answer about something that counts its versions; ``if_version`` reads the version in it.

    What else the answer says (a patient's phone, a cut-off) may change without it, and is told to some callers only.
    """
    return f'"{version}-{blake2b(content, digest_size=8).hexdigest()}"'


def content_tag(content: bytes) -> str:
    """An entity tag of an answer's bytes."""
    return f'"{blake2b(content, digest_size=16).hexdigest()}"'


def unchanged(request: Request, tag: str) -> Response | None:
    """The 304 that answers a request whose ``If-None-Match`` names this tag (RFC 9110, weak comparison)."""
    given = ", ".join(request.headers.getlist("if-none-match"))
    if not given:
        return None
    opaque = tag.removeprefix("W/")[1:-1]
    if given.strip() != "*" and opaque not in _ENTITY_TAG.findall(given):
        return None
    return Response(status_code=304, headers={"ETag": tag})


def as_of(instant: datetime) -> dict[str, str]:
    """The header that says for which instant a read is true."""
    return {"X-As-Of": rfc3339(instant)}


def tagged(request: Request, content: bytes, *, at: datetime, tag: str | None = None) -> Response:
    """A JSON answer that was true at an instant, with its entity tag, by default its bytes'; 304 to who has it."""
    tag = tag or content_tag(content)
    headers = as_of(at) | {"ETag": tag, "Cache-Control": "private, no-cache"}
    if (response := unchanged(request, tag)) is not None:
        response.headers.update(headers)
        return response
    return Response(content, media_type="application/json", headers=headers)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an operation that may refuse with these codes; what any may refuse with is added to all."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, detail = PROBLEMS[code]
        entry = by_status.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["description"] = ", ".join(filter(None, [entry["description"], f"`{code}`"]))
        entry["content"][MEDIA_TYPE]["examples"][code] = {"summary": title(code), "value": _example(code, detail)}
    return by_status


def _example(code: str, detail: str) -> dict[str, Any]:
    example = Problem(code, detail, errors=[("/field", "Field required")] if code == "validation_error" else ())
    return example.body("/v1/…")


def _bad_token() -> dict[str, str]:
    return {"WWW-Authenticate": 'Bearer realm="zapis", error="invalid_token"'}
