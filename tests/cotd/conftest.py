"""Fixtures of the tests that load from the hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub.repositories import imdb, models, yelp
from tests.hub.server import Hub, serving


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The stand-in hub, running."""
    running = Hub({(r.kind, r.id): r for r in [imdb(), yelp(), *models()]}, tmp_path_factory.mktemp("uploads"))
    with serving(running):
        yield running


@pytest.fixture(scope="session")
def stopped_hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub at whose address nothing answers."""
    stopped = Hub({}, tmp_path_factory.mktemp("no-uploads"))
    with serving(stopped):
        pass
    return stopped
