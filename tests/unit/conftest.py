"""Unit tests speak to nobody: no Ray, no network."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # Not above: this file may be read before Ray has been told how to connect.

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a unit test speaks to nobody: this one belongs in tests/integration")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
