"""The calls about accounts and patients."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import Query, Request, Response
from starlette.requests import ClientDisconnect

from api.accounts import schemas, service, sessions, verification
from api.dependencies import (
    CurrentUser,
    Page,
    Staff,
    TheGate,
    TheServices,
    address_of,
    as_of,
    current_user,
    problems,
    tagged,
)
from api.errors import broken_off, invalid
from api.routing import FORM, Json, check_content_type
from api.routing import router as make_router

router = make_router(prefix="/v1", tag="Accounts and patients")
well_known = make_router(tag="Accounts and patients")

FORM_FIELDS_MAX: Final = 20
TOKEN_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["password", "refresh_token"]},
                        "username": {"type": "string", "description": "The login, for `password`."},
                        "password": {"type": "string", "format": "password", "description": "For `password`."},
                        "refresh_token": {"type": "string", "description": "For `refresh_token`."},
                    },
                },
                "examples": {
                    "password": {
                        "value": {"grant_type": "password", "username": "anna.petrova", "password": "Correct-Horse-9"}
                    },
                    "refresh_token": {"value": {"grant_type": "refresh_token", "refresh_token": "…"}},
                },
            }
        },
    }
}


@router.post("/auth/register", status_code=201, responses=problems("login_taken", "validation_error"))
async def register(
    new: schemas.Registration, request: Request, response: Response, services: TheServices, gate: TheGate
) -> schemas.UserAnswer:
    """Register as a patient. Codes to verify the e-mail address and the phone number are sent."""
    user = await service.register(services, gate, new, address=address_of(request))
    response.headers["Location"] = "/v1/me"
    return schemas.UserAnswer.of(user)


@router.post(
    "/auth/token",
    response_model=schemas.TokenAnswer,
    responses=problems("unauthenticated", "validation_error", "unsupported_media_type"),
    openapi_extra=TOKEN_REQUEST,
)
async def issue_token(request: Request, services: TheServices, gate: TheGate) -> Response:
    """Sign in, or go on with a refresh token (RFC 6749, sections 4.3 and 6)."""
    check_content_type(request, FORM)
    form = await _form(request)
    match form.get("grant_type"):
        case "password":
            tokens = await sessions.sign_in(
                services,
                gate,
                username=_given(form, "username"),
                password=_given(form, "password"),
                address=address_of(request),
                device=request.headers.get("user-agent", ""),
            )
        case "refresh_token":
            tokens = await sessions.refresh(services, gate, _given(form, "refresh_token"))
        case None | "":
            raise invalid("/grant_type", "Field required")
        case _:
            problem = invalid("/grant_type", "This should be password or refresh_token.")
            problem.members["error"] = "unsupported_grant_type"
            raise problem
    return Json(
        {
            "access_token": tokens.access_token,
            "token_type": "bearer",
            "expires_in": tokens.expires_in,
            "refresh_token": tokens.refresh_token,
        }
    )


@router.post("/auth/logout", status_code=204)
async def log_out(body: schemas.Logout, services: TheServices) -> None:
    """End a session. The answer is the same whatever the token was."""
    await sessions.log_out(services, body.refresh_token)


@router.post(
    "/auth/verify",
    status_code=204,
    responses=problems("email_taken", "phone_taken", "unauthenticated", "validation_error"),
)
async def verify(body: schemas.Verification, request: Request, services: TheServices, gate: TheGate) -> None:
    """Verify an address by the code that was sent there. A code that came to the phone needs a token beside it."""
    address = address_of(request)
    if body.channel is schemas.Channel.EMAIL:
        await verification.verify_email(services, gate, body.code, address=address)
    else:
        principal = await current_user(request)
        await verification.verify_phone(services, gate, principal.user_id, body.code, address=address)


@router.post("/auth/verify/resend", status_code=202, response_class=Response)
async def resend_code(
    body: schemas.Resend, principal: CurrentUser, request: Request, services: TheServices, gate: TheGate
) -> None:
    """Send another code; the ones before are void."""
    await verification.resend(services, gate, principal.user_id, body.channel, address=address_of(request))


@router.post("/auth/password/forgot", status_code=202, response_class=Response)
async def forgot_password(body: schemas.Forgotten, request: Request, services: TheServices, gate: TheGate) -> None:
    """Have a code sent that sets a new password. The answer never tells whether there is such an account."""
    await verification.forgot(services, gate, body, address=address_of(request))


@router.post("/auth/password/reset", status_code=204, responses=problems("validation_error"))
async def reset_password(body: schemas.Reset, request: Request, services: TheServices, gate: TheGate) -> None:
    """Set a new password by the code that was sent. Every session ends."""
    await verification.reset_password(services, gate, body, address=address_of(request))


@router.get("/me", response_model=schemas.UserAnswer, responses={304: {"description": "You have it already."}})
async def get_me(principal: CurrentUser, request: Request, services: TheServices) -> Response:
    """One's own account."""
    at = datetime.now(UTC)
    user = await service.get_user(services, principal.user_id)
    return tagged(request, schemas.UserAnswer.of(user).model_dump_json().encode(), at=at)


@router.patch("/me", responses=problems("validation_error", "forbidden"))
async def change_me(
    body: schemas.ProfileChange, principal: CurrentUser, request: Request, services: TheServices, gate: TheGate
) -> schemas.UserAnswer:
    """Change one's own account. A new address has to be verified; a new password ends every other session."""
    user = await service.change_profile(services, gate, principal, body, address=address_of(request))
    return schemas.UserAnswer.of(user)


@router.delete("/me", status_code=204, responses=problems("live_appointments", "forbidden"))
async def erase_me(principal: CurrentUser, services: TheServices, gate: TheGate) -> None:
    """Erase oneself and the patients that nobody else may book for; visits still to come have to be cancelled first."""
    await service.erase(services, gate, principal)


@router.get("/me/patients", response_model=schemas.OwnPatients)
async def list_my_patients(
    principal: CurrentUser, services: TheServices, page: Page, response: Response
) -> schemas.OwnPatients:
    """The patients one may book for: oneself, a child."""
    response.headers.update(as_of(datetime.now(UTC)))
    own = await service.own_patients(services, principal.user_id)
    after = page.after("own-patients", 1)
    begin = next((number + 1 for number, each in enumerate(own) if after and each.patient.id == after[0]), 0)
    shown = own[begin : begin + page.limit]
    more = begin + page.limit < len(own)
    return schemas.OwnPatients(
        items=[schemas.OwnPatientAnswer.of(each) for each in shown],
        next_cursor=page.next_cursor("own-patients", [shown[-1].patient.id]) if more else None,
    )


@router.post("/me/patients", status_code=201, responses=problems("limit_reached", "validation_error"))
async def add_my_patient(
    body: schemas.NewPatient, principal: CurrentUser, services: TheServices, gate: TheGate
) -> schemas.OwnPatientAnswer:
    """Add someone to book for."""
    return schemas.OwnPatientAnswer.of(await service.add_patient(services, gate, principal.user_id, body))


@router.get("/patients", responses=problems("forbidden"))
async def find_patients(
    q: Annotated[
        str,
        Query(
            min_length=1,
            max_length=200,
            description="Whole words of the name, a birth date (1990-04-12) or a phone number with its country code.",
            examples=["petrova 1990-04-12"],
        ),
    ],
    principal: Staff,
    services: TheServices,
    page: Page,
    response: Response,
) -> schemas.PatientPage:
    """Find patients, for staff. Every one that is shown is noted in the audit trail."""
    response.headers.update(as_of(datetime.now(UTC)))
    found, next_cursor = await service.find_patients(services, principal, q, page)
    return schemas.PatientPage(items=[schemas.PatientAnswer.of(patient) for patient in found], next_cursor=next_cursor)


@well_known.get("/.well-known/jwks.json", response_model=schemas.KeySet)
async def get_public_keys(gate: TheGate) -> Response:
    """The public keys that verify access tokens (RFC 7517)."""
    return Json(gate.tokens.jwks(), headers={"Cache-Control": "public, max-age=60"})


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form; RFC 6749 forbids to give one twice."""
    try:
        pairs = parse_qsl(
            (await request.body()).decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=FORM_FIELDS_MAX,
        )
    except ValueError:
        raise invalid("", "This is not a form.") from None
    except ClientDisconnect:
        raise broken_off() from None
    form = dict(pairs)
    if len(form) < len(pairs):
        raise invalid("", "A field is given twice.")
    return form


def _given(form: dict[str, str], name: str) -> str:
    value = form.get(name)
    if not value:
        raise invalid(f"/{name}", "Field required")
    if "\x00" in value:
        raise invalid(f"/{name}", "This must not contain NUL characters.")
    return value
