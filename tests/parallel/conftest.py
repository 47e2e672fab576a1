"""All tests here run on every rank at once, under any launcher and any number of ranks, one included."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringred as rr

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib pytest does not


@pytest.fixture(scope="session", autouse=True)
def world() -> Iterator[None]:
    """Initialise once, for all tests of the session."""
    rr.init()
    yield
    rr.shutdown()
