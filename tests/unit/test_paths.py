"""Which paths an agent tries, in which order, and how long it waits for a better one."""

import itertools

import pytest

from gcbpatch.agent import paths
from gcbpatch.wire.messages import Endpoint, Path, PathKind

BEST_FIRST = [
    PathKind.LOCAL,
    PathKind.DIRECT,
    PathKind.REVERSE,
    PathKind.PUNCHED,
    PathKind.RELAYED,
]
ALL = [Path(kind, []) for kind in BEST_FIRST]


def kinds(found: list[Path]) -> list[PathKind]:
    return [path.kind for path in found]


def test_every_kind_has_its_own_rank_best_first() -> None:
    assert sorted(PathKind, key=lambda kind: paths.RANK[kind]) == BEST_FIRST
    assert len(set(paths.RANK.values())) == len(PathKind)


@pytest.mark.parametrize("order", list(itertools.permutations(ALL)))
def test_each_side_dials_its_own_best_first(order: tuple[Path, ...]) -> None:
    connector = paths.dialled(order, paths.DIALLED_BY_CONNECTOR)
    listener = paths.dialled(order, paths.DIALLED_BY_LISTENER)
    assert kinds(connector) == [PathKind.LOCAL, PathKind.DIRECT, PathKind.RELAYED]
    assert kinds(listener) == [PathKind.REVERSE, PathKind.RELAYED]


def test_every_path_but_the_relay_is_dialled_by_one_side() -> None:
    both = paths.DIALLED_BY_CONNECTOR & paths.DIALLED_BY_LISTENER
    assert both == {PathKind.RELAYED}
    assert paths.DIALLED_BY_CONNECTOR - both == paths.OPENED_BY_CONNECTOR


def test_a_path_that_nobody_can_dial_yet_is_passed_over() -> None:
    punched = [Path(PathKind.PUNCHED, [Endpoint("192.0.2.1", 1)])]
    assert paths.dialled(punched, paths.DIALLED_BY_CONNECTOR) == []
    assert paths.dialled(punched, paths.DIALLED_BY_LISTENER) == []


def test_addresses_stay_in_the_brokers_order() -> None:
    one, other = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)
    offered = [Path(PathKind.DIRECT, [one]), Path(PathKind.DIRECT, [other])]
    assert paths.dialled(offered, paths.DIALLED_BY_CONNECTOR) == offered


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (PathKind.LOCAL, True),
        (PathKind.DIRECT, True),
        (PathKind.REVERSE, False),
        (PathKind.PUNCHED, False),
        (PathKind.RELAYED, False),
    ],
)
def test_a_listener_expects_open_where_the_connector_dials_it(
    kind: PathKind, expected: bool
) -> None:
    offered = [Path(PathKind.RELAYED, []), Path(kind, [])]
    assert paths.expects_open(offered, paths.OPENED_BY_CONNECTOR) is expected
    assert paths.expects_open([], paths.OPENED_BY_CONNECTOR) is False


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [(0.0, 0.02), (0.001, 0.02), (0.02, 0.02), (0.1, 0.1), (0.5, 0.5), (0.501, 0.5), (20.0, 0.5)],
)
def test_grace_is_as_long_as_the_ready_one_took_within_bounds(
    elapsed: float, seconds: float
) -> None:
    assert paths.grace(elapsed) == seconds


def test_nothing_is_better_than_the_best_and_all_better_than_the_relay() -> None:
    for place, kind in enumerate(BEST_FIRST):
        assert paths.nothing_better(kind, [])
        assert paths.nothing_better(kind, BEST_FIRST[place:])
        for better in BEST_FIRST[:place]:
            assert not paths.nothing_better(kind, [PathKind.RELAYED, better])
