"""Simulations speak to nobody: no Ray, no network. Which seeds are run is asked for."""

from __future__ import annotations

import pytest

from tests.unit.conftest import _alone

__all__ = ["_alone"]


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    """The seeds to run."""
    first: int = request.config.getoption("--first-seed")
    count: int = request.config.getoption("--seeds")
    return range(first, first + count)
