"""The data directory: one holder at a time, secrets that stay, and files that only their owner reads."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest

from cluster.data_directory import DataDirectory, DataDirectoryError, Runtime, make_password, read_runtime

RUNTIME = Runtime(
    pid=1, url="http://127.0.0.1:1", settings={"redis_url": "redis://h"}, environment={"RAY_AUTH_MODE": "token"}
)


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def test_a_second_holder_is_refused_with_the_pid_of_the_first(data: DataDirectory) -> None:
    data.lock()
    with pytest.raises(DataDirectoryError, match=rf"^the data directory {data.path} is in use by process \d+$"):
        DataDirectory(data.path).lock()
    data.unlock()
    DataDirectory(data.path).lock()


def test_secrets_are_made_once(data: DataDirectory) -> None:
    secret = data.secret("one")
    assert data.secret("one") == DataDirectory(data.path).secret("one") == secret
    assert data.secret("two") != secret
    data.forget("one")
    assert data.recall("one") is None
    assert data.recall("two") is not None


def test_the_master_key_is_made_once(data: DataDirectory) -> None:
    key = data.master_key_file().read_bytes()
    assert data.master_key_file().read_bytes() == key


def test_files_are_for_their_owner_only(data: DataDirectory) -> None:
    data.secret("one")
    data.master_key_file()
    data.write_runtime(RUNTIME)
    assert {path.name: path.stat().st_mode & 0o777 for path in data.path.iterdir() if path.is_file()} == {
        "secrets.json": 0o600,
        "master.key": 0o600,
        "runtime.json": 0o600,
    }


def test_what_cannot_be_written_is_named(data: DataDirectory) -> None:
    for name, use in (
        ("lock", data.lock),
        ("master.key.new", data.master_key_file),
        ("secrets.json.new", partial(data.secret, "one")),
    ):
        (data.path / name).mkdir()
        with pytest.raises(
            DataDirectoryError, match=rf"{name.removesuffix('.new')} cannot be written: is a directory$"
        ):
            use()


def test_a_broken_secrets_file_is_named_and_not_replaced(data: DataDirectory) -> None:
    (data.path / "secrets.json").write_text("{")
    with pytest.raises(DataDirectoryError, match=r"secrets\.json cannot be read"):
        data.secret("one")
    assert (data.path / "secrets.json").read_text() == "{"


def test_a_port_stays_unless_someone_else_has_it(data: DataDirectory) -> None:
    port = data.port("valkey")
    assert data.port("valkey") == port
    with socket.create_server(("127.0.0.1", port)):
        assert data.port("valkey") != port


def test_names_have_ports_of_their_own(data: DataDirectory) -> None:
    assert len({data.port(name) for name in ("postgres", "valkey", "ray")}) == 3


def test_what_runs_is_found_only_while_it_runs(data: DataDirectory) -> None:
    data.write_runtime(RUNTIME)
    assert read_runtime(data.path) is None
    data.lock()
    assert read_runtime(data.path) == RUNTIME
    data.forget_runtime()
    assert read_runtime(data.path) is None


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryError, match=r"^the data directory .*/file/data: not a directory$"):
        DataDirectory(tmp_path / "file" / "data")


def test_passwords_pass_the_rules() -> None:
    for password in (make_password() for _ in range(100)):
        assert any(character.islower() for character in password)
        assert any(character.isupper() for character in password)
        assert any(character.isdigit() for character in password)
        assert any(not character.isalnum() for character in password)
