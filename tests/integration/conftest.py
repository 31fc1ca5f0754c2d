"""The application as a fixture; ``tests.integration.application`` says what it can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from cluster.settings import Settings

if TYPE_CHECKING:
    from tests.integration.application import Application


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Application]:
    """The application over this test's own database, with no limit on requests."""
    # Not above: this file is read before Ray has been told how to connect, and that imports it.
    from tests.integration.application import running

    async with running(settings.model_copy(update={"rate_limit": 0})) as application:
        yield application
