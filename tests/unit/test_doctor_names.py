from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persistence.repositories.directory import BEGINNING_MAX, name_beginnings, search_beginnings


def found(name: str, text: str) -> bool:
    return bool(search_beginnings(text)) and set(search_beginnings(text)) <= set(name_beginnings(name))


def test_every_word_is_found_by_its_beginnings() -> None:
    assert name_beginnings("Anna Li") == ("an", "ann", "anna", "li")
    for text in ("an", "ANNA", "li anna", "anna li"):
        assert found("Anna Li", text), text
    for text in ("nna", "anna lu", "Ан"):
        assert not found("Anna Li", text), text


def test_case_accents_and_punctuation_do_not_matter() -> None:
    assert found("Алёна Семёнова", "алена семен")
    assert found("Алена Семенова", "Алёна")
    assert found("José Núñez-García", "nunez")
    assert found("Straße", "STRASSE")
    assert found("ＡＮＮＡ", "anna")


def test_one_character_is_too_little_beside_others_but_may_be_a_whole_name() -> None:
    assert found("王 芳", "王")
    assert not found("Anna Li", "a")
    assert search_beginnings("anna l") == ("anna",)


def test_long_words_are_found_by_what_is_looked_at() -> None:
    word = "x" * (BEGINNING_MAX + 5)
    assert max(map(len, name_beginnings(word))) == BEGINNING_MAX
    assert found(word, word)
    assert found(word, "x" * BEGINNING_MAX)


def test_nothing_to_look_for() -> None:
    assert search_beginnings(" - ") == ()


@given(st.text(min_size=1, max_size=40))
def test_whoever_has_a_name_is_found_by_it(name: str) -> None:
    assert set(search_beginnings(name)) <= set(name_beginnings(name))
