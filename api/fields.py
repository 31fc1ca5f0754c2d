"""The types of what comes in and goes out: what is accepted, in which form it is kept, how it looks in JSON.

Each is an annotated type for models and parameters, so a field that is declared with one is checked and normalised.
What is refused gives a ``ValueError`` whose message is for the caller and quotes nothing of what they sent.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from persistence.normal_forms import is_login, normal_email, normal_login, normal_phone

YEAR_MIN: Final = 1900
YEAR_MAX: Final = 2200
TEXT_LENGTH_MAX: Final = 500
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_LOCALE: Final = re.compile(r"([A-Za-z]{2,3})(?:-([A-Za-z]{4}))?(?:-([A-Za-z]{2}|\d{3}))?", re.ASCII)


class Body(BaseModel):
    """What a request may carry; a field that is not known is refused, so that a misspelt one is not lost."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Change(Body):
    """What is to be different; what is left out stays as it is, so null would say nothing."""

    nullable: ClassVar[frozenset[str]] = frozenset()
    """The fields of which null is a value."""

    @field_validator("*", mode="before")
    @classmethod
    def _says_something(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name not in cls.nullable:
            raise ValueError("This should be left out, not null.")
        return value


class Answer(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True)


def _instant(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise ValueError("This should be an instant with its offset, as 2026-11-24T09:00:00Z.")
    return value.upper()


def _in_utc(value: datetime) -> datetime:
    if not YEAR_MIN < value.year < YEAR_MAX:
        raise ValueError(f"This should lie between the years {YEAR_MIN} and {YEAR_MAX}.")
    return value.astimezone(UTC)


def _day(value: object) -> object:
    if not isinstance(value, date) and (not isinstance(value, str) or _DATE.fullmatch(value) is None):
        raise ValueError("This should be a date, as 2026-11-24.")
    return value


def _sane_day(value: date) -> date:
    if not YEAR_MIN < value.year < YEAR_MAX:
        raise ValueError(f"This should lie between the years {YEAR_MIN} and {YEAR_MAX}.")
    return value


def _id(value: str) -> str:
    if _UUID.fullmatch(value) is None:
        raise ValueError("This should be an id, as 019ab3c4-5d6e-7f80-9123-456789abcdef.")
    return value.lower()


def _line(value: str) -> str:
    value = unicodedata.normalize("NFC", value).strip()
    if not value:
        raise ValueError("This must not be empty.")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        raise ValueError("This must be one line without control characters.")
    return value


def _text(value: str) -> str:
    value = unicodedata.normalize("NFC", value).strip()
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\r\t" for character in value):
        raise ValueError("This must not contain control characters.")
    return value


def said(value: str) -> str:
    """Text that says something.

    Raises:
        ValueError
    """
    if not value:
        raise ValueError("This must not be empty.")
    return value


def _named(value: str) -> str:
    if not any(character.isalnum() for character in value):
        raise ValueError("This should contain at least one letter.")
    return value


def checked_login(value: str) -> str:
    """The normal form of a login that may be one.

    Raises:
        ValueError
    """
    login = normal_login(value)
    if not is_login(login):
        raise ValueError("A login should have 3 to 64 letters, digits and . _ - @ +.")
    return login


def _email(value: str) -> str:
    address = normal_email(value)
    if address is None:
        raise ValueError("This should be an e-mail address, as anna@clinic.example.")
    return address


def _phone(value: str) -> str:
    number = normal_phone(value)
    if number is None:
        raise ValueError("This should be a phone number with its country code, as +49 30 901820.")
    return number


def _timezone(value: str) -> str:
    if value not in _zones():
        raise ValueError("This should be an IANA time zone, as Europe/Berlin.")
    return value


def _locale(value: str) -> str:
    match = _LOCALE.fullmatch(value)
    if match is None:
        raise ValueError("This should be a language tag, as en or pt-BR.")
    language, script, region = match.groups()
    parts = (language.lower(), script and script.title(), region and region.upper())
    return "-".join(part for part in parts if part)


def _wall_time(value: object) -> time:
    if isinstance(value, time):
        return value
    if not isinstance(value, str) or re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value) is None:
        raise ValueError("This should be a time on the clock, as 09:00.")
    return time.fromisoformat(value)


def rfc3339(instant: datetime) -> str:
    """An aware instant as it stands in JSON and headers: ``2026-11-24T09:00:00Z``."""
    text = instant.astimezone(UTC).isoformat()
    return text.removesuffix("+00:00") + "Z"


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(zone for zone in available_timezones() if zone == "UTC" or "/" in zone)


def _schema(example: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "examples": [example], **more})


Id = Annotated[
    str, AfterValidator(_id), _schema("019ab3c4-5d6e-7f80-9123-456789abcdef", format="uuid", minLength=36, maxLength=36)
]
"""An id in its 36 characters, in lower case from here on."""

Instant = Annotated[
    datetime, BeforeValidator(_instant), AfterValidator(_in_utc), _schema("2026-11-24T09:00:00Z", format="date-time")
]
"""An instant that names its offset; aware and in UTC from here on."""

Day = Annotated[date, BeforeValidator(_day), AfterValidator(_sane_day), _schema("2026-11-24", format="date")]
"""A day in the zone of whatever it is about."""

WallTime = Annotated[
    time,
    BeforeValidator(_wall_time),
    WithJsonSchema({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$", "examples": ["09:00"]}),
]
"""A time on a clock on the wall, to the minute."""

Whole = Annotated[int, Strict()]
"""A number without fraction; text, truth values and fractions are refused."""

Flag = Annotated[bool, Strict()]
"""``true`` or ``false``."""

Line = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_line)]
"""One line of text."""

Text = Annotated[str, Field(max_length=TEXT_LENGTH_MAX), AfterValidator(_text)]
"""A few lines of text."""

PersonName = Annotated[
    str, Field(min_length=1, max_length=200, examples=["Anna Petrova"]), AfterValidator(_line), AfterValidator(_named)
]
"""What a person is called."""

Login = Annotated[
    str, Field(max_length=200), AfterValidator(checked_login), _schema("anna.petrova", minLength=3, maxLength=64)
]
"""What a person signs in with, in its normal form from here on."""

Email = Annotated[
    str,
    Field(max_length=254),
    AfterValidator(_email),
    _schema("anna.petrova@mail.example", format="email", maxLength=254),
]
"""An e-mail address in its normal form."""

Phone = Annotated[
    str, Field(max_length=40), AfterValidator(_phone), _schema("+49 30 901820", minLength=5, maxLength=40)
]
"""A phone number, in E.164 from here on."""

Timezone = Annotated[str, Field(max_length=64), AfterValidator(_timezone), _schema("Europe/Berlin", maxLength=64)]
"""The IANA name of a time zone."""

Locale = Annotated[
    str,
    Field(max_length=12),
    AfterValidator(_locale),
    _schema("en", pattern="^[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?$"),
]
"""A language, perhaps with a script and a region (BCP 47)."""
