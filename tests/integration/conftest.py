"""The application as a fixture; ``tests.integration.application`` and ``practice`` say what it can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cluster.settings import Settings

if TYPE_CHECKING:
    from tests.integration.application import Application
    from tests.integration.practice import Practice

# What the fixtures open is imported when they do: this file is read before Ray has been told how to connect.


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Application]:
    """The application over this test's own database, with no limit on requests."""
    from tests.integration.application import running

    async with running(settings.model_copy(update={"rate_limit": 0})) as application:
        yield application


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def practice(
    new_database: Callable[[], AbstractContextManager[str]], settings_over: Callable[[str], Settings]
) -> AsyncIterator[Practice]:
    """One practice for all tests of a module, which run in its event loop."""
    from tests.integration.practice import open_practice

    with new_database() as database_url:
        async with open_practice(settings_over(database_url)) as practice:
            yield practice
