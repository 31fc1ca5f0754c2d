"""One form for what a person may write in several ways: logins, e-mail addresses, phone numbers.

They are sealed, and found by an index of exactly this form: whoever stores or looks one up brings it into it first.
"""

from __future__ import annotations

import unicodedata
from typing import Final

import phonenumbers
from email_validator import EmailNotValidError, ValidatedEmail, validate_email

LOGIN_LENGTH_MIN: Final = 3
LOGIN_LENGTH_MAX: Final = 64
LOGIN_PUNCTUATION: Final = "._-@+"


def normal_login(value: str) -> str:
    """The form in which logins are compared, of any text."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).strip().casefold())


def is_login(normal: str) -> bool:
    """Whether a normal form may be somebody's login."""
    return LOGIN_LENGTH_MIN <= len(normal) <= LOGIN_LENGTH_MAX and all(
        character.isalnum() or character in LOGIN_PUNCTUATION for character in normal
    )


def normal_email(value: str) -> str | None:
    """The address with its domain in lower case and Unicode (RFC 5321, RFC 6531); ``None`` where it is not one.

    A domain has a dot here: mail goes to other people's machines. Whether it exists is for the verification to find.
    What stands before the ``@`` is ASCII: most servers take nothing else.
    """
    address = _validated(value)
    if address is None or address.ascii_domain.startswith("["):
        return None
    return address.normalized if "." in address.ascii_domain.strip(".") else None


def mailbox(address: str) -> str:
    """Where an address most likely leads, for counting: many servers look at neither letter case nor what follows +."""
    local, _, domain = address.rpartition("@")
    return f"{local.partition('+')[0]}@{domain}".casefold()


def ascii_email(address: str) -> str | None:
    """An address as every mail server takes it, with its domain in ASCII (RFC 5890); ``None`` where it has no such."""
    validated = _validated(address)
    return validated.ascii_email if validated is not None else None


def _validated(value: str) -> ValidatedEmail | None:
    try:
        return validate_email(value, check_deliverability=False, globally_deliverable=False, allow_smtputf8=False)
    except EmailNotValidError:
        return None


def normal_phone(value: str) -> str | None:
    """The number in E.164; ``None`` where it is not one with its country code."""
    if not value.lstrip().startswith("+"):
        return None
    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number) or number.extension:
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
