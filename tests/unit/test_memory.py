"""What came of paths is remembered for a while, and no longer."""

from __future__ import annotations

from gcbpatch.agent.memory import FORGET_SECONDS, HOPELESS, MOST, Between, Memory
from gcbpatch.wire.messages import Endpoint, Path, PathKind

HERE: Between = ("203.0.113.1", b"network1")
ELSEWHERE: Between = ("203.0.113.1", b"network2")
DIRECT = Path(PathKind.DIRECT, [Endpoint("198.51.100.7", 5000)])
OTHER = Path(PathKind.DIRECT, [Endpoint("198.51.100.8", 5000)])
PUNCHED, RELAYED = Path(PathKind.PUNCHED, []), Path(PathKind.RELAYED, [])
ALL = [DIRECT, PUNCHED, RELAYED]


def relayed(times: int, now: float = 0.0) -> Memory:
    memory = Memory()
    for _ in range(times):
        memory.learn(HERE, ALL, PathKind.RELAYED, now)
    return memory


def test_nothing_is_hopeless_before_it_was_tried() -> None:
    assert Memory().hopeless(HERE, ALL, 0.0) == []


def test_one_failure_may_be_chance_two_in_a_row_are_not() -> None:
    assert relayed(HOPELESS - 1).hopeless(HERE, ALL, 1.0) == []
    assert relayed(HOPELESS).hopeless(HERE, ALL, 1.0) == [DIRECT, PUNCHED]


def test_what_is_worse_than_the_path_that_was_taken_has_not_failed() -> None:
    memory = Memory()
    for _ in range(HOPELESS):
        memory.learn(HERE, ALL, PathKind.PUNCHED, 0.0)
    assert memory.hopeless(HERE, ALL, 1.0) == [DIRECT]


def test_it_holds_for_the_two_networks_that_it_was_between() -> None:
    assert relayed(HOPELESS).hopeless(ELSEWHERE, ALL, 1.0) == []


def test_a_path_with_addresses_has_failed_to_these_only() -> None:
    assert relayed(HOPELESS).hopeless(HERE, [OTHER, PUNCHED, RELAYED], 1.0) == [PUNCHED]


def test_it_is_forgotten_in_time_and_begins_anew() -> None:
    memory = relayed(HOPELESS)
    assert memory.hopeless(HERE, ALL, FORGET_SECONDS - 1) == [DIRECT, PUNCHED]
    assert memory.hopeless(HERE, ALL, FORGET_SECONDS) == []
    memory.learn(HERE, ALL, PathKind.RELAYED, FORGET_SECONDS)
    assert memory.hopeless(HERE, ALL, FORGET_SECONDS + 1) == []


def test_what_worked_is_forgiven_its_failures() -> None:
    memory = relayed(HOPELESS)
    memory.learn(HERE, ALL, PathKind.PUNCHED, 1.0)
    memory.learn(HERE, ALL, PathKind.RELAYED, 2.0)
    assert memory.hopeless(HERE, [PUNCHED], 2.0) == []


def test_it_is_bounded() -> None:
    memory = relayed(HOPELESS)
    for number in range(MOST):
        memory.learn(("203.0.113.1", b"%d" % number), [PUNCHED], PathKind.RELAYED, 1.0)
    assert memory.hopeless(HERE, ALL, 1.0) == []


TARGET, PLACE, LATER = ("198.51.100.1", 20001), ("198.51.100.7", 5000), ("198.51.100.7", 5001)


def test_where_an_agent_was_reached_is_remembered_for_a_while() -> None:
    memory = Memory()
    assert memory.place(TARGET, 0.0) is None
    memory.reached(TARGET, PLACE, 0.0)
    assert memory.place(TARGET, FORGET_SECONDS - 0.1) == PLACE
    assert memory.place(PLACE, 1.0) is None
    assert memory.place(TARGET, FORGET_SECONDS) is None


def test_what_was_seen_last_counts() -> None:
    memory = Memory()
    memory.reached(TARGET, PLACE, 0.0)
    memory.reached(TARGET, LATER, FORGET_SECONDS)
    assert memory.place(TARGET, FORGET_SECONDS + 1.0) == LATER
    memory.reached(TARGET, None, FORGET_SECONDS + 2.0)
    assert memory.place(TARGET, FORGET_SECONDS + 3.0) is None


def test_only_so_many_places_are_remembered() -> None:
    memory = Memory()
    for number in range(MOST + 1):
        memory.reached(("198.51.100.1", number), PLACE, 0.0)
    assert memory.place(("198.51.100.1", 0), 1.0) is None
    assert memory.place(("198.51.100.1", MOST), 1.0) == PLACE
