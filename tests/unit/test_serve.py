"""What the API process gives uvicorn to serve on."""

from __future__ import annotations

import os
import socket

import pytest
import uvicorn

from cluster.serve import ACCEPTED_TOGETHER, listen, serve
from cluster.settings import Settings


def test_many_are_let_in_in_one_round_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """libuv accepts one connection a round for each descriptor."""
    given: list[socket.socket] = []

    def run(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        given.extend(sockets)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    serve(Settings(), listen("127.0.0.1", 0))
    try:
        assert len({each.fileno() for each in given}) == ACCEPTED_TOGETHER
        assert len({os.fstat(each.fileno()).st_ino for each in given}) == 1
    finally:
        for each in given:
            each.close()
