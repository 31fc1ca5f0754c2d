"""Reading a tree of placed YAML by what each value should be, noting every fault with its place and going on.

``Fields.read`` takes a reader of one scalar, such as ``text`` or ``whole(1, 10)``, and gives its value. Where that is
missing or wrong it gives the default instead; a wrong one is noted as a fault, and a part with a fault is never used.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, time, timedelta
from difflib import get_close_matches
from typing import TypeVar

from actors.availability import zone
from cluster.placed_yaml import Mapping, Node, Scalar, Sequence
from persistence.normal_forms import is_login, normal_email, normal_login, normal_phone

FAULTS_MAX = 1_000
TEXT_LENGTH_MAX = 200
QUOTED_LENGTH_MAX = 80
LIKENESSES_MAX = 300
DAYS_FROM_TODAY_MAX = 3_660
FIRST_DATE, LAST_DATE = date(1901, 1, 1), date(2199, 12, 31)

_DAY_FROM_TODAY = re.compile(r"today(?: *([+-]) *([0-9]{1,4}))?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_CURRENCY = re.compile(r"[A-Z]{3}")
_NOT_TEXT = re.compile(r"~|null|true|false|[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)

_T = TypeVar("_T")
_D = TypeVar("_D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong in a file: its line, the path of the value, and what it should be."""

    line: int
    path: str
    what: str


class Faults:
    """All that is wrong so far. Past a thousand they are only counted."""

    def __init__(self) -> None:
        self.count = 0
        self._noted: list[Fault] = []

    def note(self, node: Node, path: str, what: str) -> None:
        self.count += 1
        if self.count <= FAULTS_MAX:
            self._noted.append(Fault(line=node.line, path=path, what=what))

    def by_line(self) -> tuple[Fault, ...]:
        faults = sorted(self._noted, key=lambda fault: fault.line)
        if self.count > FAULTS_MAX:
            faults.append(Fault(line=faults[-1].line, path="", what=f"and {self.count - FAULTS_MAX} faults more"))
        return tuple(faults)


class Fields:
    """One mapping of the file, asked for its values by key."""

    def __init__(self, faults: Faults, node: Node, path: str, required: str, optional: str = "") -> None:
        self.faults = faults
        self.node = node
        self.path = path
        self._before = faults.count
        self._values: dict[str, Node] = {}
        if isinstance(node, Mapping):
            self._take(node, tuple(required.split()), tuple(optional.split()))
        else:
            faults.note(node, path, f"must have keys and values: {', '.join(required.split() or optional.split())}")

    def _take(self, node: Mapping, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
        for key, value in node.entries:
            if key.text not in required + optional:
                hint = _did_you_mean(key.text, required + optional) or f"known here: {', '.join(required + optional)}"
                self.faults.note(key, self.at(key.text[:QUOTED_LENGTH_MAX]), f"unknown key; {hint}")
            elif key.text in self._values:
                first = self._values[key.text].line
                self.faults.note(key, self.at(key.text), f"the key is here twice, first in line {first}")
            else:
                self._values[key.text] = value
        for key_missing in required:
            if key_missing not in self._values:
                self.faults.note(node, self.path, f"{key_missing!r} is missing")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def sound(self) -> bool:
        """Whether no fault was noted since this mapping was begun, in it or below."""
        return self.faults.count == self._before

    def line(self, key: str) -> int:
        return self._values.get(key, self.node).line

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def fault(self, key: str, what: str) -> None:
        self.faults.note(self._values.get(key, self.node), self.at(key), what)

    def read(self, key: str, reader: Callable[[Scalar], _T], default: _D) -> _T | _D:
        node = self._values.get(key)
        return default if node is None else read(self.faults, node, self.at(key), reader, default)

    def each(self, key: str, *, least: int = 0, most: int) -> list[tuple[Node, str]]:
        """The items of a list, each with its path; none where the list is missing."""
        node = self._values.get(key)
        if node is None:
            return []
        if isinstance(node, Scalar) and not node.quoted and node.text in ("", "~", "null"):
            items: tuple[Node, ...] = ()
        elif isinstance(node, Sequence):
            items = node.items
        else:
            self.fault(key, "must be a list")
            return []
        if not least <= len(items) <= most:
            self.fault(key, f"must have from {least} to {most} items")
            return []
        return [(item, f"{self.at(key)}[{index}]") for index, item in enumerate(items)]

    def below(self, key: str, required: str, optional: str = "") -> "Fields | None":
        """The mapping under that key, if there is one."""
        node = self._values.get(key)
        return None if node is None else Fields(self.faults, node, self.at(key), required, optional)


def read(faults: Faults, node: Node, path: str, reader: Callable[[Scalar], _T], default: _D) -> _T | _D:
    """The value of that node, or the default and a fault."""
    try:
        if not isinstance(node, Scalar):
            raise ValueError("must be one value, not a list or keys and values")
        return reader(node)
    except ValueError as error:
        faults.note(node, path, str(error))
        return default


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that stands for nothing."""
    hint = _did_you_mean(name, tuple(known))
    return f"there is no {kind} {quoted(name)}" + (f"; {hint}" if hint else "")


def quoted(text: str) -> str:
    """The text for a message: quoted, and cut when it is long."""
    return repr(text if len(text) <= QUOTED_LENGTH_MAX else text[:QUOTED_LENGTH_MAX] + "…")


# Readers of one scalar: the value, or a ValueError that says what it should be.


def text(scalar: Scalar, most: int = TEXT_LENGTH_MAX) -> str:
    """Words on one line: line breaks and runs of blanks become one blank."""
    words = " ".join(scalar.text.split())
    if not words:
        raise ValueError("must not be empty")
    if not scalar.quoted and _NOT_TEXT.fullmatch(words):
        raise ValueError(f"must be text; if it is, put {quoted(words)[1:-1]} in quotes")
    if len(words) > most:
        raise ValueError(f"must have at most {most} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in words):
        raise ValueError("must not have control characters")
    return words


def person(scalar: Scalar) -> str:
    """What somebody is called."""
    name = text(scalar)
    if not any(character.isalnum() for character in name):
        raise ValueError("must have a letter")
    return name


def whole(least: int, most: int) -> Callable[[Scalar], int]:
    def reader(scalar: Scalar) -> int:
        if scalar.quoted or not _WHOLE.fullmatch(scalar.text):
            raise ValueError(f"must be a whole number from {least} to {most}")
        if not least <= int(scalar.text) <= most:
            raise ValueError(f"must be from {least} to {most}")
        return int(scalar.text)

    return reader


def choice(*words: str) -> Callable[[Scalar], str]:
    def reader(scalar: Scalar) -> str:
        if scalar.text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return scalar.text

    return reader


def day(today: date) -> Callable[[Scalar], date]:
    """A date, or one counted from today."""

    def reader(scalar: Scalar) -> date:
        relative = _DAY_FROM_TODAY.fullmatch(scalar.text)
        if relative is None:
            return _date(scalar, "must be a date such as 2026-11-24, or today, or today+28")
        days = int(relative[2] or 0)
        if days > DAYS_FROM_TODAY_MAX:
            raise ValueError(f"must be within {DAYS_FROM_TODAY_MAX} days of today")
        return today + timedelta(days=-days if relative[1] == "-" else days)

    return reader


def birth_date(today: date) -> Callable[[Scalar], date]:
    def reader(scalar: Scalar) -> date:
        born = _date(scalar, "must be a date such as 1984-05-31")
        if born > today:
            raise ValueError("must not be after today")
        return born

    return reader


def _date(scalar: Scalar, otherwise: str) -> date:
    if not _DATE.fullmatch(scalar.text):
        raise ValueError(otherwise)
    try:
        parsed = date.fromisoformat(scalar.text)
    except ValueError as error:
        raise ValueError(f"there is no such day: {error}") from error
    if not FIRST_DATE <= parsed <= LAST_DATE:
        raise ValueError(f"must be from {FIRST_DATE} to {LAST_DATE}")
    return parsed


def clock(scalar: Scalar) -> time:
    wall = _CLOCK.fullmatch(scalar.text)
    if wall is None or int(wall[1]) > 23 or int(wall[2]) > 59:
        raise ValueError("must be a time such as 09:00")
    return time(int(wall[1]), int(wall[2]))


def zone_name(scalar: Scalar) -> str:
    try:
        return zone(scalar.text).key
    except ValueError as error:
        raise ValueError(f"{quoted(scalar.text)} is not the name of a time zone, such as Europe/Berlin") from error


def login(scalar: Scalar) -> str:
    """The login as it is compared."""
    name = normal_login(scalar.text)
    if not is_login(name):
        raise ValueError("must be 3 to 64 letters, digits and . _ - @ +")
    return name


def email(scalar: Scalar) -> str:
    address = normal_email(scalar.text)
    if address is None:
        raise ValueError(f"{quoted(scalar.text)} is not an e-mail address")
    return address


def phone(scalar: Scalar) -> str:
    """The number in E.164."""
    number = normal_phone(scalar.text)
    if number is None:
        raise ValueError(f"{quoted(scalar.text)} is not a phone number with its country, such as +12025550123")
    return number


def currency(scalar: Scalar) -> str:
    if not _CURRENCY.fullmatch(scalar.text):
        raise ValueError("must be three capital letters, such as EUR")
    return scalar.text


def _did_you_mean(name: str, known: tuple[str, ...]) -> str:
    # Likeness costs the product of the lengths, for each name known.
    cheap = len(name) <= QUOTED_LENGTH_MAX and len(known) <= LIKENESSES_MAX
    close = get_close_matches(name, known, 1) if cheap else []
    return f"did you mean {close[0]!r}?" if close else ""
