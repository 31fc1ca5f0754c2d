"""People who do not exist: by number, so that the same number is always the same person.

Their e-mail addresses are at example.org and their phone numbers among those kept for fiction (555-0100 to 555-0199 in
an area of North America), so a message to one of them reaches nobody.
"""

from dataclasses import dataclass
from datetime import date

# fmt: off
_FIRST = (
    "Ana", "Bruno", "Carla", "Diego", "Elisa", "Fabio", "Gabriela", "Heitor", "Isabel", "Joana", "Kaique",
    "Larissa", "Marcos", "Nadia", "Otavio", "Paula", "Rafael", "Sonia", "Tiago", "Ursula", "Vitor", "Wanda", "Yara",
)
_LAST = (
    "Almeida", "Barbosa", "Cardoso", "Dias", "Esteves", "Ferreira", "Gomes", "Henriques", "Inacio", "Junqueira",
    "Lacerda", "Machado", "Neves", "Oliveira", "Pires", "Queiroz", "Ramos", "Siqueira", "Teixeira", "Uchoa",
    "Vasconcelos", "Xavier", "Zanetti", "Aguiar", "Brandao", "Camargo", "Duarte", "Falcao", "Guimaraes",
)
# The demo clinic's people are in 202.
_AREAS = (
    "203", "205", "206", "207", "208", "209", "210", "212", "213", "214", "215", "216", "217", "218", "219",
    "225", "228", "229", "231", "234", "239", "240", "248", "251", "252", "253", "254", "256", "260", "262", "267",
    "269", "270", "276", "281", "301", "302", "303", "304", "305", "307", "308", "309", "310", "312", "313", "314",
    "315", "316", "317", "318", "319", "320", "321", "323", "325", "330",
)
# fmt: on
_NUMBERS_OF_AREA = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    login: str
    name: str
    email: str
    phone: str
    birth_date: date


def person(login: str, number: int, *, areas: slice = slice(None)) -> Person:
    """The person of that number, with a login of the caller's choice; phone numbers repeat after 100 to an area."""
    codes = _AREAS[areas]
    area, line = divmod(number % (len(codes) * _NUMBERS_OF_AREA), _NUMBERS_OF_AREA)
    return Person(
        login=login,
        name=f"{_FIRST[number % len(_FIRST)]} {_LAST[number % len(_LAST)]} {_LAST[number // len(_LAST) % len(_LAST)]}",
        email=f"{login}@example.org",
        phone=f"+1{codes[area]}55501{line:02}",
        birth_date=date(1935 + number % 80, 1 + number % 12, 1 + number % 28),
    )


DOCTORS = slice(None, 8)
"""The areas of doctors' phones; no patient has a number there, so none can keep another from being verified."""

PATIENTS = slice(8, None)
"""The areas of patients' phones."""
