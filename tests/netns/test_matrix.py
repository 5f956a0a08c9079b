"""Every kind of connector with every kind of listener, by TCP and UDP: by which path they meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.crossroads import Crossroads
from tests.netns.lab import Lab
from tests.netns.matrix import CONNECTORS, expected


@pytest.fixture(scope="module")
def crossroads(
    namespaces: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crossroads]:
    """All networks at once, and everybody listening."""
    with Lab() as lab:
        crossroads = Crossroads(lab, tmp_path_factory.mktemp("crossroads"))
        crossroads.listen()
        yield crossroads


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_connector_reaches_all_by_the_best_path(crossroads: Crossroads, connector: str) -> None:
    right = expected(connector)
    took = crossroads.walk(connector, right)
    assert took.keys() == right.keys()
    wrong = {cell: (path, right[cell]) for cell, path in took.items() if path not in right[cell]}
    assert not wrong
