"""All tests here run on every rank at once, under any launcher and any number of ranks, one included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ringred as rr


@pytest.fixture(scope="session", autouse=True)
def world() -> Iterator[None]:
    """Initialise once, for all tests of the session."""
    rr.init()
    yield
    rr.shutdown()
