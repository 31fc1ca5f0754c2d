"""Logs hold ids, never persons or secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from actors.logs import configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configured = structlog.get_config() if structlog.is_configured() else None
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**configured)  # Loggers that were used before keep its processors.


def test_a_line_is_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().info("appointment_booked", appointment_id="a-1")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"]) == ("appointment_booked", "info")
    assert (line["appointment_id"], line["request_id"]) == ("a-1", "r-1")


def test_libraries_write_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    logging.getLogger("some.library").warning("it %s", "happened")
    assert json.loads(capsys.readouterr().err)["event"] == "it happened"


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_no_library_tells_whom_a_request_is_about(capsys: pytest.CaptureFixture[str], level: str) -> None:
    configure_logging(level, "json")
    transport = httpx.MockTransport(lambda _: httpx.Response(201))
    async with httpx.AsyncClient(transport=transport) as client:
        await client.post("https://push.example/send/a-capability")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_is_personal_or_secret_is_withheld(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logging("debug", log_format)
    structlog.get_logger().info("registered", login="alice", phone="+12025550100", password="hunter2", user_id="u-1")
    written = capsys.readouterr().err
    assert "u-1" in written
    assert not any(secret in written for secret in ("alice", "5550100", "hunter2"))


def test_the_level_is_the_least_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    structlog.get_logger().info("quiet")
    logging.getLogger("some.library").info("quiet")
    assert capsys.readouterr().err == ""
