from __future__ import annotations

import asyncio

import pytest
from argon2 import PasswordHasher

from api.accounts.passwords import LENGTH_MAX, Passwords, flaws
from api.errors import Problem


@pytest.mark.parametrize(
    "password",
    [
        "Correct-Horse-9",
        "Str0ng!Passw0rd",
        "Zapis-Demo-1!",
        "Ж-Очень-Длинный-7",
        "aB3$" * (LENGTH_MAX // 4),
        "tR7 kq-w p2",
    ],
)
def test_a_good_password_has_no_flaws(password: str) -> None:
    assert flaws(password, login="anna.petrova") == []


@pytest.mark.parametrize(
    ("password", "complaint"),
    [
        ("aB3$aB3$a", "10 to 128 characters"),
        ("aB3$" * (LENGTH_MAX // 4) + "a", "10 to 128 characters"),
        ("correct-horse-9", "upper-case"),
        ("CORRECT-HORSE-9", "lower-case"),
        ("Correct-Horse-Nine", "digit"),
        ("CorrectHorse9", "special"),
        ("", "10 to 128 characters"),
    ],
)
def test_every_rule_is_held(password: str, complaint: str) -> None:
    assert any(complaint in flaw for flaw in flaws(password, login="anna.petrova"))


@pytest.mark.parametrize(
    "password",
    [
        "Password1!",
        "P@ssw0rd2024",
        "P@$$w0rd!!1",
        "Qwerty123!",
        "QWERTYuiop1!",
        "1Qaz2wsx3edc!",
        "Welcome2024!",
        "Summer2026!!",
        "Admin12345!",
        "Iloveyou12!",
        "Abcd1234!!",
        "Aaaaaaaa1!",
        "Letmein!!11",
        "Monkey-1234",
        "Gfhjkm1234!",
        "Пароль1234!",
        "!!!Dragon11",
    ],
)
def test_well_known_passwords_are_refused_however_they_are_decorated(password: str) -> None:
    assert flaws(password, login="anna.petrova")[-1:] == ["This password is one of the first that would be tried."]


@pytest.mark.parametrize("password", ["Anna.Petrova1!", "ANNA.petrova2026", "anna.petrova"])
def test_the_login_is_no_password(password: str) -> None:
    assert "A password should not be the login." in flaws(password, login="anna.petrova")


async def test_the_right_password_is_right_in_either_unicode_form() -> None:
    passwords = Passwords(threads=1, waiting_max=4)
    made = await passwords.hash("Café-au-lait-9")
    async with passwords.turn() as turn:
        assert await turn.verify(made, "Cafe\u0301-au-lait-9")
        assert not await turn.verify(made, "Cafe-au-lait-9")
        assert not await turn.verify(made, "Café-au-lait-9\x00")
        assert not await turn.verify(None, "Café-au-lait-9")
        assert not await turn.verify("not a hash", "Café-au-lait-9")
        assert not await turn.verify(made, "\ud800")
    passwords.close()


async def test_parameters_are_those_of_the_day() -> None:
    passwords = Passwords(threads=1, waiting_max=1)
    made = await passwords.hash("Correct-Horse-9")
    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert not passwords.outdated(made)
    assert passwords.outdated(PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash("Correct-Horse-9"))
    passwords.close()


async def test_only_so_many_wait_for_a_thread() -> None:
    passwords = Passwords(threads=1, waiting_max=2)
    async with passwords.turn():
        waiting = [asyncio.create_task(passwords.hash("Correct-Horse-9")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await passwords.hash("Correct-Horse-9")
    assert refused.value.status == 503
    assert "Retry-After" in refused.value.headers
    assert len(await asyncio.gather(*waiting)) == 2
    passwords.close()


async def test_who_gives_up_waiting_leaves_its_place() -> None:
    passwords = Passwords(threads=1, waiting_max=1)
    async with passwords.turn():
        for _ in range(3):
            waiting = asyncio.create_task(passwords.hash("Correct-Horse-9"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    assert await passwords.hash("Correct-Horse-9")
    passwords.close()
