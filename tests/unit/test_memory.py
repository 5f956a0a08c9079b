"""What came of punching is remembered for a while, and no longer."""

from __future__ import annotations

from gcbpatch.agent.memory import FORGET_SECONDS, HOPELESS, MOST, Memory

HERE = ("203.0.113.1", ("198.51.100.1", 20001))
ELSEWHERE = ("203.0.113.2", ("198.51.100.1", 20001))


def failed(times: int, now: float = 0.0) -> Memory:
    memory = Memory()
    for _ in range(times):
        memory.failed(HERE, now)
    return memory


def test_nothing_is_hopeless_before_it_was_tried() -> None:
    assert not Memory().hopeless(HERE, 0.0)


def test_one_failure_may_be_chance_two_in_a_row_are_not() -> None:
    assert not failed(HOPELESS - 1).hopeless(HERE, 1.0)
    assert failed(HOPELESS).hopeless(HERE, 1.0)


def test_it_holds_for_the_two_networks_that_it_was_between() -> None:
    assert not failed(HOPELESS).hopeless(ELSEWHERE, 1.0)


def test_it_is_forgotten_in_time_and_begins_anew() -> None:
    memory = failed(HOPELESS)
    assert memory.hopeless(HERE, FORGET_SECONDS - 1)
    assert not memory.hopeless(HERE, FORGET_SECONDS)
    memory.failed(HERE, FORGET_SECONDS)
    assert not memory.hopeless(HERE, FORGET_SECONDS + 1)


def test_what_worked_is_forgiven_its_failures() -> None:
    memory = failed(HOPELESS)
    memory.worked(HERE)
    memory.failed(HERE, 1.0)
    assert not memory.hopeless(HERE, 1.0)


def test_it_is_bounded() -> None:
    memory = failed(HOPELESS)
    for number in range(MOST):
        memory.failed(("203.0.113.1", ("198.51.100.1", number)), 1.0)
    assert not memory.hopeless(HERE, 1.0)
