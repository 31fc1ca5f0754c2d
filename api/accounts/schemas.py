"""What the calls about accounts and patients take and answer."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from actors.messages import Role
from api.fields import Answer, Body, Change, Day, Email, Id, Instant, Locale, Login, PersonName, Phone, Timezone
from persistence.repositories.patients import OwnPatient, Patient
from persistence.repositories.users import User

AGE_MAX_DAYS: Final = 150 * 366
CODE_LENGTH_MAX: Final = 100
REFRESH_TOKEN_LENGTH_MAX: Final = 200


def _birth_date(value: date) -> date:
    today = datetime.now(UTC).date()
    # Somewhere it is tomorrow already, and someone may have been born there.
    if value > today + timedelta(days=1):
        raise ValueError("A birth date should not lie in the future.")
    if value < today - timedelta(days=AGE_MAX_DAYS):
        raise ValueError("A birth date should not be more than 150 years ago.")
    return value


BirthDate = Annotated[Day, AfterValidator(_birth_date), Field(examples=["1990-04-12"])]
Password = Annotated[
    str, Field(max_length=1000, examples=["Correct-Horse-9"], json_schema_extra={"format": "password"})
]
Code = Annotated[str, Field(min_length=1, max_length=CODE_LENGTH_MAX)]
RefreshToken = Annotated[str, Field(min_length=1, max_length=REFRESH_TOKEN_LENGTH_MAX)]


class Registration(Body):
    """A new account, with a patient of its own."""

    login: Login
    password: Password
    name: PersonName
    birth_date: BirthDate
    email: Email
    phone: Phone
    locale: Locale = "en"
    timezone: Timezone = "UTC"


class UserAnswer(Answer):
    """An account, for its holder and for administrators."""

    id: Id
    login: str
    role: Role
    name: str
    email: str | None
    phone: str | None
    email_verified: bool
    phone_verified: bool
    locale: str
    timezone: str
    registered_at: Instant
    patient_id: Id | None
    doctor_id: Id | None

    @classmethod
    def of(cls, user: User) -> Self:
        """The account as it is answered."""
        return cls(
            id=user.id,
            login=user.login,
            role=user.role,
            name=user.name,
            email=user.email or None,
            phone=user.phone or None,
            email_verified=user.email_verified,
            phone_verified=user.phone_verified,
            locale=user.locale,
            timezone=user.timezone,
            registered_at=user.registered_at,
            patient_id=user.patient_id,
            doctor_id=user.doctor_id,
        )


class TokenAnswer(Answer):
    """A pair of tokens (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"
    expires_in: int = Field(description="Seconds until the access token expires.")
    refresh_token: str = Field(description="Works once; a second use ends the session.")


class Logout(Body):
    """Which session ends."""

    refresh_token: RefreshToken


class Channel(StrEnum):
    """How someone is reached."""

    EMAIL = "email"
    PHONE = "phone"


class Verification(Body):
    """A code that came by e-mail, or one that came to the phone of who is signed in."""

    channel: Channel = Channel.EMAIL
    code: Code


class Resend(Body):
    """Which address is to be verified."""

    channel: Channel


class Forgotten(Body):
    """Whose password was forgotten: exactly one of the two."""

    login: Login | None = None
    email: Email | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.login is None) == (self.email is None):
            raise ValueError("Give either a login or an e-mail address.")
        return self


class Reset(Body):
    """A new password, by the code that came by e-mail."""

    code: Code
    password: Password


class ProfileChange(Change):
    """What is to be different. A new password needs the current one beside it."""

    name: PersonName | None = None
    email: Email | None = None
    phone: Phone | None = None
    locale: Locale | None = None
    timezone: Timezone | None = None
    password: Password | None = None
    current_password: Password | None = None


class NewPatient(Body):
    """Someone to book for: a child, someone in one's care."""

    name: PersonName
    birth_date: BirthDate
    relation: Literal["child", "ward", "parent", "partner", "other"] = "child"
    phone: Phone | None = None


class OwnPatientAnswer(Answer):
    """A patient that one may book for."""

    id: Id
    name: str
    birth_date: date
    relation: str

    @classmethod
    def of(cls, own: OwnPatient) -> Self:
        """The patient as it is answered to who books for it."""
        return cls(id=own.patient.id, name=own.patient.name, birth_date=own.patient.birth_date, relation=own.relation)


class PatientAnswer(Answer):
    """A patient, for staff."""

    id: Id
    name: str
    birth_date: date
    phone: str | None

    @classmethod
    def of(cls, patient: Patient) -> Self:
        """The patient as it is answered to staff."""
        return cls(id=patient.id, name=patient.name, birth_date=patient.birth_date, phone=patient.phone)


class OwnPatients(Answer):
    """A page of patients that one may book for."""

    items: list[OwnPatientAnswer]
    next_cursor: str | None


class PatientPage(Answer):
    """A page of patients."""

    items: list[PatientAnswer]
    next_cursor: str | None


class KeySet(Answer):
    """Public keys (RFC 7517)."""

    keys: list[dict[str, str]]
