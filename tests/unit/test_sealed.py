from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistence.sealed import Damaged, DataKey, Erased, Unreadable, Vault, place

MASTER_KEY = bytes(range(32))
HERE = place("app_user", "1", "sealed")
OWNER = "user:1"


def opened(vault: Vault) -> DataKey:
    return vault.data_key(OWNER, vault.new_data_key(OWNER))


@given(st.binary(max_size=300))
def test_what_was_sealed_is_opened_again(plain: bytes) -> None:
    key = DataKey(MASTER_KEY)
    assert key.unseal(key.seal(plain, HERE), HERE) == plain


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=5))
def test_json_is_opened_as_it_was(value: object) -> None:
    key = DataKey(MASTER_KEY)
    assert key.unseal_json(key.seal_json(value, HERE), HERE) == value


def test_the_same_value_is_sealed_differently_each_time() -> None:
    key = DataKey(MASTER_KEY)
    assert key.seal(b"anna", HERE) != key.seal(b"anna", HERE)


def test_a_value_opens_in_its_own_row_and_column_only() -> None:
    key = DataKey(MASTER_KEY)
    sealed = key.seal(b"anna", HERE)
    for elsewhere in (
        place("app_user", "2", "sealed"),
        place("app_user", "1", "other"),
        place("patient", "1", "sealed"),
    ):
        with pytest.raises(Damaged):
            key.unseal(sealed, elsewhere)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_value_changed_anywhere_does_not_open(position: int, change: int) -> None:
    key = DataKey(MASTER_KEY)
    sealed = bytearray(key.seal(b"anna", HERE))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(Damaged):
        key.unseal(bytes(sealed), HERE)


@pytest.mark.parametrize("kept", [0, 1, 12, 28])
def test_a_value_that_was_cut_does_not_open(kept: int) -> None:
    key = DataKey(MASTER_KEY)
    with pytest.raises(Damaged):
        key.unseal(key.seal(b"", HERE)[:kept], HERE)


def test_without_its_data_key_a_value_is_erased() -> None:
    with pytest.raises(Erased):
        Vault(MASTER_KEY).data_key(OWNER, None)
    with pytest.raises(Erased):
        DataKey(MASTER_KEY).unseal(None, HERE)


def test_a_data_key_opens_for_its_owner_and_under_its_master_key_only() -> None:
    vault = Vault(MASTER_KEY)
    wrapped = vault.new_data_key(OWNER)
    sealed = vault.data_key(OWNER, wrapped).seal(b"anna", HERE)
    assert Vault(MASTER_KEY).data_key(OWNER, wrapped).unseal(sealed, HERE) == b"anna"
    with pytest.raises(Damaged):
        vault.data_key("user:2", wrapped)
    with pytest.raises(Damaged):
        Vault(bytes(32)).data_key(OWNER, wrapped)
    for other in (b"", wrapped[:-1], wrapped + b"\x00", b"\x02" + wrapped[1:]):
        with pytest.raises(Damaged):
            vault.data_key(OWNER, other)


def test_two_owners_have_two_keys() -> None:
    vault = Vault(MASTER_KEY)
    sealed = opened(vault).seal(b"anna", HERE)
    with pytest.raises(Damaged):
        opened(vault).unseal(sealed, HERE)


def test_only_so_many_data_keys_are_remembered_and_an_erased_one_is_not() -> None:
    vault = Vault(MASTER_KEY, data_keys_max=3)
    wrapped = {owner: vault.new_data_key(owner) for owner in "abcde"}
    keys = {owner: vault.data_key(owner, key) for owner, key in wrapped.items()}
    assert vault.data_key("e", wrapped["e"]) is keys["e"]
    assert vault.data_key("a", wrapped["a"]) is not keys["a"]
    vault.forget({"e"})
    assert vault.data_key("e", wrapped["e"]) is not keys["e"]


def test_an_index_tells_the_same_from_the_different_and_needs_the_master_key() -> None:
    vault = Vault(MASTER_KEY)
    assert vault.index("login", "anna") == Vault(MASTER_KEY).index("login", "anna")
    others = [vault.index("login", "anne"), vault.index("email", "anna"), Vault(bytes(32)).index("login", "anna")]
    assert vault.index("login", "anna") not in others


def test_keys_for_different_purposes_are_different() -> None:
    vault = Vault(MASTER_KEY)
    assert len({vault.derive("a"), vault.derive("b"), MASTER_KEY}) == 3


def test_a_master_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Vault(b"short")


def test_nothing_tells_what_is_inside() -> None:
    vault = Vault(MASTER_KEY)
    key = opened(vault)
    sealed = key.seal(b"anna petrova", HERE)
    with pytest.raises(Unreadable) as caught:
        key.unseal(sealed, place("app_user", "2", "sealed"))
    said = f"{vault!r} {key!r} {caught.value!r} {caught.value}"
    assert "anna" not in said
    assert MASTER_KEY.hex() not in said
    assert caught.value.__cause__ is None
