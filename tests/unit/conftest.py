"""Unit tests speak to nobody: no Ray, no network."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest
import ray


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a unit test speaks to nobody: this one belongs in tests/integration")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
