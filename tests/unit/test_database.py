"""How the engine of a process connects."""

from __future__ import annotations

import pytest

from persistence import database


def test_a_pooled_connection_whose_other_end_is_silent_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(database, "create_async_engine", lambda _, **arguments: given.update(arguments))

    database.open_database("postgresql://zapis@127.0.0.1/zapis", pool_max=3, statement_timeout_s=7)

    connect = given["connect_args"]
    assert isinstance(connect, dict)
    assert connect.items() >= database.CONNECT.items()
    assert connect["application_name"] == "zapis-api"
    assert "-c lock_timeout=7000" in connect["options"]
