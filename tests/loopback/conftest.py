"""Fixtures of the tests of a real brokerd; a module may have a `broker` of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .broker_client import Broker
from .broker_ground import TOKENS


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """A broker with tokens."""
    (tmp_path / "tokens").write_text(TOKENS)
    broker = Broker(tmp_path, "--token-file", str(tmp_path / "tokens"))
    yield broker
    broker.kill()
