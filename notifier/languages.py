"""The languages in which people are written to."""

from __future__ import annotations

from typing import Final

LANGUAGES: Final = ("en", "ru")


def language_of(locale: str) -> str:
    """The language that somebody of this locale is written to in."""
    language = locale.replace("_", "-").partition("-")[0].lower()
    return language if language in LANGUAGES else LANGUAGES[0]
