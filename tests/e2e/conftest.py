"""One server for all races and faults: an API process with two calendar actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from cluster.settings import Settings

if TYPE_CHECKING:
    from tests.e2e.clinic import Server


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    new_database: Callable[[], AbstractContextManager[str]],
    settings_over: Callable[[str], Settings],
) -> Iterator[Server]:
    """An API without limits on anyone."""
    from tests.e2e.clinic import Server
    from tests.serving import serving_api

    no_limits = {"rate_limit": 0, "live_appointments_max": 0, "holds_max": 0, "calendar_actors": 2}
    with new_database() as database_url:
        settings = settings_over(database_url).model_copy(update=no_limits)
        output = tmp_path_factory.mktemp("server") / "api.out"
        with serving_api(settings, output) as serving:
            yield Server(serving=serving, settings=settings)
